"""Who is not let in ends with one clear line and a code that is not 0, and nobody else is harmed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import PEER_OFFSET, Cluster, whole_cluster
from tests.cluster.replicated import wait_settled
from tests.support.harness import Ended, NodeProcess, Nodes, free_port, until

pytestmark = pytest.mark.cluster

MakeCluster = Callable[..., Cluster]
REFUSED_S = 15.0
"""Within this whoever is not let in has ended."""


def the_line(ended: Ended) -> str:
    """All that is on stderr."""
    assert ended.code == 1, ended
    (line,) = ended.err.splitlines()
    assert line.startswith("taskqueue: "), line
    assert "Traceback" not in ended.out
    return line


def line_in_log(process: NodeProcess) -> str:
    """Of a node that was running: stdout and stderr are one file, and the line stands alone in it."""
    assert process.wait(REFUSED_S) == 1, process.log_tail()
    (line,) = [line for line in process.log.splitlines() if line.startswith("taskqueue: ")]
    assert "Traceback" not in process.log
    return line


def run(cluster: Cluster, *arguments: str, guard_s: str = "0.2") -> Ended:
    return cluster.nodes.run(
        *arguments,
        cwd=cluster.home,
        environment={"TQ_TEST_BIRTH_GUARD_S": guard_s} if guard_s else {},
        deadline_s=REFUSED_S,
    )


def assert_unharmed(cluster: Cluster, task_id: str) -> None:
    """Whole, in the same term, and still at work."""
    cluster.wait_whole()
    cluster.wait_ready()
    for name in cluster.running:
        assert cluster[name].status(task_id)["status"] == "scheduled"
    cluster.assert_logs_are_clean("refused a connection|refuses node|cluster secret differs")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes for all that are refused and harm nobody: each test leaves them as they were, whole and ready."""
    with whole_cluster(tmp_path_factory.mktemp("refusals")) as cluster:
        wait_settled(cluster)
        yield cluster
        cluster.stop()


@pytest.fixture
def task_id(lasting: Cluster) -> str:
    return lasting["node-1"].submit("noop", delay=3600)


# --- secrets ---
def test_a_wrong_secret_and_none(make_cluster: MakeCluster, tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"a {name} secret of some length")
        (tmp_path / name).chmod(0o600)
    cluster = make_cluster(["node-1"], options=["--secret-file", str(tmp_path / "right")])
    cluster.start()
    cluster.wait_ready()
    task_id = cluster["node-1"].submit("noop", delay=3600)
    joining = ["--node-id", "node-9", "--http", str(free_port()), "--join", f"localhost:{cluster.ports['node-1']}"]
    line = the_line(run(cluster, *joining, "--secret-file", str(tmp_path / "wrong")))
    assert "--secret-file" in line
    assert "differ" in line
    line = the_line(run(cluster, *joining))
    assert "--secret-file" in line
    assert cluster.view("node-1").statuses == {"node-1": "active"}  # type: ignore[union-attr]
    assert_unharmed(cluster, task_id)


def test_a_member_with_another_secret(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """It was let in with the right one; started again with a wrong one it must not just try for ever without a word."""
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"a {name} secret of some length")
        (tmp_path / name).chmod(0o600)
    cluster = make_cluster(["node-1", "node-2"], options=["--secret-file", str(tmp_path / "right")])
    cluster.start()
    cluster.wait_whole(voters=1)
    cluster.stop("node-2")
    cluster.start("node-2", extra=["--secret-file", str(tmp_path / "wrong")])
    until(lambda: "secret" in cluster.log("node-2").lower(), what="it says so")
    assert not cluster["node-2"].is_ready
    assert cluster["node-1"].is_ready


# --- clusters ---
def test_a_directory_of_another_cluster_goes_back_to_its_own(lasting: Cluster, task_id: str, tmp_path: Path) -> None:
    other = Cluster(lasting.nodes, ["node-1"], home=tmp_path / "elsewhere")
    other.start()
    other.wait_ready()
    lasting.stop("node-3")
    lasting.start("node-3", extra=["--join", f"localhost:{other.ports['node-1']}"])
    assert_unharmed(lasting, task_id)
    view = other.view("node-1")
    assert view is not None
    assert view.statuses == {"node-1": "active"}
    other.stop()


