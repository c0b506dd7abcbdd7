"""Entries on sets and primaries: R4, planned and forced changes, ``min_isr``, unsafe recovery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tq_node.cluster.commands import (
    AlterIsr,
    ElectPrimary,
    IsrStep,
    MoveStep,
    PlanPrimary,
    PrimaryStep,
    RaiseMinIsr,
    Seen,
    StepDown,
    UnsafeRecover,
)
from tq_node.cluster.map_edit import MapEdit, replace
from tq_node.cluster.primary_choice import appoint, candidates, elect, with_isr, without_removed
from tq_node.cluster.records import PartitionEntry, min_isr_wanted
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.rules_nodes import is_session_present, sole_copy
from tq_node.types import NodeId


# --- compare-and-set ---
def has_partition(edit: MapEdit, partition: int) -> bool:
    return 0 <= partition < len(edit.before.partitions)


def is_epoch_present(entry: PartitionEntry, epoch: int) -> bool:
    return entry.epoch == epoch


def is_version_present(entry: PartitionEntry, partition_version: int) -> bool:
    return entry.partition_version == partition_version


def staleness(edit: MapEdit, seen: Seen | IsrStep | MoveStep | PrimaryStep | UnsafeRecover) -> Refusal | None:
    """Why the partition is not as its proposer saw it; None: it is (F25, F27)."""
    if not has_partition(edit, seen.partition):
        return Refusal.NO_SUCH_PARTITION
    entry = edit.partition(seen.partition)
    if not is_epoch_present(entry, seen.epoch):
        return Refusal.STALE_EPOCH
    if edit.is_touched(seen.partition) or not is_version_present(entry, seen.partition_version):
        return Refusal.STALE_VERSION
    return None


def is_primary(entry: PartitionEntry, sender: NodeId) -> bool:
    return entry.primary == sender


# --- R4 ---
def keeps_primary(entry: PartitionEntry, isr: frozenset[NodeId]) -> bool:
    return entry.primary in isr


def is_one_step(entry: PartitionEntry, isr: frozenset[NodeId]) -> bool:
    """One member more or less: the old set and the new one share what R8 counts."""
    return len(isr.symmetric_difference(entry.isr)) == 1


def is_copy_up(edit: MapEdit, entry: PartitionEntry, added: frozenset[NodeId]) -> bool:
    return all(node in entry.copies and edit.nodes[node].is_up for node in added)


def dead_go_first(edit: MapEdit, entry: PartitionEntry, isr: frozenset[NodeId]) -> bool:
    """No living member goes before a dead one: else a late word could leave only the dead (F25)."""
    removes_live = any(edit.nodes[node].is_up for node in entry.isr if node not in isr)
    return not (removes_live and any(not edit.nodes[node].is_up for node in entry.isr if node in isr))


def is_enough(entry: PartitionEntry, isr: frozenset[NodeId]) -> bool:
    """R3: never fewer than ``min_isr``."""
    return len(isr) >= entry.min_isr


def step_refusal(edit: MapEdit, sender: NodeId, step: IsrStep) -> Refusal | None:
    """Why a primary's new in-sync set is refused (R4); None: it is not."""
    stale = staleness(edit, step)
    if stale is not None:
        return stale
    entry = edit.partition(step.partition)
    isr = frozenset(step.isr)
    if not is_primary(entry, sender):
        return Refusal.NOT_PRIMARY
    if not keeps_primary(entry, isr):
        return Refusal.PRIMARY_STAYS
    if not is_one_step(entry, isr):
        return Refusal.NOT_ONE_STEP
    if not is_copy_up(edit, entry, isr.difference(entry.isr)):
        return Refusal.NOT_A_COPY
    if not is_enough(entry, isr):
        return Refusal.MIN_ISR
    if not dead_go_first(edit, entry, isr):
        return Refusal.DEAD_GO_FIRST
    return None


def alter_isr(edit: MapEdit, command: AlterIsr) -> None:
    if not is_session_present(edit, command.sender, command.session):
        edit.refuse(Refusal.STALE_SESSION)
        return
    for step in command.steps:
        refusal = step_refusal(edit, command.sender, step)
        if refusal is not None:
            edit.refuse(refusal, step.partition)
            continue
        entry = edit.partition(step.partition)
        altered = with_isr(entry, entry.ordered(step.isr))
        edit.put(step.partition, without_removed(altered, edit.nodes))


