"""What runs in the recorded clusters, and in today's that go on with their tasks.

Copied to where the nodes run, so that it belongs to no release. ``TEST_HELD_S`` says how long the held ones take.
"""

from __future__ import annotations

import os
from inspect import signature
from types import FunctionType
from typing import Any

from twisted.internet import reactor
from twisted.internet import task as twisted_task

from tq_node import Context, Reject, task

IN_REACTOR: dict[str, Any] = {"run": "reactor"} if "run" in signature(task).parameters else {}
"""An older release runs every ``async def`` there, and knows no such option."""
HELD_S = float(os.environ.get("TEST_HELD_S", "0"))


def _scrubbed(function: Any) -> Any:
    """Tracebacks are kept with tasks: no path of the machine that recorded them belongs there."""
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace(co_filename="handlers.py")
    return function


@task("quick", **IN_REACTOR)
async def quick(payload: Any, context: Context) -> Any:
    """The result is the payload."""
    return payload


@task("apart")
def apart(payload: Any, context: Context) -> Any:
    """In a worker process."""
    return payload


@task("talks", **IN_REACTOR)
async def talks(payload: Any, context: Context) -> str:
    """Leaves progress and lines behind."""
    context.progress(0.5, "half of it")
    context.log("a line")
    context.log("another line")
    return "said"


@task("held", **IN_REACTOR)
async def held(payload: Any, context: Context) -> str:
    """Is still running when the recording ends."""
    context.progress(0.25)
    await twisted_task.deferLater(reactor, HELD_S)
    return "let go"


@task("brief", **IN_REACTOR)
async def brief(payload: float, context: Context) -> str:
    """So many seconds, telling how far it is; a negative number: and fails then."""
    for step in range(10):
        await twisted_task.deferLater(reactor, abs(payload) / 10)
        context.progress(step / 10)
    if payload < 0:
        raise ValueError("as asked")
    return "done"


@task("fails", max_attempts=2, backoff=0.05, **IN_REACTOR)
@_scrubbed
async def fails(payload: Any, context: Context) -> None:
    """Always."""
    raise ValueError(f"attempt {context.attempt} fails")


@task("flaky", max_attempts=3, backoff=0.05, **IN_REACTOR)
@_scrubbed
async def flaky(payload: Any, context: Context) -> str:
    """At its first attempt."""
    if context.attempt == 1:
        raise ValueError("the first attempt fails")
    return "at last"


@task("refused", **IN_REACTOR)
async def refused(payload: Any, context: Context) -> None:
    """For good."""
    raise Reject("never again")
