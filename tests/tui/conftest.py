"""Coroutines as tests, each in a loop of its own; and screens compared with what they looked like."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import app, pilot

DEADLINE_S = 60.0
SCREENS = Path(__file__).with_name("screens")
SOON_S = 0.02
"""A timer that is due by then is waited for: a screen draws what has changed a sixtieth of a second later."""
TURNS_MAX = 1_000


async def quiet(*_: float) -> None:
    """Wait until the loop has nothing to run, and nothing soon. The pilot's own looks at the CPU that this process gets, and
    beside other load takes a process that has to wait for some for one that has nothing to do.
    """
    loop: Any = asyncio.get_running_loop()
    for _turn in range(TURNS_MAX):
        await asyncio.sleep(0)
        if loop._ready:
            continue
        due = [call.when() for call in loop._scheduled if not call.cancelled() and call.when() < loop.time() + SOON_S]
        if not due:
            return
        await asyncio.sleep(max(0.0, max(due) - loop.time()))


for module in (app, pilot):
    vars(module)["wait_for_idle"] = quiet


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-screens", action="store_true", help="keep what the screens look like now")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """No plugin is needed for this much."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await pyfuncitem.obj(**wanted)

    asyncio.run(within_deadline())
    return True


@pytest.fixture
def same_screen(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``same_screen(name, text)``: the text is what is kept under that name, letter by letter.

    Text and not pictures: a change is read in a diff, and what can't be told without colour is seen to be missing.
    """
    update: Any = request.config.getoption("--update-screens")

    def compare(name: str, text: str) -> None:
        kept = SCREENS / f"{name}.txt"
        if update:
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(text, "utf-8")
            return
        assert kept.exists(), f"no screen is kept as {name}: run with --update-screens, and look at it"
        assert text.split("\n") == kept.read_text("utf-8").split("\n")

    return compare
