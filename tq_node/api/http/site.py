"""The tuned ``Site``: form parsing and access log off, bounds on connections, requests and bodies, an orderly end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
from klein import Klein
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.web.http import datetimeToString
from twisted.web.server import Site

from tq_node.api.http.channel import ApiChannel
from tq_node.api.http.concurrency_limit import (
    TOO_MANY,
    gate_of_bytes,
    gate_of_long_reads,
    gate_of_reads,
    gate_of_submits,
)
from tq_node.api.http.connections import Connections
from tq_node.api.http.exchange import head_of, whole_head
from tq_node.api.http.fast_path import FastPath
from tq_node.api.http.load_shedding import LoadShedder
from tq_node.api.http.request import ApiRequest
from tq_node.api.http.request_head import HeadRules
from tq_node.api.problems import PROBLEM, answer_error, answer_failure, headers_of, problem_of
from tq_node.api.settings import ApiSettings
from tq_node.errors import TaskQueueError
from tq_node.observe.metrics import Metrics
from tq_node.slices import Slices

_TOO_MANY_BODY = msgspec.json.encode(problem_of(TOO_MANY, None))[:-1]
_TOO_MANY_EXTRA = headers_of(TOO_MANY)


class ApiSite(Site):
    """May listen on several ports at once. ``route_names``: path -> its name in the metrics.

    :param always_served: paths that are answered however many requests are in flight.
    :param heads: judges every request by its head.
    :param slices: shared with the rooms below, so that one turn of the reactor runs one slice of all.
    :param hot: knows the routes whose handlers are called without Klein in between, mostly without a Request, too.
    """

    # Plain HTTP/1.1, without the proxy that could switch to HTTP/2.
    protocol = ApiChannel  # type: ignore[assignment]  # declared as that proxy
    displayTracebacks = False
    noisy = False

    def __init__(
        self,
        app: Klein,
        settings: ApiSettings,
        metrics: Metrics,
        reactor: IReactorTime,
        route_names: Mapping[bytes, str],
        always_served: frozenset[bytes],
        heads: HeadRules,
        hot: FastPath,
        slices: Slices | None = None,
    ) -> None:
        super().__init__(
            app.resource(),
            requestFactory=ApiRequest,
            parsePOSTFormSubmission=False,
            timeout=settings.idle_s,
            reactor=reactor,
        )
        self.settings = settings
        self.metrics = metrics
        self.route_names = route_names
        self.always_served = always_served
        self.heads = heads
        self.hot = hot
        self.connections = Connections(reactor, settings)
        self.channels = self.connections.channels
        self.in_flight = 0
        self.waiting = 0
        self.bodies_held_bytes = 0
        self.submits = gate_of_submits()
        self.large = gate_of_bytes()
        self.reads = gate_of_reads()
        self.long_reads = gate_of_long_reads()
        self.refusals = LoadShedder(reactor)
        self.slices = Slices(reactor) if slices is None else slices
        self.slices.on_slice = metrics.note_doing
        self.closing = False
        self._on_close: list[Callable[[], None]] = []
        self._all_gone: Deferred[None] | None = None
        self.answer_error = answer_error
        self.answer_failure = answer_failure
        self._date = b""
        self._date_s = -1

    def log(self, request: object) -> None:
        """No access log: it costs more than the request. Rates and latencies are in the metrics."""

    def buildProtocol(  # type: ignore[override]  # as for protocol
        self, addr: IAddress | None
    ) -> ApiChannel | None:
        if self.closing or not self.connections.admit(addr):
            return None
        channel: ApiChannel = super().buildProtocol(addr)
        return channel

    def has_room(self, body_bytes: int) -> bool:
        """For one more request, with a body of that size. Where there is none, ``ApiRequest`` says what is the matter."""
        settings = self.settings
        return (
            self.in_flight < settings.requests_in_flight_max
            and self.bodies_held_bytes + body_bytes <= settings.bodies_held_bytes_max
            and body_bytes <= settings.body_bytes_max
        )

    def route_of(self, target: bytes) -> str:
        """Its name in the metrics."""
        return self.route_names.get(target.partition(b"?")[0], "other")

    def date(self) -> bytes:
        """The Date header of now, made once a second."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date = datetimeToString(now_s)
        return self._date

    def busy_answer(self, request_id: bytes) -> bytes:
        """For a submit that is not let in."""
        # An id holds nothing that JSON would escape, and stands last.
        body = b'%b,"request_id":"%b"}' % (_TOO_MANY_BODY, request_id)
        extra = b"Connection: close\r\n" if self.closing else b""
        return whole_head(TOO_MANY.status, PROBLEM, self.date(), request_id, body, _TOO_MANY_EXTRA + extra) + body

    def closing_answer(self, error: TaskQueueError, request_id: bytes) -> bytes:
        """A whole answer as bytes, for a connection that can't be used for another request."""
        body = msgspec.json.encode(problem_of(error, request_id.decode("ascii")))
        return b"%bDate: %b\r\nX-Request-Id: %b\r\nContent-Length: %d\r\n%bConnection: close\r\n\r\n%b" % (
            head_of(error.status, PROBLEM),
            self.date(),
            request_id,
            len(body),
            headers_of(error),
            body,
        )

    # --- the end ---
    def on_close(self, callback: Callable[[], None]) -> None:
        """Call when the site begins to close: for what would otherwise never end by itself."""
        self._on_close.append(callback)

    def close(self, within_s: float) -> Deferred[None]:
        """Let requests in flight finish, then close every connection; fires when none is left.

        Idle connections close at once, others after their answer, all that is left after ``within_s``. Stop listening first.
        """
        if self.closing:
            return succeed(None)
        self.closing = True
        self.refusals.close()
        self.connections.close()
        for callback in self._on_close:
            callback()
        for channel in list(self.channels):
            if not channel.requests:
                channel.loseConnection()
        if not self.channels:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._all_gone = done
        deadline = self.reactor.callLater(within_s, self._abort_all)

        def over(result: None) -> None:
            if deadline.active():
                deadline.cancel()

        return done.addCallback(over)

    def channel_gone(self, channel: ApiChannel) -> None:
        self.connections.gone(channel)
        if self._all_gone is not None and not self.channels:
            done, self._all_gone = self._all_gone, None
            done.callback(None)

    def _abort_all(self) -> None:
        for channel in list(self.channels):
            channel.forceAbortClient()
