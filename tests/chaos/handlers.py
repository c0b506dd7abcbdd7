"""Handlers of the chaos suite: each start and each end leaves a line in the ledger of its node (``tests.chaos.executions``)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.chaos.executions import LEDGER
from tests.support import in_reactor
from tq_node import Context, task


def _note(context: Context, word: str) -> None:
    """One write at the end of the file: whole, or not there, whatever dies when."""
    epoch, sequence = context.token
    with open(os.environ[LEDGER], "ab", buffering=0) as ledger:
        ledger.write(f"{context.task_id} {context.attempt} {epoch}.{sequence} {word} {time.monotonic_ns()}\n".encode())


@task("noop", run="reactor")
async def noop(payload: Any, context: Context) -> None:
    """Nothing, in the reactor."""
    _note(context, "began")
    _note(context, "ended")


@task("work-async", run="reactor")
async def work_async(payload: float, context: Context) -> None:
    """So many seconds, in the reactor."""
    _note(context, "began")
    await in_reactor.seconds(payload)
    _note(context, "ended")


@task("work-process")
def work_process(payload: float, context: Context) -> None:
    """So many seconds, in a worker process."""
    _note(context, "began")
    time.sleep(payload)  # the task is to take so long
    _note(context, "ended")


@task("flaky-async", max_attempts=20, backoff=0.05, run="reactor")
async def flaky_async(payload: Any, context: Context) -> None:
    """Every first attempt fails."""
    _note(context, "began")
    if context.attempt == 1:
        raise ValueError("the first attempt always fails")
    _note(context, "ended")


@task("fails", max_attempts=1, run="reactor")
async def fails(payload: Any, context: Context) -> None:
    """For good."""
    _note(context, "began")
    raise ValueError("it always fails")


@task("kill-node", max_attempts=10)
def kill_node(payload: str, context: Context) -> None:
    """kill -9 of the node that runs it. ``payload``: the directory with the data of all nodes, each with its pid file."""
    _note(context, "began")
    pids = {int(path.read_text()) for path in Path(payload).glob("*/twistd.pid")}
    parent = os.getppid()
    assert parent in pids, f"{parent} is no node: {pids}"
    os.kill(parent, signal.SIGKILL)
    time.sleep(60)  # until it is killed
