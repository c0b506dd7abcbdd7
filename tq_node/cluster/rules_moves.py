"""Moves (section 6): the intent is in the cluster map, so any later leader takes it up (F27)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from tq_node.cluster.commands import AbortMove, BeginMove, FinishMove, MoveStep, Seen
from tq_node.cluster.map_edit import MapEdit, replace
from tq_node.cluster.records import PartitionEntry, copies_wanted
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.rules_partitions import staleness


class MoveStage(enum.StrEnum):
    """Which entry a move needs next; a public word (``GET /cluster/partitions``, ``/metrics``)."""

    COPYING = "copying"
    """``BeginMove`` is applied: the newcomers learn, until they are in the set."""
    HANDING_OVER = "handing_over"
    """They are; the primary leaves, and another is to be chosen."""
    SHRINKING = "shrinking"
    """Another is, or need not be; who leaves is still in the set."""
    FINISHING = "finishing"
    """Nothing counts on who leaves; ``FinishMove`` comes next."""


def stage_of(entry: PartitionEntry) -> MoveStage | None:
    """The stage of the partition's move; None: it does not move."""
    if not entry.is_moving:
        return None
    if not are_in_sync(entry):
        return MoveStage.COPYING
    if entry.primary in entry.removing:
        return MoveStage.HANDING_OVER
    return MoveStage.FINISHING if are_out_of_sync(entry) else MoveStage.SHRINKING


def begin_move(edit: MapEdit, command: BeginMove) -> None:
    """Make the newcomers copies; their primary decides when they join the set (R10)."""
    for step in command.steps:
        refusal = begin_refusal(edit, step)
        if refusal is not None:
            edit.refuse(refusal, step.partition)
            continue
        entry = edit.partition(step.partition)
        edit.put(
            step.partition,
            replace(
                entry, copies=entry.copies + step.adding, adding=step.adding, removing=entry.ordered(step.removing)
            ),
        )


def begin_refusal(edit: MapEdit, step: MoveStep) -> Refusal | None:
    stale = staleness(edit, step)
    if stale is not None:
        return stale
    entry = edit.partition(step.partition)
    if entry.is_moving:
        return Refusal.MOVE_UNDER_WAY
    if not step.adding and not step.removing:
        return Refusal.NO_MOVE
    if not are_targets(edit, entry, step):
        return Refusal.BAD_TARGET
    if not set(step.removing) <= set(entry.copies):
        return Refusal.NOT_A_COPY
    if not is_within_one_more(edit, entry, step):
        return Refusal.TOO_MANY_COPIES
    if not leaves_enough(edit, entry, step):
        return Refusal.TOO_FEW_COPIES
    return None


def are_targets(edit: MapEdit, entry: PartitionEntry, step: MoveStep) -> bool:
    """Whether each is up and staying, is named once, and is not a copy already."""
    if len(set(step.adding)) != len(step.adding):
        return False
    return all(n in edit.nodes and edit.nodes[n].is_target and n not in entry.copies for n in step.adding)


def is_within_one_more(edit: MapEdit, entry: PartitionEntry, step: MoveStep) -> bool:
    """Copies are at most RF + 1 in between: a move is not a way to copy everything everywhere."""
    return not step.adding or len(entry.copies) + len(step.adding) <= edit.replication_factor + 1


def leaves_enough(edit: MapEdit, entry: PartitionEntry, step: MoveStep) -> bool:
    """Never RF - 1: a move ends with as many copies as the members can hold, or with no fewer than
    there were. Nor with fewer than ``min_isr``: it could never end."""
    left = len(entry.copies) + len(step.adding) - len(set(step.removing))
    wanted = copies_wanted(edit.nodes, edit.replication_factor)
    return left >= max(1, entry.min_isr, min(wanted, len(entry.copies)))


def are_in_sync(entry: PartitionEntry) -> bool:
    """Whether the newcomers are in the set, so that they have everything (R10)."""
    return all(node in entry.isr for node in entry.adding)


def are_out_of_sync(entry: PartitionEntry) -> bool:
    """Whether no commit waits any more for the copies that leave."""
    return not any(node in entry.isr for node in entry.removing)


def finish_move(edit: MapEdit, command: FinishMove) -> None:
    for seen in command.seen:
        refusal = finish_refusal(edit, seen)
        if refusal is not None:
            edit.refuse(refusal, seen.partition)
            continue
        entry = edit.partition(seen.partition)
        edit.put(seen.partition, replace(entry, copies=entry.intended, adding=(), removing=()))


def finish_refusal(edit: MapEdit, seen: Seen) -> Refusal | None:
    stale = staleness(edit, seen)
    if stale is not None:
        return stale
    entry = edit.partition(seen.partition)
    if not entry.is_moving:
        return Refusal.NO_MOVE
    if not are_in_sync(entry):
        return Refusal.NOT_IN_SYNC
    if not are_out_of_sync(entry):
        return Refusal.STILL_IN_SYNC
    return None


def abort_move(edit: MapEdit, command: AbortMove) -> None:
    """Newcomers that are in the set by now stay copies; the others never counted."""
    for seen in command.seen:
        stale = staleness(edit, seen)
        entry = edit.partition(seen.partition) if stale is None else None
        if entry is None:
            edit.refuse(stale or Refusal.NO_SUCH_PARTITION, seen.partition)
        elif not entry.is_moving:
            edit.refuse(Refusal.NO_MOVE, seen.partition)
        else:
            kept = tuple(node for node in entry.copies if node in entry.isr or node not in entry.adding)
            edit.put(seen.partition, replace(entry, copies=kept, adding=(), removing=()))


MOVE_RULES: dict[type, Callable[[MapEdit, Any], None]] = {
    BeginMove: begin_move,
    FinishMove: finish_move,
    AbortMove: abort_move,
}
