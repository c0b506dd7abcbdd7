"""The transitions of this node's primaries: a bounded memory, and whoever watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from tq_node import limits
from tq_node.facade import EventBatch
from tq_node.runtime.clock import Clock
from tq_node.runtime.peer_calls import EventsAfter
from tq_node.types import Transition

EVENTS_PER_ANSWER_MAX = 1_000
FROM_NOW = -1

_log = Logger(namespace="taskqueue.events")


class _Watcher:
    def __init__(self, log: EventLog, observer: Callable[[EventBatch], None]) -> None:
        self._log = log
        self.observer = observer

    def close(self) -> None:
        self._log.forget(self)


class EventLog:
    """Ids count up from ``first_id``, set by each start above every id of earlier starts."""

    def __init__(self, first_id: int) -> None:
        self._next_id = first_id
        self._kept: deque[Transition] = deque(maxlen=limits.EVENTS_KEPT_MAX)
        self._watchers: list[_Watcher] = []

    @property
    def next_id(self) -> int:
        """Of the next event."""
        return self._next_id

    def publish(self, transitions: list[Transition]) -> None:
        first = self._next_id
        self._next_id += len(transitions)
        self._kept.extend(transitions)
        if not self._watchers:
            return
        batch = EventBatch(first, transitions)
        for watcher in list(self._watchers):
            # One observer's fault is not another's, nor the commit's.
            with _log.failuresHandled("a watcher failed", event="watcher_failed"):
                watcher.observer(batch)

    def skip(self) -> None:
        """Transitions happened unknown to this node: watchers, also later ones, hear ``reset``."""
        self._kept.clear()
        self._next_id += 1
        for watcher in list(self._watchers):
            with _log.failuresHandled("a watcher failed", event="watcher_failed"):
                watcher.observer(EventBatch(self._next_id, [], reset=True))

    def watch(self, observer: Callable[[EventBatch], None], after_id: int | None) -> _Watcher:
        """See ``facade.TaskQueue.watch``."""
        watcher = _Watcher(self, observer)
        self._watchers.append(watcher)
        if after_id is not None:
            oldest = self._next_id - len(self._kept)
            if after_id + 1 < oldest or after_id >= self._next_id:
                observer(EventBatch(self._next_id, [], reset=True))
            elif after_id + 1 < self._next_id:
                missed = list(islice(self._kept, after_id + 1 - oldest, None))
                observer(EventBatch(after_id + 1, missed))
        return watcher

    def forget(self, watcher: _Watcher) -> None:
        if watcher in self._watchers:
            self._watchers.remove(watcher)


def events_after(log: EventLog, clock: Clock, question: EventsAfter) -> Deferred[EventBatch]:
    """Answer another node: what happened here since, or what first does within the asked time."""
    done: Deferred[EventBatch] = Deferred()
    if question.after_id == FROM_NOW:
        done.callback(EventBatch(log.next_id, []))
        return done

    def observe(batch: EventBatch) -> None:
        if not done.called:
            more = len(batch.transitions) > EVENTS_PER_ANSWER_MAX
            shown = EventBatch(batch.first_id, batch.transitions[:EVENTS_PER_ANSWER_MAX]) if more else batch
            done.callback(shown)

    watcher = log.watch(observe, question.after_id)
    if done.called:
        watcher.close()
        return done

    def timed_out() -> None:
        if not done.called:
            done.callback(EventBatch(question.after_id + 1, []))

    timer = clock.call_later(question.wait_s, timed_out)

    def close(batch: EventBatch) -> EventBatch:
        watcher.close()
        if timer.active():
            timer.cancel()
        return batch

    return done.addCallback(close)
