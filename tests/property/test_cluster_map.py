"""Laws of the table under random entries (replication.md sections 5, 6 and 10)."""

from __future__ import annotations

import contextlib
import random
import string
import typing
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tq_node.cluster.random_table import RandomTable
from tq_node.cluster import commands as c
from tq_node.cluster.map import EMPTY, UnreadableMap, apply

rngs = st.randoms(use_true_random=False)


def live(rng: random.Random, steps: int) -> None:
    world = RandomTable(rng)
    world.run(steps)
    world.replay()


@settings(max_examples=25, deadline=None)
@given(rngs, st.integers(1, 80))
def test_every_table_and_every_step_is_lawful(rng: random.Random, steps: int) -> None:
    live(rng, steps)


@pytest.mark.long
@settings(max_examples=500, deadline=None)
@given(rngs, st.integers(1, 80))
def test_many_tables_and_their_steps_are_lawful(rng: random.Random, steps: int) -> None:
    live(rng, steps)


def test_the_random_entries_are_worth_their_name() -> None:
    """Of each kind enough are applied and enough are refused; else the laws above hold for want of events."""
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for seed in range(150):
        world = RandomTable(random.Random(seed))
        for _ in range(100):
            before, count = world.table.map, len(world.commands)
            world.step()
            if len(world.commands) > count:
                name = type(world.commands[-1]).__name__
                (done if world.table.map is not before else refused)[name] += 1
    print({name: (done[name], refused[name]) for name in sorted(done | refused)})
    rare = {
        "NoteThreeVoters",
        "NoteHandlers",
        "Rebalance",
        "RebalanceDone",
        "PauseQueue",
        "ResumeQueue",
        "RaiseFeatureLevel",
        "FoundCluster",
    }
    for kind in typing.get_args(c.AnyCommand):
        if kind.__name__ not in rare:
            assert done[kind.__name__] >= 10, kind.__name__
            assert refused[kind.__name__] >= 10, kind.__name__


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(string.printable, max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 5, 6, *range(10, 16), *range(20, 24), *range(30, 42), 99]),
    st.lists(values, max_size=6),
)
def test_whatever_is_in_an_entry_it_is_refused_or_applied(kind: int, fields: list[object]) -> None:
    """Total: bytes that are no command cannot be read; any command at all can be applied to any table."""
    world = RandomTable(random.Random(3))
    world.run(20)
    try:
        command = c.decode(b"\x01" + msgspec.msgpack.encode([kind, *fields]))
    except c.UnreadableCommand:
        return
    world.table.do(command)
    with contextlib.suppress(UnreadableMap):  # founded by a release that this code has never heard of
        apply(EMPTY, 1, command)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    for prefix in (b"", b"\x01"):
        try:
            c.decode(prefix + data)
        except c.UnreadableCommand:
            continue
