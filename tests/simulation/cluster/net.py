"""TCP in virtual time: what the real wire (``PeerPool``, ``PeerListener``, AMP, handshake) runs over.

Within a connection bytes come in order and without gaps, or the connection ends and its tail is lost. A link that is cut holds
back what is sent, as TCP does, until it is whole again or one side gives up. A process that dies leaves its sockets to the
kernel, which says so; a machine that dies says nothing.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simulation.cluster.time import SOCKET, NodeReactor
from tests.support.world import MS_US

WRITE_BYTES_MAX = 256 * 1024
"""With more on its way than this a transport pauses its producer."""
_END, _RESET = b"<end>", b"<reset>"
_AGAIN_US = 200 * MS_US
"""TCP sends again so long after a cut link is whole."""


class Net:
    """Links are directed, between hosts. :param source: of delays and losses."""

    def __init__(self, timeline: Any, source: random.Random) -> None:
        self.timeline = timeline
        self.random = source
        self.ports: dict[tuple[str, int], Port] = {}
        self.cut: dict[tuple[str, str], bool] = {}
        self.slow: dict[tuple[str, str], int] = {}
        self.dead_hosts: dict[str, bool] = {}
        """Machines without power."""
        self.delay_us = (100, 800)
        self.reset_odds = 0.0
        """Of each segment: that the connection ends with it."""
        self.blocked: list[Pipe] = []
        self.open: dict[Transport, None] = {}
        self.connections = self.bytes = 0

    def delay(self, source: str, target: str) -> int:
        low, high = self.delay_us
        return low + int(self.random.random() * (high - low)) + self.slow.get((source, target), 0)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self.cut

    def whole_again(self, *links: tuple[str, str]) -> None:
        """These links, or all."""
        for link in links or list(self.cut):
            self.cut.pop(link, None)
        blocked, self.blocked = self.blocked, []
        for pipe in blocked:
            pipe.go_on(int(self.random.random() * _AGAIN_US))

    def of_host(self, host: str) -> list[Transport]:
        return [transport for transport in self.open if transport.reactor.host == host]

    def process_died(self, reactor: NodeReactor) -> None:
        """The kernel closes what it left: peers hear of it, once they have got what was on its way, or part of it."""
        for transport in self.of_host(reactor.host):
            transport.vanish()
            transport.out.lose_tail(self.random)
            transport.out.send(_RESET)
        self.ports = {place: port for place, port in self.ports.items() if port.reactor is not reactor}

    def machine_died(self, reactor: NodeReactor) -> None:
        """Peers hear nothing. What they send later, once the machine is up again, is answered with a reset."""
        for transport in self.of_host(reactor.host):
            transport.vanish()
            transport.out.lose_tail(self.random, whole=True)
        self.ports = {place: port for place, port in self.ports.items() if port.reactor is not reactor}
        self.dead_hosts[reactor.host] = True


class Pipe:
    """One direction of a connection."""

    def __init__(self, net: Net, source: Transport) -> None:
        self._net = net
        self._source = source
        self._queue: deque[tuple[int, int, bytearray | bytes]] = deque()
        """(due, sent at, bytes)"""
        self._is_moving = False
        self.bytes = 0

    @property
    def target(self) -> Transport:
        return self._source.peer

    def send(self, data: bytes) -> None:
        now_us = self._net.timeline.now_us
        if self._queue and data not in (_END, _RESET):
            last = self._queue[-1]
            if last[1] == now_us and isinstance(last[2], bytearray):
                last[2].extend(data)  # one turn's writes are one segment
                self.bytes += len(data)
                return
        due_us = now_us + self._net.delay(self._source.reactor.host, self.target.reactor.host)
        self._queue.append((due_us, now_us, data if data in (_END, _RESET) else bytearray(data)))
        self.bytes += len(data)
        self._move()

    def lose_tail(self, source: random.Random, *, whole: bool = False) -> None:
        kept = 0 if whole else source.randint(0, len(self._queue))
        while len(self._queue) > kept:
            self.bytes -= len(self._queue.pop()[2])

    def go_on(self, delay_us: int) -> None:
        self._is_moving = False
        self._move(delay_us)

    def _move(self, delay_us: int = 0) -> None:
        if self._queue and not self._is_moving and not self.target.is_deaf:
            self._is_moving = True
            due_us = max(self._queue[0][0], self._net.timeline.now_us + delay_us)
            # It is the kernel that takes it in: a paused process has it in its sockets.
            self._net.timeline.at(due_us, self._arrive)

    def heard(self) -> None:
        """The target reads on."""
        self._move()

    def _arrive(self) -> None:
        net, target = self._net, self.target
        if not self._queue or target.is_deaf:
            self._is_moving = False
            return
        if net.is_cut(self._source.reactor.host, target.reactor.host):
            net.blocked.append(self)
            return
        self._is_moving = False
        _, _, data = self._queue.popleft()
        self.bytes -= len(data)
        net.bytes += len(data)
        if target.is_gone:
            if target.reactor.host not in net.dead_hosts and data != _RESET and not self._source.is_gone:
                self._queue.clear()
                target.out.send(_RESET)  # nobody knows this connection there
            self._move()
            return
        is_lost = bool(net.reset_odds) and net.random.random() < net.reset_odds
        if data == _RESET or is_lost:
            self._queue.clear()
            target.reactor.soon(0, SOCKET, target.ended, ConnectionLost("reset"))
            if is_lost:
                self._source.reactor.soon(0, SOCKET, self._source.ended, ConnectionLost("reset"))
        elif data == _END:
            target.reactor.soon(0, SOCKET, target.ended, ConnectionDone())
        else:
            target.reactor.soon(0, SOCKET, target.received, bytes(data))
            self._source.drained()
            self._move()


class Transport:
    """One end of a connection, as a protocol sees it."""

    def __init__(self, net: Net, reactor: NodeReactor, there: tuple[str, int]) -> None:
        self.net = net
        self.reactor = reactor
        self.protocol: Any = None
        self.peer: Transport
        self.out = Pipe(net, self)
        self.is_gone = self.is_deaf = False
        self._is_closing = False
        self._there = there
        self._producer: Any = None
        self._is_producer_paused = False
        net.open[self] = None

    # --- for the protocol ---
    def write(self, data: bytes) -> None:
        if self.is_gone or self._is_closing:
            return
        self.out.send(data)
        if self.out.bytes > WRITE_BYTES_MAX and self._producer is not None and not self._is_producer_paused:
            self._is_producer_paused = True
            self._producer.pauseProducing()

    def writeSequence(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def loseConnection(self) -> None:
        self._close(_END)

    def abortConnection(self) -> None:
        if not self.is_gone:
            self.out.lose_tail(self.net.random)
        self._close(_RESET, at_once=True)

    def _close(self, last: bytes, *, at_once: bool = False) -> None:
        if self.is_gone or (self._is_closing and not at_once):
            return
        self._is_closing = True
        self.out.send(last)
        self.reactor.soon(0, SOCKET, self.ended, ConnectionDone())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self.is_deaf = True

    def resumeProducing(self) -> None:
        self.is_deaf = False
        self.peer.out.heard()

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", *self._there)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.reactor.host, 0)

    def setTcpNoDelay(self, is_on: bool) -> None: ...

    def setTcpKeepAlive(self, is_on: bool) -> None: ...

    # --- for the net ---
    def connected(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)

    def received(self, data: bytes) -> None:
        if not self.is_gone and self.protocol is not None:
            self.protocol.dataReceived(data)

    def ended(self, why: Exception) -> None:
        if not self.is_gone:
            self.vanish()
            if isinstance(why, ConnectionLost):
                self.out.lose_tail(self.net.random, whole=True)
            elif not self._is_closing:
                self.out.send(_RESET)
            if self.protocol is not None:
                self.protocol.connectionLost(Failure(why))

    def vanish(self) -> None:
        self.is_gone = True
        self._producer = None
        self.net.open.pop(self, None)

    def drained(self) -> None:
        if self._is_producer_paused and self.out.bytes <= WRITE_BYTES_MAX // 2:
            self._is_producer_paused = False
            self.reactor.soon(0, SOCKET, self._resume)

    def _resume(self) -> None:
        if self._producer is not None and not self._is_producer_paused:
            self._producer.resumeProducing()


@implementer(IListeningPort)
class Port:
    def __init__(self, reactor: NodeReactor, number: int, factory: Any) -> None:
        self.reactor = reactor
        self.number = number
        self.factory = factory

    def startListening(self) -> None: ...

    def stopListening(self) -> Deferred[None]:
        self.reactor.net.ports.pop((self.reactor.host, self.number), None)
        return succeed(None)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.reactor.host, self.number)


@implementer(IStreamServerEndpoint)
class ServerEndpoint:
    def __init__(self, reactor: NodeReactor, port: int) -> None:
        self._reactor = reactor
        self._port = port

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:
        port = Port(self._reactor, self._port, protocolFactory)
        self._reactor.net.ports[self._reactor.host, self._port] = port
        return succeed(port)


@implementer(IStreamClientEndpoint)
class ClientEndpoint:
    def __init__(self, reactor: NodeReactor, address: str, timeout_s: float) -> None:
        self._reactor = reactor
        host, _, port = address.rpartition(":")
        self._place = host, int(port)
        self._timeout_s = timeout_s

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        return _Attempt(self._reactor, self._place, protocolFactory, self._timeout_s).deferred


class _Attempt:
    def __init__(self, reactor: NodeReactor, place: tuple[str, int], factory: Any, timeout_s: float) -> None:
        self.deferred: Deferred[Any] = Deferred(self._cancelled)
        self._reactor = reactor
        self._net = net = reactor.net
        self._place = place
        self._factory = factory
        self._is_over = False
        self._timer = reactor.callLater(timeout_s, self._fail, error.TimeoutError())
        net.timeline.after(net.delay(reactor.host, place[0]), self._arrive)

    def _cancelled(self, _: object) -> None:
        self._fail(CancelledError())

    def _fail(self, why: Exception) -> None:
        if not self._is_over:
            self._is_over = True
            if self._timer.active():
                self._timer.cancel()
            self.deferred.errback(why)

    def _arrive(self) -> None:
        """At the other host's kernel. What is cut or has no power does not answer: the attempt times out."""
        net, here, there = self._net, self._reactor.host, self._place[0]
        if net.is_cut(here, there) or net.is_cut(there, here) or there in net.dead_hosts:
            return
        port = net.ports.get(self._place)
        back_us = net.delay(there, here)
        if port is None:
            self._reactor.soon(back_us, SOCKET, self._fail, error.ConnectionRefusedError())
            return
        net.connections += 1
        mine = Transport(net, self._reactor, self._place)
        theirs = Transport(net, port.reactor, (here, 40_000 + net.connections))
        mine.peer, theirs.peer = theirs, mine
        port.reactor.soon(0, SOCKET, _accept, port, theirs)
        self._reactor.soon(back_us, SOCKET, self._connected, mine)

    def _connected(self, transport: Transport) -> None:
        if self._is_over or transport.is_gone:
            transport.abortConnection()
            self._fail(error.ConnectionRefusedError())
            return
        self._is_over = True
        self._timer.cancel()
        protocol = self._factory.buildProtocol(transport.getPeer())
        transport.connected(protocol)
        self.deferred.callback(protocol)


def _accept(port: Port, transport: Transport) -> None:
    if not transport.is_gone:
        transport.connected(port.factory.buildProtocol(transport.getPeer()))
