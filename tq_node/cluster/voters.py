"""Who should vote (section 6): 1, 3 or 5, never kept at 2 or 4; of two members only one. One wish
at a time."""

from __future__ import annotations

import enum

import msgspec

from tq_node.cluster.liveness import Liveness
from tq_node.cluster.records import ClusterMap, NodeEntry
from tq_node.types import NodeId


class RaftView(msgspec.Struct, frozen=True):
    """What the leader, ``me``, knows of its group: the configuration in effect, and who is within
    one round of the log's end."""

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
    """For ``RaftCore.propose_change``, or ``transfer_leadership`` to ``node``. A refusal is
    harmless: it is wished again."""

    kind: VoterChangeKind
    node: NodeId


class _Group:
    """The group as it is, sorted out for the rules below."""

    def __init__(self, cluster_map: ClusterMap, liveness: Liveness, view: RaftView, now_ms: int) -> None:
        self.map = cluster_map
        self.liveness = liveness
        self.view = view
        self.now_ms = now_ms
        self.wanted = cluster_map.settings.voters_wanted

    def node(self, node: NodeId) -> NodeEntry:
        return self.map.nodes[node]

    def by_age(self, nodes: tuple[NodeId, ...]) -> list[NodeId]:
        """Those that the cluster map knows, the first to join first."""
        return sorted((n for n in nodes if n in self.map.nodes), key=lambda n: (self.node(n).joined_index, n))

    def is_able(self, node: NodeId) -> bool:
        """Could this learner vote, if need be?"""
        return (
            self.node(node).is_target
            and node in self.view.caught_up
            and not self.liveness.is_suspect(node, self.now_ms)
        )

    def is_ready(self, node: NodeId) -> bool:
        """May this learner be promoted where there is time?"""
        return self.is_able(node) and self.is_trusted(node)

    def is_trusted(self, node: NodeId) -> bool:
        """At once until the group first had three voters; a later replacement has shown some time
        of health."""
        if not self.map.has_had_three_voters:
            return True
        return self.liveness.steady_ms(node, self.now_ms) >= self.liveness.settings.health_ms

    def is_dead_long(self, node: NodeId) -> bool:
        """Down for longer than a restart takes."""
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
        """A learner that may yet catch up. A new leader does not know of any at first who is; and
        30 s are enough."""
        return self.map.has_had_three_voters and any(
            self.node(node).is_target
            and node not in self.view.caught_up
            and not self.liveness.is_suspect(node, self.now_ms)
            and self.liveness.steady_ms(node, self.now_ms) < self.liveness.settings.health_ms
            for node in self.by_age(self.view.learners)
        )

    def must_go(self, node: NodeId) -> bool:
        """It leaves the cluster, and nothing is left on it but its vote."""
        return self.node(node).is_leaving and not any(node in entry.copies for entry in self.map.partitions)


def count_wanted(able: int, wanted: int) -> int:
    """The largest odd number of voters that the option allows and the able nodes make possible."""
    able = min(able, wanted)
    return able if able % 2 else max(1, able - 1)


def next_voter_change(cluster_map: ClusterMap, liveness: Liveness, view: RaftView, now_ms: int) -> VoterChange | None:
    """The next change of membership, or None: one is pending, or all is well."""
    if view.is_change_pending:
        return None
    group = _Group(cluster_map, liveness, view, now_ms)
    return _members(group) or _votes(group)


def _members(group: _Group) -> VoterChange | None:
    """Everybody registered is a learner at least; who was removed is neither."""
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
        # A dead voter goes first: one more voter would only raise the majority that the living have
        # to make up.
        return _demote(group, dead[0]) if dead and len(voters) > 1 else VoterChange(VoterChangeKind.PROMOTE, ready[0])
    # From a single vote to three one of the two new ones will do that is not trusted yet: it is
    # what replaces a lost disk.
    untrusted = int(len(voters) == 1 and len(group.stand_ins()) > len(ready))
    if ready and count_wanted(len(voters) + len(ready) + untrusted, group.wanted) > len(voters):
        return VoterChange(VoterChangeKind.PROMOTE, ready[0])
    leaving = [node for node in bad if group.must_go(node)]
    return _leave(group, voters, leaving) if leaving else _hand_over(group, voters)


def _leave(group: _Group, voters: tuple[NodeId, ...], leaving: list[NodeId]) -> VoterChange | None:
    """Nothing is left on them but their votes. While one of them lives, its vote is worth more than
    none in its place."""
    if any(group.node(node).is_up for node in leaving):
        if stand_ins := group.stand_ins():
            return VoterChange(VoterChangeKind.PROMOTE, stand_ins[0])
        if group.is_one_coming():
            return _hand_over(group, voters)
    return _demote(group, leaving[0]) if len(voters) > 1 else _hand_over(group, voters)


def _hand_over(group: _Group, voters: tuple[NodeId, ...]) -> VoterChange | None:
    return _transfer(group, voters) if group.node(group.view.me).is_draining else None


def _settle_even(group: _Group, voters: tuple[NodeId, ...]) -> VoterChange | None:
    """Passed through, never kept: up if that can be done now, else down."""
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
    """A leader cannot demote itself: leadership goes away first."""
    return _transfer(group, group.view.voters) if node == group.view.me else VoterChange(VoterChangeKind.DEMOTE, node)


def _transfer(group: _Group, voters: tuple[NodeId, ...]) -> VoterChange | None:
    able = [
        n for n in group.by_age(voters) if n != group.view.me and group.node(n).is_target and n in group.view.caught_up
    ]
    return VoterChange(VoterChangeKind.TRANSFER, able[0]) if able else None
