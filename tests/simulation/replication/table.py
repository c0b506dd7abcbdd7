"""The control plane in small: a table log that is reliable and in order, behind a controller that crashes, moves and may
be cut off.

The table's own rules (``cluster.map.apply``) and the controller's (``cluster.controller.decide``) are the real ones; Raft
is not here.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulation.replication.checkers import DataCheckers
from tests.simulation.replication.node import DataNode
from tests.support.world import MS_US, Network, Trace, VirtualTime
from tq_node.cluster.commands import (
    AlterIsr,
    AnyCommand,
    DrainNode,
    ElectPrimary,
    FoundCluster,
    IsrStep,
    Led,
    NodeDown,
    PrimaryStep,
    RegisterNode,
    Registration,
    RemoveNode,
    StepDown,
    UndrainNode,
)
from tq_node.cluster.controller import decide
from tq_node.cluster.liveness import Health, Liveness
from tq_node.cluster.map import apply
from tq_node.cluster.map_edit import Applied
from tq_node.cluster.records import EMPTY, FEATURE_LEVEL_MAX, ClusterMap, ClusterSettings
from tq_node.cluster.settings import ControllerSettings as TablePace
from tq_node.cluster.voters import RaftView
from tq_node.partition.effects import AskEpoch, ProposeIsr, ProposeStepDown, Step
from tq_node.types import Epoch, NodeId, NodeName, PartitionId

CONTROLLER_US = 100_000
HEARTBEAT_US = 400_000
CLUSTER_ID = "sim"


def registration(node: DataNode, name: NodeName) -> Registration:
    nonce = f"{node.me}.{node.incarnation}"
    return Registration(node.me, name, "", "", node.incarnation, nonce, FEATURE_LEVEL_MAX, FEATURE_LEVEL_MAX)


def commands_of(node: DataNode, steps: list[Step]) -> list[AnyCommand]:
    """The driver's conversion of what the cores ask for, batched over partitions."""
    isr = tuple(
        IsrStep(PartitionId(s.partition), Epoch(s.epoch), s.partition_version, s.isr)
        for s in steps
        if isinstance(s, ProposeIsr)
    )
    led = tuple(Led(PartitionId(s.partition), Epoch(s.epoch)) for s in steps if isinstance(s, ProposeStepDown))
    asks = tuple(
        PrimaryStep(PartitionId(s.partition), Epoch(s.epoch), s.partition_version)
        for s in steps
        if isinstance(s, AskEpoch)
    )
    commands: list[AnyCommand] = []
    if isr:
        commands.append(AlterIsr(node.me, node.session, isr))
    if led:
        commands.append(StepDown(node.me, node.session, led))
    if asks:
        commands.append(ElectPrimary(asks))
    return commands


