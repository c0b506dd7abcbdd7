"""Filling the heaps from the rows: at start, and again when stale hints outnumber the tasks."""

from __future__ import annotations

from collections.abc import Container

from tq_node.partition.ready import DueSet, ReadySet
from tq_node.store.api import Store
from tq_node.types import State

_OPEN_ROWS_CHUNK = 20_000


async def load_hints(store: Store, ready: ReadySet, due: DueSet, partitions: Container[int]) -> list[str]:
    """Fill the heaps from the rows of these partitions; returns the ids of tasks that are processing."""
    running: list[str] = []
    after: tuple[int, str] | None = None
    while True:
        read = await store.open_rows(after, _OPEN_ROWS_CHUNK)
        chunk = [row for row in read if row.partition in partitions]
        ready.extend([(r.id, r.partition, r.queue, r.priority, r.run_at_us) for r in chunk if r.state == State.PENDING])
        due.extend([(r.id, r.partition, r.run_at_us) for r in chunk if r.state == State.SCHEDULED])
        running += [r.id for r in chunk if r.state == State.PROCESSING]
        if len(read) < _OPEN_ROWS_CHUNK:
            ready.arrange()
            due.arrange()
            return running
        after = (read[-1].state, read[-1].id)
