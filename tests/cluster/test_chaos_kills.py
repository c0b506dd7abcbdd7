"""kill -9 under load: of a primary, of the controller, of all three in random order.

What clients saw is one queue's history, every accepted task ends, and at the end all copies are byte-equal (P1, P2, P5, P6, F26,
I11).
"""

from __future__ import annotations

import random
import time

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import (
    HARM,
    NAMES,
    MakeCluster,
    compare_at_rest,
    every_task,
    kill_all,
    started,
    wait_copies,
    wait_quiet,
    wait_settled,
)
from tests.support.harness import until
from tests.support.history import assert_sound
from tests.support.load import Load, loading, summary

pytestmark = pytest.mark.cluster

ACKNOWLEDGED_MIN = 30
"""Tasks for each kill. Where other load makes all slow, the kill waits for them."""
DEADLINE_S = 60.0


def kill_primary(cluster: Cluster, rolls: random.Random) -> None:
    """Of a node that leads partitions and is not the controller."""
    victim = rolls.choice([name for name in NAMES if name != cluster.leader()])
    cluster[victim].kill9()
    time.sleep(rolls.uniform(0.2, 1.0))  # down for a while
    cluster.start(victim)


def kill_controller(cluster: Cluster, rolls: random.Random) -> None:
    victim = cluster.leader()
    cluster[victim].kill9()
    time.sleep(rolls.uniform(0.2, 1.0))  # down for a while
    cluster.start(victim)


def kill_three(cluster: Cluster, rolls: random.Random) -> None:
    order = rolls.sample(NAMES, 3)
    for name in order:
        cluster[name].kill9()
        time.sleep(rolls.choice([0.0, 0.02, 0.3]))  # together, or one after another
    for name in rolls.sample(NAMES, 3):
        cluster.start(name)
        time.sleep(rolls.choice([0.0, 0.02, 0.3]))  # together, or one after another


WHO = {"primary": kill_primary, "controller": kill_controller, "all": kill_three}


def wait_for_load(load: Load, tasks: int) -> None:
    until(lambda: len(load.history.acknowledged) > tasks, deadline_s=DEADLINE_S, what=f"{tasks} tasks acknowledged")


def chaos(make_cluster: MakeCluster, who: str, rounds: int) -> None:
    cluster = started(make_cluster)
    rolls = random.Random(f"chaos {who}")
    began_s = time.monotonic()
    with loading(cluster.ports, seed=who) as load:
        for number in range(1, rounds + 1):
            time.sleep(rolls.uniform(0.3, 1.0))  # load between two kills
            wait_for_load(load, ACKNOWLEDGED_MIN * number)
            WHO[who](cluster, rolls)
            cluster.wait_whole()
            if who == "all" or rolls.random() < 0.5:
                wait_copies(cluster)  # else the next kill may meet a set that is not whole
            cluster.wait_ready()
        time.sleep(0.5)  # load after the last one
    wait_settled(cluster)
    wait_quiet(cluster)
    seconds = time.monotonic() - began_s
    shown = [every_task(cluster, name) for name in NAMES]
    history = load.history
    assert_sound(history, shown[0])
    for other in shown[1:]:
        assert other == shown[0], "every node shows the same"
    each = [every_task(cluster, name, "") for name in NAMES]
    for task_id, task in shown[0].items():
        copies = [tasks[task_id] for tasks in each]
        assert sorted(copy["role"] for copy in copies) == ["primary", "replica", "replica"]
        different = [copy for copy in copies if copy | {"role": task["role"]} != task]
        assert not different, (task, different)
    lost = sum(attempt["outcome"] == "lost" for task in shown[0].values() for attempt in task["attempts"])
    print(f"\n{rounds} times kill -9 of {who} in {seconds:.0f} s: {summary(history)}; {lost} attempts lost")
    kill_all(cluster)
    stores = compare_at_rest(cluster)
    assert {sum(copy.rows for copy in store.values()) for store in stores.values()} == {len(shown[0])}
    cluster.assert_logs_are_clean(HARM)


@pytest.mark.long
def test_two_rounds(make_cluster: MakeCluster) -> None:
    """Of the controller: make test has its deaths in test_leader_loss, and those of a primary and of all in tests/chaos."""
    assert "controller" in WHO
    chaos(make_cluster, "controller", 2)


@pytest.mark.long
@pytest.mark.parametrize("who", WHO)
def test_ten_rounds(make_cluster: MakeCluster, who: str) -> None:
    chaos(make_cluster, who, 10)
