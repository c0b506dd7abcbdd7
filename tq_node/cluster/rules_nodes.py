"""What the entries about nodes do: registration, death, draining, removal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tq_node.cluster.commands import (
    DrainNode,
    NodeDown,
    RegisterNode,
    Registration,
    RemoveNode,
    UndrainNode,
)
from tq_node.cluster.map_edit import MapEdit, replace
from tq_node.cluster.primary_choice import elect, next_epoch, without_dead, without_removed
from tq_node.cluster.records import HANDLERS_LEVEL, NodeEntry, NodeStatus, PartitionEntry, Recovery, min_isr_wanted
from tq_node.cluster.refusals import Refusal
from tq_node.types import HandlerKind, NodeId


# --- registration (sections 2 and 6) ---
def is_wrong_cluster(draft: MapEdit, command: RegisterNode) -> bool:
    """F15: two clusters joined by a wrong address."""
    return command.cluster_id != draft.before.cluster_id


def is_removed(draft: MapEdit, node: Registration) -> bool:
    """Ids are never used again."""
    known = draft.nodes.get(node.node_id)
    return known is not None and not known.is_member


def is_name_taken(draft: MapEdit, node: Registration) -> bool:
    """F13: a wiped disk is a new node. It may not replace a member by itself, whose data may only be resting."""
    holder = next((n for n in draft.nodes.values() if n.is_member and n.name == node.name), None)
    return holder is not None and holder.node_id != node.node_id


def is_store_cloned(draft: MapEdit, node: Registration) -> bool:
    """F14: each start raises the incarnation; one that does not comes from a copied or rolled-back store."""
    known = draft.nodes.get(node.node_id)
    return known is not None and node.incarnation <= known.incarnation and not is_same_run(known, node)


def is_same_run(known: NodeEntry, node: Registration) -> bool:
    return known.incarnation == node.incarnation and known.nonce == node.nonce


def is_feature_level_missing(draft: MapEdit, node: Registration) -> bool:
    """F44: it could not apply what the cluster may write."""
    return not node.feature_level_min <= draft.before.feature_level <= node.feature_level_max


def registration_refusal(draft: MapEdit, command: RegisterNode) -> Refusal | None:
    if is_wrong_cluster(draft, command):
        return Refusal.WRONG_CLUSTER
    if is_removed(draft, command.node):
        return Refusal.REMOVED
    if is_store_cloned(draft, command.node):
        return Refusal.STORE_CLONED
    if is_name_taken(draft, command.node):
        return Refusal.NAME_TAKEN
    if is_feature_level_missing(draft, command.node):
        return Refusal.FEATURE_LEVEL
    return None


def entry_of(node: Registration, index: int) -> NodeEntry:
    return NodeEntry(
        node_id=node.node_id,
        name=node.name,
        http=node.http,
        peer=node.peer,
        session=index,
        incarnation=node.incarnation,
        nonce=node.nonce,
        status=NodeStatus.UP,
        is_draining=False,
        is_leaving=False,
        feature_level_min=node.feature_level_min,
        feature_level_max=node.feature_level_max,
        joined_index=index,
    )


def register(draft: MapEdit, command: RegisterNode) -> None:
    """A new session, unless the same run says the same again."""
    refusal = registration_refusal(draft, command)
    if refusal is not None:
        draft.refuse(refusal)
        return
    if is_handlers_news(draft, command.node):
        draft.set(handlers_seen=True)
    node = entry_of(command.node, draft.index)
    known = draft.nodes.get(node.node_id)
    if known is None:
        draft.put_node(node)
    elif not (known.is_up and is_same_run(known, command.node)):
        draft.put_node(
            replace(node, is_draining=known.is_draining, is_leaving=known.is_leaving, joined_index=known.joined_index)
        )
        choose_after_registration(draft, node.node_id)


def is_handlers_news(draft: MapEdit, node: Registration) -> bool:
    """The first node with handlers of its own. Below the level nobody keeps it: an older release could not (F44)."""
    table = draft.before
    return node.handlers is HandlerKind.OWN and table.feature_level >= HANDLERS_LEVEL and not table.handlers_seen


def choose_after_registration(draft: MapEdit, node: NodeId) -> None:
    """R2, in the same entry: what it led gets a new choice (F20), and what waits for a member of its set gets one."""
    for partition, entry in draft.partitions():
        if is_choice_due(entry, node):
            elect(draft, partition, avoid=node)


def is_choice_due(entry: PartitionEntry, node: NodeId) -> bool:
    return entry.primary == node or (entry.primary is None and node in entry.isr)


# --- death ---
def is_session_present(draft: MapEdit, node_id: NodeId, session: int) -> bool:
    """What was said of an earlier run of a node, or by it, does not count for the present one (F25)."""
    node = draft.nodes.get(node_id)
    return node is not None and node.session == session


def node_down(draft: MapEdit, command: NodeDown) -> None:
    """Section 6, failover, in one entry: the node is down, it leaves the sets (R3), its partitions get new primaries (R1, R2)."""
    node = draft.nodes.get(command.node_id)
    if node is None:
        draft.refuse(Refusal.NO_SUCH_NODE)
    elif not is_session_present(draft, node.node_id, command.session):
        draft.refuse(Refusal.STALE_SESSION)
    elif not node.is_up:
        draft.refuse(Refusal.NOT_UP)
    else:
        draft.put_node(replace(node, status=NodeStatus.DOWN))
        for partition, entry in draft.partitions():
            if node.node_id in entry.isr:
                lose(draft, partition, entry, node.node_id)


def lose(draft: MapEdit, partition: int, entry: PartitionEntry, node: NodeId) -> None:
    successor = None if entry.successor == node else entry.successor
    smaller = without_dead(replace(entry, successor=successor), draft.nodes)
    draft.put(partition, without_removed(smaller, draft.nodes))
    if entry.primary == node:
        elect(draft, partition)


# --- leaving ---
def is_last_node(draft: MapEdit, node: NodeEntry) -> bool:
    """Is there nobody else who could hold anything?"""
    return not any(other.is_target for other in draft.nodes.values() if other.node_id != node.node_id)


def drain(draft: MapEdit, command: DrainNode) -> None:
    node = draft.nodes.get(command.node_id)
    if node is None:
        draft.refuse(Refusal.NO_SUCH_NODE)
    elif not node.is_member:
        draft.refuse(Refusal.REMOVED)
    elif is_last_node(draft, node):
        draft.refuse(Refusal.LAST_NODE)
    else:
        draft.put_node(replace(node, is_draining=True, is_leaving=node.is_leaving or command.then_remove))


def undrain(draft: MapEdit, command: UndrainNode) -> None:
    node = draft.nodes.get(command.node_id)
    if node is None:
        draft.refuse(Refusal.NO_SUCH_NODE)
    elif not node.is_member:
        draft.refuse(Refusal.REMOVED)
    else:
        draft.put_node(replace(node, is_draining=False, is_leaving=False))


def holds_copies(draft: MapEdit, node: NodeId) -> bool:
    return any(node in entry.copies for _, entry in draft.partitions())


def is_last_copy(draft: MapEdit, entry: PartitionEntry, node: NodeId) -> bool:
    """Would nobody be left who has everything that was acknowledged?"""
    return node in entry.isr and not any(n != node and draft.nodes[n].is_member for n in entry.isr)


def removal_refusal(draft: MapEdit, command: RemoveNode) -> Refusal | None:
    node = draft.nodes.get(command.node_id)
    if node is None:
        return Refusal.NO_SUCH_NODE
    if not node.is_member:
        return Refusal.REMOVED
    if not is_session_present(draft, node.node_id, command.session):
        return Refusal.STALE_SESSION
    if is_last_node(draft, node):
        return Refusal.LAST_NODE
    if node.is_up:
        return Refusal.HOLDS_COPIES if holds_copies(draft, node.node_id) else None
    empty = frozenset(command.empty)
    for partition, entry in draft.partitions():
        if is_last_copy(draft, entry, node.node_id) and partition not in empty:
            return Refusal.LAST_COPY
    return None


def remove(draft: MapEdit, command: RemoveNode) -> None:
    """For ever. Of a dead node: it leaves the sets as R3 allows, after ``min_isr`` was lowered if so few members remain."""
    refusal = removal_refusal(draft, command)
    if refusal is not None:
        draft.refuse(refusal)
        return
    node = replace(draft.nodes[command.node_id], status=NodeStatus.REMOVED, is_draining=False, is_leaving=False)
    restarted = [p for p, entry in draft.partitions() if is_last_copy(draft, entry, node.node_id)]
    draft.put_node(node)
    for partition in restarted:
        restart_empty(draft, partition)
    for partition, entry in draft.partitions():
        lowered = replace(entry, min_isr=lowered_min_isr(draft, entry))
        draft.put(partition, without_removed(without_dead(lowered, draft.nodes), draft.nodes))


def lowered_min_isr(draft: MapEdit, entry: PartitionEntry) -> int:
    """Section 6: only an operator's ``remove`` lowers it, and only to what the members that remain ask for."""
    return min(entry.min_isr, min_isr_wanted(draft.nodes, draft.replication_factor))


def restart_empty(draft: MapEdit, partition: int) -> None:
    """Its only store is gone for good and held no task: it starts again on the node that leads least. Recorded."""
    targets = [node.node_id for node in draft.nodes.values() if node.is_target]
    entry = draft.partition(partition)
    to = min(targets, key=lambda n: (draft.primaries_on(n), n))
    sole_copy(draft, partition, entry, to, reason="removed_empty")


def sole_copy(draft: MapEdit, partition: int, entry: PartitionEntry, to: NodeId, *, reason: str) -> None:
    """``to`` alone is the partition from now on, in a new epoch. Outside R1, so it is recorded for ever."""
    epoch = next_epoch(entry.epoch)
    record = Recovery(draft.index, epoch, to, reason)
    draft.put(
        partition,
        PartitionEntry(
            copies=(to,),
            isr=(to,),
            primary=to,
            epoch=epoch,
            partition_version=entry.partition_version,
            min_isr=1,
            unsafe_recovered=(*entry.unsafe_recovered, record),
        ),
    )


NODE_RULES: dict[type, Callable[[MapEdit, Any], None]] = {
    RegisterNode: register,
    NodeDown: node_down,
    DrainNode: drain,
    UndrainNode: undrain,
    RemoveNode: remove,
}
