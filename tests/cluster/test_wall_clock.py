"""F39: the system's clock steps an hour back and forth under a running node; timers, delays and order don't notice."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest

from tests.support.harness import NodeProcess, Nodes

pytestmark = pytest.mark.cluster

LIBRARY = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)


def faked(nodes: Nodes, steps: Path, offset: str) -> NodeProcess:
    steps.write_text(f"{offset}\n")
    assert LIBRARY is not None
    return nodes.start(
        "--node-id", "n", "--handlers", "tests.support.cluster_handlers",
        environment={
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(steps),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        },
    )  # fmt: skip


def delayed(node: NodeProcess) -> tuple[float, dict[str, str]]:
    """How long a task with a delay of one second takes by a clock that nobody steps, and the task."""
    start = time.monotonic()
    found = node.status(node.submit("noop", delay=1), wait_s=20)
    assert found["status"] == "completed", found
    return time.monotonic() - start, found


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")
@pytest.mark.parametrize("step", ["-3600", pytest.param("+3600", marks=pytest.mark.long)])
def test_a_step_of_an_hour_changes_no_delay(nodes: Nodes, tmp_path: Path, step: str) -> None:
    steps = tmp_path / "steps"
    node = faked(nodes, steps, "+0")
    before, first = delayed(node)
    waiting = node.submit("noop", delay=2)
    # Replaced at once: a file that is read while it is empty would end the library's patience.
    (tmp_path / "next").write_text(f"{step}\n")
    os.replace(tmp_path / "next", steps)
    start = time.monotonic()
    assert node.status(waiting, wait_s=20)["status"] == "completed"
    overdue = time.monotonic() - start
    after, second = delayed(node)
    for seconds in (before, after):
        assert 0.9 < seconds < 60, "a delay of one second, not of an hour"
    assert overdue < 60, "a task that waits is not forgotten for an hour"
    assert first["completed_at"] < second["created_at"], "what is shown never goes back"
    assert node.terminate() == 0
    node.assert_log_is_clean()
