"""Beats: what is due together is due at the same moment, and no beat is met twice."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tq_node.beats import until_beat


def test_whoever_asks_between_two_beats_waits_for_the_same_one() -> None:
    clock = Clock()
    assert until_beat(clock, 0.25) == 0.25
    clock.advance(0.1)
    assert until_beat(clock, 0.25) == pytest.approx(0.15)
    clock.advance(0.13)
    assert until_beat(clock, 0.25) == pytest.approx(0.02)
    assert until_beat(clock, 0.5) == pytest.approx(0.27)


@pytest.mark.parametrize("begun_s", [0.0, 1_234.567, 10.0**7])
@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.25, 2.0])
def test_no_beat_is_met_twice_and_none_is_left_out(seconds: float, begun_s: float) -> None:
    clock = Clock()
    clock.advance(begun_s)
    until_beat(clock, seconds)
    for beat in range(1, 2_000):
        clock.rightNow += until_beat(clock, seconds)
        assert clock.seconds() - begun_s == pytest.approx(beat * seconds, abs=1e-4)


def test_each_reactor_has_its_own() -> None:
    one, other = Clock(), Clock()
    until_beat(one, 1.0)
    other.advance(0.3)
    until_beat(other, 1.0)
    one.advance(0.5)
    other.advance(0.5)
    assert until_beat(one, 1.0) == pytest.approx(0.5)
    assert until_beat(other, 1.0) == pytest.approx(0.5)
