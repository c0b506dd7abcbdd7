"""Refusals for want of room, not faster than a node can bear: who comes again at once would have it do nothing else.

A refusal is cheap, and ten times as many requests as a node can serve are still more work than all that it serves. So only so
many are answered in a while; the others wait, in order and not for long. Meanwhile nothing more is read of their connections,
and a client that waits for its answer sends nothing. One that keeps to ``Retry-After`` does not notice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from tq_node import limits

TICK_S = 0.02
_PER_TICK = max(1, round(limits.REFUSALS_PER_S * TICK_S))
_TICKS_MAX = round(limits.REFUSAL_WAIT_MS_MAX / 1000 / TICK_S)


class TurnedAway(msgspec.Struct, gc=False):
    """One that waits to hear that it is refused. Stands among its channel's requests; None: its client has gone, or has heard."""

    answer: Callable[[], None] | None
    tick: int
    cost: int

    def tell(self) -> None:
        if self.answer is not None:
            answer, self.answer = self.answer, None
            answer()

    def connectionLost(self, reason: Failure) -> None:
        self.answer = None


class LoadShedder:
    """Of one site."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._waiting: deque[TurnedAway] = deque()
        self._left = _PER_TICK
        self._tick = 0
        self._timer: IDelayedCall | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def tell(self, answer: Callable[[], None], cost: int = 1) -> TurnedAway | None:
        """Call ``answer``: now, and None is returned, or when it is its turn.

        :param cost: of the refusal, in small ones.
        """
        if self._is_closed:
            answer()
            return None
        if self._timer is None:
            self._timer = self._reactor.callLater(TICK_S, self._next)
        if self._left > 0 and not self._waiting:
            self._left -= cost
            answer()
            return None
        one = TurnedAway(answer, self._tick, cost)
        self._waiting.append(one)
        return one

    def _next(self) -> None:
        self._tick += 1
        self._left = min(self._left, 0) + _PER_TICK
        waiting = self._waiting
        overdue = self._tick - _TICKS_MAX
        while waiting and (self._left > 0 or waiting[0].tick <= overdue):
            one = waiting.popleft()
            if one.answer is not None:
                self._left -= one.cost
                one.tell()
        # What was spent beyond this tick is not owed for longer than anybody would wait for it.
        self._left = max(self._left, -_PER_TICK * _TICKS_MAX)
        is_idle = not waiting and self._left == _PER_TICK
        self._timer = None if is_idle else self._reactor.callLater(TICK_S, self._next)

    def close(self) -> None:
        """Nobody waits any more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.tell()
