"""The listening side of a node: accepts connections of peers and passes their calls to the ``PeerHandler``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.internet.protocol import Factory

from tq_node.wire.acceptor import Acceptor
from tq_node.wire.errors import Stopped
from tq_node.wire.handler import PeerHandler
from tq_node.wire.handshake import LocalIdentity, PeerIdentity, Sessions
from tq_node.wire.peer import AcceptedPeer, Names


class ServerTLS(Protocol):
    """What ``tls.PeerTLS`` is to a listener. (That module needs OpenSSL, which a node without
    certificates need not have.)"""

    @property
    def names_of(self) -> Names: ...

    def server_factory(self, factory: IProtocolFactory, clock: IReactorTime) -> IProtocolFactory: ...


class AcceptingFactory(Factory):
    """:param gone: called each time a connection has ended."""

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        local: LocalIdentity,
        handler: PeerHandler,
        acceptor: Acceptor,
        tls: ServerTLS | None,
        gone: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._local = local
        self._handler = handler
        self._acceptor = acceptor
        self._names = None if tls is None else tls.names_of
        self._gone = gone
        self.connections: dict[AcceptedPeer, None] = {}
        """In the order in which they were made, so that a run of the simulator can be repeated."""

    def buildProtocol(self, addr: IAddress | None) -> AcceptedPeer:
        peer = AcceptedPeer(self._reactor, self._local, self._handler, self._acceptor, self._names, self._lost)
        self.connections[peer] = None
        return peer

    def _lost(self, peer: AcceptedPeer) -> None:
        self.connections.pop(peer, None)
        self._gone()


class PeerListener:
    """Listens from ``listen`` to ``stop``.

    :param endpoint: where, without TLS; ``tls`` puts it on top.
    :param sessions: shared with the node's ``PeerPool``.
    :param entropy: returns that many random bytes.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamServerEndpoint,
        local: LocalIdentity,
        handler: PeerHandler,
        sessions: Sessions,
        *,
        tls: ServerTLS | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._endpoint = endpoint
        self._acceptor = Acceptor(reactor, sessions, entropy)
        self._factory = AcceptingFactory(reactor, local, handler, self._acceptor, tls, self._gone)
        self._outer: IProtocolFactory = self._factory if tls is None else tls.server_factory(self._factory, reactor)
        self._port: IListeningPort | None = None
        self._emptied: Deferred[None] | None = None

    def listen(self) -> Deferred[IListeningPort]:
        """The port; for TCP and Unix sockets it is there at once. Fails with ``CannotListenError``."""

        def listening(port: IListeningPort) -> IListeningPort:
            self._port = port
            return port

        return self._endpoint.listen(self._outer).addCallback(listening)

    async def stop(self) -> None:
        """Stop listening, close all connections once what was written to them is sent, and wait for their end."""
        port, self._port = self._port, None
        if port is not None:
            stopped: Any = port.stopListening()
            if isinstance(stopped, Deferred):
                await stopped
        self._acceptor.stop()
        for connection in list(self._factory.connections):
            connection.give_up(Stopped("the node stops"), flush=True)
        if self._factory.connections:
            self._emptied = Deferred()
            await self._emptied

    @property
    def peers(self) -> list[PeerIdentity]:
        """Identities of the connected peers, one for each lane."""
        return self._acceptor.peers

    @property
    def refusals(self) -> dict[str, int]:
        """Connections that ended before they were authenticated, by the code of the reason."""
        return dict(self._acceptor.refusals)

    def _gone(self) -> None:
        if self._emptied is not None and not self._factory.connections:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)
