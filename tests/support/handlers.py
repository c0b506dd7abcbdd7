"""Handlers for tests with real nodes. Each start leaves a line in the ledger, so that a result can be traced to a run."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from tests.support import in_reactor
from tq_node import Context, task


def _ran(context: Context) -> dict[str, Any]:
    line = {"id": context.task_id, "attempt": context.attempt, "token": list(context.token)}
    path = os.environ.get("TEST_LEDGER")
    if path:
        with open(path, "ab", buffering=0) as ledger:
            ledger.write(f"{context.task_id} {context.attempt} {context.token[0]}.{context.token[1]}\n".encode())
    return line


@task("noop", run="reactor")
async def noop(payload: Any, context: Context) -> None:
    """Nothing, in the reactor."""


@task("noop-process")
def noop_process(payload: Any, context: Context) -> None:
    """Nothing, in a worker process."""


@task("work")
def work(payload: float, context: Context) -> dict[str, Any]:
    """Some time in a worker process."""
    line = _ran(context)
    time.sleep(payload)
    return line


@task("work-async", run="reactor")
async def work_async(payload: float, context: Context) -> dict[str, Any]:
    """Some time in the reactor."""
    line = _ran(context)
    await in_reactor.seconds(payload)
    return line


@task("flaky", max_attempts=20, backoff=0.05)
def flaky(payload: float, context: Context) -> dict[str, Any]:
    """Fails every first attempt."""
    line = _ran(context)
    if context.attempt == 1:
        raise ValueError("the first attempt always fails")
    return line


@task("when", run="reactor")
async def when(payload: Any, context: Context) -> int:
    """The monotonic time of the first line, nanoseconds."""
    return time.monotonic_ns()


@task("when-process")
def when_process(payload: Any, context: Context) -> int:
    return time.monotonic_ns()


@task("poison", max_attempts=10)
def poison(payload: int, context: Context) -> None:
    """Kills its node (whose pid is the payload, or else the parent)."""
    os.kill(payload or os.getppid(), signal.SIGKILL)
    time.sleep(60)
