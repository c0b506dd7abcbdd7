"""``/tasks/events``: server-sent events, bounded for each client, and for all in one turn.

Events are buffered for a client that reads more slowly than tasks change; past a bound its
connection is reset. It may reconnect with ``Last-Event-ID`` and continues there, or gets ``reset``
if that event is too old."""

from __future__ import annotations

from collections import deque

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from tq_node import errors, limits
from tq_node.api.access.access import Access
from tq_node.api.event_turns import EventTurns
from tq_node.api.http.request import ApiRequest
from tq_node.api.query import ScopeParameters, read_query
from tq_node.api.responses import event_data
from tq_node.api.routes import Answer, Route
from tq_node.api.settings import ApiSettings
from tq_node.facade import EventBatch, Subscription, TaskQueue
from tq_node.observe.metrics import Metrics
from tq_node.tokens import Asker

EVENT_STREAM = "text/event-stream"
RECONNECT_MS = 2_000
_LAST_EVENT_ID_SCHEMA = {
    "type": "string",
    "description": "go on behind this event; `event: reset` comes where it is too old",
}
_encode = msgspec.json.Encoder().encode


class EventRoutes:
    """Holds the open streams. ``close`` ends them all; after it no stream begins."""

    def __init__(self, queue: TaskQueue, settings: ApiSettings, metrics: Metrics, reactor: IReactorTime) -> None:
        self.turns = EventTurns(reactor)
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._streams: set[_Stream] = set()
        self._stopped = False
        self._renderers = (_Renderer(queue, cluster=False), _Renderer(queue, cluster=True))

    def events(self, request: ApiRequest) -> Deferred[None] | None:
        cluster = read_query(request, ScopeParameters).scope == "cluster"
        if self._stopped:
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
        quotas = request.server.quotas
        over = quotas.hold("streams", request.caller)
        if over is not None:
            raise over
        renderer = self._renderers[cluster]
        asker = request.caller.to_see
        if asker is not None:  # what it is shown is shown to nobody else
            renderer = _Renderer(self._queue, cluster=cluster, asker=asker)
        stream = _Stream(self, renderer, request, self._settings)
        # Before the head is sent, so that a refusal can be the answer.
        try:
            stream.subscribe(self._queue, after_id)
        except BaseException:
            quotas.give_back("streams", request.caller)
            raise
        request.start_stream(EVENT_STREAM.encode("ascii"))
        self._streams.add(stream)
        stream.begin(too_old)
        return stream.ended

    def count_dropped(self) -> None:
        self._metrics.event_clients_dropped += 1

    def remove(self, stream: _Stream) -> None:
        self.turns.leave(stream)
        stream.quotas.give_back("streams", stream.caller)
        self._streams.discard(stream)
        if not self._streams:
            for renderer in self._renderers:
                renderer.forget()

    def close(self) -> None:
        """End every stream in order, so that clients see an end and not a broken connection."""
        self._stopped = True
        for stream in list(self._streams):
            stream.end()

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/tasks/events",
                Access.READ_OWN,
                self.events,
                "Server-sent events of every transition of this node's primaries, or of all nodes'",
                {200: Answer("a stream without end", content_type=EVENT_STREAM)},
                query=ScopeParameters,
                errors=(errors.Draining, errors.NotReady),
                headers={"Last-Event-ID": _LAST_EVENT_ID_SCHEMA},
            )
        ]


class _Renderer:
    """Renders one scope's events; caches the last piece: most streams ask for the same one next.

    :param asker: whose stream it is, told of what it may know of; None: of everything."""

    def __init__(self, queue: TaskQueue, *, cluster: bool, asker: Asker | None = None) -> None:
        self._queue = queue
        self.cluster = cluster
        self._asker = asker
        self._last: tuple[EventBatch, int] | None = None
        self._last_piece = b""
        self._last_end = 0

    def render(self, batch: EventBatch, start: int) -> tuple[bytes, int, int]:
        """About ``EVENT_CHUNK_BYTES`` of a batch from event ``start`` on, where to continue, and
        what it has cost, in rendered bytes."""
        last = self._last
        if last is not None and last[0] is batch and last[1] == start:
            return self._last_piece, self._last_end, len(self._last_piece) // limits.EVENT_CACHED_SHARE
        pieces = [_RESET] if batch.reset and not start else []
        size, end = 0, start
        primary_of: dict[int, str | None] | None = None
        me, asker = self._queue.node_name, self._asker
        while end < len(batch.transitions) and size < limits.EVENT_CHUNK_BYTES:
            change = batch.transitions[end]
            end += 1
            if asker is not None and not asker.may_know(change.queue, change.made_by):
                size += limits.EVENT_PASSED_BYTES
                continue
            if primary_of is None and self.cluster:
                primary_of = self._primaries()
            node = me if primary_of is None else primary_of.get(change.partition)
            data = _encode(event_data(change, node))
            pieces.append(b"id: %d\nevent: task\ndata: %b\n\n" % (batch.first_id + end - 1, data))
            size += len(data)
        self._last, self._last_piece, self._last_end = (batch, start), b"".join(pieces), end
        return self._last_piece, end, max(size, len(self._last_piece))

    def _primaries(self) -> dict[int, str | None]:
        """Each partition's primary now: an event does not say which node it came from."""
        return {view.partition: view.primary for view in self._queue.partition_views()}

    def forget(self) -> None:
        """Drop the cached piece."""
        self._last, self._last_piece = None, b""


