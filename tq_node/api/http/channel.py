"""One connection: ``twisted.web``'s channel with bounds, errors in our form, and the fast path.

Bytes go to ``FastPath`` first, while nothing of an earlier request is left; what it does not take
goes to ``twisted.web``. A request behind a fast one is read when that one is answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from tq_node import limits
from tq_node.api.access.access import UNCHECKED, Caller
from tq_node.api.http.connections import address_of, host_of
from tq_node.api.http.exchange import request_id_of
from tq_node.api.http.fast_path import FastRequest, NoRequest, PlainRequest
from tq_node.api.http.lifecycle import RequestLifecycle
from tq_node.api.http.load_shedding import QueuedRefusal
from tq_node.api.http.request import ApiRequest
from tq_node.api.http.request_head import HEAD_BYTES_MAX, LENGTH_DIGITS_MAX
from tq_node.api.http.routing import Routing
from tq_node.api.http.server_state import ServerState
from tq_node.api.http.token_quotas import OverQuota
from tq_node.api.problems import closing_answer, refused_submit_answer
from tq_node.errors import Busy, Malformed, TaskQueueError

_LINE_STARTS = frozenset(
    bytes([byte]) for byte in b"!#$%&'*+-.^_`|~0123456789\rABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
"""Bytes that a line of a head may begin with."""
_is_refused_line = re.compile(
    rb"[ \t]|transfer-encoding:(?![ \t]*chunked[ \t]*\Z)|content-length:[ \t]*[0-9]{%d}" % (LENGTH_DIGITS_MAX + 1),
    re.IGNORECASE,
).match
"""A folded line (RFC 9112 section 5.2), which two readers may take for two headers; a transfer
coding that is not known here; a length that ``int`` would not read."""
_REFUSED_LINE_STARTS = frozenset(bytes([byte]) for byte in b" \ttTcC")
_CR, _LF = b"\r\n"
"""As numbers: ``bytes in bytes`` first raises and drops a TypeError, for the first could be one."""
_line_received = http.HTTPChannel.lineReceived
PIPELINED_BYTES_MAX = 16_384
"""Bytes read of the requests behind a fast one before it is answered."""


@implementer(IHandshakeListener)
class ApiChannel(http.HTTPChannel):
    """One client's connection, a ``Connection`` of ``Connections``."""

    server: ServerState
    routing: Routing
    transport: Any
    maxHeaders = 100
    totalHeadersSize = HEAD_BYTES_MAX
    _abort: IDelayedCall | None = None
    _is_between_requests = True
    """Nothing of an earlier request is left, so the next bytes go to the fast path."""
    _begun = b""
    """Of a plain request, up to where it has arrived."""
    _begun_body_bytes = 0
    """What ``_begun`` counts in ``ServerState.bodies_held_bytes``."""
    _fast: FastRequest | QueuedRefusal | None = None
    """The fast request, or the refusal of one, that is not answered yet."""
    _pipelined = b""
    """Bytes behind the fast request."""
    _unread = b""
    """Bytes behind a request of ``twisted.web``, while the transport is full."""
    host = ""
    address = ""
    """Stands for the caller where it shows no token; no name of a token is like it."""
    is_secure = False
    """TLS is below."""
    caller = UNCHECKED
    """Who made the last request that was within its quotas: the connection counts as its."""
    _uncounted_caller: Caller | None = UNCHECKED
    """``caller``, unless its requests are counted."""
    who = ""
    """As in ``Exchange``, of ``caller``."""
    last_active = 0
    """``Connections.activity`` when the last request was whole."""
    only_probes = False
    """It has one of the places for health probes: all others were taken."""
    unsent_bytes = 0
    """Given to the transport since it last was empty."""
    _send_position: object = None
    """How far the transport had sent when last looked at, ..."""
    _send_position_s = 0.0
    """... and since when."""
    _arriving_s = 0.0
    """When the first byte of the request arrived."""
    _arrived_bytes = 0
    _has_head = False
    _is_refused = False
    """A final answer to what is no request was written: nothing more is read."""
    _linger: IDelayedCall | None = None
    _idle_since_s = 0.0
    """When the time began for which the connection may be idle, ..."""
    _idle_call: IDelayedCall | None = None
    """... looked at when this fires: it is not moved with each request."""

    def connectionMade(self) -> None:
        connections = self.server.connections
        self.host = host_of(self.transport.getPeer())
        self.address = self.who = address_of(self.host)
        self.only_probes = connections.is_full
        self._is_between_requests = not self.only_probes
        connections.add(self)
        self.is_secure = ISSLTransport.providedBy(self.transport)
        self.transport.bufferSize = limits.UNSENT_UNCOUNTED_BYTES
        super().connectionMade()
        if self.is_secure:
            self._note_arrival(0, has_head=False)

    def note_handshake(self, *, is_due: bool) -> None:
        """The handshake waits for the client from now on, or for this node."""
        if is_due:
            self._note_arrival(0, has_head=False)
        else:
            self.server.connections.arriving.discard(self)

    def handshakeCompleted(self) -> None:
        """TLS has begun: from now on the connection may be idle, as one without."""
        self.server.connections.arriving.discard(self)
        self.resetTimeout()

    def refuse_plain_http(self) -> None:
        """Say in plain HTTP, which the client speaks, that the port is for HTTPS; and close."""
        self._refuse_and_end(Malformed("this port is for HTTPS, and what came is no TLS: ask https://"), None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._idle_call is not None:
            self._idle_call.cancel()
            self._idle_call = None
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._take_begun()
        super().connectionLost(reason)
        self.server.connections.remove(self)
        self.server.quotas.give_back("connections", self.caller)
        self.caller = UNCHECKED

    # --- the fast path ---
    def dataReceived(self, data: bytes) -> None:
        if not self._is_between_requests:
            self._read_lines(data)
            return
        if self._fast is not None or self._waitingForTransport:
            self._pipelined += data
            if len(self._pipelined) > PIPELINED_BYTES_MAX:
                self._networkProducer.pauseProducing()
            return
        if self._begun:
            data = self._take_begun() + data
        server = self.server
        plain = self.routing.fast_path.read(data)
        if (
            isinstance(plain, PlainRequest)
            and (
                (server.in_flight < server.calm_in_flight and server.bodies_held_bytes <= server.calm_bytes)
                or server.has_room(len(plain.body))
            )
            and (plain.caller is self._uncounted_caller or self._over_quota(plain.caller) is None)
        ):
            connections = server.connections
            connections.activity = self.last_active = connections.activity + 1
            if connections.arriving:
                connections.arriving.discard(self)
            ticket = None
            if plain.task_id is None:
                ticket = server.submit_limit.enter(self.who)
                if ticket is None:
                    self._refuse_submit(plain)
                    return
            self._fast = request = FastRequest(self, plain, ticket)
            self.requests.append(request)
            request.call(plain.route.handler)
        elif plain is NoRequest.INCOMPLETE and server.has_room(body_bytes := len(data) - data.index(b"\r\n\r\n") - 4):
            self.resetTimeout()
            self._begun = data
            self._begun_body_bytes = body_bytes
            server.bodies_held_bytes += body_bytes
            self._note_arrival(0, has_head=True)
            self._arrived_bytes = body_bytes
        else:
            self._is_between_requests = False
            self._read_lines(data)

    def _refuse_submit(self, plain: PlainRequest) -> None:
        """Refuse a submit for want of room; cheap, for most requests of an overload end here."""

        def send() -> None:
            request_id = request_id_of(plain.head.headers.get(b"x-request-id"))
            self.transport.write(refused_submit_answer(server, request_id))
            server.metrics.http(plain.route.path, Busy.status, 0.0)
            if self._fast is not None or server.closing:
                self.fast_request_done()

        self.resetTimeout()
        server = self.server
        self._fast = server.shedder.refuse(send)
        if self._fast is not None:
            self.requests.append(self._fast)

    def _take_begun(self) -> bytes:
        begun, self._begun = self._begun, b""
        self.server.bodies_held_bytes -= self._begun_body_bytes
        self._begun_body_bytes = 0
        return begun

    def fast_request_done(self) -> None:
        """The fast request is answered: read what arrived behind it."""
        self._fast = None
        self.requests.clear()
        server = self.server
        if server.closing:
            self.loseConnection()
            return
        self._idle_since_s = server.reactor.seconds()  # as resetTimeout does
        if self._pipelined and not self._waitingForTransport:
            pipelined, self._pipelined = self._pipelined, b""
            self._networkProducer.resumeProducing()
            self.dataReceived(pipelined)

    def requestDone(self, request: http.Request) -> None:
        connections = self.server.connections
        connections.activity = self.last_active = connections.activity + 1
        super().requestDone(request)
        if self.persistent and not self.requests:
            rest = self.clearLineBuffer()
            if rest:
                self.setLineMode(rest)
            elif not self._unread:
                self._is_between_requests = not self.only_probes

    # --- answers that are not sent yet ---
    def write(self, data: bytes) -> None:
        self.transport.write(data)
        if self._waitingForTransport:
            self.server.connections.note_unsent(self, len(data))

    def writeSequence(self, iovec: Sequence[bytes]) -> None:
        self.transport.writeSequence(iovec)
        if self._waitingForTransport:
            self.server.connections.note_unsent(self, sum(map(len, iovec)))

    def setLineMode(self, extra: bytes = b"") -> object:
        if extra and self._waitingForTransport:
            # The next request is not read before the answers to earlier ones are sent.
            self._unread += extra
            extra = b""
        return super().setLineMode(extra)

    def resumeProducing(self) -> None:
        """The transport has given all its bytes to the system: read the requests behind."""
        self.server.connections.note_sent(self)
        super().resumeProducing()
        if self._fast is not None:
            return
        if self._pipelined:
            pipelined, self._pipelined = self._pipelined, b""
            self.dataReceived(pipelined)
        elif self._unread:
            unread, self._unread = self._unread, b""
            self.setLineMode(unread)

    def is_stalled(self, now_s: float) -> bool:
        """Whether the peer has taken no byte for ``limits.UNSENT_STALL_S``."""
        transport = self.transport
        position = getattr(transport, "offset", 0), len(getattr(transport, "dataBuffer", b""))
        if position != self._send_position:
            self._send_position, self._send_position_s = position, now_s
        return now_s - self._send_position_s >= limits.UNSENT_STALL_S

    # --- a request that arrives piece by piece ---
    @property
    def in_flight(self) -> int:
        """Requests whose handler was called and that are not answered."""
        return sum(isinstance(one, RequestLifecycle) and one.in_flight for one in self.requests)

    @property
    def body_bytes(self) -> int:
        """Of the bodies of its requests."""
        bodies = sum(one.held_bytes for one in self.requests if isinstance(one, RequestLifecycle))
        return bodies + self._begun_body_bytes

    @property
    def is_idle(self) -> bool:
        """No handler works for it."""
        return self._fast is None and not self._handlingRequest

    def _note_arrival(self, size: int, *, has_head: bool) -> None:
        """``size`` bytes of a request have arrived that is not whole."""
        connections = self.server.connections
        if self not in connections.arriving:
            connections.arriving.add(self)
            connections.watch()
            self._arriving_s, self._arrived_bytes = self.server.reactor.seconds(), 0
        self._arrived_bytes += size
        self._has_head = has_head

    def is_too_slow(self, now_s: float) -> bool:
        """Whether its request arrives too slowly: the head within ``limits.HTTP_HEAD_S``, then the
        body. The body has to come at ``limits.HTTP_BODY_BYTES_S_MIN``."""
        over_s = now_s - self._arriving_s - limits.HTTP_HEAD_S
        if over_s < 0:
            return False
        return not self._has_head or self._arrived_bytes < over_s * limits.HTTP_BODY_BYTES_S_MIN

    # --- twisted.web, and what it accepts against RFC 9112 ---
    def _read_lines(self, data: bytes) -> None:
        """Let ``twisted.web`` read, and refuse at once what can't become a line any more. That is
        TLS at this port, or lines that end without CR. Their senders wait for an answer, and would
        until the connection has been idle for too long."""
        if self._unread:
            self._unread += data
            return
        if self._is_refused:
            return
        super().dataReceived(data)
        connections = self.server.connections
        if (
            self._handlingRequest
            or self._is_between_requests
            or self._is_refused
            or not (self.requests or self._buffer)
        ):
            connections.arriving.discard(self)
        else:
            self._note_arrival(len(data), has_head=not self.line_mode)
        if self._busyReceiving or self._is_refused or not self.line_mode:
            return
        rest = self._buffer  # of LineReceiver: a line that isn't whole
        if rest and (_LF in rest or rest[:1] not in _LINE_STARTS):
            self._respondToBadRequestAndDisconnect()

    def lineReceived(self, line: bytes) -> None:
        # Twisted 25.5 lets a bare CR or LF pass.
        is_refused = line[:1] in _REFUSED_LINE_STARTS and _is_refused_line(line)
        if is_refused or _CR in line or _LF in line:
            self._respondToBadRequestAndDisconnect()
        else:
            _line_received(self, line)

    def allHeadersReceived(self) -> None:
        request: ApiRequest = self.requests[-1]
        head = self.routing.heads.judge(
            self._command, self._path, self._version, request.requestHeaders, self.is_secure
        )
        self._path = head.target
        request.fields = head.fields
        request.authority = head.authority
        request.refusal = head.refusal or self._admit(request, head.target)
        if isinstance(head.refusal, Malformed):
            # The sender may mean another request by this head: nothing behind it is read.
            self.server.metrics.http(self.routing.name_of(head.target), head.refusal.status, 0.0)
            self._refuse_and_end(head.refusal, request.getHeader(b"x-request-id"))
        else:
            super().allHeadersReceived()

    def _admit(self, request: ApiRequest, target: bytes) -> TaskQueueError | None:
        """Note who calls; returns why it may not, if so."""
        request.access = self.routing.access_of(self._command, target)
        refusal = request.refusal_now()
        request.caller = self.server.authenticator.identified(request.getHeader(b"authorization"))
        request.who = request.caller.name or self.address
        if (
            refusal is None
            and request.caller is not self._uncounted_caller
            and target.partition(b"?")[0] not in self.routing.always_served
        ):
            return self._over_quota(request.caller)
        return refusal

    def _over_quota(self, caller: Caller) -> OverQuota | None:
        """Count a request, and whose the connection is; returns why that is too much, if it is."""
        quotas = self.server.quotas
        if caller is not self.caller:
            if caller.name != self.caller.name:
                over = quotas.hold("connections", caller)
                if over is not None:
                    return over
                quotas.give_back("connections", self.caller)
            self.caller = caller
            self._uncounted_caller = caller if caller.quotas.requests is None else None
            self.who = caller.name or self.address
        return quotas.take_request(caller)

    def checkPersistence(self, request: http.Request, version: bytes) -> bool:
        if version != b"HTTP/1.1":
            return False
        if b"connection" not in request.fields:  # type: ignore[attr-defined]  # the site makes ours
            return True
        values = request.requestHeaders.getRawHeaders(b"connection")
        return b"close" not in [option.strip(b" \t").lower() for value in values or () for option in value.split(b",")]

    def _send100Continue(self) -> None:
        # Not public in twisted.web either. No 100 after a final answer, nor for a body of no bytes.
        if self.length != 0 and self.requests[-1].wants_body:
            super()._send100Continue()

    # --- the end ---
    def refuse(self, error: TaskQueueError, request_id: bytes) -> None:
        """Write a whole answer with ``Connection: close``, outside of a request. Doesn't close."""
        self.transport.write(closing_answer(self.server, error, request_id))

    def close_in_order(self) -> None:
        """Close now if no request has begun; else its answer does, by ``ServerState.closing``."""
        if not self.requests:
            self.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def resetTimeout(self) -> None:
        self._idle_since_s = self.server.reactor.seconds()

    def setTimeout(self, period: int | None) -> int | None:
        before, self.timeOut = self.timeOut, period
        if period is not None:
            self._idle_since_s = self.server.reactor.seconds()
            if self._idle_call is None:
                self._idle_call = self.callLater(period, self._look_idle)
        return before

    def _look_idle(self) -> None:
        """Close the connection if idle for ``timeOut``; else look again when it may have been."""
        self._idle_call = None
        if self.timeOut is None:
            return  # a request is answered: ``setTimeout`` follows
        left_s = self._idle_since_s + self.timeOut - self.server.reactor.seconds()
        if left_s > 0:
            self._idle_call = self.callLater(left_s, self._look_idle)
        else:
            self.timeoutConnection()

    def timeoutConnection(self) -> None:
        if self._fast is not None:
            # The client is not idle: it waits for the node.
            self.setTimeout(self.timeOut)
            return
        # The inherited one logs a line for each; that a client left an idle connection is no news.
        self._abort = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Not public in twisted.web: were it renamed one day, clients would get its bare 400.
        self._refuse_and_end(Malformed("this is not a valid HTTP/1.1 request"), None)

    def _refuse_and_end(self, error: TaskQueueError, request_id: bytes | None) -> None:
        """Answer with the error, read no further, and close."""
        if self._is_refused:
            return
        self._is_refused = True
        self.length = None
        self.clearLineBuffer()
        self.setRawMode()
        if self.requests and not self.requests[-1].wants_body:
            self.loseConnection()  # its body was no longer wanted, and is none: the answer is on its way
            return
        self.refuse(error, request_id_of(request_id))
        self._close_after_linger()

    def _close_after_linger(self) -> None:
        """Send the end of the stream, discard for ``linger_s`` what still arrives, then close. To
        close at once would reset the connection, and the sender would never see the answer."""
        close_write = getattr(self.transport, "loseWriteConnection", self.loseConnection)
        close_write()
        self._linger = self.callLater(self.server.settings.linger_s, self.loseConnection)
