"""``/tasks/events``: server-sent events, bounded for each client.

A client that reads more slowly than tasks change has its events kept for it up to a bound; past that it is cut off. It may
come back with ``Last-Event-ID`` and goes on where it was, or hears ``reset`` where that is too far back.
"""

from __future__ import annotations

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from tq_node import errors
from tq_node.api.answers import event_data
from tq_node.api.query import ScopeParameters, read_query
from tq_node.api.request import ApiRequest
from tq_node.api.routes import Answer, Route
from tq_node.api.settings import ApiSettings
from tq_node.facade import EventBatch, Subscription, TaskQueue
from tq_node.observe.metrics import Metrics

EVENT_STREAM = "text/event-stream"
RECONNECT_MS = 2_000
_LAST_EVENT_ID_SCHEMA = {
    "type": "string",
    "description": "go on behind this event; `event: reset` comes where it is too old",
}
_encode = msgspec.json.Encoder().encode


class EventRoutes:
    """Holds the open streams. ``close`` ends them all; no new one begins after it."""

    def __init__(self, queue: TaskQueue, settings: ApiSettings, metrics: Metrics) -> None:
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._streams: set[_Stream] = set()
        self._closed = False
        self._renderers = (_Renderer(queue, cluster=False), _Renderer(queue, cluster=True))

    def events(self, request: ApiRequest) -> Deferred[None] | None:
        cluster = read_query(request, ScopeParameters).scope == "cluster"
        if self._closed:
            raise errors.Draining("the node is stopping")
        if len(self._streams) >= self._settings.event_clients_max:
            raise errors.Busy("too many event streams")
        after_id, too_old = _last_event_id(request.getHeader(b"last-event-id"))
        if request.method == b"HEAD":
            request.start_stream(EVENT_STREAM.encode("ascii"))
            request.finish()
            return None
        stream = _Stream(self, self._renderers[cluster], request, self._settings)
        # First of all: if this is refused there is no stream yet, and the refusal can be the answer.
        stream.subscribe(self._queue, after_id)
        request.start_stream(EVENT_STREAM.encode("ascii"))
        self._streams.add(stream)
        stream.begin(too_old)
        return stream.over

    def dropped(self) -> None:
        self._metrics.event_clients_dropped += 1

    def ended(self, stream: _Stream) -> None:
        self._streams.discard(stream)
        if not self._streams:
            for renderer in self._renderers:
                renderer.forget()

    def close(self) -> None:
        """End every stream in order, so that clients see an end and not a broken connection."""
        self._closed = True
        for stream in list(self._streams):
            stream.end()

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/tasks/events",
                self.events,
                "Server-sent events of every transition of this node's primaries, or of all nodes'",
                {200: Answer("a stream without end", content_type=EVENT_STREAM)},
                query=ScopeParameters,
                errors=(errors.Draining, errors.NotReady),
                headers={"Last-Event-ID": _LAST_EVENT_ID_SCHEMA},
            )
        ]


class _Renderer:
    """One piece of bytes for each event of a scope; made once for a batch, however many clients watch."""

    def __init__(self, queue: TaskQueue, *, cluster: bool) -> None:
        self._queue = queue
        self.cluster = cluster
        self._last_batch: EventBatch | None = None
        self._last_events: list[bytes] = []

    def render(self, batch: EventBatch) -> list[bytes]:
        if batch is not self._last_batch:
            primary_of = self._primaries() if self.cluster and batch.transitions else None
            me = self._queue.node_name
            self._last_events = [
                b"id: %d\nevent: task\ndata: %b\n\n"
                % (number, _encode(event_data(change, me if primary_of is None else primary_of.get(change.partition))))
                for number, change in enumerate(batch.transitions, batch.first_id)
            ]
            self._last_batch = batch
        return self._last_events

    def _primaries(self) -> dict[int, str | None]:
        """As they are now: an event does not say which node it came from."""
        return {view.partition: view.primary for view in self._queue.partition_views()}

    def forget(self) -> None:
        self._last_batch, self._last_events = None, []


@implementer(IPushProducer)
class _Stream:
    """One client. ``over`` fires when it has ended; Klein cancels it when the client hangs up."""

    def __init__(self, routes: EventRoutes, renderer: _Renderer, request: ApiRequest, settings: ApiSettings) -> None:
        self._routes = routes
        self._renderer = renderer
        self._request = request
        self._backlog_max = settings.event_backlog_max
        self._backlog: list[bytes] = []
        self._first: list[bytes] = []
        self._has_begun = False
        self._paused = False
        self._ended = False
        self._subscription: Subscription | None = None
        self._comments = LoopingCall(self._comment)
        self._comments.clock = request.site.reactor
        self._comment_s = settings.event_comment_s
        self.over: Deferred[None] = Deferred(self._hung_up)

    def subscribe(self, queue: TaskQueue, after_id: int | None) -> None:
        """The first batch comes during this call, and is kept for ``begin``."""
        if self._renderer.cluster:
            self._subscription = queue.watch(self._observe, after_id=after_id, cluster=True)
        else:
            self._subscription = queue.watch(self._observe, after_id=after_id)

    def begin(self, too_old: bool) -> None:
        request = self._request
        self._comments.start(self._comment_s, now=False)
        request.registerProducer(self, True)
        first = [b"retry: %d\n\n" % RECONNECT_MS, *([_RESET] if too_old else []), *self._first]
        self._first.clear()
        self._has_begun = True
        request.write(b"".join(first))

    def _observe(self, batch: EventBatch) -> None:
        if self._ended:
            return
        pieces = self._renderer.render(batch)
        if batch.reset:
            pieces = [_RESET, *pieces]
        if not self._has_begun:
            self._first += pieces
        elif not self._paused:
            self._request.write(b"".join(pieces))
        elif len(self._backlog) + len(pieces) <= self._backlog_max:
            self._backlog += pieces
        else:
            self._cut_off()

    def _comment(self) -> None:
        if not self._paused:
            self._request.write(b": %b\n\n" % self._request.site.date())

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self._backlog:
            backlog, self._backlog = self._backlog, []
            self._request.write(b"".join(backlog))

    def _hung_up(self, _: Deferred[None]) -> None:
        self._let_go()

    def stopProducing(self) -> None:
        self._let_go()

    def end(self) -> None:
        if self._let_go():
            self._request.unregisterProducer()
            self._request.finish()
            self.over.callback(None)

    def _cut_off(self) -> None:
        """The client doesn't read, so no word of ours would reach it: reset the connection."""
        self._routes.dropped()
        if self._let_go():
            self._request.channel.forceAbortClient()

    def _let_go(self) -> bool:
        """Stop watching; whether that was still to be done."""
        if self._ended:
            return False
        self._ended = True
        self._backlog.clear()
        if self._comments.running:
            self._comments.stop()
        if self._subscription is not None:
            self._subscription.close()
        self._routes.ended(self)
        return True


_RESET = b"event: reset\ndata: {}\n\n"


def _last_event_id(header: bytes | None) -> tuple[int | None, bool]:
    """What to go on behind, and whether it is no id of ours and so as good as too old."""
    if header is None or not header.strip():
        return None, False
    text = header.strip()
    if text.isdigit() and len(text) <= 18:
        return int(text), False
    return None, True
