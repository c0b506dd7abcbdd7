"""Which nodes have handlers for what; simulated ones stand in only where real ones never were."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from tq_node.cluster.records import HANDLERS_LEVEL, ClusterMap, NodeEntry
from tq_node.types import Announced, HandlerKind, NodeId


def is_known_without(cluster_map: ClusterMap, node: NodeEntry, announced: Mapping[NodeId, Announced]) -> bool:
    """Whether the node said, with its registration or since, that it has no handlers of its own."""
    said = announced.get(node.node_id)
    if said is not None:
        return said.kind in (HandlerKind.NONE, HandlerKind.SIMULATED)
    return node.session >= cluster_map.handlers_since


def may_simulate(cluster_map: ClusterMap, me: NodeId, announced: Mapping[NodeId, Announced]) -> bool:
    """Whether a node that was given no handlers may let the simulated ones run tasks.

    Not while nodes of an earlier release are members: they don't say what they have.

    :param announced: the latest announcement of each node."""
    return (
        cluster_map.feature_level >= HANDLERS_LEVEL
        and not cluster_map.handlers_seen
        and all(node.node_id == me or is_known_without(cluster_map, node, announced) for node in cluster_map.members())
    )


def is_note_due(cluster_map: ClusterMap, announced: Mapping[NodeId, Announced]) -> bool:
    """Whether a member has handlers of its own and the cluster map does not show it yet."""
    return (
        cluster_map.feature_level >= HANDLERS_LEVEL
        and not cluster_map.handlers_seen
        and any(
            node.is_member and announced[node.node_id].kind is HandlerKind.OWN
            for node in cluster_map.nodes.values()
            if node.node_id in announced
        )
    )


ANY = "*"
"""Among the types of a node: it takes each that has no handler of its own."""


class Takers(msgspec.Struct, frozen=True):
    """The task types that each node which is up takes; None: any, or the node has not said."""

    of: dict[NodeId, frozenset[str] | None]

    @property
    def named(self) -> frozenset[str]:
        return frozenset().union(*(types for types in self.of.values() if types is not None))

    @property
    def is_any_taken(self) -> bool:
        return None in self.of.values()


def takers(
    cluster_map: ClusterMap, announced: Mapping[NodeId, Announced], me: NodeId, own: Collection[str] | None
) -> Takers:
    """The types that each node which is up takes.

    :param announced: the latest announcement of each node in its present session; for this node
        ``own`` counts, which is newer."""
    of: dict[NodeId, frozenset[str] | None] = {me: None if own is None else frozenset(own)}
    for node in cluster_map.nodes.values():
        if node.is_up and node.node_id != me:
            said = announced.get(node.node_id)
            types = None if said is None else frozenset(handled.type for handled in said.handled)
            of[node.node_id] = None if types is None or ANY in types else types
    return Takers(of)
