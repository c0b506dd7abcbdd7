"""Who should vote (section 6): 1, 3 or 5, never kept at 2 or 4; of two members only one."""

from __future__ import annotations

import enum

import msgspec

from tq_node.cluster.liveness import Liveness
from tq_node.cluster.records import ClusterMap, NodeEntry
from tq_node.types import NodeId


class RaftView(msgspec.Struct, frozen=True):
    """What the leader, ``me``, knows of the Raft group; who is within a round of the log's end."""

    me: NodeId
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    caught_up: tuple[NodeId, ...] = ()
    is_change_pending: bool = False


class VoterChangeKind(enum.StrEnum):
    ADD_LEARNER = "add_learner"
    PROMOTE = "promote"
    DEMOTE = "demote"
    REMOVE = "remove"
    TRANSFER = "transfer"


class VoterChange(msgspec.Struct, frozen=True):
    """For ``RaftCore.propose_change`` or ``transfer_leadership``; decided again if refused."""

    kind: VoterChangeKind
    node: NodeId


class _Group:
    """The Raft group, sorted for the rules below."""

    def __init__(self, cluster_map: ClusterMap, liveness: Liveness, view: RaftView, now_ms: int) -> None:
        self.map = cluster_map
        self.liveness = liveness
        self.view = view
        self.now_ms = now_ms
        self.wanted = cluster_map.settings.voters_wanted

    def node(self, node: NodeId) -> NodeEntry:
        return self.map.nodes[node]

    def by_age(self, nodes: tuple[NodeId, ...]) -> list[NodeId]:
        """Those of ``nodes`` that the cluster map knows, the first to join first."""
        return sorted((n for n in nodes if n in self.map.nodes), key=lambda n: (self.node(n).joined_index, n))

    def is_able(self, node: NodeId) -> bool:
        """Whether this learner could vote, if need be."""
        return (
            self.node(node).is_target
            and node in self.view.caught_up
            and not self.liveness.is_suspect(node, self.now_ms)
        )

    def is_ready(self, node: NodeId) -> bool:
        """Whether this learner may be promoted where there is time to choose."""
        return self.is_able(node) and self.is_trusted(node)

    def is_trusted(self, node: NodeId) -> bool:
        """Whether it was healthy for some time; not asked before there were three voters."""
        if not self.map.has_had_three_voters:
            return True
        return self.liveness.steady_ms(node, self.now_ms) >= self.liveness.settings.health_ms

    def is_dead_long(self, node: NodeId) -> bool:
        """Whether the node has been down for longer than a restart takes."""
        return (
            not self.node(node).is_up and self.liveness.down_ms(node, self.now_ms) >= self.liveness.settings.health_ms
        )

    def is_replaceable(self, node: NodeId) -> bool:
        return self.node(node).is_draining or self.is_dead_long(node)

    def stand_ins(self) -> list[NodeId]:
        """Learners that may be promoted at once because the group would shrink without them: three
        that vote, one of them new to it, are better than a single one. Those that are trusted
        first."""
        able = [node for node in self.by_age(self.view.learners) if self.is_able(node)]
        return sorted(able, key=lambda node: not self.is_trusted(node))

    def is_one_coming(self) -> bool:
        """Whether a learner may catch up within 30 s; a new leader does not know at first."""
        return self.map.has_had_three_voters and any(
            self.node(node).is_target
            and node not in self.view.caught_up
            and not self.liveness.is_suspect(node, self.now_ms)
            and self.liveness.steady_ms(node, self.now_ms) < self.liveness.settings.health_ms
            for node in self.by_age(self.view.learners)
        )

    def must_go(self, node: NodeId) -> bool:
        """Whether the node leaves the cluster and holds nothing but its vote."""
        return self.node(node).is_leaving and not any(node in entry.copies for entry in self.map.partitions)


def count_wanted(able: int, wanted: int) -> int:
    """The largest odd number of voters that the option allows and the able nodes make possible."""
    able = min(able, wanted)
    return able if able % 2 else max(1, able - 1)


