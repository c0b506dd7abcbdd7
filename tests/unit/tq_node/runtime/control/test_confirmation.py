"""How long a cluster map counts as confirmed, in virtual time, against a Raft group that answers as it is told."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock as VirtualClock

from tests.conftest import LoggedErrors
from tq_node import limits
from tq_node.errors import NoController
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.confirmation import Confirmation
from tq_node.runtime.control.raft_driver import RaftDriver

FRESH_S = limits.TOKENS_FRESH_MS / 1000
TICK_S = 0.01


class Raft:
    """``delay_s``: from question to answer; None: there is none. ``has_leader``: else it is refused at once."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.delay_s: float | None = 0.0
        self.has_leader = True
        self.asked: list[float] = []
        self.open: set[Deferred[int]] = set()

    def read_index(self) -> Deferred[int]:
        self.asked.append(self.clock.seconds())
        if not self.has_leader:
            return fail(NoController())
        asked: Deferred[int] = Deferred(self.open.discard)
        self.open.add(asked)
        if self.delay_s is not None:
            self.clock.callLater(self.delay_s, self._answer, asked)
        return asked

    def _answer(self, asked: Deferred[int]) -> None:
        if asked in self.open:
            self.open.discard(asked)
            asked.callback(1)


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.raft = Raft(self.clock)
        self.confirmation = Confirmation(cast("RaftDriver", self.raft), Clock(self.clock))

    def run(self, seconds: float) -> None:
        self.clock.pump([TICK_S] * round(seconds / TICK_S))

    def confirmed_for(self, seconds: float) -> float:
        """Of so many seconds from now, those in which it was."""
        held = 0
        for _ in range(round(seconds / TICK_S)):
            self.run(TICK_S)
            held += self.confirmation.is_confirmed()
        return held * TICK_S


@pytest.fixture
def world() -> Any:
    world = World()
    yield world
    world.confirmation.stop()
    assert world.raft.open == set()
    asked = len(world.raft.asked)
    world.run(3)
    assert len(world.raft.asked) == asked, "it asks no more"


def test_it_is_not_before_somebody_asks_for_it(world: World) -> None:
    assert world.confirmed_for(3) == 0
    assert world.raft.asked == []


def test_it_is_with_the_first_answer_and_stays_so(world: World) -> None:
    world.confirmation.start()
    assert world.confirmed_for(10) >= 10 - TICK_S
    assert len(world.raft.asked) == pytest.approx(10 / limits.TOKENS_CONFIRM_S, abs=2)


def test_start_may_be_said_again_and_again(world: World) -> None:
    for _ in range(50):
        world.confirmation.start()
        world.run(TICK_S)
    assert len(world.raft.asked) <= 3


def test_it_ends_by_itself_so_long_after_it_was_last_asked_for(world: World) -> None:
    world.confirmation.start()
    world.run(1)
    world.raft.has_leader = False
    held_s = world.confirmed_for(5)
    assert FRESH_S - limits.TOKENS_CONFIRM_S - 2 * TICK_S <= held_s <= FRESH_S


def test_what_counts_is_when_it_was_asked_not_when_the_answer_came(world: World) -> None:
    world.raft.delay_s = 1.5
    world.confirmation.start()
    world.raft.has_leader = False
    assert world.confirmed_for(5) == pytest.approx(FRESH_S - 1.5, abs=2 * TICK_S)


def test_an_answer_that_comes_too_late_confirms_nothing(world: World) -> None:
    world.raft.delay_s = FRESH_S + 0.05
    world.confirmation.start()
    assert world.confirmed_for(10) == 0
    assert len(world.raft.open) <= FRESH_S / limits.TOKENS_CONFIRM_AGAIN_S + 1


@pytest.mark.parametrize("delay_s", [0.15, 0.6, 1.4])
def test_slow_answers_confirm_as_long_as_they_come(world: World, delay_s: float) -> None:
    world.raft.delay_s = delay_s
    world.confirmation.start()
    world.run(delay_s + 2 * TICK_S)
    assert world.confirmed_for(10) >= 10 - TICK_S


def test_an_answer_that_was_overtaken_takes_nothing_back(world: World) -> None:
    world.raft.delay_s = 0.8
    world.confirmation.start()
    world.run(0.05)
    world.raft.delay_s = 0.0
    world.run(0.6)
    assert world.confirmation.is_confirmed()
    world.raft.has_leader = False
    began_s = world.clock.seconds()
    assert (
        world.confirmed_for(4) > FRESH_S - limits.TOKENS_CONFIRM_S - (world.clock.seconds() - began_s - 4) - 2 * TICK_S
    )


def test_lost_questions_pile_up_nowhere(world: World) -> None:
    world.raft.delay_s = None
    world.confirmation.start()
    assert world.confirmed_for(60) == 0
    assert len(world.raft.open) <= FRESH_S / limits.TOKENS_CONFIRM_AGAIN_S + 1


def test_it_comes_back_soon_after_somebody_answers_again(world: World) -> None:
    world.raft.has_leader = False
    world.confirmation.start()
    assert world.confirmed_for(30) == 0
    world.raft.has_leader = True
    world.run(limits.TOKENS_CONFIRM_AGAIN_S + 2 * TICK_S)
    assert world.confirmation.is_confirmed()


def test_a_process_that_was_stopped_finds_it_over(world: World) -> None:
    world.confirmation.start()
    world.run(1)
    world.raft.has_leader = False
    world.clock.rightNow += 60  # nothing ran meanwhile
    assert not world.confirmation.is_confirmed()


def test_an_answer_from_before_the_end_changes_nothing(world: World) -> None:
    world.raft.delay_s = 0.2
    world.confirmation.start()
    world.run(0.1)
    world.confirmation.stop()
    assert world.confirmed_for(3) == 0


def test_another_failure_is_a_bug_and_said(world: World, logged_errors: LoggedErrors) -> None:
    def broken() -> Deferred[int]:
        return fail(ZeroDivisionError())

    world.raft.read_index = broken  # type: ignore[method-assign]
    world.confirmation.start()
    assert len(logged_errors.flush(ZeroDivisionError)) == 1
    assert world.confirmed_for(0.05) == 0