def test_another_cluster_at_the_address_of_its_own(make_cluster: MakeCluster, nodes: Nodes, tmp_path: Path) -> None:
    """Nobody joins the wrong one: neither does a member that finds strangers, nor is a cluster that has work ended by it."""
    cluster = make_cluster(["node-1", "node-2"])
    cluster.start()
    cluster.wait_whole(voters=1)
    cluster.stop()
    other = Cluster(nodes, ["node-1"], home=tmp_path / "elsewhere")
    other.ports["node-1"] = cluster.ports["node-1"]
    other.start()
    other.wait_ready()
    kept = other["node-1"].submit("noop", delay=3600)
    cluster.start("node-2")
    until(lambda: "WrongCluster" in cluster.log("node-2"), what="it says that it finds another cluster")
    assert not cluster["node-2"].is_ready
    assert other["node-1"].status(kept)["status"] == "scheduled"
    view = other.view("node-1")
    assert view is not None
    assert view.statuses == {"node-1": "active"}
    other.stop()
    cluster.start("node-1")
    cluster.wait_whole(voters=1)


# --- directories ---
def clone(cluster: Cluster, name: str, copy: Path) -> list[str]:
    """Copy its directory as a virtual machine's snapshot would; the command that starts the copy."""
    shutil.copytree(cluster.data(name), copy)
    port = str(free_port())
    return [
        "--node-id",
        name,
        "--http",
        port,
        "--data-dir",
        str(copy),
        "--join",
        f"localhost:{cluster.ports['node-1']}",
    ]


def test_a_cloned_data_directory(lasting: Cluster, task_id: str, tmp_path: Path) -> None:
    """Also when it tries again and again, as a supervisor would have it (each start counts the incarnation up)."""
    lasting.stop("node-2")
    command = clone(lasting, "node-2", tmp_path / "copy")
    lasting.start("node-2")
    lasting.wait_whole()
    for _ in range(2):
        line = the_line(run(lasting, *command))
        assert "copy" in line
        assert "--readmit" in line
        assert_unharmed(lasting, task_id)


def test_a_copy_of_a_node_that_runs(lasting: Cluster, task_id: str, tmp_path: Path) -> None:
    """The copy's first start is a later one than the original's, and yet it is the original that lives and answers."""
    wait_settled(lasting)
    before = lasting.wait_whole()
    epochs = [(one["primary"], one["epoch"], one["in_sync"]) for one in lasting.partitions()]
    leader = before.leader or ""
    for name in (leader, lasting.others(leader)[0]):
        assert "copy" in the_line(run(lasting, *clone(lasting, name, tmp_path / f"copy-of-{name}")))
        assert_unharmed(lasting, task_id)
    assert lasting.wait_whole() == before, "neither leader nor term has changed"
    assert [(one["primary"], one["epoch"], one["in_sync"]) for one in lasting.partitions()] == epochs


def test_a_data_directory_set_back(cluster: Cluster, tmp_path: Path) -> None:
    """F14: the node starts again from an older state of its own disk."""
    cluster.stop("node-2")
    shutil.copytree(cluster.data("node-2"), tmp_path / "older")
    cluster.start("node-2")
    cluster.wait_whole()
    cluster.stop("node-2")
    shutil.rmtree(cluster.data("node-2"))
    shutil.copytree(tmp_path / "older", cluster.data("node-2"))
    cluster.start("node-2")
    line = line_in_log(cluster["node-2"])
    assert "older state" in line
    cluster.wait_gone("node-2")
    assert sorted(cluster.running) == ["node-1", "node-3"]


def test_a_second_process_on_one_directory(lasting: Cluster, task_id: str) -> None:
    line = the_line(run(lasting, *lasting.command("node-3"), "--http", str(free_port())))
    assert "in use" in line, "its own ports are another matter"
    line = the_line(run(lasting, *lasting.command("node-1"), "--http", str(lasting.ports["node-1"])))
    assert "in use" in line
    assert_unharmed(lasting, task_id)


def test_a_port_in_use_is_named_by_its_option(lasting: Cluster) -> None:
    taken = lasting.ports["node-1"]
    for option, arguments in {
        "--http": ["--http", str(taken), "--peer", f"127.0.0.1:{free_port()}"],
        "--peer": ["--http", str(free_port()), "--peer", f"127.0.0.1:{taken + PEER_OFFSET}"],
    }.items():
        line = the_line(run(lasting, "--node-id", "node-9", *arguments))
        assert line.startswith(f"taskqueue: {option}: "), line
        assert "in use" in line


