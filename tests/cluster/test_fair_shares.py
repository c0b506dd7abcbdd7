"""A real node that a loud caller wants too much of, beside a quiet one at another address."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.harness import PROJECT, Nodes, clean_environment

pytestmark = [pytest.mark.cluster, pytest.mark.long]

SECONDS = 4.0


def test_a_quiet_one_is_never_refused_beside_a_flood(nodes: Nodes) -> None:
    """It asks one thing at a time, so it is below its share. Printed is what it takes. ``test_token_quotas`` shows that shares
    are kept: here the node is rarely full when the quiet one asks."""
    node = nodes.start("--partitions", "8")
    address = f"127.0.0.1:{node.http_port}"

    def caller(source: str, connections: int, pause_s: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.loud", address, source, str(connections), str(pause_s), str(SECONDS)],
            cwd=PROJECT,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(process: subprocess.Popen[str]) -> dict[str, Any]:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        found: dict[str, Any] = json.loads(out)
        assert found["odd"] == []
        return found

    alone = told(caller("127.0.0.9", 1, 0.1))
    loud, quiet = map(told, [caller("127.0.0.2", 3_500, 0.02), caller("127.0.0.4", 1, 0.1)])
    print(
        f"\nloud {loud['admitted']} admitted, {loud['refused']} refused; quiet {quiet['admitted']}, {quiet['refused']} "
        f"refused; p99 of the quiet one {quiet['p99_ms']:.0f} ms, {alone['p99_ms']:.0f} ms alone, of the loud one "
        f"{loud['p99_ms']:.0f} ms"
    )
    assert loud["refused"] > 100, "it was too much"
    assert quiet["refused"] == 0
    assert quiet["admitted"] > 10