class Table:
    """:param nodes: by id; a wiped store has a new one. ``names``: the name of each."""

    def __init__(
        self,
        nodes: dict[NodeId, DataNode],
        names: dict[NodeId, NodeName],
        *,
        time: VirtualTime,
        random_source: random.Random,
        network: Network,
        checkers: DataCheckers,
        trace: Trace,
        pace: TablePace,
        evidence: bool,
    ) -> None:
        self.maps: list[ClusterMap] = [EMPTY]
        """The table after each entry, by index."""
        self.liveness = Liveness(0, pace)
        self.leader: NodeId | None = None
        self.late_us = 0
        """Extra delay of proposals: a dead primary's late word (F25)."""
        self.refused = 0
        self.on_changed: Callable[[], None] = lambda: None
        self._nodes = nodes
        self._names = names
        self._time = time
        self._random = random_source
        self._network = network
        self._checkers = checkers
        self._trace = trace
        self._pace = pace
        self._evidence = evidence
        self._pending: list[AnyCommand] = []
        self._leaderless_until_us = 0
        time.after(CONTROLLER_US, self._control)
        time.after(HEARTBEAT_US, self._heartbeats)

    @property
    def map(self) -> ClusterMap:
        return self.maps[-1]

    # --- the log ---
    def commit(self, command: AnyCommand) -> None:
        """The entry is committed, and so applied. Nodes learn of it one by one, in order, late."""
        index = len(self.maps)
        before = self.map
        applied: Applied = apply(before, index, command)
        self.refused += len(applied.refused)
        self.maps.append(applied.map)
        self._trace.add(f"{self._time.now_us} table {index} {command!r} {applied.refused!r}")
        if applied.map is not before:
            self._checkers.table_changed(before, applied.map)
        if command in self._pending:
            self._pending.remove(command)
        for node in self._nodes.values():
            self._learn_later(node)
        self.on_changed()

    def _learn_later(self, node: DataNode) -> None:
        slow = self._random.random()
        delay_us = int(slow * 20 * MS_US) if slow < 0.9 else int(self._random.random() * 800 * MS_US)
        self._time.after(delay_us, self._learn, node, node.incarnation)

    def _learn(self, node: DataNode, incarnation: int) -> None:
        if node.is_up and node.incarnation == incarnation and node.table_index < len(self.maps) - 1:
            if self.is_cut_off(node.me):
                self._time.after(200 * MS_US, self._learn, node, incarnation)
                return
            node.event(self._next, node)

    def _next(self, node: DataNode) -> None:
        if node.table_index < len(self.maps) - 1:
            node.learn(node.table_index + 1, self.maps[node.table_index + 1])

    def started(self, node: DataNode) -> None:
        """It reads the log from its beginning (in truth from its snapshot), and registers."""
        for _ in range(len(self.maps) - 1):
            self._learn_later(node)
        self._register(node, node.incarnation)

    def _register(self, node: DataNode, incarnation: int) -> None:
        """At its start, and whenever it finds itself declared dead."""
        if not node.is_up or node.incarnation != incarnation:
            return
        self._time.after(500 * MS_US, self._register, node, incarnation)
        known = node.map.nodes.get(node.me)
        if known is not None and known.is_up and known.incarnation == node.incarnation:
            return
        if self._time.now_us >= node.paused_until_us:
            self.propose(node.me, RegisterNode(CLUSTER_ID, registration(node, self._names[node.me])))

    def found(self, node: DataNode, partitions: int, replication_factor: int) -> None:
        settings = ClusterSettings(partitions, replication_factor, 1, 3)
        self.commit(FoundCluster(CLUSTER_ID, "sim", settings, registration(node, self._names[node.me])))

    # --- who leads ---
    def is_cut_off(self, node: NodeId) -> bool:
        """From a majority of the members."""
        members = [entry.node_id for entry in self.map.members()]
        reached = [
            other
            for other in members
            if other == node
            or (
                self._nodes[other].is_up
                and (node, other) not in self._network.cut
                and (other, node) not in self._network.cut
            )
        ]
        return 2 * len(reached) <= len(members)

    def _may_control(self, node_id: NodeId) -> bool:
        node = self._nodes[node_id]
        return node.is_up and self._time.now_us >= node.paused_until_us and not self.is_cut_off(node_id)

    def _control(self) -> None:
        self._time.after(CONTROLLER_US, self._control)
        now_ms = self._time.now_us // MS_US
        members = sorted(entry.node_id for entry in self.map.members())
        if self.leader is None or self.leader not in members or not self._may_control(self.leader):
            self.leader = None
            able = [node for node in members if self._may_control(node)]
            if self._leaderless_until_us == 0:
                self._leaderless_until_us = self._time.now_us + self._random.randint(100, 1_500) * MS_US
                self._pending.clear()  # what was not yet committed is lost with its leader
            if not able or self._time.now_us < self._leaderless_until_us:
                return
            self.leader = able[self._random.randrange(len(able))]
            self._leaderless_until_us = 0
            self.liveness.lead(now_ms)
        self.liveness.tick(now_ms)
        self.liveness.follow(self.map, now_ms)
        voters = tuple(members[:3])
        view = RaftView(self.leader, voters, tuple(members[3:]), tuple(members))
        for command in decide(self.map, self.liveness, view, now_ms, pending=self._pending).commands:
            self._pending.append(command)
            self._commit_soon(command)

    def _commit_soon(self, command: AnyCommand) -> None:
        self._time.after(self._random.randint(1, 30) * MS_US, self._commit_if_led, self.leader, command)

    def _commit_if_led(self, leader: NodeId | None, command: AnyCommand) -> None:
        if leader is not None and self.leader == leader and self._may_control(leader):
            self.commit(command)
        elif command in self._pending:
            self._pending.remove(command)

    # --- what nodes say to it ---
    def propose(self, sender: NodeId, command: AnyCommand) -> None:
        """May be lost, or be late; it is judged when it is applied."""
        delay_us = self._random.randint(1, 30) * MS_US
        if self.late_us and self._random.random() < 0.3:
            delay_us += int(self._random.random() * self.late_us)
        self._time.after(delay_us, self._arrive, sender, command)

    def _arrive(self, sender: NodeId, command: AnyCommand) -> None:
        leader = self.leader
        if leader is None or ((sender, leader) in self._network.cut and sender != leader):
            return
        self._commit_if_led(leader, command)

    def told(self, node: DataNode, steps: list[Step]) -> None:
        if node.session:
            for command in commands_of(node, steps):
                self.propose(node.me, command)

    def _heartbeats(self) -> None:
        self._time.after(HEARTBEAT_US, self._heartbeats)
        leader = self.leader
        if leader is None:
            return
        now_ms = self._time.now_us // MS_US
        for node_id in sorted(self._nodes):
            node = self._nodes[node_id]
            if not node.is_up or self._time.now_us < node.paused_until_us or not node.session:
                continue
            if node_id == leader or (node_id, leader) not in self._network.cut:
                entry = self.map.nodes.get(node_id)
                if entry is not None and entry.is_up and entry.session == node.session:
                    sizes = {p: len(core.log.epochs) for p, core in node.cores.items() if core.committed}
                    self.liveness.record_heartbeat(node_id, now_ms, node.table_index, Health(sizes))

    def crashed(self, node: DataNode) -> None:
        """R5a, if peers notice: the entry names the session, so it can't kill the next run."""
        entry = self.map.nodes.get(node.me)
        if self._evidence and entry is not None and entry.is_up:
            down = NodeDown(node.me, entry.session, "evidence")
            self._time.after(self._random.randint(60, 200) * MS_US, self._arrive, node.me, down)

    # --- operators ---
    def drain(self, node: NodeId) -> None:
        self._commit_soon(DrainNode(node))

    def undrain(self, node: NodeId) -> None:
        self._commit_soon(UndrainNode(node))

    def remove(self, node: NodeId) -> None:
        entry = self.map.nodes.get(node)
        if entry is not None and entry.is_member:
            self._commit_soon(RemoveNode(node, entry.session))
