"""The same seed is the same run, in each family: what a failure prints can be seen again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.harness import PROJECT


@pytest.mark.parametrize(
    ("family", "seeds"),
    [
        ("raft", (1, 2, 3)),
        ("replication", (1, 2, 3)),
        pytest.param("cluster", (0, 2, 3), marks=pytest.mark.slow),  # in 0 nodes stop in order
    ],
)
def test_the_same_seed_is_the_same_run_under_any_hash_seed(family: str, seeds: tuple[int, ...]) -> None:
    code = (
        f"from tests.simulation.{family}.world import simulate; print([simulate(seed).summary() for seed in {seeds}])"
    )
    summaries = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(summaries) == 1
    assert "trace" in summaries.pop()
