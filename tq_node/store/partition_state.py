"""What a store keeps in memory of each partition, and how a batch changes it. No IO.

``LogState`` is the state of a partition's log, ``Extent`` counts what the partition holds,
``Staging`` is a snapshot that is being received. Every implementation of ``Store`` folds its
batches through these, so that all refuse the same batches."""

from __future__ import annotations

from tq_node.errors import Divergence
from tq_node.store.api import Batch, Install, PartitionLog, PartitionSize
from tq_node.store.snapshots import ROW_BYTES_ABOUT, TOMBSTONE_BYTES_ABOUT, Chunk, Digest


class LogState:
    """The log of one partition: records ``trimmed`` + 1 to ``last``; ``trimmed`` <= ``applied``."""

    __slots__ = ("applied", "epochs", "horizon_us", "last", "promised", "trimmed")

    def __init__(self, promised: int = 0, applied: int = 0, horizon_us: int = 0, trimmed: int = 0) -> None:
        self.promised = promised
        self.applied = applied
        self.horizon_us = horizon_us
        self.trimmed = trimmed
        self.last = trimmed
        self.epochs: list[tuple[int, int]] = []

    def as_partition_log(self, partition: int) -> PartitionLog:
        """``epochs`` begins with the one that covers the record before the log's start."""
        first = 0
        while first + 1 < len(self.epochs) and self.epochs[first + 1][1] <= self.trimmed:
            first += 1
        return PartitionLog(
            partition, self.promised, self.epochs[first:], self.trimmed + 1, self.last, self.applied, self.horizon_us
        )

    def forget(self) -> None:
        """A drop: all but ``promised`` goes (R13)."""
        self.applied = self.horizon_us = self.trimmed = self.last = 0
        self.epochs = []

    def install(self, install: Install) -> None:
        """Raises ``Divergence`` if it leads back (F6, I7) or its epochs are in no order."""
        if install.applied < self.applied:
            raise Divergence(f"partition {install.partition}: a snapshot of {install.applied} after {self.applied}")
        epochs: list[tuple[int, int]] = []
        for epoch, first_sequence in install.epochs:
            _require_later(install.partition, epochs, epoch, first_sequence)
            epochs.append((epoch, first_sequence))
        if epochs and epochs[-1][1] > install.applied:
            raise Divergence(f"partition {install.partition}: a snapshot's epochs go past {install.applied}")
        self.applied = self.trimmed = self.last = install.applied
        self.horizon_us = max(self.horizon_us, install.horizon_us)
        self.epochs = epochs

    def cut(self, partition: int, kept: int) -> None:
        """Raises ``Divergence`` if what is applied would be cut (I5)."""
        if kept < self.applied:
            raise Divergence(f"partition {partition}: a cut to {kept}, but {self.applied} is applied")
        self.last = min(self.last, kept)
        while self.epochs and self.epochs[-1][1] > kept:
            self.epochs.pop()

    def apply_upto(self, partition: int, applied: int) -> None:
        """Raises ``Divergence`` if the number is lower, or past the records that are there."""
        if applied < self.applied:
            raise Divergence(f"partition {partition}: applied {applied} after {self.applied}")
        if applied > self.last:
            if self.last > self.trimmed:
                raise Divergence(f"partition {partition}: applied {applied}, but the log ends at {self.last}")
            self.last = self.trimmed = applied
        self.applied = applied


class Extent:
    """How much one generation of a partition's content holds (see ``sqlite.generations``).
    ``log_from``: the partition's log records at lower positions of the table belong to replaced
    content and are dead."""

    __slots__ = ("content_bytes", "generation", "log_from", "rows", "tombstones")

    def __init__(
        self, generation: int = 0, log_from: int = 0, rows: int = 0, tombstones: int = 0, content_bytes: int = 0
    ) -> None:
        self.generation = generation
        self.log_from = log_from
        self.rows = rows
        self.tombstones = tombstones
        self.content_bytes = content_bytes

    @property
    def is_empty(self) -> bool:
        return not (self.rows or self.tombstones)

    def size(self) -> PartitionSize:
        total = self.content_bytes + self.rows * ROW_BYTES_ABOUT + self.tombstones * TOMBSTONE_BYTES_ABOUT
        return PartitionSize(self.rows, self.tombstones, total)

    def count_chunk(self, chunk: Chunk) -> None:
        """Add the rows and tombstones of a staged chunk."""
        self.rows += len(chunk.rows)
        self.content_bytes += sum(len(row[11]) + len(row[12]) for row in chunk.rows)
        self.tombstones += len(chunk.tombstones)


