"""A request on the long way, read by ``twisted.web`` and mostly routed by Klein.

- Every answer has ``X-Request-Id`` and ``Cache-Control: no-store``, also one that reached no route.
- A body is refused as soon as it is known to be too long, and never more than the bound is held.
- An answer leaves in one write, built from constant pieces; ``responseHeaders`` are for streams
  only.
- To answer a client that is gone does nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Protocol

from klein.interfaces import IKleinRequest
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import parse_qs
from werkzeug.routing import MapAdapter
from zope.interface import implementer

from tq_node import limits
from tq_node.api.access.access import Access
from tq_node.api.access.authenticator import ANONYMOUS
from tq_node.api.http.concurrency_limit import TOO_LARGE, TOO_MANY
from tq_node.api.http.exchange import JSON, SERVER, request_id_of, whole_head
from tq_node.api.http.lifecycle import RequestLifecycle
from tq_node.api.http.routing import Routing
from tq_node.api.http.server_state import ServerState
from tq_node.api.http.token_quotas import OverQuota
from tq_node.api.problems import answer_error
from tq_node.errors import BodyTooLarge, Busy, Denied, TaskQueueError, Unauthorized

_TASK = b'"type"'
SUBMIT = b"/tasks/submit"
LIMITED = frozenset({SUBMIT, b"/tasks/batch"})
"""POSTs that a concurrency limit admits."""
_DISCARDED_BYTES_MAX = 16_384
"""Before a refusal that only needed the head, a body up to this length is read and discarded, so
that the connection stays of use; but not if the client asks first (``Expect``). A longer body is
refused at once, and the connection closes."""


class RequestChannel(Protocol):
    """A connection as an ``ApiRequest`` sees it."""

    server: ServerState
    routing: Routing
    host: str
    is_secure: bool
    """TLS is below."""
    only_probes: bool
    """It has one of the places for health probes."""
    persistent: bool
    """Another request may follow."""
    _command: bytes
    """Method of the request that is being read; of ``twisted.web``, ..."""
    _path: bytes
    """... as is its target."""

    def write(self, data: bytes) -> None: ...

    def writeSequence(self, iovec: list[bytes]) -> None: ...

    def refuse(self, error: TaskQueueError, request_id: bytes) -> None:
        """Write a whole answer with ``Connection: close``, and don't close."""
        ...

    def loseConnection(self) -> None: ...

    def forceAbortClient(self) -> None: ...


