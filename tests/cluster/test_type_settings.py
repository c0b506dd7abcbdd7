"""A node that runs nothing itself, and what is set of types there: defaults, pauses, why a task waits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_tq_worker import SHOP, TqWorker, workers  # noqa: F401 (a fixture)
from tests.support.harness import NodeHttp, NodeProcess, Nodes, until

pytestmark = pytest.mark.cluster
DECLARED = SHOP.replace('@task("add")', '@task("add", max_attempts=7, timeout=50, queue="sums")')
ENVIRONMENT = {"TQ_TEST_BIRTH_GUARD_S": "0.2"}


class _Alone:
    """A node as a cluster of ``TqWorker``."""

    def __init__(self, node: NodeHttp) -> None:
        self.ports = {"node-1": node.http_port}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(DECLARED)
    return tmp_path


@pytest.fixture
def keeper(nodes: Nodes, home: Path) -> NodeProcess:
    node = nodes.start("--handlers", "tests.support.cluster_handlers", "--concurrency", "0", environment=ENVIRONMENT)
    node.wait_ready()
    return node


def kinds(node: NodeHttp, task: str) -> list[tuple[str, str]]:
    return [(one["kind"], one.get("name", "")) for one in node.status(task).get("waiting_for", [])]


def claim(node: NodeHttp, *types: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"worker": "w-9", "types": list(types), "wait": 5, "lease": 5, "limit": 8, **fields}
    answer = node.post("/work/claim", body, deadline_s=20)
    assert answer.status == 200, answer
    return list(answer.json["claims"])


def test_a_node_without_slots_keeps_tasks_and_a_worker_runs_them(
    keeper: NodeHttp,
    home: Path,
    workers: list[TqWorker],  # noqa: F811
) -> None:
    assert [note["code"] for note in keeper.get("/ready").json["notes"]] == ["no_workers"]
    assert keeper.get("/handlers").json == {"handlers": [], "nodes_without": ["node-1"]}
    early = keeper.submit("add", {"a": 1, "b": 2})
    workers.append(TqWorker(home, _Alone(keeper)).connected())  # type: ignore[arg-type]
    assert keeper.status(early, wait_s=20)["result"] == 3
    until(lambda: keeper.get("/types/list").json["types"], what="the worker has announced its types")
    assert [(one["type"], one["set_by"]) for one in keeper.get("/types/list").json["types"]] == [
        ("add", "worker"),
        ("fails", "worker"),
    ]
    put = {"type": "add", "max_attempts": 2}
    assert keeper.post("/types/put", put).status == 200
    ended = keeper.status(keeper.submit("add", {"a": 1, "b": 1}, timeout=9), wait_s=20)
    assert (ended["result"], ended["max_attempts"], ended["timeout"], ended["queue"]) == (2, 2, 9, "sums")


def test_defaults_put_outlive_a_restart_and_are_fixed_at_birth(keeper: NodeProcess, nodes: Nodes) -> None:
    assert keeper.post("/types/put", {"type": "far", "queue": "q", "max_attempts": 9}).status == 200
    early = keeper.submit("far")
    assert keeper.post("/types/put", {"type": "far", "max_attempts": 8}).status == 200
    late = keeper.submit("far")
    assert keeper.terminate() == 0
    node = nodes.start(
        "--handlers", "tests.support.cluster_handlers", "--concurrency", "0",
        http_port=keeper.http_port, environment=ENVIRONMENT,
    )  # fmt: skip
    node.wait_ready()
    last = node.submit("far")
    found = [(row["queue"], row["max_attempts"]) for row in map(node.status, (early, late, last))]
    assert found == [("q", 9), ("default", 8), ("default", 8)]
    assert node.post("/types/delete?type=far").status == 200
    assert node.status(node.submit("far"))["max_attempts"] != 8


def test_a_paused_type_rests_until_its_time_is_over(keeper: NodeHttp) -> None:
    until_s = time.time() + 2.5
    assert keeper.post(f"/tasks/pause?type=far&reason=full&until={until_s}").status == 200
    paused, other = keeper.submit("far"), keeper.submit("near")
    assert [one["task_id"] for one in claim(keeper, "far", "near")] == [other]
    (shown,) = keeper.get("/cluster").json["cluster"]["paused"]
    assert (shown["type"], shown["reason"]) == ("far", "full")
    claims = claim(keeper, "far", wait=10)
    assert [one["task_id"] for one in claims] == [paused]
    assert until_s <= time.time() < until_s + 3
    assert keeper.get("/cluster").json["cluster"]["paused"] == []
    assert keeper.post("/tasks/pause?type=far").status == 200
    again = keeper.submit("far")
    assert claim(keeper, "far", wait=0) == []
    assert keeper.post("/tasks/resume?type=far").status == 200
    assert [one["task_id"] for one in claim(keeper, "far")] == [again]
