"""Rate-limits refusals, so that clients that retry at once can't keep the node busy with refusing.

A refusal is cheap, and ten times as many requests as a node can serve are still more work than all
that it serves. ``LoadShedder`` sends so many a second of them; later ones are queued, in
order, for at most ``limits.REFUSAL_WAIT_MS_MAX``. Meanwhile nothing more is read of their
connections, and a client that waits for its answer sends nothing. A client that keeps to
``Retry-After`` sees no difference."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from tq_node import limits

TICK_S = 0.02
_TICKS_MAX = round(limits.REFUSAL_WAIT_MS_MAX / 1000 / TICK_S)


class QueuedRefusal(msgspec.Struct, gc=False):
    """A refusal that waits to be sent; stands among the requests of its channel.

    :ivar send: None once it is sent, or its client is gone.
    :ivar tick: in which it was queued."""

    send: Callable[[], None] | None
    tick: int
    cost: int

    def send_now(self) -> None:
        """Send it, unless its client is gone."""
        if self.send is not None:
            send, self.send = self.send, None
            send()

    def connectionLost(self, reason: Failure) -> None:
        """The channel calls this when its client hangs up."""
        self.send = None


class LoadShedder:
    """Sends the refusals of one server at a bounded rate; ``len`` is the number that is queued."""

    def __init__(self, reactor: IReactorTime, per_s: int = limits.REFUSALS_PER_S) -> None:
        self._reactor = reactor
        self._per_tick = max(1, round(per_s * TICK_S))
        self._queue: deque[QueuedRefusal] = deque()
        self._budget = self._per_tick
        """Cost of refusals that may still be sent in this tick; negative after an expensive one."""
        self._tick = 0
        self._timer: IDelayedCall | None = None
        """None while nothing is queued and the budget is whole."""
        self._stopped = False

    def __len__(self) -> int:
        return len(self._queue)

    def refuse(self, send: Callable[[], None], cost: int = 1) -> QueuedRefusal | None:
        """Call ``send`` now if the budget allows, and return None; else queue and return it.

        :param cost: 1 for a small refusal."""
        if self._stopped:
            send()
            return None
        if self._timer is None:
            self._timer = self._reactor.callLater(TICK_S, self._next_tick)
        if self._budget > 0 and not self._queue:
            self._budget -= cost
            send()
            return None
        refusal = QueuedRefusal(send, self._tick, cost)
        self._queue.append(refusal)
        return refusal

    def _next_tick(self) -> None:
        """Refill the budget; send what it allows, and all that waited for too long."""
        self._tick += 1
        self._budget = min(self._budget, 0) + self._per_tick
        queue = self._queue
        overdue = self._tick - _TICKS_MAX
        while queue and (self._budget > 0 or queue[0].tick <= overdue):
            refusal = queue.popleft()
            if refusal.send is not None:
                self._budget -= refusal.cost
                refusal.send_now()
        # A debt older than the longest wait is forgiven.
        self._budget = max(self._budget, -self._per_tick * _TICKS_MAX)
        is_idle = not queue and self._budget == self._per_tick
        self._timer = None if is_idle else self._reactor.callLater(TICK_S, self._next_tick)

    def close(self) -> None:
        """Send all that is queued; from now on ``refuse`` sends at once."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, self._queue = self._queue, deque()
        for refusal in queue:
            refusal.send_now()
