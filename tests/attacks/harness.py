"""Runs an attack against fresh nodes, and measures what it does to the first of them and to whoever else wants an answer."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tests.attacks
from tests.cluster.clusters import Cluster
from tests.support.certificates import HOSTS, make_ca, trusting
from tests.support.harness import NodeProcess, Nodes, until

HELD_MS_MAX = 100
"""CPU that one call of a reactor may take, by the node's own metric."""
HEALTH_P99_MS_MAX = 250
"""Asserted by hand only: beside other load it says more about that."""
ABOVE_MIB_MAX = 192
LEFT_MIB_MAX = 64
LEFT_S = 30.0
"""So soon after the attack no more than ``LEFT_MIB_MAX`` of what it took may be left."""
PROBE_EVERY_S = 0.02
MIB = 1 << 20
_held_max = re.compile(r"^taskqueue_reactor_held_max_seconds ([0-9.e+-]+)$", re.MULTILINE).search


class Stage:
    """What an attack plays on: ready nodes, the first of which is measured. ``tls``: they speak HTTPS."""

    def __init__(self, nodes: list[NodeProcess], tls: ssl.SSLContext | None = None) -> None:
        self.nodes = nodes
        self.tls = tls
        self._sockets: list[socket.socket] = []

    @property
    def node(self) -> NodeProcess:
        return self.nodes[0]

    def connect(self, *, timeout_s: float = 30.0, receive_buffer: int = 0, by_tls: bool = True) -> socket.socket:
        """A connection to the node, closed at the end of the attack; bare, but for TLS where the node speaks it.
        ``receive_buffer``: a small one fills soon."""
        connection = socket.socket()
        self._sockets.append(connection)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(timeout_s)
        connection.connect(("127.0.0.1", self.node.http_port))
        if self.tls is not None and by_tls:
            connection = self._sockets[-1] = self.tls.wrap_socket(connection, server_hostname="localhost")
        return connection

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()
        self._sockets.clear()


class Attack(NamedTuple):
    name: str
    run: Callable[[Stage], object]
    nodes: int = 1
    options: tuple[str, ...] = ()
    prepare: Callable[[Stage], object] | None = None
    is_long: bool = False
    """It runs with ``make long`` and by hand, not with each change."""
    by_tls_only: bool = False
    """It is one on TLS itself."""


class Measured(NamedTuple):
    """One row of the table."""

    name: str
    held_ms: float
    """The most CPU that one call of any node's reactor took."""
    health_worst_ms: float
    health_p99_ms: float
    health_count: int
    before_mib: float
    peak_mib: float
    after_mib: float

    def faults(self, *, timed: bool) -> list[str]:
        """What is beyond the bounds. ``timed``: how long ``/health`` took, too."""
        found = []
        if self.held_ms > HELD_MS_MAX:
            found.append(f"the reactor was held for {self.held_ms:.0f} ms of CPU")
        if self.peak_mib - self.before_mib > ABOVE_MIB_MAX:
            found.append(f"{self.peak_mib - self.before_mib:.0f} MiB more memory")
        if self.after_mib - self.before_mib > LEFT_MIB_MAX:
            found.append(f"{self.after_mib - self.before_mib:.0f} MiB not given back")
        if timed and self.health_p99_ms > HEALTH_P99_MS_MAX:
            found.append(f"/health took {self.health_p99_ms:.0f} ms (p99)")
        return found


_known: dict[str, Attack] = {}


def attack(
    name: str,
    *,
    nodes: int = 1,
    options: Sequence[str] = (),
    prepare: Callable[[Stage], object] | None = None,
    is_long: bool = False,
    by_tls_only: bool = False,
) -> Callable[[Callable[[Stage], object]], Attack]:
    """Mark a function as an attack. ``name`` begins with the id of the fault; ``options`` are the nodes'.

    :param prepare: what the node shall hold before it is measured.
    """

    def mark(run: Callable[[Stage], object]) -> Attack:
        assert name not in _known, f"two attacks are named {name}"
        _known[name] = Attack(name, run, nodes, tuple(options), prepare, is_long, by_tls_only)
        return _known[name]

    return mark


def all_attacks() -> list[Attack]:
    """Of all modules of this package, by name."""
    for module in pkgutil.iter_modules(tests.attacks.__path__):
        if not module.name.startswith(("__", "test_")):
            importlib.import_module(f"tests.attacks.{module.name}")
    return [_known[name] for name in sorted(_known)]


