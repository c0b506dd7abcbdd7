"""Takes snapshots of this node's store for operators: one at a time, never into the reserve."""

from __future__ import annotations

import os
from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import Busy, DiskReserve, StoreBroken, TaskQueueError
from tq_node.runtime.clock import Clock
from tq_node.runtime.settings import QueueSettings
from tq_node.store.api import Store

_log = Logger(namespace="taskqueue.node")


class SnapshotTaker:
    """Writes snapshots to a directory, keeps the newest; ``settings`` says where and how many."""

    def __init__(self, store: Store, clock: Clock, settings: QueueSettings) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._is_taking = False

    def take(self) -> Deferred[Sequence[str]]:
        """Take one; fires with the paths of all snapshots kept, the new one first.

        :raises Busy: one is being taken.
        :raises DiskReserve: it has no room, or could not be written."""
        directory, kept = self._settings.snapshot_dir, self._settings.snapshots_kept
        if self._is_taking:
            return fail(Busy("this node is making a snapshot already"))
        if self._store.disk_free_bytes(directory) < self._store.bytes_on_disk() + self._settings.disk_free_bytes_min:
            return fail(
                DiskReserve("a snapshot of this store would leave less disk space than --min-free-disk asks for")
            )
        name = f"snapshot-{self._clock.wall_us()}.sqlite3"
        self._is_taking = True
        return self._store.backup(directory, name, kept).addBoth(self._taken).addErrback(_failed, directory, name)

    def _taken(self, result: Sequence[str] | Failure) -> Sequence[str] | Failure:
        self._is_taking = False
        return result


def _failed(why: Failure, directory: str, name: str) -> Failure:
    if why.check(TaskQueueError, StoreBroken):
        return why
    path = os.path.join(directory, name)
    _log.error("the snapshot {path} failed: {why}", path=path, why=why.getErrorMessage(), event="backup_failed")
    return Failure(DiskReserve(f"the snapshot could not be written: {why.getErrorMessage()}"))
