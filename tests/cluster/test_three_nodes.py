"""The three commands of the contract, in any order: three nodes that are one queue."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import Cluster, View
from tests.cluster.replicated import wait_copies, wait_settled
from tests.support.harness import NodeProcess, Nodes, free_port, group_members, until

pytestmark = pytest.mark.cluster

NAMES = ("node-1", "node-2", "node-3")
WHOLE_S = 60.0
"""Beside whatever else runs here; on an idle machine it is printed to be some seconds."""
"""The birth guard's 2 s are in it."""
ORDERS = list(itertools.permutations(NAMES))
SLOW_ORDERS = [
    pytest.param(order, marks=pytest.mark.long) for order in ORDERS if order != ("node-3", "node-2", "node-1")
]
PAUSES_S = 0.3
COUNT = 1_500
MakeCluster = Callable[..., Cluster]


def assert_whole(cluster: Cluster, view: View) -> None:
    """On each node: three active nodes, three voters, one leader, the same term, and the partitions shared out."""
    assert view.statuses == dict.fromkeys(NAMES, "active")
    assert view.voters == frozenset(NAMES)
    assert view.leader in NAMES
    for name in NAMES:
        assert cluster.view(name) == view
        text = cluster[name].get("/cluster").body.decode()
        assert text.count('"id":"node-') == 3, "scripts count nodes by this"


def wait_even(cluster: Cluster) -> None:
    """Every partition has three copies, in sync, and each node leads at most its share of 64."""
    wait_settled(cluster)
    cluster.wait_ready()


