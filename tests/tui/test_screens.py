"""Every screen in every state at three sizes, as text that is kept in ``screens/``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fake_cluster import FakeCluster
from tests.tui.build import populated, running, settled, text_of, until, work_on
from tq_tui import keys
from tq_tui.client.api import Refused
from tq_tui.screens.overview import Room
from tq_tui.widgets.drawn import Drawn

SIZES = ((80, 24), (120, 40), (60, 16))
STATES = ("healthy", "node-down", "no-quorum", "empty", "error", "million")
LOOKS, LOOK_S = 50, 0.1
"""A screen has five seconds to look as it shall."""


def scripted(state: str) -> FakeCluster:
    fake = FakeCluster() if state == "empty" else populated()
    if state == "million":
        fake.million = 1_000_000
    return fake


@pytest.mark.parametrize(
    ("state", "size"),
    [
        pytest.param(state, size, marks=[] if size == SIZES[0] or state == "healthy" else [pytest.mark.long])
        for state in STATES
        for size in SIZES
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
async def test_every_screen(state: str, size: tuple[int, int], same_screen: Callable[[str, str], None]) -> None:
    fake = scripted(state)
    async with running(fake, size=size) as (app, pilot):
        await work_on(app, fake)
        if state in ("node-down", "no-quorum"):
            fake.stop("node-2")
            await work_on(app, fake, rounds=3)
        if state == "no-quorum":
            fake.stop("node-1")
            await work_on(app, fake, rounds=3)
        if state == "error":
            fake.refusals = [Refused(503, "not_ready", "the node is starting")] * 10_000
        app.remember("task-0000003" if fake.million else "task-0003")
        for _, kind, _ in keys.SCREENS:
            app.go(kind)
            await settled(app, pilot)
            name = f"{kind}-{state}-{size[0]}x{size[1]}"
            shown = ""
            for again in reversed(range(LOOKS)):
                # A scroll bar comes a layout later than its list; on a busy machine that may be after the first look.
                shown = text_of(app)
                try:
                    same_screen(name, shown)
                    break
                except AssertionError:
                    if not again:
                        raise
                    await pilot.pause(LOOK_S)
            lines = shown.split("\n")
            assert len(lines) == size[1]
            assert "? help" in lines[-1]
            assert "q quit" in lines[-1]


async def test_the_overview_follows_the_room_there_is() -> None:
    """The lines above it may become more after it was drawn, and nothing new is observed."""
    fake = populated()
    async with running(fake, size=(120, 40)) as (app, pilot):
        await work_on(app, fake, rounds=3)
        await settled(app, pilot)
        room = app.screen.query_one(Room)
        before = room.size.height
        room.styles.margin = (3, 0, 0, 0)
        await until(pilot, lambda: room.size.height == before - 3)
        await until(pilot, lambda: room.query_one(Drawn).size.height == room.size.height - 1, 5.0)
