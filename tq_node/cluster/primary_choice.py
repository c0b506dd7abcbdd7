"""R1 to R3: who may become primary, what a choice does, what becomes of a set whose members die."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tq_node.cluster.map_edit import MapEdit, replace
from tq_node.cluster.records import NodeEntry, NodeStatus, PartitionEntry
from tq_node.types import Epoch, NodeId

Nodes = Mapping[NodeId, NodeEntry]


def candidates(entry: PartitionEntry, nodes: Nodes) -> list[NodeId]:
    """The in-sync members that are up (R1). Other copies may lack acknowledged data (F13, F16)."""
    return [node for node in entry.isr if nodes[node].is_up]


def next_epoch(epoch: Epoch) -> Epoch:
    """Each choice is a new epoch: the same primary may have forgotten what it sent (R2, F20)."""
    return Epoch(epoch + 1)


def choice(
    entry: PartitionEntry, nodes: Nodes, primaries_on: Callable[[NodeId], int], *, avoid: NodeId | None = None
) -> NodeId | None:
    """The best candidate: not ``avoid``, the successor, one that stays, then whoever leads least.
    None: nobody may lead."""

    def rank(node: NodeId) -> tuple[bool, bool, bool, bool, int, NodeId]:
        return (
            node == avoid,
            node != entry.successor,
            node in entry.removing,
            nodes[node].is_draining,
            primaries_on(node),
            node,
        )

    return min(candidates(entry, nodes), key=rank, default=None)


def elect(edit: MapEdit, partition: int, *, avoid: NodeId | None = None) -> None:
    """Choose a primary in a new epoch (R2). With no candidate there is none; the epoch stays."""
    entry = edit.partition(partition)
    chosen = choice(entry, edit.nodes, edit.primaries_on, avoid=avoid)
    appoint(edit, partition, entry, chosen)


def appoint(edit: MapEdit, partition: int, entry: PartitionEntry, chosen: NodeId | None) -> None:
    epoch = entry.epoch if chosen is None else next_epoch(entry.epoch)
    edit.put(partition, replace(entry, primary=chosen, epoch=epoch, successor=None))


def may_shrink(members: int, min_isr: int) -> bool:
    """R3: dead members leave only while over ``min_isr`` remain; the others stay in it (F16)."""
    return members > min_isr


def without_dead(entry: PartitionEntry, nodes: Nodes) -> PartitionEntry:
    """The entry without the dead of its set, as far as R3 allows, the removed ones first."""
    isr = list(entry.isr)
    dead = sorted((n for n in isr if not nodes[n].is_up), key=lambda n: nodes[n].status != NodeStatus.REMOVED)
    for node in dead:
        if may_shrink(len(isr), entry.min_isr):
            isr.remove(node)
    if len(isr) == len(entry.isr):
        return entry
    return with_isr(entry, tuple(isr))


def with_isr(entry: PartitionEntry, isr: tuple[NodeId, ...]) -> PartitionEntry:
    """The entry with another in-sync set; a successor that left the set is dropped."""
    return replace(entry, isr=isr, successor=entry.successor if entry.successor in isr else None)


def without_removed(entry: PartitionEntry, nodes: Nodes) -> PartitionEntry:
    """A removed node never returns: once out of the set it is no copy, nor part of a move."""
    gone = [node for node in entry.copies if not nodes[node].is_member and node not in entry.isr]
    if not gone:
        return entry
    return replace(
        entry,
        copies=tuple(node for node in entry.copies if node not in gone),
        adding=tuple(node for node in entry.adding if node not in gone),
        removing=tuple(node for node in entry.removing if node not in gone),
    )
