"""Who is alive, as far as one node can tell: silence (R5), evidence of death (R5a), health.

Kept on every member, so that a new leader knows the sizes and everybody can show who is suspect;
only the leader acts on it. Safety never rests on it (R2, R12, R13). Nothing here reads a clock:
each call says when it is, in monotonic ms."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from tq_node.cluster.records import ClusterMap, NodeEntry, PartitionEntry
from tq_node.cluster.settings import DEFAULT_SETTINGS, ControllerSettings
from tq_node.types import Announced, NodeId


class Health(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of itself with each heartbeat.

    ``task_bytes``: of each partition of which it has a copy with tasks (finished ones and
    tombstones too), their size; one that is not named has none. ``may_lead``: False while it stops,
    its disk is slow or low, or its wall clock is off by 5 s."""

    task_bytes: dict[int, int] = {}
    may_lead: bool = True


class Evidence(msgspec.Struct, frozen=True, array_like=True):
    """A voter's report of a death (R5a). ``refused_at_ms``: the port did, monotonic there."""

    reporter: NodeId
    reporter_session: int
    about: NodeId
    about_session: int
    is_broken: bool
    """The connection, which had been authenticated in ``about_session``, broke."""
    refused_at_ms: tuple[int, ...]


def is_conclusive(evidence: Evidence, apart_ms: int) -> bool:
    """R5a: the connection broke *and* the port refused twice, some time apart; never a time-out."""
    refused = evidence.refused_at_ms
    return evidence.is_broken and len(refused) >= 2 and max(refused) - min(refused) >= apart_ms


def is_of_present_sessions(evidence: Evidence, nodes: Mapping[NodeId, NodeEntry]) -> bool:
    """Whether both nodes are still in the evidence's sessions: an earlier run proves nothing."""
    reporter, about = nodes.get(evidence.reporter), nodes.get(evidence.about)
    return (
        reporter is not None
        and about is not None
        and reporter.session == evidence.reporter_session
        and about.session == evidence.about_session
    )


def is_majority(reporters: Collection[NodeId], voters: Collection[NodeId]) -> bool:
    """Whether they are a majority of all voters, dead ones too: a minority may be cut off."""
    return 2 * len([node for node in reporters if node in voters]) > len(voters)


