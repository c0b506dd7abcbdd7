"""Handlers for the client's tests."""

from __future__ import annotations

from typing import Any

from tests.support import in_reactor
from tq_node import Context, Reject, task


@task("echo", run="reactor")
async def echo(payload: Any, context: Context) -> Any:
    """Gives back what it gets."""
    return payload


@task("refuse", run="reactor")
async def refuse(payload: Any, context: Context) -> None:
    """Fails for good at its first attempt."""
    raise Reject(f"not {payload}")


@task("slow", run="reactor")
async def slow(payload: float, context: Context) -> str:
    """Takes so many seconds."""
    context.progress(0.5, "half")
    context.log("begun")
    await in_reactor.seconds(payload)
    return "done"