# --- primaries ---
def step_down(edit: MapEdit, command: StepDown) -> None:
    """The primary is slow, draining or stopping: another is chosen. With nobody else it stays."""
    if not is_session_present(edit, command.sender, command.session):
        edit.refuse(Refusal.STALE_SESSION)
        return
    for led in command.led:
        if not has_partition(edit, led.partition):
            edit.refuse(Refusal.NO_SUCH_PARTITION, led.partition)
            continue
        entry = edit.partition(led.partition)
        if not is_epoch_present(entry, led.epoch):
            edit.refuse(Refusal.STALE_EPOCH, led.partition)
        elif not is_primary(entry, command.sender):
            edit.refuse(Refusal.NOT_PRIMARY, led.partition)
        elif candidates(entry, edit.nodes) == [command.sender]:
            edit.refuse(Refusal.NO_SUCCESSOR, led.partition)
        else:
            elect(edit, led.partition, avoid=command.sender)


def plan_primary(edit: MapEdit, command: PlanPrimary) -> None:
    for step in command.steps:
        stale = staleness(edit, step)
        entry = edit.partition(step.partition) if stale is None else None
        if entry is None:
            edit.refuse(stale or Refusal.NO_SUCH_PARTITION, step.partition)
        elif entry.primary is None or step.to not in candidates(entry, edit.nodes):
            edit.refuse(Refusal.NO_SUCCESSOR, step.partition)
        else:
            edit.put(step.partition, replace(entry, successor=None if step.to == entry.primary else step.to))


def elect_primary(edit: MapEdit, command: ElectPrimary) -> None:
    for step in command.steps:
        stale = staleness(edit, step)
        if stale is not None:
            edit.refuse(stale, step.partition)
            continue
        entry = edit.partition(step.partition)
        able = candidates(entry, edit.nodes)
        if not able or (step.to is not None and step.to not in able):
            edit.refuse(Refusal.NO_SUCCESSOR, step.partition)
        elif step.to is None:
            elect(edit, step.partition)
        else:
            appoint(edit, step.partition, entry, step.to)


def raise_min_isr(edit: MapEdit, command: RaiseMinIsr) -> None:
    """Raise ``min_isr`` where the set allows it; I3 holds before and after."""
    wanted = min_isr_wanted(edit.nodes, edit.replication_factor)
    for seen in command.seen:
        stale = staleness(edit, seen)
        if stale is not None:
            edit.refuse(stale, seen.partition)
            continue
        entry = edit.partition(seen.partition)
        if wanted <= entry.min_isr:
            edit.refuse(Refusal.NOT_NEEDED, seen.partition)
        elif not allows_min_isr(entry, wanted):
            edit.refuse(Refusal.MIN_ISR, seen.partition)
        else:
            edit.put(seen.partition, replace(entry, min_isr=wanted))


def allows_min_isr(entry: PartitionEntry, wanted: int) -> bool:
    """Whether ``min_isr`` may be raised; copies about to leave don't count, lest they stay."""
    return sum(1 for node in entry.isr if node not in entry.removing) >= wanted


# --- outside the rules ---
def is_in_service(edit: MapEdit, entry: PartitionEntry) -> bool:
    """Whether the partition has a primary and enough living members: nothing is to be given up."""
    return entry.primary is not None and len(candidates(entry, edit.nodes)) == len(entry.isr)


def unsafe_recover(edit: MapEdit, command: UnsafeRecover) -> None:
    stale = staleness(edit, command)
    node = edit.nodes.get(command.node_id)
    if stale is not None:
        edit.refuse(stale, command.partition)
    elif node is None:
        edit.refuse(Refusal.NO_SUCH_NODE, command.partition)
    elif not node.is_up:
        edit.refuse(Refusal.NOT_UP, command.partition)
    elif is_in_service(edit, edit.partition(command.partition)):
        edit.refuse(Refusal.NOT_NEEDED, command.partition)
    else:
        sole_copy(edit, command.partition, edit.partition(command.partition), node.node_id, reason="unsafe")


PARTITION_RULES: dict[type, Callable[[MapEdit, Any], None]] = {
    AlterIsr: alter_isr,
    StepDown: step_down,
    PlanPrimary: plan_primary,
    ElectPrimary: elect_primary,
    RaiseMinIsr: raise_min_isr,
    UnsafeRecover: unsafe_recover,
}
