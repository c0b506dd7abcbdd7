from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock as VirtualClock

from tests.conftest import LoggedErrors
from tq_node.runtime.clock import Clock, WallClock, make_reactor_monotonic


class Times:
    """A wall clock that somebody sets, and a monotonic one that nobody can."""

    def __init__(self) -> None:
        self.wall_ns = 1_700_000_000 * 10**9
        self.mono_ns = 5 * 10**9

    def passes(self, seconds: float) -> None:
        self.wall_ns += int(seconds * 1e9)
        self.mono_ns += int(seconds * 1e9)

    def clock(self) -> WallClock:
        return WallClock(lambda: self.wall_ns, lambda: self.mono_ns)


def test_wall_time_goes_on_after_a_step_back() -> None:
    times = Times()
    clock = times.clock()
    before = clock()
    times.wall_ns -= 3_600 * 10**9
    times.passes(5)
    assert clock() == before + 5_000_000, "five seconds are five seconds"


def test_wall_time_follows_a_step_forward_and_does_not_go_back_with_it() -> None:
    times = Times()
    clock = times.clock()
    before = clock()
    times.wall_ns += 3_600 * 10**9
    assert clock() == before + 3_600_000_000
    times.wall_ns -= 3_600 * 10**9
    times.passes(1)
    assert clock() == before + 3_601_000_000


def test_wall_time_is_never_before_what_the_store_has_seen() -> None:
    times = Times()
    clock = times.clock()
    ahead = clock() + 60_000_000
    clock.not_before(ahead)
    times.passes(1)
    assert clock() == ahead + 1_000_000
    clock.not_before(ahead)
    assert clock() == ahead + 1_000_000


def test_f39_timers_run_on_the_monotonic_clock() -> None:
    class Reactor:
        def __init__(self, calls: list[object]) -> None:
            self.seconds = object()
            self.getDelayedCalls = lambda: calls

    fresh = Reactor([])
    make_reactor_monotonic(fresh)
    make_reactor_monotonic(fresh)
    with pytest.raises(RuntimeError, match="timers already"):
        make_reactor_monotonic(Reactor([object()]))


def test_a_loop_survives_a_bad_round(logged_errors: LoggedErrors) -> None:
    virtual = VirtualClock()
    clock = Clock(virtual)
    rounds: list[int] = []

    def work() -> None:
        rounds.append(clock.now_ms())
        if len(rounds) == 2:
            raise ValueError("a bad round")

    loop = clock.every(1.0, work, "the work")
    for _ in range(3):
        virtual.advance(1.0)
    loop.stop()
    assert rounds == [0, 1_000, 2_000, 3_000]
    assert loop.ended.called
    assert len(logged_errors.flush(ValueError)) == 1


def test_loops_that_are_due_together_wake_the_reactor_once() -> None:
    virtual = VirtualClock()
    clock = Clock(virtual)
    woken: set[float] = set()
    rounds: list[str] = []

    def note(what: str) -> None:
        woken.add(round(virtual.seconds(), 6))
        rounds.append(what)

    loops = []
    for number, seconds in enumerate((0.1, 0.1, 0.25, 0.5)):
        loops.append(clock.every(seconds, lambda number=number: note(str(number)), "a loop"))  # type: ignore[misc]
        virtual.advance(0.013)
    woken.clear()
    rounds.clear()
    virtual.pump([0.001] * 10_000)
    assert len(woken) in (119, 120, 121), "ten a second, and two at the odd quarters"
    assert 98 <= rounds.count("0") <= 101
    assert 38 <= rounds.count("2") <= 41
    for loop in loops:
        loop.stop()
    assert not virtual.getDelayedCalls()


def test_a_loop_s_round_that_waits_is_awaited_and_beats_are_skipped() -> None:
    virtual = VirtualClock()
    clock = Clock(virtual)
    rounds: list[float] = []
    gates: list[Deferred[None]] = []

    async def work() -> None:
        rounds.append(virtual.seconds())
        gates.append(Deferred())
        await gates[-1]

    loop = clock.every(1.0, work, "the work")
    virtual.advance(2.5)
    assert rounds == [0.0]
    gates[0].callback(None)
    virtual.advance(0.5)
    assert rounds == [0.0, 3.0]
    loop.stop()
    loop.stop()
    assert [loop.ended.called] == [False]
    gates[1].callback(None)
    assert [loop.ended.called] == [True]
    assert not virtual.getDelayedCalls()


class Rings:
    """A timer in virtual time, and when it has called."""

    def __init__(self) -> None:
        self.time = VirtualClock()
        self.at: list[float] = []
        self.timer = Clock(self.time).timer(self.ring)
        self.again_s = 0.0

    def ring(self) -> None:
        self.at.append(self.time.seconds())
        if self.again_s:
            self.timer.start(self.again_s)


def test_a_timer_is_pending_once_however_often_it_is_started() -> None:
    rings = Rings()
    rings.timer.start(2)
    rings.timer.start(1)
    rings.time.pump([1, 1])
    assert rings.at == [2]
    rings.timer.start()
    rings.time.advance(0)
    assert rings.at == [2, 2]


def test_a_timer_can_be_moved_and_cancelled_and_started_by_its_own_call() -> None:
    rings = Rings()
    rings.timer.cancel()
    rings.again_s = 5
    rings.timer.start(3)
    rings.timer.restart(1)
    rings.time.advance(1)
    assert rings.at == [1]
    assert rings.timer.is_pending
    rings.timer.cancel()
    rings.time.advance(9)
    assert rings.at == [1]
    assert not rings.time.getDelayedCalls()
