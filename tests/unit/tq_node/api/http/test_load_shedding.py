"""Refusals leave in order, so many in a while, and none waits for long."""

from __future__ import annotations

from functools import partial

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.api.http.load_shedding import TICK_S, LoadShedder

PER_TICK = round(limits.REFUSALS_PER_S * TICK_S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shedder(clock: Clock) -> LoadShedder:
    return LoadShedder(clock)


def test_a_few_are_refused_at_once(shedder: LoadShedder, clock: Clock) -> None:
    told: list[int] = []
    for number in range(PER_TICK):
        assert shedder.refuse(partial(told.append, number)) is None
    assert told == list(range(PER_TICK))
    clock.advance(TICK_S)
    assert clock.getDelayedCalls() == [], "nothing ticks where nothing happens"


def test_more_wait_for_their_turn(shedder: LoadShedder, clock: Clock) -> None:
    told: list[int] = []
    for number in range(PER_TICK * 5):
        shedder.refuse(partial(told.append, number))
    for tick in range(1, 5):
        assert told == list(range(PER_TICK * tick))
        clock.advance(TICK_S)
    assert told == list(range(PER_TICK * 5))
    clock.pump([TICK_S] * 3)
    assert clock.getDelayedCalls() == []


def test_who_comes_later_does_not_overtake(shedder: LoadShedder, clock: Clock) -> None:
    told: list[int] = []
    for number in range(PER_TICK + 1):
        shedder.refuse(partial(told.append, number))
    clock.advance(TICK_S)
    shedder.refuse(lambda: told.append(99))
    assert told == [*range(PER_TICK + 1), 99]


def test_none_waits_longer_than_the_bound_however_many_there_are(shedder: LoadShedder, clock: Clock) -> None:
    told: list[int] = []
    many = limits.REFUSALS_PER_S * 20
    for number in range(many):
        shedder.refuse(partial(told.append, number))
    clock.pump([TICK_S] * (round(limits.REFUSAL_WAIT_MS_MAX / 1000 / TICK_S) + 1))
    assert len(told) == many
    assert len(shedder) == 0


def test_a_large_one_counts_for_many(shedder: LoadShedder, clock: Clock) -> None:
    told: list[str] = []
    shedder.refuse(lambda: told.append("large"), PER_TICK * 3)
    shedder.refuse(lambda: told.append("small"))
    assert told == ["large"]
    clock.pump([TICK_S] * 2)
    assert told == ["large"]
    clock.pump([TICK_S] * 2)
    assert told == ["large", "small"]


def test_who_has_gone_is_not_answered_and_takes_nobody_s_turn(shedder: LoadShedder, clock: Clock) -> None:
    told: list[int] = []
    waiting = [shedder.refuse(partial(told.append, number)) for number in range(PER_TICK * 3)]
    for one in waiting[PER_TICK : PER_TICK * 2]:
        assert one is not None
        one.connectionLost(Failure(ConnectionLost()))
    clock.advance(TICK_S)
    assert told == [*range(PER_TICK), *range(PER_TICK * 2, PER_TICK * 3)]


def test_the_end(shedder: LoadShedder, clock: Clock) -> None:
    told: list[int] = []
    for number in range(PER_TICK * 3):
        shedder.refuse(partial(told.append, number))
    shedder.close()
    assert told == list(range(PER_TICK * 3))
    shedder.refuse(lambda: told.append(-1))
    assert told[-1] == -1
    assert clock.getDelayedCalls() == []
