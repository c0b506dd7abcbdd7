"""``apply``: one committed entry of the metadata log changes the cluster map, the same way on every
node. The cluster map as bytes.

Pure, total and deterministic: whatever is in an entry, the answer is a new map or a refusal (or
that this code is too old to go on), and everything is judged against the cluster map as it is *when
the entry is applied*. Where replication.md says "the controller", its rules R1 to R4 are here; what
should be proposed is ``controller.decide``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from tq_node import limits
from tq_node.cluster.commands import (
    AnyCommand,
    FoundCluster,
    NoteHandlers,
    NoteThreeVoters,
    RaiseFeatureLevel,
    Rebalance,
    RebalanceDone,
    feature_level_of,
)
from tq_node.cluster.map_edit import (
    Applied,
    Change,
    MapEdit,
    NodeChanged,
    PartitionChanged,
    QueueChanged,
    TokensChanged,
    TypeChanged,
)
from tq_node.cluster.records import (
    EMPTY,
    FEATURE_LEVEL_MAX,
    FEATURE_LEVEL_MIN,
    FIELD_LEVELS,
    HANDLERS_LEVEL,
    ClusterMap,
    NodeEntry,
    PartitionEntry,
)
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.rules_joining import JOINING_RULES
from tq_node.cluster.rules_moves import MOVE_RULES
from tq_node.cluster.rules_nodes import NODE_RULES, entry_of
from tq_node.cluster.rules_partitions import PARTITION_RULES
from tq_node.cluster.rules_pauses import PAUSE_RULES
from tq_node.cluster.rules_tokens import TOKEN_RULES
from tq_node.cluster.rules_types import TYPE_RULES
from tq_node.types import Epoch, HandlerKind

FORMAT = 1
VOTERS_ALLOWED = (1, 3, 5)
REPLICATION_FACTOR_MAX = 7
SEED_MAX = 2**32 - 1


class UnreadableMap(Exception):
    """The cluster map is damaged, or of a newer feature level. The node must stop (F44)."""


def can_apply(feature_level: int) -> bool:
    """Whether this code knows all that a cluster map of this level may hold."""
    return FEATURE_LEVEL_MIN <= feature_level <= FEATURE_LEVEL_MAX


def _refuse_level(feature_level: int) -> None:
    if not can_apply(feature_level):
        raise UnreadableMap(f"feature level {feature_level}, not {FEATURE_LEVEL_MIN} to {FEATURE_LEVEL_MAX}")


def apply(cluster_map: ClusterMap, index: int, command: AnyCommand) -> Applied:
    """The cluster map after the entry at Raft index ``index``. Untouched parts are shared with the
    cluster map before.

    :raises AssertionError: ``index`` was applied before; the driver is broken.
    :raises UnreadableMap: the entry raises the cluster map to a level that this code can't apply.
        The other members have raised it: refusing would be divergence. Who gets here runs an older
        release than it registered with, or has not registered."""
    assert index > cluster_map.map_version, "an entry is applied twice"
    applied = _applied(cluster_map, index, command)
    if applied.map.feature_level != cluster_map.feature_level:
        _refuse_level(applied.map.feature_level)
    return applied


def _applied(cluster_map: ClusterMap, index: int, command: AnyCommand) -> Applied:
    edit = MapEdit(cluster_map, index)
    if isinstance(command, FoundCluster):
        return _found(edit, command)
    if not cluster_map.is_founded:
        edit.refuse(Refusal.NOT_FOUNDED)
    elif feature_level_of(command) > cluster_map.feature_level:
        edit.refuse(Refusal.FEATURE_LEVEL)
    else:
        RULES[type(command)](edit, command)
    return edit.finish()


# --- birth ---
def _are_settings_sound(command: FoundCluster) -> bool:
    settings = command.settings
    return (
        1 <= settings.partition_count <= limits.PARTITIONS_MAX
        and 1 <= settings.replication_factor <= REPLICATION_FACTOR_MAX
        and 0 <= settings.seed <= SEED_MAX
        and settings.voters_wanted in VOTERS_ALLOWED
    )


def _found(edit: MapEdit, command: FoundCluster) -> Applied:
    if edit.before.is_founded:
        edit.refuse(Refusal.ALREADY_FOUNDED)
        return edit.finish()
    if not _are_settings_sound(command):
        edit.refuse(Refusal.BAD_SETTINGS)
        return edit.finish()
    node = entry_of(command.node, edit.index)
    me = (node.node_id,)
    entry = PartitionEntry(copies=me, isr=me, primary=node.node_id, epoch=Epoch(1), partition_version=1, min_isr=1)
    born = ClusterMap(
        cluster_id=command.cluster_id,
        name=command.name,
        feature_level=command.node.feature_level_max,
        settings=command.settings,
        nodes={node.node_id: node},
        partitions=(entry,) * command.settings.partition_count,
        paused_queues=(),
        map_version=edit.index,
    )
    if born.feature_level >= HANDLERS_LEVEL:
        born = msgspec.structs.replace(
            born, handlers_since=edit.index, handlers_seen=command.node.handlers is HandlerKind.OWN
        )
    changes: list[Change] = [NodeChanged(node.node_id, None, node)]
    changes += [PartitionChanged(partition, None, entry) for partition in range(len(born.partitions))]
    return Applied(born, tuple(changes))


# --- the cluster itself ---
def _rebalance(edit: MapEdit, _: Rebalance) -> None:
    edit.set(rebalance=edit.index)


def _rebalance_done(edit: MapEdit, command: RebalanceDone) -> None:
    if edit.before.rebalance == 0 or command.requested_index != edit.before.rebalance:
        edit.refuse(Refusal.NOT_NEEDED)
    else:
        edit.set(rebalance=0)


def is_supported_by_all(edit: MapEdit, feature_level: int) -> bool:
    """Whether every member can apply what the level allows; it is raised only then (F44)."""
    return all(
        node.feature_level_min <= feature_level <= node.feature_level_max
        for node in edit.nodes.values()
        if node.is_member
    )


def _raise_feature_level(edit: MapEdit, command: RaiseFeatureLevel) -> None:
    if command.feature_level <= edit.before.feature_level:
        edit.refuse(Refusal.NOT_NEEDED)  # never lowered
    elif not is_supported_by_all(edit, command.feature_level):
        edit.refuse(Refusal.FEATURE_LEVEL)
    else:
        if edit.before.feature_level < HANDLERS_LEVEL <= command.feature_level:
            edit.set(handlers_since=edit.index)
        edit.set(feature_level=command.feature_level)


def _note_three_voters(edit: MapEdit, _: NoteThreeVoters) -> None:
    if not edit.before.has_had_three_voters:
        edit.set(has_had_three_voters=True)


def _note_handlers(edit: MapEdit, _: NoteHandlers) -> None:
    if not edit.before.handlers_seen:
        edit.set(handlers_seen=True)


RULES: dict[type, Callable[[MapEdit, Any], None]] = {
    **NODE_RULES,
    **PARTITION_RULES,
    **MOVE_RULES,
    **TOKEN_RULES,
    **JOINING_RULES,
    **PAUSE_RULES,
    **TYPE_RULES,
    Rebalance: _rebalance,
    RebalanceDone: _rebalance_done,
    RaiseFeatureLevel: _raise_feature_level,
    NoteThreeVoters: _note_three_voters,
    NoteHandlers: _note_handlers,
}

# --- as bytes ---
_encode = msgspec.msgpack.Encoder(order="sorted").encode
_decode = msgspec.msgpack.Decoder(ClusterMap).decode


def encode(cluster_map: ClusterMap) -> bytes:
    """The map for Raft's snapshots: equal maps, equal bytes; no field unknown to a member (F44)."""
    late = sum(cluster_map.feature_level < level for level in FIELD_LEVELS.values())
    written = msgspec.structs.astuple(cluster_map)[:-late] if late else cluster_map
    return bytes((FORMAT,)) + _encode(written)


