"""From an address to an authenticated connection, or to the reason why not. Keeps count of all that is open."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from tq_node.wire import bounds
from tq_node.wire.commands import Lane
from tq_node.wire.dialled_peer import DialledPeer, Target
from tq_node.wire.errors import PeerUnreachable, Stopped
from tq_node.wire.handshake import LocalIdentity, Sessions

if TYPE_CHECKING:  # it needs OpenSSL, which a node without certificates need not have
    from tq_node.wire.tls import PeerTLS

EndpointOf = Callable[[str, float], IStreamClientEndpoint]
"""From an address and a time-out in seconds."""


class Connector:
    """:param endpoint_of: plain endpoints; ``tls`` goes on top of them."""

    def __init__(
        self,
        reactor: IReactorTime,
        local: LocalIdentity,
        sessions: Sessions,
        endpoint_of: EndpointOf,
        tls: PeerTLS | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.reactor = reactor
        self.local = local
        self.sessions = sessions
        self._endpoint_of = endpoint_of
        self._tls = tls
        self._entropy = entropy
        self._open: set[DialledPeer] = set()
        self._emptied: Deferred[None] | None = None

    def now_ms(self) -> int:
        return int(self.reactor.seconds() * 1000)

    async def open(self, target: Target, lane: Lane) -> DialledPeer:
        """Dial and shake hands. May be cancelled; whatever happens, no connection is left behind but the one returned.

        :raises ConnectError: Twisted's, ``ConnectionRefusedError`` among them. :raises WireRefusal: of either side.
        :raises ValueError: the address is none.
        """
        endpoint = self._endpoint_of(target.address, bounds.CONNECT_S_MAX)
        if self._tls is not None:
            endpoint = self._tls.client_endpoint(endpoint)
        connection = await endpoint.connect(_DiallingFactory(self, target, lane))
        assert isinstance(connection, DialledPeer)
        try:
            await connection.shake_hands()
        except Exception as why:
            ended = connection.ended
            connection.give_up(Stopped(f"handshake: {why}"))
            if ended is not None:  # a call that found the connection over knows less than the connection
                raise ended from why
            raise
        return connection

    async def refused_at(self, address: str) -> tuple[int, ...]:
        """When the port refused two dials, ``bounds.PROBE_APART_S`` apart, in monotonic ms; empty if it did not (R5a)."""
        refused: list[int] = []
        for _ in range(2):
            if refused:
                await deferLater(self.reactor, bounds.PROBE_APART_S)
            try:
                probe = await self._endpoint_of(address, bounds.PROBE_S_MAX).connect(_ProbingFactory())
            except PortRefused:
                refused.append(self.now_ms())
            except Exception:  # no route, a time-out, a name that does not resolve: none of it is evidence
                return ()
            else:
                assert isinstance(probe, _Probe)
                probe.close()
                return ()
        return tuple(refused)

    def build(self, target: Target, lane: Lane) -> DialledPeer:
        names = None if self._tls is None else self._tls.names_of
        connection = DialledPeer(
            self.reactor, self.local, target, lane, self.sessions, self._entropy, names, self._gone
        )
        self._open.add(connection)
        return connection

    async def close_all(self) -> None:
        """End every connection, and wait until each is gone."""
        for connection in list(self._open):
            connection.give_up(Stopped("the node stops"), flush=True)
            if connection.transport is None and connection.ended is None:
                self._open.discard(connection)  # it was made for an attempt that came to nothing
        if self._open:
            self._emptied = Deferred()
            await self._emptied

    def _gone(self, connection: DialledPeer) -> None:
        self._open.discard(connection)
        if self._emptied is not None and not self._open:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)


class _DiallingFactory(Factory):
    noisy = False

    def __init__(self, dialling: Connector, target: Target, lane: Lane) -> None:
        self._dialling = dialling
        self._target = target
        self._lane = lane

    def buildProtocol(self, addr: IAddress | None) -> DialledPeer:
        return self._dialling.build(self._target, self._lane)


class _ProbingFactory(Factory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> _Probe:
        return _Probe()


class _Probe(Protocol):
    def close(self) -> None:
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()


def unreachable(name: str) -> PeerUnreachable:
    return PeerUnreachable(f"node {name} is not connected")
