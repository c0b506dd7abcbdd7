"""Nodes that join without the HTTP side of a member."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.test_peer_tls import certificates, make_ca
from tests.support.harness import free_port, until

pytestmark = pytest.mark.cluster

MakeCluster = Callable[..., Cluster]
NAMES = ("node-1", "node-2")


@pytest.mark.parametrize("by", ["secret", pytest.param("certificates", marks=pytest.mark.long)])
def test_a_peer_port_is_enough(make_cluster: MakeCluster, tmp_path: Path, by: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of these nodes, by hand\n")
    secret.chmod(0o600)
    folder = make_ca(tmp_path / "ca", *NAMES) if by == "certificates" else tmp_path

    def options(name: str) -> list[str]:
        return ["--secret-file", str(secret)] if by == "secret" else certificates(folder, name)

    cluster = make_cluster(NAMES, own_options=options, by_peer_port=True)
    cluster.start()
    cluster.wait_whole(voters=1)
    cluster.wait_ready()
    # Its own list leads nowhere now, but its directory belongs to the cluster.
    cluster.stop("node-2")
    cluster.start("node-2")
    cluster.wait_whole(voters=1)
    cluster.stop()
    cluster.assert_logs_are_clean("refused a connection" if by == "certificates" else "")


def test_without_a_secret_a_peer_port_is_said_to_be_none(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(NAMES, by_peer_port=True)
    cluster.start("node-1")
    cluster.wait_ready()
    cluster.start("node-2")
    until(
        lambda: "a peer port does for a node with --secret-file" in cluster.log("node-2"), what="it says what it lacks"
    )


def test_members_that_ask_for_tokens_let_in_who_proves_the_secret_or_was_invited(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """None of the joiners has a token; a file of an invitation that was used lets nobody in."""
    secret, tokens, admin = tmp_path / "secret", tmp_path / "tokens.toml", tmp_path / "admin"
    secret.write_text("a secret of these nodes, by hand\n")
    secret.chmod(0o600)
    admin.write_text(tool("new", "--name", "ops", "--role", "admin", "--file", str(tokens)))
    admin.chmod(0o600)
    with_secret = ["--secret-file", str(secret), "--tokens-file", str(tokens)]
    invitations = [tmp_path / "invitation-1", tmp_path / "invitation-2"]

    def options(name: str) -> list[str]:
        if name == "node-3":
            return ["--tokens-file", str(tokens), "--invitation", str(invitations[0])]
        return with_secret

    cluster = make_cluster(["node-1", "node-2", "node-3"], own_options=options)
    token = {"Authorization": f"Bearer {admin.read_text().strip()}"}

    def members(name: str) -> set[str]:
        answer = cluster[name].get("/cluster", headers=token)
        return {node["name"] for node in answer.json["cluster"]["nodes"]} if answer.status == 200 else set()

    cluster.start("node-1")
    cluster.wait_ready()
    assert cluster["node-1"].get("/cluster").status == 401
    cluster.start("node-2")
    cluster.wait_ready()
    assert members("node-1") == {"node-1", "node-2"}
    url = f"http://localhost:{cluster.ports['node-2']}"
    for file in invitations:
        file.write_text(tool("invite", "--url", url, "--token-file", str(admin)))
        file.chmod(0o600)
    cluster.start("node-3")
    cluster.wait_ready()
    until(lambda: members("node-3") == {"node-1", "node-2", "node-3"}, what="the invited one is a member")

    thief = cluster.nodes.run(
        "--node-id", "node-4", "--http", str(free_port()), "--invitation", str(invitations[0]), cwd=cluster.home
    )
    assert thief.code == 1
    assert "was used, or has expired" in thief.err
    # It goes back without: its directory has the secret.
    cluster.stop("node-3")
    invitations[0].unlink()
    cluster.start("node-3")
    cluster.wait_ready()
    until(lambda: members("node-3") == {"node-1", "node-2", "node-3"}, what="it is back")
    log = "".join(cluster.log(name) for name in cluster.ports)
    assert not any(word in log for word in ("a secret of these nodes", admin.read_text().strip(), "tq_"))
    cluster.stop()
    cluster.assert_logs_are_clean("refused a connection|this node has no handlers")


def tool(*arguments: str) -> str:
    """What ``tq-token`` prints."""
    command = [sys.executable, "-m", "tq_node.cli.token_tool", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
