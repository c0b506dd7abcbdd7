"""Handlers for tests of whole clusters, all of them in the reactor: nodes that have no others start no worker processes.

Those that run in worker processes are in ``cluster_processes``.
"""

from __future__ import annotations

import os
from typing import Any

from tests.support import in_reactor
from tests.support.handlers import noop, work_async
from tq_node import Context, task

__all__ = ["flaky_async", "noop", "slow_async", "work_async"]


def in_ledger(context: Context, word: str) -> None:
    path = os.environ.get("TEST_LEDGER")
    if path:
        token = f"{context.token[0]}.{context.token[1]}"
        with open(path, "ab", buffering=0) as ledger:
            ledger.write(f"{context.task_id} {context.attempt} {token} {word} {os.getpid()}\n".encode())


@task("flaky-async", max_attempts=20, backoff=0.05, run="reactor")
async def flaky_async(payload: Any, context: Context) -> None:
    """Fails every first attempt, in the reactor: a worker process would cost more than the test wants to spend."""
    if context.attempt == 1:
        raise ValueError("the first attempt always fails")


@task("slow-async", run="reactor")
async def slow_async(payload: float, context: Context) -> int:
    """Some time in the reactor; the result is the node's process. Says in the ledger that it began and that it got to its end."""
    in_ledger(context, "began")
    await in_reactor.seconds(payload)
    in_ledger(context, "ended")
    return os.getpid()
