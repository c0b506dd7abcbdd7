"""A cluster of simulated data nodes behind a table, clients, and somebody who breaks it. Safety first, then healing, then
liveness."""

from __future__ import annotations

from typing import Any

from tests.simulation.core_world import CoreWorld, Ranges
from tests.simulation.families import need, replayable
from tests.simulation.replication.checkers import DataCheckers
from tests.simulation.replication.faults import Faults, focused, small_pace
from tests.simulation.replication.node import DataNode
from tests.simulation.replication.table import Table
from tests.support.world import MS_US, SECOND_US, rng
from tq_node.cluster.commands import ElectPrimary, PrimaryStep
from tq_node.cluster.settings import ControllerSettings as TablePace
from tq_node.types import NodeId, NodeName, PartitionId, State

SAFETY_US = 40 * SECOND_US
SETTLE_US = 40 * SECOND_US
PARTITIONS = 2


class ReplicationWorld(CoreWorld):
    """:param seed: of everything. :param rule_breaks: of the driver, for the mutation table."""

    RANGES = Ranges(
        cut_ms=(100, 6_000),
        slow_link_ms=(0, 900),
        pause_ms=(100, 5_000),
        slow_disk_ms=(2, 50, 300),
        stalled_disk_s=(1, 4),
    )

    def __init__(
        self,
        seed: int,
        *,
        faults: Faults | None = None,
        rule_breaks: frozenset[str] = frozenset(),
        trace_lines: int = 0,
    ) -> None:
        self.faults = faults or (focused(seed) if seed % 2 else Faults.swarm(rng(seed, "swarm")))
        super().__init__(seed, self.faults, trace_lines)
        shape = rng(seed, "shape")
        self.links = rng(seed, "links")
        self.pace = small_pace(shape, **self.faults.pace)
        self.replication_factor = 3
        self.nodes: dict[NodeId, DataNode] = {}
        self.names: dict[NodeId, NodeName] = {}
        self._budget_bytes = shape.choice((3_000, 1 << 20))
        self.checkers = DataCheckers(self.nodes, PARTITIONS, self.pace, self._budget_bytes)
        self._disk, self._timing = rng(seed, "disk"), rng(seed, "timing")
        self._breaks = rule_breaks
        self._sessions: dict[tuple[NodeId, NodeId], int] = {}
        self._last_session = 0
        self._last_task = 0
        self.table = Table(
            self.nodes,
            self.names,
            time=self.time,
            random_source=rng(seed, "table"),
            network=self.network,
            checkers=self.checkers,
            trace=self.trace,
            pace=TablePace(
                session_ms=1_500, suspect_ms=800, health_ms=3_000, replace_after_ms=5_000, successor_ms=3_000
            ),
            evidence=self.faults.evidence,
        )
        self.table.late_us = self.faults.late_us
        count = self.faults.nodes or shape.choice((3, 3, 3, 4, 5))
        for number in range(1, count + 1):
            self._add_node(NodeId(f"n{number}"), NodeName(f"n{number}"))
        first = self.nodes[NodeId("n1")]
        first.start()
        self.table.found(first, PARTITIONS, self.replication_factor)
        self.table.started(first)
        for node in list(self.nodes.values())[1:]:
            self.time.after(shape.randint(0, 500) * MS_US, self.restart, node)
        if self.faults.actions:
            self.time.after(3 * SECOND_US + self._soon(), self._break_something)
        self.time.after(50 * MS_US, self._work)

    def _add_node(self, me: NodeId, name: NodeName) -> DataNode:
        node = self.nodes[me] = DataNode(
            me,
            time=self.time,
            disk_random=self._disk,
            timing_random=self._timing,
            pace=self.pace,
            partitions=PARTITIONS,
            budget_bytes=self._budget_bytes,
            send=self._send,
            tell=self.table.told,
            checkers=self.checkers,
            rule_breaks=self._breaks,
        )
        self.names[me] = name
        return node

    # --- connections ---
    def _pair(self, a: NodeId, b: NodeId) -> tuple[NodeId, NodeId]:
        return (a, b) if a < b else (b, a)

    def connect(self, a: DataNode, b: DataNode) -> None:
        """A new connection closes the older one, and what was on its way over that is dropped."""
        pair = self._pair(a.me, b.me)
        if a.is_up and b.is_up and pair not in self._sessions:
            self._last_session += 1
            self._sessions[pair] = self._last_session
            a.event(a.connected, b.me)
            b.event(b.connected, a.me)

    def disconnect(self, a: DataNode, b: DataNode) -> None:
        if self._sessions.pop(self._pair(a.me, b.me), None) is not None:
            a.event(a.disconnected, b.me)
            b.event(b.disconnected, a.me)

    def _reconnect_all(self, node: DataNode) -> None:
        for other in self.nodes.values():
            if other is not node and other.is_up:
                self.time.after(self.links.randint(1, 200) * MS_US, self.connect, node, other)

    def _send(self, source: NodeId, target: NodeId, message: Any) -> None:
        session = self._sessions.get(self._pair(source, target))
        if session is not None:
            self.network.send(source, target, (session, source, message))

    def _deliver(self, target: str, message: Any) -> None:
        session, source, payload = message
        node = self.nodes[NodeId(target)]
        if node.is_up and self._sessions.get(self._pair(source, node.me)) == session:
            self.trace.add(f"{self.time.now_us} {source}>{target} {payload!r}")
            node.event(node.receive, source, payload)

    # --- the clients ---
    def _work(self) -> None:
        if not self._work_on:
            return
        self.time.after(int(self.workload.expovariate(1) * self.faults.work_every_us), self._work)
        kind = self.workload.random()
        partition = self.workload.randrange(PARTITIONS)
        size = self.workload.choice((3, 30, 200))
        self._last_task += kind < 0.45
        number = max(1, self._last_task - int(self.workload.expovariate(0.2)))
        # Whoever believes to lead is asked: a stale one too.
        for node in list(self.nodes.values()):
            if not node.is_up or not node.can_serve(partition):
                continue
            if kind < 0.45:
                node.event(node.submit, partition, f"t{self._last_task}", size)
            elif kind < 0.7:
                node.event(node.claim, partition, f"t{number}")
            elif kind < 0.75:
                node.event(node.release, partition, f"t{number}")
            else:
                floor = self.checkers.histories[partition].answered
                node.event(node.read, partition, floor)

    # --- the breaker ---
    def _members(self) -> list[DataNode]:
        """Those whose store is not lost."""
        return [node for node in self.nodes.values() if not node.is_wiped]

    def _break_something(self) -> None:
        if not self._faults_on:
            return
        self.time.after(self._soon(), self._break_something)
        action = self.nemesis.choice(self.faults.actions)
        node = self.nemesis.choice(self._members())
        self.trace.add(f"{self.time.now_us} {action} {node.me}")
        if action.endswith("_primary"):
            entry = self.nemesis.choice(self.table.map.partitions)
            leading = [n for n in self._members() if n.is_up and any(core.is_leading for core in n.cores.values())]
            if entry.primary is not None and self.nemesis.random() < 0.7:
                leading = [self.nodes[entry.primary]]
            if not leading:
                return
            node = self.nemesis.choice(leading)
            action = action.removesuffix("_primary")
        getattr(self, f"_do_{action}")(node)

    def _do_crash(self, node: DataNode) -> None:
        if node.is_up:
            self.crash(node)
            self.time.after(self.nemesis.randint(*self.faults.restart_us), self.restart, node)

    def crash(self, node: DataNode) -> None:
        node.crash()
        for other in self.nodes.values():
            if other is not node:
                self._sessions.pop(self._pair(node.me, other.me), None)
                if other.is_up:
                    self.time.after(self.links.randint(1, 300) * MS_US, self._notice, other, node)
        self.table.crashed(node)

    def _notice(self, node: DataNode, gone: DataNode) -> None:
        if self._pair(node.me, gone.me) not in self._sessions:
            node.event(node.disconnected, gone.me)

    def restart(self, node: DataNode) -> None:
        if not node.is_up and not node.is_wiped:
            self.trace.add(f"{self.time.now_us} restart {node.me}")
            node.start()
            self.table.started(node)
            self._reconnect_all(node)

    def _do_crash_all(self, node: DataNode) -> None:
        if self.nemesis.random() < 0.4:
            for each in self._members():
                self._do_crash(each)

    def _do_wipe(self, node: DataNode) -> None:
        """The store is lost; at most ``min_isr`` - 1 of those that hold what was acknowledged may be, at a time."""
        if not self._may_lose(node):
            return
        if node.is_up:
            self.crash(node)
        node.is_wiped = True
        name = self.names[node.me]
        fresh = self._add_node(NodeId(f"{name}w{len(self.nodes)}"), name)
        self.time.after(self.nemesis.randint(100, 3_000) * MS_US, self.restart, fresh)
        self._remove_later(node.me)

    def _may_lose(self, node: DataNode) -> bool:
        members = [entry.node_id for entry in self.table.map.members()]
        if len(members) < 3 or node.me not in members or any(self.nodes[name].is_wiped for name in members):
            return False  # the control plane needs a majority
        for partition, entry in enumerate(self.table.map.partitions):
            if node.me in entry.isr:
                if len(entry.isr) < 2 or entry.min_isr < 2:
                    return False
                history = self.checkers.histories[partition]
                others = [self.nodes[n] for n in entry.isr if n != node.me and not self.nodes[n].is_wiped]
                if not any(o.store.partition(partition).last_sequence >= history.length for o in others):
                    return False
        return True

    def _remove_later(self, node: NodeId) -> None:
        """An operator, who keeps trying until the last copies elsewhere allow it."""
        entry = self.table.map.nodes.get(node)
        if entry is not None and entry.is_member:
            if not entry.is_up:
                self.table.remove(node)
            self.time.after(700 * MS_US, self._remove_later, node)

    def _ends(self) -> list[NodeId]:
        return [node.me for node in self._members()]

    def _do_reset_link(self, node: DataNode) -> None:
        other = self.nemesis.choice(self._members())
        if other is not node:
            self.disconnect(node, other)
            self.time.after(self.links.randint(1, 500) * MS_US, self.connect, node, other)

    def _do_drain(self, node: DataNode) -> None:
        self.table.drain(node.me)
        self.time.after(self.nemesis.randint(1, 8) * SECOND_US, self.table.undrain, node.me)

    def _do_burst(self, node: DataNode) -> None:
        partition = self.nemesis.randrange(PARTITIONS)
        for number in range(self.nemesis.randint(5, 60)):
            self._last_task += 1
            for each in self.nodes.values():
                if each.is_up and each.can_serve(partition):
                    each.event(each.submit, partition, f"t{self._last_task}", 10 + number)

    def _do_elect(self, node: DataNode) -> None:
        """A choice out of the blue, as after a step-down."""
        partition = self.nemesis.randrange(PARTITIONS)
        entry = self.table.map.partitions[partition]
        step = PrimaryStep(PartitionId(partition), entry.epoch, entry.partition_version)
        self.table.propose(node.me, ElectPrimary((step,)))

    # --- phases ---
    def heal(self, *, out: NodeId | None = None, cut: tuple[NodeId, NodeId] | None = None) -> None:
        """Everything works again but ``out``, a node, or ``cut``, a directed link; clients ask for nothing new."""
        self._faults_on = self._work_on = False
        self.network.heal()
        self.table.late_us = 0
        if cut is not None:
            self.network.cut[cut] = True
        for node in list(self.nodes.values()):
            node.disk.delay_us = (200, 3_000)
            if node.me == out:
                if node.is_up:
                    self.crash(node)
                continue
            self.restart(node)
            self._reconnect_all(node)
        self._undrain_all()
        if out is not None:
            self.nodes[out].is_wiped = True
            self._remove_later(out)

    def _undrain_all(self) -> None:
        """An operator, who keeps trying."""
        draining = [node.node_id for node in self.table.map.members() if node.is_draining]
        for node in draining:
            self.table.undrain(node)
        self.time.after(500 * MS_US, self._undrain_all)

    def can_lose_a_link(self) -> bool:
        """For good: it may be as bad as the loss of either end. So the control plane keeps its majority without one, and every
        set has another member whose store is there."""
        members = [self.nodes[entry.node_id] for entry in self.table.map.members()]
        kept = [[n for n in entry.isr if not self.nodes[n].is_wiped] for entry in self.table.map.partitions]
        return len(members) > 2 and not any(node.is_wiped for node in members) and min(map(len, kept)) > 1

    def settle(self) -> None:
        """I16: within a bounded time all are active, sets whole, tasks ended."""
        self.run(SETTLE_US // 2)
        for partition in range(PARTITIONS):
            for node in self.nodes.values():
                if node.is_up and node.can_serve(partition):
                    for task, row in sorted(node.views[partition].rows.items()):
                        if row.state == State.PENDING:
                            node.event(node.claim, partition, task)
        self.run(SETTLE_US // 2)
        for partition in range(PARTITIONS):
            self._check_settled(partition)

    def primary_of(self, partition: int) -> DataNode:
        entry = self.table.map.partitions[partition]
        need(entry.primary is not None, "after healing there is a primary (I16):", partition, entry)
        assert entry.primary is not None
        node = self.nodes[entry.primary]
        need(node.is_up, "after healing the primary is up (I16):", partition)
        core = node.cores[partition]
        need(core.epoch == entry.epoch, "after healing the primary leads (I16):", partition, node.me, entry)
        need(core.is_active, "after healing the primary is active (I16):", partition, node.me, entry)
        return node

    def _check_settled(self, partition: int) -> None:
        entry = self.table.map.partitions[partition]
        node = self.primary_of(partition)
        core = node.cores[partition]
        need(core.committed == core.last_sequence, "after healing all is committed (I16):", partition, node.me)
        cut = list(self.network.cut)
        whole = [n for n in entry.copies if self.nodes[n].is_up]
        if not cut:
            need(set(entry.isr) == set(whole), "after healing the set is whole (I16):", partition, entry)
            need(not entry.is_moving, "after healing no move is under way (I16):", partition, entry)
            up = len([n for n in self.nodes.values() if n.is_up])
            need(len(entry.isr) == min(3, up), "after healing there are enough copies (I16):", partition, entry)
            for name in entry.isr:
                stored = self.nodes[name].store.partition(partition)
                need(stored.last_sequence == core.last_sequence, "after healing all logs are whole:", name, partition)
        for at, task in self.checkers.completed:
            if at == partition:
                row = node.views[partition].rows.get(task)
                need(row is not None and row.state == State.COMPLETED, "what was completed stays so (P2):", task, row)
        for at, task in self.checkers.submitted:
            if at == partition:
                row = node.views[partition].rows.get(task)
                need(row is not None, "what was accepted is there (P1):", partition, task)
                assert row is not None
                need(row.state == State.COMPLETED, "every accepted task ends (P6, I16):", partition, task, row)

    def summary(self) -> str:
        checkers = self.checkers
        committed = sum(history.length for history in checkers.histories)
        return (
            f"seed {self.seed}: {self.time.events} events, {committed} committed, {checkers.answers} answers, "
            f"{checkers.activations} activations, {checkers.cuts} cuts, {checkers.snapshots} snapshots, "
            f"{checkers.reads} reads, {checkers.attempts} attempts, {len(self.table.maps)} table entries, "
            f"trace {self.trace.hash:08x}"
        )


def simulate(
    seed: int,
    *,
    faults: Faults | None = None,
    rule_breaks: frozenset[str] = frozenset(),
    trace_lines: int = 0,
) -> ReplicationWorld:
    """One seed from beginning to end. :raises AssertionError: with the way to replay it."""
    world = ReplicationWorld(seed, faults=faults, rule_breaks=rule_breaks, trace_lines=trace_lines)
    with replayable("replication", world):
        world.run(SAFETY_US)
        ending = rng(seed, "ending")
        members = world._ends()
        kind = ending.random()
        if kind < 0.2 and len(members) > 2 and world._may_lose(world.nodes[members[0]]):
            world.heal(out=members[0])
        elif kind < 0.4 and world.can_lose_a_link():
            world.heal(cut=(ending.choice(members), ending.choice(members)))
        else:
            world.heal()
        world.settle()
    return world
