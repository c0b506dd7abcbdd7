"""One connection: ``twisted.web``'s channel with bounds, errors in our form, and the short way for hot requests (``hot``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http

from tq_node import limits
from tq_node.api.http.connections import host_of
from tq_node.api.http.exchange import request_id_of
from tq_node.api.http.fast_path import FastRequest, Found
from tq_node.api.http.load_shedding import TurnedAway
from tq_node.api.http.request_head import HEAD_BYTES_MAX, LENGTH_DIGITS_MAX
from tq_node.errors import Busy, Malformed, TaskQueueError

if TYPE_CHECKING:
    from tq_node.api.http.request import ApiRequest
    from tq_node.api.http.site import ApiSite

_BEGINS_LINE = frozenset(
    bytes([byte]) for byte in b"!#$%&'*+-.^_`|~0123456789\rABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_is_refused_line = re.compile(
    rb"[ \t]|transfer-encoding:(?![ \t]*chunked[ \t]*\Z)|content-length:[ \t]*[0-9]{%d}" % (LENGTH_DIGITS_MAX + 1),
    re.IGNORECASE,
).match
"""A folded line (RFC 9112 section 5.2): two readers may take two headers for it. A coding that is not known here, and a length
that ``int`` would not read."""
BEHIND_BYTES_MAX = 16_384
"""So much of the requests behind a hot one is read before it is answered."""


class ApiChannel(http.HTTPChannel):
    """Bounds the headers; says what is wrong, in our form, with what is not HTTP.

    The short way is open only between requests: at the start, and where nothing is left of what came before.
    """

    site: ApiSite
    maxHeaders = 100
    totalHeadersSize = HEAD_BYTES_MAX
    _abort: IDelayedCall | None = None
    _is_between = True
    _begun = b""
    _begun_bytes = 0
    _hot: FastRequest | TurnedAway | None = None
    _behind = b""
    _held = b""
    """Requests behind one that was answered the long way, while there is no room for further answers."""
    host = ""
    active = 0
    """The site's count of requests when the last one of this channel was whole."""
    only_probes = False
    """All other places are taken: this one is for whoever asks for health."""
    unsent_bytes = 0
    _taken: object = None
    _taken_s = 0.0
    _arriving_s = 0.0
    _arrived_bytes = 0
    _has_head = False
    _is_refused = False
    _linger: IDelayedCall | None = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        connections = self.site.connections
        self.host = host_of(self.transport.getPeer())
        self.only_probes = connections.is_full
        self._is_between = not self.only_probes
        connections.made(self)
        cast("Any", self.transport).bufferSize = limits.UNSENT_UNCOUNTED_BYTES
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._let_go_of_begun()
        super().connectionLost(reason)
        self.site.channel_gone(self)

    # --- the short way ---
    def dataReceived(self, data: bytes) -> None:
        if not self._is_between:
            self._read_lines(data)
            return
        if self._hot is not None or self._waitingForTransport:
            self._behind += data
            if len(self._behind) > BEHIND_BYTES_MAX:
                self._networkProducer.pauseProducing()
            return
        if self._begun:
            data = self._let_go_of_begun() + data
        site = self.site
        found = site.hot.read(data)
        if isinstance(found, Found) and site.has_room(len(found.body)):
            self.resetTimeout()
            connections = site.connections
            connections.order = self.active = connections.order + 1
            if connections.arriving:
                connections.arriving.discard(self)
            ticket = site.submits.enter() if found.args is None else 0
            if not ticket and found.args is None:
                self._turn_away(found)
                return
            self._hot = request = FastRequest(self, found, ticket)
            self.requests.append(request)
            request.run(found.route.handler)
        elif found is True and site.has_room(body_bytes := len(data) - data.index(b"\r\n\r\n") - 4):
            self.resetTimeout()
            self._begun = data
            self._begun_bytes = body_bytes
            site.bodies_held_bytes += body_bytes
            self._arrives(0, has_head=True)
            self._arrived_bytes = body_bytes
        else:
            self._is_between = False
            self._read_lines(data)

    def _turn_away(self, found: Found) -> None:
        """There is no room for another submit. Most of what comes while there is too much ends here, so it must cost little."""

        def answer() -> None:
            assert self.transport is not None
            self.transport.write(site.busy_answer(request_id_of(found.head.headers.get(b"x-request-id"))))
            site.metrics.http(found.route.path, Busy.status, 0.0)
            if self._hot is not None or site.closing:
                self.hot_done()

        site = self.site
        self._hot = site.refusals.tell(answer)
        if self._hot is not None:
            self.requests.append(self._hot)

    def _let_go_of_begun(self) -> bytes:
        begun, self._begun = self._begun, b""
        self.site.bodies_held_bytes -= self._begun_bytes
        self._begun_bytes = 0
        return begun

    def hot_done(self) -> None:
        """The hot request is answered."""
        self._hot = None
        self.requests.clear()
        if self.site.closing:
            self.loseConnection()
            return
        self.resetTimeout()
        if self._behind and not self._waitingForTransport:
            behind, self._behind = self._behind, b""
            self._networkProducer.resumeProducing()
            self.dataReceived(behind)

    def requestDone(self, request: http.Request) -> None:
        connections = self.site.connections
        connections.order = self.active = connections.order + 1
        super().requestDone(request)
        if self.persistent and not self.requests:
            rest = self.clearLineBuffer()
            if rest:
                self.setLineMode(rest)
            elif not self._held:
                self._is_between = not self.only_probes

    # --- what is not sent yet ---
    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)
        if self._waitingForTransport:
            self.site.connections.unsent(self, len(data))

    def writeSequence(self, iovec: Sequence[bytes]) -> None:
        assert self.transport is not None
        self.transport.writeSequence(iovec)
        if self._waitingForTransport:
            self.site.connections.unsent(self, sum(map(len, iovec)))

    def setLineMode(self, extra: bytes = b"") -> object:
        if extra and self._waitingForTransport:
            # The next request is not looked at before the answers to those before it have gone.
            self._held += extra
            extra = b""
        return super().setLineMode(extra)

    def resumeProducing(self) -> None:
        """All that was given to the transport has gone to the system."""
        self.site.connections.sent(self)
        super().resumeProducing()
        if self._hot is not None:
            return
        if self._behind:
            behind, self._behind = self._behind, b""
            self.dataReceived(behind)
        elif self._held:
            held, self._held = self._held, b""
            self.setLineMode(held)

    def takes_nothing(self, now_s: float) -> bool:
        """Whether the peer has taken no byte of what waits for ``limits.UNSENT_STALL_S``."""
        transport = self.transport
        taken = getattr(transport, "offset", 0), len(getattr(transport, "dataBuffer", b""))
        if taken != self._taken:
            self._taken, self._taken_s = taken, now_s
        return now_s - self._taken_s >= limits.UNSENT_STALL_S

    # --- a request that comes bit by bit ---
    @property
    def is_quiet(self) -> bool:
        """Nothing is done for it."""
        return self._hot is None and not self._handlingRequest

    def _arrives(self, size: int, *, has_head: bool) -> None:
        connections = self.site.connections
        if self not in connections.arriving:
            connections.arriving.add(self)
            connections.watch()
            self._arriving_s, self._arrived_bytes = self.site.reactor.seconds(), 0
        self._arrived_bytes += size
        self._has_head = has_head

    def comes_too_slowly(self, now_s: float) -> bool:
        over_s = now_s - self._arriving_s - limits.HTTP_HEAD_S
        if over_s < 0:
            return False
        return not self._has_head or self._arrived_bytes < over_s * limits.HTTP_BODY_BYTES_S_MIN

    # --- the long way: what twisted.web takes and RFC 9112 does not ---
    def _read_lines(self, data: bytes) -> None:
        """Refuse what can't become a line any more as soon as it is seen: TLS at this port, or lines that end without CR. Their
        senders wait for an answer, and would until the connection has been idle for too long.
        """
        if self._held:
            self._held += data
            return
        if self._is_refused:
            return
        super().dataReceived(data)
        connections = self.site.connections
        if self._handlingRequest or self._is_between or self._is_refused or not (self.requests or self._buffer):
            connections.arriving.discard(self)
        else:
            self._arrives(len(data), has_head=not self.line_mode)
        if self._busyReceiving or self._is_refused or not self.line_mode:
            return
        rest = self._buffer  # of LineReceiver: a line that isn't whole
        if rest and (b"\n" in rest or rest[:1] not in _BEGINS_LINE):
            self._respondToBadRequestAndDisconnect()

    def lineReceived(self, line: bytes) -> None:
        if _is_refused_line(line):
            self._respondToBadRequestAndDisconnect()
        else:
            super().lineReceived(line)

    def allHeadersReceived(self) -> None:
        request: ApiRequest = self.requests[-1]
        head = self.site.heads.judge(self._command, self._path, self._version, request.requestHeaders)
        self._path = head.target
        request.authority = head.authority
        request.refusal = head.refusal
        if isinstance(head.refusal, Malformed):
            # Who sends such a head may mean another request by it than is read here: nothing behind it is read at all.
            self.site.metrics.http(self.site.route_of(head.target), head.refusal.status, 0.0)
            self._refuse_and_end(head.refusal, request.getHeader(b"x-request-id"))
        else:
            super().allHeadersReceived()

    def checkPersistence(self, request: http.Request, version: bytes) -> bool:
        if version != b"HTTP/1.1":
            return False
        values = request.requestHeaders.getRawHeaders(b"connection")
        return values is None or b"close" not in [
            option.strip(b" \t").lower() for value in values for option in value.split(b",")
        ]

    def _send100Continue(self) -> None:
        # Not public in twisted.web either. Nothing follows a final answer, and a body of no bytes is not asked for.
        if self.length != 0 and self.requests[-1].wants_body:
            super()._send100Continue()

    # --- what ends it ---
    def refuse(self, error: TaskQueueError, request_id: bytes) -> None:
        """Write a whole answer, outside of any request that could, with ``Connection: close``. Doesn't close."""
        assert self.transport is not None
        self.transport.write(self.site.closing_answer(error, request_id))

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def timeoutConnection(self) -> None:
        if self._hot is not None:
            # It is not the client that is idle.
            self.setTimeout(self.timeOut)
            return
        # The inherited one logs a line for each; that a client left an idle connection is no news.
        self._abort = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Not public in twisted.web: should it go by another name one day, its bare 400 is what clients get.
        self._refuse_and_end(Malformed("this is not a valid HTTP/1.1 request"), None)

    def _refuse_and_end(self, error: TaskQueueError, request_id: bytes | None) -> None:
        """Answer, and read no further."""
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
        self._end_in_order()

    def _end_in_order(self) -> None:
        """Say that nothing follows, and throw away for a moment what still comes: closing at once would reset the connection, and
        the sender would never see the answer.
        """
        say_end = getattr(self.transport, "loseWriteConnection", self.loseConnection)
        say_end()
        self._linger = self.callLater(self.site.settings.linger_s, self.loseConnection)
