"""What the entries about nodes do: registration, death, draining, removal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tq_node.cluster.commands import DrainNode, NodeDown, RegisterNode, Registration, RemoveNode, UndrainNode
from tq_node.cluster.map_edit import MapEdit, replace
from tq_node.cluster.primary_choice import elect, next_epoch, without_dead, without_removed
from tq_node.cluster.records import HANDLERS_LEVEL, NodeEntry, NodeStatus, PartitionEntry, Recovery, min_isr_wanted
from tq_node.cluster.refusals import Refusal
from tq_node.types import HandlerKind, NodeId


# --- registration (sections 2 and 6) ---
def is_wrong_cluster(edit: MapEdit, command: RegisterNode) -> bool:
    """Whether the node belongs to another cluster, reached by a wrong address (F15)."""
    return command.cluster_id != edit.before.cluster_id


def is_removed(edit: MapEdit, node: Registration) -> bool:
    """Whether the id was removed; ids are never used again."""
    known = edit.nodes.get(node.node_id)
    return known is not None and not known.is_member


def is_name_taken(edit: MapEdit, node: Registration) -> bool:
    """Whether another member has the name. A wiped disk is a new node, replacing nobody (F13)."""
    holder = next((n for n in edit.nodes.values() if n.is_member and n.name == node.name), None)
    return holder is not None and holder.node_id != node.node_id


def is_store_cloned(edit: MapEdit, node: Registration) -> bool:
    """Whether the incarnation did not rise, as each start's does: a copied or old store (F14)."""
    known = edit.nodes.get(node.node_id)
    return known is not None and node.incarnation <= known.incarnation and not is_same_run(known, node)


def is_same_run(known: NodeEntry, node: Registration) -> bool:
    return known.incarnation == node.incarnation and known.nonce == node.nonce


def is_feature_level_missing(edit: MapEdit, node: Registration) -> bool:
    """Whether the node could not apply what the cluster may write (F44)."""
    return not node.feature_level_min <= edit.before.feature_level <= node.feature_level_max


def registration_refusal(edit: MapEdit, command: RegisterNode) -> Refusal | None:
    if is_wrong_cluster(edit, command):
        return Refusal.WRONG_CLUSTER
    if is_removed(edit, command.node):
        return Refusal.REMOVED
    if is_store_cloned(edit, command.node):
        return Refusal.STORE_CLONED
    if is_name_taken(edit, command.node):
        return Refusal.NAME_TAKEN
    if is_feature_level_missing(edit, command.node):
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


def register(edit: MapEdit, command: RegisterNode) -> None:
    """Give the node a new session, unless the registration repeats its present run's."""
    refusal = registration_refusal(edit, command)
    if refusal is not None:
        edit.refuse(refusal)
        return
    if is_handlers_news(edit, command.node):
        edit.set(handlers_seen=True)
    node = entry_of(command.node, edit.index)
    known = edit.nodes.get(node.node_id)
    if known is None:
        edit.put_node(node)
    elif not (known.is_up and is_same_run(known, command.node)):
        edit.put_node(
            replace(node, is_draining=known.is_draining, is_leaving=known.is_leaving, joined_index=known.joined_index)
        )
        choose_after_registration(edit, node.node_id)


def is_handlers_news(edit: MapEdit, node: Registration) -> bool:
    """The first node with own handlers. Not kept below the level: an older release can't (F44)."""
    cluster_map = edit.before
    return (
        node.handlers is HandlerKind.OWN
        and cluster_map.feature_level >= HANDLERS_LEVEL
        and not cluster_map.handlers_seen
    )


def choose_after_registration(edit: MapEdit, node: NodeId) -> None:
    """Choose primaries in its entry: for what it led (R2, F20), and where it was waited for."""
    for partition, entry in edit.partitions():
        if is_choice_due(entry, node):
            elect(edit, partition, avoid=node)


def is_choice_due(entry: PartitionEntry, node: NodeId) -> bool:
    return entry.primary == node or (entry.primary is None and node in entry.isr)


# --- death ---
def is_session_present(edit: MapEdit, node_id: NodeId, session: int) -> bool:
    """Whether a report is of the node's present run; those of an earlier one do not count (F25)."""
    node = edit.nodes.get(node_id)
    return node is not None and node.session == session


def node_down(edit: MapEdit, command: NodeDown) -> None:
    """Fail over in one entry: node down, out of the sets (R3), new primaries (R1, R2)."""
    node = edit.nodes.get(command.node_id)
    if node is None:
        edit.refuse(Refusal.NO_SUCH_NODE)
    elif not is_session_present(edit, node.node_id, command.session):
        edit.refuse(Refusal.STALE_SESSION)
    elif not node.is_up:
        edit.refuse(Refusal.NOT_UP)
    else:
        edit.put_node(replace(node, status=NodeStatus.DOWN))
        for partition, entry in edit.partitions():
            if node.node_id in entry.isr:
                lose(edit, partition, entry, node.node_id)


