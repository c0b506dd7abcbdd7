"""The one place with timers: monotonic time for intervals, a wall clock that never goes back, loops
that survive a bad round.

``replication.md`` R19 and F39: nothing that protects safety reads the wall clock, and Twisted's
timers run on monotonic time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.beats import until_beat
from tq_node.slices import Slices

_log = Logger(namespace="taskqueue.clock")


def make_reactor_monotonic(reactor: Any) -> None:
    """Put the reactor's timers on the monotonic clock. Must run before the first ``callLater``
    (F39, twisted/twisted#2424).

    :raises RuntimeError: a timer exists already; on two clocks at once it would fire at a senseless
        time."""
    if reactor.seconds is time.monotonic:
        return
    if reactor.getDelayedCalls():
        raise RuntimeError("the reactor has timers already; its clock can't be made monotonic any more")
    reactor.seconds = time.monotonic


class WallClock:
    """Calendar time in microseconds, for what is stored or shown; it never goes back.

    After a step back of the system's clock it goes on from where it was at the monotonic clock's
    rate, so that a delay of five seconds stays five seconds; after a step forward it follows at
    once. ``not_before_us`` is the greatest time found in the store at start (replication.md,
    section 8, schedules)."""

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, mono_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._mono_ns = mono_ns
        self._base_wall_us = wall_ns() // 1000
        self._base_mono_us = mono_ns() // 1000

    def __call__(self) -> int:
        carried = self._base_wall_us + self._mono_ns() // 1000 - self._base_mono_us
        wall = self._wall_ns() // 1000
        if wall > carried:
            # Re-anchored, so that slow drift between the two clocks is followed and a step back
            # later starts from here.
            self._base_wall_us, self._base_mono_us = wall, self._mono_ns() // 1000
            return wall
        return carried

    def not_before(self, at_us: int) -> None:
        """Return no time before ``at_us`` from now on."""
        if self() < at_us:
            self._base_wall_us, self._base_mono_us = at_us, self._mono_ns() // 1000


class Clock:
    """Timers over any ``IReactorTime`` (a ``task.Clock`` in tests), and the wall clock."""

    def __init__(self, reactor: IReactorTime, wall: WallClock | None = None) -> None:
        self.reactor = reactor
        self.wall_us = wall if wall is not None else WallClock()
        self.slices = Slices(reactor, now_s=reactor.seconds)
        """Cuts long work into slices. In virtual time nothing is cut, as work takes none."""

    def now_ms(self) -> int:
        """Monotonic milliseconds; they mean nothing outside this process."""
        return int(self.reactor.seconds() * 1000)

    def call_later(self, seconds: float, call: Callable[..., Any], *args: Any) -> IDelayedCall:
        return self.reactor.callLater(seconds, call, *args)

    def pause(self, seconds: float) -> Deferred[None]:
        """Fire after so long; may be cancelled."""
        passed: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self.reactor.callLater(seconds, passed.callback, None)
        return passed

    def timer(self, call: Callable[[], object]) -> Timer:
        """Return a timer for ``call``, not started."""
        return Timer(self.reactor, call)

    def every(self, seconds: float, call: Callable[[], Awaitable[None] | None], what: str) -> Loop:
        """Call at once, then each ``seconds``; see ``Loop``."""
        return Loop(self.reactor, seconds, call, what)


class Timer:
    """One call, due once at a time: what a turn asks for often happens once, in a later one."""

    __slots__ = ("_call", "_delayed", "_reactor")

    def __init__(self, reactor: IReactorTime, call: Callable[[], object]) -> None:
        self._reactor = reactor
        self._call = call
        self._delayed: IDelayedCall | None = None

    @property
    def is_pending(self) -> bool:
        return self._delayed is not None

    def start(self, seconds: float = 0.0) -> None:
        """Call after ``seconds``, or in the next turn. A call that is pending stays as it is."""
        if self._delayed is None:
            self._delayed = self._reactor.callLater(seconds, self._fire)

    def restart(self, seconds: float = 0.0) -> None:
        """Call after ``seconds`` from now, in place of a call that is pending."""
        self.cancel()
        self._delayed = self._reactor.callLater(seconds, self._fire)

    def cancel(self) -> None:
        """Drop the call that is pending, if any."""
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None

    def _fire(self) -> None:
        self._delayed = None
        self._call()


class Loop:
    """A call each so many seconds, one round after another, at once at first. A round that raises
    is logged, and the next comes. It keeps to the beats of its reactor; those that were missed are
    skipped."""

    def __init__(
        self, reactor: IReactorTime, seconds: float, call: Callable[[], Awaitable[None] | None], what: str
    ) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._call = call
        self._what = what
        self._timer: IDelayedCall | None = None
        self.is_stopped = False
        self.ended: Deferred[None] = Deferred()
        """Fires once it is stopped *and* its last round has ended."""
        until_beat(reactor, seconds)  # the first that asks sets the beats, and should not be late
        self._round()

    def stop(self) -> None:
        """Begin no further round; see ``ended``. May be called again."""
        self.is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.ended.callback(None)

    def _round(self) -> None:
        self._timer = None
        try:
            result = self._call()
        except Exception:
            self._failed(Failure())
        else:
            if result is not None:
                Deferred.fromCoroutine(_waited(result)).addErrback(self._failed).addBoth(lambda _: self._next())
                return
        self._next()

    def _failed(self, why: Failure) -> None:
        _log.failure("{what} failed", why, what=self._what, event="loop_round_failed")

    def _next(self) -> None:
        if self.is_stopped:
            self.ended.callback(None)
            return
        self._timer = self._reactor.callLater(until_beat(self._reactor, self._seconds), self._round)


async def _waited(result: Awaitable[None]) -> None:
    await result
