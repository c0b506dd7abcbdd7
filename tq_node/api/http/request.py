"""One request and its connection: ``twisted.web`` with what this API needs of every answer.

- Every answer carries ``X-Request-Id`` and ``Cache-Control: no-store``, also one that never reached a route.
- A body is refused as soon as it is known to be too long, and is never held beyond the bound.
- An answer leaves in one write, put together from ready-made pieces; ``responseHeaders`` are for streams only.
- Answering a client that has gone does nothing.
"""

from __future__ import annotations

import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

from klein.interfaces import IKleinRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.web import server
from zope.interface import implementer

from tq_node import limits
from tq_node.api.http.concurrency_limit import NOT_DONE, TOO_LARGE, TOO_MANY, ConcurrencyLimit
from tq_node.api.http.exchange import JSON, SERVER, request_id_of, whole_head
from tq_node.errors import BodyTooLarge, Busy, TaskQueueError

if TYPE_CHECKING:
    from werkzeug.routing import MapAdapter

    from tq_node.api.http.channel import ApiChannel
    from tq_node.api.http.site import ApiSite
    from tq_node.api.routes import Handler

_TASK = b'"type"'
SUBMIT = b"/tasks/submit"
GATED = frozenset({SUBMIT, b"/tasks/batch"})
"""What is let in only where it can be answered in time (``gate``)."""


_SWALLOWED_BYTES_MAX = 16_384
"""A body up to this length is read before a refusal that only needed the head, unless the client asks first: so the connection
stays of use. A longer one is refused at once, and the connection closes."""


