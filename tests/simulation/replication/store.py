"""What a simulated node's disk holds of each partition, and the transactions that change it, each wholly or not at all."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import msgspec

from tq_node.partition.entries import (
    Effect,
    LogEntry,
    Put,
    decode_effects,
)
from tq_node.partition.replica_log import PendingWrite, Stored, Tail


class Diverged(AssertionError):
    """A row effect met a revision that it does not follow, or the log was written out of order."""


class Row(NamedTuple):
    rev: int
    state: int
    body: bytes


class Rows:
    """The tasks at one applied sequence. The digest does not depend on the order in which they came."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.digest = 0

    def copy(self) -> Rows:
        other = Rows()
        other.rows, other.digest = dict(self.rows), self.digest
        return other

    def put(self, task: str, row: Row) -> None:
        before = self.rows.get(task)
        if before is not None:
            self.digest ^= zlib.crc32(repr((task, before)).encode())
        self.rows[task] = row
        self.digest ^= zlib.crc32(repr((task, row)).encode())

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Put):
                before = self.rows.get(effect.id)
                if effect.expected_rev != (before.rev if before is not None else 0):
                    raise Diverged(f"{effect.id}: rev {effect.rev} expects {effect.expected_rev}, there is {before}")
                self.put(effect.id, Row(effect.rev, int(effect.state), effect.body))


class Write(NamedTuple):
    """One partition's part in a transaction. ``applies``: committed entries for the rows, as (sequence, effects)."""

    partition: int
    draft: PendingWrite
    applies: list[tuple[int, list[Effect]]]
    trim: int


class StoredPartition:
    def __init__(self) -> None:
        self.promised = 0
        self.start_over()

    def start_over(self) -> None:
        self.epochs: list[tuple[int, int]] = []
        self.log_start = 1
        self.entries: list[LogEntry] = []
        self.applied = 0
        self.rows = Rows()
        self.staged: list[bytes] = []

    @property
    def last_sequence(self) -> int:
        return self.log_start - 1 + len(self.entries)

    def epoch_at(self, sequence: int) -> int:
        """0: not here."""
        if not 0 < sequence <= self.last_sequence:
            return 0
        return next((epoch for epoch, first in reversed(self.epochs) if first <= sequence), 0)

    def read(self, first: int, bytes_max: int) -> list[LogEntry]:
        if first < self.log_start:
            return []
        taken: list[LogEntry] = []
        size = 0
        for entry in self.entries[first - self.log_start :]:
            size += len(entry.payload)
            if taken and size > bytes_max:
                break
            taken.append(entry)
        return taken

    def stored(self) -> Stored:
        tail = tuple(
            Tail(entry.sequence, entry.epoch, decode_effects(entry.payload), len(entry.payload))
            for entry in self.entries
            if entry.sequence > self.applied
        )
        return Stored(self.promised, tuple(self.epochs), self.log_start, self.last_sequence, self.applied, tail)

    def write(self, write: Write) -> None:
        """The order is that of the store's ``Batch``."""
        draft = write.draft
        if draft.promise:
            assert draft.promise > self.promised, "a promise only grows (I7)"
            self.promised = draft.promise
        if draft.drop:
            self.start_over()
        if draft.unstage:
            self.staged = []
        for number, data in draft.stage:
            if number == 0:
                self.staged = []
            assert number == len(self.staged), "chunks are staged in order"
            self.staged.append(data)
        if draft.install is not None:
            self._install(draft)
        if draft.cut_after is not None:
            assert draft.cut_after >= self.applied, "never cut at or below applied (I5)"
            assert draft.cut_after < self.last_sequence, "a cut takes something away"
            del self.entries[draft.cut_after + 1 - self.log_start :]
            self.epochs = [run for run in self.epochs if run[1] <= draft.cut_after]
        for run in draft.epochs:
            assert not self.epochs or (run[0] > self.epochs[-1][0] and run[1] > self.epochs[-1][1])
            self.epochs.append(run)
        for entry in draft.entries:
            if entry.sequence != self.last_sequence + 1:
                raise Diverged(f"a gap: {entry.sequence} after {self.last_sequence}")
            self.entries.append(entry)
        for sequence, effects in write.applies:
            if sequence != self.applied + 1 or sequence > self.last_sequence:
                raise Diverged(f"applied out of order: {sequence} after {self.applied}, log to {self.last_sequence}")
            self.rows.apply(effects)
            self.applied = sequence
        if write.trim >= self.log_start:
            assert write.trim <= self.applied, "never trimmed past applied"
            del self.entries[: write.trim + 1 - self.log_start]
            self.log_start = write.trim + 1
            while len(self.epochs) > 1 and self.epochs[1][1] <= write.trim:
                self.epochs.pop(0)

    def _install(self, draft: PendingWrite) -> None:
        install = draft.install
        assert install is not None
        assert install.chunks == len(self.staged), "the whole snapshot is staged"
        assert install.applied >= self.applied, "a snapshot never takes rows back"
        rows, staged = Rows(), self.staged
        for data in staged:
            for task, row in _decode(data):
                rows.put(task, row)
        assert install.digest == b"%d" % rows.digest, "the snapshot is what its sender had"
        self.start_over()
        self.rows = rows
        self.applied = install.applied
        self.log_start = install.applied + 1
        self.epochs = list(install.epochs)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, Row]]).decode


class OpenedSnapshot:
    """A read transaction: the rows as they were."""

    def __init__(self, stored: StoredPartition, rows_per_chunk: int) -> None:
        self.applied = stored.applied
        self.epochs = tuple(run for run in stored.epochs if run[1] <= stored.applied)
        self.digest = b"%d" % stored.rows.digest
        rows = sorted(stored.rows.rows.items())
        self._chunks = [_encode(rows[start : start + rows_per_chunk]) for start in range(0, len(rows), rows_per_chunk)]

    def read(self) -> bytes | None:
        return self._chunks.pop(0) if self._chunks else None


class NodeStore:
    """All partitions of one disk."""

    def __init__(self) -> None:
        self.partitions: dict[int, StoredPartition] = {}

    def partition(self, number: int) -> StoredPartition:
        return self.partitions.setdefault(number, StoredPartition())

    def write(self, writes: list[Write]) -> None:
        for write in writes:
            self.partition(write.partition).write(write)
