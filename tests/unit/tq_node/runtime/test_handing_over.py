"""How long a node that stops waits for others to take over what it leads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tq_node.runtime.routing.node import TRANSFER_LOOK_S, TRANSFER_MS, Node


class Stopping(Node):
    """Leads a partition that another node has in sync, as far as the cluster map knows; nobody takes it."""

    def __init__(self, *, is_connected: bool) -> None:
        self.asked = self.paused = self.now_ms = 0
        self._clock: Any = SimpleNamespace(now_ms=lambda: self.now_ms)
        local = SimpleNamespace(replication=SimpleNamespace(led_with_others=lambda: [(0, 1)]))
        plane = SimpleNamespace(membership=SimpleNamespace(is_connected=is_connected, pause=self._pause))
        self.state: Any = SimpleNamespace(local=local, plane=plane)

    def _pause(self, seconds: float) -> Deferred[None]:
        self.paused += 1
        self.now_ms += round(seconds * 1000)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def _propose_step_down(self, led: object) -> None:
        self.asked += 1


@pytest.mark.parametrize(("is_connected", "rounds"), [(False, 0), (True, round(TRANSFER_MS / 1000 / TRANSFER_LOOK_S))])
def test_only_a_node_that_is_connected_is_waited_for(is_connected: bool, rounds: int) -> None:
    stopping = Stopping(is_connected=is_connected)
    over = Deferred.fromCoroutine(stopping.transfer_partitions())
    assert over.called
    assert (stopping.asked, stopping.paused) == (rounds, rounds)
