"""This node's copy of one partition's log: what is in it, what of that is durable, committed,
applied; and what the disk owes.

Both roles work on it. Writes are gathered in ``pending``, taken as one, and become durable in the
order taken; several may be on their way. An entry is encoded once, and is the same object for the
disk and for every replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from tq_node.errors import Divergence
from tq_node.partition.entries import Effect, LogEntry, decode_effects
from tq_node.partition.epochs import EpochTable
from tq_node.partition.settings import Budget, ReplicationSettings

News = TypeVar("News")
"""What the driver wants back when an effect commits; opaque here."""

ENTRY_OVERHEAD_BYTES = 64
"""Counted for an entry besides its payload, in every bound."""


class Committed(Generic[News]):
    """One entry from append to commit. ``news``: what the proposer gave with its effects; empty on
    a replica. The effects of an entry of another node are decoded when they are asked for."""

    __slots__ = ("_effects", "_payload", "news", "sequence", "size")

    def __init__(
        self, sequence: int, effects: list[Effect] | None, payload: bytes, news: list[News], size: int
    ) -> None:
        self.sequence = sequence
        self.news = news
        self.size = size
        self._effects = effects
        self._payload = payload

    @property
    def effects(self) -> list[Effect]:
        """The entry's effects.

        :raises msgspec.DecodeError: they can't be read though the checksum is right: of a newer
            kind (F44)."""
        if self._effects is None:
            self._effects = decode_effects(self._payload)
        return self._effects


class Tail(msgspec.Struct, frozen=True):
    """An entry behind ``applied``, as read from the store at start."""

    sequence: int
    epoch: int
    effects: list[Effect]
    size: int = 0


class Stored(msgspec.Struct, frozen=True):
    """What the store has of a partition at start. ``epochs`` covers ``log_start`` - 1; ``tail`` is
    all of the log behind ``applied``."""

    promised: int = 0
    epochs: tuple[tuple[int, int], ...] = ()
    log_start: int = 1
    last_sequence: int = 0
    applied: int = 0
    tail: tuple[Tail, ...] = ()


class Install(msgspec.Struct, frozen=True):
    """The staged chunks take the place of the partition's content; the log behind them is empty."""

    applied: int
    epochs: tuple[tuple[int, int], ...]
    horizon_us: int
    chunks: int
    digest: bytes


class PendingWrite(msgspec.Struct):
    """What one transaction shall do to the partition, in the order of the fields. Only the net
    effect: a cut removes entries from it."""

    promise: int = 0
    drop: bool = False
    """Rows, tombstones, log, epochs, horizon, applied, staged: all go. The promise stays."""
    unstage: bool = False
    stage: list[tuple[int, bytes]] = []
    install: Install | None = None
    cut_after: int | None = None
    epochs: list[tuple[int, int]] = []
    entries: list[LogEntry] = []

    @property
    def is_empty(self) -> bool:
        return not (
            self.entries
            or self.promise
            or self.cut_after is not None
            or self.stage
            or self.unstage
            or self.install
            or self.drop
        )


_NOTHING = PendingWrite()
"""What most takes find; nobody adds to what was taken."""


class _Write:
    """One write on its way to the disk. ``last``: the log's end by it, less what was cut since."""

    __slots__ = ("last", "number", "promise")

    def __init__(self, number: int, last: int, promise: int) -> None:
        self.number = number
        self.last = last
        self.promise = promise


