"""Partitions change hands and clients hardly notice: SIGTERM of a node that is at work, a primary that falls silent."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.failover.writers import Writer, wait_acknowledged, writing
from tests.cluster.clusters import Cluster
from tests.cluster.replicated import NAMES, MakeCluster, every_task, ids_in, led_by, seed_of, started, wait_copies
from tests.support.harness import until
from tq_node.runtime.routing.failover_retry import UNKNOWN_MS

pytestmark = pytest.mark.cluster

RUNS_S = 8.0
DEADLINE_S = 30.0
TASKS = 24
"""So many that some of them, very likely a third, belong to the silent node."""


def writers_on(cluster: Cluster, victim: str) -> list[Writer]:
    seed = seed_of(cluster)
    partitions = random.Random(victim).sample(led_by(cluster, victim), 4)
    return [
        Writer(n, cluster.ports, ids_in(seed, partition, f"{victim}-{n}"), victim if n % 2 else NAMES[n % 3])
        for n, partition in enumerate(partitions)
    ]


@pytest.mark.parametrize("of_leader", [pytest.param(False, marks=pytest.mark.long), True], ids=["primary", "leader"])
def test_partitions_do_not_wait_for_handlers(make_cluster: MakeCluster, tmp_path: Path, of_leader: bool) -> None:
    """Others serve them while its last handler still runs, for up to ``--stop-timeout``; that task ends where it began."""
    ledger = tmp_path / "ledger"
    cluster = started(make_cluster, environment={"TEST_LEDGER": str(ledger)})
    leader = cluster.leader()
    victim = leader if of_leader else next(name for name in NAMES if name != leader)
    partition = led_by(cluster, victim)[0]
    task_id = next(ids_in(seed_of(cluster), partition, "slow"))
    cluster[victim].submit("slow-async", RUNS_S, id=task_id)
    until(lambda: "began" in ledger.read_text(), deadline_s=DEADLINE_S, what="the handler runs")
    runner = cluster[victim]
    writers = writers_on(cluster, victim)
    with writing(writers):
        assert not wait_acknowledged(writers, time.monotonic(), DEADLINE_S)
        runner.signal(signal.SIGTERM)
        asked = cluster[next(name for name in NAMES if name != victim)]
        until(lambda: not led_by(cluster, victim, _name_of(cluster, asked.http_port)), deadline_s=DEADLINE_S)
        since_s = time.monotonic()
        assert not wait_acknowledged(writers, since_s, DEADLINE_S)
        assert "ended" not in ledger.read_text(), "the handler still ran when others served what the node had led"
        assert runner.wait(DEADLINE_S) == 0
        assert not wait_acknowledged(writers, time.monotonic(), DEADLINE_S)
    found = asked.status(task_id, wait_s=10)
    assert (found["status"], len(found["attempts"])) == ("completed", 1), found
    assert ledger.read_text().count("began") == 1
    cluster.start(victim)
    cluster[victim].wait_ready()
    wait_copies(cluster)


def test_a_submit_without_an_id_outlives_its_silent_primary(make_cluster: MakeCluster) -> None:
    """The node that took it in made the id, and repeats it at the next primary under that id: one task, and 201."""
    cluster = started(make_cluster)
    leader = cluster.leader()
    victim = next(name for name in NAMES if name != leader)
    entries = [cluster[name] for name in NAMES if name != victim]
    assert led_by(cluster, victim)
    with ThreadPoolExecutor(TASKS) as clients:
        cluster[victim].stop()
        stopped_s = time.monotonic()
        asked = [
            clients.submit(entries[n % 2].post, "/tasks/submit", {"type": "noop", "payload": n, "delay": 3600})
            for n in range(TASKS)
        ]
        cluster.wait_gone(victim)
        down_s = time.monotonic() - stopped_s
        answers = [one.result() for one in asked]
    cluster[victim].cont()
    cluster.wait_whole()
    wait_copies(cluster)
    known = {answer.json["task_id"] for answer in answers if answer.status == 201}
    tasks = every_task(cluster)
    payloads = Counter(cluster[leader].status(task_id)["payload"] for task_id in tasks)
    assert known <= set(tasks)
    assert max(payloads.values()) == 1, f"once each: {payloads}"
    if down_s < UNKNOWN_MS / 1000 - 1.0:  # a busy machine may take longer to notice than anybody waits
        assert len(known) == TASKS, Counter(answer.status for answer in answers)


def _name_of(cluster: Cluster, http_port: int) -> str:
    return next(name for name, port in cluster.ports.items() if port == http_port)
