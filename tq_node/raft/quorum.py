"""Arithmetic of majorities: plain functions, each tested against a naive model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum

from tq_node.types import NodeId


class Tally(IntEnum):
    PENDING = 0
    WON = 1
    LOST = 2


def majority(voters: int) -> int:
    """The least number above half: 1 for a single voter; 1 for none, so that nothing is won."""
    return voters // 2 + 1


def majority_value(values: Mapping[NodeId, int], voters: Collection[NodeId]) -> int:
    """The greatest value that a majority of the voters has reached; a voter without a value counts
    as 0, no voters as 0. With match indexes this is what may be committed by counting
    (dissertation, 3.5); with acknowledged rounds, what is confirmed."""
    if not voters:
        return 0
    descending = sorted((values.get(voter, 0) for voter in voters), reverse=True)
    return descending[majority(len(descending)) - 1]


def tally(votes: Mapping[NodeId, bool], voters: Collection[NodeId]) -> Tally:
    """Only voters' votes count. LOST as soon as a majority can no longer be reached."""
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    needed = majority(len(voters))
    if granted >= needed:
        return Tally.WON
    return Tally.LOST if len(voters) - refused < needed else Tally.PENDING


def is_majority(members: Collection[NodeId], voters: Collection[NodeId]) -> bool:
    return sum(1 for voter in voters if voter in members) >= majority(len(voters))
