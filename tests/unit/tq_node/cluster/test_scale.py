"""A hundred nodes and 1,024 partitions of three copies against three and 64: it settles, and what an entry and a tick cost.

The data plane answers at once, and as its driver does: one ``AlterIsr`` and one ``StepDown`` of each primary's node a round.
"""

from __future__ import annotations

import time
from collections import defaultdict

import pytest

from tests.unit.tq_node.cluster.settling import Settling
from tests.unit.tq_node.cluster.tables import Table, nid
from tq_node.cluster import commands as c
from tq_node.cluster.controller import Decision
from tq_node.cluster.map import Applied, encode

FACTOR = 3
QUIET_TICK_S_MAX = 0.05
"""A tick is 0.1 s; ours here are two shared cores."""


class MeteredTable(Table):
    """What each entry costs to apply, and its size in the log."""

    def __init__(self, nodes: int, partitions: int) -> None:
        self.entry_s: dict[str, list[float]] = defaultdict(list)
        self.entry_bytes_max = 0
        super().__init__(nodes, partitions=partitions, factor=FACTOR, checked=False)

    def do(self, command: c.AnyCommand) -> Applied:
        start = time.perf_counter()
        applied = super().do(command)
        self.entry_s[type(command).__name__].append(time.perf_counter() - start)
        self.entry_bytes_max = max(self.entry_bytes_max, len(c.encode(command)))
        return applied


class Metered(Settling):
    """What each look of the leader costs."""

    def __init__(self, table: MeteredTable) -> None:
        super().__init__(table, checked=False)
        self.is_batching = True
        self.quiet_s: list[float] = []
        self.busy_s: list[float] = []

    def decide(self) -> Decision:
        start = time.perf_counter()
        decision = super().decide()
        (self.busy_s if decision.commands else self.quiet_s).append(time.perf_counter() - start)
        return decision


def check_copies(settling: Settling) -> None:
    for p, entry in enumerate(settling.table.map.partitions):
        assert len(entry.isr) == FACTOR, (p, entry)
        assert entry.min_isr == FACTOR // 2 + 1, (p, entry)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nodes", "partitions", "few"), [(3, 64, 1), (30, 256, 10), pytest.param(100, 1_024, 10, marks=pytest.mark.long)]
)
def test_join_loss_and_drain_settle(nodes: int, partitions: int, few: int) -> None:
    """Printed: the cost of each, of an entry by its kind, and of a tick."""
    table = MeteredTable(nodes - few, partitions)
    settling = Metered(table)
    rows = [f"{nodes} nodes, {partitions} partitions"]

    def settle(what: str) -> None:
        index, moved, start = table.index, len(table.entry_s["BeginMove"]), time.perf_counter()
        rounds = settling.run()
        rows.append(
            f"  {what:12} {rounds:3} rounds, {table.index - index:4} entries, "
            f"{len(table.entry_s['BeginMove']) - moved:2} of them moves' beginnings, {time.perf_counter() - start:.2f} s"
        )
        settling.check_rest()

    settle("birth")
    for number in range(nodes - few + 1, nodes + 1):
        table.register(number)
    settle(f"join of {few}")
    assert settling.waiting == {}
    settling.check_bounds()
    check_copies(settling)
    lost = range(2, 2 + few)
    table.down(*lost)
    settle(f"loss of {few}")
    if nodes > FACTOR:
        assert settling.waiting == {}
        settling.check_bounds()
        check_copies(settling)
        for number in range(20, 20 + few):
            table.do(c.DrainNode(nid(number)))
        settle(f"drain of {few}")
        assert settling.waiting == {}
    for number in lost:
        table.register(number, 2)
    settle("return")
    assert settling.waiting == {}
    settling.check_bounds()
    check_copies(settling)

    for name, costs in sorted(table.entry_s.items()):
        rows.append(
            f"  {name:14} {len(costs):4} entries, {sum(costs) / len(costs) * 1e3:7.3f} ms each, {max(costs) * 1e3:7.3f} at most"
        )
    quiet, busy = sorted(settling.quiet_s), sorted(settling.busy_s)
    rows.append(
        f"  tick: quiet {quiet[0] * 1e3:.3f} ms at best, {quiet[len(quiet) // 2] * 1e3:.3f} in the middle; "
        f"with something to do {busy[len(busy) // 2] * 1e3:.3f} in the middle, {busy[-1] * 1e3:.3f} at most"
    )
    rows.append(f"  an entry has at most {table.entry_bytes_max} bytes, the table {len(encode(table.map))}")
    print("\n".join(rows))
    assert quiet[0] < QUIET_TICK_S_MAX
