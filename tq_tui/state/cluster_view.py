"""PURE. The view of a cluster, reduced from its nodes' answers: ``reduce(view, observation)``.

Observations bring their time, in seconds since the epoch. A node that is down stays in the view
with its last answer and its age."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from tq_tui.addresses import natural, same_place
from tq_tui.client.models import ClusterInfo, Counts, Member, Metrics, Partition, Readiness, Stats

HISTORY_MAX = 300
SAMPLE_S = 1.0
STALE_S = 2.0
"""A node silent for this long is shown as down, whatever its connection looks like."""


class Phase(Enum):
    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Polled:
    """A node answered. None: not asked for this time, so it stays as it was."""

    address: str
    at_s: float
    stats: Stats
    cluster: ClusterInfo
    readiness: Readiness | None = None
    metrics: Metrics | None = None
    partitions: Sequence[Partition] | None = None
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A node did not answer; the next try is at ``retry_at_s``."""

    address: str
    at_s: float
    error: str
    retry_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Added:
    """An address is watched from now on. ``given``: by the operator; others are learnt."""

    address: str
    at_s: float
    given: bool = True


@dataclass(frozen=True, slots=True)
class Dropped:
    """An address is watched no longer: its node left the cluster, or has another address here."""

    address: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""

    at_s: float


Observation = Polled | Failed | Added | Dropped | Ticked


@dataclass(frozen=True, slots=True)
class Rates:
    """Tasks a second."""

    submitted: float = 0.0
    completed: float = 0.0
    failed: float = 0.0

    def __add__(self, other: Rates) -> Rates:
        return Rates(self.submitted + other.submitted, self.completed + other.completed, self.failed + other.failed)


@dataclass(frozen=True, slots=True)
class Sample:
    """One point of the charts."""

    at_s: float
    rates: Rates
    pending: int
    processing: int


@dataclass(frozen=True)
class NodeView:
    """One node: its state as this console sees it, and its last answer."""

    address: str
    given: bool = True
    name: str = ""
    phase: Phase = Phase.CONNECTING
    since_s: float = 0.0
    """Time of entering ``phase``."""
    seen_s: float | None = None
    error: str = ""
    retry_at_s: float = 0.0
    latency_s: float = 0.0
    cluster: ClusterInfo | None = None
    stats: Stats | None = None
    readiness: Readiness | None = None
    metrics: Metrics | None = None
    metrics_at_s: float = 0.0
    rates: Rates = Rates()
    cpu: float = 0.0
    """Cores in use."""
    partitions: tuple[Partition, ...] = ()

    @property
    def label(self) -> str:
        return self.name or self.address

    @property
    def is_up(self) -> bool:
        return self.phase is Phase.UP

    @property
    def primary(self) -> Counts:
        return self.stats.primary if self.stats is not None else Counts()


class Health(Enum):
    """``value``: the exit code of ``--once``."""

    HEALTHY = 0
    DEGRADED = 1
    NO_QUORUM = 2
    UNREACHABLE = 3
    CONNECTING = 4

    @property
    def exit_code(self) -> int:
        return min(self.value, 2)


