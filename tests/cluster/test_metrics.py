"""What ``/metrics`` says of the cluster's own state, and that a scrape of many names hurts nobody, with real nodes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import wait_settled
from tests.support.harness import NodeProcess, until

pytestmark = pytest.mark.cluster

PAIRS = 2_000
BATCH = 500


def read(node: NodeProcess) -> dict[tuple[str, ...], float]:
    page = node.get("/metrics").body.decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_the_state_of_the_cluster_and_a_scrape_of_many_names(cluster: Cluster) -> None:
    wait_settled(cluster)
    leader = cluster.leader()
    for name in cluster.running:
        found = read(cluster[name])
        assert found["taskqueue_leader",] == (name == leader)
        assert found["taskqueue_ready",] == 1
        assert found["taskqueue_nodes", "active"] == 3
        assert (found["taskqueue_partitions_under_replicated",], found["taskqueue_partitions_offline",]) == (0, 0)

    # 10 queues by 200 types at the leader, and ten scrapers at once: it goes on leading (A2).
    for first in range(0, PAIRS, BATCH):
        tasks = [{"type": f"t{n // 10:03}", "queue": f"q{n % 10}", "delay": 3_600} for n in range(first, first + BATCH)]
        reply = cluster[leader].post("/tasks/batch", {"tasks": tasks})
        assert reply.json["accepted"] == BATCH, reply
    with ThreadPoolExecutor(10) as scrapers:
        until(
            lambda: submitted(list(scrapers.map(lambda _: read(cluster[leader]), range(10)))[-1]) == PAIRS,
            what="a page of all of them",
        )
    assert cluster.leader() == leader
    assert read(cluster[leader])["taskqueue_metrics_labels", "pair"] == 200
    assert "was held" not in cluster.log(leader)

    dead = cluster.others(leader)[0]
    cluster[dead].kill9()
    cluster.wait_gone(dead)
    for name in cluster.running:
        found = read_until_down(cluster[name])
        assert found["taskqueue_nodes", "active"] == 2
        assert found["taskqueue_partitions_under_replicated",] == 64
        assert found["taskqueue_partitions_offline",] == 0


def submitted(found: dict[tuple[str, ...], float]) -> float:
    return sum(value for key, value in found.items() if key[0] == "taskqueue_tasks_submitted_total")


def read_until_down(node: NodeProcess) -> dict[tuple[str, ...], float]:
    """A page may be a second old."""

    def shown() -> dict[tuple[str, ...], float] | None:
        found = read(node)
        return found if found["taskqueue_nodes", "down"] == 1 else None

    found = until(shown, what="the dead node is counted")
    assert found is not None
    return found
