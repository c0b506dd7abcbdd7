"""One scenario from its beginning to its result, and the sum of many."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import clocks, disks, kills, links, operations, overloads
from tests.chaos.judge import Result, judge
from tests.chaos.scenario import SCENARIOS, Scenario
from tests.chaos.stage import Stage

FAMILIES = (kills, links, disks, clocks, operations, overloads)
"""Their scenarios are in the table once they are imported; in this order."""


def play(one: Scenario, directory: Path, seed: str = "1") -> Result:
    """What goes wrong is in the result. ``directory``, which must not exist, keeps the logs and stores."""
    result = Result(one.name, skipped=one.lacks())
    if result.skipped:
        return result
    directory.mkdir(parents=True)
    began_s = time.monotonic()
    stage = Stage(one, directory, seed)
    try:
        stage.open()
        result.told = one.act(stage) or ""
        stage.heal()
        judge(stage, result)
    except Exception as why:
        result.broken.append(f"{type(why).__name__}: {why}")
        (directory / "traceback").write_text(traceback.format_exc())
    finally:
        result.peak = stage.footprint.peak
        stage.close()
    if result.broken:
        heard = sorted(stage.history.calls, key=lambda call: call.began_s)
        (directory / "history").write_text("".join(f"{call.task}: {call}\n" for call in heard))
    result.seconds = time.monotonic() - began_s
    return result


def summary(results: Sequence[Result]) -> str:
    played = [result for result in results if not result.skipped]
    broken = [result.name for result in played if result.broken]
    skipped = [result.name for result in results if result.skipped]
    told = (
        f"{len(played)} scenarios in {sum(result.seconds for result in played) / 60:.1f} minutes: "
        f"{sum(result.acknowledged for result in played)} tasks acknowledged, {sum(result.lost for result in played)} lost, "
        f"{sum(result.doubled for result in played)} doubled in the record, {sum(result.extra for result in played)} extra "
        f"executions of {sum(result.starts for result in played)}"
    )
    if broken:
        told += f"; BROKEN: {', '.join(broken)}"
    if skipped:
        told += f"; skipped: {', '.join(skipped)}"
    return told


__all__ = ["SCENARIOS", "play", "summary"]
