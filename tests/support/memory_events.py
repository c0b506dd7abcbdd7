"""The events of a ``MemoryQueue``: one numbered log for each scope, with those who watch it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tq_node.facade import EventBatch
from tq_node.types import Transition

EVENTS_KEPT = 1_000
Observer = Callable[[EventBatch], None]


class MemoryEvents:
    def __init__(self) -> None:
        self.observers: list[Observer] = []
        self._kept: deque[Transition] = deque(maxlen=EVENTS_KEPT)
        self._next = 1

    def tell(self, *changes: Transition) -> None:
        """In one batch, as of one commit."""
        batch = EventBatch(self._next, list(changes))
        self._next += len(changes)
        self._kept.extend(changes)
        for observer in list(self.observers):
            observer(batch)

    def watch(self, observer: Observer, after_id: int | None) -> MemoryWatch:
        self.observers.append(observer)
        if after_id is not None:
            first_kept = self._next - len(self._kept)
            if after_id + 1 < first_kept or after_id >= self._next:
                observer(EventBatch(self._next, [], reset=True))
            elif after_id + 1 < self._next:
                observer(EventBatch(after_id + 1, list(self._kept)[after_id + 1 - first_kept :]))
        return MemoryWatch(self.observers, observer)


class MemoryWatch:
    def __init__(self, observers: list[Observer], observer: Observer) -> None:
        self._observers = observers
        self._observer = observer

    def close(self) -> None:
        if self._observer in self._observers:
            self._observers.remove(self._observer)