def next_voter_change(cluster_map: ClusterMap, liveness: Liveness, view: RaftView, now_ms: int) -> VoterChange | None:
    """The next change of the Raft group; None: one is pending, or none is due."""
    if view.is_change_pending:
        return None
    group = _Group(cluster_map, liveness, view, now_ms)
    return _members(group) or _votes(group)


def _members(group: _Group) -> VoterChange | None:
    """Make each registered node a learner at least, and take removed ones out of the group."""
    view = group.view
    known = {*view.voters, *view.learners}
    for node in sorted(known):
        if node in group.map.nodes and not group.node(node).is_member:
            return VoterChange(VoterChangeKind.REMOVE, node)
    new = tuple(node.node_id for node in group.map.nodes.values() if node.is_up and node.node_id not in known)
    return VoterChange(VoterChangeKind.ADD_LEARNER, group.by_age(new)[0]) if new else None


def _votes(group: _Group) -> VoterChange | None:
    voters = tuple(group.by_age(group.view.voters))
    if len(voters) % 2 == 0:
        return _settle_even(group, voters)
    ready = [node for node in group.by_age(group.view.learners) if group.is_ready(node)]
    bad = [node for node in group.by_age(voters) if group.is_replaceable(node)]
    if bad and ready:
        dead = [node for node in bad if not group.node(node).is_up]
        # A dead voter goes first: one more voter would raise the living ones' majority.
        return _demote(group, dead[0]) if dead and len(voters) > 1 else VoterChange(VoterChangeKind.PROMOTE, ready[0])
    # From a single vote to three one of the two new ones will do that is not trusted yet: it is
    # what replaces a lost disk.
    untrusted = int(len(voters) == 1 and len(group.stand_ins()) > len(ready))
    if ready and count_wanted(len(voters) + len(ready) + untrusted, group.wanted) > len(voters):
        return VoterChange(VoterChangeKind.PROMOTE, ready[0])
    leaving = [node for node in bad if group.must_go(node)]
    return _leave(group, voters, leaving) if leaving else _hand_over(group, voters)


def _leave(group: _Group, voters: tuple[NodeId, ...], leaving: list[NodeId]) -> VoterChange | None:
    """Take leaving nodes' votes. While one of them lives, its vote is better than none there."""
    if any(group.node(node).is_up for node in leaving):
        if stand_ins := group.stand_ins():
            return VoterChange(VoterChangeKind.PROMOTE, stand_ins[0])
        if group.is_one_coming():
            return _hand_over(group, voters)
    return _demote(group, leaving[0]) if len(voters) > 1 else _hand_over(group, voters)


def _hand_over(group: _Group, voters: tuple[NodeId, ...]) -> VoterChange | None:
    return _transfer(group, voters) if group.node(group.view.me).is_draining else None


def _settle_even(group: _Group, voters: tuple[NodeId, ...]) -> VoterChange | None:
    """Leave an even number of voters: up to the next odd one if that can be done now, else down."""
    if len(voters) < group.wanted:
        if stand_ins := group.stand_ins():
            return VoterChange(VoterChangeKind.PROMOTE, stand_ins[0])
        if group.is_one_coming():
            return None

    def rank(node: NodeId) -> tuple[bool, bool, bool, int, NodeId]:
        entry = group.node(node)
        return (not entry.is_draining, entry.is_up, node == group.view.me, -entry.joined_index, node)

    return _demote(group, min(voters, key=rank))


def _demote(group: _Group, node: NodeId) -> VoterChange | None:
    """Take a node's vote; a leader transfers leadership first, it cannot demote itself."""
    return _transfer(group, group.view.voters) if node == group.view.me else VoterChange(VoterChangeKind.DEMOTE, node)


def _transfer(group: _Group, voters: tuple[NodeId, ...]) -> VoterChange | None:
    able = [
        n for n in group.by_age(voters) if n != group.view.me and group.node(n).is_target and n in group.view.caught_up
    ]
    return VoterChange(VoterChangeKind.TRANSFER, able[0]) if able else None
