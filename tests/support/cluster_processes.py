"""Handlers for tests of whole clusters that need worker processes, beside those that do not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.support.cluster_handlers import flaky_async, in_ledger, slow_async
from tests.support.handlers import noop, work, work_async
from tq_node import Context, task

__all__ = ["flaky_async", "kill_node", "noop", "slow_async", "tick", "work", "work_async"]


@task("tick")
def tick(payload: float, context: Context) -> int:
    """So many seconds in a worker process, with a line in the ledger at each tenth."""
    end = time.monotonic() + payload
    while time.monotonic() < end:
        in_ledger(context, "ticks")
        time.sleep(0.1)
    return os.getpid()


@task("kill-node", max_attempts=10)
def kill_node(payload: str, context: Context) -> None:
    """kill -9 of the node that runs it. ``payload``: the directory with the data of all nodes, each with its pid file."""
    in_ledger(context, "kills")
    pids = {int(path.read_text()) for path in Path(payload).glob("*/twistd.pid")}
    parent = os.getppid()
    assert parent in pids, f"{parent} is no node: {pids}"
    os.kill(parent, signal.SIGKILL)
    time.sleep(60)
