"""Every scenario goes as its golden output says. ``python -m tests.scenarios.runner --rewrite`` writes what happens now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.runner import SCENARIOS, main, rewritten

FILES = sorted(SCENARIOS.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    assert rewritten(path.read_text()) == path.read_text()


def test_each_subject_of_section_11_has_one() -> None:
    names = " ".join(path.stem for path in FILES)
    subjects = (
        "prevote",
        "checkquorum",
        "both",
        "confchange",
        "snapshot_races",
        "probe",
        "transfer",
        "readindex",
        "figure8",
    )
    for subject in (*subjects, "membership_add_remove", "membership_two_adds", "membership_two_removes", "evidence"):
        assert subject in names


def test_no_golden_output_shows_a_broken_promise() -> None:
    assert not [path.stem for path in FILES if "\n!!" in path.read_text()]


def test_the_runner_says_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prevote", "both"]) == 0
    assert capsys.readouterr().out == ""
