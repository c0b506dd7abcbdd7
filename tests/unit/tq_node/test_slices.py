"""Long jobs give the reactor back, take turns, and end when nobody wants them any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tq_node.slices import Slices


class Reactor:
    """What is to be called; as the real one, and unlike a ``Clock``, a turn leaves what comes during it to the next."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callLater(self, seconds: float, call: Callable[[], object]) -> object:
        assert seconds == 0
        self.calls.append(call)
        return call

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class World:
    """Each item costs a second of a clock of our own."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.now_s = 0.0
        self.noted: list[str] = []
        self.slices = Slices(
            cast("Any", self.reactor), on_slice=self.noted.append, slice_s=5.0, now_s=lambda: self.now_s
        )
        self.done: list[tuple[str, int]] = []

    def work(self, name: str, item: int) -> int:
        self.now_s += 1.0
        self.done.append((name, item))
        return item * 2

    def job(self, name: str, items: int, *, every: int = 1) -> Deferred[list[int]]:
        pace = self.slices.pace(name)
        return Deferred.fromCoroutine(pace.each(range(items), lambda item: self.work(name, item), every=every))


def test_a_short_job_ends_at_once() -> None:
    world = World()
    found: list[list[int]] = []
    world.job("a", 5).addCallback(found.append)
    assert found == [[0, 2, 4, 6, 8]]
    assert not world.reactor.calls


def test_a_long_one_is_cut_and_others_come_between() -> None:
    world = World()
    found: list[list[int]] = []
    world.job("a", 12).addCallback(found.append)
    assert len(world.done) == 5
    world.reactor.turn()
    assert len(world.done) == 10
    assert not found
    world.reactor.turn()
    assert found == [[item * 2 for item in range(12)]]
    assert world.noted == ["a", "a"]


def test_one_turn_of_the_reactor_runs_one_slice_however_many_jobs_there_are() -> None:
    world = World()
    for name in "abc":
        world.job(name, 15)
    per_turn = []
    while world.slices:
        before = len(world.done)
        world.reactor.turn()
        per_turn.append(len(world.done) - before)
    assert per_turn == [5] * 6
    assert world.noted == ["a", "b", "c"] * 2
    assert len(world.done) == 45
    assert not world.reactor.calls


def test_one_that_is_cancelled_does_no_more_and_holds_up_nobody() -> None:
    world = World()
    ended: list[object] = []
    first = world.job("a", 100)
    first.addErrback(lambda why: ended.append(why.trap(CancelledError)))
    world.job("b", 10).addCallback(ended.append)
    first.cancel()
    world.reactor.turn()
    assert ended == [CancelledError, [item * 2 for item in range(10)]]
    assert sum(name == "a" for name, _ in world.done) == 5
    assert not world.slices
    assert not world.reactor.calls


def test_all_that_wait_can_be_cancelled() -> None:
    world = World()
    jobs = [world.job(name, 100) for name in "ab"]
    for job in jobs:
        job.addErrback(lambda why: why.trap(CancelledError) and None)
        job.cancel()
    world.reactor.turn()
    assert not world.slices
    assert not world.reactor.calls


@pytest.mark.parametrize("every", [1, 4, 1_000])
def test_the_clock_is_read_after_so_many_items(every: int) -> None:
    world = World()
    found: list[list[int]] = []
    world.job("a", 100, every=every).addCallback(found.append)
    turns = 0
    while not found:
        world.reactor.turn()
        turns += 1
    assert turns == {1: 19, 4: 12, 1_000: 0}[every]
    assert len(found[0]) == 100
