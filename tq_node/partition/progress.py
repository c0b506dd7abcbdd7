"""The primary's view of one replica, with its own small state machine.

::

                SyncOk, the log reaches back             stalled, refused, a new connection
    SYNC ------------------------------------> STREAM ------------------------------------> SYNC
    SYNC ------------------------------------> SNAPSHOT ----------------------------------> STREAM
                the log begins too late                   SyncOk: the snapshot is installed

CLOSED: no connection, or nothing of this epoch may leave yet. SYNC: a ``Sync`` is on its way,
nothing else. STREAM: appends follow one another without waiting, within a window. SNAPSHOT: chunks,
within a window of their own; the copy counts for nothing."""

from __future__ import annotations

import enum
from collections import deque

import msgspec

from tq_node.partition.entries import LogEntry
from tq_node.partition.replica_log import ENTRY_OVERHEAD_BYTES
from tq_node.partition.settings import Budget, ReplicationSettings
from tq_node.types import NodeId


class Mode(enum.IntEnum):
    CLOSED = 0
    SYNC = 1
    STREAM = 2
    SNAPSHOT = 3


class Removals(msgspec.Struct):
    """How often one copy was removed from the set for lag lately, and when last."""

    count: int = 0
    last_ms: int = 0


def stable_for_ms(removals: Removals, first_ms: int, most_ms: int) -> int:
    """How long a copy removed for lag must keep up to be proposed again; doubles each time."""
    if removals.count == 0:
        return 0
    return int(min(most_ms, first_ms << min(removals.count - 1, 16)))


class SnapshotTransfer:
    """A snapshot on its way to one replica. ``applied`` 0: not yet opened."""

    __slots__ = ("applied", "ended", "hold_from", "is_reading", "moved_ms", "sent", "snapshot_id", "staged")

    def __init__(self, snapshot_id: int, hold_from: int, now_ms: int) -> None:
        self.snapshot_id = snapshot_id
        self.hold_from = hold_from
        """The log behind this is held for what follows the snapshot."""
        self.applied = 0
        self.is_reading = False
        self.ended = False
        self.sent = 0
        self.staged = 0
        self.moved_ms = now_ms


class Sent:
    """One ``Append`` that is not acknowledged yet."""

    __slots__ = ("entries", "last", "sent_ms", "size")

    def __init__(self, last: int, entries: int, size: int, sent_ms: int) -> None:
        self.last = last
        self.entries = entries
        self.size = size
        self.sent_ms = sent_ms


def size_of(entries: tuple[LogEntry, ...]) -> int:
    size = ENTRY_OVERHEAD_BYTES * len(entries)
    for entry in entries:
        size += len(entry.payload)
    return size


