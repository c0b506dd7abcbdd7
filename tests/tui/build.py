"""A console over a scripted cluster, told what a watch would tell, at times that the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
from textual.pilot import Pilot

from tests.support.fake_cluster import FakeCluster
from tq_tui.app import Console
from tq_tui.client.api import ClientError
from tq_tui.client.models import LogLine, Metrics, Progress, TaskError
from tq_tui.palette import PaletteHost
from tq_tui.screens.base import ScreenHost
from tq_tui.state.cluster_view import Failed, Ticked
from tq_tui.watch import look

LATENCY_S = 0.004
_HOSTS: Callable[[Console], tuple[ScreenHost, PaletteHost]] = lambda app: (app, app)  # noqa: E731 (mypy checks that the app is both)


def populated(**options: Any) -> FakeCluster:
    """Three nodes and tasks of every state."""
    fake = FakeCluster(**options)
    for number in range(24):
        status = ("completed", "pending", "processing", "failed", "scheduled", "cancelled")[number % 6]
        fields: dict[str, Any] = {
            "attempt": int(status != "pending"),
            "created_at": fake.now - timedelta(seconds=10 * number + 1),
        }
        if status in ("completed", "processing", "failed"):
            fields["started_at"] = fake.now - timedelta(seconds=10 * number)
            fields["worker"] = f"node-{number % 3 + 1}"
        if status in ("completed", "failed", "cancelled"):
            fields["completed_at"] = fake.now - timedelta(seconds=10 * number - 3)
        if status == "completed":
            fields["result"] = "Email sent: user@example.com"
        if status == "failed":
            fields["error"] = TaskError("ValueError", "no such mailbox")
        if status == "processing":
            fields["progress"] = Progress(0.4, "second page")
            fields["log"] = (LogLine(fake.now, "first page sent"),)
        if status == "scheduled":
            fields["run_at"] = fake.now + timedelta(seconds=90)
        fake.add(("email", "image", "report", "thumbnail")[number % 4], status, **fields)
    return fake


def console(fake: FakeCluster, *names: str, **options: Any) -> Console:
    """Told by ``see`` and by nobody else."""
    addresses = [fake.address(name) for name in names or fake.names]
    return Console(fake, addresses, clock=lambda: fake.now_s, live=False, **options)


@asynccontextmanager
async def running(
    fake: FakeCluster, *, size: tuple[int, int] = (120, 40), seen: bool = True, **options: Any
) -> AsyncIterator[tuple[Console, Pilot[int]]]:
    """The console on a screen of that size; ``seen``: every node was looked at once."""
    app = console(fake, **options)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        if seen:
            await see(app, fake)
        await pilot.pause()
        yield app, pilot


async def see(app: Console, fake: FakeCluster, *, seconds: float = 1.0) -> None:
    """One round of all watches, then a second later."""
    for node in list(app.known.nodes):
        try:
            polled = await look(fake.at(node.address), node.address, lambda: fake.now_s)
            app.observe(replace(polled, latency_s=LATENCY_S))
        except ClientError as why:
            app.observe(Failed(node.address, fake.now_s, str(why), fake.now_s + 1))
    fake.advance(seconds)
    app.observe(Ticked(fake.now_s))


async def work_on(app: Console, fake: FakeCluster, rounds: int = 20) -> None:
    """So many seconds with tasks coming in and done: what charts show."""
    for number in range(rounds):
        for place, name in enumerate(fake.names):
            now: Metrics = fake.metrics[name]
            busy = (number + place) % 17
            more = 3 * number % 11 + place
            fake.metrics[name] = msgspec.structs.replace(
                now, busy=busy, idle=16 - busy, submitted=now.submitted + more, completed=now.completed + more // 2,
                failed=now.failed + (number % 7 == 0), cpu_s=now.cpu_s + 0.12, memory_bytes=68_000_000 + place,
                oldest_age_s={"default": 7.0 if place == 1 else 0.0},
            )  # fmt: skip
        await see(app, fake)


def text_of(app: Console) -> str:
    """The screen as a terminal shows it, without colours and without spaces at the ends of lines."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips)


async def until(pilot: Pilot[int], condition: Callable[[], object], deadline_s: float = 30.0) -> None:
    """Let the console go on until the condition holds."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await pilot.pause(0.01)


async def settled(app: Console, pilot: Pilot[int]) -> None:
    """No list or task is being asked for any more, and everything is drawn."""
    await pilot.pause()
    while workers := [worker for worker in app.workers if worker.group in ("list", "more", "task", "typing", "copy")]:
        await app.workers.wait_for_complete(workers)
        await pilot.pause()
