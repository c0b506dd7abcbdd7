"""A node as systemd sees it: what it says by sd_notify, when it feeds the watchdog, and a client port that it inherits.

The service manager is played by this process; the units themselves are looked at in ``tests/packaging/test_deploy_systemd.py``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.harness import EXIT_S, TWISTD, NodeHttp, Nodes, clean_environment, free_port, until

pytestmark = pytest.mark.cluster

WATCHDOG_S = 0.6
GUARD = {"TQ_TEST_BIRTH_GUARD_S": "0.5"}
# What systemd does between fork and exec: descriptors from 3 on, and whom they are for.
INHERIT = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Listens at ``NOTIFY_SOCKET`` and keeps each datagram with its time."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1_000_000))}
        self.heard: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self.heard.append((time.monotonic(), self._socket.recv(4096).decode()))

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def lines(self, since_s: float = 0.0) -> list[str]:
        return [line for at_s, text in list(self.heard) if at_s >= since_s for line in text.splitlines()]

    def wait(self, line: str, since_s: float = 0.0, deadline_s: float = 15.0) -> None:
        until(lambda: line in self.lines(since_s), deadline_s=deadline_s, what=f"{line} of {self.heard[-5:]}")


@pytest.fixture(params=["path", pytest.param("abstract", marks=pytest.mark.long)])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@taskqueue-test-{secrets.token_hex(8)}")
    yield made
    made.close()


def workers_of(pid: int) -> list[Path]:
    """Those that run their own program by now: a child that was only forked has all of its parent."""
    children = [Path("/proc", child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"tq_node.work.child" in (child / "cmdline").read_bytes()]


def test_what_it_says_from_start_to_end(manager: Manager, nodes: Nodes) -> None:
    options = ("--node-id", "node-1", "--handlers", "tests.support.cluster_processes")
    node = nodes.start(*options, environment={**GUARD, **manager.environment}, wait=False)
    until(lambda: node.is_ready or "READY=1" in manager.lines(), what="ready")
    manager.wait("READY=1")
    assert node.is_ready
    lines = manager.lines()
    before, after = lines[: lines.index("READY=1")], lines[lines.index("READY=1") :]
    assert any("STATUS=not ready: the cluster is newborn" in line for line in before)
    assert after[1] == "STATUS=ready; 1 of 1 nodes active, led by node-1"

    ready_s = time.monotonic()
    task_id = node.submit("tick", 1.0)  # in a worker process
    workers = until(lambda: workers_of(node.pid), what="a worker")
    for worker in workers:
        assert b"NOTIFY_SOCKET" not in (worker / "environ").read_bytes(), "no worker speaks for the node"
    time.sleep(3 * WATCHDOG_S)
    assert node.status(task_id, wait_s=10)["status"] == "completed"
    assert manager.lines(ready_s).count("WATCHDOG=1") >= 3
    assert manager.lines().count("READY=1") == 1

    node.signal(signal.SIGTERM)
    manager.wait("STOPPING=1")
    assert node.wait() == 0
    (extend,) = (line for line in manager.lines() if line.startswith("EXTEND_TIMEOUT_USEC="))
    assert int(extend.partition("=")[2]) > 25_000_000, "longer than --stop-timeout"
    node.assert_log_is_clean()


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_node_that_does_not_turn_feeds_no_watchdog(manager: Manager, nodes: Nodes) -> None:
    node = nodes.start("--node-id", "node-1", environment={**GUARD, **manager.environment})
    manager.wait("WATCHDOG=1")
    node.stop()
    time.sleep(0.2)  # what was on its way
    stopped_s = time.monotonic()
    time.sleep(2.5 * WATCHDOG_S)
    assert manager.lines(stopped_s) == []
    node.cont()
    manager.wait("WATCHDOG=1", since_s=stopped_s)
    assert node.terminate() == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_one_that_waits_for_its_cluster_is_alive_and_not_ready(manager: Manager, nodes: Nodes) -> None:
    nobody = free_port()
    node = nodes.start(
        "--node-id", "node-2", "--join", f"localhost:{nobody}", environment=manager.environment, wait=False
    )
    manager.wait("STATUS=not ready: the node has not joined its cluster yet")
    manager.wait("WATCHDOG=1")
    time.sleep(1.0)
    assert "READY=1" not in manager.lines()
    assert node.terminate() == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_manager_that_is_gone_hurts_nobody(manager: Manager, nodes: Nodes) -> None:
    node = nodes.start("--node-id", "node-1", environment={**GUARD, **manager.environment})
    manager.wait("READY=1")
    manager.close()
    os.unlink(manager.environment["NOTIFY_SOCKET"])
    time.sleep(2 * WATCHDOG_S)
    assert node.is_ready
    assert node.terminate() == 0
    node.assert_log_is_clean()


# --- socket activation ---
class Activated(NodeHttp):
    """A node that inherits its client port, as from ``taskqueue@.socket``."""

    def __init__(self, listening: socket.socket, directory: Path, *arguments: str) -> None:
        super().__init__(listening.getsockname()[1])
        self.log_path = directory / "activated.log"
        with self.log_path.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-c", INHERIT, str(listening.fileno()), TWISTD, "-n", "taskqueue", *arguments],
                cwd=directory,
                env=clean_environment(**GUARD),
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(EXIT_S)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(EXIT_S)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", free_port())) as made:
        yield made


@pytest.mark.parametrize("which", ["name=http", pytest.param("index=0", marks=pytest.mark.long)])
def test_a_client_port_that_outlives_the_node(
    which: str, listening: socket.socket, nodes: Nodes, tmp_path: Path
) -> None:
    """Connections wait while the node is away; it knows its address, so that others can join."""
    port = listening.getsockname()[1]
    options = ["--node-id", "node-1", "--http", f"systemd:domain=INET:{which}", "--handlers", "simulated"]
    if which == "index=0":
        options += ["--peer", f"127.0.0.1:{port + 1000}", "--advertise", f"localhost:{port}"]
    with contextlib.ExitStack() as stack:
        early = stack.enter_context(asked_for_health(port))
        node = stack.enter_context(Activated(listening, tmp_path, *options))
        assert answer_on(early).startswith(b"HTTP/1.1 200"), "who came before the node is served"
        until(lambda: node.is_ready, deadline_s=30, what="ready")
        assert node.status(node.submit("email"), wait_s=10)["status"] == "completed"
        other = nodes.start("--node-id", "node-2", "--join", f"localhost:{port}", environment=GUARD)
        shown = {one["id"]: one["ip"] for one in other.get("/cluster").json["cluster"]["nodes"]}
        host = "localhost" if which == "index=0" else "127.0.0.1"
        assert shown["node-1"] == f"{host}:{port}"
        assert other.terminate() == 0

        assert node.end() == 0
        late = stack.enter_context(asked_for_health(port))  # not refused
        node = stack.enter_context(Activated(listening, tmp_path, *options))
        assert answer_on(late).startswith(b"HTTP/1.1 200")
        assert node.end() == 0


def asked_for_health(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), 20)
    made.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return made


def answer_on(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as reading:
        return reading.read()


def test_without_the_socket_it_says_so(nodes: Nodes) -> None:
    done = nodes.run("--node-id", "node-1", "--http", "systemd:domain=INET:name=http")
    assert done.code == 1
    assert "--http" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_public_inherited_socket_is_refused_like_any_other(tmp_path: Path) -> None:
    with (
        socket.create_server(("0.0.0.0", free_port())) as public,
        Activated(public, tmp_path, "--http", "systemd:domain=INET:name=http") as node,
    ):
        assert node.process.wait(EXIT_S) == 1
    assert "--insecure" in node.log_path.read_text()
