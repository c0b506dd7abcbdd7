"""``tq-worker``, as an operator starts it, at three real nodes that run nothing themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster, shared_cluster
from tests.cluster.replicated import HANDLERS, MakeCluster, started
from tests.support.harness import PROJECT, clean_environment, free_port, until
from tq_node.remote_worker.options import read_options

pytestmark = pytest.mark.cluster
SHOP = """
import asyncio, logging, os, time
from tq_node import Retry, task

@task("add")
def add(payload, context):
    logging.getLogger("shop").info("adds %s", payload)
    context.progress(0.5, "half")
    return payload["a"] + payload["b"]

@task("nap")
async def nap(payload, context):
    await asyncio.sleep(payload)
    return os.getpid()

@task("fails", max_attempts=2, backoff=0.05)
def fails(payload, context):
    raise ValueError(f"attempt {context.attempt}")

@task("work")
def work(payload, context):
    for _ in range(600):
        if context.cancelled:
            return "stopped"
        time.sleep(0.1)
"""
DEADLINE_S = 20.0
IDLE = (*HANDLERS, "--concurrency", "1")
"""Nodes with other handlers than the workers."""


class TqWorker:
    def __init__(self, home: Path, cluster: Cluster, *options: str, name: str = "w-1") -> None:
        self.status_port = free_port()
        self.home = home
        addresses = ",".join(f"localhost:{port}" for port in cluster.ports.values())
        self.log = home / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "tq_node.remote_worker", "--handlers", "shop", "--name", name, "--concurrency", "4",
                    "--metrics", str(self.status_port), *options, addresses,
                ],
                cwd=home, env=clean_environment(PYTHONPATH=str(PROJECT)), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}/{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def is_connected(self) -> bool:
        try:
            return "taskqueue_worker_connected 1" in self.page("metrics")
        except OSError:
            return False

    def connected(self) -> TqWorker:
        until(self.is_connected, deadline_s=DEADLINE_S, what=f"the worker is connected: {self.log.read_text()}")
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(10)


@pytest.fixture
def workers() -> Iterator[list[TqWorker]]:
    made: list[TqWorker] = []
    yield made
    for worker in made:
        worker.kill()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with shared_cluster(tmp_path_factory.mktemp("nodes"), *IDLE) as made:
        yield made


def test_it_runs_handlers_of_both_kinds_and_ends_in_order(
    cluster: Cluster, home: Path, workers: list[TqWorker]
) -> None:
    workers.append(TqWorker(home, cluster).connected())
    added = [cluster[name].submit("add", {"a": number, "b": 1}) for number, name in enumerate(cluster.ports)]
    naps = [cluster["node-1"].submit("nap", 0.3) for _ in range(4)]
    failed = cluster["node-2"].submit("fails", max_attempts=2, backoff=0.05)
    for number, task in enumerate(added):
        ended = cluster["node-3"].status(task, wait_s=DEADLINE_S)
        assert (ended["status"], ended["result"], ended["worker"]) == ("completed", number + 1, "w-1")
        assert ended["progress"] == {"fraction": 0.5, "note": "half"}
        assert [line["line"] for line in ended["log"]] == [f"adds {{'a': {number}, 'b': 1}}"]
    assert len({cluster["node-1"].status(task, wait_s=DEADLINE_S)["result"] for task in naps}) == 1
    ended = cluster["node-1"].status(failed, wait_s=DEADLINE_S)
    assert (ended["status"], ended["error"]["type"], len(ended["attempts"])) == ("failed", "ValueError", 2)
    assert "in fails" in ended["error"]["traceback"]
    long = cluster["node-1"].submit("nap", 2)
    # Claimed alone it would be given back.
    until(lambda: "taskqueue_worker_running 1" in workers[0].page("metrics"), deadline_s=DEADLINE_S, what="it runs")
    assert workers[0].end() == 0
    assert cluster["node-1"].status(long, wait_s=1)["status"] == "completed", "handlers may end"
    assert "Traceback" not in workers[0].log.read_text().replace("attempt_traceback", "")


def test_what_it_can_not_end_in_time_is_given_back(cluster: Cluster, home: Path, workers: list[TqWorker]) -> None:
    workers.append(TqWorker(home, cluster, "--stop-timeout", "0.5s").connected())
    task = cluster["node-1"].submit("work")
    until(lambda: cluster["node-1"].status(task)["status"] == "processing", deadline_s=DEADLINE_S, what="it runs")
    assert workers[0].end() == 0
    row = cluster["node-2"].status(task)
    assert (row["status"], [one["outcome"] for one in row["attempts"]]) == ("pending", ["released"])
    assert cluster["node-1"].post(f"/tasks/cancel?id={task}").status == 200


def test_a_cancel_reaches_the_handler(cluster: Cluster, home: Path, workers: list[TqWorker]) -> None:
    workers.append(TqWorker(home, cluster).connected())
    task = cluster["node-1"].submit("work")
    until(lambda: cluster["node-1"].status(task)["status"] == "processing", deadline_s=DEADLINE_S, what="it runs")
    assert cluster["node-2"].post(f"/tasks/cancel?id={task}").status == 200
    until(lambda: "taskqueue_worker_running 0" in workers[0].page("metrics"), deadline_s=DEADLINE_S, what="it is ended")


@pytest.mark.long
def test_killed_it_loses_nothing_and_another_goes_on(cluster: Cluster, home: Path, workers: list[TqWorker]) -> None:
    workers.append(TqWorker(home, cluster, "--lease", "5").connected())
    tasks = [cluster["node-1"].submit("nap", 1) for _ in range(4)]
    until(
        lambda: all(cluster["node-1"].status(task)["status"] == "processing" for task in tasks),
        deadline_s=DEADLINE_S, what="all run",
    )  # fmt: skip
    workers[0].kill()
    workers.append(TqWorker(home, cluster, name="w-2").connected())
    for task in tasks:
        ended = cluster["node-2"].status(task, wait_s=DEADLINE_S)
        assert (ended["status"], ended["worker"]) == ("completed", "w-2")
        assert [one["outcome"] for one in ended["attempts"]] == ["lost", "completed"]


@pytest.mark.long
def test_it_goes_on_at_another_node(make_cluster: MakeCluster, home: Path, workers: list[TqWorker]) -> None:
    cluster = started(make_cluster, more=("--concurrency", "1"))
    workers.append(TqWorker(home, cluster).connected())
    tasks = [cluster["node-1"].submit("nap", 3) for _ in range(4)]
    until(
        lambda: all(cluster["node-1"].status(task)["status"] == "processing" for task in tasks),
        deadline_s=DEADLINE_S, what="all run",
    )  # fmt: skip
    cluster["node-3"].kill9()
    for task in tasks:
        ended = cluster["node-1"].status(task, wait_s=DEADLINE_S)
        assert (ended["status"], ended["attempt"]) == ("completed", 1)
    more = cluster["node-2"].submit("add", {"a": 1, "b": 1})
    assert cluster["node-1"].status(more, wait_s=DEADLINE_S)["result"] == 2


def test_operators_stop_it(cluster: Cluster, home: Path, workers: list[TqWorker]) -> None:
    workers.append(TqWorker(home, cluster, name="w-stopped").connected())
    assert cluster["node-1"].post("/workers/stop?worker=w-stopped").status == 200
    assert workers[0].process.wait(20) == 0


def test_watch_loads_changed_handlers(cluster: Cluster, home: Path, workers: list[TqWorker]) -> None:
    workers.append(TqWorker(home, cluster, "--watch").connected())
    (home / "shop.py").write_text(SHOP.replace('payload["a"] + payload["b"]', '"changed"'))
    until(lambda: "handlers were loaded anew" in workers[0].log.read_text(), deadline_s=DEADLINE_S, what="loaded anew")
    task = cluster["node-1"].submit("add", {"a": 1, "b": 1})
    assert cluster["node-1"].status(task, wait_s=DEADLINE_S)["result"] == "changed"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--handlers is missing"),
        (["--handlers", "shop", "--queues", "a:0,b:1"], "has no weight from 1 to 100"),
        (["--handlers", "shop", "--concurrency", "0"], "is not from 1 to"),
        (["--handlers", "shop", "--lease", "1"], "from 5 to 300"),
        (["--handlers", "shop", "--metrics", "x"], "names no port"),
        (["--handlers", "shop", "--token-file", "/no/such/file"], "token_file"),
        (["--handlers", "shop", "--conc", "4"], "unrecognized"),
        (["--handlers", "shop", "host:port:more"], "host:port:more"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(options, {})
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert says in said
    assert (said.startswith("tq-worker: "), said.count("\n")) == (True, 1)


def test_a_module_that_can_not_be_loaded_is_one_line(home: Path) -> None:
    command = [sys.executable, "-m", "tq_node.remote_worker", "--handlers", "no_such_module"]
    environment = clean_environment(PYTHONPATH=str(PROJECT))
    ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended
    assert ended.stderr.startswith("tq-worker: ")
    assert "no_such_module can't be imported" in ended.stderr
