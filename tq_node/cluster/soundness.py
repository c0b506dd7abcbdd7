"""What a cluster map or a registration of another node must be before it is taken up: whatever is
in it stays, and is acted upon.

The rules of ``map.apply`` judge commands against the cluster map, so a cluster map that was made by
them alone is always sound. One that comes as a snapshot was made elsewhere; the wire has seen only
that its types are right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from tq_node import limits
from tq_node.cluster.commands import Registration
from tq_node.cluster.records import ClusterMap, InvitationEntry, NodeEntry, PartitionEntry
from tq_node.tokens import HASH_BYTES, Quotas, TokenEntry, is_name
from tq_node.types import Backoff, HandledType, NodeId, PauseEntry

NUMBER_MAX = 2**62
"""No epoch, version, session or incarnation is greater; each fits into 64 signed bits."""
INCARNATIONS_SKIPPED_MAX = 2**32
"""No node starts so often while the others don't see it."""
ID_CHARS_MAX = 64
ADDRESS_CHARS_MAX = 300
FEATURE_LEVEL_FAR = 2**16
_printable = re.compile(r"[\x21-\x7e]*").fullmatch
_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}").fullmatch


def _are_numbers(*numbers: int) -> bool:
    return all(0 <= number <= NUMBER_MAX for number in numbers)


def _is_word(text: str, chars_max: int, chars_min: int = 1) -> bool:
    return chars_min <= len(text) <= chars_max and _printable(text) is not None


def is_registration_sound(node: Registration) -> bool:
    return (
        _is_word(node.node_id, ID_CHARS_MAX)
        and _name(node.name) is not None
        and _is_word(node.http, ADDRESS_CHARS_MAX, 0)
        and _is_word(node.peer, ADDRESS_CHARS_MAX)
        and _is_word(node.nonce, ID_CHARS_MAX)
        and _are_numbers(node.incarnation)
        and 0 <= node.feature_level_min <= node.feature_level_max <= FEATURE_LEVEL_FAR
    )


def is_incarnation_near(node_id: NodeId, incarnation: int, cluster_map: ClusterMap) -> bool:
    """Whether the incarnation is near the one that the cluster map knows of the node, if any."""
    known = cluster_map.nodes.get(node_id)
    return known is None or incarnation - known.incarnation <= INCARNATIONS_SKIPPED_MAX


def is_map_sound(cluster_map: ClusterMap) -> bool:
    """Whether nothing in the map refers to what is not there, and no number is absurd."""
    settings = cluster_map.settings
    return (
        1 <= settings.partition_count == len(cluster_map.partitions) <= limits.PARTITIONS_MAX
        and _are_numbers(cluster_map.map_version, cluster_map.rebalance, settings.replication_factor, settings.seed)
        and all(node_id == node.node_id and _is_node_sound(node) for node_id, node in cluster_map.nodes.items())
        and all(_is_partition_sound(entry, cluster_map) for entry in cluster_map.partitions)
        and _are_tokens_sound(cluster_map.tokens)
        and (cluster_map.tokens_seen or not cluster_map.tokens)
        and _are_invitations_sound(cluster_map.invitations)
        and _are_certificates_sound(cluster_map)
        and _are_types_sound(cluster_map.type_settings)
        and _are_types_sound(cluster_map.announced_types)
        and _are_pauses_sound(cluster_map)
    )


# --- access tokens ---
def is_token_sound(entry: TokenEntry) -> bool:
    """Whether the entry can be one of a token."""
    queues = entry.queues
    return (
        is_name(entry.name) is not None
        and len(entry.hash) == HASH_BYTES
        and 1 <= len(set(entry.roles)) == len(entry.roles)
        and (queues is None or len(set(queues)) == len(queues) <= limits.TOKEN_QUEUES_MAX)
        and all(1 <= len(queue) <= limits.QUEUE_CHARS_MAX for queue in queues or ())
        and _are_numbers(entry.created_us, entry.expires_us or 0)
        and _are_quotas_sound(entry.quotas)
        and (not entry.created_by or is_name(entry.created_by) is not None)
    )


def are_tokens_few(tokens: Sequence[TokenEntry]) -> bool:
    """Whether the cluster map keeps so many, with so many names of queues in all."""
    names = sum(len(token.queues or ()) for token in tokens)
    return len(tokens) <= limits.TOKENS_MAX and names <= limits.TOKENS_QUEUES_MAX


def _are_quotas_sound(quotas: Quotas) -> bool:
    return all(number is None or 0 <= number <= limits.TOKEN_QUOTA_MAX for number in msgspec.structs.astuple(quotas))