# --- coming up ---
@pytest.mark.parametrize("order", [NAMES[::-1], *SLOW_ORDERS], ids="".join)
def test_three_commands_in_any_order(make_cluster: MakeCluster, order: tuple[str, ...]) -> None:
    cluster = make_cluster(guard_s="")
    for name in order:
        cluster.start(name)
        time.sleep(PAUSES_S)
    began_s = time.monotonic()
    view = cluster.wait_whole()
    seconds = time.monotonic() - began_s
    print(f"\n{', '.join(order)}: whole {seconds:.1f} s after the last one was started")
    assert_whole(cluster, view)
    assert seconds < WHOLE_S
    wait_even(cluster)
    cluster.stop()
    cluster.assert_logs_are_clean()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three commands at once, with the birth guard as it is; one cluster for all tests that leave it whole.

    At its end every node ends in order, and nothing is in the logs.
    """
    nodes = Nodes(tmp_path_factory.mktemp("three"))
    cluster = Cluster(nodes, NAMES, guard_s="")
    try:
        began_s = time.monotonic()
        cluster.start()
        view = cluster.wait_whole()
        seconds = time.monotonic() - began_s
        cluster.wait_ready()
        ready = time.monotonic() - began_s
        wait_even(cluster)
        even = time.monotonic() - began_s
        print(
            f"\nall at once: whole after {seconds:.1f} s, ready after {ready:.1f} s, evenly shared after {even:.1f} s"
        )
        assert_whole(cluster, view)
        assert seconds < WHOLE_S
        yield cluster
        cluster.stop()
        cluster.assert_logs_are_clean()
        assert not nodes.holds()
    finally:
        cluster.close()
        nodes.close()


def test_three_commands_at_once(lasting: Cluster) -> None:
    assert_whole(lasting, lasting.wait_whole())
    assert sorted(path.name for path in lasting.home.iterdir()) == ["data"]


def test_the_variables_of_the_original_example(nodes: Nodes, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    ports = [free_port() for _ in NAMES]
    began_s = time.monotonic()
    started: list[NodeProcess] = []
    for name, port in zip(NAMES, ports, strict=True):
        environment = {"NODE_ID": name, "HTTP_ADDR": f":{port}"}
        if started:
            environment["JOIN_ADDR"] = f"localhost:{ports[0]}"
        started.append(nodes.start(cwd=home, http_port=port, say_http=False, environment=environment, wait=False))

    def members(node: NodeProcess, port: int) -> dict[str, Any]:
        cluster = node.get("/cluster", port=port).json["cluster"]
        assert isinstance(cluster, dict)
        return cluster

    for node in started:
        node.wait_ready()
    until(
        lambda: all(
            Counter((one["status"], one["voter"]) for one in members(node, node.http_port)["nodes"])
            == {("active", True): 3}
            for node in started
        ),
        what="three voters",
    )
    seconds = time.monotonic() - began_s
    print(f"\nby the environment: whole and ready after {seconds:.1f} s")
    assert seconds < WHOLE_S
    task_id = started[0].submit()
    shown = [members(node, node.http_port + more) for node in started for more in (0, 2_000)]
    assert len({(one["leader"], one["term"], one["id"]) for one in shown}) == 1
    for node in started:
        assert node.get(f"/tasks/status?id={task_id}", port=node.http_port + 2_000).json["id"] == task_id
    for node in started:
        assert node.terminate() == 0
        node.assert_log_is_clean()


# --- one queue ---
def test_batches_repeats_and_sums(lasting: Cluster) -> None:
    """The first that submits anything: it counts all that there is."""
    wait_even(lasting)
    one, two, three = (lasting[name] for name in NAMES)
    ids = [f"own-{number}" for number in range(COUNT)]
    batch = {"tasks": [{"type": "noop", "id": task_id, "delay": 3600} for task_id in ids]}
    batch["tasks"].insert(150, {"type": ""})
    first = one.post("/tasks/batch", batch).json
    assert (first["accepted"], first["rejected"]) == (COUNT, 1)
    results = first["results"]
    assert [result.get("task_id") for result in results] == [*ids[:150], None, *ids[150:]]
    assert "error" in results[150]
    until(
        lambda: [node.get("/tasks/stats").json["stats"]["total"] for node in (one, two, three)] == [COUNT] * 3,
        what="copies",
    )
    lists = [node.get("/tasks/list?limit=10000").json["tasks"] for node in (one, two, three)]
    for listed in lists:
        assert sorted(task["id"] for task in listed) == sorted(ids), "each node lists what it has a copy of"
        assert len({task["partition"] for task in listed}) == 64, "so many reach every partition"
    roles = Counter((task["id"], task["role"]) for listed in lists for task in listed)
    assert roles == {(task_id, role): copies for task_id in ids for role, copies in (("primary", 1), ("replica", 2))}
    for task in lists[0][::50]:
        assert two.status(task["id"])["partition"] == three.status(task["id"])["partition"] == task["partition"]

    # The same batch and single ones again, elsewhere: the same tasks. Other content is a conflict, wherever it is asked.
    assert two.post("/tasks/batch", batch).json["accepted"] == COUNT
    for task_id in ids[:12]:
        same = three.post("/tasks/submit", {"type": "noop", "id": task_id, "delay": 3600})
        assert (same.status, same.json["task_id"], same.headers["idempotency-replayed"]) == (200, task_id, "true")
        other = two.post("/tasks/submit", {"type": "other", "id": task_id})
        assert (other.status, other.json["code"]) == (409, "id_conflict")

    sums = [node.get("/tasks/stats?scope=cluster").json["stats"] for node in (one, two, three)]
    assert sums[0] == sums[1] == sums[2]
    assert (sums[0]["total"], sums[0]["scheduled"]) == (COUNT, COUNT)
    alone = [node.get("/tasks/stats").json for node in (one, two, three)]
    assert [found["stats"]["total"] for found in alone] == [COUNT] * 3, "a copy of each on each"
    assert sum(found["primary"]["total"] for found in alone) == COUNT
    assert sum(found["replica"]["total"] for found in alone) == 2 * COUNT


def test_every_call_through_every_node(lasting: Cluster) -> None:
    wait_even(lasting)
    one, two, three = (lasting[name] for name in NAMES)
    primaries = set()
    for node in (one, two, three):
        for _ in range(10):
            answer = node.post("/tasks/submit", {"type": "noop", "delay": 3600})
            assert answer.status == 201
            task_id = answer.json["task_id"]
            assert answer.headers["location"].endswith(task_id)
            primaries.add(answer.json["node"])
            for asked in (one, two, three):
                found = asked.status(task_id)
                assert (found["status"], found["node"]) == ("scheduled", answer.json["node"])
    assert primaries == set(NAMES)

    # Tasks that run, waited for elsewhere.
    pairs = list(itertools.permutations((one, two, three), 2))
    waited = [(via.submit("email", "a@b.c"), asked) for via, asked in pairs]
    for task_id, asked in waited:
        done = asked.status(task_id, wait_s=10)
        assert (done["status"], done["result"]) == ("completed", "Email sent: a@b.c")
        assert done["worker"] == done["node"]
    assert one.get("/tasks/status?id=never-was").status == 404

    # Cancel and retry through another node than the one that took it in; one that runs, too.
    runs = [(via.submit("report"), asked) for via, asked in pairs]
    waits = [(via.submit("email", delay=3600), asked) for via, asked in pairs]
    until(lambda: all(one.status(task_id)["status"] == "processing" for task_id, _ in runs), what="they run")
    for (task_id, asked), (via, _) in zip(runs + waits, pairs + pairs, strict=True):
        cancelled = asked.post(f"/tasks/cancel?id={task_id}")
        assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
        again = via.post(f"/tasks/cancel?id={task_id}")
        assert (again.status, again.json["code"]) == (409, "already_final")
    for task_id, asked in waits:
        assert asked.post(f"/tasks/retry?id={task_id}").status == 200
    assert {two.status(task_id, wait_s=10)["status"] for task_id, _ in waits} == {"completed"}


def test_a_queue_is_paused_everywhere(lasting: Cluster) -> None:
    wait_even(lasting)
    one, two, three = (lasting[name] for name in NAMES)
    paused = two.post("/tasks/pause?queue=default")
    assert (paused.status, paused.json["status"]) == (200, "paused")
    ids = [node.submit("quick") for node in (one, two, three) for _ in range(10)]
    assert len({one.status(task_id)["node"] for task_id in ids}) == 3
    other = [one.submit("email", queue="other") for _ in range(3)]
    assert all(three.status(task_id, wait_s=10)["status"] == "completed" for task_id in other)
    assert {one.status(task_id)["status"] for task_id in ids} == {"pending"}, "on no node did one of them start"
    assert three.post("/tasks/resume?queue=default").json["status"] == "active"
    assert {two.status(task_id, wait_s=20)["status"] for task_id in ids} == {"completed"}


# --- ends and new starts ---
def test_a_node_ends_in_order_and_all_of_them_come_back(lasting: Cluster) -> None:
    wait_even(lasting)
    ids = [lasting["node-1"].submit("noop", number, delay=3600) for number in range(60)]
    before = lasting.wait_whole()
    partitions = {task_id: lasting["node-1"].status(task_id)["partition"] for task_id in ids}
    epochs = {one["partition"]: one["epoch"] for one in lasting.partitions("node-1")}
    for name in NAMES:
        pid = lasting[name].pid
        assert lasting[name].terminate() == 0, lasting[name].log_tail()
        assert group_members(pid) == []
        kept = {path.name for path in lasting.data(name).iterdir()}
        assert kept <= {"lock", "taskqueue.sqlite3", "workers.lock"}, "nothing but the store"
    assert sorted(path.name for path in lasting.home.iterdir()) == ["data"]
    lasting.assert_logs_are_clean()

    began_s = time.monotonic()
    lasting.start("node-3", "node-1", "node-2")
    after = lasting.wait_whole()
    lasting.wait_ready()
    print(f"\nall three again: whole and ready after {time.monotonic() - began_s:.1f} s")
    assert (after.cluster_id, after.statuses, after.voters) == (before.cluster_id, before.statuses, before.voters)
    assert after.term > before.term
    wait_even(lasting)
    found = {task_id: lasting["node-2"].status(task_id) for task_id in ids}
    assert {task_id: task["partition"] for task_id, task in found.items()} == partitions
    assert {task["status"] for task in found.values()} == {"scheduled"}
    assert all(one["epoch"] > epochs[one["partition"]] for one in lasting.partitions("node-1")), "in new epochs (R2)"


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)])
def test_one_node_restarts_while_the_others_serve(lasting: Cluster, count: int) -> None:
    """Others lead its partitions meanwhile, all tasks are there, and it leads its share again once it is back."""
    wait_even(lasting)
    # A task without an id lands in a partition of the node that takes it in.
    ids = [lasting[NAMES[number % 3]].submit("noop", number, delay=3600) for number in range(60)]
    leader = lasting.leader()
    for name in (leader, *lasting.others(leader))[:count]:
        lasting.stop(name)
        asked = lasting.others(name)[0]
        rest = set(lasting.others(name))
        lasting.wait(lambda view, rest=rest: view.leader in rest, names=rest, what="a leader among the others")  # type: ignore[misc]
        lasting.wait_gone(name)
        wait_copies(lasting)
        shown = [lasting[asked].status(task_id) for task_id in ids]
        assert {task["status"] for task in shown} == {"scheduled"}
        assert {task["node"] for task in shown} == rest
        assert lasting[asked].status(lasting[asked].submit("noop"), wait_s=10)["status"] == "completed", "and they work"
        lasting.start(name)
        lasting.wait_whole()
        wait_even(lasting)
        assert all(lasting[asked].status(task_id)["id"] == task_id for task_id in ids)
