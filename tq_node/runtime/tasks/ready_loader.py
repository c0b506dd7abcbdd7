"""Filling the heaps from the rows: at start, and again when stale hints outnumber the tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import msgspec

from tq_node.partition.ready_queue import DueSet, ReadySet
from tq_node.store.api import Store
from tq_node.types import State

OPEN_ROWS_CHUNK = 2_500
"""Rows that the reactor thread takes in at a time, some 10 ms: between two chunks it hears peers and callers."""


class ReadyLoader(msgspec.Struct):
    """What the rows of tasks that have not ended say besides the hints."""

    running: list[str]
    counts: Counter[tuple[int, str, int]]
    """Rows by (partition, queue, state)."""


async def load_hints(store: Store, ready: ReadySet, due: DueSet, partitions: Collection[int]) -> ReadyLoader:
    """Fill the heaps from the rows of these partitions. Rows of others are passed by in the store, and never come here."""
    found = ReadyLoader([], Counter())
    after: tuple[int, str] | None = None
    while True:
        rows = await store.open_rows(after, OPEN_ROWS_CHUNK, partitions)
        ready.extend(
            [(r.id, r.partition, r.queue, r.priority, r.run_at_us, r.type) for r in rows if r.state == State.PENDING]
        )
        due.extend([(r.id, r.partition, r.run_at_us) for r in rows if r.state == State.SCHEDULED])
        found.running += [r.id for r in rows if r.state == State.PROCESSING]
        found.counts.update([(r.partition, r.queue, r.state) for r in rows])
        if len(rows) < OPEN_ROWS_CHUNK:
            ready.arrange()
            due.arrange()
            return found
        after = (rows[-1].state, rows[-1].id)
