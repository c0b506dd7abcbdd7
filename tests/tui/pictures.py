"""Pictures of every screen for the documentation: ``python -m tests.tui.pictures``. Made of scripted tasks; no node is needed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.tui.build import populated, running, settled, work_on
from tq_tui import keys
from tq_tui.client.models import Event
from tq_tui.screens.submit import SubmitScreen

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "howto" / "console"
SIZE = (104, 30)


async def pictures() -> None:
    """One of each screen, of the form, and of a cluster in trouble."""
    PICTURES.mkdir(exist_ok=True)
    fake = populated()
    async with running(fake, size=SIZE) as (app, pilot):
        await work_on(app, fake, rounds=60)
        app.remember("task-0002")
        app.events.add(
            [
                Event(
                    task.id,
                    task.type,
                    task.queue,
                    task.status,
                    "2027-01-15T08:00:00.123Z",
                    "pending",
                    1,
                    task.node,
                    task.partition,
                )
                for task in fake.held.values()
            ]
        )

        def keep(name: str) -> None:
            svg = app.export_screenshot(title="tq-tui")
            # Names of styles are drawn by chance: the same screen is to be the same file.
            (PICTURES / f"{name}.svg").write_text(re.sub(r"terminal-\d+", "terminal-1", svg), "utf-8")

        for _, kind, _ in keys.SCREENS:
            app.go(kind)
            await settled(app, pilot)
            keep(kind)
        app.push_screen(SubmitScreen(["email", "image", "report"]))
        await pilot.pause()
        await pilot.press(*"email", "tab", *'{"to":"user@example.com"}')
        keep("submit")
        await pilot.press("escape", "y")
        fake.stop("node-2")
        await work_on(app, fake, rounds=3)
        app.go(keys.OVERVIEW)
        await settled(app, pilot)
        keep("node-down")


if __name__ == "__main__":
    asyncio.run(pictures())
