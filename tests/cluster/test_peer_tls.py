"""Mutual TLS between peers, with what ``deploy/make-cluster-ca`` makes."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.clusters import PEER_OFFSET, Cluster
from tests.support.harness import PROJECT, free_port, until

pytestmark = pytest.mark.cluster

NAMES = ("node-1", "node-2", "node-3")
MakeCluster = Callable[..., Cluster]


def make_ca(folder: Path, *names: str) -> Path:
    command = [sys.executable, str(PROJECT / "deploy/make-cluster-ca"), str(folder), *names]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


def certificates(folder: Path, name: str, authority: Path | None = None) -> list[str]:
    return [
        "--peer-cert", str(folder / f"{name}.crt"), "--peer-key", str(folder / f"{name}.key"),
        "--peer-ca", str((authority or folder) / "ca.crt"),
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_ca(tmp_path / "ca", *NAMES, "node-4")


def stranger(cluster: Cluster, name: str, options: list[str]) -> Cluster:
    """A node of another directory that would join."""
    other = Cluster(cluster.nodes, [name], home=cluster.nodes.directory / f"home-of-{name}", options=options)
    other.start(name, extra=["--join", f"localhost:{cluster.ports['node-1']}"])
    return other


@pytest.mark.parametrize("is_short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_three_nodes_and_strangers(make_cluster: MakeCluster, folder: Path, tmp_path: Path, is_short: bool) -> None:
    """``is_short``: without the stranger that only trusts what it should not, and without a leader that dies at the end."""
    cluster = make_cluster(own_options=lambda name: certificates(folder, name))
    cluster.start()
    view = cluster.wait_whole()
    cluster.wait_ready()
    done = [cluster[name].submit("email") for name in NAMES]
    assert all(cluster["node-2"].status(task_id, wait_s=10)["status"] == "completed" for task_id in done)

    # What peers say to one another is TLS, and asks for a certificate.
    port = cluster.ports["node-1"] + PEER_OFFSET
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.check_hostname = False
    plain = socket.create_connection(("127.0.0.1", port), 5)
    with context.wrap_socket(plain) as wrapped, pytest.raises(ssl.SSLError, match="certificate required"):
        wrapped.recv(1)

    foreign = make_ca(tmp_path / "foreign", "node-4", "node-5")
    mine_but_foreign = certificates(foreign, "node-4", authority=folder)
    for name, options in {
        "node-4": certificates(foreign, "node-4"),  # of another authority, which it trusts
        "node-5": mine_but_foreign,  # it trusts ours, and is not trusted
        "node-6": certificates(folder, "node-4"),  # one of ours, but of another node
        "node-7": [],  # none at all
    }.items():
        if is_short and name == "node-4":
            continue  # the next one is of that authority, too
        other = stranger(cluster, name, options)
        process = other[name]
        until(
            lambda: not process.is_running or "not a member yet" in process.log,  # noqa: B023
            what=f"{name} is kept out",
        )
        if process.is_running:
            assert not process.is_ready
        else:
            lines = [line for line in process.log.splitlines() if line.startswith("taskqueue: ")]
            assert len(lines) == 1, process.log_tail()
            assert process.process.returncode == 1
        reason = [
            line for line in process.log.splitlines() if "not a member yet" in line or line.startswith("taskqueue: ")
        ]
        print(f"\n  {name}: {reason[0][-230:]}")
        assert name != "node-7" or "--peer-cert, --peer-key and --peer-ca" in reason[0], "it is told what it lacks"
        process.close()
    assert cluster.wait_whole() == view, "nobody noticed"
    cluster.assert_logs_are_clean("refused a connection")

    # One of ours comes in.
    cluster.port("node-4")
    cluster.start("node-4")
    cluster.wait_whole(members=cluster.ports)
    if is_short:
        cluster.stop()
        cluster.assert_logs_are_clean("refused a connection|closed the connection")
        return
    cluster.stop("node-4")
    leader = cluster.leader()
    cluster[leader].kill9()
    cluster.wait_gone(leader)
    cluster.start(leader, "node-4")
    cluster.wait_whole(members=cluster.ports)
    cluster.stop()
    cluster.assert_logs_are_clean("refused a connection|closed the connection")


def test_certificates_instead_of_the_secret_are_needed_again(make_cluster: MakeCluster, folder: Path) -> None:
    """A cluster that has no other secret is not come back to without them."""
    cluster = make_cluster(["node-1"], own_options=lambda name: certificates(folder, name))
    cluster.start()
    cluster.wait_ready()
    cluster.stop()
    ended = cluster.nodes.run("--node-id", "node-1", "--http", str(free_port()), cwd=cluster.home)
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("taskqueue: --secret-file")
