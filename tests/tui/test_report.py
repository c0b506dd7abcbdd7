"""``--once``, ``--json`` and the command line: for scripts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.fake_cluster import FakeCluster
from tests.tui.build import populated
from tq_tui import __main__ as command
from tq_tui.report import print_once


def fallen(*names: str) -> FakeCluster:
    fake = populated()
    for name in names:
        fake.stop(name)
    return fake


@pytest.mark.parametrize(
    ("names", "status", "word"),
    [
        ((), 0, "HEALTHY"),
        (("node-2",), 1, "DEGRADED"),
        (("node-2", "node-3"), 2, "NO QUORUM"),
        (("node-1",), 2, "UNREACHABLE"),
    ],
)
async def test_the_exit_status_says_how_it_is(
    names: tuple[str, ...], status: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await print_once(fallen(*names), ["127.0.0.1:8080"], as_json=False, timeout_s=30.0) == status
    out = capsys.readouterr().out
    assert word in out
    assert "\x1b" not in out


async def test_json_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    fake = fallen("node-2")
    assert await print_once(fake, ["127.0.0.1:8080"], as_json=True, timeout_s=30.0) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["health"], told["exit"], told["leader"], told["term"]) == ("degraded", 1, "node-1", 3)
    assert told["tasks"]["total"] == 24
    assert [(node["name"], node["status"], node["reachable"]) for node in told["nodes"]] == [
        ("node-1", "active", True), ("node-2", "down", False), ("node-3", "active", True),
    ]  # fmt: skip
    assert told["reasons"]


async def test_a_node_that_hangs_costs_the_timeout_and_no_more() -> None:
    fake = populated()
    fake.hanging.add("node-2")
    assert await print_once(fake, ["127.0.0.1:8081", "127.0.0.1:8080"], as_json=False, timeout_s=2.0) == 1


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tq_tui", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": "", **environment},
    )


def test_the_command_line() -> None:
    assert run("--version").stdout.startswith("tq-tui ")
    told = run("--help").stdout
    for words in ("--once", "--json", "--readonly", "TQ_TOKEN", "localhost:8080,8081,8082"):
        assert words in told
    for arguments in (("a:b",), ("--nonsense",), ("--timeout", "x")):
        bad = run(*arguments)
        assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (64, "", 1), (
            "one line, and not the status of no quorum"
        )
    assert run("localhost:1").returncode == 64, "no terminal"
    gone = run("--once", TQ_URL="localhost:1")
    assert (gone.returncode, gone.stderr) == (2, "")
    assert "connection refused" in gone.stdout


def test_nothing_slow_is_imported_for_a_word_of_help() -> None:
    loaded = {name.partition(".")[0] for name in vars(command) if not name.startswith("_")}
    assert not loaded & {"textual", "aiohttp"}