def test_a_wiped_first_node_with_its_usual_command(cluster: Cluster) -> None:
    """F15a: it would found a cluster of its own. Its name goes on when it is removed and comes in as a new node."""
    until(lambda: max(cluster.primaries().values()) <= 22, what="partitions shared out")
    usual = [*cluster.command("node-1"), "--http", str(cluster.ports["node-1"])]
    cluster["node-1"].kill9()
    cluster.wait_gone("node-1")
    cluster_id = cluster.wait(lambda view: True, what="a leader").cluster_id
    shutil.rmtree(cluster.data("node-1"))
    line = the_line(run(cluster, *usual, guard_s=""))
    assert cluster_id in line
    assert "disk" in line
    assert "--join" in line
    view = cluster.wait(lambda view: True, what="a leader")
    assert view.statuses == {"node-1": "down", "node-2": "active", "node-3": "active"}
    assert cluster["node-2"].post("/cluster/remove?node=node-1").status == 202
    shutil.rmtree(cluster.data("node-1"), ignore_errors=True)
    cluster.start("node-1", extra=["--join", f"localhost:{cluster.ports['node-2']}"])
    view = cluster.wait(lambda view: view.statuses == dict.fromkeys(cluster.ports, "active"), what="three again")
    assert view.cluster_id == cluster_id
    cluster.wait_ready()
    cluster.assert_logs_are_clean("refused a connection|closed the connection")


# --- removed ---
def test_a_node_is_removed_while_it_runs_and_starts_again(cluster: Cluster) -> None:
    until(lambda: max(cluster.primaries().values()) <= 22, what="partitions shared out")
    assert cluster["node-1"].post("/cluster/remove?node=node-3").status == 202
    line = line_in_log(cluster["node-3"])
    assert "node-3 was removed" in line
    cluster.wait_gone("node-3", None)
    until(
        lambda: set(cluster.primaries()) == {"node-1", "node-2"}, what="its partitions, which were empty, are elsewhere"
    )
    cluster.wait_ready()
    task_id = cluster["node-1"].submit("noop", delay=3600)
    for _ in range(2):
        line = the_line(run(cluster, *cluster.command("node-3"), "--http", str(cluster.ports["node-3"])))
        assert "node-3 was removed" in line
        assert "--data-dir" in line
    for name in ("node-1", "node-2"):
        assert cluster[name].status(task_id)["status"] == "scheduled"
    assert "node-3" not in cluster.wait(lambda view: True, what="a leader").statuses


@pytest.mark.long
def test_a_node_that_was_away_is_removed_and_starts_again(cluster: Cluster) -> None:
    until(lambda: max(cluster.primaries().values()) <= 22, what="partitions shared out")
    cluster.stop("node-3")
    cluster.wait_gone("node-3")
    assert cluster["node-1"].post("/cluster/remove?node=node-3").status == 202
    cluster.wait_gone("node-3", None)
    until(
        lambda: set(cluster.primaries()) == {"node-1", "node-2"}, what="its partitions, which were empty, are elsewhere"
    )
    cluster.wait_ready()
    line = the_line(run(cluster, *cluster.command("node-3"), "--http", str(cluster.ports["node-3"])))
    assert "node-3 was removed" in line
    assert "--data-dir" in line


# --- strangers ---
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["--http", "0.0.0.0:{port}", "--advertise", "127.0.0.1"], "--http", marks=pytest.mark.long),
        pytest.param(
            ["--http", "0.0.0.0:{port}", "--peer", "127.0.0.1:{peer}", "--advertise", "127.0.0.1"],
            "--http",
            marks=pytest.mark.long,
        ),
        (["--http", "127.0.0.1:{port}", "--peer", "0.0.0.0:{peer}", "--advertise", "127.0.0.1"], "--peer"),
        pytest.param(["--http", "127.0.0.1:{port}", "--peer-cert", "x.crt"], "--peer-cert", marks=pytest.mark.long),
    ],
)
def test_not_loopback_without_credentials(nodes: Nodes, tmp_path: Path, arguments: list[str], named: str) -> None:
    """One of them with a real process in make test; in tests/unit/tq_node/test_options.py the lines of them all."""
    home = tmp_path / "home"
    home.mkdir()
    port = free_port()
    filled = [argument.format(port=port, peer=port + PEER_OFFSET) for argument in arguments]
    line = the_line(nodes.run("--node-id", "node-1", *filled, cwd=home))
    assert named in line
    assert list(home.iterdir()) == []
