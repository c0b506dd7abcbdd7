"""Whether majorities of two groups of voters must share a node."""

from __future__ import annotations

from collections.abc import Collection

from tq_node.raft.quorum import majority
from tq_node.types import NodeId


def majorities_overlap(one: Collection[NodeId], other: Collection[NodeId]) -> bool:
    """Does every majority of the one share a node with every majority of the other? False where either is empty.

    Two disjoint majorities are sought greedily: each takes first what the other has not.
    """
    if not one or not other:
        return False
    common = len(set(one) & set(other))
    needed_from_common = sum(max(0, majority(len(group)) - (len(group) - common)) for group in (one, other))
    return needed_from_common > common
