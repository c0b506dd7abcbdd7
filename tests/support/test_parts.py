"""``tests.parts``: no test is left out, failures are seen, costs are added up, and CONTRIBUTING.md says the budgets."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests import parts
from tests.support.harness import PROJECT


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LOGS", tmp_path)


def python(name: str, code: str, then: str = "") -> parts.Part:
    return parts.Part(name, (sys.executable, "-c", code), 10, (sys.executable, "-c", then) if then else ())


def test_contributing_says_the_budgets() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", (PROJECT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert rows == [(part.name, str(part.cpu_s_max)) for part in parts.QUICK]
    assert sum(part.cpu_s_max for part in parts.QUICK) <= 2 * parts.WALL_S_MAX


def test_every_folder_that_a_part_names_is_there() -> None:
    for part in (*parts.QUICK, *parts.LONG):
        named = [word.removeprefix("--ignore=") for word in part.command if "tests/" in word]
        assert all((PROJECT / name).exists() for name in named), part


def test_no_part_ignores_what_it_names() -> None:
    """pytest collects what its command line names, whatever it says about ignoring that."""
    for part in (*parts.QUICK, *parts.LONG):
        assert not {f"--ignore={word}" for word in part.command} & set(part.command), part.name


def test_what_one_part_ignores_another_runs() -> None:
    by_name = {part.name: part for part in parts.QUICK}
    ignored = {word.removeprefix("--ignore=") for word in by_name["rest"].command if word.startswith("--ignore=")}
    run = {
        word for name in ("processes", "pure", "console") for word in by_name[name].command if word.startswith("tests/")
    }
    assert ignored == run - {"tests/tui/pytest.ini"}


def test_each_file_of_real_nodes_runs_in_one_part() -> None:
    globs = [
        word.removeprefix("--ignore-glob=") for part in parts.QUICK for word in part.command if "ignore-glob" in word
    ]
    assert len(globs) == 2
    for file in (PROJECT / "tests/cluster").glob("test_*.py"):
        assert sum(fnmatch(str(file), glob) for glob in globs) == 1, file


def test_a_part_that_fails_fails_the_suite_and_its_second_command_runs_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        parts,
        "QUICK",
        (python("good", "print('=== 3 passed in 0.10s ===')"), python("bad", "raise SystemExit(3)", "print('after')")),
    )
    monkeypatch.setattr(sys, "argv", ["parts"])
    assert parts.main() == 1
    shown = capsys.readouterr().out
    assert "after" in shown
    assert re.search(r"good .* 3 passed$", shown, re.MULTILINE)
    assert "FAILED (3)" in shown
    monkeypatch.setattr(sys, "argv", ["parts", "good"])
    assert parts.main() == 0


def test_cpu_time_of_children_is_counted() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    assert parts.run(python("burns", child), lambda process: None).cpu_s >= 0.3


def test_compiled_modules_are_kept_outside_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment = parts.environment()
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["PYTHONPYCACHEPREFIX"] == str(PROJECT / "build" / "pycache")


TWICE = """
import pathlib

def test_it(tmp_path_factory):
    mark = pathlib.Path({mark!r})
    ran_before, _ = mark.exists(), mark.touch()
    assert ran_before
"""


@pytest.mark.parametrize("passes", [True, False])
def test_what_failed_beside_the_others_is_run_once_more_alone_and_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, passes: bool
) -> None:
    file = tmp_path / "test_twice.py"
    file.write_text(TWICE.format(mark=str(tmp_path / "mark")) if passes else "def test_it():\n    assert False\n")
    monkeypatch.setattr(parts, "PROJECT", tmp_path)
    part = parts.Part("twice", (sys.executable, "-m", "pytest", "-rfE", "-p", "no:schemathesis", "test_twice.py"), 10)
    monkeypatch.setattr(parts, "QUICK", (part,))
    monkeypatch.setattr(sys, "argv", ["parts"])
    assert parts.main() == (0 if passes else 1)
    shown = capsys.readouterr().out
    assert "once more, alone:\n    test_twice.py::test_it" in shown
    assert ("1 PASSED ONLY ALONE" in shown) is passes
