"""Nodes for tests of the wire: listener and pool over any kind of wire, peers that speak in bytes, one in another process."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import Clock
from twisted.protocols.amp import parseString
from twisted.python.failure import Failure

from tests.support.harness import PROJECT
from tests.support.wire_kinds import MemoryWire, TcpWire, Wire
from tq_node.raft.messages import AnyMessage
from tq_node.types import NodeId, NodeName
from tq_node.wire.authentication import Authentication
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.commands import Lane
from tq_node.wire.connector import Connector
from tq_node.wire.handler import Greeting, Welcome
from tq_node.wire.handshake import LocalIdentity, PeerIdentity, Sessions
from tq_node.wire.listener import PeerListener
from tq_node.wire.pool import Member, PeerPool

T = TypeVar("T")
CLUSTER = "c" * 32
SECRET = b"a secret of a test cluster"


def run_until(clock: Clock, until_s: float) -> None:
    """Step to each timer; ``Clock.advance`` alone shows every callback the end."""
    while calls := sorted(clock.getDelayedCalls(), key=lambda call: call.getTime()):
        if calls[0].getTime() > until_s:
            break
        clock.advance(max(0.0, calls[0].getTime() - clock.seconds()))
    clock.advance(max(0.0, until_s - clock.seconds()))


# --- nodes ---
class RecordingHandler:
    """Remembers everything. ``answers`` maps a call's name to what answers it; by default a body is answered with itself."""

    def __init__(self, local: LocalIdentity) -> None:
        self.local = local
        self.newborn = self.has_tasks = False
        self.greetings: list[Greeting] = []
        self.messages: list[tuple[PeerIdentity, AnyMessage]] = []
        self.bodies: list[tuple[PeerIdentity, bytes]] = []
        self.bugs: list[tuple[str, Failure]] = []
        self.asked: list[tuple[str, PeerIdentity, object]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.events: list[tuple[Any, ...]] = []

    # --- PeerHandler ---
    def greeted(self, greeting: Greeting) -> Welcome:
        self.greetings.append(greeting)
        return Welcome(self.local.cluster, self.local.name, self.newborn, self.has_tasks)

    def admit(self, peer: PeerIdentity) -> None:
        self._answer("admit", peer, peer)

    def let_in(self, peer: PeerIdentity) -> None:
        self.events.append(("in", peer.name, peer.lane))

    def raft(self, peer: PeerIdentity, messages: list[AnyMessage]) -> None:
        self.messages += [(peer, message) for message in messages]
        self._answer("raft", peer, messages)

    def data(self, peer: PeerIdentity, body: bytes) -> None:
        self.bodies.append((peer, body))
        self._answer("data", peer, body)

    def confirm(self, peer: PeerIdentity, body: bytes) -> None:
        self.bodies.append((peer, body))
        self._answer("confirm", peer, body)

    def forward(self, peer: PeerIdentity, calls: list[ForwardedCall], within_ms: int) -> Any:
        return self._answer("forward", peer, calls, lambda asked: [ForwardedResult("", call.body) for call in asked])

    def register(self, peer: PeerIdentity, body: bytes) -> Any:
        return self._answer("register", peer, body)

    def heartbeat(self, peer: PeerIdentity, body: bytes) -> Any:
        return self._answer("heartbeat", peer, body)

    def evidence(self, peer: PeerIdentity, body: bytes) -> Any:
        return self._answer("evidence", peer, body)

    def propose(self, peer: PeerIdentity, body: bytes) -> Any:
        return self._answer("propose", peer, body)

    def broken(self, what: str, failure: Failure) -> None:
        self.bugs.append((what, failure))

    def _answer(self, name: str, peer: PeerIdentity, said: Any, otherwise: Callable[[Any], Any] = lambda x: x) -> Any:
        self.asked.append((name, peer, said))
        return self.answers.get(name, otherwise)(said)

    # --- LaneWatcher ---
    def lane_up(self, peer: PeerIdentity, at_ms: int) -> None:
        self.events.append(("up", peer.name, peer.lane, at_ms))

    def lane_lost(self, peer: PeerIdentity, at_ms: int, broke: bool, why: str) -> None:
        self.events.append(("lost", peer.name, peer.lane, at_ms, broke, why))

    def dial_failed(self, node_id: NodeId, lane: Lane, at_ms: int, why: Exception) -> None:
        self.events.append(("failed", node_id, lane, at_ms, why))

    def lane_writable(self, node_id: NodeId, lane: Lane) -> None:
        self.events.append(("writable", node_id, lane))

    def seen(self, kind: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == kind]

    @property
    def failures(self) -> list[Exception]:
        return [event[4] for event in self.seen("failed")]


class WireNode:
    """One node's wire. ``name`` is a single letter mostly; the id is made of it."""

    def __init__(self, wire: Wire, name: str, *, node_id: str = "", with_tls: str | None = "", **identity: Any) -> None:
        known: dict[str, Any] = {"incarnation": 1, "cluster": CLUSTER, "secret": SECRET} | identity
        self.wire = wire
        self.name = name
        self.local = LocalIdentity(node_id=NodeId(node_id or f"{name:0>32}"), name=NodeName(name), **known)
        self.handler = RecordingHandler(self.local)
        self.sessions = Sessions()
        tls = None if with_tls is None else wire.tls(with_tls or name)
        authentication = Authentication(self.local, self.sessions, tls)
        self.dialling = Connector(wire.reactor, authentication, wire.client)
        self.pool = PeerPool(self.dialling, self.handler, random.Random(name))
        self.listener = PeerListener(wire.reactor, wire.server(name), authentication, self.handler)
        self.address = ""

    @property
    def node_id(self) -> NodeId:
        return self.local.node_id

    @property
    def member(self) -> Member:
        return Member(self.node_id, self.local.name, self.address)

    async def listen(self) -> WireNode:
        self.address = self.wire.address(self.name, await self.listener.listen())
        return self

    def dial(self, *others: WireNode) -> None:
        self.pool.set_members([other.member for other in others])
        if not self.pool.running:
            self.pool.startService()

    async def meet(self, *others: WireNode) -> None:
        """Dial them, and wait until both lanes to each are open."""
        self.dial(*others)
        for other in others:
            for lane in Lane:
                await self.wire.until(
                    lambda other=other, lane=lane: self.pool.is_connected(other.node_id, lane),  # type: ignore[misc]
                    f"{lane} lane from {self.name} to {other.name}",
                )

    async def stop(self) -> None:
        if self.pool.running:
            await self.wire.wait(self.pool.stopService())
        await self.wire.wait(self.listener.stop())


class RawPeer(TwistedProtocol):
    """Speaks bytes to a listener, well or badly, and remembers what comes back."""

    def __init__(self) -> None:
        self.received = b""
        self._is_over = False
        self.tags = 0

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_over = True

    def over(self) -> bool:
        return self._is_over

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def say(self, command: bytes, **arguments: bytes) -> bytes:
        """Ask, and give the tag back."""
        self.tags += 1
        tag = b"%x" % self.tags
        self.write(raw_box({b"_command": command, b"_ask": tag} | {k.encode(): v for k, v in arguments.items()}))
        return tag

    def boxes(self) -> list[dict[bytes, bytes]]:
        """What came since the last time, whole boxes only."""
        boxes: list[dict[bytes, bytes]] = parseString(self.received)
        self.received = b""
        return boxes


def raw_box(box: dict[bytes, bytes]) -> bytes:
    parts = [len(part).to_bytes(2, "big") + part for pair in box.items() for part in pair]
    return b"".join(parts) + b"\0\0"


def raw_peer(wire: MemoryWire, name: str) -> RawPeer:
    made: list[RawPeer] = []
    wire.network.connect(name, Factory.forProtocol(RawPeer)).addCallback(made.append)
    wire.network.settle()
    return made[0]


def clean(wire: Wire, nodes: list[WireNode]) -> Iterator[str]:
    """What is left over after all nodes have stopped."""
    for node in nodes:
        if node.dialling._open:
            yield f"{node.name} has dialled connections"
        if node.listener._factory.connections or accepted(node.listener):
            yield f"{node.name} has accepted connections"
        for lane, budget in node.listener._acceptor.budgets.items():
            if budget.held_bytes:
                yield f"{node.name} holds {budget.held_bytes} bytes of {lane}"
    if isinstance(wire, MemoryWire):
        yield from (str(call) for call in wire.reactor.getDelayedCalls())


# --- a node's wire in a process of its own ---
class Served:
    """A listener over TCP in another process: its memory can be measured, and it can be stopped in its tracks.

    It answers every call with the caller's own words, until it is closed.
    """

    def __init__(self, name: str = "b") -> None:
        command = [sys.executable, "-c", f"from tests.support.wires import serve; serve({name!r})"]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening "), line + self.process.stdout.read()
        self.port = int(line.split()[1])
        self.member = Member(NodeId(f"{name:0>32}"), NodeName(name), f"127.0.0.1:{self.port}")

    def memory_bytes(self, field: str = "VmRSS") -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(field)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def close(self) -> str:
        """What it logged."""
        said, _ = self.process.communicate(timeout=20)  # which ends its standard input
        assert self.process.returncode == 0, said
        return said


def serve(name: str) -> None:
    """The other process's side of ``Served``: until its standard input ends."""
    from twisted.internet import reactor as installed
    from twisted.internet.stdio import StandardIO
    from twisted.logger import LogLevel, eventAsText, globalLogPublisher

    reactor: Any = installed
    node = WireNode(TcpWire(), name)

    def log(event: Any) -> None:
        if event["log_level"] >= LogLevel.warn:
            print(eventAsText(event, includeTimestamp=False), flush=True)

    globalLogPublisher.addObserver(cast("Any", log))

    def stopped(_: object) -> None:
        print("refusals", sorted(node.listener.refusals.items()), flush=True)
        reactor.stop()

    class UntilTheEnd(TwistedProtocol):
        def connectionLost(self, reason: Failure = connectionDone) -> None:
            Deferred.fromCoroutine(node.stop()).addBoth(stopped)

    def listening(_: object) -> None:
        print("listening", node.address.rpartition(":")[2], flush=True)
        StandardIO(UntilTheEnd())

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(node.listen()).addCallback(listening))
    reactor.run()


def accepted(listener: PeerListener) -> list[Any]:
    """Connections that a listener has accepted and not closed, authenticated or not."""
    acceptor = listener._acceptor
    return [*acceptor._unauthenticated, *acceptor._peers.values()]