class Liveness:
    """When each node was last in contact, and what it reported, as known from ``now_ms`` on."""

    def __init__(self, now_ms: int, settings: ControllerSettings = DEFAULT_SETTINGS) -> None:
        self.settings = settings
        self._granted_ms = now_ms
        self._ticked_ms = now_ms
        self._contact_ms: dict[NodeId, int] = {}
        self._steady_since_ms: dict[NodeId, int] = {}
        self._applied_index: dict[NodeId, int] = {}
        self._health: dict[NodeId, Health] = {}
        self.handlers: dict[NodeId, Announced] = {}
        """What each node last said of its handlers, in its present session."""
        self._handlers_serial: dict[NodeId, int] = {}
        self._evidence: dict[NodeId, dict[NodeId, Evidence]] = {}
        self._down_since_ms: dict[NodeId, int] = {}
        self._successor_since_ms: dict[int, tuple[int, int]] = {}
        self._nodes: dict[NodeId, NodeEntry] = {}
        self._partitions: tuple[PartitionEntry, ...] = ()

    # --- events ---
    def lead(self, now_ms: int) -> None:
        """Begin to lead: nodes get a full ``session_ms`` (R5, F7), evidence counts anew (R5a)."""
        self._granted_ms = now_ms
        self._evidence.clear()
        self._steady_since_ms = dict.fromkeys(self._steady_since_ms, now_ms)

    def tick(self, now_ms: int) -> None:
        """Notice a pause of this process; called before each decision, which is due each
        ``settings.decide_ms``.

        After a pause its sockets are full of unread messages, so it cannot say who was silent. A
        short pause does not count as anybody's silence; after a long one everybody gets time anew
        (F40)."""
        passed_ms = now_ms - self._ticked_ms
        self._ticked_ms = now_ms
        if passed_ms >= self.settings.suspect_ms:
            self._granted_ms = now_ms
        elif passed_ms >= 2 * self.settings.decide_ms:
            late_ms = passed_ms - self.settings.decide_ms
            self._granted_ms = min(now_ms, self._granted_ms + late_ms)
            self._contact_ms = {
                node: min(now_ms, contact_ms + late_ms) for node, contact_ms in self._contact_ms.items()
            }

    def follow(self, cluster_map: ClusterMap, now_ms: int) -> None:
        """Take up a cluster map. A new session is a contact; reports of an earlier run go."""
        if cluster_map.nodes is not self._nodes:
            self._follow_nodes(cluster_map.nodes, now_ms)
        if cluster_map.partitions is not self._partitions:
            self._successor_since_ms = {
                partition: self._successor_since(partition, entry, now_ms)
                for partition, entry in enumerate(cluster_map.partitions)
                if entry.successor is not None
            }
        self._nodes, self._partitions = cluster_map.nodes, cluster_map.partitions

    def _follow_nodes(self, nodes: dict[NodeId, NodeEntry], now_ms: int) -> None:
        for node_id, node in nodes.items():
            known = self._nodes.get(node_id)
            if known is None or known.session != node.session:
                self._contact_ms[node_id] = self._steady_since_ms[node_id] = now_ms
                self._health.pop(node_id, None)
                self.handlers.pop(node_id, None)
                self._handlers_serial.pop(node_id, None)
                self._applied_index.pop(node_id, None)
                self._evidence.pop(node_id, None)
            if node.is_up:
                self._down_since_ms.pop(node_id, None)
            else:
                self._down_since_ms.setdefault(node_id, now_ms)

    def _successor_since(self, partition: int, entry: PartitionEntry, now_ms: int) -> tuple[int, int]:
        epoch, since_ms = self._successor_since_ms.get(partition, (entry.epoch, now_ms))
        return (epoch, since_ms) if epoch == entry.epoch else (entry.epoch, now_ms)

    def record_heartbeat(self, node: NodeId, now_ms: int, applied_index: int, health: Health) -> None:
        """Count a heartbeat of the present session (the wire drops others); it voids evidence."""
        if now_ms - self._contact_ms.get(node, now_ms) >= self.settings.suspect_ms or node not in self._steady_since_ms:
            self._steady_since_ms[node] = now_ms
        self._contact_ms[node] = now_ms
        self._applied_index[node] = applied_index
        self._health[node] = health
        self._evidence.pop(node, None)

    def record_handlers(self, node: NodeId, serial: int, announced: Announced) -> None:
        """Keep the handlers of a node's present session; ``serial`` rises, earlier is ignored."""
        if serial > self._handlers_serial.get(node, 0):
            self._handlers_serial[node] = serial
            self.handlers[node] = announced

    def lacks_handlers(self, node: NodeId, serial: int) -> bool:
        """Whether the node has changed its handlers since they were recorded."""
        return serial > self._handlers_serial.get(node, 0)

    def add_evidence(self, evidence: Evidence) -> None:
        """Record a report of a death (R5a), if it is conclusive. It may be repeated."""
        if is_conclusive(evidence, self.settings.refusals_apart_ms):
            self._evidence.setdefault(evidence.about, {})[evidence.reporter] = evidence

    def withdraw_evidence(self, reporter: NodeId, about: NodeId) -> None:
        """Drop a report: the reporter is connected to the node again."""
        self._evidence.get(about, {}).pop(reporter, None)

    # --- looking ---
    def silence_ms(self, node: NodeId, now_ms: int) -> int:
        """How long the node was silent while this node was listening as leader."""
        return now_ms - max(self._contact_ms.get(node, self._granted_ms), self._granted_ms)

    def is_silent(self, node: NodeId, now_ms: int) -> bool:
        """Whether the node was silent for a whole session time: it is taken for dead (R5)."""
        return self.silence_ms(node, now_ms) >= self.settings.session_ms

    def is_suspect(self, node: NodeId, now_ms: int) -> bool:
        return self.silence_ms(node, now_ms) >= self.settings.suspect_ms

    def is_proven_dead(
        self, node: NodeId, nodes: Mapping[NodeId, NodeEntry], voters: Collection[NodeId], me: NodeId
    ) -> bool:
        """Whether a majority of voters, the leader too, report it, in present sessions (R5a)."""
        evidence = self._evidence.get(node, {})
        reporters = [r for r, said in evidence.items() if is_of_present_sessions(said, nodes)]
        return me in reporters and is_majority(reporters, voters)

    def steady_ms(self, node: NodeId, now_ms: int) -> int:
        """How long the node has been in contact without a gap; 0 while it is suspect."""
        if self.is_suspect(node, now_ms):
            return 0
        return now_ms - self._steady_since_ms.get(node, now_ms)

    def down_ms(self, node: NodeId, now_ms: int) -> int:
        """How long the node has been down by the cluster map; 0 while it is up."""
        return now_ms - self._down_since_ms.get(node, now_ms)

    def successor_ms(self, partition: int, now_ms: int) -> int:
        """How long the primary of this epoch has known of a successor."""
        _, since_ms = self._successor_since_ms.get(partition, (0, now_ms))
        return now_ms - since_ms

    def has_reached(self, node: NodeId, log_index: int) -> bool:
        """Whether the node has applied the metadata log up to ``log_index``."""
        return self._applied_index.get(node, 0) >= log_index

    def unfit(self) -> frozenset[NodeId]:
        """The nodes that report that they may not lead."""
        return frozenset(node for node, health in self._health.items() if not health.may_lead)

    def may_lead(self, node: NodeId) -> bool:
        health = self._health.get(node)
        return health is None or health.may_lead

    def task_bytes(self, entry: PartitionEntry, partition: int) -> int | None:
        """The partition's size as its primary last reported; None: no report yet, or no primary."""
        health = self._health.get(entry.primary) if entry.primary is not None else None
        return None if health is None else health.task_bytes.get(partition, 0)

    def was_empty(self, node: NodeId, partition: int) -> bool:
        """Whether the node, in its present session, last reported no task of the partition."""
        health = self._health.get(node)
        return health is not None and health.task_bytes.get(partition, 0) == 0
