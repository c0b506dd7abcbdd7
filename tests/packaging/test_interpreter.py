"""Which Python ``make`` takes: one whose compiler was guided by a profile before any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.harness import PROJECT

GUIDED, PLAIN, UNFIT = "echo 0 3.13.1, with PGO and LTO", "echo 1 3.12.1, with neither PGO nor LTO", "exit 1"
TOOLS = ("cut", "echo", "head", "sh", "sort")
MAKE = shutil.which("make") or "make"


def chosen(folder: Path, *options: str, **pythons: str) -> str:
    """By ``make``, of these names in PATH (with an underscore for the dot), each a script."""
    for name, script in pythons.items():
        path = folder / name.replace("_", ".")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    command = [MAKE, "--eval", "chosen: ; @echo '$(PYTHON)'", "chosen", *options]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"
    }
    done = subprocess.run(
        command, cwd=PROJECT, env=environment | {"PATH": str(folder)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("pythons", "choice"),
    [
        ({"python3": PLAIN, "python3_13": GUIDED}, "python3.13"),
        ({"python3": GUIDED, "python3_13": GUIDED}, "python3"),
        ({"python3": UNFIT, "python3_12": PLAIN, "python3_11": PLAIN}, "python3.12"),
        ({"python3": UNFIT}, ""),
    ],
    ids=["guided by a profile", "the first of two", "the first that is fit", "none is fit"],
)
def test_choice(tmp_path: Path, pythons: dict[str, str], choice: str) -> None:
    assert chosen(tmp_path, **pythons) == choice


def test_who_names_one_gets_that(tmp_path: Path) -> None:
    assert chosen(tmp_path, "PYTHON=/opt/python", python3=GUIDED) == "/opt/python"


def test_a_python_says_how_it_was_built() -> None:
    said = subprocess.run(
        [sys.executable, "deploy/interpreter.py"], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    rank, version, *build = said.stdout.split()
    is_guided = "--enable-optimizations" in sysconfig.get_config_var("CONFIG_ARGS") or sys.base_prefix == "/usr"
    assert rank == ("0" if is_guided else "1")
    assert version == f"{sys.version.split()[0]},"
    assert build[0] == "with"
    assert len(build) > 1