class ReplicaProgress:
    """What the primary of one epoch knows of one other copy. ``acked`` is durable there; it
    decreases only where the replica reports that its store was set back (F14). ``next_sequence`` is
    sent next, and always above ``acked``."""

    __slots__ = (
        "_budget",
        "_settings",
        "acked",
        "answered_ms",
        "behind_since_ms",
        "commit_sent",
        "copied_bytes",
        "in_flight",
        "in_flight_bytes",
        "in_flight_entries",
        "is_reading",
        "mode",
        "near_since_ms",
        "next_sequence",
        "node",
        "outgoing",
        "removals",
        "reserved_bytes",
        "sync_sent_ms",
    )

    def __init__(self, node: NodeId, settings: ReplicationSettings, budget: Budget, now_ms: int) -> None:
        self.node = node
        self._settings = settings
        self._budget = budget
        self.mode = Mode.CLOSED
        self.acked = 0
        self.next_sequence = 1
        self.commit_sent = 0
        self.in_flight: deque[Sent] = deque()
        self.in_flight_bytes = 0
        self.in_flight_entries = 0
        self.is_reading = False
        """Entries for it are being read from the store."""
        self.reserved_bytes = 0
        """Of the node's ``CopyRate``, for what is being read."""
        self.copied_bytes = 0
        """Sent since its latest ``Sync``, to fill a copy that did not count."""
        self.outgoing: SnapshotTransfer | None = None
        self.sync_sent_ms = now_ms
        self.answered_ms = now_ms
        """When the latest round that it answered was sent: silence is lag too (F45)."""
        self.behind_since_ms: int | None = None
        """Since when it owes an acknowledgement; None: it has everything."""
        self.near_since_ms: int | None = None
        self.removals = Removals()

    # --- modes ---
    def become(self, mode: Mode) -> None:
        self.mode = mode
        self._budget.in_flight_bytes -= self.in_flight_bytes
        self.in_flight.clear()
        self.in_flight_bytes = self.in_flight_entries = 0
        self.is_reading = False
        self.give_back()
        self.outgoing = None
        self.next_sequence = self.acked + 1
        self.commit_sent = 0  # what told of it may have been lost with the connection
        if mode is not Mode.STREAM:
            self.near_since_ms = None
        if mode is Mode.SYNC:
            self.copied_bytes = 0

    # --- the rate of copies ---
    def reserve(self, size: int) -> None:
        self.reserved_bytes = size
        self._budget.copying.reserve(size)

    def give_back(self) -> None:
        """Return the reserved room: what was read is here, or is of no use."""
        self._budget.copying.give_back(self.reserved_bytes)
        self.reserved_bytes = 0

    def copied(self, size: int) -> None:
        """``size`` bytes left to fill this copy, which does not count yet."""
        self.copied_bytes += size
        self._budget.copying.spend(size)

    # --- the window ---
    def has_room_for(self, count: int, size: int) -> bool:
        return count <= self.room_entries() and (size <= self.room_bytes() or not self.in_flight)

    def room_bytes(self) -> int:
        """Bytes that may be sent now; 0 or less: none. With none in flight, any one ``Append``."""
        if self.in_flight_entries >= self._settings.window_entries:
            return 0
        budget = self._budget
        room = min(
            self._settings.window_bytes - self.in_flight_bytes, budget.in_flight_bytes_max - budget.in_flight_bytes
        )
        return max(room, 1) if not self.in_flight else room

    def room_entries(self) -> int:
        return self._settings.window_entries - self.in_flight_entries

    def sent(self, last: int, count: int, size: int, now_ms: int) -> None:
        """An ``Append`` of ``count`` entries up to ``last`` has left."""
        self.in_flight.append(Sent(last, count, size, now_ms))
        self.in_flight_bytes += size
        self.in_flight_entries += count
        self._budget.in_flight_bytes += size
        self.next_sequence = last + 1

    def acknowledged(self, sequence: int, last_sequence: int, now_ms: int) -> bool:
        """The replica has everything up to ``sequence``. True: that is more than before."""
        if sequence <= self.acked:
            return False
        self.acked = sequence
        if self.next_sequence <= sequence:
            self.next_sequence = sequence + 1
        in_flight = self.in_flight
        while in_flight and in_flight[0].last <= sequence:
            sent = in_flight.popleft()
            self.in_flight_bytes -= sent.size
            self.in_flight_entries -= sent.entries
            self._budget.in_flight_bytes -= sent.size
        if sequence >= last_sequence:
            self.behind_since_ms = None
        else:
            self.behind_since_ms = in_flight[0].sent_ms if in_flight else now_ms
        return True

    def set_back(self, sequence: int, now_ms: int) -> None:
        """The replica has no more than ``sequence``, whatever it acknowledged before (F14)."""
        self.acked = sequence
        self.next_sequence = sequence + 1
        self.owes_since(now_ms)

    def owes_since(self, now_ms: int) -> None:
        if self.behind_since_ms is None:
            self.behind_since_ms = now_ms

    # --- lag (section 6) ---
    def owes_ms(self, now_ms: int) -> int:
        return 0 if self.behind_since_ms is None else now_ms - self.behind_since_ms

    def lags(self, now_ms: int) -> bool:
        """Whether the replica owes an acknowledgement, or was silent, for too long. Without writes
        only silence shows (F45)."""
        since_ms = self.behind_since_ms
        owes = since_ms is not None and now_ms - since_ms > self._settings.replica_lag_max_ms
        return owes or self.is_silent(now_ms)

    def is_silent(self, now_ms: int) -> bool:
        return now_ms - self.answered_ms > self._settings.replica_lag_max_ms

    def is_idle(self, last_sequence: int, committed: int, now_ms: int) -> bool:
        """Whether a tick would do nothing: it has all, knows it, keeps near, answered lately."""
        return (
            self.mode is Mode.STREAM
            and self.behind_since_ms is None
            and self.next_sequence > last_sequence
            and self.commit_sent >= committed
            and self.near_since_ms is not None
            and now_ms - self.answered_ms <= self._settings.replica_lag_max_ms
        )

    def note_nearness(self, now_ms: int) -> None:
        """At each tick: note since when it has kept within ``near_end_ms`` of the log's end."""
        owes = self.behind_since_ms is not None and self.owes_ms(now_ms) > self._settings.near_end_ms
        if self.mode is not Mode.STREAM or owes or self.lags(now_ms):
            self.near_since_ms = None
        elif self.near_since_ms is None:
            self.near_since_ms = now_ms

    def is_fit(self, now_ms: int) -> bool:
        """Whether the replica streams, and has kept up long enough since its removal for lag."""
        if self.mode is not Mode.STREAM:
            return False
        patience_ms = stable_for_ms(self.removals, self._settings.stable_for_ms, self._settings.stable_for_ms_max)
        if patience_ms == 0:
            return True
        return self.near_since_ms is not None and now_ms - self.near_since_ms >= patience_ms

    def removed_for_lag(self, now_ms: int) -> None:
        removals = self.removals
        if removals.count and now_ms - removals.last_ms > self._settings.removal_memory_ms:
            removals.count = 0
        removals.count += 1
        removals.last_ms = now_ms
        self.near_since_ms = None

    def paused(self, now_ms: int) -> None:
        """This process did not run for a while: having no answer meanwhile proves nothing (F40)."""
        self.answered_ms = now_ms
        if self.behind_since_ms is not None:
            self.behind_since_ms = now_ms
