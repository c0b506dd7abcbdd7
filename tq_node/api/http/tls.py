"""HTTPS: TLS around the channel of each connection, with the certificate that counts at the moment.

The bounds of plain connections hold here too: who is slow with the handshake is reset as with a
head, answers are sent inside ``write``, what waits to be sent is counted, and an end is an end,
also for who never says his own. Of handshakes, the dearest thing that a stranger may ask for, some
are done a turn of the reactor.

Needs ``pyOpenSSL``; imported only where certificates are given."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IOpenSSLServerConnectionCreator,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import TLSVersion
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from tq_node import limits
from tq_node.api.http.channel import ApiChannel
from tq_node.api.http.site import ApiSite
from tq_node.certificates import make_context, read_certificates, read_pair
from tq_node.observe.metrics import Metrics
from tq_node.reread_files import RereadFiles

_HANDSHAKE_RECORD = 0x16
"""First byte of whoever speaks TLS (RFC 8446, section 5.1)."""
_DATA_RECORD = 0x17
_TLS_MAJOR = 3
"""Second byte of every record, of each version."""
_HEAD_BYTES = 5
_RECORD_BYTES_MAX = 2**14
"""Of what a record carries."""
_RECORD_BYTES_MORE = 512
"""More than it takes to carry that."""
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


class _Boundaries:
    """Where records of TLS end in what arrives (RFC 8446, section 5.1)."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""
        """Of a record, as far as it is there; empty within one."""
        self._left = 0
        """Bytes of the record that are still to come."""

    def is_one_record(self, data: bytes) -> bool:
        """Go on by ``data``; whether that is one record of the client's bytes, from its first byte
        to its last."""
        if not (self._left or self._head) and len(data) > _HEAD_BYTES and data[0] == _DATA_RECORD:
            size = _HEAD_BYTES + (data[3] << 8 | data[4])
            if size == len(data):
                return True
        self._go_on(data)
        return False

    def _go_on(self, data: bytes) -> None:
        data = self._head + data
        self._head = b""
        at = self._left
        while at + _HEAD_BYTES <= len(data):
            at += _HEAD_BYTES + (data[at + 3] << 8 | data[at + 4])
        if at <= len(data):
            self._head, self._left = data[at:], 0
        else:
            self._left = at - len(data)


def _has_record(data: bytes) -> bool:
    """Whether the first record is whole, or none that could become so."""
    if len(data) < _HEAD_BYTES:
        return False
    size = data[3] << 8 | data[4]
    return len(data) >= _HEAD_BYTES + size or size > _RECORD_BYTES_MAX + _RECORD_BYTES_MORE or data[1] != _TLS_MAJOR


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
    _is_answered = False
    """The client's hello was, which is most of the work of a handshake."""
    _held = b""
    """Of a handshake, while others have their turn."""
    _waits = False
    """It is among ``Handshakes``."""

    def __init__(self, factory: HttpsFactory, channel: ApiChannel) -> None:
        super().__init__(factory, channel)
        self._boundaries = _Boundaries()

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
            if self._boundaries.is_one_record(data) and not self._appSendBuffer:
                self._read_one(data)
            else:
                super().dataReceived(data)
        elif self._is_plain:
            return
        elif not self._has_begun and data[0] != _HANDSHAKE_RECORD:
            self._is_plain = True
            self.wrappedProtocol.refuse_plain_http()
        else:
            self._has_begun = True
            self._held += data
            if self._is_answered:
                self._shake_hands()  # its end is cheap, and who waits with it would be taken for one who left
            elif not self._waits and _has_record(self._held):
                self._waits = True
                self.transport.pauseProducing()
                self.wrappedProtocol.note_handshake(is_due=False)
                self.factory.handshakes.add(self)

    def _checkHandshakeStatus(self) -> None:
        # Inherited, and called with the connection too, when a server has nothing to say yet: that
        # would take buffers for whoever never says anything.
        if self._has_begun:
            super()._checkHandshakeStatus()

    def have_turn(self) -> None:
        """Answer the client's hello, unless it is gone."""
        if not self._waits:
            return
        self._waits = False
        self.wrappedProtocol.note_handshake(is_due=True)
        self._shake_hands()
        if not self.transport.disconnecting:
            self.transport.resumeProducing()

    def _shake_hands(self) -> None:
        held, self._held = self._held, b""
        self._boundaries.is_one_record(held)
        super().dataReceived(held)
        if self._handshakeDone:
            self.factory.ended(self)
        elif not self._lostTLSConnection:
            self.factory.begun(self)

    def _flushSendBIO(self) -> None:
        try:
            said = self._tlsConnection.bio_read(2 * _RECORD_BYTES_MAX)
        except SSL.WantReadError:
            return  # there is nothing
        self._is_answered = True
        self.transport.write(said)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._waits = False
        self.factory.ended(self)
        # Else the inherited one reads on, for the error that this is: its traceback would hold
        # itself, and all of the connection, until the collector comes by, which it seldom does.
        self._lostTLSConnection = True
        super().connectionLost(reason)
        self._producer = None  # it is the channel, whose transport this is

    def _read_one(self, data: bytes) -> None:
        """As the inherited one, for a record that comes alone, as nearly all requests do: what is
        behind it need not be looked for, and nothing has to be sent for it."""
        tls = self._tlsConnection
        tls.bio_write(data)
        try:
            said = tls.recv(_RECORD_BYTES_MAX)
        except SSL.WantReadError:
            self._flushSendBIO()  # not the client's bytes, but of TLS itself
        except SSL.ZeroReturnError:
            self._shutdownTLS()
            self._tlsShutdownFinished(None)
        except SSL.Error:
            self._tlsShutdownFinished(Failure())
        else:
            if not self._aborted:
                self.wrappedProtocol.dataReceived(said)

    # --- what is sent ---
    def write(self, data: bytes) -> None:
        if self._is_plain:
            self.transport.write(data)
        elif len(data) > _RECORD_BYTES_MAX or self._appSendBuffer or self.disconnecting or self._lostTLSConnection:
            super().write(data)
        elif data:
            # As the inherited one, for what fits into one record.
            tls = self._tlsConnection
            try:
                tls.send(data)
            except SSL.Error:  # more of the handshake has to come first, or it is over
                super().write(data)
            else:
                self.transport.write(tls.bio_read(len(data) + _RECORD_BYTES_MORE))

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


