"""The values of the cluster map: nodes, partitions, settings. Frozen; ``tq_node.cluster.map`` alone
makes new ones.

Everything is array-like msgpack and part of the on-disk format (docs/decisions/0001): new fields go
to the end, with a default, and are written only once ``feature_level`` says that every member can
read them (F44)."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from tq_node.tokens import TokenEntry
from tq_node.types import Epoch, HandledType, NodeId, NodeName, PauseEntry

FEATURE_LEVEL_MIN = 1
FEATURE_LEVEL_MAX = 4
"""What this code can apply. A cluster map of a higher level is refused: the node stops."""
WORKERS_LEVEL = 4
"""From this level on remote workers may claim: claims keep their leases. The cluster map keeps
settings of types, and who paused a queue or a type, why and until when."""
HANDLERS_LEVEL = 2
"""From this level on nodes say which handlers they have, and the cluster map keeps that one has."""
ACCESS_LEVEL = 3
"""From this level on the cluster map keeps access tokens, tasks say which token submitted them,
orders which one asked for them, and a primary judges what an asker may know of."""
MEMBERS_FOR_TWO_COPIES = 3
"""With fewer members one copy must be enough: losing one of two would stop writes (section 6)."""


class NodeStatus(enum.IntEnum):
    """A node's status in the map. Draining is apart: a node that crashes goes on being drained."""

    UP = 0
    DOWN = 1
    REMOVED = 2


