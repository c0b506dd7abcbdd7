"""The memory model of the store on a disk with delays: commits are synced in groups, reads arrive late."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from tests.simulation.cluster.time import DISK, NodeReactor
from tests.support.model_store.store import MemoryStore


class Disk:
    """How fast one node's disk is; faults change it. :param source: of delays."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.sync_us = (200, 3_000)
        self.read_us = (20, 600)

    def heal(self) -> None:
        self.sync_us = (200, 3_000)
        self.read_us = (20, 600)

    def drawn(self, bounds: tuple[int, int]) -> int:
        return bounds[0] + int(self.random.random() * (bounds[1] - bounds[0]))


class DiskStore(MemoryStore):
    """``begin`` gives each run of a node its own. Reads show the disk as it was when they were asked, or when they arrive."""

    def begin(self, reactor: NodeReactor, disk: Disk, on_broken: Callable[[Exception], None]) -> None:
        self._reactor = reactor
        self._slow = disk
        self._on_broken = on_broken
        self._is_syncing = False
        self._read_due_us = 0

    def commit(self, batch: Any) -> Deferred[None]:
        ticket = super().commit(batch)
        if not self._is_syncing:
            self._begin_sync()
        return ticket

    def _begin_sync(self) -> None:
        self._is_syncing = True
        # What waits now goes into one sync; what comes meanwhile into the next.
        self._reactor.soon(self._slow.drawn(self._slow.sync_us), DISK, self._synced, self.pending)

    def _synced(self, count: int) -> None:
        self._is_syncing = False
        self.sync(count)
        if self.pending and not self._is_syncing:
            self._begin_sync()

    def answer(self, read: Callable[[], Any]) -> Deferred[Any]:
        late: Deferred[Any] = Deferred()
        due_us = max(self._reactor.timeline.now_us + self._slow.drawn(self._slow.read_us), self._read_due_us)
        self._read_due_us = due_us
        found = super().answer(read) if self._slow.random.random() < 0.5 else None

        def arrive() -> None:
            if not late.called:
                (super(DiskStore, self).answer(read) if found is None else found).chainDeferred(late)

        self._reactor.timeline.node_at(due_us, self._reactor, DISK, arrive)
        return late