@implementer(IKleinRequest)
class ApiRequest(RequestLifecycle, server.Request):
    """One request from its head to its answer: an ``Exchange``."""

    channel: RequestChannel  # type: ignore[assignment]  # what is used of it
    content: BytesIO
    # Klein would make an adapter for each request to look these up; providing them saves that.
    mapper: MapAdapter
    branch_segments = ("",)

    request_id = b""
    route = "other"
    is_plain_json = False
    task_id: str | None = None
    access = Access.ADMIN
    caller = ANONYMOUS
    who = ""
    fields: Mapping[bytes, bytes] = {}
    """The last header of each name, which is in lower case."""
    authority: bytes | None = None
    """``HOST[:PORT]`` that the request is for; None: the request does not say."""
    refusal: TaskQueueError | None = None
    """Why the head alone refuses the request."""
    _discarded_bytes = 0
    _refused = False
    """A final answer was sent before the whole body: the rest is discarded."""
    _discards = False
    """No room for the body: it is discarded as it arrives, and the request refused at its end."""
    _announced_bytes = 0
    _body_bytes_max = 0
    """Of its caller: who shows no token where one is needed has nothing to send."""
    _is_stream = False
    _linger: IDelayedCall | None = None

    def __init__(self, channel: RequestChannel, *args: Any, **kw: Any) -> None:
        super().__init__(channel, *args, **kw)
        self.server = channel.server
        self.gone = self._in_flight = False
        self.client_host = channel.host
        self.changed = ()
        self._held_bytes = self._cost = 0
        self._limit = self._ticket = self._call = None
        self._started_s = 0.0

    def __conform__(self, interface: object) -> object:
        return self if interface is IKleinRequest else super().getComponent(interface)

    def url_for(self, *args: Any, **kw: Any) -> str:
        """Part of ``IKleinRequest``."""
        return self.mapper.build(*args, **kw)

    def getHeader(self, key: bytes) -> bytes | None:  # type: ignore[override]  # the inherited one takes str, too
        return self.fields.get(key)

    def isSecure(self) -> bool:
        return self.channel.is_secure

    def parseCookies(self) -> None:
        """Nothing here reads cookies."""

    # --- the body, as it arrives ---
    def gotLength(self, length: int | None) -> None:
        body_bytes_max = self._body_bytes_max = (
            limits.ANONYMOUS_BODY_BYTES_MAX if self.caller is ANONYMOUS else self.server.settings.body_bytes_max
        )
        self.content = BytesIO()
        self._announced_bytes = length or 0
        refusal = self.refusal
        if refusal is None and length is not None and length > body_bytes_max:
            self._refuse(BodyTooLarge(f"a body of {length} bytes; at most {body_bytes_max} are allowed"))
        elif (
            refusal is not None and length != 0 and (length is None or length > _DISCARDED_BYTES_MAX or self._expects())
        ):
            self._refuse(refusal)
        elif (
            length is not None
            and length > limits.LARGE_BODY_BYTES
            and not self.server.large_body_limit.has_room(self.who, length)
        ):
            self.server.large_body_limit.note_refused(self.who, length)
            if self._expects():
                self._refuse(TOO_LARGE)
            else:
                self._discards = True

    def _expects(self) -> bool:
        """Whether the client sends the body only when asked to (``Expect: 100-continue``)."""
        return (self.getHeader(b"expect") or b"").lower() == b"100-continue"

    @property
    def wants_body(self) -> bool:
        """Whether the rest of the body is still of use: no final answer has been sent."""
        return not self._refused

    def handleContentChunk(self, data: bytes) -> None:
        server = self.server
        settings = server.settings
        size = len(data)
        if self._discards:
            return
        if self._refused:
            self._discarded_bytes += size
            # A sender that doesn't listen is cut off: what is discarded is bounded, too.
            if self._discarded_bytes > 4 * settings.body_bytes_max:
                self.channel.loseConnection()
            return
        self._held_bytes += size
        server.bodies_held_bytes += size
        if self._held_bytes > self._body_bytes_max:
            self._refuse(BodyTooLarge(f"a body over {self._body_bytes_max} bytes"))
        elif server.bodies_held_bytes > settings.bodies_held_bytes_max and not server.holds_more(self.who, size):
            self._refuse(Busy("too many bodies at once"))
        else:
            self.content.write(data)

    def _refuse(self, error: TaskQueueError) -> None:
        """Answer before the whole body is there, discard for ``linger_s`` what still arrives, then
        close. To close at once would reset the connection, and the sender would never see the
        answer."""
        self._end(None)
        self._refused = True
        self.content = BytesIO()
        channel, server = self.channel, self.server
        channel.persistent = False
        request_id = self.request_id or request_id_of(self.getHeader(b"x-request-id"))
        channel.refuse(error, request_id)
        server.metrics.http(channel.routing.name_of(channel._path), error.status, 0.0)
        self._audit_refusal(error)
        self._linger = server.reactor.callLater(server.settings.linger_s, channel.loseConnection)

    def _audit_refusal(self, error: TaskQueueError) -> None:
        """Hand a request to the audit log that is refused before it is whole."""
        audit = self.server.audit
        if audit is None:
            return
        if not self.request_id:
            # The head has been read; twisted.web sets these when the body is whole.
            self.method = self.channel._command
            self.path, _, query = self.channel._path.partition(b"?")
            self.args = parse_qs(query)
            self.request_id = request_id_of(self.getHeader(b"x-request-id"))
        audit.ended(self, error.status)

    def body(self) -> bytes:
        body: bytes = self.content.getvalue()
        self.content.close()
        return body

    # --- from request to answer ---
    def process(self) -> None:
        channel, server = self.channel, self.server
        if self._refused:
            channel.loseConnection()
            return
        routing = channel.routing
        self._started_s = time.perf_counter()
        self.request_id = request_id_of(self.getHeader(b"x-request-id"))
        self.defaultContentType = None
        path = self.path
        if path in routing.names:
            self.route = server.metrics.doing = routing.names[path]
        if channel.only_probes and path not in routing.always_served:
            channel.persistent = False
            answer_error(self, Busy("the node has as many connections as it can take"))
            return
        if (
            server.in_flight >= server.settings.requests_in_flight_max
            and path not in routing.always_served
            and not server.takes_one_more(self.who)
        ):
            answer_error(self, Busy("too many requests at once"))
            return
        # A body may take its time, and the token may have been revoked meanwhile.
        refusal = self.refusal or (self.refusal_now() if self._held_bytes else None)
        if refusal is not None:
            if isinstance(refusal, Unauthorized | Denied):
                server.refused_callers.refuse(lambda: answer_error(self, refusal))
            elif isinstance(refusal, OverQuota):
                if refusal.quota == "connections":
                    channel.persistent = False
                server.shedder.refuse(lambda: answer_error(self, refusal))
            else:
                answer_error(self, refusal)
            return
        if self._discards or (self.method == b"POST" and path in LIMITED and not self._enter(path)):
            error = TOO_MANY if self._limit is server.submit_limit else TOO_LARGE
            cost = 1 + self._announced_bytes // limits.REFUSAL_BYTES
            server.shedder.refuse(lambda: answer_error(self, error), cost)
            return
        self._in_flight = True
        server.in_flight += 1
        handler = routing.fast_path.handler_of(self.method, path)
        if handler is not None:
            self.call(handler)
            return
        self.prepath = []
        self.postpath = path[1:].split(b"/")
        try:
            # Klein answers through the Deferreds that it makes; what it returns is NOT_DONE_YET.
            routing.klein.render(self)
        except Exception:
            self.processingFailed(Failure())

    def _enter(self, path: bytes) -> bool:
        """Whether the concurrency limit admits the request; the body is not decoded before."""
        size = self._held_bytes
        if path == SUBMIT and size <= limits.LARGE_BODY_BYTES:
            self._limit, self._cost = self.server.submit_limit, 1
        else:
            tasks = self.content.getvalue().count(_TASK)  # an estimate: decoding will count them
            self._limit, self._cost = self.server.large_body_limit, size + tasks * limits.LARGE_TASK_BYTES
        self._ticket = self._limit.enter(self.who, self._cost)
        return self._ticket is not None

    def getRequestHostname(self) -> bytes:
        # Routes don't depend on the host, which has been judged; Klein stumbles over some of them.
        return b"localhost"

    def answer(self, code: int, body: bytes, *, content_type: bytes = JSON, extra: bytes = b"") -> None:
        if self.gone or self.finished:
            return
        self.code = code
        channel = self.channel
        if self.server.closing:
            channel.persistent = False
        if not channel.persistent:
            extra += b"Connection: close\r\n"
        self.startedWriting = 1
        head = whole_head(code, content_type, self.server.date(), self.request_id, body, extra)
        if self.method == b"HEAD":
            channel.write(head)
        elif len(body) < 65_536:
            channel.write(head + body)
        else:
            channel.writeSequence([head, body])
        self.finish()

    def start_stream(self, content_type: bytes) -> None:
        """Send the head of an answer without a known end; ``write`` and ``finish`` send the rest.
        It no longer counts as in flight, and the metrics count it as answered."""
        self.leave_flight()
        self._is_stream = True
        self.server.metrics.http(self.route, self.code, time.perf_counter() - self._started_s)
        for name, value in (
            (b"Server", SERVER),
            (b"Date", self.server.date()),
            (b"Content-Type", content_type),
            (b"Cache-Control", b"no-store"),
            (b"X-Accel-Buffering", b"no"),
            (b"X-Request-Id", self.request_id),
        ):
            self.responseHeaders.setRawHeaders(name, [value])
        self.write(b"")

    def finish(self) -> None:
        """End the answer. Does nothing the second time, or if the client is gone."""
        if self.gone or self.finished:
            return
        if self._is_stream:
            self._end(None)
        else:
            self._end(self.code)
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        self.gone = True
        if self.refusal is not None and not self.finished and not self._refused:
            self._audit_refusal(self.refusal)  # which it does not wait for
        super().connectionLost(reason)
        self._hang_up()
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
