"""What systemd is told, and when: on a clock of the test's own, to a socket in its directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from twisted.internet.task import Clock as FakeReactor

from tq_node.facade import NotReadyReason
from tq_node.limits import STOP_MARGIN_S
from tq_node.node.systemd import LOOK_S, READY_WAIT_S, Notifier
from tq_node.runtime.clock import Clock
from tq_node.types import ClusterNode, ClusterView

WAITING = NotReadyReason("no_controller", "the cluster has no leader for now")


class Node:
    def __init__(self) -> None:
        self.reasons: Sequence[NotReadyReason] = [WAITING]
        self.active = 2

    def not_ready(self) -> Sequence[NotReadyReason]:
        return self.reasons

    def cluster(self) -> ClusterView:
        statuses = ["active"] * self.active + ["down"] * (3 - self.active)
        nodes = [ClusterNode(f"node-{n}", f"node-{n}", "", "", status, True) for n, status in enumerate(statuses)]
        return ClusterView("id", "name", nodes, "node-1", 1, 64, 3)


class Bench:
    """:param watchdog_s: as the unit says it."""

    def __init__(self, address: Path, watchdog_s: float = 0.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(address))
        self.socket.setblocking(False)
        self.reactor, self.node = FakeReactor(), Node()
        self.environment = {
            "NOTIFY_SOCKET": str(address),
            "WATCHDOG_USEC": str(int(watchdog_s * 1_000_000)),
            "OTHER": "x",
        }
        self.notifier = Notifier.from_environment(self.environment, Clock(self.reactor), self.node, 25.0)

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def after(self, seconds: float) -> list[str]:
        self.reactor.pump([0.125] * round(seconds * 8))
        return self.heard()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "notify")
    yield made
    made.notifier.stop()
    made.socket.close()


def test_ready_once_and_then_what_changes(bench: Bench) -> None:
    bench.notifier.start()
    assert bench.heard() == ["STATUS=not ready: the cluster has no leader for now"]
    assert bench.after(5) == [], "the same is not said again"
    bench.node.reasons = []
    assert bench.after(LOOK_S) == ["READY=1\nSTATUS=ready; 2 of 3 nodes active, led by node-1"]
    bench.node.active = 3
    assert bench.after(LOOK_S) == ["STATUS=ready; 3 of 3 nodes active, led by node-1"]
    bench.node.reasons = [WAITING, NotReadyReason("not_active", "two\nlines")]
    assert bench.after(LOOK_S) == ["STATUS=not ready: the cluster has no leader for now; two lines"]
    bench.node.reasons = []
    assert bench.after(5) == ["STATUS=ready; 3 of 3 nodes active, led by node-1"]


def test_a_boot_is_not_held_up_for_ever(bench: Bench) -> None:
    bench.notifier.start()
    assert len(bench.after(READY_WAIT_S - 1)) == 1
    assert bench.after(2) == ["READY=1"], "its status has said why it waits"
    bench.node.reasons = []
    assert bench.after(LOOK_S) == ["STATUS=ready; 2 of 3 nodes active, led by node-1"]


def test_stopping_is_said_once_with_the_time_it_may_take(bench: Bench) -> None:
    bench.notifier.start()
    bench.heard()
    bench.notifier.stopping()
    bench.notifier.stopping()
    (text,) = bench.after(2)
    first, status, extend = text.splitlines()
    assert (first, status.split(":")[0]) == ("STOPPING=1", "STATUS=stopping")
    assert extend == f"EXTEND_TIMEOUT_USEC={int((25 + STOP_MARGIN_S) * 1_000_000)}"


def test_the_watchdog_is_fed_at_half_its_time_and_until_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "notify", watchdog_s=10)
    bench.notifier.start()
    assert bench.after(30).count("WATCHDOG=1") == 7
    bench.notifier.stopping()
    assert bench.after(10).count("WATCHDOG=1") == 2
    bench.notifier.stop()
    bench.notifier.stop()
    assert bench.after(30) == []
    assert bench.reactor.getDelayedCalls() == []
    bench.socket.close()


def test_nobody_else_can_speak_for_the_node(bench: Bench) -> None:
    assert bench.environment == {"OTHER": "x"}


@pytest.mark.parametrize(("pid", "fed"), [(str(os.getpid()), True), ("1", False), ("", True)])
def test_a_watchdog_may_be_meant_for_another(pid: str, fed: bool, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": pid}
    notifier = Notifier.from_environment(environment, Clock(bench.reactor), bench.node, 25.0)
    notifier.start()
    assert ("WATCHDOG=1" in bench.heard()) is fed
    notifier.stop()
    bench.notifier.stop()
    bench.socket.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/notify", "@taskqueue-nobody-listens-here"])
def test_where_nobody_listens_it_does_nothing(address: str) -> None:
    reactor = FakeReactor()
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address}, Clock(reactor), Node(), 25.0)
    notifier.start()
    notifier.stopping()
    assert reactor.getDelayedCalls() == []
    notifier.stop()


def test_a_message_that_was_not_taken_is_said_again(bench: Bench) -> None:
    bench.notifier.start()
    bench.heard()
    bench.node.reasons = []
    bench.notifier._socket, taken = None, bench.notifier._socket  # the manager is busy
    assert bench.after(LOOK_S) == []
    bench.notifier._socket = taken
    assert bench.after(LOOK_S) == ["READY=1\nSTATUS=ready; 2 of 3 nodes active, led by node-1"]