class Probe(threading.Thread):
    """Asks one node for ``/health`` again and again, each time by a connection of its own, and looks at its memory."""

    def __init__(self, node: NodeProcess) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._over = threading.Event()
        self.took_ms: list[float] = []
        self.peak_mib = 0.0
        self.failed: str = ""

    def run(self) -> None:
        while not self._over.wait(PROBE_EVERY_S):
            began_s = time.perf_counter()
            try:
                answer = self._node.get("/health", deadline_s=60.0)
            except OSError as why:
                self.failed = self.failed or f"/health: {why!r}"
                continue
            self.took_ms.append((time.perf_counter() - began_s) * 1000)
            if answer.status != 200:
                self.failed = self.failed or f"/health: {answer.status}"
            self.peak_mib = max(self.peak_mib, rss_mib(self._node.pid))

    def end(self) -> None:
        self._over.set()
        self.join(90)


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def held_ms(node: NodeProcess) -> float:
    found = _held_max(node.get("/metrics", deadline_s=60.0).body.decode())
    assert found, "the node does not say how long its reactor was held"
    return float(found[1]) * 1000


@contextlib.contextmanager
def _stage(attack: Attack, directory: Path, *, by_tls: bool) -> Iterator[Stage]:
    nodes = Nodes(directory)
    cluster = tls = None
    options = attack.options
    if by_tls:
        folder = make_ca(directory / "ca", f"node={HOSTS}")
        tls = trusting(folder)
        files = ("--http-cert", "node.crt"), ("--http-key", "node.key"), ("--ca", "ca.crt")
        options = (*options, *(word for option, file in files for word in (option, str(folder / file))))
    try:
        if attack.nodes == 1:
            node = nodes.start(*options, wait=False)
            node.tls = tls
            stage = Stage([node.wait_ready()], tls)
        else:
            names = [f"node-{number}" for number in range(1, attack.nodes + 1)]
            cluster = Cluster(nodes, names, options=options, tls=tls)
            cluster.start()
            stage = Stage([cluster[name].wait_ready() for name in names], tls)
        try:
            yield stage
        finally:
            stage.close()
    finally:
        nodes.close()
        if cluster is not None:
            cluster.close()


def measure(attack: Attack, directory: Path | None = None, *, by_tls: bool = False) -> Measured:
    """Run it, against nodes that speak HTTPS where ``by_tls``.

    :raises AssertionError: the attack itself found fault, a probe failed, or a node ended.
    """
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="attack-") as made:
            return measure(attack, Path(made), by_tls=by_tls)
    with _stage(attack, directory, by_tls=by_tls or attack.by_tls_only) as stage:
        if attack.prepare is not None:
            attack.prepare(stage)
        for _ in range(20):
            stage.node.get("/health")
        held_ms(stage.node)
        before_mib = rss_mib(stage.node.pid)
        probe = Probe(stage.node)
        probe.start()
        try:
            attack.run(stage)
        finally:
            probe.end()
            stage.close()
        for node in stage.nodes:
            assert node.is_running, f"{node} ended:\n{node.log_tail()}"
        assert not probe.failed, probe.failed
        with contextlib.suppress(AssertionError):
            until(
                lambda: rss_mib(stage.node.pid) - before_mib <= LEFT_MIB_MAX,
                deadline_s=LEFT_S,
                what="memory given back",
            )
        took = sorted(probe.took_ms) or [0.0]
        return Measured(
            attack.name,
            max(held_ms(node) for node in stage.nodes),
            took[-1],
            took[min(len(took) - 1, len(took) * 99 // 100)],
            len(probe.took_ms),
            before_mib,
            max(probe.peak_mib, before_mib),
            rss_mib(stage.node.pid),
        )


HEADING = (
    f"{'attack':58} {'held':>8} {'/health worst':>14} {'p99':>8} {'probes':>7} {'before':>8} {'above':>8} {'left':>8}"
)


def row(found: Measured) -> str:
    return (
        f"{found.name:58} {found.held_ms:5.0f} ms {found.health_worst_ms:11.0f} ms {found.health_p99_ms:5.0f} ms "
        f"{found.health_count:7} {found.before_mib:4.0f} MiB {found.peak_mib - found.before_mib:4.0f} MiB "
        f"{found.after_mib - found.before_mib:4.0f} MiB"
    )
