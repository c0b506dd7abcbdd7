"""PURE. Judges the health of a cluster, in one word and one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from tq_tui.format import duration, plural
from tq_tui.state.cluster_view import ClusterView, Health, NodeView, Phase


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement. ``title``: a word or two, capitals. ``reasons``: worst first, if any."""

    health: Health
    title: str
    reasons: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        return "; ".join(self.reasons)


GLYPHS = {
    Health.HEALTHY: "●",
    Health.DEGRADED: "◐",
    Health.NO_QUORUM: "✘",
    Health.UNREACHABLE: "✘",
    Health.CONNECTING: "◌",
}
STYLES = {
    Health.HEALTHY: "$text-success on $success-muted",
    Health.DEGRADED: "$text-warning on $warning-muted",
    Health.NO_QUORUM: "bold $text-error on $error-muted",
    Health.UNREACHABLE: "bold $text-error on $error-muted",
    Health.CONNECTING: "$foreground-muted on $panel",
}


JUST_NOW_S = 1.0
"""A node down for less is shown without a duration, as always by ``--once``."""


def judge(view: ClusterView) -> Verdict:
    if not view.living:
        waiting = [node for node in view.nodes if node.phase is Phase.CONNECTING]
        if waiting or not view.nodes:
            return Verdict(Health.CONNECTING, "CONNECTING", (f"waiting for {_names(waiting)}",) if waiting else ())
        return Verdict(Health.UNREACHABLE, "UNREACHABLE", (_unreachable(view),))
    voters, living = len(view.voters), view.voters_living
    majority = voters // 2 + 1
    if voters and living < majority:
        return Verdict(
            Health.NO_QUORUM,
            "NO QUORUM",
            (
                f"{living} of {voters} voters {_answer(living)}, {majority} must: nothing is decided until then",
                *_troubles(view),
            ),
        )
    if view.leader is None:
        return Verdict(Health.NO_QUORUM, "NO LEADER", ("nobody leads the cluster: an election is on", *_troubles(view)))
    troubles = _troubles(view)
    if troubles:
        return Verdict(Health.DEGRADED, "DEGRADED", troubles)
    return Verdict(Health.HEALTHY, "HEALTHY")


def _answer(number: int) -> str:
    return "answers" if number == 1 else "answer"


def _unreachable(view: ClusterView) -> str:
    first = view.nodes[0]
    what = f"{first.label}: {first.error}" if len(view.nodes) == 1 else f"none of {len(view.nodes)} nodes answers"
    return f"{what}; tried again all the time"


def _names(nodes: list[NodeView]) -> str:
    return ", ".join(node.label for node in nodes)


def _troubles(view: ClusterView) -> tuple[str, ...]:
    found: list[str] = []
    offline = sum(entry.primary is None or entry.state == "offline" for entry in view.partitions)
    if offline:
        found.append(f"{plural(offline, 'partition')} without a primary")
    found += [f"{node.label} {trouble}" for node in view.nodes if (trouble := node_trouble(view, node))]
    watched = {node.name for node in view.nodes}
    found += [
        f"{name} {member.status}"
        for name, member in view.members.items()
        if name not in watched and member.status in ("down", "suspect")
    ]
    starting = sum(entry.state == "starting" for entry in view.partitions)
    if starting:
        found.append(f"{plural(starting, 'partition')} starting")
    behind = sum(len(set(entry.replicas) - set(entry.in_sync) - set(entry.adding)) > 0 for entry in view.partitions)
    if behind and not any("down" in reason for reason in found):
        found.append(f"{plural(behind, 'partition')} with a copy out of sync")
    few = _with_few_copies(view)
    if few:
        found.append(f"{plural(few, 'partition')} with too few copies")
    moving = sum(entry.is_moving for entry in view.partitions)
    if moving:
        found.append(f"{plural(moving, 'partition')} moving")
    return tuple(found)


def _with_few_copies(view: ClusterView) -> int:
    """Number of partitions with fewer copies than the nodes could hold of those configured."""
    if view.cluster is None:
        return 0
    able = sum(member.status in ("active", "suspect", "down") for member in view.members.values())
    wanted = min(view.cluster.config.replication_factor, able)
    return sum(len(entry.replicas) + (entry.primary is not None) < wanted for entry in view.partitions)


def node_trouble(view: ClusterView, node: NodeView) -> str:
    """What is wrong with a node, in a few words; empty: nothing."""
    status = view.status_of(node)
    if node.phase is Phase.DOWN:
        seconds = view.now_s - node.since_s
        since = f" for {duration(seconds)}" if seconds >= JUST_NOW_S else ""
        if status in ("active", "draining") and view.leader is not None and node.error != "connection refused":
            return f"not reached from here{since} ({node.error}), though the cluster does"
        return f"down{since} ({node.error})"
    if node.phase is Phase.CONNECTING:
        return "not heard of yet"
    if status in ("down", "suspect", "joining", "draining"):
        return status
    if node.readiness is not None and not node.readiness.ready:
        reasons = ", ".join(reason.code for reason in node.readiness.reasons)
        return f"not ready ({reasons})" if reasons else "not ready"
    return ""


def node_note(node: NodeView) -> str:
    """Why a healthy node runs no tasks, in a few words; empty: it does."""
    notes = () if node.readiness is None else node.readiness.notes
    return "runs nothing: no handlers" if any(note.code == "no_handlers" for note in notes) else ""


def summary(view: ClusterView) -> str:
    """The rest of the health line: members, leader, and how much there is."""
    parts = []
    if view.nodes:
        parts.append(f"{len(view.living)}/{max(len(view.members), len(view.nodes))} nodes")
    if view.leader is not None and view.cluster is not None:
        parts.append(f"leader {view.leader} term {view.cluster.term}")
    if view.living:
        at_least = "" if view.counts_are_whole or not view.partitions else "≥"
        parts.append(f"{at_least}{plural(view.counts.total, 'task')}")
    if len(view.versions) > 1:
        parts.append(f"versions {' and '.join(view.versions)}")
    return " · ".join(parts)
