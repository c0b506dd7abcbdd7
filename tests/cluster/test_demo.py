"""``make run``: fifteen tasks on three nodes, one of them killed and back, then up until Ctrl-C, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import EXIT_S, NodeHttp, clean_environment, free_port, until

pytestmark = pytest.mark.cluster
COMMAND = [sys.executable, "-m", "tq_node.demo", "--http"]
OFFSETS = (0, 1, 2, 1_000, 1_001, 1_002)
DEMONSTRATION_S = 90.0


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def first_port() -> int:
    """Such that all six are free."""
    while True:
        port = free_port()
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError, OverflowError):
            for offset in OFFSETS:
                probes.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            return port


def assert_nothing_is_left(port: int, directory: Path) -> None:
    assert all(is_closed(port + offset) for offset in OFFSETS)
    assert list(directory.iterdir()) == []


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=DEMONSTRATION_S,
        check=False,
    )


@contextlib.contextmanager
def demo(port: int, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, str(port)],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=EXIT_S)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it says up to the line with these words. The demo has its own deadlines."""
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if words in line:
            return shown
    raise AssertionError(f"it never said {words!r}:\n{shown}")


@pytest.mark.parametrize("more", [(), pytest.param(("--tls",), marks=pytest.mark.long)], ids=["plain", "tls"])
def test_the_whole_demonstration(tmp_path: Path, more: tuple[str, ...]) -> None:
    port = first_port()
    done = run(str(port), "--once", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout
    assert "15 tasks on 3 nodes: 45 copies" in shown
    assert "all 15 completed" in shown
    for result in ("Email sent: user1@example.com", "Image processed: photo1.jpg", "Report generated: sales"):
        assert result in shown
    assert "Task completed: database" in shown
    assert "sent-while-one-is-down  accepted by" in shown
    assert "all 15 there and completed" in shown
    assert "16 tasks on 2 nodes: 32 copies" in shown
    assert "16 tasks on 3 nodes: 48 copies" in shown
    assert_nothing_is_left(port, tmp_path)


def test_it_stays_up_brings_back_who_is_killed_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    port = first_port()
    with demo(port, tmp_path) as process:
        assert process.stdout is not None
        shown = read_until(process, "Ctrl-C stops them all")
        assert NodeHttp(port).get("/tasks/stats?scope=cluster").json["stats"]["total"] == 16
        (pid,) = re.findall(r"kill -9 (\d+)$", shown, re.MULTILINE)
        os.kill(int(pid), signal.SIGKILL)
        read_until(process, "node-3 is started again")
        until(lambda: not is_closed(port + 2), what="node-3 listening again")
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(EXIT_S) == 0, rest
        assert "Stopped." in rest
    assert_nothing_is_left(port, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_may_be_told_to_end_at_any_time(tmp_path: Path, number: signal.Signals) -> None:
    port = first_port()
    with demo(port, tmp_path) as process:
        read_until(process, "--node-id node-2")
        process.send_signal(number)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(EXIT_S) == 0, rest
        assert "Stopped." in rest
    assert_nothing_is_left(port, tmp_path)


@pytest.mark.parametrize("words", ["--node-id node-3", pytest.param("one cluster", marks=pytest.mark.long)])
def test_ctrl_c_on_a_terminal_reaches_the_demo_alone(tmp_path: Path, words: str) -> None:
    """What ran it, ``make`` say, goes on and sees code 0."""
    port = first_port()
    parent, terminal = pty.fork()
    if parent == 0:  # the child: a session of its own on the new terminal, as a shell would give it
        os.chdir(tmp_path)
        command = " ".join([*COMMAND, str(port)])
        os.execvpe("sh", ["sh", "-c", f"{command}; echo code=$?"], clean_environment())
    shown = ""
    try:
        while words not in shown:
            shown += os.read(terminal, 4096).decode()
        os.write(terminal, b"\x03")
        end = time.monotonic() + EXIT_S
        while "code=" not in shown and time.monotonic() < end:
            shown += os.read(terminal, 4096).decode()
    finally:
        os.close(terminal)
        with contextlib.suppress(ProcessLookupError):
            os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    assert "code=0" in shown, shown
    until(lambda: all(is_closed(port + offset) for offset in OFFSETS), what="the nodes gone")


@pytest.mark.parametrize("offset", [0, 1_002])
def test_a_port_in_use_is_one_line(tmp_path: Path, offset: int) -> None:
    port = first_port()
    with socket.create_server(("127.0.0.1", port + offset)):
        done = run(str(port), cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"port {port + offset} is in use" in line
    assert list(tmp_path.iterdir()) == []
