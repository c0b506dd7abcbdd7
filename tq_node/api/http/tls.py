"""HTTPS: TLS around the channel of each connection, with the certificate that counts at the moment.

The bounds of plain connections hold here too: who is slow with the handshake is reset as with a
head, answers are sent inside ``write``, what waits to be sent is counted, and an end is an end,
also for who never says his own. Of handshakes, the dearest thing that a stranger may ask for, one
is done a turn of the reactor.

Needs ``pyOpenSSL``; imported only where certificates are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IOpenSSLServerConnectionCreator,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import TLSVersion
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from tq_node.api.http.channel import ApiChannel
from tq_node.api.http.site import ApiSite
from tq_node.certificates import make_context, read_certificates, read_pair
from tq_node.reread_files import RereadFiles
from tq_node.slices import Slices

_HANDSHAKE_RECORD = 0x16
"""First byte of whoever speaks TLS (RFC 8446, section 5.1)."""
_HTTP_1_1 = b"http/1.1"


def read_context(certificate: Path, key: Path, client_authority: Path | None) -> SSL.Context:
    """A server's context: TLS 1.2 or later, and HTTP/1.1 alone.

    :param client_authority: whose certificates clients must show. None: they need not show any.
    :raises ValueError: a file is unfit."""
    authorities = None if client_authority is None else read_certificates(client_authority)
    context = make_context(read_pair(certificate, key), authorities, TLSVersion.TLSv1_2)
    context.set_alpn_select_callback(_choose)
    return context


def _choose(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return _HTTP_1_1 if _HTTP_1_1 in offered else SSL.NO_OVERLAPPING_PROTOCOLS


@implementer(IOpenSSLServerConnectionCreator)
class _Connections:
    """Makes OpenSSL's connections; open ones keep the certificate that they began with."""

    def __init__(self, files: RereadFiles[SSL.Context]) -> None:
        self._files = files

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._files.value, None)


@implementer(ISSLTransport, IPushProducer, IConsumer)
class TlsConnection(TLSMemoryBIOProtocol):
    """TLS between a socket and an ``ApiChannel``, for which it is the transport."""

    factory: HttpsFactory
    wrappedProtocol: ApiChannel
    transport: Any
    _has_begun = False
    _is_plain = False
    """The client speaks no TLS, and is told so in plain HTTP."""
    _held = b""
    """Of a handshake, while others have their turn."""
    _turn: Deferred[None] | None = None

    @property
    def bufferSize(self) -> int:
        """How much is read at once, and may wait to be sent before the channel has to pause."""
        size: int = self.transport.bufferSize
        return size

    @bufferSize.setter
    def bufferSize(self, size: int) -> None:
        self.transport.bufferSize = size

    def setTcpNoDelay(self, enabled: bool) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(enabled)

    # --- the beginning ---
    def dataReceived(self, data: bytes) -> None:
        if self._handshakeDone:
            super().dataReceived(data)
        elif self._is_plain:
            return
        elif not self._has_begun and data[0] != _HANDSHAKE_RECORD:
            self._is_plain = True
            self.wrappedProtocol.refuse_plain_http()
        else:
            self._has_begun = True
            self._held += data
            if self._turn is None:
                self.transport.pauseProducing()
                self._turn = self.factory.handshakes.turn("TLS handshake")
                self._turn.addCallbacks(self._go_on, lambda _: None)

    def _go_on(self, _: None) -> None:
        self._turn = None
        held, self._held = self._held, b""
        super().dataReceived(held)
        if not self.transport.disconnecting:
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._turn is not None:
            self._turn.cancel()
        super().connectionLost(reason)

    # --- what is sent ---
    def write(self, data: bytes) -> None:
        if self._is_plain:
            self.transport.write(data)
        else:
            super().write(data)

    # --- the end ---
    def loseConnection(self) -> None:
        """Say the end and close once all is sent, as without TLS: who never says his own would keep
        the connection open."""
        if not self._is_plain:
            super().loseConnection()
        if not self._appSendBuffer and self._producer is None:
            self.transport.loseConnection()

    def loseWriteConnection(self) -> None:
        """Say the end, and go on reading."""
        if self._handshakeDone and not self._lostTLSConnection:
            try:
                self._tlsConnection.shutdown()
            except SSL.Error:
                self.abortConnection()
                return
            self._flushSendBIO()
        self.transport.loseWriteConnection()


class HttpsFactory(TLSMemoryBIOFactory):
    """Wraps the channels of a site; may listen on several ports at once."""

    protocol = TlsConnection
    wrappedFactory: ApiSite

    def __init__(self, files: RereadFiles[SSL.Context], site: ApiSite) -> None:
        reactor = site.server.reactor
        super().__init__(_Connections(files), False, site, reactor)
        self.handshakes = Slices(reactor, on_slice=site.server.metrics.note_doing)

    def buildProtocol(self, addr: IAddress) -> TlsConnection | None:  # type: ignore[override]  # None: it is refused
        channel = self.wrappedFactory.buildProtocol(addr)
        return None if channel is None else self.protocol(self, channel)
