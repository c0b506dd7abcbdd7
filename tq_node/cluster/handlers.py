"""Which nodes have handlers for what, and when simulated ones may stand in: only where nobody has, or ever had, real ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from tq_node.cluster.records import HANDLERS_LEVEL, ClusterMap, NodeEntry
from tq_node.types import Announced, HandlerKind, NodeId


def is_known_without(table: ClusterMap, node: NodeEntry, told: Mapping[NodeId, Announced]) -> bool:
    """Has it said, with its registration or since, that it has no handlers of its own?"""
    said = told.get(node.node_id)
    if said is not None:
        return said.kind in (HandlerKind.NONE, HandlerKind.SIMULATED)
    return node.session >= table.handlers_since


def may_simulate(table: ClusterMap, me: NodeId, told: Mapping[NodeId, Announced]) -> bool:
    """May a node that was given no handlers let the simulated ones run tasks?

    Not while nodes of an earlier release are members: they don't say what they have. :param told: of each node, its last word.
    """
    return (
        table.feature_level >= HANDLERS_LEVEL
        and not table.handlers_seen
        and all(node.node_id == me or is_known_without(table, node, told) for node in table.members())
    )


def is_note_due(table: ClusterMap, told: Mapping[NodeId, Announced]) -> bool:
    """Has a member handlers of its own that the table does not know of yet?"""
    return (
        table.feature_level >= HANDLERS_LEVEL
        and not table.handlers_seen
        and any(
            node.is_member and told[node.node_id].kind is HandlerKind.OWN
            for node in table.nodes.values()
            if node.node_id in told
        )
    )


ANY = "*"
"""Among the types of a node: it takes each that has no handler of its own."""


class Takers(msgspec.Struct, frozen=True):
    """The types that each node which is up takes; None: any, or it has not said."""

    of: dict[NodeId, frozenset[str] | None]

    @property
    def named(self) -> frozenset[str]:
        return frozenset().union(*(types for types in self.of.values() if types is not None))

    @property
    def is_any_taken(self) -> bool:
        return None in self.of.values()


def takers(table: ClusterMap, told: Mapping[NodeId, Announced], me: NodeId, own: Collection[str] | None) -> Takers:
    """:param told: of each node, its last word in its present session; of this one ``own`` counts, which is newer."""
    of: dict[NodeId, frozenset[str] | None] = {me: None if own is None else frozenset(own)}
    for node in table.nodes.values():
        if node.is_up and node.node_id != me:
            said = told.get(node.node_id)
            types = None if said is None else frozenset(handled.type for handled in said.handled)
            of[node.node_id] = None if types is None or ANY in types else types
    return Takers(of)
