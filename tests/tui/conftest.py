"""Coroutines as tests, each in a loop of its own; and screens compared with what they looked like."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import _wait

# The pilot looks for quiet in steps of 20 ms, several a key. Half of that is as good a sign, and half the time of these tests.
_wait.SLEEP_GRANULARITY = 0.01
_wait.SLEEP_IDLE = 0.001
DEADLINE_S = 60.0
SCREENS = Path(__file__).with_name("screens")


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
