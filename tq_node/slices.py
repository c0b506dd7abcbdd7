"""Work in slices: a job whose size a caller chose gives the reactor back every few milliseconds.

A job takes a ``Pace``, and asks it between two items whether to give way::

    pace = slices.pace("/tasks/batch")
    for item in items:
        if pace.is_over():
            await pace.turn()
        work_on(item)

One turn of the reactor runs one slice, however many the jobs. To cancel the job's Deferred, as
HTTP does when its client hangs up, ends it at its next turn, with ``CancelledError``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tq_node import limits

T = TypeVar("T")
U = TypeVar("U")


class Slices:
    """Shares the reactor's time among long jobs, first come first served.

    :param on_slice: called with the job's name before each of its slices but the first.
    :param now_s: clock of slices; one that stands still (virtual time) cuts nothing."""

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        on_slice: Callable[[str], object] = lambda what: None,
        slice_s: float = limits.SLICE_MS / 1000,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reactor = reactor
        self.on_slice = on_slice
        self._waiting: deque[tuple[str, Deferred[None]]] = deque()
        self._call: IDelayedCall | None = None
        self.slice_s = slice_s
        self.now_s = now_s

    def __len__(self) -> int:
        """Number of jobs that wait for their next slice."""
        return len(self._waiting)

    def pace(self, what: str) -> Pace:
        """Begin a job and its first slice. ``what``: its name in logs, as a route."""
        return Pace(self, what)

    def turn(self, what: str) -> Deferred[None]:
        """Fires in a later turn of the reactor, when it is this job's turn. May be cancelled."""
        mine: Deferred[None] = Deferred()
        self._waiting.append((what, mine))
        if self._call is None:
            self._call = self._reactor.callLater(0.0, self._run)
        return mine

    def _run(self) -> None:
        self._call = None
        waiting = self._waiting
        while waiting and waiting[0][1].called:  # it was cancelled
            waiting.popleft()
        if not waiting:
            return
        what, mine = waiting.popleft()
        if waiting:
            self._call = self._reactor.callLater(0.0, self._run)
        self.on_slice(what)
        mine.callback(None)


class Pace:
    """The slices of one job."""

    __slots__ = ("_now_s", "_slices", "_until_s", "what")

    def __init__(self, slices: Slices, what: str) -> None:
        self.what = what
        self._slices = slices
        self._now_s = slices.now_s
        self._until_s = slices.now_s() + slices.slice_s

    def is_over(self) -> bool:
        """Whether the slice has had its time, so that ``turn`` is to be awaited."""
        return self._now_s() >= self._until_s

    async def turn(self) -> None:
        """Give the reactor back until the job's turn; raises ``CancelledError`` if cancelled."""
        await self._slices.turn(self.what)
        self._until_s = self._now_s() + self._slices.slice_s

    async def each(self, items: Iterable[T], do: Callable[[T], U], *, every: int = 1) -> list[U]:
        """What ``do`` returns for each item, in order; the clock is read after ``every`` items."""
        done: list[U] = []
        left = every
        for item in items:
            if left == 0:
                left = every
                if self._now_s() >= self._until_s:
                    await self.turn()
            left -= 1
            done.append(do(item))
        return done
