"""The suite by pytest: the short scenarios are part of ``make test``; ``python -m tests.chaos`` plays them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.playing import SCENARIOS, play

pytestmark = pytest.mark.cluster


def _case(name: str) -> object:
    return pytest.param(name, marks=[] if SCENARIOS[name].is_short else [pytest.mark.long])


@pytest.mark.parametrize("name", [_case(name) for name in SCENARIOS])
def test_scenario(name: str, tmp_path: Path) -> None:
    result = play(SCENARIOS[name], tmp_path / name)
    if result.skipped:
        pytest.skip(result.skipped)
    print(f"\n{result.line}")
    assert not result.broken, "\n".join([result.line, *result.broken])
