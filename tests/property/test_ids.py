"""Ids that nodes make differ, fit their partition and tell their time, however the clock steps and whoever starts again."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tq_node.cluster.placement import partition_of
from tq_node.runtime.tasks.id_allocator import BEGINNING_US, IdMaker, made_at_us

NOW_US = 1_700_000_000_123_456
SEED = 5
PARTITIONS = 64

steps = st.one_of(st.just(0), st.integers(1, BEGINNING_US), st.integers(-2 * BEGINNING_US, 2 * BEGINNING_US))
partitions = st.frozensets(st.integers(0, PARTITIONS - 1), min_size=1, max_size=3)
actions = st.lists(st.tuples(st.sampled_from(["one", "one", "one", "batch", "blind", "restart"]), steps, partitions))


def check(actions: list[tuple[str, int, frozenset[int]]], seed: int) -> None:
    """One clock, two nodes that make ids in turn; ``restart``: one of them begins anew in the same instant."""
    randomness = random.Random(seed)

    def started() -> IdMaker:
        return IdMaker(randomness.randbytes, seed=SEED, partition_count=PARTITIONS)

    nodes = [started(), started()]
    now_us = NOW_US
    made: list[str] = []
    for number, (action, step_us, wanted) in enumerate(actions):
        now_us += step_us
        node = nodes[number % 2]
        if action == "restart":
            nodes[number % 2] = started()
        elif action == "blind":
            made.append(node.make(now_us))
        else:
            if action == "one":
                new = []
                for _ in range(3):
                    one, partition = node.make_one(now_us, wanted)
                    assert partition == partition_of(one, seed=SEED, partition_count=PARTITIONS)
                    new.append(one)
            else:
                new = [node.make_in(now_us, wanted) for _ in range(20)]
            for one in new:
                assert partition_of(one, seed=SEED, partition_count=PARTITIONS) in wanted
                at_us = made_at_us(one)
                assert at_us is not None
                assert -1_000 <= now_us - at_us < BEGINNING_US + 1_000
            made += new
    assert len(set(made)) == len(made)
    assert len({one[-17:] for one in made}) == len(made), "two ids share all their random bits"


@given(actions, st.integers(0, 2**32))
def test_ids_are_unique_fit_and_tell_their_time(actions: list[Any], seed: int) -> None:
    check(actions, seed)


def test_one_beginning_serves_64_ms_and_no_longer() -> None:
    ids = IdMaker(random.Random(1).randbytes, seed=SEED, partition_count=PARTITIONS)
    heads = {}
    for at_us in (0, 1, BEGINNING_US - 1, BEGINNING_US, BEGINNING_US - 1):
        heads[at_us] = ids.make_one(NOW_US + at_us, {at_us % PARTITIONS})[0][:23]
    assert heads[0] == heads[1]
    assert heads[BEGINNING_US] > heads[0], "the second time"
    assert heads[BEGINNING_US - 1] not in (heads[0], heads[BEGINNING_US]), "a clock that steps back is followed at once"


def test_an_id_costs_few_hashes_where_many_partitions_have_their_turn(monkeypatch: Any) -> None:
    drawn = 0
    draw_in = IdMaker.make_one.__globals__["draw_in"]

    def counting(head: str, tails: list[str], *others: Any, **settings: Any) -> Any:
        nonlocal drawn
        before = len(tails)
        found = draw_in(head, tails, *others, **settings)
        drawn += before - len(tails)
        return found

    monkeypatch.setitem(IdMaker.make_one.__globals__, "draw_in", counting)
    ids = IdMaker(random.Random(1).randbytes, seed=SEED, partition_count=PARTITIONS)
    for number in range(21 * 20):
        ids.make_one(NOW_US, {3 * (number % 21)})
    assert drawn < 21 * 20 * 8, "each of its own would cost 64"


def test_what_is_kept_is_bounded() -> None:
    ids = IdMaker(random.Random(1).randbytes, seed=SEED, partition_count=PARTITIONS)
    made = {ids.make_one(NOW_US, {3})[0] for _ in range(2_000)}
    assert len(made) == 2_000
    assert max(map(len, ids._kept)) <= 64
    assert len(ids._tails) < 4_096
