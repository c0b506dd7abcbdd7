"""kill -9 at any moment, under load: nothing acknowledged is lost, everything ends, results are of attempts that ran."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import random
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import NodeProcess, Nodes, until

pytestmark = pytest.mark.cluster

ROUNDS = [2, pytest.param(4, marks=pytest.mark.long), pytest.param(20, marks=pytest.mark.long)]
HANDLERS = "tests.support.handlers"


class Load(threading.Thread):
    """One client: submits as fast as it is answered, singles and batches, and remembers what was acknowledged."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__(daemon=True)
        self.number, self.port = number, port
        self.acknowledged: dict[str, str] = {}
        self.unknown: set[str] = set()
        self.over = threading.Event()
        self.random = random.Random(number)

    def run(self) -> None:
        serial = 0
        while not self.over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                while not self.over.is_set():
                    serial += 1
                    self._one(connection, serial)
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)  # a client pauses before it tries again
            finally:
                connection.close()

    def _one(self, connection: http.client.HTTPConnection, serial: int) -> None:
        kind = self.random.choice(["noop", "work", "work-async", "flaky"])
        ids = [f"own-{self.number}-{serial}-{n}" for n in range(self.random.choice([1, 1, 1, 25]))]
        tasks = [{"type": kind, "payload": 0.01, "id": task_id} for task_id in ids]
        path, body = ("/tasks/submit", tasks[0]) if len(tasks) == 1 else ("/tasks/batch", {"tasks": tasks})
        self.unknown.update(ids)
        connection.request("POST", path, json.dumps(body).encode())
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status in (200, 201):
            results = answer.get("results", [answer])
            for result in results:
                if "task_id" in result:
                    self.acknowledged[result["task_id"]] = kind
                    self.unknown.discard(result["task_id"])
        else:
            time.sleep(0.05)  # a client that was refused pauses


def start(nodes: Nodes, ledger: Path, port: int | None = None) -> NodeProcess:
    return nodes.start(
        "--node-id", "n", "--handlers", HANDLERS, http_port=port, environment={"TEST_LEDGER": str(ledger)}
    )


def every_task(node: NodeProcess) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    cursor = ""
    while True:
        page = node.get(f"/tasks/list?limit=10000{cursor}", deadline_s=60).json
        tasks |= {found["id"]: found for found in page["tasks"]}
        if page["next"] is None:
            return tasks
        cursor = f"&cursor={page['next']}"


def open_tasks(node: NodeProcess) -> int:
    stats = node.get("/tasks/stats").json["stats"]
    return int(stats["pending"] + stats["processing"] + stats["scheduled"])


@pytest.mark.parametrize("rounds", ROUNDS)
def test_rounds_under_load(nodes: Nodes, tmp_path: Path, rounds: int) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    rolls = random.Random(20)
    node = start(nodes, ledger)
    port = node.http_port
    clients = [Load(number, port) for number in range(4)]
    for client in clients:
        client.start()
    for _ in range(rounds):
        time.sleep(rolls.uniform(0.05, 0.5))
        node.kill9()
        node.assert_log_is_clean()
        node = start(nodes, ledger, port)
    until(lambda: sum(len(client.acknowledged) for client in clients) > 100, deadline_s=60, what="the load is one")
    for client in clients:
        client.over.set()
        client.join(60)
    acknowledged = {task_id for client in clients for task_id in client.acknowledged}
    unknown = {task_id for client in clients for task_id in client.unknown}
    until(lambda: open_tasks(node) == 0, deadline_s=120, what="every accepted task ends (P6)")
    tasks = every_task(node)
    assert acknowledged <= set(tasks), "acknowledged and lost (P1)"
    assert set(tasks) <= acknowledged | unknown, "nobody asked for these"
    ran = set(ledger.read_text().splitlines())
    for found in tasks.values():
        assert found["status"] == "completed" or found["error"]["type"] == "attempts_lost", found
        if found["type"] != "noop" and found["status"] == "completed":
            result = found["result"]
            line = f"{result['id']} {result['attempt']} {result['token'][0]}.{result['token'][1]}"
            assert result["id"] == found["id"]
            assert line in ran, "a result of an attempt that never ran"
        # Every start is in the record: it was committed before the worker ran.
        starts = {(line.split()[1]) for line in ran if line.split()[0] == found["id"]}
        assert {int(attempt) for attempt in starts} <= {attempt["attempt"] for attempt in found["attempts"]}
    lost = sum(a["outcome"] == "lost" for found in tasks.values() for a in found["attempts"])
    print(f"{rounds} kills, {len(tasks)} tasks, {len(acknowledged)} acknowledged, {lost} attempts lost, none missing")
    assert node.terminate() == 0
    node.assert_log_is_clean()


@pytest.mark.skipif(not os.path.exists("/usr/bin/strace"), reason="strace is not installed")
def test_each_acknowledged_submit_is_synced(nodes: Nodes, tmp_path: Path) -> None:
    node = start(nodes, tmp_path / "ledger")
    trace = tmp_path / "trace"
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", str(trace), "-p", str(node.pid)],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(trace.exists, what="strace has attached")
        time.sleep(0.5)  # strace says nothing when it has attached to every thread
        before = trace.read_text().count("sync(")
        for number in range(50):
            # In a queue that is paused nothing but the submit itself is written.
            node.submit("noop", number, delay=3600)
        after = trace.read_text().count("sync(")
    finally:
        tracer.terminate()
        tracer.wait(10)
    assert after - before >= 50, f"{after - before} syncs for 50 acknowledged submits, one after the other"


def test_the_workers_lock_is_held_from_the_start(nodes: Nodes, tmp_path: Path) -> None:
    """Whoever starts after a kill -9 must be able to tell that a worker process of the last start still lives."""
    node = start(nodes, tmp_path / "ledger")
    with (nodes.directory / "data/n/workers.lock").open("r+b") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert node.terminate() == 0


def test_a_poison_task_becomes_a_dead_letter(nodes: Nodes, tmp_path: Path) -> None:
    """F31: it kills its node each time it starts; three lost attempts, then it is left alone."""
    node = start(nodes, tmp_path / "ledger")
    bystander = node.submit("work", 0.0, delay=1)
    # A moment later: else it may kill the node before the answer is out.
    task_id = node.submit("poison", 0, delay=0.5)
    for _ in range(3):
        node.wait()
        node = start(nodes, tmp_path / "ledger", node.http_port)
    found = node.status(task_id, wait_s=10)
    assert (found["status"], found["error"]["type"]) == ("failed", "attempts_lost")
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["lost"] * 3
    assert found["id"] in [dead["id"] for dead in node.get("/tasks/dead").json["tasks"]]
    assert node.status(bystander, wait_s=10)["status"] == "completed"
    assert node.terminate() == 0
