"""The handlers of the measured node."""

from __future__ import annotations

import time

from tq_node import Context, task


@task("noop-async", run="reactor")
async def noop_async(payload: object, context: Context) -> int:
    """Do nothing, in the node's reactor."""
    return 1


@task("noop-process")
def noop_process(payload: object, context: Context) -> int:
    """Do nothing, in a worker process."""
    return 1


@task("first-line-async", run="reactor")
async def first_line_async(payload: object, context: Context) -> int:
    """Return CLOCK_MONOTONIC of the first line, in ns, in the reactor; the client on this machine reads the same clock."""
    return time.monotonic_ns()


@task("first-line-process")
def first_line_process(payload: object, context: Context) -> int:
    """Return CLOCK_MONOTONIC of the first line, in ns, in a worker process."""
    return time.monotonic_ns()
