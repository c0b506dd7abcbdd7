"""Wires for tests: the same listener and pool over memory (iosim and a clock in hand), TCP on loopback, and mutual TLS."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self, TypeVar, cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import Clock, deferLater
from twisted.protocols.amp import parseString
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from zope.interface import implementer

from tests.support.harness import PROJECT
from tq_node.raft.messages import AnyMessage
from tq_node.types import NodeId, NodeName
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.commands import Lane
from tq_node.wire.dialling import Dialling
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.handler import Greeting, Welcome
from tq_node.wire.handshake import LocalIdentity, PeerIdentity, Sessions
from tq_node.wire.listener import PeerListener
from tq_node.wire.pool import Member, PeerPool
from tq_node.wire.tls import PeerTLS

T = TypeVar("T")
CLUSTER = "c" * 32
SECRET = b"a secret of a test cluster"
DEADLINE_S = 20.0


def run_until(clock: Clock, until_s: float) -> None:
    """Step to each timer; ``Clock.advance`` alone shows every callback the end."""
    while calls := sorted(clock.getDelayedCalls(), key=lambda call: call.getTime()):
        if calls[0].getTime() > until_s:
            break
        clock.advance(max(0.0, calls[0].getTime() - clock.seconds()))
    clock.advance(max(0.0, until_s - clock.seconds()))


# --- in memory ---
@implementer(IAddress)
class _Place:
    """An address in memory."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.port = 1


@implementer(IListeningPort)
class _MemoryPort:
    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    def startListening(self) -> None:
        raise NotImplementedError

    def stopListening(self) -> None:
        del self._network.listening[self._name]

    def getHost(self) -> _Place:
        return _Place(self._name)


