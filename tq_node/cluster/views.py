"""Views of the cluster map for operators (``types.ClusterView``, ``PartitionView``), by names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec
from msgspec import UNSET

from tq_node.cluster.liveness import Liveness
from tq_node.cluster.records import ClusterMap, NodeEntry, PartitionEntry
from tq_node.cluster.rules_moves import MoveStage, are_in_sync, stage_of
from tq_node.types import ClusterNode, ClusterView, NodeId, PartitionMove, PartitionView


class Progress(msgspec.Struct, frozen=True):
    """What this node's data plane knows of a partition. ``lag``: entries each replica is behind."""

    is_active: bool
    last_sequence: int | None = None
    committed_sequence: int | None = None
    lag: Mapping[NodeId, int] = {}
    copying: Mapping[NodeId, tuple[int, int]] = {}
    """(bytes sent, bytes left) of copies that do not count yet."""


class Group(msgspec.Struct, frozen=True):
    """Who is asked, and Raft as seen from there."""

    me: NodeId
    leader: NodeId | None
    term: int
    voters: Collection[NodeId]
    learners: Collection[NodeId] = ()


STATUSES = ("active", "suspect", "down", "joining", "draining")
NOTHING_KNOWN: Mapping[int, Progress] = {}
NOBODY_WAITS: Mapping[int, str] = {}


def status_of(node: NodeEntry, liveness: Liveness, group: Group, now_ms: int) -> str:
    """A node's status for operators: ``down`` by the map (R5, R5a), ``suspect`` by this node."""
    if not node.is_up:
        return "down"
    if node.node_id != group.me and liveness.is_suspect(node.node_id, now_ms):
        return "suspect"
    if node.is_draining:
        return "draining"
    return "active" if node.node_id in group.voters or node.node_id in group.learners else "joining"


def show_cluster(cluster_map: ClusterMap, liveness: Liveness, group: Group, now_ms: int) -> ClusterView:
    """Members in order of name; removed ones are gone."""
    names = _Names(cluster_map)
    members = sorted(cluster_map.members(), key=lambda node: (node.name, node.node_id))
    return ClusterView(
        cluster_id=cluster_map.cluster_id,
        cluster_name=cluster_map.name,
        nodes=[
            ClusterNode(
                id=node.node_id,
                name=node.name,
                http=node.http,
                peer=node.peer,
                status=status_of(node, liveness, group, now_ms),
                voter=node.node_id in group.voters,
            )
            for node in members
        ],
        leader=None if group.leader is None else names.one(group.leader),
        term=group.term,
        partition_count=cluster_map.settings.partition_count,
        replication_factor=cluster_map.settings.replication_factor,
    )


def show_partitions(
    cluster_map: ClusterMap, progress: Mapping[int, Progress] = NOTHING_KNOWN, waiting: Mapping[int, str] = NOBODY_WAITS
) -> list[PartitionView]:
    """Views of all partitions, by the cluster map; ``progress``: of those that this node leads."""
    names = _Names(cluster_map)
    return [
        _show_partition(partition, entry, names, progress.get(partition), waiting.get(partition))
        for partition, entry in enumerate(cluster_map.partitions)
    ]


def _show_partition(
    partition: int, entry: PartitionEntry, names: _Names, known: Progress | None, waiting: str | None
) -> PartitionView:
    primary = entry.primary
    stage = stage_of(entry)
    bytes_left, percent = (None, None) if stage is None or known is None else _copied(entry, known)
    move = UNSET if stage is None else PartitionMove(str(stage), bytes_left, percent)
    return PartitionView(
        partition=partition,
        primary=None if primary is None else names.one(primary),
        replicas=names.many(node for node in entry.copies if node != primary),
        in_sync=names.many(sorted(entry.isr, key=lambda node: node != primary)),
        epoch=entry.epoch,
        version=entry.partition_version,
        last_sequence=None if known is None else known.last_sequence,
        committed_sequence=None if known is None else known.committed_sequence,
        lag={} if known is None else {names.one(node): behind for node, behind in known.lag.items()},
        adding=names.many(entry.adding),
        removing=names.many(entry.removing),
        state=_state(entry, known),
        waiting=UNSET if waiting is None else waiting,
        move=move,
    )


def _copied(entry: PartitionEntry, known: Progress) -> tuple[int, int]:
    """(bytes left, percent) of all newcomers together. It is 100 only once they are in the set."""
    copying = [known.copying[node] for node in entry.adding if node in known.copying and node not in entry.isr]
    sent, left = sum(sent for sent, _ in copying), sum(left for _, left in copying)
    if not copying:
        return 0, 100 if are_in_sync(entry) else 0
    return left, min(99, 100 * sent // max(1, sent + left))


def _state(entry: PartitionEntry, known: Progress | None) -> str:
    if entry.primary is None:
        return "offline"
    return "active" if known is None or known.is_active else "starting"


def count_moves(cluster_map: ClusterMap, me: NodeId) -> dict[str, int]:
    """Moves by stage, of partitions that this node leads by the map: each counts at one node."""
    counts = {str(stage): 0 for stage in MoveStage}
    for entry in cluster_map.partitions:
        stage = stage_of(entry) if entry.primary == me else None
        if stage is not None:
            counts[stage] += 1
    return counts


def count_short(cluster_map: ClusterMap) -> tuple[int, int]:
    """Partitions with fewer living copies in sync than they should have; those without primary."""
    up = {node.node_id for node in cluster_map.members() if node.is_up}
    entries = cluster_map.partitions
    under_replicated = sum(len(up.intersection(entry.isr)) < len(entry.intended) for entry in entries)
    return under_replicated, sum(entry.primary is None for entry in entries)


class _Names:
    def __init__(self, cluster_map: ClusterMap) -> None:
        self._nodes = cluster_map.nodes

    def one(self, node_id: NodeId) -> str:
        node = self._nodes.get(node_id)
        return node_id if node is None else node.name

    def many(self, node_ids: Iterable[NodeId]) -> list[str]:
        return [self.one(node_id) for node_id in node_ids]
