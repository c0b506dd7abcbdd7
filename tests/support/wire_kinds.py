"""What a wire runs over in tests: memory (iosim and a clock in hand), TCP on loopback, mutual TLS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from zope.interface import implementer

from tests.support.harness import PROJECT
from tq_node.direct_sends import DirectReactor
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.tls import PeerTLS

T = TypeVar("T")
DEADLINE_S = 20.0


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
        self._tcp = DirectReactor(reactor)

    def server(self, name: str) -> IStreamServerEndpoint:
        return TCP4ServerEndpoint(self._tcp, 0, interface="127.0.0.1")

    def client(self, address: str, timeout_s: float) -> IStreamClientEndpoint:
        return client_endpoint(self._tcp, address, timeout_s)

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
