"""``decide`` from any table that random entries can reach: it comes to rest, and at rest everything is in place."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tq_node.cluster.deaths import DeathWorld
from tests.unit.tq_node.cluster.settling import Settling, settle
from tests.unit.tq_node.cluster.tables import Table
from tq_node.cluster import commands as c
from tq_node.limits import MIB

rngs = st.randoms(use_true_random=False)


@settings(max_examples=10, deadline=None)
@given(rngs, st.integers(0, 60))
def test_from_any_table_it_comes_to_rest(rng: random.Random, steps: int) -> None:
    settle(rng, steps)


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(rngs, st.integers(0, 60))
def test_from_any_of_many_tables_it_comes_to_rest(rng: random.Random, steps: int) -> None:
    settle(rng, steps)


@pytest.mark.parametrize("base", [0, *(pytest.param(base, marks=pytest.mark.long) for base in range(1, 5))])
def test_from_many_tables_it_comes_to_rest(base: int) -> None:
    rounds = [settle(random.Random(seed), 40) for seed in range(base * 1_000, base * 1_000 + (25 if base else 10))]
    print(f"rounds with something to do: {max(rounds)} at most, {sum(rounds) / len(rounds):.1f} in the mean")


@settings(max_examples=40, deadline=None)
@given(rngs)
def test_only_the_dead_are_buried(rng: random.Random) -> None:
    """R5 and R5a against a second reading of them."""
    DeathWorld(rng).run(80)


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 16))])
def test_nodes_come_and_go_and_shares_are_kept(seed: int) -> None:
    """Growth, drains, removals, deaths and returns; after each, at rest, all bounds hold."""
    rng = random.Random(seed)
    table = Table(1, partitions=rng.choice([8, 16, 32]), factor=rng.choice([1, 2, 3]))
    sizes = dict.fromkeys(range(0, len(table.map.partitions), 3), 3 * MIB)
    settling = Settling(table, rng=rng, task_bytes=sizes)
    number = 1
    for _ in range(8):
        members = [node for node in table.map.members() if not node.is_draining]
        if len(members) < 4 or rng.random() < 0.5:
            number += 1
            table.register(number)
        else:
            node = rng.choice(members)
            if rng.random() < 0.5:
                table.do(c.DrainNode(node.node_id, then_remove=rng.random() < 0.5))
            elif node.node_id != settling.me:
                table.do(c.NodeDown(node.node_id, node.session, "silence"))
                settling.run(quiet_ms=rng.choice([1_000, 100_000]))
                table.register(int(node.node_id, 16), table.map.nodes[node.node_id].incarnation + 1)
        settling.run()
        settling.check_rest()
        if not any("min_isr" in reason for reason in settling.waiting.values()):
            settling.check_bounds()
    assert max(settling.peak_big.values(), default=0) <= 2
