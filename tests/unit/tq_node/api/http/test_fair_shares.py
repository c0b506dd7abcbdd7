"""Who gets how much at the gate: N callers 1/N each, whatever they do; the law of the bound; the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tq_node.api.http.gate_world import SERVED_PER_S, Load, play
from tq_node import limits
from tq_node.api.http.concurrency_limit import ConcurrencyLimit, LatencyTarget, LimitRange, submit_limit
from tq_node.api.http.fair_shares import FairShares

FLOOD = Load(connections=100, comes_again_s=0.01)
MILD = Load(connections=64, comes_again_s=0.1)
POLITE = Load(connections=100, comes_again_s=1.0)
"""Keeps to ``Retry-After``."""
WITHIN = 0.1


def callers(group: str, count: int, load: Load) -> dict[str, Load]:
    return {f"{group}{number:03}": load for number in range(count)}


class Unmoved(ConcurrencyLimit):
    """A limit that stays what it is."""

    def _adjust(self) -> None:
        pass


def fixed(limit: int, least: int = 64) -> Callable[[Callable[[], float]], ConcurrencyLimit]:
    """A gate with a limit as in an overload, where ``least`` is the bound of those below their shares."""
    limit_range = LimitRange(overload=limit, least=max(limit, least), first=max(limit, least), most=max(limit, least))

    def make(now_s: Callable[[], float]) -> ConcurrencyLimit:
        one = Unmoved(limit_range, LatencyTarget(1e9), now_s)
        one.limit = limit
        one._most_in_progress = max(2 * limit, least)
        return one

    return make


HUNDRED = callers("a", 50, Load(connections=8, comes_again_s=0.02)) | callers(
    "b", 50, Load(connections=4, comes_again_s=0.1)
)


@pytest.mark.parametrize("commit_s", [0.0, 0.01], ids=["each answered by itself", "answered together"])
@pytest.mark.parametrize(
    ("limit", "loads"),
    [
        pytest.param(64, callers("a", 1, FLOOD) | callers("b", 1, MILD), id="a flood and a mild one"),
        pytest.param(64, callers("a", 1, FLOOD) | callers("b", 1, POLITE), id="a flood and a polite one"),
        pytest.param(16, callers("a", 5, FLOOD) | callers("b", 5, MILD), id="ten, shares that are no whole number"),
        pytest.param(16, HUNDRED, id="a hundred, shares below one"),
        pytest.param(
            32,
            callers("a", 1, Load(per_s=4_000)) | callers("b", 1, Load(per_s=1_000)) | callers("c", 1, Load(per_s=400)),
            id="three that wait for no answer",
        ),
    ],
)
def test_each_of_n_callers_gets_one_nth(limit: int, loads: dict[str, Load], commit_s: float) -> None:
    out = play(fixed(limit), loads, commit_s=commit_s)
    found = [share * len(loads) for group in "abc" for share in out.shares(group)]
    print(f"\n{len(loads)} callers: {min(found):.3f} to {max(found):.3f} of a share")
    assert len(found) == len(loads)
    assert 1 - WITHIN < min(found) <= max(found) < 1 + WITHIN
    assert out.admitted.total() > 0.98 * SERVED_PER_S * 6, "and the server is busy all the time"


@pytest.mark.parametrize(
    ("limit", "loads"),
    [
        pytest.param(64, callers("a", 1, FLOOD), id="one flood"),
        pytest.param(16, callers("a", 1, FLOOD), id="one flood, little room"),
        pytest.param(16, callers("a", 2, FLOOD) | callers("b", 1, MILD), id="three unlike floods"),
    ],
)
@pytest.mark.parametrize("quiet", [1, 3, 20])
def test_a_quiet_one_is_never_refused_and_what_it_leaves_is_shared(
    limit: int, loads: dict[str, Load], quiet: int
) -> None:
    out = play(fixed(limit), loads | callers("q", quiet, Load(per_s=60 / quiet)))
    assert [caller for caller in out.refused if caller[0] == "q"] == []
    assert 0.09 < sum(out.shares("q")) < 0.15, "all that they asked for"
    greedy = [*out.shares("a"), *out.shares("b")]
    mean = sum(greedy) / len(greedy)
    assert all(abs(share / mean - 1) < WITHIN for share in greedy)
    print(f"\np99 of a quiet one beside a flood: {out.p99_ms('q'):.0f} ms, of the flood: {out.p99_ms('a'):.0f} ms")


def test_without_shares_who_comes_again_soonest_gets_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule switched off: what the tests above would see."""
    monkeypatch.setattr(FairShares, "is_below", lambda *_: False)
    out = play(fixed(64), callers("a", 1, FLOOD) | callers("b", 1, MILD) | callers("q", 1, Load(per_s=60)))
    print(f"\nwithout shares: {out.shares('a')[0]:.0%} for the flood, {out.shares('b')[0]:.0%} for the mild one")
    assert out.shares("a")[0] > 0.8
    assert out.refused["q000"]


def test_without_virtual_time_places_that_can_t_be_divided_go_to_the_loudest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FairShares, "count", lambda *_: None)
    out = play(fixed(16), HUNDRED)
    assert min(out.shares("b")) * 100 < 1 / 2


def test_the_node_s_own_limit_shares_while_it_moves() -> None:
    loads = callers("a", 1, FLOOD) | callers("b", 2, MILD) | callers("q", 2, Load(per_s=30))
    out = play(submit_limit, loads, seconds=20.0, warm_s=5.0, commit_s=0.005)
    assert out.refused["q000"] == out.refused["q001"] == 0
    greedy = [*out.shares("a"), *out.shares("b")]
    mean = sum(greedy) / len(greedy)
    assert all(abs(share / mean - 1) < WITHIN for share in greedy), greedy


