"""What a store knows of each partition's log besides the records, and how a batch changes it. No IO.

Both implementations fold every batch through this, so that they refuse the same batches.
"""

from __future__ import annotations

from tq_node.errors import Divergence
from tq_node.store.api import Batch, PartitionLog


class LogState:
    """Records ``trimmed`` + 1 to ``last`` are kept."""

    __slots__ = ("applied", "epochs", "horizon_us", "last", "promised", "trimmed")

    def __init__(self, promised: int = 0, applied: int = 0, horizon_us: int = 0, trimmed: int = 0) -> None:
        self.promised = promised
        self.applied = applied
        self.horizon_us = horizon_us
        self.trimmed = trimmed
        self.last = trimmed
        self.epochs: list[tuple[int, int]] = []

    def as_partition_log(self, partition: int) -> PartitionLog:
        """``epochs`` begins with the one that covers the start of the log; older ones no longer matter."""
        log_start = self.trimmed + 1
        first = 0
        while first + 1 < len(self.epochs) and self.epochs[first + 1][1] <= log_start:
            first += 1
        return PartitionLog(
            partition, self.promised, self.epochs[first:], log_start, self.last, self.applied, self.horizon_us
        )


def fold(states: dict[int, LogState], batch: Batch) -> set[int]:
    """Change ``states`` as the batch says; return the partitions of which more than ``last`` or ``epochs`` changed.

    What only grows is never lowered. ``applied`` past the end of an empty log moves the log there: that is how a
    snapshot's place is set.

    :raises Divergence: a gap in the records, a lower ``applied``, or one past records that are there. ``states`` is then
        half changed: the store must end.
    """
    for entry in batch.entries:
        state = states.get(entry.partition)
        if state is None:
            state = states[entry.partition] = LogState()
        if entry.sequence != state.last + 1:
            raise Divergence(f"partition {entry.partition}: record {entry.sequence} after {state.last}")
        state.last = entry.sequence
    changed: set[int] = set()
    if batch.promises:
        for partition, promised in batch.promises.items():
            state = states.setdefault(partition, LogState())
            state.promised = max(state.promised, promised)
            changed.add(partition)
    for partition, epoch, first_sequence in batch.epochs:
        state = states.setdefault(partition, LogState())
        if state.epochs and (epoch, first_sequence) <= state.epochs[-1]:
            raise Divergence(f"partition {partition}: epoch {epoch} after {state.epochs[-1][0]}")
        state.epochs.append((epoch, first_sequence))
    for partition, horizon_us in batch.horizons.items():
        state = states.setdefault(partition, LogState())
        state.horizon_us = max(state.horizon_us, horizon_us)
        changed.add(partition)
    for partition, applied in batch.applied.items():
        state = states.setdefault(partition, LogState())
        if applied < state.applied:
            raise Divergence(f"partition {partition}: applied {applied} after {state.applied}")
        if applied > state.last:
            if state.last > state.trimmed:
                raise Divergence(f"partition {partition}: applied {applied}, but the log ends at {state.last}")
            state.last = state.trimmed = applied
        state.applied = applied
        changed.add(partition)
    for partition, upto in batch.trim.items():
        state = states.setdefault(partition, LogState())
        trimmed = min(upto, state.applied)  # never past applied (replication.md, section 6)
        if trimmed > state.trimmed:
            state.trimmed = trimmed
            changed.add(partition)
    return changed
