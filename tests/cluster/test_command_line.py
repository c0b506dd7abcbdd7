"""``twistd -n taskqueue`` as people use it: options, directories, pid files, ports, signals, restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import (
    EXIT_S,
    TWISTD,
    NodeHttp,
    NodeProcess,
    Nodes,
    clean_environment,
    free_port,
    group_members,
    until,
)
from tq_node import limits

pytestmark = pytest.mark.cluster

GREET = """from tq_node import task


@task("greet")
def greet(payload, context):
    return f"Hello, {payload}!"
"""


def files_below(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty working directory; the logs of the nodes are elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    return home


# --- refusals ---
@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--nonsense"], {}, "--nonsense"),
        ([], {"JOIN_ADDR": "nonsense"}, "--join (JOIN_ADDR)"),
        (["--handlers", "no.such.module"], {}, "--handlers"),
    ],
)
def test_a_bad_option_is_one_line_code_one_and_nothing_on_disk(
    nodes: Nodes, home: Path, arguments: list[str], environment: dict[str, str], named: str
) -> None:
    """One of the parser, one of the settings, one that the start finds; all others are in tests/unit (test_options.py)."""
    ended = nodes.run(*arguments, cwd=home, environment=environment)
    assert ended.code == 1
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("taskqueue: ")
    assert named in line
    assert list(home.iterdir()) == []


def test_help(nodes: Nodes, home: Path) -> None:
    helped = nodes.run("--help", cwd=home)
    assert (helped.code, helped.err) == (0, "")
    assert "--replication-factor" in helped.out
    assert list(home.iterdir()) == []


# --- directories and pid files ---
def test_two_nodes_in_one_directory_and_neither_in_the_others(nodes: Nodes, home: Path) -> None:
    one = nodes.start("--node-id", "node-1", cwd=home)
    two = nodes.start("--node-id", "node-2", cwd=home)
    for name, node in (("node-1", one), ("node-2", two)):
        assert int((home / "data" / name / "twistd.pid").read_text()) == node.pid
        assert node.submit() in node.get("/tasks/list").body.decode()
    assert sorted(path.name for path in home.iterdir()) == ["data"]
    for node in (one, two):
        assert node.terminate() == 0
        node.assert_log_is_clean()
    other = nodes.run("--node-id", "node-2", "--data-dir", "data/node-1", cwd=home)
    assert other.code == 1, "another node's directory is refused"
    (line,) = other.err.splitlines()
    assert "node-1" in line
    assert "Traceback" not in other.out


def test_a_daemon_detaches_and_keeps_its_paths(nodes: Nodes, home: Path) -> None:
    node = NodeHttp(free_port())
    ended = nodes.run("--http", str(node.http_port), "--data-dir", "kept", cwd=home, daemon=True)
    assert (ended.code, ended.err) == (0, "")
    pid = int(until((home / "kept/twistd.pid").read_text, what="the pid file"))
    try:
        until(lambda: node.is_ready, what="the daemon ready")
        assert node.status(node.submit())["type"] == "email"
        os.kill(pid, signal.SIGTERM)
        until(lambda: not lives(pid), deadline_s=EXIT_S, what="the end of the daemon")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in (home / "twistd.log").read_text()
    assert sorted(path.name for path in home.iterdir()) == ["kept", "twistd.log"]
    assert not (home / "kept/twistd.pid").exists()


def test_a_daemon_that_can_t_start_says_so_and_does_not_wait_for_ever(nodes: Nodes, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = nodes.run("--http", str(port), "--peer", "9", cwd=home, daemon=True, deadline_s=15)
    assert ended.code == 1
    assert f":{port}" in ended.err
    assert "Traceback" not in (home / "twistd.log").read_text()


def lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# --- one plain node for all that only ask it ---
@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """Its working directory has a pid file of twistd's; it ends by Ctrl-C."""
    nodes = Nodes(tmp_path_factory.mktemp("plain"))
    foreign = nodes.directory / "twistd.pid"
    foreign.write_text(str(os.getpid()))
    try:
        node = nodes.start()
        yield node
        node.signal(signal.SIGINT)
        assert node.wait() == 0
        assert not (nodes.directory / "data/node-1/twistd.pid").exists()
        assert foreign.read_text() == str(os.getpid()), "of no matter to the node"
        node.assert_log_is_clean()
        assert not nodes.holds()
    finally:
        nodes.close()


