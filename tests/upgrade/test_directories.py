"""N opens what N - 1 left, and what every earlier release left: real nodes on recorded data directories (``releases/``)."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.replicated import (
    HARM,
    NAMES,
    compare_at_rest,
    every_task,
    partitions_by_primary,
    wait_copies,
)
from tests.support.at_rest import copies_at_rest
from tests.support.harness import EXIT_S, HTTP_S, Answer, NodeHttp, Nodes, clean_environment, until
from tests.upgrade.versions import HANDLERS, HERE, Recorded, VersionedCluster, every_recorded
from tq_node.store.sqlite.open_database import DATABASE_NAME
from tq_node.store.sqlite.upgrade import load_steps

pytestmark = pytest.mark.cluster

DEADLINE_S = 90.0
FAR_RUN_AT = "2036-01-01T00:00:00.000000Z"
WAIT_S = 60.0
"""As long as a node lets a caller wait."""
FAILS = r"attempt \d+ of task \S+ \((fails|refused)\) failed"
"""What is due by now, and fails as it did when it was recorded."""
KEEP = ("--retention", "87600h", "--dedupe-window", "87600h")
"""What was recorded gets older every day; it is not to be purged for that. The longest that may be said: ten years."""
MOVING_ON = ("node", "role", "age", "waiting_for")
"""Who is primary is decided anew, and why a task waits is seen anew by the nodes that are up."""
*OLDER, LAST = every_recorded()
EACH = [*(pytest.param(recorded, marks=pytest.mark.long) for recorded in OLDER), LAST]
"""The last release in make test, those before it in make long."""
Open = Callable[..., VersionedCluster]


@pytest.fixture
def opened(nodes: Nodes, tmp_path: Path) -> Iterator[Open]:
    """Three nodes of today on one recorded cluster's directories, whole and ready."""
    made: list[VersionedCluster] = []

    def open_them(recorded: Recorded, which: str, *options: str) -> VersionedCluster:
        home = recorded.unpack(which, tmp_path / "home")
        cluster = VersionedCluster(
            nodes, home=home, options=(*KEEP, *options), recorded=recorded.manifest["peer_ports"]
        )
        made.append(cluster)
        cluster.start()
        cluster.wait_ready(DEADLINE_S)
        cluster.wait(
            lambda view: set(view.statuses) == set(NAMES) and "down" not in view.statuses.values(),
            deadline_s=DEADLINE_S,
            what="all three are back",
        )
        return cluster

    try:
        yield open_them
    finally:
        for cluster in made:
            cluster.close()


def comparable(task: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in task.items() if key not in MOVING_ON}


def asked(node: NodeHttp, method: str, path: str, body: object = None, *, deadline_s: float = HTTP_S) -> Answer:
    """An answer that is not 503: as a client does, ask again. Primaries may change right after a start."""

    said: list[Answer] = []

    def is_answered() -> bool:
        said[:] = [node.request(method, path, body, deadline_s=deadline_s)]
        return said[0].status != HTTPStatus.SERVICE_UNAVAILABLE

    until(is_answered, deadline_s=WAIT_S, what=f"{method} {path} is answered")
    return said[0]


def status_of(node: NodeHttp, task_id: str, *, wait_s: float = 0) -> Any:
    answer = asked(node, "GET", f"/tasks/status?id={task_id}&wait={wait_s:g}", deadline_s=wait_s + HTTP_S)
    assert answer.status == HTTPStatus.OK, answer
    return answer.json


def reasons(task: dict[str, Any]) -> set[str]:
    return {reason["kind"] for reason in task.get("waiting_for", ())}


def is_over(was: dict[str, Any]) -> bool:
    return was["status"] in ("completed", "failed", "cancelled")


def is_due(was: dict[str, Any]) -> bool:
    """Whether a task that was scheduled when it was recorded is not any more: on some day each of them is due."""
    return was["status"] == "scheduled" and datetime.fromisoformat(was["run_at"]) <= datetime.now(UTC)


def assert_it_went_on(task: dict[str, Any], was: dict[str, Any]) -> None:
    """What is due runs: the attempts that were recorded stay, and another one follows."""
    assert is_over(task), task
    assert task["attempts"][: len(was["attempts"])] == was["attempts"]
    assert len(task["attempts"]) > len(was["attempts"])
    same = ("id", "type", "payload", "queue", "priority", "created_at", "max_attempts")
    assert {key: task.get(key) for key in same} == {key: was.get(key) for key in same}


