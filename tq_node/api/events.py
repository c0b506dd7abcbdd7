"""``/tasks/events``: server-sent events, bounded for each client.

A client that reads more slowly than tasks change has its events kept for it up to a bound; past that it is cut off. It may
come back with ``Last-Event-ID`` and goes on where it was, or hears ``reset`` where that is too far back.
"""

from __future__ import annotations

from collections import deque

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from tq_node import errors, limits
from tq_node.api.http.request import ApiRequest
from tq_node.api.query import ScopeParameters, read_query
from tq_node.api.responses import event_data
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
        host = request.channel.host
        if sum(stream.host == host for stream in self._streams) >= self._settings.event_clients_of_address_max:
            raise errors.Busy("too many event streams of one address")
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
    """Events of a scope as bytes; what was made last is kept, for usually all who watch want the same next."""

    def __init__(self, queue: TaskQueue, *, cluster: bool) -> None:
        self._queue = queue
        self.cluster = cluster
        self._last: tuple[EventBatch, int] | None = None
        self._last_piece = b""
        self._last_end = 0

    def render(self, batch: EventBatch, start: int) -> tuple[bytes, int]:
        """From the event at ``start`` on, up to ``limits.EVENT_CHUNK_BYTES``; and where to go on."""
        last = self._last
        if last is None or last[0] is not batch or last[1] != start:
            pieces = [_RESET] if batch.reset and not start else []
            size, end = 0, start
            primary_of = self._primaries() if self.cluster and batch.transitions else None
            me = self._queue.node_name
            while end < len(batch.transitions) and size < limits.EVENT_CHUNK_BYTES:
                change = batch.transitions[end]
                node = me if primary_of is None else primary_of.get(change.partition)
                data = _encode(event_data(change, node))
                pieces.append(b"id: %d\nevent: task\ndata: %b\n\n" % (batch.first_id + end, data))
                size += len(data)
                end += 1
            self._last, self._last_piece, self._last_end = (batch, start), b"".join(pieces), end
        return self._last_piece, self._last_end

    def _primaries(self) -> dict[int, str | None]:
        """As they are now: an event does not say which node it came from."""
        return {view.partition: view.primary for view in self._queue.partition_views()}

    def forget(self) -> None:
        self._last, self._last_piece = None, b""


@implementer(IPushProducer)
class _Stream:
    """One client. ``over`` fires when it has ended; Klein cancels it when the client hangs up."""

    def __init__(self, routes: EventRoutes, renderer: _Renderer, request: ApiRequest, settings: ApiSettings) -> None:
        self._routes = routes
        self._renderer = renderer
        self._request = request
        self._backlog_max = settings.event_backlog_max
        self._backlog: deque[EventBatch] = deque()
        """What is still to be made, of lists that all who watch share; ``_start`` says from where on in the first of them."""
        self._start = 0
        self._left = 0
        """Events in the backlog."""
        self._has_begun = False
        self._is_writing = False
        self.host = request.channel.host
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
        self._has_begun = True
        # What was missed is made as it is taken, so it doesn't count against the client.
        self._backlog_max += self._left
        request.write(b"retry: %d\n\n%b" % (RECONNECT_MS, _RESET if too_old else b""))
        self._write()

    def _observe(self, batch: EventBatch) -> None:
        if self._ended:
            return
        self._backlog.append(batch)
        self._left += len(batch.transitions)
        if not self._has_begun:
            return
        if self._paused and self._left > self._backlog_max:
            self._cut_off()
        else:
            self._write()

    def _write(self) -> None:
        """As much as the client takes, a chunk at a time: the transport pauses this where it takes no more for now."""
        if self._is_writing:
            return
        self._is_writing = True
        while self._backlog and not self._paused and not self._ended:
            batch = self._backlog[0]
            piece, end = self._renderer.render(batch, self._start)
            self._left -= end - self._start
            self._start = end
            if end >= len(batch.transitions):
                self._backlog.popleft()
                self._start = 0
            if piece:
                self._request.write(piece)
        self._is_writing = False

    def _comment(self) -> None:
        if not self._paused:
            self._request.write(b": %b\n\n" % self._request.site.date())

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._write()

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