def test_a_second_process_on_one_data_directory(plain: NodeProcess, nodes: Nodes) -> None:
    home = plain.log_path.parent
    second = nodes.run("--http", str(free_port()), cwd=home)
    assert second.code == 1
    (line,) = second.err.splitlines()
    assert line.startswith("taskqueue: ")
    assert "in use" in line
    assert "Traceback" not in second.out
    assert int((home / "data/node-1/twistd.pid").read_text()) == plain.pid
    assert plain.get("/ready").status == 200


def test_without_that_variable_nothing_listens_there(plain: NodeProcess) -> None:
    with pytest.raises(ConnectionRefusedError):
        plain.get("/health", port=plain.http_port + 2_000)


def test_a_node_listens_on_loopback_alone(plain: NodeProcess) -> None:
    listening = {
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{plain.pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{plain.http_port:04X}")
    }
    assert listening == {f"0100007F:{plain.http_port:04X}"}


def test_a_stopped_and_continued_node_goes_on(plain: NodeProcess) -> None:
    task_id = plain.submit()
    plain.stop()
    try:
        with pytest.raises(OSError):
            plain.get("/health", deadline_s=0.3)
    finally:
        plain.cont()
    assert plain.status(task_id, wait_s=10)["status"] == "completed"


# --- ports ---
def test_the_original_variables_and_the_port_2000_further(nodes: Nodes, home: Path) -> None:
    port = free_port()
    node = nodes.start(
        cwd=home, http_port=port, say_http=False, environment={"HTTP_ADDR": f":{port}", "NODE_ID": "from-environment"}
    )
    task_id = node.submit()
    there = node.get(f"/tasks/status?id={task_id}", port=port + 2_000)
    assert there.status == 200
    assert there.json["node"] == "from-environment"
    assert (home / "data/from-environment/twistd.pid").exists()
    assert node.terminate() == 0


def test_a_port_in_use_is_said_in_one_line(nodes: Nodes, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = nodes.run("--http", str(port), "--peer", "9", cwd=home)
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("taskqueue: ")
    assert f":{port}" in line
    assert "in use" in line
    assert "Traceback" not in ended.out
    assert list(home.iterdir()) == [], "nothing was made before it was noticed"


def test_a_secret_that_everybody_can_read_is_refused(nodes: Nodes, home: Path) -> None:
    secret = home / "secret"
    secret.write_text("a secret of some bytes")
    secret.chmod(0o644)
    ended = nodes.run("--http", str(free_port()), "--secret-file", "secret", cwd=home)
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("taskqueue: --secret-file: ")
    assert list(home.iterdir()) == [secret]


def test_a_node_says_each_protection_that_it_does_without(nodes: Nodes, home: Path) -> None:
    node = nodes.start("--insecure", cwd=home)
    ready = node.get("/ready")
    assert ready.status == 200
    assert [note["code"] for note in ready.json["notes"]] == ["insecure_http", "insecure_peers"]
    assert "--insecure-http: whoever reaches" in node.log
    assert "--insecure-peers: whoever reaches" in node.log
    assert node.terminate() == 0


# --- descriptors ---
def limited(files: int, *arguments: str) -> list[str]:
    return ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", TWISTD, "-n", "taskqueue", *arguments]


def test_too_few_descriptors_are_refused_in_one_line(home: Path) -> None:
    (home / "mine.py").write_text(GREET)
    needed = limits.FILES_MIN + 4 * limits.FILES_PER_PROCESS
    ended = subprocess.run(
        limited(needed - 1, "--http", str(free_port()), "--handlers", "mine", "--concurrency", "4"),
        cwd=home, env=clean_environment(), capture_output=True, text=True, timeout=EXIT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"needs {needed} " in line
    assert not (home / "data").exists()


def test_as_many_descriptors_as_are_asked_for_are_enough(home: Path) -> None:
    (home / "mine.py").write_text(GREET)
    node = NodeHttp(free_port())
    process = subprocess.Popen(
        limited(limits.FILES_MIN + 4 * limits.FILES_PER_PROCESS, "--http", str(node.http_port), "--handlers", "mine",
                "--concurrency", "4"),
        cwd=home, env=clean_environment(), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: node.is_ready, deadline_s=30, what="the node ready")
        ids = [node.submit("greet", "world", max_attempts=1) for _ in range(12)]
        assert {node.status(task_id, wait_s=30)["status"] for task_id in ids} == {"completed"}
        process.terminate()
        assert process.wait(EXIT_S) == 0
    finally:
        process.kill()
        process.wait(EXIT_S)


def test_a_toml_file_starts_a_node(nodes: Nodes, home: Path) -> None:
    port = free_port()
    (home / "node.toml").write_text(f'node-id = "from-file"\nhttp = {port}\ndata-dir = "kept"\nretention = "1h"\n')
    node = nodes.start("--config", "node.toml", http_port=port, say_http=False, cwd=home)
    assert node.get(f"/tasks/status?id={node.submit()}").json["node"] == "from-file"
    assert (home / "kept").is_dir()


# --- signals ---
def test_sigterm_ends_with_0_and_leaves_nothing_but_the_store(nodes: Nodes, home: Path) -> None:
    node = nodes.start(cwd=home)
    task_id = node.submit()
    assert node.status(task_id, wait_s=10)["status"] == "completed"
    assert node.terminate() == 0
    assert group_members(node.pid) == []
    assert set(files_below(home)) <= {f"data/node-1/{name}" for name in ("lock", "taskqueue.sqlite3", "workers.lock")}
    node.assert_log_is_clean()


def test_two_sigterms_are_one(nodes: Nodes, home: Path) -> None:
    node = nodes.start(cwd=home)
    node.submit("report")
    node.signal(signal.SIGTERM)
    assert node.terminate() == 0
    node.assert_log_is_clean()


def test_kill_9_loses_nothing_acknowledged_and_a_stale_pid_file_blocks_no_start(nodes: Nodes, home: Path) -> None:
    first = nodes.start(cwd=home)
    ids = [first.submit(payload=f"user{number}@example.com") for number in range(20)]
    first.kill9()
    pid_file = home / "data/node-1/twistd.pid"
    assert int(pid_file.read_text()) == first.pid
    pid_file.write_text(str(os.getpid()))  # the number was given to somebody else meanwhile
    second = nodes.start(cwd=home)
    assert int(pid_file.read_text()) == second.pid
    for task_id in ids:
        assert second.status(task_id, wait_s=60)["status"] == "completed"
    assert second.terminate() == 0
    second.assert_log_is_clean()


# --- handlers ---
def test_handlers_from_the_working_directory(nodes: Nodes, home: Path) -> None:
    (home / "treq.py").write_text("raise RuntimeError('hides an installed module')\n")
    (home / "mine.py").write_text(f"import treq\n{GREET}")
    node = nodes.start("--handlers", "mine", cwd=home)
    task = node.status(node.submit("greet", "world"), wait_s=10)
    assert task["result"] == "Hello, world!"
    assert node.terminate() == 0
    node.assert_log_is_clean()


# --- several starts ---
def test_a_restart_keeps_tasks_whatever_join_says(nodes: Nodes, home: Path) -> None:
    """The node goes back to its own cluster."""
    first = nodes.start(cwd=home)
    done = first.submit()
    assert first.status(done, wait_s=10)["status"] == "completed"
    later = first.submit(delay=3600)
    assert first.terminate() == 0
    second = nodes.start("--join", "localhost:1", cwd=home)
    assert second.status(done)["result"] == "Email sent: user@example.com"
    assert second.status(later)["status"] == "scheduled"
    assert second.get("/tasks/stats").json["stats"]["total"] == 2
    assert second.terminate() == 0
    second.assert_log_is_clean()
