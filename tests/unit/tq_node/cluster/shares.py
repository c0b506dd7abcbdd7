"""Growth, loss, drain and return at random: shares, fewest moves, patience with the dead, min_isr."""

from __future__ import annotations

import random
from collections import Counter

from tests.unit.tq_node.cluster.laws import need
from tests.unit.tq_node.cluster.settling import Settling
from tests.unit.tq_node.cluster.tables import Table
from tq_node.cluster import commands as c
from tq_node.limits import MIB
from tq_node.types import NodeId


class Shares:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.table = Table(rng.randint(1, 4), partitions=rng.choice([8, 12, 16]), factor=rng.choice([1, 2, 3, 3]))
        sizes = {p: 3 * MIB for p in range(len(self.table.map.partitions)) if rng.random() < 0.5}
        self.settling = Settling(self.table, task_bytes=sizes)
        self.settling.is_stubborn = rng.random() < 0.3
        self.number = len(self.table.map.nodes)
        self.settling.run()
        self.check()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            before = self.copies()
            self.rng.choice([self.join, self.join, self.leave, self.restart, self.die])()
            self.settling.run()
            self.check()
            self.check_moves(before)

    def copies(self) -> list[set[NodeId]]:
        return [set(entry.copies) for entry in self.table.map.partitions]

    # --- what happens ---
    def others(self) -> list[NodeId]:
        return [n.node_id for n in self.table.map.members() if n.is_target and n.node_id != self.settling.me]

    def join(self) -> None:
        self.number += 1
        self.table.register(self.number)

    def leave(self) -> None:
        if len(self.others()) >= 3:
            self.table.do(c.DrainNode(self.rng.choice(self.others()), then_remove=True))

    def restart(self) -> None:
        """Down for less than a minute: no copy is made anywhere else."""
        if len(self.others()) < 2:
            return
        node = self.rng.choice(self.others())
        before = self.copies()
        self.table.down(int(node, 16))
        stubborn, self.settling.is_stubborn = self.settling.is_stubborn, False
        self.settling.run(quiet_ms=30_000)
        self.settling.is_stubborn = stubborn
        need(self.copies() == before, "a node that is down is expected back for a minute")
        self.table.register(int(node, 16), self.table.map.nodes[node].incarnation + 1)

    def die(self) -> None:
        """For good: after a minute its copies are made elsewhere, if there is anywhere, and an operator removes it."""
        factor = self.table.map.settings.replication_factor
        if len(self.others()) < max(2, factor) or factor == 1:
            return
        node = self.rng.choice(self.others())
        self.table.down(int(node, 16))
        self.settling.run()
        need(not any(node in entry.copies for entry in self.table.map.partitions), "the dead are replaced", node)
        self.table.do(c.RemoveNode(node, self.table.session(int(node, 16))))

    # --- what must hold ---
    def check(self) -> None:
        self.settling.check_rest()
        self.settling.check_bounds()
        need(
            max(self.settling.peak_big.values(), default=0) <= 2,
            "at most two big moves per node",
            self.settling.peak_big,
        )
        members = len(self.table.map.members())
        factor = self.table.map.settings.replication_factor
        wanted = 1 if members < 3 else factor // 2 + 1
        for p, entry in enumerate(self.table.map.partitions):
            need(entry.min_isr >= min(wanted, len(entry.isr)) or len(entry.isr) < wanted, "min_isr is raised", p, entry)

    def check_moves(self, before: list[set[NodeId]]) -> None:
        """Copies made against the fewest that reach the bounds; what one step did in two (die, then removed) counts as one."""
        live = [node.node_id for node in self.table.map.members() if node.is_target]
        wanted = min(self.table.map.settings.replication_factor, len(live))
        cap = -(-len(before) * wanted // len(live))
        load = Counter(node for nodes in before for node in nodes)
        fewest = len(before) * wanted - sum(min(load[node], cap) for node in live)
        made = sum(len(after - old) for old, after in zip(before, self.copies(), strict=True))
        need(made <= max(1.1 * fewest, fewest + 1 if fewest else 0), "fewest moves", made, fewest)


def shares_are_kept(seed: int) -> None:
    Shares(seed).run(3)
