"""Quorum arithmetic against a naive model: every majority is tried."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.quorums import majorities_overlap
from tq_node.raft import quorum
from tq_node.raft.quorum import Tally
from tq_node.types import NodeId

NODES = [NodeId(name) for name in "abcdefg"]
voters_of = st.lists(st.sampled_from(NODES), unique=True, max_size=7)


def majorities(voters: list[NodeId]) -> list[set[NodeId]]:
    return [
        set(group) for size in range(len(voters) + 1) for group in combinations(voters, size) if 2 * size > len(voters)
    ]


@given(voters_of, st.dictionaries(st.sampled_from(NODES), st.integers(0, 20)))
def test_what_a_majority_has_reached(voters: list[NodeId], values: dict[NodeId, int]) -> None:
    naive = max((min(values.get(node, 0) for node in group) for group in majorities(voters)), default=0)
    assert quorum.majority_value(values, voters) == naive


@given(voters_of, st.dictionaries(st.sampled_from(NODES), st.booleans()))
def test_an_election_is_won_or_lost_or_open(voters: list[NodeId], votes: dict[NodeId, bool]) -> None:
    granted = {node for node in voters if votes.get(node) is True}
    possible = {node for node in voters if votes.get(node) is not False}
    won = any(group <= granted for group in majorities(voters))
    lost = not any(group <= possible for group in majorities(voters))
    assert quorum.tally(votes, voters) is (Tally.WON if won else Tally.LOST if lost else Tally.PENDING)


@given(voters_of, voters_of)
def test_who_is_a_majority(members: list[NodeId], voters: list[NodeId]) -> None:
    assert quorum.is_majority(members, voters) is any(group <= set(members) for group in majorities(voters))


@given(voters_of, voters_of)
def test_majorities_of_two_groups_overlap(one: list[NodeId], other: list[NodeId]) -> None:
    naive = bool(one) and bool(other) and all(a & b for a in majorities(one) for b in majorities(other))
    assert majorities_overlap(one, other) is naive


@given(voters_of.filter(bool), st.sampled_from(NODES))
def test_one_server_more_or_less_always_overlaps(voters: list[NodeId], node: NodeId) -> None:
    """What one-at-a-time membership rests on (dissertation, 4.1, figure 4.3)."""
    changed = [each for each in voters if each != node] if node in voters else [*voters, node]
    assert not changed or majorities_overlap(voters, changed)


def test_nobody_wins_among_no_voters() -> None:
    assert quorum.tally({}, ()) is Tally.LOST
    assert quorum.majority_value({NODES[0]: 5}, ()) == 0
