"""From disk to copies in memory, and from a partition's rows to a primary that serves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import cast

import msgspec

from tq_node.errors import StoreBroken
from tq_node.partition.apply_queue import ApplyQueue
from tq_node.partition.copy_rate import CopyRate
from tq_node.partition.core import PartitionCore
from tq_node.partition.entries import decode_effects
from tq_node.partition.ready_queue import DueSet, ReadySet
from tq_node.partition.replica_log import Stored, Tail
from tq_node.partition.settings import Budget
from tq_node.runtime.replication.ports import Replicas
from tq_node.runtime.tasks.open_by_maker import Makers
from tq_node.store.api import PartitionLog, Store
from tq_node.types import Change, NodeId, State

_READ_BYTES = 4 * 1024 * 1024
OPEN_ROWS_CHUNK = 2_500
"""Rows that the reactor takes in at a time, some 10 ms; between chunks it serves peers, callers."""
Counts = dict[str, list[int]]
"""Rows by queue and state."""


async def recover_copies(store: Store, me: NodeId, partition_count: int, copy_rate_bytes_s: int = 0) -> Replicas:
    """Read every partition's state, the tail of its log behind ``applied``, and how many rows it
    has.

    :param copy_rate_bytes_s: see ``CopyRate``.
    :raises StoreBroken: an entry can't be decoded, though its checksum holds."""
    known: dict[int, PartitionLog] = {state.partition: state for state in await store.partitions()}
    budget, unapplied = Budget(copying=CopyRate(copy_rate_bytes_s)), ApplyQueue()
    cores: list[PartitionCore[Change]] = []
    for partition in range(partition_count):
        state = known.get(partition)
        stored = Stored()
        if state is not None:
            stored = Stored(
                state.promised,
                tuple(state.epochs),
                state.log_start,
                state.last_sequence,
                state.applied,
                tuple(await _tail(store, state)),
            )
            if state.horizon_us:
                unapplied.horizons[partition] = state.horizon_us
        cores.append(PartitionCore(partition, me, stored, budget=budget))
    for partition, _, state_number, rows in await store.counts():
        unapplied.states_of(partition)[state_number] += rows
    return Replicas(me, cores, unapplied, budget)


async def _tail(store: Store, state: PartitionLog) -> list[Tail]:
    tail: list[Tail] = []
    sequence = state.applied + 1
    while sequence <= state.last_sequence:
        entries = await store.read_log(state.partition, sequence, bytes_max=_READ_BYTES)
        if not entries:
            raise StoreBroken(f"partition {state.partition}: entry {sequence} is missing from the log")
        for entry in entries:
            try:
                tail.append(Tail(entry.sequence, entry.epoch, decode_effects(entry.payload), len(entry.payload)))
            except msgspec.MsgspecError as why:
                raise StoreBroken(f"partition {state.partition}: entry {entry.sequence} can't be decoded") from why
        sequence = entries[-1].sequence + 1
    return tail


class RecoveredRows(msgspec.Struct):
    """What some partitions' rows say: how many there are, what waits, which tasks were running."""

    counts: dict[int, Counts]
    ready: ReadySet
    due: DueSet
    running: list[str]


async def recover_rows(store: Store, partitions: Collection[int], ready: ReadySet) -> RecoveredRows:
    """Count the rows of partitions that are about to be served, and find what waits or runs in
    them.

    Each row is looked at once: those that have ended where the store counts them, the others on
    their way to the heaps.

    :param ready: empty, with the lanes that are wanted."""
    due = DueSet()
    found: dict[int, Counts] = {partition: {} for partition in partitions}
    if not found:
        return RecoveredRows(found, ready, due, [])
    ended = await store.counts(partitions, from_state=State.COMPLETED)
    opened = await load_ready(store, ready, due, partitions)
    for partition, queue, state, rows in [*ended, *((*key, rows) for key, rows in opened.counts.items())]:
        found[partition].setdefault(queue, [0] * len(State))[state] += rows
    return RecoveredRows(found, ready, due, opened.running)


async def recover_makers(store: Store, partitions: Collection[int]) -> dict[int, Makers]:
    """Count the tasks that have not ended by the token that submitted them. Each one's submitted
    part is read, so it is done only where tokens are asked for."""
    found: dict[int, Counter[tuple[str, str]]] = {partition: Counter() for partition in partitions}
    after: tuple[int, str] | None = None
    while True:
        rows = await store.open_makers(after, OPEN_ROWS_CHUNK, partitions)
        for row in rows:
            if row.made_by:
                found[row.partition][row.made_by, row.queue] += 1
        if len(rows) < OPEN_ROWS_CHUNK:
            return cast("dict[int, Makers]", found)
        after = (rows[-1].state, rows[-1].id)


class OpenTasks(msgspec.Struct):
    """What the rows of tasks that have not ended say, besides those that wait."""

    running: list[str]
    counts: Counter[tuple[int, str, int]]
    """Rows by (partition, queue, state)."""


async def load_ready(store: Store, ready: ReadySet, due: DueSet, partitions: Collection[int]) -> OpenTasks:
    """Fill the heaps from these partitions' rows; the store passes by those of others."""
    found = OpenTasks([], Counter())
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