@pytest.mark.parametrize("recorded", EACH, ids=repr)
def test_every_task_is_there_as_it_was_and_those_that_are_not_over_end(recorded: Recorded, opened: Open) -> None:
    known = recorded.manifest["states"]
    cluster = opened(recorded, "states")
    node = cluster["node-1"]
    expected = {*known["tasks"], *known["burst"]}
    # A list of the whole cluster lacks the tasks of a partition that changes hands just then, and just now all have begun.
    until(lambda: every_task(cluster).keys() >= expected, deadline_s=WAIT_S, what="every task is listed")
    unanswered = every_task(cluster).keys() - expected
    assert all(task_id.startswith("burst-") for task_id in unanswered), "the nodes were killed before they could answer"
    running = [task_id for task_id, was in known["tasks"].items() if was["status"] == "processing"]
    assert running
    due = [task_id for task_id, was in known["tasks"].items() if is_due(was)]
    for task_id, was in known["tasks"].items():
        if task_id not in running and task_id not in due:
            assert comparable(status_of(node, task_id)) == comparable(was), task_id
    # Tombstones, the horizon, and the paused queue are of the partitions and of the table.
    for task_id in known["purged"]:
        assert asked(node, "GET", f"/tasks/status?id={task_id}").status == 410
        assert asked(node, "POST", "/tasks/submit", {"id": task_id, "type": "quick", "payload": "other"}).status == 409
    for task_id in known["forgotten"]:
        answer = asked(node, "POST", "/tasks/submit", {"id": task_id, "type": "quick"})
        assert (answer.status, answer.json["code"]) == (409, "id_too_old"), "the horizon has not gone back"
    done = {"id": "done-0", "type": "quick", "payload": {"n": 0}, "tags": known["tasks"]["done-0"]["tags"]}
    again = asked(node, "POST", "/tasks/submit", done)
    assert (again.status, again.json["status"]) == (200, "completed"), "the same content, by the hash that was kept"
    # What is not over goes on: attempts of processes that are gone, tasks that waited, a dead letter that is sent back.
    for queue in known["paused"]:
        assert asked(node, "POST", f"/tasks/resume?queue={queue}").status == 200
    assert asked(node, "POST", "/tasks/retry?id=refused-0").status == 200
    for task_id in due:
        assert_it_went_on(status_of(node, task_id, wait_s=WAIT_S), known["tasks"][task_id])
    (later, *_) = [
        task_id for task_id, was in known["tasks"].items() if was["run_at"] == FAR_RUN_AT and not is_over(was)
    ]
    if later not in due:
        assert asked(node, "POST", f"/tasks/cancel?id={later}").status == 200
        assert status_of(node, later)["status"] == "cancelled"
    pending = {task_id: reasons(was) for task_id, was in known["tasks"].items() if was["status"] == "pending"}
    waiting = {task_id: why for task_id, why in pending.items() if why}
    until(
        lambda: {task_id: reasons(status_of(node, task_id)) for task_id in waiting} == waiting,
        deadline_s=WAIT_S,
        what="they wait for what they waited for",
    )
    for task_id in [*known["burst"], *running, *(task_id for task_id, why in pending.items() if not why)]:
        task = status_of(node, task_id, wait_s=WAIT_S)
        assert task["status"] == "completed", task
        if task_id in running:
            was = known["tasks"][task_id]
            assert task["attempt"] == was["attempt"] + 1
            assert task["attempts"][: len(was["attempts"])] == was["attempts"]
            assert task["attempts"][-2]["outcome"] in ("lost", "released")
    assert status_of(node, "refused-0", wait_s=WAIT_S)["status"] == "failed"
    new = cluster["node-2"].submit("quick", "of today")
    assert status_of(cluster["node-3"], new, wait_s=WAIT_S)["result"] == "of today"
    _end(cluster, copies=3)


@pytest.mark.parametrize("recorded", EACH, ids=repr)
def test_a_move_that_was_under_way_is_carried_on(recorded: Recorded, opened: Open) -> None:
    known = recorded.manifest["moving"]
    assert known["partitions"], "nothing was on its way"
    cluster = opened(recorded, "moving")
    gone = known["drained"]

    def moved() -> bool:
        shown = partitions_by_primary(cluster).values()
        return len(shown) == 6 and not any(
            gone in (one["primary"], *one["replicas"]) or one["adding"] or one["removing"] or len(one["in_sync"]) != 2
            for one in shown
        )

    until(moved, deadline_s=DEADLINE_S, what=f"nothing left on {gone}, two copies in sync elsewhere")
    tasks = every_task(cluster)
    assert sorted(tasks) == sorted(known["tasks"])
    assert {task["status"] for task in tasks.values()} == {"completed"}
    assert status_of(cluster["node-3"], "big-0")["result"].startswith("0xxx"), "any node answers"
    _end(cluster, copies=2, names=tuple(name for name in NAMES if name != gone))


def _end(cluster: VersionedCluster, copies: int, names: tuple[str, ...] = NAMES) -> None:
    """All tasks that can end have; copies are equal; nothing was complained of; the files are of today."""
    wait_copies(cluster, copies, deadline_s=DEADLINE_S, partition_count=len(cluster.partitions()))
    until(
        lambda: all(
            one["last_sequence"] == one["committed_sequence"] for one in partitions_by_primary(cluster).values()
        ),
        deadline_s=DEADLINE_S,
        what="everything committed",
    )
    cluster.stop()
    compare_at_rest(cluster, copies, exact=False, names=names)
    for name in NAMES:
        with closing(sqlite3.connect(cluster.data(name) / DATABASE_NAME)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (load_steps()[-1].version,)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    cluster.assert_logs_are_clean(rf"{HARM}|{FAILS}")


@pytest.mark.parametrize("recorded", EACH, ids=repr)
def test_a_snapshot_of_it_becomes_a_cluster_of_today(recorded: Recorded, nodes: Nodes, tmp_path: Path) -> None:
    known = recorded.manifest["states"]["tasks"]
    home = recorded.unpack("snapshot", tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-m", "tq_node.restore", "--node-id", "node-1", home / "node-1.sqlite3"],
        cwd=home, env=clean_environment(), capture_output=True, text=True, timeout=EXIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    (home / f"{HANDLERS}.py").write_bytes((HERE / "handlers.py").read_bytes())
    node = nodes.start("--node-id", "node-1", "--handlers", HANDLERS, *KEEP, cwd=home)
    for task_id, was in known.items():
        if was["status"] in ("completed", "failed", "cancelled"):
            found = status_of(node, task_id)
            assert comparable(found) == comparable(was), task_id
    for task_id, was in known.items():
        if was["status"] == "processing":
            assert status_of(node, task_id, wait_s=WAIT_S)["status"] == "completed"
    assert node.terminate() == 0
    assert sum(copy.rows for copy in copies_at_rest(home / "data" / "node-1").values()) == len(known)
