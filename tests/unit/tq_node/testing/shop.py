"""Handlers of an application, as its own tests call them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TypedDict

import msgspec

from tq_node import Context, Reject, Retry, task


@dataclass
class Mail:
    to: str
    subject: str = "no subject"
    pause: timedelta | None = None


class Picture(msgspec.Struct):
    path: str
    sizes: list[int]


class Named(TypedDict):
    name: str


@task("shop.email", queue="mail", max_attempts=4)
def email(payload: str, context: Context) -> str:
    context.log(f"to {payload}")
    context.progress(0.5, "half")
    return f"sent to {payload} from {context.queue}"


@task("shop.mail")
def mail(payload: Mail, context: Context) -> str:
    assert isinstance(payload, Mail)
    return f"{payload.subject} for {payload.to}"


@task("shop.pictures")
async def pictures(payload: list[Picture] | None, context: Context) -> int:
    await asyncio.sleep(0)
    return sum(len(picture.sizes) for picture in payload or ())


@task("shop.named")
def named(payload: Named, context: Context) -> str:
    return f"{type(payload).__name__} {payload['name']}"


@task("shop.flaky")
def flaky(payload: int, context: Context) -> int:
    """Succeeds at the attempt with this number."""
    context.log(f"attempt {context.attempt}")
    if context.attempt < payload:
        raise Retry(5)
    return context.attempt


@task("shop.hopeless")
def hopeless(payload: str, context: Context) -> None:
    raise Reject(payload)


@task("shop.reactor", run="reactor")
async def in_reactor(payload: str, context: Context) -> None: ...


@task("shop.bad")
def bad(payload: None, context: Context) -> object:
    return {1, 2}
