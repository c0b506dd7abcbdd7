"""Sends snapshots: rows and tombstones at one applied sequence, as chunks (replication.md, 6)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Generic

from tq_node.errors import Unsound
from tq_node.partition.effects import CloseSnapshot, OpenSnapshot, Outbox, ReadChunk
from tq_node.partition.messages import SnapAck, SnapBegin, SnapChunk, SnapEnd
from tq_node.partition.progress import ReplicaProgress, SnapshotTransfer
from tq_node.partition.replica_log import News, ReplicaLog


class Snapshots(Generic[News]):
    """Sends snapshots in one epoch, one a replica, as many as the store and as fast as ``CopyRate``
    let it."""

    def __init__(self, log: ReplicaLog[News], epoch: int, outbox: Outbox[News]) -> None:
        self._log = log
        self._epoch = epoch
        self._settings = log.settings
        self._rate = log.budget.copying
        self._outbox = outbox
        self._last_id = 0

    def open(self, stream: ReplicaProgress, now_ms: int) -> None:
        """Open a snapshot; keep the log behind ``applied``, as the snapshot is no older."""
        self._last_id += 1
        stream.outgoing = SnapshotTransfer(self._last_id, self._log.applied, now_ms)
        self._outbox.requests.append(OpenSnapshot(stream.node, self._last_id))

    def abort(self, stream: ReplicaProgress) -> None:
        outgoing = stream.outgoing
        if outgoing is not None:
            stream.outgoing = None
            self._outbox.requests.append(CloseSnapshot(stream.node, outgoing.snapshot_id))

    def is_present(self, stream: ReplicaProgress, snapshot_id: int) -> bool:
        return stream.outgoing is not None and stream.outgoing.snapshot_id == snapshot_id

    def opened(
        self,
        stream: ReplicaProgress,
        snapshot_id: int,
        applied: int,
        epochs: Sequence[tuple[int, int]],
        horizon_us: int,
        now_ms: int,
    ) -> None:
        outgoing = stream.outgoing
        if outgoing is None or outgoing.snapshot_id != snapshot_id:
            return  # closed already; the driver was told so
        assert applied >= outgoing.hold_from, "a snapshot from before it was asked for"
        outgoing.applied = outgoing.hold_from = applied
        outgoing.moved_ms = now_ms
        begin = SnapBegin(self._log.partition, self._epoch, snapshot_id, applied, tuple(epochs), horizon_us)
        self._outbox.messages.append((stream.node, begin))
        self._read_on(stream, outgoing)

    def _read_on(self, stream: ReplicaProgress, outgoing: SnapshotTransfer) -> None:
        """Ask for the next chunk: one read at a time, within the window and the node's rate."""
        if self.may_read_on(outgoing) and self._rate.room_bytes > 0:
            outgoing.is_reading = True
            self._outbox.requests.append(ReadChunk(stream.node, outgoing.snapshot_id))

    def may_read_on(self, outgoing: SnapshotTransfer) -> bool:
        """Whether the next chunk may be read, but for the rate."""
        return outgoing.applied > 0 and not outgoing.is_reading and not outgoing.ended and self.has_room(outgoing)

    def tick(self, stream: ReplicaProgress, now_ms: int) -> None:
        """Go on with what the rate held up; such a wait does not count as the replica's silence."""
        outgoing = stream.outgoing
        if outgoing is not None and self.may_read_on(outgoing):
            outgoing.moved_ms = now_ms
            self._read_on(stream, outgoing)

    def has_room(self, outgoing: SnapshotTransfer) -> bool:
        return outgoing.sent - outgoing.staged < self._settings.snapshot_window

    def chunk(self, stream: ReplicaProgress, snapshot_id: int, data: bytes | None, digest: bytes) -> None:
        outgoing = stream.outgoing
        if outgoing is None or outgoing.snapshot_id != snapshot_id:
            return
        assert outgoing.is_reading, "one read at a time"
        outgoing.is_reading = False
        partition, epoch = self._log.partition, self._epoch
        if data is None:
            outgoing.ended = True
            self._outbox.messages.append((stream.node, SnapEnd(partition, epoch, snapshot_id, outgoing.sent, digest)))
            return
        message = SnapChunk(partition, epoch, snapshot_id, outgoing.sent, zlib.crc32(data), data)
        outgoing.sent += 1
        stream.copied(len(data))
        self._outbox.messages.append((stream.node, message))
        self._read_on(stream, outgoing)

    def acked(self, stream: ReplicaProgress, ack: SnapAck, now_ms: int) -> None:
        outgoing = stream.outgoing
        if outgoing is None or outgoing.snapshot_id != ack.snapshot_id or ack.chunks <= outgoing.staged:
            return
        if ack.chunks > outgoing.sent:
            raise Unsound(f"{stream.node} has staged {ack.chunks} chunks, and {outgoing.sent} were sent")
        outgoing.staged = ack.chunks
        outgoing.moved_ms = now_ms
        self._read_on(stream, outgoing)

    def is_over(self, stream: ReplicaProgress) -> bool:
        """Whether the replica acknowledged everything up to the snapshot."""
        outgoing = stream.outgoing
        return outgoing is not None and 0 < outgoing.applied <= stream.acked

    def is_stalled(self, stream: ReplicaProgress, now_ms: int) -> bool:
        """Whether to begin again: nothing moves, or its log was given up (``hold_bytes_max``)."""
        outgoing = stream.outgoing
        if outgoing is None:
            return True
        if outgoing.applied == 0:
            return False  # it waits for its turn at the store
        if outgoing.applied + 1 < self._log.log_start:
            return True
        return not outgoing.is_reading and now_ms - outgoing.moved_ms >= self._settings.snapshot_stall_ms
