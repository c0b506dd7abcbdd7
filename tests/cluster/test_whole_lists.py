"""Lists and counts over the cluster are never short in silence: what they lack while nodes go and come is named (real nodes)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import wait_copies, wait_settled
from tests.support.harness import until

pytestmark = pytest.mark.cluster

TASKS = 300
LATER_S = 86_400


def look(cluster: Cluster, name: str, partition_of: dict[str, int]) -> tuple[bool, bool]:
    """One list and one count. Returns whether they were whole.

    :raises AssertionError: they lack a task and don't say so.
    """
    answer = cluster[name].request("GET", "/tasks/list?scope=cluster&limit=10000", deadline_s=20.0)
    if answer.status != 200:
        return False, False
    page = answer.json
    unled = set(page["partitions_missing"])
    lacking = partition_of.keys() - {task["id"] for task in page["tasks"]}
    silent = {task_id for task_id in lacking if partition_of[task_id] not in unled}
    assert not silent, f"{len(silent)} tasks are left out; said to be missing: {sorted(unled)} of {page['missing']}"
    answer = cluster[name].request("GET", "/tasks/stats?scope=cluster", deadline_s=20.0)
    if answer.status != 200:
        return not unled, False
    counted = not answer.json["partitions_missing"]
    assert not counted or answer.json["stats"]["total"] == len(partition_of)
    return not unled, counted


def test_what_a_list_lacks_while_a_node_dies_and_comes_back_is_named(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.start()
    cluster.wait_whole()
    wait_settled(cluster)
    tasks = [{"type": "email", "delay": LATER_S} for _ in range(TASKS)]
    assert cluster["node-1"].request("POST", "/tasks/batch", {"tasks": tasks}).json["accepted"] == TASKS
    wait_copies(cluster)
    page = cluster["node-1"].request("GET", "/tasks/list?scope=cluster&limit=10000").json
    partition_of: dict[str, int] = {task["id"]: task["partition"] for task in page["tasks"]}
    assert len(partition_of) == TASKS
    assert (page["missing"], page["partitions_missing"]) == ([], [])
    seen: list[tuple[bool, bool]] = []
    victim = cluster.leader()
    asked = cluster.others(victim)

    def is_whole() -> bool:
        return looked(cluster, asked, partition_of, seen)

    cluster[victim].kill9()
    until(is_whole, what="lists and counts are whole without the dead node")
    cluster.start(victim)
    until(is_whole, what="they are whole while it comes back")
    assert any(False in one for one in seen), "nothing was ever missing: the test has shown nothing"


def looked(cluster: Cluster, names: list[str], partition_of: dict[str, int], seen: list[tuple[bool, bool]]) -> bool:
    found = [look(cluster, name, partition_of) for name in names]
    seen += found
    time.sleep(0.01)
    return all(all(one) for one in found)
