"""Handlers for tests of whole clusters: those for one node, and some that need to know which node they run on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet import task as twisted_task

from tests.support.handlers import noop, work, work_async
from tq_node import Context, task

__all__ = ["flaky_async", "kill_node", "noop", "slow_async", "tick", "work", "work_async"]


def _ledger(context: Context, word: str) -> None:
    path = os.environ.get("TEST_LEDGER")
    if path:
        token = f"{context.token[0]}.{context.token[1]}"
        with open(path, "ab", buffering=0) as ledger:
            ledger.write(f"{context.task_id} {context.attempt} {token} {word} {os.getpid()}\n".encode())


@task("flaky-async", max_attempts=20, backoff=0.05)
async def flaky_async(payload: Any, context: Context) -> None:
    """Fails every first attempt, in the reactor: a worker process would cost more than the test wants to spend."""
    if context.attempt == 1:
        raise ValueError("the first attempt always fails")


@task("slow-async")
async def slow_async(payload: float, context: Context) -> int:
    """Some time in the reactor; the result is the node's process. Says in the ledger that it began and that it got to its end."""
    _ledger(context, "began")
    await twisted_task.deferLater(reactor, payload)
    _ledger(context, "ended")
    return os.getpid()


@task("tick")
def tick(payload: float, context: Context) -> int:
    """So many seconds in a worker process, with a line in the ledger at each tenth."""
    end = time.monotonic() + payload
    while time.monotonic() < end:
        _ledger(context, "ticks")
        time.sleep(0.1)
    return os.getpid()


@task("kill-node", max_attempts=10)
def kill_node(payload: str, context: Context) -> None:
    """kill -9 of the node that runs it. ``payload``: the directory with the data of all nodes, each with its pid file."""
    _ledger(context, "kills")
    pids = {int(path.read_text()) for path in Path(payload).glob("*/twistd.pid")}
    parent = os.getppid()
    assert parent in pids, f"{parent} is no node: {pids}"
    os.kill(parent, signal.SIGKILL)
    time.sleep(60)