def _are_tokens_sound(tokens: Sequence[TokenEntry]) -> bool:
    return (
        are_tokens_few(tokens)
        and all(map(is_token_sound, tokens))
        and all(one.name < later.name for one, later in pairwise(tokens))
        and len({token.hash for token in tokens}) == len(tokens)
    )


# --- who may join ---
def is_invitation_sound(entry: InvitationEntry) -> bool:
    """Whether the entry can be one of an invitation."""
    return (
        len(entry.hash) == HASH_BYTES
        and _are_numbers(entry.expires_us)
        and (not entry.created_by or is_name(entry.created_by) is not None)
    )


def _are_invitations_sound(invitations: Sequence[InvitationEntry]) -> bool:
    return (
        len(invitations) <= limits.INVITATIONS_MAX
        and all(map(is_invitation_sound, invitations))
        and len({entry.hash for entry in invitations}) == len(invitations)
    )


def _are_certificates_sound(cluster_map: ClusterMap) -> bool:
    return all(
        node_id in cluster_map.nodes
        and 1 <= len(set(shown)) == len(shown) <= limits.CERTIFICATES_OF_NODE_MAX
        and all(len(certificate) == HASH_BYTES for certificate in shown)
        for node_id, shown in cluster_map.certificates.items()
    )


# --- types and pauses ---
def is_type_sound(entry: HandledType) -> bool:
    """Whether the entry can be settings of a type."""
    attempts, timeout_ms = entry.max_attempts, entry.timeout_ms
    return (
        1 <= len(entry.type) <= limits.TASK_TYPE_CHARS_MAX
        and (entry.queue is None or 1 <= len(entry.queue) <= limits.QUEUE_CHARS_MAX)
        and (attempts is None or 1 <= attempts <= limits.MAX_ATTEMPTS_MAX)
        and (timeout_ms is None or 0 <= timeout_ms <= limits.TIMEOUT_S_MAX * 1_000)
        and (entry.backoff is None or _is_backoff_sound(entry.backoff))
    )


def _is_backoff_sound(backoff: Backoff) -> bool:
    return len(backoff.kind) <= ID_CHARS_MAX and all(
        0 <= milliseconds <= limits.BACKOFF_S_MAX * 1_000 for milliseconds in (backoff.base_ms, backoff.cap_ms)
    )


def _are_types_sound(types: Sequence[HandledType]) -> bool:
    return (
        len(types) <= limits.TYPE_SETTINGS_MAX
        and all(map(is_type_sound, types))
        and all(one.type < later.type for one, later in pairwise(types))
    )


def is_pause_sound(entry: PauseEntry) -> bool:
    """Whether the entry can be one of a pause."""
    chars_max = {"queue": limits.QUEUE_CHARS_MAX, "type": limits.TASK_TYPE_CHARS_MAX}.get(entry.target, 0)
    return (
        1 <= len(entry.name) <= chars_max
        and len(entry.reason) <= limits.PAUSE_REASON_CHARS_MAX
        and _are_numbers(entry.since_us, entry.until_us or 0)
        and (not entry.by or is_name(entry.by) is not None)
    )


def _are_pauses_sound(cluster_map: ClusterMap) -> bool:
    pauses = cluster_map.pauses
    return (
        len(pauses) <= limits.QUEUES_MAX + limits.PAUSED_TYPES_MAX
        and all(map(is_pause_sound, pauses))
        and all(one.place < later.place for one, later in pairwise(pauses))
        and {one.name for one in pauses if one.target == "queue"} <= set(cluster_map.paused_queues)
    )


def _is_node_sound(node: NodeEntry) -> bool:
    return _is_word(node.node_id, ID_CHARS_MAX) and _are_numbers(node.session, node.incarnation, node.joined_index)


def _is_partition_sound(entry: PartitionEntry, cluster_map: ClusterMap) -> bool:
    copies = entry.copies
    return (
        len(set(copies)) == len(copies) >= 1
        and all(node in cluster_map.nodes for node in copies)
        and len(entry.isr) >= 1
        and all(node in copies for node in (*entry.isr, *entry.adding, *entry.removing))
        and (entry.primary is None or entry.primary in entry.isr)
        and (entry.successor is None or entry.successor in copies)
        and 1 <= entry.min_isr <= len(entry.isr)
        and _are_numbers(entry.epoch, entry.partition_version)
        and all(_are_numbers(one.log_index, one.epoch) for one in entry.unsafe_recovered)
    )
