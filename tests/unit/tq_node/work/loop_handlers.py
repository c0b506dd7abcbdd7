"""Handlers that run on the event loop of a worker process, for ``test_loop_handlers``."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import time
from typing import Any

from twisted.internet.defer import Deferred

from tq_node import Context, Reject, Retry, task

_seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


@task("l_echo")
async def echo(payload: Any, context: Context) -> Any:
    return payload


@task("l_sleep")
async def sleep(payload: float, context: Context) -> int:
    await asyncio.sleep(payload)
    return os.getpid()


@task("l_about")
async def about(payload: Any, context: Context) -> list[Any]:
    return [context.task_id, context.type, context.queue, context.attempt, context.deadline is not None]


@task("l_say")
async def say(payload: str, context: Context) -> None:
    print(f"printed by {payload}")
    await asyncio.sleep(0.05)
    context.log(f"logged by {payload}")
    context.progress(0.5, payload)
    await asyncio.to_thread(print, f"in a thread of {payload}")
    print(f"warned by {payload}", file=sys.stderr)


@task("l_cancelled")
async def cancelled(payload: Any, context: Context) -> None:
    context.log("begun")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        context.log(f"cancelled: {context.cancelled}")
        raise


@task("l_stubborn")
async def stubborn(payload: Any, context: Context) -> None:
    context.log("begun")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            context.log("no")


@task("l_block")
async def block(payload: float, context: Context) -> None:
    time.sleep(payload)


@task("l_deferred")
async def deferred(payload: Any, context: Context) -> None:
    await Deferred()


@task("l_raise")
async def raises(payload: str, context: Context) -> None:
    await asyncio.sleep(0)
    raise {"Retry": Retry(7), "Reject": Reject("no"), "exit": SystemExit(3), "value": ValueError("bad")}[payload]


@task("l_die")
async def die(payload: Any, context: Context) -> None:
    os.kill(os.getpid(), 9)


@task("l_variable")
async def variable(payload: str, context: Context) -> str:
    before = _seen.get()
    _seen.set(payload)
    await asyncio.sleep(0)
    return f"{before} {_seen.get()}"


@task("l_result")
async def bad_result(payload: Any, context: Context) -> Any:
    return threading


@task("l_reactor", run="reactor")
async def in_reactor(payload: Any, context: Context) -> None:
    await asyncio.get_running_loop().create_future()
