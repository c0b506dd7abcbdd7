"""examples/workers: workers in other languages, run against three real nodes, killed, and followed by another."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster
from tests.support.harness import PROJECT, Nodes, until

pytestmark = pytest.mark.cluster
WORKERS = PROJECT / "examples/workers"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed here")
needs_jq = pytest.mark.skipif(
    shutil.which("jq") is None or shutil.which("curl") is None, reason="curl or jq is not installed here"
)
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    made = Cluster(nodes, options=("--handlers", "tests.support.cluster_handlers", "--concurrency", "1"))
    made.start()
    made.wait_whole()
    made.wait_ready()
    yield made
    made.close()
    nodes.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[subprocess.Popen[bytes]] = []

    def begin(*command: str, name: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            made.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, env=os.environ | {"WORKER": name}, start_new_session=True
                )
            )
        return made[-1]

    yield begin
    for process in made:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait(10)


def all_done(cluster: Cluster, tasks: list[str], deadline_s: float) -> list[dict[str, object]]:
    def ended() -> bool:
        return all(cluster["node-1"].status(task)["status"] == "completed" for task in tasks)

    until(ended, deadline_s=deadline_s, what="all tasks are completed")
    return [cluster["node-1"].status(task) for task in tasks]


@needs_node
def test_the_one_for_node_js_processes_a_hundred_dies_and_nothing_is_lost(cluster: Cluster, start: Start) -> None:
    addresses = [f"http://127.0.0.1:{port}" for port in cluster.ports.values()]
    first = start("node", str(WORKERS / "worker.mjs"), *addresses, name="js-1")
    tasks = [cluster["node-1"].submit("greet", f"number {number}") for number in range(100)]
    for number, task in enumerate(all_done(cluster, tasks, 40)):
        assert (task["result"], task["worker"]) == (f"Hello, number {number}!", "js-1")
    slow = [cluster["node-2"].submit("wait", 3) for _ in range(4)]
    until(lambda: all(cluster["node-1"].status(task)["status"] == "processing" for task in slow), what="all run")
    os.killpg(first.pid, signal.SIGKILL)
    second = start("node", str(WORKERS / "worker.mjs"), *addresses, name="js-2")
    for task in all_done(cluster, slow, 60):
        assert task["worker"] == "js-2"
        assert task["attempt"] == 2
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0


@needs_jq
def test_the_one_of_curl_and_jq_does_too(cluster: Cluster, start: Start) -> None:
    address = f"127.0.0.1:{cluster.ports['node-2']}"
    begun = [start("sh", str(WORKERS / "worker.sh"), address, name=f"sh-{number}") for number in range(2)]
    tasks = [cluster["node-1"].submit("greet", f"number {number}") for number in range(50)]
    all_done(cluster, tasks, 60)
    os.killpg(begun[0].pid, signal.SIGKILL)
    more = [cluster["node-3"].submit("greet", f"more {number}") for number in range(50)]
    for number, task in enumerate(all_done(cluster, more, 90)):
        assert task["result"] == f"Hello, more {number}!"
