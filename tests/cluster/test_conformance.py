"""``tq-worker-conformance``, held against three nodes of ours, and against one that asks for tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster, shared_cluster
from tests.support.harness import PROJECT, Nodes, clean_environment
from tests.support.memory_tokens import token_of
from tq_node.cli.tokens_file import written
from tq_node.conformance.cases import CASES
from tq_node.conformance.main import MODULES
from tq_node.tokens import Role, TokenEntry, hash_of

pytestmark = pytest.mark.cluster
KIT_S = 240
IDLE = ("--handlers", "tests.support.cluster_handlers", "--concurrency", "1")
assert MODULES


def kit(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tq_node.conformance", *arguments],
        cwd=PROJECT, env=clean_environment(**variables), capture_output=True, text=True, timeout=KIT_S, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with shared_cluster(tmp_path_factory.mktemp("nodes"), *IDLE) as made:
        yield made


def test_three_nodes_pass_it(cluster: Cluster) -> None:
    ran = kit(*(f"127.0.0.1:{port}" for port in cluster.ports.values()))
    print(ran.stdout)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    without = [one for one in CASES if not one.asks_token]
    assert len(without) >= 60
    *lines, skipped, other, last = ran.stdout.splitlines()
    assert [line.split() for line in lines] == [["ok", one.name] for one in without]
    assert {skipped.split()[0], other.split()[0]} == {"skip"}
    assert last == f"{len(without)} of {len(without)} cases passed, 2 skipped"
    assert (
        "conformance-" not in cluster["node-1"].get("/tasks/list?scope=cluster&status=pending,processing").body.decode()
    )


def test_one_that_asks_for_tokens_passes_it(nodes: Nodes, tmp_path: Path) -> None:
    """With a token for what a worker, a submitter and an operator do, on a file."""
    tokens, shown = tmp_path / "tokens.toml", tmp_path / "token"
    tokens.touch(mode=0o600)
    tokens.write_text(written(TokenEntry("kit", hash_of(token_of(1)), (Role.WORK, Role.OPERATE))))
    shown.write_text(token_of(1) + "\n")
    node = nodes.start("--tokens-file", str(tokens), *IDLE)
    ran = kit(
        "--token-file", str(shown), "--only", "token", "--only", "completed", f"http://127.0.0.1:{node.http_port}"
    )
    assert ran.returncode == 0, ran.stdout
    assert {"no-token", "a-token-that-there-is-not"} <= {line.split()[1] for line in ran.stdout.splitlines()}
    assert "not ok" not in ran.stdout
    refused = kit("--only", "completed-again", f"127.0.0.1:{node.http_port}")
    assert refused.returncode == 1
    assert "not ok  completed-again: " in refused.stdout
