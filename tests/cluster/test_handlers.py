"""Who runs what: tasks wait for a node that has their handler, and simulated ones never stand in for real ones (D1, D2)."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import wait_settled
from tests.support.harness import NodeHttp, Nodes, until

pytestmark = pytest.mark.cluster

MakeCluster = Callable[..., Cluster]
GUARD = {"TQ_TEST_BIRTH_GUARD_S": "0.2"}
DEADLINE_S = 30.0
SHOP = """
from tq_node import task

@task("charge_card", max_attempts=7, run="reactor")
async def charge_card(payload, context):
    return f"charged {payload}"
"""
OLD = """
from tq_node import task

@task("a", run="reactor")
async def a(payload, context):
    return "a"
"""
NEW = (
    OLD
    + """
@task("b", run="reactor")
async def b(payload, context):
    return "b"
"""
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    for name, text in (("shop", SHOP), ("old", OLD), ("new", NEW)):
        (folder / f"{name}.py").write_text(text)
    return folder


def notes(node: NodeHttp) -> list[str]:
    return [note["code"] for note in node.get("/ready").json["notes"]]


def kinds(task: dict[str, Any]) -> list[str]:
    return [reason["kind"] for reason in task.get("waiting_for", [])]


def are_without(node: NodeHttp) -> bool:
    """Whether all thirty tasks of type ``b`` wait for a handler; they must be pending."""
    listed = node.get("/tasks/list?scope=cluster&type=b").json["tasks"]
    assert [task["status"] for task in listed] == ["pending"] * 30
    return all(kinds(task) == ["no_handler"] for task in listed)


def whole(cluster: Cluster) -> None:
    cluster.wait_whole(voters=3 if len(cluster.running) > 2 else 1)
    cluster.wait_ready()
    wait_settled(cluster)


def wait_notes(node: NodeHttp, *codes: str) -> None:
    until(lambda: notes(node) == [*codes], deadline_s=DEADLINE_S, what=f"{node} notes {codes}")


def wait_unhandled(node: NodeHttp, task: str) -> None:
    """Asked again where a partition changes hands just then."""

    def says_why() -> bool:
        answer = node.get(f"/tasks/status?id={task}")
        return answer.status == 200 and kinds(answer.json) == ["no_handler"]

    until(says_why, deadline_s=DEADLINE_S, what=f"{task} says why it waits")


def settled(node: NodeHttp, *tasks: str) -> list[dict[str, Any]]:
    """Each as it ended; asked again where a partition changes hands just then."""

    def ended(task: str) -> dict[str, Any]:
        answer = node.get(f"/tasks/status?id={task}&wait=5")
        found: dict[str, Any] = answer.json if answer.status == 200 and "completed_at" in answer.json else {}
        return found

    return [until(partial(ended, task), deadline_s=2 * DEADLINE_S, what=f"{task} has ended") for task in tasks]


class TestStandIns:
    """Real work is never completed by a stand-in."""

    def test_not_after_a_restart_without_handlers(self, nodes: Nodes, home: Path) -> None:
        """D1: a unit without TQ_HANDLERS."""
        node = nodes.start("--handlers", "shop", cwd=home, environment=GUARD)
        assert node.post("/tasks/pause?queue=default").status == 200
        tasks = [node.submit("charge_card", {"eur": 5}) for _ in range(3)]
        assert node.terminate() == 0
        node = nodes.start(cwd=home, http_port=node.http_port)
        assert node.post("/tasks/resume?queue=default").status == 200
        other = node.submit("email", "to whom it may concern")
        assert notes(node) == ["no_handlers"]
        assert node.get("/ready").status == 200
        assert "this node has no handlers" in node.log
        for task in (*tasks, other):
            wait_unhandled(node, task)
        listed = node.get("/tasks/list").json["tasks"]
        assert {task["status"] for task in listed} == {"pending"}
        assert all(kinds(task) == ["no_handler"] for task in listed)
        assert node.get("/handlers").json == {"handlers": [], "nodes_without": ["node-1"]}
        assert node.terminate() == 0
        node = nodes.start("--handlers", "shop", cwd=home, http_port=node.http_port)
        assert [task["result"] for task in settled(node, *tasks)] == ["charged {'eur': 5}"] * 3
        assert notes(node) == []

    def test_nor_on_a_node_that_is_added_in_a_hurry(self, make_cluster: MakeCluster, home: Path) -> None:
        cluster = make_cluster(home=home, own_options=lambda name: ("--handlers", "shop") if name == "node-1" else ())
        cluster.start()
        whole(cluster)
        for number, name in enumerate([*cluster.ports] * 10):
            cluster[name].submit("charge_card", number, id=f"charge-{number}")
        found = settled(cluster["node-2"], *(f"charge-{number}" for number in range(30)))
        assert {task["worker"] for task in found} == {"node-1"}
        assert {task["attempt"] for task in found} == {1}
        assert [task["result"] for task in found] == [f"charged {number}" for number in range(30)]
        assert {name: notes(cluster[name]) for name in cluster.ports} == {
            "node-1": [], "node-2": ["no_handlers"], "node-3": ["no_handlers"]
        }  # fmt: skip
        shown = cluster["node-3"].get("/handlers").json
        assert shown["nodes_without"] == ["node-2", "node-3"]
        assert shown["handlers"] == [
            {"type": "charge_card", "nodes": ["node-1"], "simulated": False, "defaults": {"max_attempts": 7}}
        ]
        # Nor once the one that had them is gone for good, whatever is restarted then.
        cluster["node-1"].kill9()
        waiting = cluster["node-2"].submit("charge_card", 30, id="charge-30")
        cluster["node-3"].terminate()
        cluster.start("node-3")
        cluster["node-3"].wait_ready()
        wait_unhandled(cluster["node-3"], waiting)
        assert notes(cluster["node-3"]) == ["no_handlers"]
        cluster.start("node-1")
        cluster["node-1"].wait_ready()
        assert settled(cluster["node-2"], waiting)[0]["result"] == "charged 30"

    def test_they_stop_at_once_when_a_node_with_real_ones_joins(self, make_cluster: MakeCluster, home: Path) -> None:
        cluster = make_cluster(
            home=home,
            own_options=lambda name: ("--handlers", "shop") if name == "node-2" else ("--concurrency", "2"),
        )
        cluster.start("node-1", "node-3")
        node = cluster["node-1"].wait_ready()
        cluster["node-3"].wait_ready()
        assert node.status(node.submit("anything", 1), wait_s=DEADLINE_S)["result"] == "Task completed: 1"
        assert notes(node) == []
        batch = [{"id": f"report-{n}", "type": "report"} for n in range(100)]
        assert node.post("/tasks/batch", {"tasks": batch}).json["accepted"] == 100
        cluster.start("node-2")
        until(lambda: cluster["node-2"].is_ready, deadline_s=DEADLINE_S, what="node-2 ready")
        for name in ("node-1", "node-3"):
            wait_notes(cluster[name], "no_handlers")
        found = [node.status(f"report-{n}") for n in range(100)]
        assert {task["status"] for task in found} <= {"pending", "completed"}, "what they had begun they don't complete"
        assert any([one["outcome"] for one in task["attempts"]] == ["released"] for task in found)
        for task in found:
            if task["status"] == "pending":
                wait_unhandled(node, task["id"])
        assert settled(node, node.submit("charge_card", 1))[0]["worker"] == "node-2"

    def test_where_nobody_has_any_they_are_what_is_there(self, make_cluster: MakeCluster) -> None:
        cluster = make_cluster(("node-1", "node-2"))
        cluster.start()
        whole(cluster)
        until(lambda: all(notes(cluster[name]) == [] for name in cluster.ports), deadline_s=DEADLINE_S, what="all run")
        for name in cluster.ports:
            node = cluster[name]
            assert node.status(node.submit("email", name), wait_s=DEADLINE_S)["result"] == f"Email sent: {name}"
        shown = cluster["node-2"].get("/handlers").json
        assert {one["type"] for one in shown["handlers"]} == {"*", "email", "image", "report"}
        assert all(one["simulated"] for one in shown["handlers"])

    def test_by_name_they_run_beside_others(self, make_cluster: MakeCluster, home: Path) -> None:
        cluster = make_cluster(
            ("node-1", "node-2"),
            home=home,
            own_options=lambda name: ("--handlers", "shop" if name == "node-2" else "simulated"),
        )
        cluster.start()
        whole(cluster)
        node = cluster["node-2"]
        assert settled(node, node.submit("email", 1))[0]["result"] == "Email sent: 1"
        assert settled(node, node.submit("charge_card", 1))[0]["status"] == "completed"


class TestRollingDeploy:
    def test_a_type_that_only_the_new_nodes_know(self, make_cluster: MakeCluster, home: Path) -> None:
        """D2: of 30 tasks with ids of their own 20 failed where the old nodes led their partitions."""
        deployed = {"node-3"}
        cluster = make_cluster(
            home=home,
            own_options=lambda name: ("--handlers", "new" if name in deployed else "old"),
        )
        cluster.start()
        whole(cluster)
        for at in ("node-1", "node-3"):
            batch = [{"id": f"{at}-{n}", "type": "b"} for n in range(30)]
            assert cluster[at].post("/tasks/batch", {"tasks": batch}).json["accepted"] == 30
        found = settled(cluster["node-2"], *(f"{at}-{n}" for at in ("node-1", "node-3") for n in range(30)))
        assert [task["status"] for task in found] == ["completed"] * 60
        assert {task["worker"] for task in found} == {"node-3"}
        assert {task["attempt"] for task in found} == {1}, "nobody claimed what it can't run"

    def test_they_wait_until_somebody_has_the_handler(self, make_cluster: MakeCluster, home: Path) -> None:
        deployed: set[str] = set()
        cluster = make_cluster(
            ("node-1", "node-2"),
            home=home,
            own_options=lambda name: ("--handlers", "new" if name in deployed else "old"),
        )
        cluster.start()
        whole(cluster)
        names = [f"b-{n}" for n in range(30)]
        batch = [{"id": name, "type": "b", "max_attempts": 1} for name in names]
        assert cluster["node-1"].post("/tasks/batch", {"tasks": batch}).json["accepted"] == 30
        others = [cluster[name].submit("a") for name in cluster.ports]
        assert [task["result"] for task in settled(cluster["node-1"], *others)] == ["a"] * 2, "others pass by"
        for name in cluster.ports:
            # Nodes hear of each other's handlers by and by: until then such a task waits for nothing that is known.
            until(partial(are_without, cluster[name]), deadline_s=DEADLINE_S, what=f"{name} says why they wait")
        deployed.add("node-2")
        assert cluster["node-2"].terminate() == 0
        cluster.start("node-2")
        cluster["node-2"].wait_ready()
        found = settled(cluster["node-1"], *names)
        assert [task["status"] for task in found] == ["completed"] * 30
        assert {task["worker"] for task in found} == {"node-2"}
        assert all("waiting_for" not in task for task in found)

    def test_a_handler_for_all_takes_all(self, make_cluster: MakeCluster, home: Path) -> None:
        (home / "every.py").write_text(
            "from tq_node import task\n@task('*', run='reactor')\nasync def every(p, c): return 'taken'\n"
        )
        cluster = make_cluster(
            ("node-1", "node-2"),
            home=home,
            own_options=lambda name: ("--handlers", "old" if name == "node-1" else "every"),
        )
        cluster.start()
        whole(cluster)
        names = [cluster["node-1"].submit("whatever", id=f"any-{n}") for n in range(20)]
        found = settled(cluster["node-1"], *names)
        assert {task["result"] for task in found} == {"taken"}
        assert {task["worker"] for task in found} == {"node-2"}


class TestGivingUp:
    def test_a_task_fails_once_it_has_waited_for_so_long(self, nodes: Nodes, home: Path) -> None:
        node = nodes.start("--handlers", "old", "--no-handler-after", "1s", cwd=home, environment=GUARD)
        waiting, later = node.submit("b"), node.submit("b", delay=3600)
        found = settled(node, waiting)[0]
        assert (found["status"], found["error"]["type"], found["attempt"]) == ("failed", "no_handler", 0)
        assert found["error"]["message"] == "no node has had a handler for 'b' for 1 s"
        assert node.status(later)["status"] == "scheduled"
        assert settled(node, node.submit("a"))[0]["result"] == "a"
        assert [task["id"] for task in node.get("/tasks/dead").json["tasks"]] == [waiting]


class TestReload:
    def test_new_handlers_without_a_restart(self, nodes: Nodes, home: Path) -> None:
        (home / "mine.py").write_text(OLD)
        node = nodes.start("--handlers", "mine", cwd=home, environment=GUARD)
        waiting = node.submit("b")
        wait_unhandled(node, waiting)
        (home / "mine.py").write_text(NEW + "\n1 / 0\n")
        refused = node.post("/workers/reload")
        assert (refused.status, refused.json["code"]) == (409, "handlers_unusable")
        assert "division by zero" in refused.json["detail"]
        assert settled(node, node.submit("a"))[0]["result"] == "a", "those of before go on"
        (home / "mine.py").write_text(NEW.replace('"a"\n', '"another a"\n').replace('return "a', 'return "a'))
        node.process.send_signal(signal.SIGHUP)
        assert settled(node, waiting)[0]["result"] == "b"
        done = node.post("/workers/reload").json
        assert done == {"success": True, "node": "node-1", "types": ["a", "b"], "added": [], "removed": []}
        assert "handlers were loaded anew: 2 types; new: b; gone: none" in node.log

    def test_worker_processes_are_new_too(self, nodes: Nodes, home: Path) -> None:
        (home / "mine.py").write_text("from tq_node import task\n@task('a')\ndef a(p, c): return 1\n")
        node = nodes.start("--handlers", "mine", cwd=home, environment=GUARD | {"PYTHONDONTWRITEBYTECODE": "1"})
        assert settled(node, node.submit("a"))[0]["result"] == 1
        (home / "mine.py").write_text("from tq_node import task\n@task('a')\ndef a(p, c): return 2\n")
        assert node.post("/workers/reload").status == 200
        assert settled(node, node.submit("a"))[0]["result"] == 2
