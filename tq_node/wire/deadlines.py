"""Many deadlines over one timer: a call costs a dictionary entry, not a delayed call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tq_node.wire import bounds

K = TypeVar("K")


class Deadlines(Generic[K]):
    """:param expired: called once for each key whose time has come, in the order in which they were added."""

    def __init__(self, reactor: IReactorTime, expired: Callable[[K], None]) -> None:
        self._reactor = reactor
        self._expired = expired
        self._due_s: dict[K, float] = {}
        self._timer: IDelayedCall | None = None
        self._timer_s = 0.0

    def add(self, key: K, seconds: float) -> None:
        due_s = self._due_s[key] = self._reactor.seconds() + seconds
        if self._timer is None or due_s < self._timer_s:
            self._arm(due_s)

    def discard(self, key: K) -> None:
        # The timer stays: it finds nothing and rests. Re-arming it for each answer would cost more than it saves.
        self._due_s.pop(key, None)

    def close(self) -> None:
        self._due_s.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self._reactor.callLater(max(0.0, due_s - self._reactor.seconds()), self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._reactor.seconds()
        if now_s - self._timer_s > bounds.PAUSE_S:
            # The process slept: what it waits for may be in the sockets already, unread (F40). Read first, then judge.
            for key, due_s in self._due_s.items():
                self._due_s[key] = max(due_s, now_s + bounds.PAUSE_S / 2)
        for key in [key for key, due_s in self._due_s.items() if due_s <= now_s]:
            if self._due_s.pop(key, None) is not None:  # an earlier one may have closed all
                self._expired(key)
        if self._due_s and self._timer is None:
            self._arm(min(self._due_s.values()))
