"""A node dies, falls silent or is cut off, is drained or restarted: for how long is no write acknowledged? By ``bench.failover``.

A few rounds in the push run, which shares its machine: held to ten times the goals. The long run is held to the goals themselves,
over as many rounds as the page (docs/reference/failover.md).
"""

from __future__ import annotations

import pytest

from bench.failover.failures import FAILURES, Failure
from bench.failover.page import lines
from bench.failover.rounds import rounds, table_of
from tests.cluster.replicated import MakeCluster, started

pytestmark = pytest.mark.cluster

MARGIN = 10.0
PUSHED = [("kill9", 1), *(pytest.param(name, 1, marks=pytest.mark.long) for name in ("sigstop", "cut", "rolling"))]
"""In make test test_hand_over.py has a primary that sleeps and one that ends in order, test_isolation.py one that is cut off."""
ROUNDS = 20
BY_NAME = {failure.name: failure for failure in FAILURES}


def measured(make_cluster: MakeCluster, failure: Failure, count: int, margin: float) -> None:
    cluster = started(make_cluster, links=failure.links)
    table = table_of(rounds(cluster, failure, count))
    print(f"\n{lines({failure.name: table})}")
    p50_s, p99_s = failure.goal_s
    assert p50_s is None or table.p50 < p50_s * margin
    assert p99_s is None or table.p99 < p99_s * margin


@pytest.mark.parametrize(("name", "count"), PUSHED)
def test_the_gap_of_acknowledged_writes(make_cluster: MakeCluster, name: str, count: int) -> None:
    measured(make_cluster, BY_NAME[name], count, MARGIN)


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.parametrize("name", BY_NAME)
def test_the_gap_over_many_rounds(make_cluster: MakeCluster, name: str) -> None:
    measured(make_cluster, BY_NAME[name], ROUNDS, 1.0)
