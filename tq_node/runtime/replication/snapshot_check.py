"""Checks the content of incoming snapshots before it is staged, so that a peer's mistake can't
break this store.

The core checks that a chunk arrived as it was sent, and can't read it. A chunk that is refused here
is not given to the core, which then misses it and asks for a new snapshot."""

from __future__ import annotations

from twisted.logger import Logger

from tq_node.partition.messages import AnyMessage, SnapBegin, SnapChunk, SnapEnd
from tq_node.store.snapshots import ChunkDamaged, SnapshotCheck
from tq_node.types import NodeId

_log = Logger(namespace="taskqueue.log")
OF_SNAPSHOTS = frozenset({SnapBegin, SnapChunk, SnapEnd})
_Sender = tuple[NodeId, int, int]


class ChunkCheck:
    """Checks the chunks of at most one snapshot for each partition: the one that was begun last."""

    def __init__(self) -> None:
        self._checks: dict[int, tuple[_Sender, SnapshotCheck]] = {}

    def is_sound(self, source: NodeId, message: AnyMessage) -> bool:
        """Whether the core may have the message; of snapshots not begun here it judges itself."""
        partition = message.partition
        if isinstance(message, SnapBegin):
            self._checks[partition] = (source, message.epoch, message.snapshot_id), SnapshotCheck(partition)
            return True
        if not isinstance(message, SnapChunk | SnapEnd):
            return True
        sender, check = self._checks.get(partition, (None, None))
        if check is None or sender != (source, message.epoch, message.snapshot_id):
            return True
        if isinstance(message, SnapEnd):
            del self._checks[partition]
            if message.chunks == check.chunks and message.digest != check.digest():
                return self._refuse(partition, source, "its digest is not that of its chunks")
        elif message.number == check.chunks:
            try:
                check.take(message.data)
            except ChunkDamaged as why:
                del self._checks[partition]
                return self._refuse(partition, source, str(why))
        return True

    def _refuse(self, partition: int, source: NodeId, why: str) -> bool:
        _log.error(
            "a snapshot of partition {partition} from {source} is given up: {why}",
            partition=partition,
            source=source,
            why=why,
            event="snapshot_damaged",
        )
        return False
