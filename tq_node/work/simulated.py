"""The simulated handlers of the contract: they wait, and say that it is done.

They run in the reactor and look at the deadline after each step, as ``replication.md`` section 8
asks of handlers that live in the node."""

from __future__ import annotations

import json
import time
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from tq_node.work.handlers import WILDCARD, Context, Reject, task

STEP_S = 0.1
PROGRESS_EVERY_STEPS = 5


def clock() -> IReactorTime:
    """Where the steps are counted; tests put another here."""
    # The reactor is installed by being imported, so this waits until a handler really runs.
    from twisted.internet import reactor

    return cast("IReactorTime", reactor)


@task("email", run="reactor")
async def email(payload: Any, context: Context) -> str:
    await _work(1.0, context)
    return f"Email sent: {shown(payload)}"


@task("image", run="reactor")
async def image(payload: Any, context: Context) -> str:
    await _work(3.0, context)
    return f"Image processed: {shown(payload)}"


@task("report", run="reactor")
async def report(payload: Any, context: Context) -> str:
    await _work(5.0, context)
    return f"Report generated: {shown(payload)}"


@task(WILDCARD, run="reactor")
async def anything(payload: Any, context: Context) -> str:
    await _work(2.0, context)
    return f"Task completed: {shown(payload)}"


def shown(payload: Any) -> str:
    """A string as it is, anything else as compact JSON."""
    return payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


async def _work(seconds: float, context: Context) -> None:
    """Wait so long in steps; raises ``Reject`` if cancelled, ``TimeoutError`` past a deadline."""
    reactor = clock()
    start_s = reactor.seconds()
    step = 0
    while (left_s := start_s + seconds - reactor.seconds()) > 0.0005:
        waiting: Deferred[None] = deferLater(reactor, min(STEP_S, left_s))
        await waiting
        step += 1
        if context.cancelled:
            raise Reject("cancelled")
        if context.deadline is not None and time.time() >= context.deadline:
            raise TimeoutError("the deadline is past")
        if step % PROGRESS_EVERY_STEPS == 0:
            context.progress((reactor.seconds() - start_s) / seconds)