class ReplicaLog(Generic[News]):
    """This copy's log. ``last_sequence`` counts what is in memory, ``durable_sequence`` what the
    disk has, ``committed`` and ``applied`` what is known to be."""

    def __init__(self, partition: int, stored: Stored, settings: ReplicationSettings, budget: Budget) -> None:
        self.partition = partition
        self.promised = self.durable_promised = stored.promised
        self.epochs = EpochTable(stored.epochs)
        self.log_start = stored.log_start
        self.last_sequence = self.durable_sequence = stored.last_sequence
        self.applied = self.committed = stored.applied
        self.newly: list[Committed[News]] = []
        """Committed and not yet taken."""
        self.uncommitted: deque[Committed[News]] = deque()
        self.uncommitted_bytes = 0
        self.recent: deque[LogEntry] = deque()
        self._recent_bytes = 0
        self.pending = PendingWrite()
        self.has_pending = False
        """Whether anything was put into ``pending`` since taken; a cut may have emptied it."""
        self._handed = stored.last_sequence
        """Where the log ends once all that was taken is durable."""
        self._writes: deque[_Write] = deque()
        self._marks: deque[tuple[int, int]] = deque()
        self._mark_bytes = 0
        self.settings = settings
        self.budget = budget
        self._recover(stored)

    def _recover(self, stored: Stored) -> None:
        """Queue the stored tail: a later epoch's barrier commits it, nothing before (R7, R8)."""
        for entry in stored.tail:
            if entry.sequence != self.committed + len(self.uncommitted) + 1:
                raise Divergence(f"partition {self.partition}: the log has a gap before {entry.sequence}")
            self._await_commit(Committed(entry.sequence, entry.effects, b"", [], entry.size + ENTRY_OVERHEAD_BYTES))
        if self.committed + len(self.uncommitted) != self.last_sequence:
            raise Divergence(f"partition {self.partition}: the log ends before {self.last_sequence}")
        if not 1 <= self.log_start <= self.applied + 1 <= self.last_sequence + 1:
            raise Divergence(f"partition {self.partition}: the log does not begin where the rows end")

    def _await_commit(self, entry: Committed[News]) -> None:
        self.uncommitted.append(entry)
        self.uncommitted_bytes += entry.size
        self.budget.uncommitted_bytes += entry.size

    # --- growing ---
    def promise(self, epoch: int) -> None:
        """Obey no lower epoch. Never decreases; counts for others once durable (R13, I7)."""
        assert epoch > self.promised, "a promise only grows"
        self.promised = self.pending.promise = epoch
        self.has_pending = True

    def append(self, entry: LogEntry, effects: list[Effect] | None, news: list[News]) -> None:
        """Add ``entry`` at the end; a new epoch begins with its first entry."""
        sequence = entry.sequence
        assert sequence == self.last_sequence + 1, "the log has no gaps"
        if entry.epoch != self.epochs.last_epoch:
            self.epochs.append(entry.epoch, sequence)
            self.pending.epochs.append((entry.epoch, sequence))
        self.last_sequence = sequence
        size = len(entry.payload) + ENTRY_OVERHEAD_BYTES
        self.pending.entries.append(entry)
        self.has_pending = True
        self._await_commit(Committed(sequence, effects, entry.payload, news, size))
        self.recent.append(entry)
        self._recent_bytes += size
        if self._recent_bytes > self.settings.recent_bytes:
            self._forget_recent()
        self._mark_bytes += size
        if self._mark_bytes >= self.settings.mark_bytes:
            self._marks.append((sequence, self._mark_bytes))
            self._mark_bytes = 0

    def _forget_recent(self) -> None:
        """Drop the oldest entries from memory, but none that is not durable yet."""
        recent, durable = self.recent, self.durable_sequence
        while len(recent) > 1 and self._recent_bytes > self.settings.recent_bytes and recent[0].sequence <= durable:
            self._recent_bytes -= len(recent.popleft().payload) + ENTRY_OVERHEAD_BYTES

    def recent_from(self, first: int, bytes_max: int, entries_max: int) -> tuple[LogEntry, ...]:
        """Entries from ``first`` on, at least one; empty if they must be read from the store."""
        recent = self.recent
        if not recent or not recent[0].sequence <= first <= recent[-1].sequence:
            return ()
        return head(islice(recent, first - recent[0].sequence, None), bytes_max, entries_max)

    # --- shrinking ---
    def cut_after(self, sequence: int) -> None:
        """Drop what is behind ``sequence`` (R15); ``Divergence`` if it is committed (I5)."""
        assert sequence < self.last_sequence
        if sequence < self.committed:
            raise Divergence(
                f"partition {self.partition}: a cut after {sequence}, though {self.committed} is committed here"
            )
        self.last_sequence = sequence
        self.durable_sequence = min(self.durable_sequence, sequence)
        self.epochs.cut_after(sequence)
        while self.uncommitted and self.uncommitted[-1].sequence > sequence:
            self._forget(self.uncommitted.pop())
        while self.recent and self.recent[-1].sequence > sequence:
            self._recent_bytes -= len(self.recent.pop().payload) + ENTRY_OVERHEAD_BYTES
        while self._marks and self._marks[-1][0] > sequence:
            self._marks.pop()
        pending = self.pending
        while pending.entries and pending.entries[-1].sequence > sequence:
            pending.entries.pop()
        while pending.epochs and pending.epochs[-1][1] > sequence:
            pending.epochs.pop()
        if self._handed > sequence:  # else the disk never heard of what goes
            pending.cut_after = self._handed = sequence
            self.has_pending = True
        self.forget_writes_after(sequence)

    def forget_writes_after(self, sequence: int) -> None:
        """Let writes on their way to the disk count no further than the cut."""
        for write in self._writes:
            write.last = min(write.last, sequence)

    def _forget(self, entry: Committed[News]) -> None:
        self.uncommitted_bytes -= entry.size
        self.budget.uncommitted_bytes -= entry.size

    def _forget_all(self) -> None:
        while self.uncommitted:
            self._forget(self.uncommitted.pop())
        self.newly.clear()
        self.recent.clear()
        self._marks.clear()
        self._recent_bytes = self._mark_bytes = 0
        promise, unstage = self.pending.promise, self.pending.unstage
        stage = self.pending.stage
        self.pending = PendingWrite(promise=promise, unstage=unstage, stage=stage)

    def drop(self) -> None:
        """Start from an empty log: another history was chosen by unsafe recovery."""
        self._forget_all()
        self.pending.drop, self.pending.unstage, self.pending.stage = True, False, []
        self.has_pending = True
        self.epochs = EpochTable()
        self.log_start = 1
        self.last_sequence = self.durable_sequence = self.applied = self.committed = 0
        self._handed = 0
        self.forget_writes_after(0)

    # --- snapshots ---
    def unstage(self) -> None:
        self.pending.stage = []
        self.pending.unstage = self.has_pending = True

    def stage(self, number: int, data: bytes) -> None:
        self.pending.stage.append((number, data))
        self.has_pending = True

    def install(self, install: Install) -> None:
        """Replace the log by a snapshot; ``Divergence`` if older than what is committed."""
        if install.applied < self.committed:
            raise Divergence(
                f"partition {self.partition}: a snapshot of {install.applied}, behind the committed {self.committed}"
            )
        self._forget_all()
        self.pending.install = install
        self.has_pending = True
        self.epochs = EpochTable(install.epochs)
        self.durable_sequence = min(self.durable_sequence, self.committed)  # what is behind that was of no use
        self.forget_writes_after(self.committed)
        self.last_sequence = self.applied = self.committed = self._handed = install.applied
        self.log_start = install.applied + 1

    # --- committing ---
    def commit_to(self, sequence: int) -> None:
        """Commit everything up to ``sequence``; ``take_newly`` hands it out."""
        assert self.committed < sequence <= self.last_sequence, "what is committed is in the log, and stays committed"
        self.committed = sequence
        uncommitted, newly = self.uncommitted, self.newly
        size = 0
        while uncommitted and uncommitted[0].sequence <= sequence:
            entry = uncommitted.popleft()
            size += entry.size
            newly.append(entry)
        self.uncommitted_bytes -= size
        self.budget.uncommitted_bytes -= size

    def take_newly(self) -> list[Committed[News]]:
        newly, self.newly = self.newly, []
        return newly

    def abandon_news(self) -> None:
        """Drop the proposers of uncommitted entries: their outcome is unknown (R12)."""
        for entry in self.uncommitted:
            entry.news = []

    # --- the disk ---
    def take(self, number: int) -> PendingWrite:
        write = _NOTHING
        if self.has_pending:
            write, self.pending, self.has_pending = self.pending, PendingWrite(), False
        self._handed = self.last_sequence
        self._writes.append(_Write(number, self.last_sequence, write.promise))
        return write

    def persisted(self, number: int) -> None:
        """Everything taken up to ``number`` is durable."""
        writes = self._writes
        while writes and writes[0].number <= number:
            write = writes.popleft()
            self.durable_sequence = max(self.durable_sequence, write.last)
            self.durable_promised = max(self.durable_promised, write.promise)
        assert self.durable_sequence <= self.last_sequence, "what is cut is not durable"
        if self._recent_bytes > self.settings.recent_bytes:
            self._forget_recent()

    # --- trimming ---
    def bytes_after(self, sequence: int) -> int:
        """About how many bytes of log lie behind ``sequence``, of those of this run."""
        return self._mark_bytes + sum(size for last, size in self._marks if last > sequence)

    def keeps_from(self, bytes_max: int) -> int:
        """The sequence behind which the log holds at most about ``bytes_max``; 0: it holds less."""
        size = self._mark_bytes
        for last, marked in reversed(self._marks):
            if size + marked > bytes_max:
                return last
            size += marked
        return 0

    def trimmed(self, sequence: int) -> None:
        """The log up to and including ``sequence`` is given up."""
        assert sequence <= self.committed, "never past what is committed, and so soon applied"
        self.log_start = sequence + 1
        self.epochs.trim(sequence)
        while self._marks and self._marks[0][0] <= sequence:
            self._marks.popleft()


def head(entries: Iterable[LogEntry], bytes_max: int, entries_max: int) -> tuple[LogEntry, ...]:
    """The first entries that fit into both bounds; at least one."""
    taken: list[LogEntry] = []
    size = 0
    for entry in entries:
        size += len(entry.payload) + ENTRY_OVERHEAD_BYTES
        if taken and (size > bytes_max or len(taken) >= entries_max):
            break
        taken.append(entry)
    return tuple(taken)


def follows_on(entries: Sequence[LogEntry], prev_sequence: int) -> bool:
    """Whether ``entries`` follow ``prev_sequence`` in order and without gaps."""
    if len(entries) == 1:
        return entries[0].sequence == prev_sequence + 1
    return all(entry.sequence == prev_sequence + number for number, entry in enumerate(entries, 1))
