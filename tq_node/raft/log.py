"""The log as this node holds it in memory: what is kept, what is on its way to the disk, what is
durable, what is committed.

::

    ... dropped | offset | entries ............................................ last_index ^
                          applied_index <= commit_index     ^ durable_index   ^ handed_index (given
                          to the driver to write)

The configuration is a function of the log (dissertation, 4.1): the last CONFIGURATION entry in it,
committed or not, or what the snapshot says. Cutting the log goes back to the earlier one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from tq_node.raft.messages import Configuration, Entry, EntryKind, HardState, Snapshot, decode_change


class Write:
    """What one ``Ready`` gave to make durable. ``upto`` shrinks if the log is cut meanwhile."""

    __slots__ = ("hard_state", "number", "upto")

    def __init__(self, number: int, upto: int, hard_state: HardState | None) -> None:
        self.number = number
        self.upto = upto
        self.hard_state = hard_state


class RaftLog:
    """Invariant: offset_index <= applied_index <= commit_index <= last_index, except while a
    snapshot waits for the disk.

    :param snapshot: the latest durable one; index 0 for none.
    :param entries: the durable ones, without gaps; they may begin before the snapshot's end, not
        after the one that follows.
    :param applied_index: what the driver's state machine reflects durably, if that is more than the
        snapshot."""

    __slots__ = (
        "applied_index",
        "commit_index",
        "configurations",
        "durable_index",
        "entries",
        "handed_index",
        "offset_index",
        "offset_term",
        "snapshot",
        "snapshot_waits",
        "writes",
    )

    def __init__(self, snapshot: Snapshot, entries: Sequence[Entry], applied_index: int = 0) -> None:
        self.snapshot = snapshot
        self.snapshot_waits = False
        self.offset_index, self.offset_term = snapshot.log_index, snapshot.term
        self.entries = list(entries)
        if entries and entries[0].log_index <= snapshot.log_index:
            # Kept for slow followers. The first is for what follows it: only index and term count.
            self.offset_index, self.offset_term = entries[0].log_index, entries[0].term
            del self.entries[0]
        for position, entry in enumerate(self.entries, self.offset_index + 1):
            assert entry.log_index == position, f"the log has a gap before {entry.log_index}"
        assert self.last_index >= snapshot.log_index, "the log ends before its snapshot"
        self.commit_index = max(snapshot.log_index, applied_index)
        self.applied_index = self.commit_index
        assert self.commit_index <= self.last_index, "applied more than the log holds"
        self.durable_index = self.handed_index = self.last_index
        self.writes: deque[Write] = deque()
        self.configurations = [(snapshot.configuration_index, snapshot.configuration)]
        self._note_configurations(entry for entry in self.entries if entry.log_index > snapshot.log_index)

    # --- looking ---
    @property
    def last_index(self) -> int:
        return self.offset_index + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.offset_term

    @property
    def configuration(self) -> Configuration:
        """The one in effect: the last in the log, committed or not."""
        return self.configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        return self.configurations[-1][0]

    def configuration_at(self, log_index: int) -> tuple[int, Configuration]:
        """The configuration in effect at an index from the snapshot's on, and its entry's index."""
        return next(pair for pair in reversed(self.configurations) if pair[0] <= log_index)

    def term(self, log_index: int) -> int | None:
        """The term of the entry at ``log_index``; None where the log does not reach."""
        position = log_index - self.offset_index
        if position == 0:
            return self.offset_term
        return self.entries[position - 1].term if 0 < position <= len(self.entries) else None

    def matches(self, log_index: int, term: int) -> bool:
        """The consistency check of AppendEntries (3.5): equal here, everything before is equal."""
        return self.term(log_index) == term

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """The election restriction (3.6.1): is a log with this end at least as complete as this?"""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def slice(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from first to last, at least one if there is one, then as many as fit."""
        assert first > self.offset_index
        start, stop = first - self.offset_index - 1, last - self.offset_index
        total = 0
        for position in range(start, stop):
            total += self.entries[position].size_bytes
            if total > bytes_max and position > start:
                stop = position
                break
        return tuple(self.entries[start:stop])

    def agreement_at_most(self, log_index: int, term: int) -> tuple[int, int]:
        """The greatest position not above ``log_index`` whose term is not above ``term``: the last
        that may agree with a log that has ``term`` at ``log_index`` (3.5). (0, 0) where that would
        be below the offset."""
        position = min(log_index, self.last_index)
        while (known := self.term(position)) is not None and known > term:
            position -= 1
        return (position, known) if known is not None else (0, 0)

    # --- growing and cutting ---
    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries at the end, without gaps."""
        assert entries[0].log_index == self.last_index + 1
        self.entries.extend(entries)
        self._note_configurations(entries)

    def try_append(self, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> int | None:
        """What a follower does with an Append (3.5). Returns the index of the last entry now known
        to be the leader's, or None. What is here already stays; the log is cut only where an entry
        conflicts, for an old Append may come late."""
        if not self.matches(prev_index, prev_term):
            return None
        first_new = self.first_conflict(entries)
        if first_new is not None:
            news = entries[first_new:]
            if news[0].log_index <= self.last_index:
                self.cut_from(news[0].log_index)
            self.append(news)
        return prev_index + len(entries)

    def first_conflict(self, entries: Sequence[Entry]) -> int | None:
        """Position within ``entries`` of the first that is missing here or differs, if any."""
        for position, entry in enumerate(entries):
            if not self.matches(entry.log_index, entry.term):
                return position
        return None

    def cut_from(self, log_index: int) -> None:
        """Drop this entry and all behind it; ``AssertionError`` if a committed one is lost."""
        assert log_index > self.commit_index, f"cutting at {log_index}, committed up to {self.commit_index}"
        del self.entries[log_index - self.offset_index - 1 :]
        self.durable_index = min(self.durable_index, log_index - 1)
        self.handed_index = min(self.handed_index, log_index - 1)
        self._forget_writes_from(log_index)
        self._roll_back_configuration(log_index)

    def _forget_writes_from(self, log_index: int) -> None:
        # A write on its way holds entries that are cut now. Even if the same entries come back, the
        # disk has them only when *their* write is done: in between it holds something else.
        for write in self.writes:
            write.upto = min(write.upto, log_index - 1)

    def _roll_back_configuration(self, log_index: int) -> None:
        while self.configurations[-1][0] >= log_index:
            self.configurations.pop()

    def _note_configurations(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.kind == EntryKind.CONFIGURATION:
                self.configurations.append((entry.log_index, decode_change(entry).configuration))

    def commit_to(self, log_index: int) -> None:
        """Never decreases; ``AssertionError`` if beyond the end of the log."""
        if log_index > self.commit_index:
            assert log_index <= self.last_index, f"commit {log_index} beyond the log's end {self.last_index}"
            self.commit_index = log_index

    # --- snapshots ---
    def restore(self, snapshot: Snapshot) -> None:
        """Become a snapshot past ``commit_index``; nothing is applied until it is durable (F6)."""
        assert snapshot.log_index > self.commit_index, "an old snapshot would undo what is committed"
        self._forget_writes_from(0)
        self.snapshot, self.snapshot_waits = snapshot, True
        self.durable_index = self.applied_index
        self.entries = []
        self.offset_index, self.offset_term = snapshot.log_index, snapshot.term
        self.commit_index = self.handed_index = snapshot.log_index
        self.configurations = [self.configuration_of(snapshot)]

    def configuration_of(self, snapshot: Snapshot) -> tuple[int, Configuration]:
        """A snapshot keeps the configuration and its index, for their entry is gone."""
        return snapshot.configuration_index, snapshot.configuration

    def compact(self, snapshot: Snapshot, first_kept: int) -> int:
        """Drop entries below ``first_kept``, at most up to the end of the (durable) snapshot.
        Returns the first entry kept. An older snapshot than the one held changes nothing."""
        assert snapshot.log_index <= self.applied_index
        if snapshot.log_index >= self.snapshot.log_index and not self.snapshot_waits:
            assert self.matches(snapshot.log_index, snapshot.term), "the snapshot is not of this log"
            self.snapshot = snapshot
            offset = max(self.offset_index, min(first_kept - 1, snapshot.log_index))
            term = self.term(offset)
            assert term is not None
            del self.entries[: offset - self.offset_index]
            self.offset_index, self.offset_term = offset, term
            base = self.configuration_at(snapshot.log_index)
            self.configurations = [base, *(pair for pair in self.configurations if pair[0] > snapshot.log_index)]
        return self.offset_index + 1

    # --- the disk ---
    def hand_out(self) -> tuple[Snapshot | None, tuple[Entry, ...]]:
        """What the driver was not given to write yet."""
        waits = self.snapshot if self.snapshot_waits else None
        if waits is not None:
            self.snapshot_waits = False
            self.applied_index = waits.log_index
        entries = tuple(self.entries[self.handed_index - self.offset_index :])
        self.handed_index = self.last_index
        return waits, entries

    def persisted(self, number: int) -> HardState | None:
        """The writes up to this number are durable. Returns the last hard state among them."""
        hard_state: HardState | None = None
        while self.writes and self.writes[0].number <= number:
            write = self.writes.popleft()
            self.durable_index = max(self.durable_index, write.upto)
            hard_state = write.hard_state or hard_state
        return hard_state

    @property
    def appliable_index(self) -> int:
        """What may be applied: committed and durable, so that a restart finds what was applied."""
        return min(self.commit_index, self.durable_index)

    def has_committed(self) -> bool:
        return self.appliable_index > self.applied_index

    def next_committed(self, bytes_max: int) -> tuple[Entry, ...]:
        """What is to be applied next. Each entry is handed out once."""
        if not self.has_committed():
            return ()
        entries = self.slice(self.applied_index + 1, self.appliable_index, bytes_max)
        self.applied_index = entries[-1].log_index
        return entries
