"""Copies appear, nodes die and return, and what any node shows of the tasks (P1, P5, catch-up, statistics, lists, events)."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import (
    HANDLERS,
    HARM,
    NAMES,
    MakeCluster,
    compare_at_rest,
    every_task,
    kill_all,
    partitions_by_primary,
    started,
    wait_copies,
    wait_quiet,
    wait_settled,
)
from tests.support.harness import until

pytestmark = pytest.mark.cluster

NEWBORN_S = 2.0
MARGIN = 10.0
MANY = 2_000


def fill(cluster: Cluster, name: str, count: int, label: str, payload: object = "x" * 100) -> list[str]:
    """So many tasks that are never due."""
    ids = [f"{label}-{number}" for number in range(count)]
    for first in range(0, count, 500):
        tasks = [
            {"type": "noop", "id": task_id, "payload": payload, "delay": 3600} for task_id in ids[first : first + 500]
        ]
        left = tasks

        def accepted() -> bool:
            nonlocal left
            results = cluster[name].post("/tasks/batch", {"tasks": left}, deadline_s=60).json["results"]
            left = [task for task, result in zip(left, results, strict=True) if "error" in result]
            return not left

        until(accepted, deadline_s=60, what=f"{count} tasks are taken in")
    return ids


# --- a newborn cluster ---
def test_a_newborn_cluster_has_all_its_copies(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(options=HANDLERS)
    cluster.start("node-1", "node-2")
    cluster.wait_whole(members=("node-1", "node-2"), voters=1)
    cluster.wait_ready()
    ids = fill(cluster, "node-1", 60, "early")
    wait_copies(cluster, 2)
    cluster.start("node-3")
    until(lambda: (view := cluster.view("node-3")) and view.statuses.get("node-3") == "active", what="it is a member")
    seconds = wait_copies(cluster, 3, deadline_s=NEWBORN_S * MARGIN)
    even = wait_settled(cluster)
    print(
        f"\nall copies are in sync {seconds:.2f} s after the third node became a member; evenly led {even:.2f} s later"
    )
    each = [every_task(cluster, name, "") for name in NAMES]
    assert all(set(tasks) == set(ids) for tasks in each)
    cluster.stop()
    stores = compare_at_rest(cluster, exact=False)
    assert {sum(copy.rows for copy in store.values()) for store in stores.values()} == {60}
    cluster.assert_logs_are_clean(HARM)


# --- what any node shows ---
class Stream(threading.Thread):
    """Server-sent events of one node, as they come."""

    def __init__(self, port: int, query: str) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.request("GET", f"/tasks/events{query}")
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        self.seen: list[dict[str, Any]] = []
        self.ids: list[int] = []

    def run(self) -> None:
        try:
            for line in self.response:
                if line.startswith(b"data: {"):
                    self.seen.append(json.loads(line[6:]))
                elif line.startswith(b"id: "):
                    self.ids.append(int(line[4:]))
        except (OSError, ValueError, AttributeError):
            pass

    def close(self) -> None:
        self.connection.sock and self.connection.sock.shutdown(2)
        self.join(5)
        self.response.close()
        self.connection.close()


def test_what_each_node_shows(make_cluster: MakeCluster, request: pytest.FixtureRequest) -> None:
    cluster = started(make_cluster)
    streams = {name: Stream(cluster.ports[name], "?scope=cluster") for name in NAMES}
    own = {name: Stream(cluster.ports[name], "") for name in NAMES}
    for stream in (*streams.values(), *own.values()):
        stream.start()
        request.addfinalizer(stream.close)
    time.sleep(0.5)  # each node asks the others from now on

    # Read your writes: a 201 from any node, a strong status from any other, at once.
    ids = []
    for number, (via, asked) in enumerate(itertools.product(NAMES, NAMES)):
        for again in range(4):
            task_id = f"read-{number}-{again}"
            assert (
                cluster[via].post("/tasks/submit", {"type": "work-async", "payload": 0.3, "id": task_id}).status == 201
            )
            answer = cluster[asked].get(f"/tasks/status?id={task_id}")
            assert (answer.status, answer.json["id"]) == (200, task_id)
            assert "age" not in answer.json
            ids.append(task_id)

    # Waiting across nodes: told at the end, not at the deadline.
    for via, asked in itertools.permutations(NAMES, 2):
        task_id = f"wait-{via}-{asked}"
        cluster[via].submit("work-async", 0.4, id=task_id)
        began_s = time.monotonic()
        assert cluster[asked].status(task_id, wait_s=60)["status"] == "completed"
        assert time.monotonic() - began_s < 50
        ids.append(task_id)
    wait_quiet(cluster)

    # Lists: each copy where it is, with the role that it has; each task once for the whole cluster.
    each = {name: every_task(cluster, name, "") for name in NAMES}
    roles: dict[str, Counter[str]] = {}
    for name in NAMES:
        for task_id, task in each[name].items():
            roles.setdefault(task_id, Counter())[task["role"]] += 1
            assert (task["role"] == "primary") is (task["node"] == name)
    assert roles == {task_id: Counter(primary=1, replica=2) for task_id in ids}
    for name in NAMES:
        assert set(every_task(cluster, name)) == set(ids)
        primaries = every_task(cluster, name, "role=primary")
        replicas = every_task(cluster, name, "role=replica")
        assert set(primaries) | set(replicas) == set(each[name])
        assert not set(primaries) & set(replicas)

    # Numbers: three copies of each on three nodes; once for the cluster.
    stats = {name: cluster[name].get("/tasks/stats").json for name in NAMES}
    assert sum(one["stats"]["total"] for one in stats.values()) == 3 * len(ids)
    assert sum(one["primary"]["total"] for one in stats.values()) == len(ids)
    assert sum(one["replica"]["total"] for one in stats.values()) == 2 * len(ids)
    assert sum(one["stats"]["completed"] for one in stats.values()) == 3 * len(ids)
    for name in NAMES:
        whole = cluster[name].get("/tasks/stats?scope=cluster").json
        assert (whole["stats"]["total"], whole["stats"]["completed"], whole["missing"]) == (len(ids), len(ids), [])

    # Local reads: of a copy, and how old it may be.
    for name, task_id in itertools.product(NAMES, ids[:6]):
        found = cluster[name].get(f"/tasks/status?id={task_id}&consistency=local").json
        assert found["status"] == "completed"
        assert 0 <= found["age"] < 5

    # Events: all of every task, in its order, in each stream over the cluster; each transition in one node's own stream.
    wanted = [(None, "pending"), ("pending", "processing"), ("processing", "completed")]
    until(
        lambda: all(len(stream.seen) >= 3 * len(ids) for stream in streams.values()), what="every event in every stream"
    )
    for stream in streams.values():
        told: dict[str, list[tuple[str | None, str]]] = {}
        for event in stream.seen:
            told.setdefault(event["task_id"], []).append((event["from"], event["to"]))
        assert told == dict.fromkeys(ids, wanted)
        assert stream.ids == sorted(set(stream.ids))
    assert sum(len(stream.seen) for stream in own.values()) == 3 * len(ids)
    cluster.stop()
    cluster.assert_logs_are_clean(HARM)


# --- nodes that were away ---
def traffic_ends(cluster: Cluster) -> None:
    """All copies are in sync and equal, to the byte, at one applied sequence."""
    wait_quiet_scheduled(cluster)
    kill_all(cluster)


def wait_quiet_scheduled(cluster: Cluster) -> None:
    """As ``wait_quiet``, for tasks that are never due."""

    def quiet() -> bool:
        return all(
            one["last_sequence"] == one["committed_sequence"] and not any(one["lag"].values())
            for one in partitions_by_primary(cluster).values()
        )

    until(quiet, what="all entries are committed and copied")
    time.sleep(1.0)  # rows are written behind the log


def test_a_dead_node_is_named_as_missing_and_comes_back_by_log(make_cluster: MakeCluster) -> None:
    cluster = started(make_cluster)
    before = fill(cluster, "node-1", 300, "before")
    cluster["node-2"].kill9()
    cluster.wait_gone("node-2")
    wait_copies(cluster, 2)
    for name in cluster.running:
        whole = cluster[name].get("/tasks/stats?scope=cluster").json
        assert (whole["stats"]["total"], whole["missing"]) == (300, ["node-2"])
        page = cluster[name].get("/tasks/list?scope=cluster&limit=1000").json
        assert (sorted(task["id"] for task in page["tasks"]), page["missing"]) == (sorted(before), ["node-2"])
    missed = fill(cluster, "node-1", MANY, "missed")
    began_s = time.monotonic()
    cluster.start("node-2")
    wait_copies(cluster)
    print(f"\na node that missed {MANY} tasks is in sync {time.monotonic() - began_s:.1f} s after its start, by log")
    wait_settled(cluster)
    assert set(every_task(cluster, "node-2", "")) == {*before, *missed}
    traffic_ends(cluster)
    stores = compare_at_rest(cluster)
    assert {copy.generation for copy in stores["node-2"].values()} == {0}, "nothing came as a snapshot"
    cluster.assert_logs_are_clean(HARM)


def big() -> Iterator[tuple[str, str]]:
    for number in itertools.count():
        yield f"big-{number}", "x" * 1_000_000


@pytest.mark.long
def test_a_node_that_was_away_for_long_comes_back_by_snapshot(make_cluster: MakeCluster) -> None:
    """Longer than 64 MiB of log (``retain_bytes``), all of it in one partition."""
    cluster = make_cluster(options=(*HANDLERS, "--partitions", "1"))
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    wait_copies(cluster, partition_count=1)
    fill(cluster, "node-1", 50, "before")
    victim = next(name for name in NAMES if name not in (cluster.leader(), cluster.partitions("node-1")[0]["primary"]))
    cluster[victim].kill9()
    cluster.wait_gone(victim)
    wait_copies(cluster, 2, partition_count=1)
    asked = cluster.running[0]
    tasks = big()
    for _ in range(8):
        batch = {
            "tasks": [{"type": "noop", "id": i, "payload": p, "delay": 3600} for i, p in itertools.islice(tasks, 10)]
        }
        assert cluster[asked].post("/tasks/batch", batch, deadline_s=60).json["accepted"] == 10
    fill(cluster, asked, 200, "after")
    began_s = time.monotonic()
    cluster.start(victim)
    wait_copies(cluster, deadline_s=60, partition_count=1)
    seconds = time.monotonic() - began_s
    assert len(every_task(cluster, victim, "q=before")) == 50
    assert cluster[victim].get("/tasks/stats").json["stats"]["total"] == 330
    traffic_ends(cluster)
    stores = compare_at_rest(cluster)
    copy = stores[victim][0]
    assert copy.generation > 0, f"it was to be too far behind for the log: {copy}"
    print(f"\n80 MB behind, in sync {seconds:.1f} s after its start, by snapshot up to {copy.trimmed}")
    cluster.assert_logs_are_clean(HARM)


@pytest.mark.long  # test_membership.py replaces a disk in make test
def test_a_wiped_disk_is_replaced(make_cluster: MakeCluster) -> None:
    """Remove, and the node that waits under the old name joins as a new one and gets all copies."""
    cluster = started(make_cluster)
    ids = fill(cluster, "node-1", 500, "kept")
    victim = "node-2"
    cluster[victim].kill9()
    cluster.wait_gone(victim)
    shutil.rmtree(cluster.data(victim))
    began_s = time.monotonic()
    cluster.start(victim)
    until(lambda: "still trying" in cluster.log(victim), what="the name is taken: it waits")
    time.sleep(0.5)  # still refused after further tries
    assert cluster["node-1"].get("/cluster").json["cluster"]["nodes"][1]["status"] == "down"
    answer = cluster["node-1"].post(f"/cluster/remove?node={victim}")
    assert answer.status == 202, answer
    cluster.wait(lambda view: view.statuses == dict.fromkeys(NAMES, "active"), what="all three are members")
    wait_copies(cluster, deadline_s=40)
    print(f"\na wiped disk is a new node with all copies {time.monotonic() - began_s:.1f} s after its start")
    wait_settled(cluster, deadline_s=40)
    assert set(every_task(cluster, victim, "")) == set(ids)
    traffic_ends(cluster)
    compare_at_rest(cluster)
