"""Two of three nodes: everything works. One of three: nothing is promised, nothing is lost, and with a second one it goes on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import HARM, NAMES, MakeCluster, started, wait_copies, wait_ended, wait_settled
from tests.support.harness import Answer, NodeProcess, until

pytestmark = pytest.mark.cluster

NOT_ENOUGH = (503, "not_enough_replicas")


def answer_codes(answers: list[Answer]) -> set[tuple[int, Any]]:
    return {(answer.status, answer.json.get("code")) for answer in answers}


def submits(node: NodeProcess, ids: list[str]) -> list[Answer]:
    with ThreadPoolExecutor(12) as pool:
        return list(
            pool.map(lambda task_id: node.post("/tasks/submit", {"type": "noop", "id": task_id}, deadline_s=15), ids)
        )


def works(cluster: Cluster, label: str) -> None:
    """Submit, run, read, cancel, retry, list: at every running node, for tasks of all partitions."""
    names = cluster.running
    ids = [f"{label}-{number}" for number in range(100)]
    batch = {"tasks": [{"type": "noop", "id": task_id} for task_id in ids]}
    answer = cluster[names[0]].post("/tasks/batch", batch)
    assert answer.json["accepted"] == len(ids), answer.json
    for number, task_id in enumerate(ids[:20]):
        assert cluster[names[number % len(names)]].status(task_id, wait_s=10)["status"] == "completed"
    for name in names:
        node = cluster[name]
        task_id = node.submit("noop", delay=3600)
        assert node.post(f"/tasks/cancel?id={task_id}").json["status"] == "cancelled"
        assert node.post(f"/tasks/retry?id={task_id}").json["status"] == "pending"
        assert node.status(task_id, wait_s=10)["status"] == "completed"
    wait_ended(cluster)


@pytest.mark.long  # in make test the next test looks at two of three, too
def test_two_of_three(make_cluster: MakeCluster) -> None:
    cluster = started(make_cluster)
    works(cluster, "three")
    cluster["node-2"].kill9()
    cluster.wait_gone("node-2")
    wait_copies(cluster, 2)
    works(cluster, "two")
    for name in cluster.running:
        assert cluster[name].is_ready
        stats = cluster[name].get("/tasks/stats").json
        assert stats["stats"]["total"] == 205, "a copy of every task on each of the two"
    cluster.start("node-2")
    cluster.wait_whole()
    wait_settled(cluster)
    works(cluster, "again")
    cluster.stop()
    cluster.assert_logs_are_clean(HARM)


@pytest.mark.parametrize(("refused_s", "read_s"), [(60.0, 37.5), pytest.param(5.0, 5.0, marks=pytest.mark.long)])
def test_one_of_three_promises_nothing(make_cluster: MakeCluster, refused_s: float, read_s: float) -> None:
    """Nor does it wait for what can't commit: refusals and local reads come at once, of so many within these seconds."""
    cluster = started(make_cluster)
    works(cluster, "three")
    left = cluster["node-1"]
    done = [f"three-{number}" for number in range(60)]
    # Due while the node is alone: nobody may claim them until a second one is there.
    due = [left.submit("noop", number, delay=3.0) for number in range(40)]
    time.sleep(1.0)  # copies hear of the last commits
    for name in ("node-3", "node-2"):
        cluster[name].kill9()

    # Ids for the partitions that it leads, and for those of the dead.
    ids = [f"alone-{number}" for number in range(24)]
    began_s = time.monotonic()

    def is_refused() -> bool:
        return answer_codes(submits(left, ids)) <= {NOT_ENOUGH, (503, "not_primary")}

    until(is_refused, deadline_s=20, what="refusals, instead of writes whose outcome is not known")
    print(f"\nevery write is refused {time.monotonic() - began_s:.1f} s after the second kill")
    assert NOT_ENOUGH in answer_codes(submits(left, ids)), "where it is primary itself"
    began_s = time.monotonic()
    refused = submits(left, ids)
    assert time.monotonic() - began_s < refused_s
    assert answer_codes(refused) <= {NOT_ENOUGH, (503, "not_primary")}, (
        "refused, not waited for: that would end as unknown"
    )
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    batch = left.post("/tasks/batch", {"tasks": [{"type": "noop"} for _ in range(20)]}).json
    assert (batch["accepted"], {item["error"]["code"] for item in batch["results"]}) in (
        (0, {"not_enough_replicas", "not_primary"}),
        (0, {"not_enough_replicas"}),
    )

    with ThreadPoolExecutor(12) as pool:
        strong = list(pool.map(lambda task_id: left.get(f"/tasks/status?id={task_id}", deadline_s=15), done[:24]))
    assert (503, "not_confirmed") in answer_codes(strong) <= {(503, "not_confirmed"), (503, "not_primary")}
    assert all("retry-after" in answer.headers for answer in strong)
    for task_id in done:
        local = left.get(f"/tasks/status?id={task_id}&consistency=local")
        assert (local.status, local.json["status"]) == (200, "completed")
        assert local.json["age"] >= 0
    listed = left.get("/tasks/list?limit=10000").json
    assert listed["count"] == left.get("/tasks/stats").json["stats"]["total"] >= 103
    time.sleep(2.5)
    # P5: old, never uncommitted, and served. A task that has become due has a change that nobody can commit now.
    with ThreadPoolExecutor(12) as pool:
        began_s = time.monotonic()
        path = "/tasks/status?consistency=local&id="
        found_here = list(pool.map(lambda task_id: left.get(path + task_id, deadline_s=15), due))
        seconds = time.monotonic() - began_s
    assert {(answer.status, answer.json["status"]) for answer in found_here} == {(200, "scheduled")}
    assert seconds < read_s, "none waits for as long as a commit that never comes"
    ready = left.get("/ready")
    assert ready.status == 503
    assert ready.json["reasons"]

    alone_until = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    began_s = time.monotonic()
    cluster.start("node-3")
    until(lambda: answer_codes(submits(left, ids)) <= {(201, None), (200, None)}, deadline_s=30, what="writes go on")
    print(f"writes go on {time.monotonic() - began_s:.1f} s after the second node was started")
    wait_settled(cluster)
    for task_id in due:
        found = left.status(task_id, wait_s=30)
        assert found["status"] == "completed"
        assert found["started_at"] > alone_until, "nothing was claimed while the node was alone"
    works(cluster, "second")  # two of three: everything works
    assert all(cluster[name].is_ready for name in cluster.running)
    cluster.start("node-2")
    cluster.wait_whole()
    wait_copies(cluster)
    wait_ended(cluster)
    totals = {cluster[name].get("/tasks/stats").json["stats"]["total"] for name in NAMES}
    assert len(totals) == 1, "a copy of every task on each of the three"
    cluster.stop()
    cluster.assert_logs_are_clean(HARM)
