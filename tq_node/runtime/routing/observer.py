"""Watching the queue of this node, also from before there is one."""

from __future__ import annotations

from collections.abc import Callable

from tq_node.facade import EventBatch, Subscription
from tq_node.runtime.tasks.local_queue import LocalQueue


class Observer:
    """Somebody who watches the queue of this node, from before there is one."""

    def __init__(self, observer: Callable[[EventBatch], None], after_id: int | None, waiting: list[Observer]) -> None:
        self._observer = observer
        self._after_id = after_id
        self._waiting = waiting
        self._subscription: Subscription | None = None
        waiting.append(self)

    def begun(self, local: LocalQueue | None) -> Observer:
        """Begin at once, if there is a queue."""
        if local is not None and local.is_active:
            self.begin(local)
        return self

    def begin(self, local: LocalQueue) -> None:
        self._waiting.remove(self)
        self._subscription = local.watch(self._observer, after_id=self._after_id)

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
        elif self in self._waiting:
            self._waiting.remove(self)