@implementer(IKleinRequest)
class ApiRequest(server.Request):
    """See the module's docstring. ``gone``: the client has hung up; ``route``: a name for metrics; ``authority``: the host
    that it is for; ``refusal``: what its head has decided already."""

    site: ApiSite
    channel: ApiChannel
    content: BytesIO
    # Klein looks these up through an adapter of its own for each request; providing its interface saves that.
    mapper: MapAdapter
    branch_segments = ("",)

    request_id = b""
    route = "other"
    authority: bytes | None = None
    refusal: TaskQueueError | None = None
    gone = False
    started_s = 0.0
    _held_bytes = 0
    _refused = False
    _shed = False
    _gate: ConcurrencyLimit | None = None
    _ticket = 0
    _cost = 0
    _announced_bytes = 0
    _is_stream = False
    _in_flight = False
    _linger: IDelayedCall | None = None
    _call: Deferred[None] | None = None

    def __conform__(self, interface: object) -> object:
        return self if interface is IKleinRequest else super().getComponent(interface)

    def url_for(self, *args: Any, **kw: Any) -> str:
        """Part of ``IKleinRequest``."""
        return self.mapper.build(*args, **kw)

    # --- the body, as it comes in ---
    def gotLength(self, length: int | None) -> None:
        site = self.channel.site
        self.content = BytesIO()
        self._announced_bytes = length or 0
        refusal = self.refusal
        if refusal is None and length is not None and length > site.settings.body_bytes_max:
            self._refuse(BodyTooLarge(f"a body of {length} bytes; at most {site.settings.body_bytes_max} are allowed"))
        elif refusal is not None and length != 0 and (length is None or length > _SWALLOWED_BYTES_MAX or self._asks()):
            self._refuse(refusal)
        elif length is not None and length > limits.LARGE_BODY_BYTES and not site.large.has_room(length):
            if self._asks():
                self._refuse(TOO_LARGE)
            else:
                # It is thrown away as it comes, and answered when it is over: so the connection stays of use.
                self._shed = True

    def _asks(self) -> bool:
        """Whether the client waits to hear that its body is wanted (``Expect: 100-continue``)."""
        return (self.getHeader(b"expect") or b"").lower() == b"100-continue"

    @property
    def wants_body(self) -> bool:
        """Whether the rest of the body is still of use: no final answer has been sent."""
        return not self._refused

    def handleContentChunk(self, data: bytes) -> None:
        site = self.channel.site
        size = len(data)
        if self._shed:
            return
        if self._refused:
            self._held_bytes += size
            # What is thrown away is bounded, too: a sender who doesn't listen is cut off.
            if self._held_bytes > 4 * site.settings.body_bytes_max:
                self.channel.loseConnection()
            return
        self._held_bytes += size
        site.bodies_held_bytes += size
        if self._held_bytes > site.settings.body_bytes_max:
            self._refuse(BodyTooLarge(f"a body over {site.settings.body_bytes_max} bytes"))
        elif site.bodies_held_bytes > site.settings.bodies_held_bytes_max:
            self._refuse(Busy("too many bodies at once"))
        else:
            self.content.write(data)

    def _refuse(self, error: TaskQueueError) -> None:
        """Answer before the body is complete, and close. What still comes is thrown away for a moment: closing at once
        would reset the connection, and the sender would never see the answer."""
        self._let_go_of_body()
        self._refused = True
        self.content = BytesIO()
        channel = self.channel
        channel.persistent = False
        channel.refuse(error, self.request_id or request_id_of(self.getHeader(b"x-request-id")))
        channel.site.metrics.http(channel.site.route_of(channel._path), error.status, 0.0)
        self._linger = channel.site.reactor.callLater(channel.site.settings.linger_s, channel.loseConnection)

    def body(self) -> bytes:
        """The whole body. Can be taken once."""
        body: bytes = self.content.getvalue()
        self.content.close()
        return body

    # --- from request to answer ---
    def process(self) -> None:
        channel = self.channel
        if self._refused:
            channel.loseConnection()
            return
        site = self.site = channel.site
        self.started_s = time.perf_counter()
        self.request_id = request_id_of(self.getHeader(b"x-request-id"))
        self.defaultContentType = None
        path = self.path
        if path in site.route_names:
            self.route = site.metrics.doing = site.route_names[path]
        if channel.only_probes and path not in site.always_served:
            channel.persistent = False
            site.answer_error(self, Busy("the node has as many connections as it can take"))
            return
        if site.in_flight >= site.settings.requests_in_flight_max and path not in site.always_served:
            site.answer_error(self, Busy("too many requests at once"))
            return
        if self.refusal is not None:
            site.answer_error(self, self.refusal)
            return
        if self._shed or (self.method == b"POST" and path in GATED and not self._enter(path)):
            error = TOO_MANY if self._gate is site.submits else TOO_LARGE
            cost = 1 + self._announced_bytes // limits.REFUSAL_BYTES
            site.refusals.tell(lambda: site.answer_error(self, error), cost)
            return
        self._in_flight = True
        site.in_flight += 1
        if site.hot.is_open and (handler := site.hot.handler_of(self.method, path)) is not None:
            self._run(handler)
            return
        self.prepath = []
        self.postpath = path[1:].split(b"/")
        try:
            # Klein answers through the Deferreds that it makes; what it returns is NOT_DONE_YET.
            site.resource.render(self)
        except Exception:
            self.processingFailed(Failure())

    def _enter(self, path: bytes) -> bool:
        """Past the gate, before the body is decoded."""
        size = self._held_bytes
        if path == SUBMIT and size <= limits.LARGE_BODY_BYTES:
            self._gate, self._cost = self.site.submits, 1
        else:
            tasks = self.content.getvalue().count(_TASK)  # a glance: they are counted when they are decoded
            self._gate, self._cost = self.site.large, size + tasks * limits.LARGE_TASK_BYTES
        self._ticket = self._gate.enter(self._cost)
        return self._ticket != 0

    def _leave(self, took_s: float) -> None:
        if self._ticket and self._gate is not None:
            self._gate.leave(self._ticket, took_s, self._cost)
            self._ticket = 0

    def _run(self, handler: Handler) -> None:
        """Call a handler as Klein would: what it raises is answered, and it is cancelled when the client hangs up."""
        try:
            call = handler(self)
        except Exception:
            self.processingFailed(Failure())
        else:
            if isinstance(call, Deferred) and not self.finished:
                self._call = call.addErrback(self.processingFailed)

    def processingFailed(self, reason: Failure) -> None:
        self.site.answer_failure(self, reason)

    def getRequestHostname(self) -> bytes:
        # Routes don't depend on the host, which has been judged, and Klein stumbles over some of them.
        return b"localhost"

    def answer(self, code: int, body: bytes, *, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """Write the whole answer and finish. ``extra``: header lines of trusted content, each with its line end."""
        if self.gone or self.finished:
            return
        self.code = code
        channel = self.channel
        if self.site.closing:
            channel.persistent = False
        if not channel.persistent:
            extra += b"Connection: close\r\n"
        self.startedWriting = 1
        head = whole_head(code, content_type, self.site.date(), self.request_id, body, extra)
        if self.method == b"HEAD":
            channel.write(head)
        elif len(body) < 65_536:
            channel.write(head + body)
        else:
            channel.writeSequence([head, body])
        self.finish()

    def start_stream(self, content_type: bytes) -> None:
        """Send the headers of an answer without a known end; ``write`` and ``finish`` do the rest."""
        self.leave_flight()
        self._is_stream = True
        self._count()
        for name, value in (
            (b"Server", SERVER),
            (b"Date", self.site.date()),
            (b"Content-Type", content_type),
            (b"Cache-Control", b"no-store"),
            (b"X-Accel-Buffering", b"no"),
            (b"X-Request-Id", self.request_id),
        ):
            self.responseHeaders.setRawHeaders(name, [value])
        self.write(b"")

    def finish(self) -> None:
        """End the answer. Does nothing where it has ended, or the client has gone."""
        if self.gone or self.finished:
            return
        if not self._is_stream:
            self._count()
        is_done = self.code < 300 or self.code == 504
        self._leave(time.perf_counter() - self.started_s if is_done else NOT_DONE)
        self._let_go()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        self.gone = True
        call = self._call
        self._leave(NOT_DONE)
        self._let_go()
        super().connectionLost(reason)
        if call is not None:
            call.cancel()

    def leave_flight(self) -> None:
        """No longer count as in flight: for what waits on purpose, and is bounded by a count of its own."""
        if self._in_flight:
            self._in_flight = False
            self.site.in_flight -= 1

    def _count(self) -> None:
        self.site.metrics.http(self.route, self.code, time.perf_counter() - self.started_s)

    def _let_go(self) -> None:
        self.leave_flight()
        self._let_go_of_body()
        self._call = None
        if self._linger is not None and self._linger.active():
            self._linger.cancel()

    def _let_go_of_body(self) -> None:
        if not self._refused:
            self.channel.site.bodies_held_bytes -= self._held_bytes
            self._held_bytes = 0