@dataclass(frozen=True)
class ClusterView:
    """Everything that screens show of the cluster; immutable."""

    nodes: tuple[NodeView, ...] = ()
    now_s: float = 0.0
    history: tuple[Sample, ...] = ()

    def node(self, address: str) -> NodeView | None:
        return next((node for node in self.nodes if node.address == address), None)

    def named(self, name: str) -> NodeView | None:
        return next((node for node in self.nodes if node.name == name), None)

    @cached_property
    def living(self) -> tuple[NodeView, ...]:
        return tuple(node for node in self.nodes if node.is_up)

    @cached_property
    def cluster(self) -> ClusterInfo | None:
        """As the node furthest ahead sees it: with a leader, of the highest term, polled last."""
        known = [node for node in self.living if node.cluster is not None and node.cluster.id]
        known = known or [node for node in self.nodes if node.cluster is not None and node.cluster.id]
        best = max(
            known,
            key=lambda node: (
                node.cluster is not None and node.cluster.leader is not None,
                node.cluster.term if node.cluster is not None else 0,
                node.seen_s or 0.0,
            ),
            default=None,
        )
        return best.cluster if best is not None else None

    @cached_property
    def versions(self) -> tuple[str, ...]:
        """Releases that the living nodes run; more than one in the middle of an upgrade."""
        found = {node.metrics.version for node in self.living if node.metrics is not None and node.metrics.version}
        return tuple(sorted(found, key=natural))

    @cached_property
    def leader(self) -> str | None:
        """The Raft leader's name; None where no living node names one."""
        if not self.living or self.cluster is None:
            return None
        return self.cluster.leader

    @cached_property
    def members(self) -> dict[str, Member]:
        return {member.id: member for member in (self.cluster.nodes if self.cluster else ())}

    def status_of(self, node: NodeView) -> str:
        """The node's status in the cluster map; empty where it is no member."""
        member = self.members.get(node.name)
        return member.status if member is not None else ""

    @cached_property
    def voters(self) -> tuple[str, ...]:
        return tuple(name for name, member in self.members.items() if member.voter)

    @cached_property
    def voters_living(self) -> int:
        """Voters that this console reaches, or that the others call alive where it doesn't."""
        alive = {node.name for node in self.living}
        if self.leader is not None:
            alive |= {name for name, member in self.members.items() if member.status in ("active", "draining")}
        return sum(name in alive for name in self.voters)

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        """The newest entry of each partition, with the lag known to its primary."""
        newest: dict[int, Partition] = {}
        for node in self.living or self.nodes:
            for entry in node.partitions:
                if _is_better(entry, newest.get(entry.partition), node.name):
                    newest[entry.partition] = entry
        return tuple(newest[number] for number in sorted(newest))

    @cached_property
    def counts(self) -> Counts:
        """Tasks by state, each once, as far as their primaries answer."""
        return sum((node.primary for node in self.living), Counts())

    @cached_property
    def counts_are_whole(self) -> bool:
        return (
            bool(self.partitions)
            and all(entry.primary is not None for entry in self.partitions)
            and all(
                node.is_up or not any(entry.primary == node.name for entry in self.partitions) for node in self.nodes
            )
        )

    @cached_property
    def rates(self) -> Rates:
        return sum((node.rates for node in self.living), Rates())

    @cached_property
    def oldest(self) -> tuple[str, float] | None:
        """Queue and age in seconds of the due task that has waited longest; None: nobody waits."""
        ages = [
            (age_s, queue)
            for node in self.living
            if node.metrics is not None
            for queue, age_s in node.metrics.oldest_age_s.items()
            if age_s > 0
        ]
        if not ages:
            return None
        age_s, queue = max(ages)
        return queue, age_s

    @cached_property
    def paused(self) -> tuple[str, ...]:
        found = {queue for node in self.living if node.metrics is not None for queue in node.metrics.paused}
        return tuple(sorted(found))

    @cached_property
    def slots(self) -> tuple[int, int]:
        """Worker slots of the living nodes: busy ones, and all."""
        metrics = [node.metrics for node in self.living if node.metrics is not None]
        return sum(one.busy for one in metrics), sum(one.slots for one in metrics)

    def held(self, name: str) -> tuple[int, int]:
        """Partitions that a node is primary of, and that it has a copy of."""
        led = sum(entry.primary == name for entry in self.partitions)
        return led, led + sum(name in entry.replicas for entry in self.partitions)

    def lag(self, name: str) -> tuple[int, int]:
        """Entries that a node's copies are behind by, and how many of them are out of sync."""
        behind = sum(entry.lag.get(name, 0) for entry in self.partitions)
        return behind, sum(name in entry.replicas and name not in entry.in_sync for entry in self.partitions)


def _is_better(entry: Partition, known: Partition | None, source: str) -> bool:
    if known is None:
        return True
    mine, theirs = (entry.epoch, entry.version), (known.epoch, known.version)
    return mine > theirs or (mine == theirs and entry.primary == source)


