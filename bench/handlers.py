"""The handlers of the measured node."""

from __future__ import annotations

import time
from inspect import signature
from typing import Any

from tq_node import Context, task

_KNOWS_RUN = "run" in signature(task).parameters
IN_REACTOR: dict[str, Any] = {"run": "reactor"} if _KNOWS_RUN else {}
"""An older tree (``--tree``) runs every ``async def`` there, and knows no such option."""


@task("noop-async", **IN_REACTOR)
async def noop_async(payload: object, context: Context) -> int:
    """Do nothing, in the node's reactor."""
    return 1


if _KNOWS_RUN:

    @task("noop-asyncio")
    async def noop_asyncio(payload: object, context: Context) -> int:
        """Do nothing, on the event loop of a worker process."""
        return 1


@task("noop-process")
def noop_process(payload: object, context: Context) -> int:
    """Do nothing, in a worker process."""
    return 1


@task("first-line-async", **IN_REACTOR)
async def first_line_async(payload: object, context: Context) -> int:
    """Return CLOCK_MONOTONIC of the first line, in ns, in the reactor; the client on this machine reads the same clock."""
    return time.monotonic_ns()


@task("first-line-process")
def first_line_process(payload: object, context: Context) -> int:
    """Return CLOCK_MONOTONIC of the first line, in ns, in a worker process."""
    return time.monotonic_ns()
