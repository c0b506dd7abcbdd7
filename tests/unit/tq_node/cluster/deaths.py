"""Heartbeats, reports and lies at random; who may be declared dead is read a second time from R5 and R5a."""

from __future__ import annotations

import random

from tests.unit.tq_node.cluster.laws import need
from tests.unit.tq_node.cluster.tables import Table, nid
from tq_node.cluster import commands as c
from tq_node.cluster.controller import decide
from tq_node.cluster.liveness import Evidence, Health, Liveness
from tq_node.cluster.voters import RaftView
from tq_node.types import NodeId


class DeathWorld:
    """Node 1 leads. ``events`` is all that ever came, newest last."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.table = Table(rng.randint(2, 6), voters=rng.choice([1, 3, 5]))
        self.voters = [nid(number) for number in range(1, len(self.table.map.nodes) + 1)][
            : self.table.map.settings.voters_wanted
        ]
        self.liveness = Liveness(0)
        self.now_ms = 0
        self.leader_since_ms = self.ticked_ms = 0
        self.heard_ms: dict[NodeId, int] = {}
        self.reports: list[Evidence] = []
        self.buried = 0
        self.follow()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.rng.choice([self.hear, *[self.report] * 3, *[self.pass_time] * 3, self.change])()
            self.look()

    def follow(self) -> None:
        for node in self.table.map.nodes.values():
            known = self.liveness._nodes.get(node.node_id)
            if known is None or known.session != node.session:
                self.heard_ms[node.node_id] = self.now_ms
        self.liveness.follow(self.table.map, self.now_ms)

    def anybody(self) -> NodeId:
        return self.rng.choice(list(self.table.map.nodes))

    # --- what happens ---
    def pass_time(self) -> None:
        self.now_ms += self.rng.choice([100, 100, 100, 150, 199, 200, 500, 900, 1_100, 2_000])

    def hear(self) -> None:
        node = self.anybody()
        self.liveness.record_heartbeat(node, self.now_ms, 0, Health())
        self.heard_ms[node] = self.now_ms
        self.reports = [report for report in self.reports if report.about != node]

    def report(self) -> None:
        about = self.rng.choice(list(self.table.map.nodes)[1:])
        for reporter in self.rng.sample(list(self.table.map.nodes), self.rng.randint(1, len(self.table.map.nodes))):
            if self.rng.random() < 0.1:
                self.liveness.withdraw_evidence(reporter, about)
                self.reports = [r for r in self.reports if (r.reporter, r.about) != (reporter, about)]
                continue
            nodes = self.table.map.nodes
            refused = self.rng.choice([(0, 50), (7, 70), (0, 50, 60), (5, 60), (0, 49), (3,), ()])
            evidence = Evidence(
                reporter,
                nodes[reporter].session - (self.rng.random() < 0.15),
                about,
                nodes[about].session - (self.rng.random() < 0.15),
                self.rng.random() < 0.9,
                refused,
            )
            self.liveness.add_evidence(evidence)
            if evidence.is_broken and len(refused) > 1 and refused[-1] - refused[0] >= 50:
                self.reports = [r for r in self.reports if (r.reporter, r.about) != (reporter, about)]
                self.reports.append(evidence)

    def change(self) -> None:
        draw = self.rng.random()
        if draw < 0.2:
            self.liveness.lead(self.now_ms)
            self.leader_since_ms, self.reports = self.now_ms, []
        elif draw < 0.6:
            node = self.table.map.nodes[self.anybody()]
            self.table.register(int(node.node_id, 16), node.incarnation + 1)

    # --- who is dead, read again ---
    def is_dead(self, node: NodeId) -> str | None:
        present = {n.node_id: n.session for n in self.table.map.nodes.values()}
        witnesses = {
            r.reporter
            for r in self.reports
            if r.about == node and r.about_session == present[node] and r.reporter_session == present[r.reporter]
        }
        if nid(1) in witnesses and len(witnesses & set(self.voters)) > len(self.voters) / 2:
            return "evidence"
        since_ms = max(self.heard_ms[node], self.leader_since_ms)
        return "silence" if self.now_ms - since_ms >= 2_000 else None

    def look(self) -> None:
        self.follow()
        self.liveness.tick(self.now_ms)
        passed_ms = self.now_ms - self.ticked_ms
        if passed_ms >= 1_000:
            self.leader_since_ms = self.now_ms  # F40: this process slept
        elif passed_ms >= 200:  # it was held up: what came meanwhile is not read yet
            for node in self.heard_ms:
                self.heard_ms[node] = min(self.now_ms, self.heard_ms[node] + passed_ms - 100)
            self.leader_since_ms = min(self.now_ms, self.leader_since_ms + passed_ms - 100)
        self.ticked_ms = self.now_ms
        view = RaftView(nid(1), tuple(self.voters))
        decision = decide(self.table.map, self.liveness, view, self.now_ms)
        found = {
            (command.node_id, command.session): command.reason
            for command in decision.commands
            if isinstance(command, c.NodeDown)
        }
        expected = {
            (node.node_id, node.session): cause
            for node in self.table.map.nodes.values()
            if node.is_up and node.node_id != nid(1) and (cause := self.is_dead(node.node_id)) is not None
        }
        need(found == expected, "R5, R5a: who is dead", found, expected)
        for command in decision.commands:
            if isinstance(command, c.NodeDown):
                self.table.do(command)
                self.buried += 1
        self.follow()