def decode(data: bytes) -> ClusterMap:
    """A map out of ``encode``'s bytes; ``UnreadableMap`` for damage or later levels' fields."""
    if data[:1] != bytes((FORMAT,)):
        raise UnreadableMap(f"format {data[:1].hex() or 'none'}, not {FORMAT}")
    try:
        cluster_map = _decode(memoryview(data)[1:])
    except msgspec.DecodeError as why:
        raise UnreadableMap(str(why)) from why
    if cluster_map.is_founded:
        _refuse_level(cluster_map.feature_level)
    for name, level in FIELD_LEVELS.items():
        if cluster_map.feature_level < level and getattr(cluster_map, name) != getattr(EMPTY, name):
            raise UnreadableMap(f"{name} in a table of feature level {cluster_map.feature_level}")
    return cluster_map


def digest(cluster_map: ClusterMap) -> str:
    """A hash equal on all nodes at one index; where it differs, the node stops (R20)."""
    return hashlib.blake2b(encode(cluster_map), digest_size=16).hexdigest()


__all__ = [
    "EMPTY",
    "RULES",
    "Applied",
    "Change",
    "ClusterMap",
    "NodeChanged",
    "NodeEntry",
    "PartitionChanged",
    "PartitionEntry",
    "QueueChanged",
    "TokensChanged",
    "TypeChanged",
    "UnreadableMap",
    "apply",
    "decode",
    "digest",
    "encode",
]
