from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests.support.harness import PROJECT
from tq_node.cluster.placement import partition_of, plan_copies, plan_primaries, weight
from tq_node.types import NodeId


@pytest.mark.parametrize(
    ("task_id", "seed", "count", "partition"),
    [
        ("a", 0, 64, 50),
        ("a", 1, 64, 40),
        ("order-4711", 0, 64, 24),
        ("order-4711", 0, 1024, 472),
        ("order-4711", 4294967295, 64, 29),
        ("task-0192f000-7abc-7000-8000-123456789abc", 0, 64, 55),
        ("aufgabe-ä", 0, 64, 59),
    ],
)
def test_values_are_pinned_because_they_are_part_of_the_data_format(
    task_id: str, seed: int, count: int, partition: int
) -> None:
    assert partition_of(task_id, seed=seed, partition_count=count) == partition


def test_ids_spread_over_all_partitions() -> None:
    spread = Counter(partition_of(f"task-{n}", seed=3, partition_count=64) for n in range(64_000))
    assert len(spread) == 64
    assert max(spread.values()) < 1_200


# --- copies and primaries ---
def names(count: int, first: int = 0) -> list[NodeId]:
    return [NodeId(f"{scattered(number):032x}") for number in range(first, first + count)]


def scattered(number: int) -> int:
    """Ids without order, the same in every run."""
    return (number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128


Copies = list[tuple[NodeId, ...]]


def place(current: Copies, live: list[NodeId], wanted: int = 3, **options: Any) -> Copies:
    full: dict[str, Any] = {"keepers": set(live), "targets": set(live), "wanted": wanted, "seed": 5} | options
    return plan_copies(current, **full)


def moves(before: Copies, after: Copies) -> int:
    return sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))


def fewest(before: Copies, live: list[NodeId], wanted: int) -> int:
    """A bound from below: whatever a node may keep it keeps, all else must be made. Not always within reach."""
    wanted = min(wanted, len(live))
    cap = math.ceil(len(before) * wanted / len(live))
    load = Counter(node for copies in before for node in copies)
    return len(before) * wanted - sum(min(load[node], cap) for node in live)


def within_bounds(copies: Copies, live: list[NodeId], wanted: int) -> None:
    wanted = min(wanted, len(live))
    assert all(len(set(nodes)) == len(nodes) == wanted and set(nodes) <= set(live) for nodes in copies)
    load = Counter(node for nodes in copies for node in nodes)
    assert max(load.values()) <= math.ceil(len(copies) * wanted / len(live))


def test_weights_are_pinned_because_nodes_of_all_versions_must_agree() -> None:
    assert [weight(NodeId("a" * 32), partition, 7) for partition in (0, 1, 1023)] == [
        2759364198,
        3518010669,
        2280578269,
    ]


@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_reached_with_the_fewest_moves(seed: int) -> None:
    rng = random.Random(seed)
    partitions, wanted = rng.choice([16, 64, 64, 256]), rng.choice([1, 2, 3, 3, 5])
    pool = names(40)
    live, spare = pool[:1], pool[1:]
    copies: Copies = [(live[0],)] * partitions
    for _ in range(25):
        if spare and (len(live) < 3 or rng.random() < 0.55):
            joining = min(len(spare), rng.choice([1, 1, 3]))
            live, spare = live + spare[:joining], spare[joining:]
        else:
            live = rng.sample(live, len(live) - 1)
        after = place(copies, live, wanted)
        within_bounds(after, live, wanted)
        least = fewest(copies, live, wanted)
        assert moves(copies, after) <= max(1.1 * least, least + 1 if least else 0)
        assert place(after, live, wanted) == after, "a fixpoint"
        copies = after


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_a_node_that_comes_and_goes_again_moves_only_its_share(count: int) -> None:
    live = names(count)
    before = place([(live[0],)] * 64, live)
    joined = place(before, [*live, *names(1, 90)])
    assert moves(before, joined) == fewest(before, [*live, *names(1, 90)], 3)
    left = place(joined, live)
    assert moves(joined, left) == fewest(joined, live, 3)


def test_an_even_spread_holds_the_lower_bound_too() -> None:
    live = names(99)
    copies = place([(live[0],)] * 1_024, live)
    more = [*live, *names(1, 99)]
    shy = Counter(node for nodes in place(copies, more) for node in nodes)
    even = Counter(node for nodes in place(copies, more, is_even=True) for node in nodes)
    assert shy[more[-1]] < 30
    assert min(even[node] for node in more) == 30
    assert max(even.values()) == 31


def test_an_even_spread_that_pins_forbid_is_left_as_it_is() -> None:
    live = names(2)
    copies: Copies = [(live[0],)] * 4
    assert place(copies, live, 1, pinned=set(range(4)), is_even=True) == copies


def test_without_keepers_everything_stays() -> None:
    copies: Copies = [(names(1)[0],)]
    assert place(copies, []) == copies


