"""Watching nodes that come, go and hang; and a console that is there before any of them has answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.support.fake_cluster import FakeCluster
from tests.tui.build import populated, text_of, until
from tq_tui import watch
from tq_tui.app import Console
from tq_tui.client.api import Refused
from tq_tui.client.models import Event
from tq_tui.state.cluster_view import Failed, Observation, Polled
from tq_tui.watch import Watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pauses, a tenth as long."""
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(watch, "PATIENCE_S", 0.15)
    monkeypatch.setattr(watch, "BACKOFF_S", (0.02, 0.05, 0.1))


@asynccontextmanager
async def watching(
    fake: FakeCluster, name: str = "node-1"
) -> AsyncIterator[tuple[Watch, list[Observation], list[Event]]]:
    seen: list[Observation] = []
    heard: list[Event] = []

    def hear(events: Sequence[Event]) -> None:
        heard.extend(events)

    address = fake.address(name)
    watched = Watch(fake.at(address), address, seen.append, hear, lambda: fake.now_s)
    running = asyncio.create_task(watched.run())
    try:
        yield watched, seen, heard
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def wait(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_a_node_is_polled_again_and_again_and_its_events_received() -> None:
    fake = populated()
    async with watching(fake) as (_, seen, heard):
        await wait(lambda: len(seen) >= 3)
        assert all(isinstance(one, Polled) for one in seen)
        first = seen[0]
        assert isinstance(first, Polled)
        assert (first.stats.node, len(first.partitions or ()), first.metrics is not None) == ("node-1", 64, True)
        fake.start("task-0003")
        await wait(lambda: heard)
        assert (heard[0].task_id, heard[0].to) == ("task-0003", "processing")


async def test_one_that_goes_is_noticed_at_once_and_comes_back_by_itself() -> None:
    fake = populated()
    async with watching(fake) as (_, seen, _):
        await wait(lambda: seen)
        fake.stop("node-1", found_out=False)
        await wait(lambda: sum(isinstance(one, Failed) for one in seen) >= 3)
        failed = [one for one in seen if isinstance(one, Failed)]
        assert failed[0].error == "connection refused"
        assert [round(one.retry_at_s - one.at_s, 2) for one in failed[:3]] == [0.02, 0.05, 0.1]
        fake.bring_back("node-1")
        number = len(seen)
        await wait(lambda: isinstance(seen[-1], Polled) and len(seen) > number)
        fake.start("task-0000")


async def test_one_that_hangs_is_noticed_after_a_moment() -> None:
    fake = populated()
    fake.hanging.add("node-1")
    async with watching(fake) as (_, seen, _):
        await wait(lambda: seen)
        assert isinstance(seen[0], Failed)
        assert seen[0].error == "no answer in time"


async def test_a_nudge_is_a_look_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 60.0)
    async with watching(populated()) as (watched, seen, _):
        await wait(lambda: len(seen) == 1)
        for _ in range(5):
            watched.nudge()
        await wait(lambda: len(seen) == 2)


async def test_a_refusal_is_part_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = populated()

    async def refuse(self: object) -> None:
        raise Refused(503, "not_ready", "the node is in no cluster yet")

    monkeypatch.setattr("tests.support.fake_cluster.FakeNode.cluster", refuse)
    async with watching(fake) as (_, seen, _):
        await wait(lambda: seen)
        first = seen[0]
        assert isinstance(first, Polled)
        assert first.cluster.nodes == ()


async def test_the_console_learns_of_nodes_and_is_there_before_they_answer() -> None:
    fake = populated()
    fake.hanging.add("node-1")
    app = Console(fake, [fake.address("node-1"), fake.address("node-2")])
    async with app.run_test(size=(100, 30)) as pilot:
        assert "1 Overview" in text_of(app)
        await until(pilot, lambda: "DEGRADED" in text_of(app))
        await until(pilot, lambda: len(app.view.living) == 2)
        assert [node.label for node in app.view.nodes] == ["node-1", "node-2", "node-3"]
        fake.hanging.clear()
        await until(pilot, lambda: "HEALTHY" in text_of(app))
        fake.stop("node-3")
        await until(pilot, lambda: "node-3 down" in text_of(app), 2.0)
        fake.stop("node-2")
        await until(pilot, lambda: "NO QUORUM" in text_of(app))
        for name in ("node-2", "node-3"):
            fake.bring_back(name)
        await until(pilot, lambda: "HEALTHY" in text_of(app))
        await pilot.press("6")
        fake.start("task-0001")
        await until(pilot, lambda: "task-0001" in text_of(app))
        await pilot.press("R")
