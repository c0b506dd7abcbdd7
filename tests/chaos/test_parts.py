"""The suite's own parts: what it must notice, it notices."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.executions import executions
from tests.chaos.judge import Result
from tests.chaos.playing import SCENARIOS, summary


def ledger(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line} 0\n" for line in lines))
    return path


def record(*outcomes: str) -> dict[str, object]:
    return {"status": "completed", "attempts": [{"outcome": outcome} for outcome in outcomes]}


def test_executions_are_counted_over_all_ledgers(tmp_path: Path) -> None:
    ledgers = [
        ledger(tmp_path / "1", "t 1 2.5 began", "u 1 2.6 began", "u 1 2.6 ended"),
        ledger(tmp_path / "2", "t 2 3.9 began", "t 2 3.9 ended"),
        tmp_path / "a node that never ran a task",
    ]
    found = executions(ledgers, {"t": record("lost", "completed"), "u": record("completed")})
    assert (found.starts, found.extra, found.repeated) == (3, 1, [])


def test_failed_and_cancelled_attempts_are_no_extra_executions(tmp_path: Path) -> None:
    ledgers = [ledger(tmp_path / "1", "t 1 2.5 began", "t 2 2.7 began", "t 3 2.9 began")]
    found = executions(ledgers, {"t": record("failed", "failed", "completed")})
    assert (found.starts, found.extra) == (3, 0)


def test_one_attempt_that_begins_on_two_nodes_is_named(tmp_path: Path) -> None:
    ledgers = [ledger(tmp_path / "1", "t 1 2.5 began"), ledger(tmp_path / "2", "t 1 2.5 began")]
    found = executions(ledgers, {"t": record("completed")})
    assert found.repeated == ["t 2.5"]
    assert found.extra == 1


def test_an_execution_of_a_task_that_is_not_there_is_extra(tmp_path: Path) -> None:
    found = executions([ledger(tmp_path / "1", "t 1 2.5 began")], {})
    assert found.extra == 1


def test_the_last_line() -> None:
    results = [
        Result("a", seconds=90, acknowledged=100, starts=120, extra=2),
        Result("b", seconds=30, acknowledged=50, starts=60, lost=1, doubled=1, broken=["lost"]),
        Result("c", skipped="strace is not installed"),
    ]
    assert summary(results) == (
        "2 scenarios in 2.0 minutes: 150 tasks acknowledged, 1 lost, 1 doubled in the record, 2 extra executions of 180; "
        "BROKEN: b; skipped: c"
    )
    assert "BROKEN" in results[1].line
    assert results[2].line == "c: skipped, strace is not installed"


def test_there_are_enough_of_them() -> None:
    assert len(SCENARIOS) >= 20
    assert {name for name, one in SCENARIOS.items() if one.is_short} == {"kill-primary"}
    assert all(one.told.endswith((".", ")")) for one in SCENARIOS.values())