def test_one_that_may_only_keep_is_given_nothing_and_counts() -> None:
    live = names(4)
    resting = live[3]
    copies = place([(live[0],)] * 64, live, targets=set(live[:3]))
    assert not any(resting in nodes for nodes in copies)
    load = Counter(node for nodes in copies for node in nodes)
    assert [load[node] for node in live] == [64, 48, 48, 0], "room is kept for it"


def test_pinned_partitions_stay_and_others_make_up_for_them() -> None:
    live = names(2)
    pinned = set(range(20))
    copies = place([(live[0],)] * 64, live, wanted=1, pinned=pinned)
    assert all(copies[partition] == (live[0],) for partition in pinned)
    assert Counter(node for nodes in copies for node in nodes) == {live[0]: 32, live[1]: 32}


def test_more_copies_than_wanted_are_trimmed_from_the_fullest() -> None:
    live = names(4)
    copies: Copies = [tuple(live)] + [tuple(live[:3])] * 3
    after = place(copies, live)
    within_bounds(after, live, 3)
    assert moves(copies, after) == fewest(copies, live, 3) == 2


def test_where_only_those_have_room_that_hold_it_already_something_is_passed_on() -> None:
    a, b, c = sorted(names(3))
    copies: Copies = [(a, b), (a, b), (a, c), (c,)]
    after = place(copies, [a, b, c], 2, targets={b, c})
    assert all(len(nodes) == 2 for nodes in after)


def test_primaries_are_shared_and_stay_where_they_can() -> None:
    live = names(5)
    copies = place([(live[0],)] * 64, live)
    primaries = plan_primaries(copies, [None] * 64, able=set(live), seed=5)
    assert max(Counter(primaries).values()) <= 13
    assert plan_primaries(copies, primaries, able=set(live), seed=5) == primaries
    without = plan_primaries(copies, primaries, able=set(live[1:]), seed=5)
    assert max(Counter(without).values()) <= 16
    changed = sum(1 for old, new in zip(primaries, without, strict=True) if old != new)
    assert changed <= sum(1 for old in primaries if old == live[0]) + 1


@pytest.mark.parametrize("seed", range(30))
def test_a_share_of_primaries_is_always_within_reach(seed: int) -> None:
    rng = random.Random(seed)
    live = names(rng.randint(1, 12))
    copies = place([(live[0],)] * rng.choice([8, 64, 100]), live, rng.choice([2, 3]))
    current = [nodes[0] for nodes in copies]
    for is_even in (False, True):
        after = plan_primaries(copies, current, able=set(live), seed=5, is_even=is_even)
        load = Counter(after)
        assert max(load.values()) <= math.ceil(len(copies) / len(live))
        assert not is_even or min(load[node] for node in live) >= len(copies) // len(live)


def test_a_chain_of_nodes_passes_primaries_on() -> None:
    a, b, c = names(3)
    copies: Copies = [(a, b), (a, b), (a, b), (b, c), (b, c), (b, c)]
    after = plan_primaries(copies, [a, a, a, b, b, c], able={a, b, c}, seed=5)
    assert set(Counter(after).values()) == {2}


def test_what_nobody_may_lead_has_no_primary() -> None:
    a, b = names(2)
    assert plan_primaries([(a,), (b,)], [a, b], able={b}, seed=5) == [None, b]
    assert plan_primaries([(a,)], [a], able=set(), seed=5) == [None]


CALLS_MAX = 2_500_000


def test_a_hundred_nodes_and_a_thousand_partitions() -> None:
    live = names(100)
    calls: dict[str, int] = {}

    def counted(what: str, call: Callable[[], Any]) -> Any:
        """Calls of functions, which no other load changes; whoever looks at all pairs makes some for each."""
        count = 0

        def seen(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(seen)
        try:
            result = call()
        finally:
            sys.setprofile(None)
        calls[what] = count
        return result

    copies = counted("1 to 100 nodes", lambda: place([(live[0],)] * 1_024, live))
    primaries = counted("primaries", lambda: plan_primaries(copies, [live[0]] * 1_024, able=set(live), seed=5))
    fewer = counted("lose 10", lambda: place(copies, live[:90]))
    counted("nothing to do", lambda: place(copies, live))
    print({what: f"{count:,} calls" for what, count in calls.items()})
    print("lose 10: moves", moves(copies, fewer), "fewest", fewest(copies, live[:90], 3))
    assert max(Counter(primaries).values()) <= 11
    assert max(calls.values()) < CALLS_MAX


def test_plans_are_the_same_in_every_process() -> None:
    script = (
        "import hashlib\n"
        "from tests.unit.tq_node.cluster.test_placement import names, place, plan_primaries\n"
        "live = names(9)\n"
        "copies = place(place([(live[0],)] * 64, live), live[2:])\n"
        "print(copies, plan_primaries(copies, [None] * 64, able=set(live), seed=1))"
    )
    plans = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=PROJECT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(plans) == 1
