"""So many at once, the others in the order they came. Reactor thread only; no IO."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, fail, succeed

from tq_node.errors import Busy


class Turns:
    """``at_once`` may hold a turn, ``waiting_max`` may wait for one."""

    def __init__(self, at_once: int, waiting_max: int) -> None:
        self._free = at_once
        self._waiting_max = waiting_max
        self._waiting: deque[Deferred[None]] = deque()

    def take(self) -> Deferred[None]:
        """Fires once the caller has a turn; cancelling gives up the place. :raises Busy: (through the Deferred) too many wait."""
        if self._free:
            self._free -= 1
            return succeed(None)
        if len(self._waiting) >= self._waiting_max:
            return fail(Busy(f"{self._waiting_max} wait for a snapshot already"))
        turn: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(turn)
        return turn

    def give_back(self) -> None:
        if self._waiting:
            self._waiting.popleft().callback(None)
        else:
            self._free += 1

    def end(self, why: Exception) -> None:
        """Nobody gets a turn any more: those who wait are told why."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            turn.errback(why)
