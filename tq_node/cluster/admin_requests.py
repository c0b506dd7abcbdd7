"""What an operator's call becomes: a command to propose, or why not. The cluster map has the last
word when it is applied."""

from __future__ import annotations

from tq_node.cluster.commands import DrainNode, Order, RemoveNode, UndrainNode, UnsafeRecover
from tq_node.cluster.liveness import Liveness
from tq_node.cluster.records import ClusterMap, NodeEntry
from tq_node.cluster.refusals import Refusal
from tq_node.types import NodeId, PartitionId


def drain(cluster_map: ClusterMap, node_id: NodeId, *, then_remove: bool = False) -> Order | Refusal:
    """Move everything off a node."""
    node = cluster_map.nodes.get(node_id)
    if node is None or not node.is_member:
        return Refusal.NO_SUCH_NODE
    if not _has_others(cluster_map, node):
        return Refusal.LAST_NODE
    return DrainNode(node_id, then_remove)


def undrain(cluster_map: ClusterMap, node_id: NodeId) -> Order | Refusal:
    """Let a node stay that is drained, or that ``remove`` drains first; else nothing changes."""
    node = cluster_map.nodes.get(node_id)
    if node is None or not node.is_member:
        return Refusal.NO_SUCH_NODE
    return UndrainNode(node_id)


def remove(cluster_map: ClusterMap, liveness: Liveness, node_id: NodeId) -> Order | Refusal:
    """Remove a node for good: a living one when it is drained and empty, a dead one at once."""
    node = cluster_map.nodes.get(node_id)
    if node is None or not node.is_member:
        return Refusal.NO_SUCH_NODE
    if node.is_up:
        return drain(cluster_map, node_id, then_remove=True)
    empty = tuple(PartitionId(p) for p in _held(cluster_map, node_id) if liveness.was_empty(node_id, p))
    return RemoveNode(node_id, node.session, empty)


def unsafe_recover(cluster_map: ClusterMap, partition: int, node_id: NodeId) -> Order | Refusal:
    if not 0 <= partition < len(cluster_map.partitions):
        return Refusal.NO_SUCH_PARTITION
    entry = cluster_map.partitions[partition]
    return UnsafeRecover(PartitionId(partition), entry.epoch, entry.partition_version, node_id)


def _has_others(cluster_map: ClusterMap, node: NodeEntry) -> bool:
    return any(other.is_target for other in cluster_map.nodes.values() if other.node_id != node.node_id)


def _held(cluster_map: ClusterMap, node_id: NodeId) -> list[int]:
    return [p for p, entry in enumerate(cluster_map.partitions) if node_id in entry.copies]
