"""A hundred nodes and 1,024 partitions against three and 64: it settles, and what an entry and a decision cost. Printed."""

from __future__ import annotations

import time

import pytest

from tests.unit.tq_node.cluster.settling import Settling
from tests.unit.tq_node.cluster.tables import Table, nid
from tq_node.cluster import commands as c
from tq_node.cluster.controller import decide


@pytest.mark.slow
def test_a_hundred_nodes_and_a_thousand_partitions_settle() -> None:
    """Join, loss and drain of 10; printed against three nodes and 64 partitions."""
    rows: list[str] = []
    for nodes, partitions, few in ((3, 64, 1), (100, 1_024, 10)):
        table = Table(nodes - few, partitions=partitions, checked=False)
        settling = Settling(table, checked=False)
        start = time.perf_counter()
        settling.run()
        rows.append(f"{nodes - few} nodes, birth: {settling.rounds} looks, {time.perf_counter() - start:.2f} s")
        for what in ("join", "loss", "drain"):
            if what == "join":
                for number in range(nodes - few + 1, nodes + 1):
                    table.register(number)
            elif what == "loss":
                table.down(*range(2, 2 + few))
            elif nodes > 3:
                for number in range(20, 20 + few):
                    table.do(c.DrainNode(nid(number)))
            index, start = table.index, time.perf_counter()
            rounds = settling.run()
            rows.append(
                f"{nodes} nodes, {what} of {few}: {rounds} rounds, {table.index - index} entries, "
                f"{time.perf_counter() - start:.2f} s"
            )
            settling.check_rest()
            if nodes > 3 or what == "join":
                assert settling.waiting == {}
                settling.check_bounds()
        best = min(timed(settling) for _ in range(20))
        rows.append(f"{nodes} nodes, {partitions} partitions: decide() with nothing to do {best * 1e3:.3f} ms")
        assert best < 0.05
    print("\n".join(rows))


def timed(settling: Settling) -> float:
    start = time.perf_counter()
    decide(settling.table.map, settling.liveness, settling.view, settling.now_ms)
    return time.perf_counter() - start
