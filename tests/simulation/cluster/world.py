"""A cluster of whole nodes in virtual time: the classes that ``service.py`` and ``member.py`` wire, over faulty links and disks.

One seed, one world: the nodes found and join their cluster, clients and workers use it while things go wrong, then everything is
whole again, every task ends, and the copies are compared. ``replay_hint`` says how to see a seed again.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simulation.cluster import faults as cluster_faults
from tests.simulation.cluster.checkers import Checkers
from tests.simulation.cluster.clients import Clients
from tests.simulation.cluster.faults import Faults, faults_for, small_bounds
from tests.simulation.cluster.net import Net
from tests.simulation.cluster.node import SimulatedNode, composition
from tests.simulation.cluster.remote import RemoteWorker
from tests.simulation.cluster.time import NodeReactor, Timeline
from tests.simulation.families import Violation, replayable
from tests.support.world import MS_US, SECOND_US, Trace, rng
from tq_node.partition.effects import ProposeStepDown
from tq_node.types import State

BORN_US_MAX = 40 * SECOND_US
QUIET_US_MAX = 120 * SECOND_US
LOOK_US = 20 * MS_US
HEADING = "Unhandled error in Deferred:"
"""Twisted logs this line first and the failure itself in a second event."""


class ClusterWorld:
    """:param faults: None: what the seed says."""

    def __init__(self, seed: int, *, faults: Faults | None = None, trace_lines: int = 0) -> None:
        self.seed = seed
        self.trace = Trace(keep=trace_lines)
        self.failures: list[str] = []
        """What went wrong where nobody could raise it."""
        self.time = Timeline(self._stepped)
        self.net = Net(self.time, self.rng("net"))
        shape = self.rng("shape")
        self.faults = faults if faults is not None else faults_for(seed, self.rng("faults"))
        self.small = small_bounds(shape, self.faults.small)
        self.node_count = self.faults.nodes or shape.choice((3, 3, 3, 3, 4, 5))
        self.net.reset_odds = self.faults.reset_odds
        self.work_random = self.rng("work")
        self._chaos = self.rng("chaos")
        self.is_working = True
        self.is_healing = False
        self.by_reactor: dict[int, SimulatedNode] = {}
        self.checkers = Checkers(self)
        self.clients = Clients(self)
        partitions = shape.choice((4, 5, 8))
        self.nodes = [SimulatedNode(self, index, partitions, 3) for index in range(self.node_count)]
        self.remote = [RemoteWorker(self, index) for index in range(self.faults.remote)]

    def rng(self, concern: str, number: int = 0) -> random.Random:
        return rng(self.seed, f"whole {concern} {number}")

    def _stepped(self, reactor: NodeReactor) -> None:
        node = self.by_reactor[id(reactor)]
        if node.is_up and node.reactor is reactor:
            self.checkers.look_at(node)
        self._raise_failures()

    def _raise_failures(self) -> None:
        if self.failures:
            raise Violation(self.failures[0])

    def run_us(self) -> int:
        """How long an attempt takes."""
        low, high = (5_000, 50_000) if self.is_healing else self.faults.run_us
        drawn = low + int(self.work_random.random() * (high - low))
        return drawn * 10 if not self.is_healing and self.work_random.random() < 0.05 else drawn

    # --- a life ---
    def be_born(self) -> None:
        self.nodes[0].boot()
        for node in self.nodes[1:]:
            self.time.after(int(self._chaos.random() * 2 * SECOND_US), node.boot)
        self._until(self._is_whole, BORN_US_MAX, "the cluster comes together")

    def live(self, for_us: int) -> None:
        until_us = self.time.now_us + for_us
        self._work(until_us)
        self.time.after(SECOND_US, self._trouble, until_us)
        for worker in self.remote:
            worker.start()
            self.time.after(SECOND_US, worker.trouble, until_us)
        self.time.run_until(until_us)
        self._raise_failures()

    def _work(self, until_us: int) -> None:
        if self.time.now_us < until_us:
            self.clients.act()
            self.clients.look_for_unanswered()
            self._raise_failures()
            self.time.after(int(self._chaos.expovariate(1.0) * self.faults.work_every_us), self._work, until_us)

    def _trouble(self, until_us: int) -> None:
        if self.time.now_us < until_us and self.faults.actions:
            action = self._chaos.choice(self.faults.actions)
            self.trace.add(f"{self.time.now_us} fault {action}")
            getattr(self, f"_{action}")()
            self.time.after(int(self._chaos.expovariate(1.0) * self.faults.every_us), self._trouble, until_us)

    def heal(self) -> None:
        self.is_healing = True
        self.net.reset_odds = 0.0
        self.net.slow.clear()
        self.net.whole_again()
        for worker in self.remote:
            worker.heal()
        for node in self.nodes:
            node.disk.heal()
            self._go_on(node)
            if not node.is_up:
                node.boot()
        self._until(lambda: not any(node.is_stopping for node in self.nodes), QUIET_US_MAX, "nodes stop in order")
        self._until(self._is_quiet, QUIET_US_MAX, "everything is whole and every task ends (I16)")

    def settle(self) -> None:
        """What is under way arrives: rows are written, commits are told."""
        if self.remote:
            self.is_working = False
        self.time.run_until(self.time.now_us + 3 * SECOND_US + 2 * int(self.small["lease_ms"]) * MS_US)
        self._raise_failures()
        self.clients.look_for_unanswered()
        if self.clients.open:
            raise Violation(f"callers were never answered: {[call.kind for call in self.clients.open.values()]}")
        self.checkers.at_the_end()

    def _until(self, condition: Callable[[], bool], within_us: int, what: str) -> None:
        end_us = self.time.now_us + within_us
        while not condition():
            if self.time.now_us >= end_us:
                raise Violation(f"{what}: not within {within_us // SECOND_US} s; {self._state()}")
            self.time.run_until(self.time.now_us + LOOK_US)
            self._raise_failures()
            self.clients.look_for_unanswered()

    def _is_whole(self) -> bool:
        """Every node is registered, knows the same table, and every partition is active with all its copies."""
        tables = set()
        for node in self.nodes:
            if not node.is_up or node.local is None or not node.member.plane.membership.is_registered:
                return False
            tables.add(node.node.state.map.partitions)
        if len(tables) != 1:
            return False
        copies = min(3, self.node_count)
        for partition, entry in enumerate(tables.pop()):
            if entry.primary is None or len(entry.isr) != copies or len(entry.copies) != copies or entry.successor:
                return False
            primary = next(node for node in self.nodes if node.member.node_id == entry.primary)
            local = primary.local
            if local is None or local.table.leading.get(partition) != entry.epoch:
                return False
        return all(len(node.node.state.map.nodes) == self.node_count for node in self.nodes)

    def _is_quiet(self) -> bool:
        return (
            not self.clients.open
            and not any(worker.held for worker in self.remote)
            and self._is_whole()
            and all(
                node.local is not None
                and not node.local.table.open_tasks
                and not node.worker.finishing
                and not node.worker.processes
                for node in self.nodes
            )
        )

    def _state(self) -> str:
        parts = []
        for node in self.nodes:
            local = node.local
            if local is None:
                parts.append(f"{node.name}: not active (up {node.is_up})")
                continue
            stats = [f"{State(i).label} {n}" for i, n in enumerate(local.reads.stats().primary) if n and i < 3]
            parts.append(
                f"{node.name}: leads {sorted(local.table.leading)} waits {local.activation.waiting()} {stats} "
                f"finishing {node.worker.finishing} runs {len(node.worker.processes)}"
            )
        entries = self.nodes[0].node.state.map.partitions
        names = {node.member.node_id: node.name for node in self.nodes if hasattr(node, "member")}
        table = [
            (
                i,
                names[e.primary] if e.primary else "-",
                e.epoch,
                [names.get(n) for n in e.isr],
                [names.get(n) for n in e.copies],
            )
            for i, e in enumerate(entries)
        ]
        opened = [f"{call.kind} at {call.node.name}" for call in self.clients.open.values()]
        return "; ".join([*parts, f"table {table}", f"open {opened}"])

    def now(self, answer: Deferred[Any]) -> Any:
        """The result of a Deferred that has fired."""
        results: list[Any] = []
        answer.addBoth(results.append)
        if not results or isinstance(results[0], Failure):
            raise Violation(f"no answer: {results}")
        return results[0]

    def settled(self, answer: Deferred[Any]) -> Any:
        results: list[Any] = []
        answer.addBoth(results.append)
        self._until(lambda: bool(results), 10 * SECOND_US, "an answer")
        if isinstance(results[0], Failure):
            raise Violation(f"no answer: {results[0].getTraceback()}")
        return results[0]

    # --- faults ---
    def _some(self) -> SimulatedNode:
        return self._chaos.choice(self.nodes)

    def _primary(self) -> SimulatedNode:
        leading = [node for node in self.nodes if node.local is not None and node.local.table.leading]
        return self._chaos.choice(leading) if leading else self._some()

    def _down(self, node: SimulatedNode, *, power: bool = False) -> None:
        if node.is_up:
            self._go_on(node)
            node.crash(power=power)
            low, high = self.faults.restart_us
            self.time.after(low + int(self._chaos.random() ** 2 * (high - low)), self._boot, node, node.runs)

    def _boot(self, node: SimulatedNode, runs: int) -> None:
        if not node.is_up and node.runs == runs:
            node.boot()

    def _crash(self) -> None:
        self._down(self._some())

    def _power_off(self) -> None:
        self._down(self._some(), power=True)

    def _crash_primary(self) -> None:
        self._down(self._primary())

    def _crash_leader(self) -> None:
        leaders = [node for node in self.nodes if node.is_up and node.member.plane.core.is_leader]
        self._down(self._chaos.choice(leaders or self.nodes))

    def _crash_all(self) -> None:
        power = self._chaos.random() < 0.5
        for node in self.nodes:
            self._down(node, power=power)

    def _pause(self, node: SimulatedNode | None = None) -> None:
        node = node or self._some()
        if node.is_up and not node.is_paused:
            node.reactor.pause()
            self.time.after(int(self._chaos.choice((0.4, 1.5, 4.0, 9.0)) * SECOND_US), self._go_on, node, node.runs)

    def _pause_primary(self) -> None:
        self._pause(self._primary())

    def _go_on(self, node: SimulatedNode, runs: int = 0) -> None:
        if node.is_paused and runs in (0, node.runs):
            node.reactor.go_on(timers_first=self._chaos.random() < 0.5)

    def _cut(self, links: list[tuple[str, str]]) -> None:
        for link in links:
            self.net.cut[link] = True
        self.time.after(int(self._chaos.uniform(*self.faults.cut_us)), self.net.whole_again, *links)

    def _cut_one_way(self) -> None:
        one, other = self._chaos.sample(self.nodes, 2)
        self._cut([(one.host, other.host)])

    def _isolate(self, node: SimulatedNode | None = None) -> None:
        node = node or self._some()
        others = [other.host for other in self.nodes if other is not node]
        ways = self._chaos.choice(("both", "both", "in", "out"))
        out = [(node.host, other) for other in others] if ways != "in" else []
        self._cut(out + ([(other, node.host) for other in others] if ways != "out" else []))

    def _isolate_primary(self) -> None:
        self._isolate(self._primary())

    def _split(self) -> None:
        side = [node for node in self.nodes if self._chaos.random() < 0.5]
        other = [node for node in self.nodes if node not in side]
        self._cut([(a.host, b.host) for x, y in ((side, other), (other, side)) for a in x for b in y])

    def _reset_links(self) -> None:
        odds, self.net.reset_odds = self.net.reset_odds, 0.05

        def over() -> None:
            self.net.reset_odds = 0.0 if self.is_healing else odds

        self.time.after(int(self._chaos.uniform(0.2, 2.0) * SECOND_US), over)

    def _slow_link(self) -> None:
        one, other = self._chaos.sample(self.nodes, 2)
        self.net.slow[one.host, other.host] = int(self._chaos.choice((20, 200, 900)) * MS_US)
        self.time.after(int(self._chaos.uniform(0.5, 5.0) * SECOND_US), self.net.slow.pop, (one.host, other.host), None)

    def _slow_disk(self) -> None:
        disk = self._some().disk
        disk.sync_us = (5_000, self._chaos.choice((30_000, 200_000)))
        disk.read_us = (5_000, 60_000)
        self.time.after(int(self._chaos.uniform(0.5, 5.0) * SECOND_US), disk.heal)

    def _stalled_disk(self) -> None:
        disk = self._some().disk
        stall_us = int(self._chaos.uniform(0.5, 4.0) * SECOND_US)
        disk.sync_us = (stall_us, stall_us + 1)
        self.time.after(stall_us, disk.heal)

    def _burst(self) -> None:
        for _ in range(15):
            self.clients.act()

    def _restart(self) -> None:
        """SIGTERM, and a new start."""
        node = self._some()
        if node.is_up and not node.is_paused and not node.is_stopping:
            node.stop(lambda: self.time.after(int(self._chaos.random() * SECOND_US), self._boot, node, node.runs))

    def _step_down(self) -> None:
        """As a drain, or a disk that is slow, would ask for."""
        node = self._primary()
        if node.local is not None and not node.is_paused:
            led = self._chaos.sample(sorted(node.local.table.leading.items()), 1) if node.local.table.leading else []
            node.member.plane.ask_controller([ProposeStepDown(partition, epoch) for partition, epoch in led])

    def summary(self) -> str:
        checkers = self.checkers
        return (
            f"seed {self.seed}: {self.node_count} nodes, {self.time.now_us / SECOND_US:.1f} virtual s, {self.time.events} "
            f"events, {self.net.connections} connections, {len(checkers.tasks)} tasks, {checkers.starts_seen} claims, "
            f"{checkers.helped} by helpers, {checkers.remote} remote, {checkers.claimed_again} asked for again, "
            f"{checkers.answers} answers, {checkers.strong_reads} strong reads, {sum(node.runs for node in self.nodes)} runs, "
            f"trace {self.trace.hash:08x}"
        )


@implementer(ILogObserver)
class LoggedFailures:
    """Whatever a node logs as a failure is one: nothing here is expected to."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world = world

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        why = event.get("log_failure")
        if event.get("log_format") == HEADING or (why is not None and why.check(GeneratorExit)):
            return  # the latter: what waited in a run that is over is collected
        if (why is not None and level is not None and level >= LogLevel.error) or level is LogLevel.critical:
            trace = why.getTraceback() if why is not None else ""
            self._world.failures.append(f"logged: {formatEvent(event)} {trace}")


def simulate(
    seed: int, *, faults: Faults | None = None, trace_lines: int = 0, safety_us: int | None = None
) -> ClusterWorld:
    """:raises Violation: a promise was broken; its notes say how to see it again, and what happened last."""
    world = ClusterWorld(seed, faults=faults, trace_lines=trace_lines)
    observer = LoggedFailures(world)
    gc.disable()  # when an error nobody handled comes up must not depend on what else there is in memory
    globalLogPublisher.addObserver(observer)
    try:
        with replayable("cluster", world), composition(world, world.small):
            world.be_born()
            world.live(cluster_faults.SAFETY_US if safety_us is None else safety_us)
            world.heal()
            world.settle()
            gc.collect()  # an error that nobody handled is logged when its Deferred goes
            world._raise_failures()
    finally:
        globalLogPublisher.removeObserver(observer)
        for node in world.nodes:
            node.graveyard.clear()
        gc.enable()
    return world
