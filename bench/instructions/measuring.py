"""Runs a harness under callgrind, with everything fixed that could make two runs differ, and reads what was counted."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench.instructions.counter import MACHINES
from bench.processes import ROOT, Failed

HARNESS = Path(__file__).with_name("harness.py")
PART_S_MAX = 600.0
_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class Measured(msgspec.Struct):
    """A table of figures, and what they hang on: ``builds`` other than ours make them another yardstick."""

    commit: str
    builds: dict[str, str]
    figures: dict[str, float]
    """Instructions a unit, by part."""
    made_by: str = "python -m bench.instructions --json FILE"


def missing() -> str | None:
    """Why nothing can be measured here, or None."""
    if platform.machine().lower() not in MACHINES:
        return f"instructions are counted on {MACHINES[0]} only, and this is {platform.machine()}"
    return None if shutil.which("valgrind") else "valgrind is not installed"


def builds() -> dict[str, str]:
    """What the instructions depend on besides our own code."""
    return {
        "python": f"{platform.python_version()} {platform.python_compiler()} {' '.join(platform.python_build())}",
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("twisted", "msgspec", "klein", "mmh3")},
    }


def commit_of(tree: Path) -> str:
    """With a + where files are changed; empty where there is no version control."""
    found = subprocess.run(
        ["git", "-C", str(tree), "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def measure(part: str, *, tree: Path = ROOT, keep: Path | None = None) -> float:
    """Instructions that one unit of this part takes in the code of ``tree``.

    :param keep: a directory for callgrind's file, which ``callgrind_annotate`` reads.
    :raises Failed: the harness ended with an error; the message has its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="tq") as scratch:
        out = Path(scratch) / "out"
        # The same words for every run: the environment and the arguments lie in memory before everything else.
        environment = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": "/nonexistent",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(tree),
        }
        command = [
            "valgrind", "--tool=callgrind", "--quiet", "--instr-atstart=no", f"--callgrind-out-file={out}", "--",
            sys.executable, str(HARNESS), part,
        ]  # fmt: skip
        if shutil.which("setarch"):
            command = ["setarch", platform.machine(), "--addr-no-randomize", *command]
        try:
            done = subprocess.run(
                command, env=environment, cwd=tree, capture_output=True, text=True, timeout=PART_S_MAX, check=False
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{part} took more than {PART_S_MAX:g} s") from None
        if done.returncode:
            raise Failed(f"{part} ended with code {done.returncode}: " + "\n".join(done.stderr.splitlines()[-5:]))
        counted = out.with_name("out.1")
        found = _TOTALS.search(counted.read_text())
        assert found is not None, f"callgrind wrote no totals for {part}"
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(counted, keep / f"callgrind.{part.replace(' ', '-').replace(',', '')}")
        return int(found[1]) / float(json.loads(done.stdout)["units"])


def load(path: Path) -> Measured:
    """:raises OSError: it can't be read. :raises msgspec.ValidationError: it is no table of ours."""
    return msgspec.json.decode(path.read_bytes(), type=Measured)


def save(path: Path, measured: Measured) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")