def lose(edit: MapEdit, partition: int, entry: PartitionEntry, node: NodeId) -> None:
    successor = None if entry.successor == node else entry.successor
    smaller = without_dead(replace(entry, successor=successor), edit.nodes)
    edit.put(partition, without_removed(smaller, edit.nodes))
    if entry.primary == node:
        elect(edit, partition)


# --- leaving ---
def is_last_node(edit: MapEdit, node: NodeEntry) -> bool:
    """Whether no other node could hold anything."""
    return not any(other.is_target for other in edit.nodes.values() if other.node_id != node.node_id)


def drain(edit: MapEdit, command: DrainNode) -> None:
    node = edit.nodes.get(command.node_id)
    if node is None:
        edit.refuse(Refusal.NO_SUCH_NODE)
    elif not node.is_member:
        edit.refuse(Refusal.REMOVED)
    elif is_last_node(edit, node):
        edit.refuse(Refusal.LAST_NODE)
    else:
        edit.put_node(replace(node, is_draining=True, is_leaving=node.is_leaving or command.then_remove))


def undrain(edit: MapEdit, command: UndrainNode) -> None:
    node = edit.nodes.get(command.node_id)
    if node is None:
        edit.refuse(Refusal.NO_SUCH_NODE)
    elif not node.is_member:
        edit.refuse(Refusal.REMOVED)
    else:
        edit.put_node(replace(node, is_draining=False, is_leaving=False))


def holds_copies(edit: MapEdit, node: NodeId) -> bool:
    return any(node in entry.copies for _, entry in edit.partitions())


def is_last_copy(edit: MapEdit, entry: PartitionEntry, node: NodeId) -> bool:
    """Whether no other member would have everything that was acknowledged."""
    return node in entry.isr and not any(n != node and edit.nodes[n].is_member for n in entry.isr)


def removal_refusal(edit: MapEdit, command: RemoveNode) -> Refusal | None:
    node = edit.nodes.get(command.node_id)
    if node is None:
        return Refusal.NO_SUCH_NODE
    if not node.is_member:
        return Refusal.REMOVED
    if not is_session_present(edit, node.node_id, command.session):
        return Refusal.STALE_SESSION
    if is_last_node(edit, node):
        return Refusal.LAST_NODE
    if node.is_up:
        return Refusal.HOLDS_COPIES if holds_copies(edit, node.node_id) else None
    empty = frozenset(command.empty)
    for partition, entry in edit.partitions():
        if is_last_copy(edit, entry, node.node_id) and partition not in empty:
            return Refusal.LAST_COPY
    return None


def remove(edit: MapEdit, command: RemoveNode) -> None:
    """Remove a node for ever. A dead one leaves the sets as R3 allows, after ``min_isr`` was
    lowered if few members remain."""
    refusal = removal_refusal(edit, command)
    if refusal is not None:
        edit.refuse(refusal)
        return
    node = replace(edit.nodes[command.node_id], status=NodeStatus.REMOVED, is_draining=False, is_leaving=False)
    restarted = [p for p, entry in edit.partitions() if is_last_copy(edit, entry, node.node_id)]
    edit.put_node(node)
    for partition in restarted:
        restart_empty(edit, partition)
    for partition, entry in edit.partitions():
        lowered = replace(entry, min_isr=lowered_min_isr(edit, entry))
        edit.put(partition, without_removed(without_dead(lowered, edit.nodes), edit.nodes))


def lowered_min_isr(edit: MapEdit, entry: PartitionEntry) -> int:
    """``min_isr`` for the members that remain. Only an operator's ``remove`` lowers it."""
    return min(entry.min_isr, min_isr_wanted(edit.nodes, edit.replication_factor))


def restart_empty(edit: MapEdit, partition: int) -> None:
    """Begin an empty partition anew, on the node that leads least: its only store is gone and held
    no task. Recorded."""
    targets = [node.node_id for node in edit.nodes.values() if node.is_target]
    entry = edit.partition(partition)
    to = min(targets, key=lambda n: (edit.primaries_on(n), n))
    sole_copy(edit, partition, entry, to, reason="removed_empty")


def sole_copy(edit: MapEdit, partition: int, entry: PartitionEntry, to: NodeId, *, reason: str) -> None:
    """Make ``to`` the only copy, in a new epoch. It is outside R1, so it is recorded for ever."""
    epoch = next_epoch(entry.epoch)
    record = Recovery(edit.index, epoch, to, reason)
    edit.put(
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
