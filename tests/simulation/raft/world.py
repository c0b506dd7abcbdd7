"""A cluster of simulated nodes, somebody who uses it, and somebody who breaks it. Safety first, then healing, then liveness."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from tests.simulation.core_world import CoreWorld, Ranges
from tests.simulation.families import need, replayable
from tests.simulation.raft.checkers import Checkers
from tests.simulation.raft.faults import PAIR, Faults, focused, small_settings
from tests.simulation.raft.node import Durable, RaftNode
from tests.support.world import MS_US, SECOND_US, rng
from tq_node.errors import TaskQueueError
from tq_node.raft.core import founding
from tq_node.raft.messages import Change, ChangeKind, HardState, Message, Snapshot
from tq_node.types import NodeId

SETTLE_US = 15 * SECOND_US
SPARES = 2
SAFETY_US = 120 * SECOND_US


class RaftWorld(CoreWorld):
    """:param seed: of everything. :param rule_breaks: of the driver, for the mutation table."""

    RANGES = Ranges(
        cut_ms=(100, 8_000),
        slow_link_ms=(0, 400),
        pause_ms=(100, 4_000),
        slow_disk_ms=(2, 50, 500),
        stalled_disk_s=(2, 5),
    )

    def __init__(
        self,
        seed: int,
        *,
        voters: int | None = None,
        faults: Faults | None = None,
        rule_breaks: frozenset[str] = frozenset(),
        trace_lines: int = 0,
    ) -> None:
        self.faults = faults or (focused(seed) if seed % 2 else Faults.swarm(rng(seed, "swarm")))
        super().__init__(seed, self.faults, trace_lines)
        self.shape = rng(seed, "shape")
        settings = small_settings(self.shape, **self.faults.settings)
        count = voters or (2 if self.faults is PAIR else self.shape.choice((1, 2, 3, 3, 3, 4, 5)))
        self.names = [NodeId(f"n{number}") for number in range(1, count + SPARES + 1)]
        self.nodes: dict[NodeId, RaftNode] = {}
        self.checkers = Checkers(self.nodes, settings)
        self.gone: list[NodeId] = []
        """Removed members: their ids never come back."""
        self.acknowledged = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._acks: dict[tuple[int, int], bool] = {}
        compact = self.shape.choice((5, 20, 60)), self.shape.choice((0, 3, 15))
        compact_every, keep_behind = self.faults.compact or compact
        hard_state, snapshot = founding(self.names[:count], self._encode((1, 0, b"")))
        timing, disk = rng(seed, "timing"), rng(seed, "disk")
        for position, name in enumerate(self.names):
            founded = position < count
            self.nodes[name] = RaftNode(
                name,
                Durable(hard_state if founded else HardState(), snapshot if founded else Snapshot()),
                time=self.time,
                disk_random=disk,
                timing_random=timing,
                settings=settings,
                send=self._send,
                checkers=self.checkers,
                compact_every=compact_every,
                keep_behind=keep_behind,
                rule_breaks=rule_breaks,
            )
        for node in self.nodes.values():
            node.start()
        if self.faults.actions:
            self.time.after(self._soon(), self._break_something)
        if self.faults.eager_changes:
            self.checkers.on_elected = self._change_soon
        self.time.after(50 * MS_US, self._work)

    def _ends(self) -> Sequence[NodeId]:
        return self.names

    # --- messages ---
    def _send(self, message: Message) -> None:
        self.network.send(message.source, message.target, message)

    def _deliver(self, target: str, message: Message) -> None:
        node = self.nodes[NodeId(target)]
        if node.is_up:
            self.trace.add(f"{self.time.now_us} {message!r}")
            node.receive(message)

    # --- the user ---
    def leaders(self) -> list[RaftNode]:
        return [node for node in self.nodes.values() if node.is_up and node.core.is_leader]

    def _work(self) -> None:
        if not self._work_on:
            return
        self.time.after(int(self.workload.expovariate(1) * self.faults.work_every_us), self._work)
        name = self.workload.choice(self.names)
        node = self.nodes[name]
        if self.workload.random() < self.faults.read_share:
            node.event(self._read, node)
        else:
            size = self.workload.choice((0, 10, 300))
            for leader in self.leaders():
                leader.event(self._propose, leader, size)

    def _propose(self, node: RaftNode, size: int) -> None:
        data = b"%d." % self.time.events + b"x" * size
        try:
            node.core.propose(data)
        except TaskQueueError as refused:
            self.trace.add(f"{self.time.now_us} {node.me} refused {refused.code}")

    def _read(self, node: RaftNode) -> None:
        try:
            node.read(self.checkers.commit_index)
        except TaskQueueError as refused:
            self.trace.add(f"{self.time.now_us} {node.me} read refused {refused.code}")

    # --- the breaker ---
    def _break_something(self) -> None:
        if not self._faults_on:
            return
        self.time.after(self._soon(), self._break_something)
        action = self.nemesis.choice(self.faults.actions)
        node = self.nodes[self.nemesis.choice(self.names)]
        self.trace.add(f"{self.time.now_us} {action} {node.me}")
        getattr(self, f"_do_{action}")(node)

    def _do_crash(self, node: RaftNode) -> None:
        if node.is_up:
            node.crash()
            self.checkers.crashed(node)
            self._crashed(node)

    def _crashed(self, node: RaftNode) -> None:
        self.time.after(self.nemesis.randint(*self.faults.restart_us), self.restart, node)
        if self.faults.evidence:
            for other in self.nodes.values():
                if other is not node:
                    self.time.after(self.nemesis.randint(50, 150) * MS_US, self._tell_death, other, node)

    def _tell_death(self, node: RaftNode, dead: RaftNode) -> None:
        if not dead.is_up and (dead.me, node.me) not in self.network.cut:
            node.event(node.core.leader_died, dead.me, node.now_ms)

    def restart(self, node: RaftNode) -> None:
        if not node.is_up:
            self.trace.add(f"{self.time.now_us} restart {node.me}")
            node.start()

    def _do_crash_in_mid_step(self, node: RaftNode) -> None:
        leaders = self.leaders()
        if leaders and self.nemesis.random() < 0.5:
            node = leaders[0]
        if node.is_up:
            node.crash_countdown = self.nemesis.randint(1, 12)
            self.time.after(self.faults.restart_us[1], self.restart, node)

    def _do_crash_leader(self, node: RaftNode) -> None:
        for leader in self.leaders():
            self._do_crash(leader)

    def _do_all_campaign(self, node: RaftNode) -> None:
        """Several at once, so that they meet in one term."""
        for each in self.nodes.values():
            if self.nemesis.random() < 0.7:
                each.event(self._campaign, each)

    def _campaign(self, node: RaftNode) -> None:
        core = node.core
        if core.me in core.configuration.voters and not core.is_leader:
            core._election.campaign_for_real()

    def _do_crash_all(self, node: RaftNode) -> None:
        if self.nemesis.random() < 0.3:
            for each in self.nodes.values():
                self._do_crash(each)

    def _do_false_evidence(self, node: RaftNode) -> None:
        """Safety never rests on evidence, so it may be wrong."""
        if node.core.leader is not None:
            node.event(node.core.leader_died, node.core.leader, node.now_ms)

    def _do_transfer(self, node: RaftNode) -> None:
        for leader in self.leaders():
            leader.event(self._try, leader, lambda leader=leader: leader.core.transfer_leadership(node.me))

    def _do_burst(self, node: RaftNode) -> None:
        for leader in self.leaders():
            for _ in range(self.nemesis.randint(1, 30)):
                leader.event(self._propose, leader, 40)

    def _do_change_membership(self, node: RaftNode) -> None:
        for leader in self.leaders():
            leader.event(self._try, leader, lambda leader=leader: self._change(leader, node.me))

    def _change_soon(self, leader: RaftNode) -> None:
        if self._faults_on:
            name = self.nemesis.choice(self.names)
            delay_us = self.nemesis.randint(0, 2 * MS_US)
            self.time.after(delay_us, leader.event, self._try, leader, lambda: self._change(leader, name))

    def _change(self, leader: RaftNode, name: NodeId) -> None:
        configuration = leader.core.configuration
        if name in configuration.voters:
            kind = self.nemesis.choice((ChangeKind.DEMOTE, ChangeKind.DEMOTE, ChangeKind.REMOVE))
        elif name in configuration.learners:
            kind = self.nemesis.choice((ChangeKind.PROMOTE, ChangeKind.PROMOTE, ChangeKind.PROMOTE, ChangeKind.REMOVE))
        else:
            kind = ChangeKind.ADD_LEARNER
        if kind is ChangeKind.REMOVE and len(configuration.members) <= 2:
            return
        if name in self.gone and kind is not ChangeKind.REMOVE:
            return
        leader.core.propose_change(Change(kind, name))
        if kind is ChangeKind.REMOVE:
            self.gone.append(name)

    def _try(self, node: RaftNode, call: Callable[[], object]) -> None:
        try:
            call()
        except TaskQueueError as refused:
            self.trace.add(f"{self.time.now_us} {node.me} refused {refused}")

    # --- phases ---
    def heal(self) -> None:
        """Everything works again; nobody asks for anything."""
        self._faults_on = self._work_on = False
        self.network.heal()
        for node in self.nodes.values():
            node.disk.delay_us = (200, 3_000)
            node.crash_countdown = 0
            self.restart(node)

    def settle(self) -> RaftNode:
        """Liveness: within a bounded time there is one leader, and everybody has what it has. Returns it."""
        self.run(SETTLE_US)
        leader = self.the_leader()
        log = leader.core.log
        need(log.commit_index == log.last_index, "the leader commits everything, its own no-op too")
        need(log.configuration_index <= log.commit_index, "no change of membership is left open")
        self._check_members(leader)
        return leader

    def the_leader(self) -> RaftNode:
        leaders = self.leaders()
        need(leaders, "after healing there is a leader")
        leader = max(leaders, key=lambda node: node.core.term)
        need(len(leaders) == 1, "after healing there is one leader")
        return leader

    def _check_members(self, leader: RaftNode) -> None:
        for name in leader.core.configuration.members:
            node = self.nodes[name]
            need(node.core.leader == leader.me, "after healing members follow the leader:", name)
            need(node.machine.index == leader.core.commit_index, "after healing members have applied all:", name)

    def check_works(self) -> None:
        """A read, a proposal, and a transfer, all after healing."""
        leader = self.the_leader()
        members = leader.core.configuration.members
        for name in members:
            node = self.nodes[name]
            before = node.served_reads
            node.event(self._read, node)
            self.run(SECOND_US // 5)
            need(node.served_reads == before + 1, "after healing reads are served at:", name)
        index = leader.core.commit_index
        leader.event(self._propose, leader, 10)
        self.run(SECOND_US)
        need(leader.core.commit_index == index + 1, "after healing a proposal commits")
        self._check_members(leader)
        others = [name for name in leader.core.configuration.voters if name != leader.me]
        if others:
            target = self.nemesis.choice(others)
            leader.event(leader.core.transfer_leadership, target)
            self.run(2 * SECOND_US)
            need(self.the_leader().me == target, "after healing leadership is transferred")

    def check_change_works(self) -> None:
        """A node that never was a member joins, catches up, and votes."""
        leader = self.the_leader()
        fresh = [name for name in self.names if name not in leader.core.configuration.members and name not in self.gone]
        if fresh:
            leader.event(leader.core.propose_change, Change(ChangeKind.ADD_LEARNER, fresh[0]))
            self.run(2 * SECOND_US)
            leader.event(leader.core.propose_change, Change(ChangeKind.PROMOTE, fresh[0]))
            self.run(SECOND_US)
            need(fresh[0] in leader.core.configuration.voters, "after healing a new node gets a vote")
            self._check_members(leader)

    def check_failover(self) -> None:
        """The leader dies for good. With evidence (R5a) another leads within 1.5 s, by silence alone within 6 s."""
        leader = self.the_leader()
        configuration = leader.core.configuration
        if len(configuration.voters) < 3:
            return
        leader.crash()
        self.checkers.crashed(leader)
        if self.faults.evidence:
            for other in self.nodes.values():
                if other is not leader:
                    self.time.after(self.nemesis.randint(50, 150) * MS_US, self._tell_death, other, leader)
        self.run(SECOND_US * 3 // 2 if self.faults.evidence else 6 * SECOND_US)
        successor = self.the_leader()
        self.run(SECOND_US)
        index = successor.core.commit_index
        successor.event(self._propose, successor, 10)
        self.run(SECOND_US)
        need(successor.core.commit_index == index + 1, "with one voter out for good a proposal commits")
        for name in configuration.members:
            node = self.nodes[name]
            need(not node.is_up or node.machine.index == index + 1, "with one out the others have applied all:", name)

    def summary(self) -> str:
        checkers = self.checkers
        return (
            f"seed {self.seed}: {self.time.events} events, {checkers.commit_index} committed, "
            f"{checkers.elections} leaders, term {checkers.term_max}, {checkers.snapshots_installed} snapshots installed, "
            f"{checkers.configuration_changes} configurations seen, {checkers.reads_served} reads, "
            f"trace {self.trace.hash:08x}"
        )


def simulate(
    seed: int,
    *,
    voters: int | None = None,
    faults: Faults | None = None,
    rule_breaks: frozenset[str] = frozenset(),
    trace_lines: int = 0,
) -> RaftWorld:
    """One seed from beginning to end. :raises AssertionError: with the way to replay it."""
    world = RaftWorld(seed, voters=voters, faults=faults, rule_breaks=rule_breaks, trace_lines=trace_lines)
    with replayable("raft", world):
        world.run(SAFETY_US)
        world.heal()
        world.settle()
        world.check_works()
        world.check_change_works()
        world.check_failover()
    return world