@implementer(IPushProducer)
class _Stream:
    """A client's stream. ``ended`` fires at its end; Klein cancels it when the client hangs up."""

    def __init__(self, routes: EventRoutes, renderer: _Renderer, request: ApiRequest, settings: ApiSettings) -> None:
        self._routes = routes
        self._turns = routes.turns
        self._renderer = renderer
        self._request = request
        self._backlog_max = settings.event_backlog_max
        self._backlog: deque[EventBatch] = deque()
        """Batches that are not rendered whole; shared with other streams."""
        self._start = 0
        """The next event in the first batch of the backlog."""
        self._backlog_events = 0
        self._has_begun = False
        self.is_waiting = False
        self.host = request.channel.host
        self.quotas, self.caller = request.server.quotas, request.caller
        self._paused = False
        self._stopped = False
        self._subscription: Subscription | None = None
        self._comments = LoopingCall(self._comment)
        self._comments.clock = request.server.reactor
        self._comment_s = settings.event_comment_s
        self.ended: Deferred[None] = Deferred(self._on_cancel)

    def subscribe(self, queue: TaskQueue, after_id: int | None) -> None:
        """Subscribe. The first batch arrives during this call, and is buffered until ``begin``."""
        if self._renderer.cluster:
            self._subscription = queue.watch(self._observe, after_id=after_id, cluster=True)
        else:
            self._subscription = queue.watch(self._observe, after_id=after_id)

    def begin(self, too_old: bool) -> None:
        """Start to write. ``too_old``: the client's last event is unknown, so it starts over."""
        request = self._request
        self._comments.start(self._comment_s, now=False)
        request.registerProducer(self, True)
        self._has_begun = True
        # What was missed before doesn't count against the client: it is rendered as it is taken.
        self._backlog_max += self._backlog_events
        request.write(b"retry: %d\n\n%b" % (RECONNECT_MS, _RESET if too_old else b""))
        self._turns.enter(self)

    def _observe(self, batch: EventBatch) -> None:
        if self._stopped:
            return
        self._backlog.append(batch)
        self._backlog_events += len(batch.transitions)
        if not self._has_begun:
            return
        if (self._paused or self.is_waiting) and self._backlog_events > self._backlog_max:
            self._reset_slow_client()
        else:
            self._turns.enter(self)

    def _is_refused(self) -> bool:
        """End the stream if its token has expired, was revoked, can't be judged any more, or may
        know of other tasks now: who comes back is told of those."""
        request, asker = self._request, self.caller.to_see
        if request.refusal_now() is None and request.caller.to_see == asker:
            return False
        self.end()
        return True

    @property
    def has_more(self) -> bool:
        """Part of ``TurnTaker``."""
        return bool(self._backlog) and not self._paused and not self._stopped

    def write_piece(self) -> int:
        """Part of ``TurnTaker``: write a piece of the first batch of the backlog."""
        if not self.has_more or self._is_refused():
            return 0
        batch = self._backlog[0]
        piece, end, cost = self._renderer.render(batch, self._start)
        self._backlog_events -= end - self._start
        self._start = end
        if end >= len(batch.transitions):
            self._backlog.popleft()
            self._start = 0
        if piece:
            self._request.write(piece)
        return cost

    def _comment(self) -> None:
        if not self._paused and not self._is_refused():
            self._request.write(b": %b\n\n" % self._request.server.date())

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._turns.enter(self)

    def _on_cancel(self, _: Deferred[None]) -> None:
        self._stop()

    def stopProducing(self) -> None:
        self._stop()

    def end(self) -> None:
        """End the answer in order, so that the client sees an end and not a broken connection."""
        if self._stop():
            self._request.unregisterProducer()
            self._request.finish()
            self.ended.callback(None)

    def _reset_slow_client(self) -> None:
        """Reset the connection of a client that doesn't read: no farewell would reach it."""
        self._routes.count_dropped()
        if self._stop():
            self._request.channel.forceAbortClient()

    def _stop(self) -> bool:
        """Unsubscribe and leave the routes' set; False: already stopped."""
        if self._stopped:
            return False
        self._stopped = True
        self._backlog.clear()
        if self._comments.running:
            self._comments.stop()
        if self._subscription is not None:
            self._subscription.close()
        self._routes.remove(self)
        return True


_RESET = b"event: reset\ndata: {}\n\n"


def _last_event_id(header: bytes | None) -> tuple[int | None, bool]:
    """The event id in the header, if any, and whether it is malformed, which counts as too old."""
    if header is None or not header.strip():
        return None, False
    text = header.strip()
    if text.isdigit() and len(text) <= 18:
        return int(text), False
    return None, True