def reduce(view: ClusterView, seen: Observation) -> ClusterView:
    """The view after an observation; one of an address no longer watched changes nothing."""
    view = replace(view, now_s=max(view.now_s, seen.at_s))
    match seen:
        case Ticked():
            return _sampled(_silenced(view))
        case Added(address=address):
            if view.node(address) is not None:
                return view
            return _ordered(view, (*view.nodes, NodeView(address, seen.given, since_s=seen.at_s)))
        case Dropped(address=address):
            return _ordered(view, (node for node in view.nodes if node.address != address))
        case Polled(address=address) | Failed(address=address):
            node = view.node(address)
            if node is None:
                return view
            after = _polled(node, seen) if isinstance(seen, Polled) else _failed(node, seen)
            return _ordered(view, (after if one is node else one for one in view.nodes))


def _polled(node: NodeView, seen: Polled) -> NodeView:
    metrics = seen.metrics or node.metrics
    rates, cpu = node.rates, node.cpu
    if seen.metrics is not None:
        rates, cpu = _rates(node, seen.metrics, seen.at_s)
    return replace(
        node,
        name=seen.stats.node,
        phase=Phase.UP,
        since_s=node.since_s if node.is_up else seen.at_s,
        seen_s=seen.at_s,
        error="",
        latency_s=seen.latency_s,
        cluster=seen.cluster,
        stats=seen.stats,
        readiness=seen.readiness or node.readiness,
        metrics=metrics,
        metrics_at_s=seen.at_s if seen.metrics is not None else node.metrics_at_s,
        rates=rates,
        cpu=cpu,
        partitions=tuple(seen.partitions) if seen.partitions is not None else node.partitions,
    )


def _rates(node: NodeView, now: Metrics, at_s: float) -> tuple[Rates, float]:
    """Rates and CPU since the last metrics; zero after a restart, whose counters began again."""
    before, seconds = node.metrics, at_s - node.metrics_at_s
    if before is None or seconds <= 0 or now.started_at_s != before.started_at_s or not node.is_up:
        return Rates(), 0.0
    return Rates(
        max(0, now.submitted - before.submitted) / seconds,
        max(0, now.completed - before.completed) / seconds,
        max(0, now.failed - before.failed) / seconds,
    ), max(0.0, now.cpu_s - before.cpu_s) / seconds


def _failed(node: NodeView, seen: Failed) -> NodeView:
    return replace(
        node,
        phase=Phase.DOWN,
        since_s=node.since_s if node.phase is Phase.DOWN else seen.at_s,
        error=seen.error,
        retry_at_s=seen.retry_at_s,
        rates=Rates(),
        cpu=0.0,
    )


def _silenced(view: ClusterView) -> ClusterView:
    def judged(node: NodeView) -> NodeView:
        if node.is_up and node.seen_s is not None and view.now_s - node.seen_s > STALE_S:
            return _failed(node, Failed(node.address, view.now_s, "no answer"))
        return node

    nodes = tuple(map(judged, view.nodes))
    return view if nodes == view.nodes else replace(view, nodes=nodes)


def _sampled(view: ClusterView) -> ClusterView:
    if view.history and view.now_s - view.history[-1].at_s < SAMPLE_S * 0.9:
        return view
    if not view.living:
        return view
    sample = Sample(view.now_s, view.rates, view.counts.pending, view.counts.processing)
    return replace(view, history=(*view.history[-(HISTORY_MAX - 1) :], sample))


def _ordered(view: ClusterView, nodes: Iterable[NodeView]) -> ClusterView:
    """The view with these nodes by name; one never reached is named by the cluster map."""
    view = replace(view, nodes=tuple(nodes))
    places = {same_place(member.http): member.id for member in view.members.values() if member.http}
    named = (node if node.name else replace(node, name=places.get(same_place(node.address), "")) for node in view.nodes)
    return replace(view, nodes=tuple(sorted(named, key=lambda node: (natural(node.label), node.address))))