class NodeEntry(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """A member, or one that was removed: its id is never used again."""

    node_id: NodeId
    name: NodeName
    http: str
    peer: str
    session: int
    """Raft index of its present registration."""
    incarnation: int
    nonce: str
    status: NodeStatus
    is_draining: bool
    is_leaving: bool
    """To be removed once it is empty."""
    feature_level_min: int
    feature_level_max: int
    joined_index: int

    @property
    def is_up(self) -> bool:
        return self.status == NodeStatus.UP

    @property
    def is_member(self) -> bool:
        return self.status != NodeStatus.REMOVED

    @property
    def is_target(self) -> bool:
        """Whether a copy may be placed on the node."""
        return self.status == NodeStatus.UP and not self.is_draining


class Recovery(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """A choice outside R1, kept for ever. ``reason``: ``unsafe`` (an operator's order) or
    ``removed_empty``. A copy whose promise is below ``epoch`` holds another history: it starts
    again from nothing instead of halting (R15, I5)."""

    log_index: int
    epoch: Epoch
    node_id: NodeId
    reason: str


class PartitionEntry(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """``copies``: all, in the order in which they came; ``isr`` within it and in its order;
    ``primary`` in ``isr`` or None.

    ``adding`` and ``removing`` are the recorded intent of a move (section 6): ``adding`` are copies
    that are not in the set yet. ``successor`` is who should be the next primary: the present one
    drains, then proposes ``StepDown``."""

    copies: tuple[NodeId, ...]
    isr: tuple[NodeId, ...]
    primary: NodeId | None
    epoch: Epoch
    partition_version: int
    min_isr: int
    adding: tuple[NodeId, ...] = ()
    removing: tuple[NodeId, ...] = ()
    successor: NodeId | None = msgspec.field(default=None, name="heir")
    unsafe_recovered: tuple[Recovery, ...] = ()

    @property
    def is_moving(self) -> bool:
        return bool(self.adding or self.removing)

    @property
    def intended(self) -> tuple[NodeId, ...]:
        """The copies once the move that is under way has ended."""
        if not self.removing:
            return self.copies
        return tuple(node for node in self.copies if node not in self.removing)

    def ordered(self, members: Iterable[NodeId]) -> tuple[NodeId, ...]:
        """``members`` in the order of ``copies``, so that equal sets are equal values."""
        wanted = frozenset(members)
        return tuple(node for node in self.copies if node in wanted)


class InvitationEntry(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """An invitation that nobody has taken yet. ``hash``: SHA-256 of the whole."""

    hash: bytes
    expires_us: int
    """Wall clock."""
    created_by: str = ""
    """Name of the token that asked for it; empty: nobody had to prove anything."""


class ClusterSettings(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Fixed when the cluster is born. ``seed`` is that of ``placement.partition_of``."""

    partition_count: int
    replication_factor: int
    seed: int
    voters_wanted: int
    born_us: int = 0
    """Wall clock. Nothing in the cluster is older."""


class ClusterMap(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The whole map. ``map_version``: Raft index of its last change. ``nodes``: in order of ids."""

    cluster_id: str
    name: str
    feature_level: int
    settings: ClusterSettings
    nodes: dict[NodeId, NodeEntry]
    partitions: tuple[PartitionEntry, ...]
    paused_queues: tuple[str, ...]
    map_version: int
    rebalance: int = 0
    """Raft index of an operator's request to spread evenly that is not yet fulfilled; 0: none."""
    has_had_three_voters: bool = False
    handlers_seen: bool = False
    """A node has had handlers of its own: simulated ones stand in no more. Never taken back."""
    handlers_since: int = 0
    """Raft index whose later registrations count for ``handlers_seen``; earlier: not asked."""
    tokens: tuple[TokenEntry, ...] = ()
    """In order of names."""
    tokens_seen: bool = False
    """A token has been put: callers are checked from then on. Never taken back."""
    invitations: tuple[InvitationEntry, ...] = ()
    """In the order in which they were put."""
    certificates: dict[NodeId, tuple[bytes, ...]] = {}
    """SHA-256 of the last certificates that each node has shown, the latest last; in order of ids.
    Those of a removed node are kept, for they are refused for ever."""
    type_settings: tuple[HandledType, ...] = ()
    """As operators put them, in order of types."""
    announced_types: tuple[HandledType, ...] = ()
    """As remote workers announced them, in order of types."""
    pauses: tuple[PauseEntry, ...] = ()
    """Of types, and of queues in ``paused_queues`` of which more is known; in order of places."""

    @property
    def is_founded(self) -> bool:
        return bool(self.partitions)

    def members(self) -> list[NodeEntry]:
        return [node for node in self.nodes.values() if node.is_member]

    def removed_owner(self, certificate: bytes) -> NodeEntry | None:
        """The removed node whose certificate has this SHA-256. None: nobody's, or a member's, too:
        several nodes may share one."""
        owners = [self.nodes[node_id] for node_id, shown in self.certificates.items() if certificate in shown]
        return owners[0] if owners and not any(node.is_member for node in owners) else None

    def node_named(self, name: str) -> NodeEntry | None:
        return next((node for node in self.nodes.values() if node.is_member and node.name == name), None)


FIELD_LEVELS = {
    "handlers_seen": HANDLERS_LEVEL,
    "handlers_since": HANDLERS_LEVEL,
    "tokens": ACCESS_LEVEL,
    "tokens_seen": ACCESS_LEVEL,
    "invitations": ACCESS_LEVEL,
    "certificates": ACCESS_LEVEL,
    "type_settings": WORKERS_LEVEL,
    "announced_types": WORKERS_LEVEL,
    "pauses": WORKERS_LEVEL,
}
"""Fields after the first feature level, at the end; not written below their level (F44)."""

EMPTY = ClusterMap("", "", 0, ClusterSettings(0, 0, 0, 0), {}, (), (), 0)
"""Before anything is applied."""


def min_isr_wanted(nodes: Mapping[NodeId, NodeEntry], replication_factor: int) -> int:
    """1 while there are fewer than three members, then a majority of the copies."""
    members = sum(1 for node in nodes.values() if node.is_member)
    return 1 if members < MEMBERS_FOR_TWO_COPIES else replication_factor // 2 + 1


def copies_wanted(nodes: Mapping[NodeId, NodeEntry], replication_factor: int) -> int:
    """How many copies a partition should keep. One that is down counts: its data may return."""
    return min(replication_factor, sum(1 for node in nodes.values() if node.is_member and not node.is_draining))
