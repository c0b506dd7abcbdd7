"""How many claims are held ahead: plain numbers, no clock."""

from __future__ import annotations

import pytest

from tq_node import limits
from tq_node.work.prefetch import Prefetch


def measured(slots: int, task_s: float, commit_s: float, tasks: int = 100) -> Prefetch:
    ahead = Prefetch(slots)
    for _ in range(tasks):
        ahead.claim_took(commit_s)
        ahead.task_took(task_s)
    return ahead


def test_nothing_before_anything_is_known() -> None:
    assert (Prefetch(4).claims, Prefetch(4).depth) == (0, 0)
    assert measured(4, 0.0001, 0.01, tasks=15).claims == 0
    assert measured(4, 0.0001, 0.01, tasks=16).claims > 0


@pytest.mark.parametrize(
    ("slots", "task_s", "commit_s", "claims", "depth"),
    [
        (4, 0.001, 0.010, 40, 5),
        (4, 0.004, 0.010, 10, 1),
        (4, 0.0002, 0.010, 200, limits.CHILD_AHEAD_MAX),
        (8, 0.001, 0.010, 80, 5),
        (4, 0.0, 0.010, limits.CLAIMS_AHEAD_MAX, limits.CHILD_AHEAD_MAX),
        (4, 0.010, 0.010, 0, 0),
        (4, 1.0, 0.010, 0, 0),
        # A slow disk: no more than can begin in half of what a claim may wait.
        (4, 0.010, 2.0, 50, 0),
        (4, 0.130, 2.0, 0, 0),
    ],
)
def test_as_many_as_begin_while_a_claim_is_committed(
    slots: int, task_s: float, commit_s: float, claims: int, depth: int
) -> None:
    ahead = measured(slots, task_s, commit_s)
    assert ahead.claims == pytest.approx(claims, abs=1)
    assert ahead.depth == pytest.approx(depth, abs=1 if depth else 0)


def test_what_is_held_begins_in_time() -> None:
    for task_s in (0.0001, 0.001, 0.01, 0.1):
        for commit_s in (0.001, 0.01, 0.1, 1.0, 10.0):
            ahead = measured(4, task_s, commit_s)
            assert ahead.claims * task_s / 4 <= limits.CLAIMS_AHEAD_WAIT_MS / 1000 / 2
            assert ahead.claims <= limits.CLAIMS_AHEAD_MAX
            assert ahead.depth * task_s <= limits.CHILD_AHEAD_MS / 1000


def test_one_long_task_ends_it_and_short_ones_bring_it_back() -> None:
    ahead = measured(4, 0.001, 0.010)
    ahead.task_took(1.0)
    assert (ahead.claims, ahead.depth) == (0, 0)
    for _ in range(500):
        ahead.task_took(0.001)
    assert ahead.claims > 20


def test_less_is_held_where_some_are_long() -> None:
    ahead = Prefetch(4)
    ahead.claim_took(0.02)
    held: list[int] = []
    for number in range(10_000):
        ahead.task_took(0.2 if number % 100 == 0 else 0.0001)
        held.append(ahead.claims)
    assert max(held) < limits.CLAIMS_AHEAD_MAX / 4
    assert sum(held) / len(held) > 4


def test_after_a_stop_it_is_measured_anew() -> None:
    ahead = measured(4, 0.001, 0.010)
    ahead.stop()
    assert (ahead.claims, ahead.depth) == (0, 0)
    for _ in range(15):
        ahead.task_took(0.001)
    assert ahead.claims == 0
    ahead.task_took(0.001)
    assert ahead.claims > 20
