"""``decide``: what the leader should propose now. Pure; the cluster map's own rules (``map.apply``)
have the last word.

The driver calls it at each tick and after each change of the cluster map while it leads, once it
has applied an entry of its own term. It proposes the commands, hands the wish to Raft, and passes
as ``pending`` whatever it proposed and has not seen applied or lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from tq_node.cluster import commands
from tq_node.cluster.commands import (
    AbortMove,
    AnyCommand,
    BeginMove,
    ElectPrimary,
    FinishMove,
    NodeDown,
    NoteHandlers,
    NoteThreeVoters,
    PlanPrimary,
    RaiseFeatureLevel,
    RaiseMinIsr,
    RebalanceDone,
    RemoveNode,
)
from tq_node.cluster.handlers import is_note_due
from tq_node.cluster.liveness import Liveness
from tq_node.cluster.planner import Planner
from tq_node.cluster.records import FEATURE_LEVEL_MAX, ClusterMap, NodeEntry
from tq_node.cluster.voters import RaftView, VoterChange, next_voter_change
from tq_node.types import NodeId

VOTERS_TO_NOTE = 3
CHANGES_THE_PLAN = (
    NodeDown,
    RemoveNode,
    commands.DrainNode,
    commands.UndrainNode,
    commands.UnsafeRecover,
    BeginMove,
    AbortMove,
    PlanPrimary,
    ElectPrimary,
)
"""While one of these is in flight nothing new is planned: the cluster map is about to change."""

_Step = TypeVar("_Step")


class Decision(msgspec.Struct, frozen=True):
    """What to propose. ``waiting``: why partitions that should move do not, as stable words."""

    commands: tuple[AnyCommand, ...] = ()
    voter_change: VoterChange | None = None
    waiting: dict[int, str] = {}


def decide(
    cluster_map: ClusterMap,
    liveness: Liveness,
    view: RaftView,
    now_ms: int,
    *,
    pending: Collection[AnyCommand] = (),
    plan: bool = True,
) -> Decision:
    """What the leader should propose now.

    :param plan: False: look for deaths only, neither at voters nor at each partition.

    :param pending: commands proposed and not yet applied, the data plane's too; none is proposed
        again."""
    if view.me not in cluster_map.nodes:
        return Decision()
    voter_change = next_voter_change(cluster_map, liveness, view, now_ms) if plan else None
    deaths = _deaths(cluster_map, liveness, view, now_ms, pending)
    if deaths:
        # Whatever else is due is looked at again once they are buried.
        return Decision(deaths, voter_change)
    if not plan:
        return Decision((), voter_change)
    planner = Planner(cluster_map, liveness, view.me, now_ms)
    due = [*_on_partitions(planner, pending), *_on_the_cluster(planner, view, pending)]
    return Decision(tuple(due), voter_change, planner.waiting)


# --- deaths ---
def cause_of_death(
    node: NodeEntry, cluster_map: ClusterMap, liveness: Liveness, view: RaftView, now_ms: int
) -> str | None:
    """Why the node is taken for dead: ``evidence`` (R5a), ``silence`` (R5), or None."""
    if liveness.is_proven_dead(node.node_id, cluster_map.nodes, view.voters, view.me):
        return "evidence"
    return "silence" if liveness.is_silent(node.node_id, now_ms) else None


def _deaths(
    cluster_map: ClusterMap, liveness: Liveness, view: RaftView, now_ms: int, pending: Collection[AnyCommand]
) -> tuple[AnyCommand, ...]:
    announced = {(c.node_id, c.session) for c in pending if isinstance(c, NodeDown)}
    found: list[AnyCommand] = []
    for node in cluster_map.nodes.values():
        if node.is_up and node.node_id != view.me and (node.node_id, node.session) not in announced:
            cause = cause_of_death(node, cluster_map, liveness, view, now_ms)
            if cause is not None:
                found.append(NodeDown(node.node_id, node.session, cause))
    return tuple(found)


# --- partitions ---
def _on_partitions(planner: Planner, pending: Collection[AnyCommand]) -> Iterator[AnyCommand]:
    """The steps that are due, one a partition at most: compare-and-set would refuse a second."""
    busy = partitions_in(pending)

    def free(steps: Iterable[_Step]) -> list[_Step]:
        mine: list[Any] = [step for step in steps if step.partition not in busy]  # type: ignore[attr-defined]
        busy.update(step.partition for step in mine)
        return mine

    batch = planner.settings.batch_max
    finishes, aborts = free(planner.finishes()), free(planner.aborts())
    elects, raises = free(planner.overdue_successors()), free(planner.raises())
    yield from _batches(FinishMove, finishes, batch)
    yield from _batches(AbortMove, aborts, batch)
    yield from _batches(ElectPrimary, elects, batch)
    yield from _batches(RaiseMinIsr, raises, batch)
    if aborts or elects or any(isinstance(command, CHANGES_THE_PLAN) for command in pending):
        return
    wanted = planner.wanted_copies()
    begins, successors = planner.begins(wanted), planner.successors(wanted)
    if planner.map.rebalance and not (begins or successors or finishes or _is_anything_under_way(planner)):
        done = RebalanceDone(planner.map.rebalance)
        if done not in pending:
            yield done
    yield from _batches(BeginMove, free(begins), batch)
    yield from _batches(PlanPrimary, free(successors), batch)


def _is_anything_under_way(planner: Planner) -> bool:
    return any(entry.is_moving or entry.successor is not None for entry in planner.map.partitions)


def partitions_in(pending: Collection[AnyCommand]) -> set[int]:
    """Every partition that something in flight is about."""
    return {
        step.partition
        for command in pending
        for field in ("steps", "seen", "led")
        for step in getattr(command, field, ())
    }


def _batches(kind: Callable[[Any], AnyCommand], steps: Sequence[_Step], size: int) -> Iterator[AnyCommand]:
    for start in range(0, len(steps), size):
        yield kind(tuple(steps[start : start + size]))


# --- the cluster ---
def _on_the_cluster(planner: Planner, view: RaftView, pending: Collection[AnyCommand]) -> Iterator[AnyCommand]:
    for command in (*_removals(planner, view), *_levels(planner.map), *_notes(planner, view)):
        if command not in pending:
            yield command


def _removals(planner: Planner, view: RaftView) -> Iterator[AnyCommand]:
    """Remove each leaving node once it holds no copy and has no vote."""
    leaving = [node for node in planner.map.nodes.values() if node.is_member and node.is_leaving]
    if leaving:
        holders: set[NodeId] = {node for entry in planner.map.partitions for node in entry.copies}
        others = {node.node_id for node in planner.map.nodes.values() if node.is_target}
        for node in leaving:
            if node.node_id not in holders and node.node_id not in view.voters and others:
                yield RemoveNode(node.node_id, node.session)


def _levels(cluster_map: ClusterMap) -> Iterator[AnyCommand]:
    """Raise the feature level as soon as every member supports it (F44), this code included: its
    node may have registered as a later release."""
    supported = min(FEATURE_LEVEL_MAX, *(node.feature_level_max for node in cluster_map.members()))
    if supported > cluster_map.feature_level:
        yield RaiseFeatureLevel(supported)


def _notes(planner: Planner, view: RaftView) -> Iterator[AnyCommand]:
    if len(view.voters) >= VOTERS_TO_NOTE and not planner.map.has_had_three_voters:
        yield NoteThreeVoters()
    if is_note_due(planner.map, planner.liveness.handlers):
        yield NoteHandlers()
