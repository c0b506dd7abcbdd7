"""Nodes that join without the HTTP side of a member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.test_peer_tls import certificates, make_ca
from tests.support.harness import until

pytestmark = pytest.mark.cluster

MakeCluster = Callable[..., Cluster]
NAMES = ("node-1", "node-2")


@pytest.mark.parametrize("by", ["secret", "certificates"])
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