def give_memory_back() -> None:
    """Have the C library give the system what OpenSSL has freed: the small blocks of many
    connections lie among others, and it keeps all of them by itself."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


class Handshakes:
    """Those that wait for their turn: some milliseconds of them each turn of the reactor, but one
    at least, so that a thousand hellos at once hold nobody up."""

    def __init__(self, reactor: IReactorTime, metrics: Metrics, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._reactor = reactor
        self._metrics = metrics
        self._waiting: deque[TlsConnection] = deque()
        self.now_s = now_s

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: TlsConnection) -> None:
        """Call its ``have_turn`` in a later turn."""
        if not self._waiting:
            self._reactor.callLater(0.0, self._run)
        self._waiting.append(connection)

    def _run(self) -> None:
        self._metrics.note_doing("TLS handshake")
        until_s = self.now_s() + limits.SLICE_MS / 1000
        while True:
            self._waiting.popleft().have_turn()
            if not self._waiting:
                return
            if self.now_s() >= until_s:
                break
        self._reactor.callLater(0.0, self._run)


class HttpsFactory(TLSMemoryBIOFactory):
    """Wraps the channels of a site; may listen on several ports at once."""

    protocol = TlsConnection
    wrappedFactory: ApiSite

    def __init__(self, files: RereadFiles[SSL.Context], site: ApiSite) -> None:
        reactor = site.server.reactor
        super().__init__(_Connections(files), False, site, reactor)
        self.handshakes = Handshakes(reactor, site.server.metrics)
        self._reactor = reactor
        self._begun: dict[TlsConnection, None] = {}
        """Handshakes that have begun and not ended, in order."""
        self._most = 0
        """Connections at once since memory was last given back."""
        self._unsent_bytes = 0
        """What those that closed since then have not sent."""

    def buildProtocol(self, addr: IAddress) -> TlsConnection | None:  # type: ignore[override]  # None: it is refused
        channel = self.wrappedFactory.buildProtocol(addr)
        return None if channel is None else self.protocol(self, channel)

    # --- handshakes ---
    def begun(self, connection: TlsConnection) -> None:
        """One goes on, and has taken buffers. May be called again."""
        self._begun.setdefault(connection)
        if len(self._begun) > limits.HANDSHAKES_BEGUN_MAX:
            oldest = next(iter(self._begun))
            del self._begun[oldest]
            oldest.abortConnection()

    def ended(self, connection: TlsConnection) -> None:
        """One is done, or its connection is lost. May be called again."""
        self._begun.pop(connection, None)

    # --- memory ---
    def registerProtocol(self, p: TlsConnection) -> None:
        super().registerProtocol(p)
        self._most = max(self._most, len(self.protocols))

    def unregisterProtocol(self, p: TlsConnection) -> None:
        super().unregisterProtocol(p)
        # In records, which are small blocks; without TLS it is as large as the answers are.
        self._unsent_bytes += getattr(p.transport, "_tempDataLen", 0) + len(getattr(p.transport, "dataBuffer", b""))
        has_many = self._most - len(self.protocols) >= limits.TLS_CLOSED_MANY
        if has_many or self._unsent_bytes >= limits.TLS_UNSENT_MANY_BYTES:
            self._most, self._unsent_bytes = len(self.protocols), 0
            self._reactor.callLater(limits.TLS_FREE_S, give_memory_back)
