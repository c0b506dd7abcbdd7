"""What signals do to a real node, and that nothing keeps its process alive once it has been asked to stop."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.harness import EXIT_S, TWISTD, NodeHttp, NodeProcess, Nodes, clean_environment, free_port, until

pytestmark = pytest.mark.cluster

HANDLERS = """
import threading, time
from twisted.internet.threads import deferToThread
from tq_node import task

@task("quick", max_attempts=1)
def quick(payload, context):
    return payload

@task("deferred", max_attempts=1, run="reactor")
async def deferred(payload, context):
    await deferToThread(time.sleep, 1_000)

@task("thread", max_attempts=1, run="reactor")
async def thread(payload, context):
    threading.Thread(target=time.sleep, args=(1_000,)).start()

@task("stuck", max_attempts=1, run="reactor")
async def stuck(payload, context):
    time.sleep(1_000)
"""
AT_IMPORT = "import threading, time\nthreading.Thread(target=time.sleep, args=(1_000,)).start()\n"
LEFT_BEHIND = ("lock", "taskqueue.sqlite3", "workers.lock")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.py").write_text(HANDLERS)
    return home


def started_task(node: NodeProcess, kind: str) -> str:
    task_id = node.submit(kind)
    until(lambda: node.status(task_id)["status"] in ("processing", "completed"), what=f"{kind} begun")
    return task_id


def assert_closed(home: Path, node: NodeProcess) -> None:
    """In order: the log says so, and neither a pid file nor a write-ahead log is left."""
    assert "has stopped" in node.log
    assert {path.name for path in (home / "data/node-1").iterdir()} <= set(LEFT_BEHIND)


# --- signals that are not for ending ---
def test_a_node_and_its_tasks_outlive_signals_that_are_not_for_ending(nodes: Nodes, home: Path) -> None:
    node = nodes.start(cwd=home)
    running = started_task(node, "image")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        node.signal(number)
        until(lambda number=number: number.name in node.log, what=f"a line about {number.name}")  # type: ignore[misc]
    done = node.status(running, wait_s=15)
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert node.terminate() == 0
    node.assert_log_is_clean()
    assert_closed(home, node)


def test_a_node_goes_on_when_its_terminal_has_gone(home: Path, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    node = NodeHttp(free_port())
    process = subprocess.Popen(
        ["setsid", "--ctty", TWISTD, "-n", "taskqueue", "--http", str(node.http_port)],
        cwd=home, env=clean_environment(), stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    try:
        until(lambda: node.is_ready, deadline_s=30, what="the node ready")
        os.close(controller)  # the session's leader gets SIGHUP, and every further line would fail
        until(lambda: os.readlink(f"/proc/{process.pid}/fd/1") == os.devnull, what="the terminal left")
        assert node.status(node.submit(), wait_s=10)["status"] == "completed"
        process.terminate()
        assert process.wait(EXIT_S) == 0
        assert not (home / "data/node-1/twistd.pid").exists()
    finally:
        process.kill()
        process.wait(EXIT_S)


# --- ends ---
def assert_ends_by_signals(node: NodeProcess) -> None:
    """Once one counts as the second: it may come too soon after the first, or be merged with it."""

    def has_ended() -> bool:
        node.signal(signal.SIGTERM)
        return not node.is_running

    until(has_ended, what="the end")
    assert node.wait() == -signal.SIGTERM


@pytest.mark.parametrize("kind", [pytest.param("deferred", marks=pytest.mark.long), "thread"])
def test_no_thread_of_a_handler_keeps_a_stopped_node(nodes: Nodes, home: Path, kind: str) -> None:
    node = nodes.start("--handlers", "mine", "--stop-timeout", "500ms", cwd=home)
    started_task(node, kind)
    assert node.terminate(deadline_s=20) == 0
    assert_closed(home, node)


def test_no_thread_of_a_module_keeps_a_stopped_node(nodes: Nodes, home: Path) -> None:
    with (home / "mine.py").open("a") as file:
        file.write(AT_IMPORT)
    node = nodes.start("--handlers", "mine", cwd=home)
    assert node.status(node.submit("quick", 1), wait_s=20)["result"] == 1
    assert node.terminate(deadline_s=20) == 0
    assert_closed(home, node)


def test_a_second_sigterm_ends_a_node_at_once(nodes: Nodes, home: Path) -> None:
    node = nodes.start("--handlers", "mine", "--stop-timeout", "1h", cwd=home)
    task_id = started_task(node, "deferred")
    node.signal(signal.SIGTERM)
    until(lambda: "draining" in node.get("/ready").body.decode(), what="the node stopping")
    assert_ends_by_signals(node)
    again = nodes.start(cwd=home)
    assert again.status(task_id)["attempt"] == 1
    assert again.terminate() == 0


def test_a_second_sigterm_ends_a_node_whose_reactor_is_stuck(nodes: Nodes, home: Path) -> None:
    node = nodes.start("--handlers", "mine", cwd=home)
    with contextlib.suppress(OSError):  # the answer may be what is stuck
        node.post("/tasks/submit", {"type": "stuck"}, deadline_s=2)
    until(lambda: not node.is_ready, what="the reactor stuck")
    assert_ends_by_signals(node)
