"""Serves what cores ask of the store: log entries and snapshots for replicas that lag."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import StoreBroken
from tq_node.partition.core import PartitionCore
from tq_node.partition.effects import CloseSnapshot, OpenSnapshot, ReadChunk, ReadLog, StoreRequest
from tq_node.partition.entries import Entry
from tq_node.store.api import PartitionSnapshot, Store
from tq_node.types import Change, NodeId

_log = Logger(namespace="taskqueue.log")
Answer = Callable[[int, Callable[[PartitionCore[Change], int], object]], None]
_Place = tuple[int, NodeId, int]


class StoreRequests:
    """Reads log entries and snapshots for the cores.

    :param answer: called with (partition, event) to enter the partition's core with the store's
        answer; the event takes the core and now_ms."""

    def __init__(self, store: Store, answer: Answer) -> None:
        self._store = store
        self._answer = answer
        self._opening: dict[_Place, Deferred[None]] = {}
        self._open: dict[_Place, PartitionSnapshot] = {}

    def grant(self, partition: int, request: StoreRequest) -> None:
        """Begin to serve a request; the answer comes in a later turn."""
        if isinstance(request, ReadLog):
            self._read_log(partition, request)
        elif isinstance(request, OpenSnapshot):
            self._open_snapshot(partition, request)
        elif isinstance(request, ReadChunk):
            self._read_chunk(partition, request)
        else:
            self._close(partition, request)

    def _read_log(self, partition: int, request: ReadLog) -> None:
        def read(entries: Sequence[Entry]) -> None:
            self._answer(partition, lambda core, now_ms: core.log_read(request.node, entries, now_ms))

        reading = self._store.read_log(partition, request.first, bytes_max=request.bytes_max)
        reading.addCallbacks(read, self._broken)

    def _open_snapshot(self, partition: int, request: OpenSnapshot) -> None:
        place = partition, request.node, request.snapshot_id

        def opened(snapshot: PartitionSnapshot) -> None:
            del self._opening[place]
            self._open[place] = snapshot
            self._answer(
                partition,
                lambda core, now_ms: core.snapshot_opened(
                    request.node, request.snapshot_id, snapshot.applied, snapshot.epochs, snapshot.horizon_us, now_ms
                ),
            )

        def failed(why: Failure) -> None:
            self._opening.pop(place, None)
            if not why.check(CancelledError):
                self._failed(place, why)

        opening = self._store.open_snapshot(partition)
        self._opening[place] = opening.addCallbacks(opened, failed)

    def _read_chunk(self, partition: int, request: ReadChunk) -> None:
        place = partition, request.node, request.snapshot_id
        snapshot = self._open.get(place)
        if snapshot is None:
            return

        def read(data: bytes | None) -> None:
            digest = snapshot.digest() if data is None else b""
            self._answer(
                partition, lambda core, now_ms: core.snapshot_chunk(request.node, request.snapshot_id, data, digest)
            )

        snapshot.read().addCallbacks(read, lambda why: self._failed(place, why))

    def _failed(self, place: _Place, why: Failure) -> None:
        partition, node, snapshot_id = place
        if place in self._open:
            self._open.pop(place).close()
        if why.check(StoreBroken):
            return  # the store says so itself (R18)
        self._answer(partition, lambda core, now_ms: core.snapshot_failed(node, snapshot_id, now_ms))

    def _close(self, partition: int, request: CloseSnapshot) -> None:
        place = partition, request.node, request.snapshot_id
        opening = self._opening.pop(place, None)
        if opening is not None:
            opening.cancel()
        snapshot = self._open.pop(place, None)
        if snapshot is not None:
            snapshot.close()

    def _broken(self, why: Failure) -> None:
        if not why.check(StoreBroken):
            _log.failure("entries could not be read", failure=why, event="read_failed")
