"""From what is on disk to a node that leads its partitions again."""

from __future__ import annotations

import msgspec

from tq_node.errors import StoreBroken
from tq_node.partition.entries import Effect, decode_effects
from tq_node.partition.replica import PrimaryLog
from tq_node.runtime.events import Change
from tq_node.runtime.hints import load_hints
from tq_node.runtime.table import TaskTable
from tq_node.store.api import PartitionLog, Store
from tq_node.types import State

_READ_BYTES = 4 * 1024 * 1024


class Recovered(msgspec.Struct):
    """The logs by partition, with their unapplied tails in, and the horizons."""

    logs: list[PrimaryLog[Change]]
    horizons: dict[int, int]


async def recover_logs(store: Store, me: str, partition_count: int) -> Recovered:
    """Read every partition's state and the tail of its log behind ``applied``.

    :raises StoreBroken: an entry can't be decoded, though its checksum holds.
    """
    known: dict[int, PartitionLog] = {state.partition: state for state in await store.partitions()}
    logs: list[PrimaryLog[Change]] = []
    horizons: dict[int, int] = {}
    for partition in range(partition_count):
        state = known.get(partition)
        if state is None:
            logs.append(PrimaryLog(partition, me))
            continue
        log: PrimaryLog[Change] = PrimaryLog(
            partition, me, promised=state.promised, last_sequence=state.last_sequence, applied=state.applied
        )
        if state.last_sequence > state.applied:
            log.recover(await _tail(store, state))
        if state.horizon_us:
            horizons[partition] = state.horizon_us
        logs.append(log)
    return Recovered(logs, horizons)


async def _tail(store: Store, state: PartitionLog) -> list[tuple[int, list[Effect]]]:
    tail: list[tuple[int, list[Effect]]] = []
    sequence = state.applied + 1
    while sequence <= state.last_sequence:
        entries = await store.read_log(state.partition, sequence, bytes_max=_READ_BYTES)
        if not entries:
            raise StoreBroken(f"partition {state.partition}: entry {sequence} is missing from the log")
        for entry in entries:
            try:
                tail.append((entry.sequence, decode_effects(entry.payload)))
            except msgspec.MsgspecError as why:
                raise StoreBroken(f"partition {state.partition}: entry {entry.sequence} can't be decoded") from why
        sequence = entries[-1].sequence + 1
    return tail


async def recover_rows(store: Store, table: TaskTable) -> list[str]:
    """Count the rows and build the heaps anew. Returns the ids of tasks that were running when the node went down."""
    for _, queue, state, rows in await store.counts():
        counts = table.counts.setdefault(queue, [0] * len(State))
        counts[state] += rows
        if not State(state).is_final:
            table.open_tasks += rows
    return await load_hints(store, table.ready, table.due)