def test_one_alone_has_the_whole_limit_and_no_more() -> None:
    out = play(fixed(64), callers("a", 1, FLOOD))
    assert out.in_progress_max == 64
    assert out.admitted.total() > 0.98 * SERVED_PER_S * 6


def test_who_is_quiet_is_admitted_while_the_limit_falls_far_at_once() -> None:
    """More than twice the new limit is in progress then. However many come, there is a bound, which the rounds don't raise."""
    limit_range = LimitRange(overload=16, least=64, first=1_000, most=1_000)
    one = ConcurrencyLimit(limit_range, LatencyTarget(0.1), now_s=lambda: 0.0)
    tickets = [ticket for _ in range(1_000) if (ticket := one.enter("loud")) is not None]
    over = bound = 0
    while tickets:
        one.leave("loud", tickets.pop(), 5.0)
        assert one.enter("loud") is None or one.in_progress <= one.limit
        over += one.in_progress > 2 * one.limit
        quiet = one.enter("quiet")
        assert quiet is not None
        one.leave("quiet", quiet, 5.0)
        bound = one._most_in_progress
        assert one.in_progress < bound <= 2_000
    assert over > 100
    assert one.limit <= 64
    while one.enter(f"newcomer-{one.admitted}") is not None:
        assert one.in_progress <= bound


def test_a_thousand_with_one_connection_each_do_not_pass_the_bound() -> None:
    """Each is below its share when it comes for the first time."""
    out = play(fixed(16), callers("a", 1_000, Load(connections=1, comes_again_s=1.0)), seconds=20.0)
    assert out.in_progress_max == 64
    got = [out.admitted[f"a{number:03}"] for number in range(1_000)]
    assert min(got) > 0, "nobody is left out"


def test_a_giant_that_was_refused_has_its_turn() -> None:
    """It lags behind while others go on, until it may exceed the limit by itself."""
    one = ConcurrencyLimit(
        LimitRange(overload=100, least=100, first=100, most=100), LatencyTarget(1e9), now_s=lambda: 0.0
    )
    tickets = [one.enter("small") for _ in range(100)]
    assert one.enter("giant", 1_000) is None
    done = 0
    while one.enter("giant", 1_000) is None:
        done += 1
        ticket = tickets.pop()
        assert ticket is not None
        one.leave("small", ticket, 0.01)
        while (ticket := one.enter("small")) is not None:
            tickets.append(ticket)
    assert 900 < done < 2_500
    assert one.enter("giant", 1_000) is None


def test_who_was_refused_competes_for_a_while_only() -> None:
    now_s = 0.0
    shares = FairShares(1)
    shares.refused("one", 1, now_s)
    shares.refused("other", 1, now_s + limits.BACKLOGGED_S / 2)
    assert list(shares.backlogged) == ["one", "other"]
    shares.refused("one", 1, now_s + limits.BACKLOGGED_S / 2)
    assert list(shares.backlogged) == ["other", "one"]
    shares.refused("third", 1, now_s + limits.BACKLOGGED_S * 1.5)
    assert list(shares.backlogged) == ["third"]
    assert set(shares._accounts) == {"one", "other", "third"}
    shares.expire(now_s + limits.BACKLOGGED_S * 3)
    assert (shares._idle, shares._accounts) == (0, {}), "nothing is kept of who is gone"


def test_what_is_kept_of_callers_has_a_bound() -> None:
    one = ConcurrencyLimit(LimitRange(overload=1, least=1, first=1, most=1), LatencyTarget(1e9), now_s=lambda: 0.0)
    for number in range(limits.FAIR_CALLERS_MAX * 2):
        one.enter(f"caller-{number}")
    assert one.in_progress == 2
    assert len(one._shares._accounts) <= limits.FAIR_CALLERS_MAX
    assert len(one._shares.backlogged) == limits.BACKLOGGED_CALLERS_MAX


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "abandon", "wait"]), st.integers(0, 7), st.integers(1, 12)),
    max_size=200,
)


@given(steps=STEPS, limit=st.integers(1, 20))
def test_counts_hold_and_so_does_the_bound(steps: list[tuple[str, int, int]], limit: int) -> None:
    """Whatever comes in whatever order."""
    now_s = 0.0
    one = ConcurrencyLimit(
        LimitRange(overload=limit, least=limit, first=limit, most=limit), LatencyTarget(1e9), lambda: now_s
    )
    held: list[tuple[str, int, int]] = []
    for what, number, cost in steps:
        caller = f"c{number}"
        if what == "wait":
            now_s += cost / 5
        elif what == "enter":
            before, of = one.in_progress, Counter[str]()
            for name, _, some in held:
                of[name] += some
            present = {*one._shares.backlogged, *of, caller}
            has_lead = bool(one._shares.backlogged)
            had_room = one.has_room(caller, cost)
            ticket = one.enter(caller, cost)
            assert (ticket is not None) == had_room
            if ticket is not None:
                held.append((caller, ticket, cost))
                assert one.in_progress <= max(2 * limit, limit + cost, cost)
            elif not has_lead and before + cost <= 2 * limit:
                assert of[caller] + cost > limit / len(present), "below its share, and refused"
        elif held:
            name, ticket, given = held.pop(number % len(held))
            if what == "leave":
                one.leave(name, ticket, 0.01, given)
            else:
                one.abandon(name, given)
        shares = one._shares
        of = Counter[str]()
        for name, _, some in held:
            of[name] += some
        assert one.in_progress == of.total()
        assert one.held() == dict(of)
        if one._only is None:
            assert shares.held == dict(of)
        else:
            assert not shares.held, "nothing is counted by caller where there is but one"
            assert not shares.backlogged
        assert shares._idle == len(shares.backlogged.keys() - of.keys())
        assert shares.backlogged.items() <= shares._accounts.items()