class MemoryNetwork:
    """Connections as two iosim transports each; ``settle`` moves bytes until nothing moves any more."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.listening: dict[str, Any] = {}
        self.pumps: list[IOPump] = []

    def connect(self, name: str, factory: Any) -> Deferred[Any]:
        if name not in self.listening:
            return fail(PortRefused())
        client, server = factory.buildProtocol(_Place(name)), self.listening[name].buildProtocol(_Place("dialler"))
        ends = FakeTransport(client, False, _Place("dialler"), _Place(name)), FakeTransport(server, True, _Place(name))
        server.makeConnection(ends[1])
        client.makeConnection(ends[0])
        self.pumps.append(IOPump(client, server, *ends, False, clock=self.clock))
        return succeed(client)

    def settle(self) -> None:
        while sum(pump.flush() for pump in list(self.pumps)):  # all of them, before the first is enough
            self.pumps = [p for p in self.pumps if not (p.clientIO.disconnected and p.serverIO.disconnected)]


@implementer(IStreamServerEndpoint)
class _MemoryServer:
    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    def listen(self, factory: Any) -> Deferred[IListeningPort]:
        self._network.listening[self._name] = factory
        return succeed(cast("IListeningPort", _MemoryPort(self._network, self._name)))


@implementer(IStreamClientEndpoint)
class _MemoryClient:
    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    def connect(self, factory: Any) -> Deferred[Any]:
        return self._network.connect(self._name, factory)


# --- kinds of wire ---
class Wire(Protocol):
    """``reactor`` is what the nodes get. ``wait`` moves bytes and time until a Deferred fires."""

    name: str
    reactor: Any

    def server(self, name: str) -> IStreamServerEndpoint: ...

    def client(self, address: str, timeout_s: float) -> IStreamClientEndpoint: ...

    def address(self, name: str, port: IListeningPort) -> str: ...

    def tls(self, name: str) -> PeerTLS | None: ...

    async def wait(self, awaited: Awaitable[T]) -> T: ...

    async def until(self, true: Callable[[], object], what: str) -> None: ...

    async def sleep(self, seconds: float) -> None: ...


def _never(what: str) -> NoReturn:
    pytest.fail(f"{what}: not within {DEADLINE_S:g} s")


class MemoryWire:
    name = "memory"

    def __init__(self) -> None:
        self.reactor: Any = Clock()
        self.reactor.advance(1000.0)
        self.network = MemoryNetwork(self.reactor)

    def server(self, name: str) -> IStreamServerEndpoint:
        return cast("IStreamServerEndpoint", _MemoryServer(self.network, name))

    def client(self, address: str, timeout_s: float) -> IStreamClientEndpoint:
        return cast("IStreamClientEndpoint", _MemoryClient(self.network, address))

    def address(self, name: str, port: IListeningPort) -> str:
        return name

    def tls(self, name: str) -> PeerTLS | None:
        return None

    async def wait(self, awaited: Awaitable[T]) -> T:
        result: list[T | Failure] = []
        Deferred.fromCoroutine(_awaited(awaited)).addBoth(result.append)
        await self.until(lambda: result, "the answer")
        if isinstance(result[0], Failure):
            result[0].raiseException()
        return result[0]

    async def until(self, true: Callable[[], object], what: str) -> None:
        end_s = self.reactor.seconds() + DEADLINE_S
        self.network.settle()
        while not true():
            if self.reactor.seconds() > end_s:
                _never(what)
            await self.sleep(0.01)

    async def sleep(self, seconds: float) -> None:
        end_s = self.reactor.seconds() + seconds
        while self.reactor.seconds() < end_s:
            self.network.settle()
            self.reactor.advance(min(0.05, end_s - self.reactor.seconds()))
        self.network.settle()


async def _awaited(awaited: Awaitable[T]) -> T:
    return await awaited


class TcpWire:
    name = "tcp"

    def __init__(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor

    def server(self, name: str) -> IStreamServerEndpoint:
        return TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")

    def client(self, address: str, timeout_s: float) -> IStreamClientEndpoint:
        return client_endpoint(self.reactor, address, timeout_s)

    def address(self, name: str, port: IListeningPort) -> str:
        return f"127.0.0.1:{cast('Any', port.getHost()).port}"

    def tls(self, name: str) -> PeerTLS | None:
        return None

    async def wait(self, awaited: Awaitable[T]) -> T:
        waiting: Deferred[T] = Deferred.fromCoroutine(_awaited(awaited))
        return await waiting.addTimeout(DEADLINE_S, self.reactor)

    async def until(self, true: Callable[[], object], what: str) -> None:
        end_s = self.reactor.seconds() + DEADLINE_S
        while not true():
            if self.reactor.seconds() > end_s:
                _never(what)
            await self.sleep(0.005)

    async def sleep(self, seconds: float) -> None:
        await deferLater(self.reactor, seconds)


class TlsWire(TcpWire):
    """:param folder: what ``deploy/make-cluster-ca`` made."""

    name = "tls"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def tls(self, name: str) -> PeerTLS | None:
        return peer_tls(self._folder, name)


def make_cluster_ca(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "deploy" / "make-cluster-ca"), str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def peer_tls(folder: Path, name: str) -> PeerTLS:
    return PeerTLS(folder / f"{name}.crt", folder / f"{name}.key", folder / "ca.crt")


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

    def raft(self, peer: PeerIdentity, messages: list[AnyMessage]) -> None:
        self.messages += [(peer, message) for message in messages]
        self._answer("raft", peer, messages)

    def data(self, peer: PeerIdentity, body: bytes) -> None:
        self.bodies.append((peer, body))
        self._answer("data", peer, body)

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
        self.dialling = Dialling(wire.reactor, self.local, self.sessions, wire.client, tls)
        self.pool = PeerPool(self.dialling, self.handler, random.Random(name))
        self.listener = PeerListener(wire.reactor, wire.server(name), self.local, self.handler, self.sessions, tls=tls)
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
        if node.listener._factory.connections or node.listener._doorman.guests:
            yield f"{node.name} has accepted connections"
        for lane, budget in node.listener._doorman.budgets.items():
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
