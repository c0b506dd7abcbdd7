"""Growth, deaths, restarts and drains at random; who votes is judged at each wish and at rest (replication.md section 6)."""

from __future__ import annotations

import random

from tests.unit.tq_node.cluster.laws import need
from tests.unit.tq_node.cluster.settling import Settling
from tests.unit.tq_node.cluster.tables import Table
from tq_node.cluster import commands as c
from tq_node.cluster.records import NodeEntry
from tq_node.cluster.voters import VoterChange, VoterChangeKind
from tq_node.types import NodeId

HEALTH_MS = 30_000


class Voting(Settling):
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        table = Table(self.dice.randint(1, 4), partitions=2, voters=self.dice.choice([1, 3, 3, 5]))
        self.up_since_ms: dict[NodeId, int] = {}
        self.down_since_ms: dict[NodeId, int] = {}
        self.had_three = False
        self.number = len(table.map.nodes)
        super().__init__(table)
        self.run()
        self.check()

    def go(self, steps: int) -> None:
        for _ in range(steps):
            self.dice.choice([self.join, self.join, self.stop, self.leave, self.lag])()
            self.run(quiet_ms=self.dice.choice([3_000, 100_000]))
            if self.dice.random() < 0.7:
                self.come_back()
            self.run()
            self.check()

    def others(self) -> list[NodeEntry]:
        return [node for node in self.table.map.members() if node.node_id != self.me]

    # --- what happens ---
    def join(self) -> None:
        self.number += 1
        self.table.register(self.number)

    def stop(self) -> None:
        """A minority of the voters, so that Raft goes on."""
        for node in self.dice.sample(self.others(), min(len(self.others()), self.dice.randint(1, 2))):
            dead = [n for n in self.voters if not self.table.map.nodes[n].is_up] + [node.node_id]
            if node.is_up and (node.node_id not in self.voters or 2 * len(dead) < len(self.voters)):
                self.table.do(c.NodeDown(node.node_id, node.session, "silence"))

    def come_back(self) -> None:
        for node in self.table.map.members():
            if not node.is_up:
                self.table.register(int(node.node_id, 16), node.incarnation + 1)

    def leave(self) -> None:
        targets = [node for node in self.table.map.members() if node.is_target]
        if len(targets) >= 2:
            self.table.do(c.DrainNode(self.dice.choice(targets).node_id, then_remove=self.dice.random() < 0.7))

    def lag(self) -> None:
        self.slow = {node.node_id for node in self.others() if self.dice.random() < 0.3}

    def hear(self) -> None:
        super().hear()
        for node_id, node in self.table.map.nodes.items():
            if node.is_up:
                self.up_since_ms.setdefault(node_id, self.now_ms)
                self.down_since_ms.pop(node_id, None)
            else:
                self.down_since_ms.setdefault(node_id, self.now_ms)
                self.up_since_ms.pop(node_id, None)

    # --- what must hold ---
    def grant(self, change: VoterChange) -> None:
        node = self.table.map.nodes[change.node]
        if change.kind is VoterChangeKind.PROMOTE:
            need(node.is_target, "who is promoted is up and stays")
            steady_ms = self.now_ms - self.up_since_ms[change.node]
            need(
                not self.had_three or steady_ms >= HEALTH_MS or self.would_shrink(),
                "a replacement has shown 30 s of health, unless fewer would vote without it",
                steady_ms,
            )
        if change.kind is VoterChangeKind.DEMOTE and not node.is_up and len(self.voters) % 2:
            down_ms = self.now_ms - self.down_since_ms[change.node]
            need(down_ms >= HEALTH_MS, "a voter that is down is given the time of a restart", down_ms)
        if (
            change.kind is VoterChangeKind.DEMOTE
            and len(self.voters) <= self.table.map.settings.voters_wanted
            and (node.is_up or len(self.voters) % 2 == 0)
        ):
            need(not self.able(), "nobody gives up a vote while somebody could take it", self.voters, self.able())
        super().grant(change)
        self.had_three = self.had_three or len(self.voters) >= 3

    def able(self) -> set[NodeId]:
        nodes = self.table.map.nodes
        return {n for n in self.learners if nodes[n].is_target and n not in self.slow}

    def would_shrink(self) -> bool:
        """Two or four are not kept; and who lives and leaves, with nothing left on it but its vote, is let go."""
        nodes = self.table.map.nodes
        held = {node for entry in self.table.map.partitions for node in entry.copies}
        return len(self.voters) % 2 == 0 or any(
            nodes[n].is_leaving and nodes[n].is_up and n not in held for n in self.voters
        )

    def check(self) -> None:
        nodes = self.table.map.nodes
        wanted = self.table.map.settings.voters_wanted
        need(
            len(self.voters) in (1, 3, 5) and len(self.voters) <= wanted,
            "1, 3 or 5, and no more than wanted",
            self.voters,
        )
        ready = self.able()
        bad = [n for n in self.voters if not nodes[n].is_up or nodes[n].is_draining]
        if bad:
            need(not ready, "a voter that died or leaves is replaced", bad, ready)
        able = min(wanted, len(self.voters) + len(ready))
        need(len(self.voters) >= (able if able % 2 else able - 1), "as many vote as can", self.voters, ready)
        if nodes[self.me].is_draining:
            successors = [n for n in self.voters if nodes[n].is_target and n not in self.slow]
            need(not successors, "leadership leaves a node that is drained", successors)
        held = {node for entry in self.table.map.partitions for node in entry.copies}
        for node in self.table.map.members():
            if node.is_leaving and node.is_up and node.node_id not in held and node.node_id != self.me:
                need(node.node_id not in self.voters, "an empty node that leaves gives up its vote", node.node_id)


def voters_are_sound(seed: int) -> None:
    Voting(seed).go(4)
