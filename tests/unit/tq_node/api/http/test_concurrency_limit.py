"""How much is let in, by how long it took: no clock, no sockets."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tq_node import limits
from tq_node.api.http.concurrency_limit import (
    UNLOADED_MAX,
    ConcurrencyLimit,
    LatencyTarget,
    LimitRange,
    large_body_limit,
    submit_limit,
)

USUAL = LimitRange(overload=10, least=20, first=40, most=1_000)
ONE = "one"
"""The only caller; how several share is in ``test_fair_shares``."""
LEARNT = LatencyTarget(0.1, 4, 0.025, 1.0)


def limit(target: LatencyTarget = LatencyTarget(0.1), **limits_of_range: int) -> ConcurrencyLimit:  # noqa: B008
    return ConcurrencyLimit(replace(USUAL, **limits_of_range), target)


def enter_all(one: ConcurrencyLimit, count: int) -> list[int]:
    """Tickets of those that were let in."""
    return [ticket for ticket in (one.enter(ONE) for _ in range(count)) if ticket is not None]


def play(one: ConcurrencyLimit, took_s: float, *, rounds: int, offered: int) -> None:
    """So many times: so many come at once, and those that are let in take so long."""
    for _ in range(rounds):
        for ticket in enter_all(one, offered):
            one.leave(ONE, ticket, took_s)


def test_no_more_than_the_room_is_in_at_once() -> None:
    one = limit()
    tickets = enter_all(one, 100)
    assert len(tickets) == one.in_progress == 40
    assert not one.has_room(ONE, 1)
    one.leave(ONE, tickets[0], 0.01)
    assert one.enter(ONE) is not None
    assert one.enter(ONE) is None


def test_one_that_is_larger_than_the_room_is_let_in_alone() -> None:
    one = limit()
    assert one.has_room(ONE, 500)
    ticket = one.enter(ONE, 500)
    assert ticket is not None
    assert not one.has_room(ONE, 1)
    assert one.enter(ONE, 1) is None
    one.leave(ONE, ticket, 0.5, 500)
    assert one.in_progress == 0
    assert one.enter(ONE, 1) is not None
    assert one.enter(ONE, 500) is None


def test_what_is_late_makes_room_less_down_to_the_least_where_much_is_refused() -> None:
    one = limit()
    play(one, 0.3, rounds=1, offered=400)
    assert one.limit < 40
    play(one, 0.3, rounds=30, offered=400)
    assert one.limit == one.range.overload == 10


@pytest.mark.parametrize(("took_s", "room"), [(0.099, 1_000), (0.11, 750), (0.2, 500), (10.0, 250)])
def test_what_is_twice_as_late_leaves_half_the_room(took_s: float, room: int) -> None:
    one = limit(first=1_000)
    for ticket in enter_all(one, 1_000):
        one.leave(ONE, ticket, took_s)
    assert one.limit == room


def test_a_burst_makes_room_less_down_to_the_minimum_only() -> None:
    one = limit()
    play(one, 0.3, rounds=30, offered=24)
    assert one.limit == one.range.least == 20


def test_room_grows_only_where_it_is_wanted_and_what_is_in_is_in_time() -> None:
    one = limit()
    play(one, 0.01, rounds=50, offered=30)
    assert one.limit == 40, "nobody was refused"
    play(one, 0.01, rounds=50, offered=2_000)
    assert one.limit == one.range.most


def test_what_was_taken_away_comes_back_when_the_load_has_gone() -> None:
    one = limit()
    play(one, 0.3, rounds=30, offered=400)
    play(one, 0.01, rounds=30, offered=5)
    assert 40 <= one.limit < 40 * 1.5, "the room of the beginning"


def test_what_was_not_done_says_nothing() -> None:
    one = limit()
    for _ in range(50):
        for _ in enter_all(one, 400):
            one.abandon(ONE)
    assert (one.limit, one.in_progress) == (40, 0)


def test_a_steady_overload_settles_where_it_is_in_time() -> None:
    """Each takes 2 ms of a server that does one at a time: fifty are a tenth of a second."""
    one = limit(first=500)
    rooms = []
    for _ in range(200):
        tickets = enter_all(one, 5_000)
        for ticket in tickets:
            one.leave(ONE, ticket, 0.002 * len(tickets))
        rooms.append(one.limit)
    assert 20 <= min(rooms[50:]) <= max(rooms[50:]) <= 80


class TestAlone:
    """In time is a multiple of what it takes one that has no company."""

    def one(self) -> ConcurrencyLimit:
        return limit(LEARNT)

    def test_until_it_is_known_the_usual_is_in_time(self) -> None:
        assert self.one().target_s == 0.1

    @pytest.mark.parametrize(("alone_s", "target_s"), [(0.001, 0.025), (0.01, 0.04), (0.1, 0.4), (3.0, 1.0)])
    def test_it_is_learnt_from_those_that_are_alone(self, alone_s: float, target_s: float) -> None:
        one = self.one()
        play(one, alone_s, rounds=100, offered=1)
        assert one.target_s == pytest.approx(target_s)

    def test_the_last_of_a_crowd_was_not_alone(self) -> None:
        """All are answered by one commit, so that the last one leaves an empty house."""
        one = self.one()
        play(one, 0.5, rounds=20, offered=30)
        assert one.target_s == 0.1

    def test_who_got_company_was_not_alone(self) -> None:
        one = self.one()
        first = one.enter(ONE)
        for _ in range(UNLOADED_MAX + 1):
            assert one.enter(ONE) is not None
            one.abandon(ONE)
        assert first is not None
        one.leave(ONE, first, 0.5)
        assert one.target_s == 0.1

    def test_overload_does_not_pass_for_being_alone(self) -> None:
        """With little room left few are in at a time, and what they take is not what it takes on an idle node."""
        one = limit(LEARNT, overload=2)
        play(one, 0.01, rounds=100, offered=1)
        play(one, 0.5, rounds=500, offered=400)
        assert one.limit == 2
        assert one.target_s == pytest.approx(0.04)


def test_the_node_s_own_gates() -> None:
    submits, large = submit_limit(), large_body_limit()
    assert submits.range.most == limits.REQUESTS_IN_FLIGHT_MAX
    assert len(enter_all(submits, 10_000)) == limits.SUBMITS_AT_ONCE
    assert large.enter(ONE, limits.BODY_BYTES_MAX) is not None
    assert large.enter(ONE, limits.LARGE_BODY_BYTES) is None
