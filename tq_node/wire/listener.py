"""The listening side: accepts connections of peers and passes their calls to ``PeerHandler``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.internet.protocol import Factory

from tq_node.wire.acceptor import Acceptor
from tq_node.wire.authentication import Authentication
from tq_node.wire.errors import Stopped
from tq_node.wire.handler import PeerHandler
from tq_node.wire.handshake import PeerIdentity
from tq_node.wire.peer import AcceptedPeer


class AcceptingFactory(Factory):
    """Makes the listener's protocols; ``gone`` is called each time a connection has ended."""

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        authentication: Authentication,
        handler: PeerHandler,
        acceptor: Acceptor,
        gone: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._authentication = authentication
        self._handler = handler
        self._acceptor = acceptor
        self._gone = gone
        self.connections: dict[AcceptedPeer, None] = {}
        """In the order in which they were made, so that a run of the simulator can be repeated."""

    def buildProtocol(self, addr: IAddress | None) -> AcceptedPeer:
        peer = AcceptedPeer(self._reactor, self._authentication, self._handler, self._acceptor, self._lost)
        self.connections[peer] = None
        return peer

    def _lost(self, peer: AcceptedPeer) -> None:
        self.connections.pop(peer, None)
        self._gone()


class PeerListener:
    """Listens at ``endpoint``, without TLS; shares ``authentication`` with the ``Connector``."""

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamServerEndpoint,
        authentication: Authentication,
        handler: PeerHandler,
    ) -> None:
        self._endpoint = endpoint
        self._acceptor = Acceptor(reactor, authentication.sessions)
        self._factory = AcceptingFactory(reactor, authentication, handler, self._acceptor, self._gone)
        tls = authentication.tls
        if tls is not None:
            tls.on_change.append(self._look_at_certificates)
        self._outer: IProtocolFactory = self._factory if tls is None else tls.server_factory(self._factory, reactor)
        self._port: IListeningPort | None = None
        self._emptied: Deferred[None] | None = None

    def listen(self) -> Deferred[IListeningPort]:
        """The port, for TCP and Unix sockets at once. Fails with ``CannotListenError``."""

        def listening(port: IListeningPort) -> IListeningPort:
            self._port = port
            return port

        return self._endpoint.listen(self._outer).addCallback(listening)

    async def stop(self) -> None:
        """Stop listening; close all connections once what they wrote is sent; await the end."""
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

    def _look_at_certificates(self) -> None:
        for connection in list(self._factory.connections):
            connection.look_at_certificate()

    def _gone(self) -> None:
        if self._emptied is not None and not self._factory.connections:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)
