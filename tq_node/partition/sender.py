"""The primary's half of every stream of an epoch's log to the copies (replication.md, 4 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from tq_node.errors import Divergence, Unsound
from tq_node.partition.copy_rate import UNLIMITED
from tq_node.partition.effects import Outbox, ReadLog
from tq_node.partition.entries import Entry, LogEntry, log_entry
from tq_node.partition.messages import Append, SnapAck, Sync
from tq_node.partition.progress import Mode, ReplicaProgress, size_of
from tq_node.partition.record import Record
from tq_node.partition.replica_log import ENTRY_OVERHEAD_BYTES, News, ReplicaLog, head
from tq_node.partition.snapshot_send import Snapshots
from tq_node.types import NodeId


class Sender(Generic[News]):
    """Sends one epoch's log to each other copy: ``Sync``, then entries, or a snapshot first."""

    def __init__(self, log: ReplicaLog[News], record: Record, outbox: Outbox[News]) -> None:
        self.epoch = record.epoch
        self.streams: dict[NodeId, ReplicaProgress] = {}
        self.counting: frozenset[NodeId] = frozenset()
        """The effective set, never held up; the others are filled at the node's ``CopyRate``."""
        self._log = log
        self._record = record
        self._settings = log.settings
        self._budget = log.budget
        self._outbox = outbox
        self._snapshots = Snapshots(log, record.epoch, outbox)

    # --- who gets anything ---
    def follow(self, record: Record, me: NodeId, now_ms: int) -> None:
        """Keep a ``ReplicaProgress`` for each other copy; a node that is none gets nothing."""
        self._record = record
        for node in record.copies:
            if node != me and node not in self.streams:
                self.streams[node] = ReplicaProgress(node, self._settings, self._budget, now_ms)
        for node in [node for node in self.streams if node not in record.copies]:
            self.close(self.streams.pop(node))

    def may_send(self) -> bool:
        """Whether the promise of this epoch is durable. Before that nothing may leave: after a
        crash this epoch could begin again with other entries (R6, I4, F21)."""
        return self._log.durable_promised >= self.epoch

    def begin(self, stream: ReplicaProgress, now_ms: int) -> None:
        """Send ``Sync``, first in an epoch and a connection (R14): any mode to SYNC."""
        self._snapshots.abort(stream)
        stream.become(Mode.SYNC)
        stream.sync_sent_ms = now_ms
        log = self._log
        sync = Sync(
            log.partition, self.epoch, log.epochs.runs, log.log_start, log.last_sequence, self._record.reset_epoch
        )
        self._outbox.messages.append((stream.node, sync))

    def close(self, stream: ReplicaProgress) -> None:
        """Send nothing more until ``begin``: any mode to CLOSED."""
        self._snapshots.abort(stream)
        stream.become(Mode.CLOSED)

    def close_all(self) -> None:
        for stream in self.streams.values():
            self.close(stream)

    # --- entries ---
    def spread(self, first: int, now_ms: int) -> None:
        """Send the entries from ``first`` on, which nobody has; usually one message for all."""
        log = self._log
        entries = log.recent_from(first, self._settings.append_bytes_aim, self._settings.window_entries)
        append: Append | None = None
        size = size_of(entries)
        for stream in self.streams.values():
            if stream.behind_since_ms is None:
                stream.behind_since_ms = now_ms
            if stream.mode is not Mode.STREAM:
                continue
            if stream.next_sequence == first and stream.has_room_for(len(entries), size):
                if append is None:
                    append = Append(log.partition, self.epoch, first - 1, entries, log.committed)
                self._send(stream, append, size, now_ms)
            if stream.next_sequence <= log.last_sequence:
                self.pump(stream, now_ms)

    def _send(self, stream: ReplicaProgress, append: Append, size: int, now_ms: int) -> None:
        stream.sent(append.entries[-1].sequence, len(append.entries), size, now_ms)
        stream.commit_sent = append.committed_sequence
        self._outbox.messages.append((stream.node, append))

    def pump(self, stream: ReplicaProgress, now_ms: int) -> None:
        """Send what the window has room for, from memory, or ask the store for it. A copy that does
        not count yet is held to the node's ``CopyRate`` and goes on at a later tick."""
        log = self._log
        while stream.mode is Mode.STREAM and stream.next_sequence <= log.last_sequence and not stream.is_reading:
            room = min(stream.room_bytes(), self.copy_room_bytes(stream))
            if room <= 0:
                return
            bytes_max = min(room, self._settings.append_bytes_aim)
            entries = log.recent_from(stream.next_sequence, bytes_max, stream.room_entries())
            if not entries:
                if stream.next_sequence < log.log_start:
                    self._start(stream, now_ms)  # it was trimmed away meanwhile
                    return
                stream.is_reading = True
                if stream.node not in self.counting:
                    stream.reserve(bytes_max)
                self._outbox.requests.append(ReadLog(stream.node, stream.next_sequence, bytes_max))
                return
            self._send_entries(stream, entries, now_ms)

    def copy_room_bytes(self, stream: ReplicaProgress) -> int:
        """Room by the node's ``CopyRate``; unlimited for members of the effective set."""
        return UNLIMITED if stream.node in self.counting else self._budget.copying.room_bytes

    def _send_entries(self, stream: ReplicaProgress, entries: tuple[LogEntry, ...], now_ms: int) -> None:
        log = self._log
        append = Append(log.partition, self.epoch, entries[0].sequence - 1, entries, log.committed)
        size = size_of(entries)
        if stream.node not in self.counting:
            stream.copied(size)
        self._send(stream, append, size, now_ms)

    def log_read(self, stream: ReplicaProgress, entries: Sequence[Entry], now_ms: int) -> None:
        """Send what the store read, unless the stream began anew or a cut came since."""
        if not stream.is_reading:
            return
        stream.is_reading = False
        stream.give_back()
        if not entries:
            if stream.mode is Mode.STREAM:
                self._start(stream, now_ms)
            return
        log = self._log
        if (
            stream.mode is Mode.STREAM
            and entries[0].sequence == stream.next_sequence
            and entries[-1].sequence <= log.last_sequence
            and log.epochs.at(entries[-1].sequence) == entries[-1].epoch
        ):
            fitting = head(map(log_entry, entries), self._settings.append_bytes_aim, stream.room_entries())
            self._send_entries(stream, fitting, now_ms)
        self.pump(stream, now_ms)

    # --- answers ---
    def synced(self, stream: ReplicaProgress, durable_sequence: int, now_ms: int) -> None:
        """Handle ``SyncOk``: SYNC to STREAM or SNAPSHOT, SNAPSHOT to STREAM once it is installed. A
        late one counts as an ``Ack``.

        One below what was acknowledged answers an earlier ``Sync``, or the replica's store was set
        back (F14). Either way entries are sent again and what it had does not count (R10). If the
        log does not reach back so far, a member of the set lags until it leaves the set or
        acknowledges more."""
        log = self._log
        if durable_sequence > log.last_sequence:
            raise Unsound(f"{stream.node} has {durable_sequence}, and its primary's log ends at {log.last_sequence}")
        if stream.mode is Mode.SYNC and durable_sequence < stream.acked:
            if durable_sequence + 1 < log.log_start and stream.node in self._record.isr:
                stream.owes_since(now_ms)
                return
            stream.set_back(durable_sequence, now_ms)
        elif durable_sequence == log.last_sequence:
            stream.behind_since_ms = None
        stream.acknowledged(durable_sequence, log.last_sequence, now_ms)
        if stream.mode is Mode.SYNC:
            stream.next_sequence = stream.acked + 1
            self._start(stream, now_ms)
        elif stream.mode is Mode.SNAPSHOT and self._snapshots.is_over(stream):
            self._snapshots.abort(stream)
            stream.become(Mode.STREAM)
            self.pump(stream, now_ms)

    def _start(self, stream: ReplicaProgress, now_ms: int) -> None:
        """Go on from the replica's end: SYNC to STREAM if the log reaches it, else SNAPSHOT."""
        if stream.next_sequence >= self._log.log_start:
            stream.become(Mode.STREAM)
            self.pump(stream, now_ms)
            return
        if stream.node in self._record.isr:
            raise Divergence(
                f"partition {self._log.partition}: {stream.node} is in sync and needs a snapshot, "
                f"its log ending at {stream.acked} and this one beginning at {self._log.log_start} (I1)"
            )
        stream.become(Mode.SNAPSHOT)
        self._snapshots.open(stream, now_ms)

    def acked(self, stream: ReplicaProgress, durable_sequence: int, now_ms: int) -> bool:
        """Handle ``Ack``. True: it acknowledges more than before."""
        log = self._log
        if durable_sequence > log.last_sequence:
            raise Unsound(f"{stream.node} has {durable_sequence}, and its primary's log ends at {log.last_sequence}")
        if not stream.acknowledged(durable_sequence, log.last_sequence, now_ms):
            return False
        if stream.next_sequence <= log.last_sequence:
            self.pump(stream, now_ms)
        return True

    def not_synced(self, stream: ReplicaProgress, now_ms: int) -> None:
        """A replica's ``Reject``: it lost its place. Begin again, if no ``Sync`` is on its way."""
        if stream.mode in (Mode.STREAM, Mode.SNAPSHOT) and now_ms > stream.sync_sent_ms:
            self.begin(stream, now_ms)

    # --- snapshots ---
    def snap_acked(self, stream: ReplicaProgress, ack: SnapAck, now_ms: int) -> None:
        self._snapshots.acked(stream, ack, now_ms)

    def snapshot_opened(
        self,
        stream: ReplicaProgress,
        snapshot_id: int,
        applied: int,
        epochs: Sequence[tuple[int, int]],
        horizon_us: int,
        now_ms: int,
    ) -> None:
        self._snapshots.opened(stream, snapshot_id, applied, epochs, horizon_us, now_ms)

    def snapshot_chunk(self, stream: ReplicaProgress, snapshot_id: int, data: bytes | None, digest: bytes) -> None:
        self._snapshots.chunk(stream, snapshot_id, data, digest)

    def snapshot_failed(self, stream: ReplicaProgress, snapshot_id: int, now_ms: int) -> None:
        if self._snapshots.is_present(stream, snapshot_id):
            self.begin(stream, now_ms)

    # --- time ---
    def tick(self, stream: ReplicaProgress, now_ms: int) -> None:
        """Begin again what got no answer; else send what waited for room, and what is committed."""
        mode = stream.mode
        if mode is Mode.CLOSED:
            return
        if self.is_stalled(stream, now_ms):
            self.begin(stream, now_ms)
        elif mode is Mode.STREAM:
            self.pump(stream, now_ms)
            self._send_commit(stream)
        elif mode is Mode.SNAPSHOT:
            self._snapshots.tick(stream, now_ms)

    def is_stalled(self, stream: ReplicaProgress, now_ms: int) -> bool:
        if stream.mode is Mode.SYNC:
            return now_ms - stream.sync_sent_ms >= self._settings.sync_again_ms
        if stream.mode is Mode.SNAPSHOT:
            return self._snapshots.is_stalled(stream, now_ms)
        in_flight = stream.in_flight
        return bool(in_flight) and now_ms - in_flight[0].sent_ms >= self._settings.sync_again_ms

    def _send_commit(self, stream: ReplicaProgress) -> None:
        """Send an empty ``Append`` where no entries carried the committed sequence. It also shows
        whether the last ones were lost."""
        log = self._log
        if stream.commit_sent < log.committed and not stream.in_flight:
            stream.commit_sent = log.committed
            tell = Append(log.partition, self.epoch, stream.next_sequence - 1, (), log.committed)
            self._outbox.messages.append((stream.node, tell))

    # --- looking ---
    def left_bytes(self, stream: ReplicaProgress, content_bytes: int) -> int:
        """About what the copy lacks, for operators. ``content_bytes``: of the whole partition."""
        log = self._log
        if stream.acked >= log.last_sequence:
            return 0
        outgoing = stream.outgoing
        if stream.mode is Mode.STREAM:
            # What was written before this process began is not measured.
            entries = log.last_sequence - stream.acked
            return max(log.bytes_after(stream.acked), entries * ENTRY_OVERHEAD_BYTES)
        if outgoing is not None and outgoing.applied:
            return max(1, content_bytes - stream.copied_bytes) + log.bytes_after(outgoing.applied)
        return max(1, content_bytes)

    # --- trimming ---
    def trim_floor(self, stream: ReplicaProgress, wanted: int, *, counts: bool) -> int:
        """Up to where this replica lets the log be trimmed, at most ``wanted``. ``counts``: it is
        in the effective set."""
        log = self._log
        if counts:
            return min(wanted, stream.acked)  # a member of the set never needs a snapshot (I1)
        if stream.mode is Mode.SNAPSHOT and stream.outgoing is not None:
            return min(wanted, max(stream.outgoing.hold_from, log.keeps_from(self._settings.hold_bytes_max)))
        if stream.acked >= wanted:
            return wanted
        return min(wanted, max(stream.acked, log.keeps_from(self._settings.retain_bytes)))
