"""``make run``: ten tasks, then up until Ctrl-C, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import pty
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


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_ten_tasks_are_completed(tmp_path: Path) -> None:
    port = free_port()
    done = run(str(port), "--once", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 10 completed" in done.stdout
    assert "Email sent: user0@example.com" in done.stdout
    assert "completed 10" in done.stdout
    assert is_closed(port)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_stays_up_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with demo(port, tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C stops it" in line:
                break
        assert NodeHttp(port).get("/tasks/stats").json["stats"]["completed"] == 10
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(EXIT_S) == 0
        assert "Stopped." in rest
    assert is_closed(port)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_on_a_terminal_reaches_the_demo_alone(tmp_path: Path) -> None:
    """What ran it, ``make`` say, goes on and sees code 0."""
    port = free_port()
    parent, terminal = pty.fork()
    if parent == 0:  # the child: a session of its own on the new terminal, as a shell would give it
        os.chdir(tmp_path)
        words = " ".join([*COMMAND, str(port)])
        os.execvpe("sh", ["sh", "-c", f"{words}; echo code=$?"], clean_environment())
    shown = ""
    try:
        while "Ctrl-C stops it" not in shown:
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
    until(lambda: is_closed(port), what="the node gone")


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(str(port), cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"port {port} is in use" in line
    assert list(tmp_path.iterdir()) == []
