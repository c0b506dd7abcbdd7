"""Filling the heaps from the rows: at start, and again when stale hints outnumber the tasks."""

from __future__ import annotations

from tq_node.partition.ready import DueSet, ReadySet
from tq_node.store.api import Store
from tq_node.types import State

_OPEN_ROWS_CHUNK = 20_000


async def load_hints(store: Store, ready: ReadySet, due: DueSet) -> list[str]:
    """Fill the heaps from the rows; returns the ids of tasks that are processing."""
    running: list[str] = []
    after: tuple[int, str] | None = None
    while True:
        chunk = await store.open_rows(after, _OPEN_ROWS_CHUNK)
        ready.extend([(r.id, r.partition, r.queue, r.priority, r.run_at_us) for r in chunk if r.state == State.PENDING])
        due.extend([(r.id, r.partition, r.run_at_us) for r in chunk if r.state == State.SCHEDULED])
        running += [r.id for r in chunk if r.state == State.PROCESSING]
        if len(chunk) < _OPEN_ROWS_CHUNK:
            ready.arrange()
            due.arrange()
            return running
        after = (chunk[-1].state, chunk[-1].id)