class Staging:
    """A snapshot that is being received. ``extent.generation`` becomes live by its install."""

    __slots__ = ("chunks", "digest", "extent")

    def __init__(self, generation: int) -> None:
        self.extent = Extent(generation)
        self.chunks = 0
        self.digest = Digest()

    def require_next(self, partition: int, number: int) -> None:
        """Count chunk ``number``; raises ``Divergence`` if one before it is not staged."""
        if number != self.chunks:
            raise Divergence(f"partition {partition}: chunk {number} after {self.chunks}")
        self.chunks += 1

    def require_whole(self, partition: int, chunks: int, digest: bytes) -> None:
        """Raises ``Divergence`` if chunks or digest are not those that the ``Install`` names."""
        if self.chunks != chunks:
            raise Divergence(f"partition {partition}: {self.chunks} chunks are staged, not {chunks}")
        if digest and digest != self.digest.value():
            raise Divergence(f"partition {partition}: what is staged has another digest than the snapshot")


def fold(states: dict[int, LogState], batch: Batch) -> set[int]:
    """Change ``states`` as the batch says, in the order of ``Batch``; return those of which more
    than log and epochs changed.

    What only grows is never lowered. ``applied`` past the end of an empty log moves the log there.

    :raises Divergence: the batch does not follow. ``states`` is then half changed: the store must
        end."""
    changed: set[int] = set()
    if batch.promises:
        for partition, promised in batch.promises.items():
            state = state_of(states, partition)
            state.promised = max(state.promised, promised)
            changed.add(partition)
    if batch.drops or batch.installs or batch.cuts:
        for partition in batch.drops:
            state_of(states, partition).forget()
        for install in batch.installs:
            state_of(states, install.partition).install(install)
        for partition, kept in batch.cuts.items():
            state_of(states, partition).cut(partition, kept)
        changed.update(batch.drops, [install.partition for install in batch.installs])
    for partition, epoch, first_sequence in batch.epochs:
        state = state_of(states, partition)
        _require_later(partition, state.epochs, epoch, first_sequence)
        state.epochs.append((epoch, first_sequence))
    for entry in batch.entries:
        known = states.get(entry.partition)
        if known is None:
            known = states[entry.partition] = LogState()
        if entry.sequence != known.last + 1:
            raise Divergence(f"partition {entry.partition}: record {entry.sequence} after {known.last}")
        known.last = entry.sequence
    for partition, horizon_us in batch.horizons.items():
        state = state_of(states, partition)
        state.horizon_us = max(state.horizon_us, horizon_us)
        changed.add(partition)
    for partition, applied in batch.applied.items():
        state_of(states, partition).apply_upto(partition, applied)
        changed.add(partition)
    for partition, upto in batch.trim.items():
        state = state_of(states, partition)
        trimmed = min(upto, state.applied)  # never past applied (replication.md, section 6)
        if trimmed > state.trimmed:
            state.trimmed = trimmed
            changed.add(partition)
    return changed


def state_of(states: dict[int, LogState], partition: int) -> LogState:
    """The partition's state; one that was never written to gets an empty one."""
    state = states.get(partition)
    if state is None:
        state = states[partition] = LogState()
    return state


def _require_later(partition: int, epochs: list[tuple[int, int]], epoch: int, first_sequence: int) -> None:
    if epochs and (epoch <= epochs[-1][0] or first_sequence <= epochs[-1][1]):
        raise Divergence(f"partition {partition}: epoch {epoch} from {first_sequence} on after {epochs[-1]}")
