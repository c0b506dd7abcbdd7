"""Nothing that a submitter, a node or an error says moves the operator's cursor, rings, or writes the clipboard."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.tui.build import populated, running, settled
from tq_tui import charts, partition_map
from tq_tui import format as f
from tq_tui.client.models import Partition
from tq_tui.report import NOT_WRITTEN_STATUS, as_json_text, as_text, seen_once, written
from tq_tui.state.cluster_view import ClusterView
from tq_tui.widgets.plain import Plain, content

CLIPBOARD = "\x1b]52;c;SEVMTE8=\x1b\\"
NASTY = f"a{CLIPBOARD}b\x9b31m\u202edesrever\u2066\r\x07\x00"
TUI = Path(charts.__file__).parent


def is_clean(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


async def hostile() -> ClusterView:
    """Every word that a node can choose is nasty: its own name, its queue, its status, its partitions, its errors."""
    fake = populated()
    view = await seen_once(fake, [fake.address(name) for name in fake.names], 1.0)
    nodes = []
    for number, node in enumerate(view.nodes):
        assert node.cluster is not None
        cluster = msgspec.structs.replace(
            node.cluster, leader=f"{NASTY}0",
            nodes=tuple(
                msgspec.structs.replace(member, id=f"{NASTY}{place}", status=NASTY if place else "suspect")
                for place, member in enumerate(node.cluster.nodes)
            ),
        )  # fmt: skip
        metrics = None if node.metrics is None else msgspec.structs.replace(
            node.metrics, oldest_age_s={NASTY: 99.0}, paused=(NASTY,), version=NASTY
        )  # fmt: skip
        partitions = tuple(
            msgspec.structs.replace(
                entry, primary=f"{NASTY}0", replicas=(NASTY,), in_sync=(), state=NASTY, waiting=NASTY
            )
            for entry in node.partitions
        )
        nodes.append(
            replace(node, name=f"{NASTY}{number}", cluster=cluster, metrics=metrics, partitions=partitions, error=NASTY)
        )
    return replace(view, nodes=tuple(nodes))


async def test_once_prints_nothing_that_a_terminal_obeys() -> None:
    view = await hostile()
    for width in (40, 100, 200):
        text = as_text(view, width)
        assert "SEVMTE8" in text, "it was there to be printed"
        assert is_clean(text)
    assert is_clean(as_json_text(view))
    assert as_json_text(view).isascii()


async def test_everything_drawn_is_clean_and_as_wide_as_it_says() -> None:
    view = await hostile()
    entry = view.nodes[0].partitions[0]
    assert isinstance(entry, Partition)
    for lines in (
        charts.cards(view, 100, 100), charts.cards(view, 60, 4), charts.totals(view, 80), charts.node_lines(view, 80),
        partition_map.partition_map(view, 80), partition_map.described(entry, 70), partition_map.roll(view, 80, 10, 0),
    ):  # fmt: skip
        plain = content(lines).plain
        assert is_clean(plain)
    assert all(charts.length(line) == 80 for line in charts.node_lines(view, 80))


async def test_the_console_writes_none_of_it() -> None:
    """As Textual would write it: every segment of every screen, and a notice."""
    fake = populated()
    fake.add(NASTY, "pending", queue=NASTY)
    async with running(fake) as (app, pilot):
        view = await hostile()
        app.known = view
        app._show()
        app.copy("x", NASTY)
        app.notify(NASTY, title=NASTY)
        for key in "123456":
            await pilot.press(key)
            await settled(app, pilot)
            for strip in app.screen._compositor.render_strips():
                for segment in strip:
                    assert segment.control or is_clean(segment.text), segment


def test_words_of_others_reach_a_widget_by_one_way_only() -> None:
    """No module but ``widgets/plain.py`` makes a Static: mypy sees the rest, for ``Text`` is made by ``printable`` alone."""
    for path in TUI.rglob("*.py"):
        tree = ast.parse(path.read_text())
        sources = [
            node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "textual.widgets"
        ]
        imported = {name.name for node in sources for name in node.names}
        if path.name != "plain.py":
            assert not imported & {"Static", "Label"}, path
        made = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        }
        if path.name != "format.py" and path.name != "report.py":
            assert "Text" not in made, path


def test_plain_keeps_lines_and_nothing_else() -> None:
    assert str(Plain(f"one\n{NASTY}").visual).count("\n") == 1
    assert f.printable_text("a\nb\x1b") == "a\nb·"


# --- where it is written to ---
@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.TextIOWrapper]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="latin-1") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield stream
    os.close(reader)


def test_a_terminal_that_is_not_utf_8(stdout: io.TextIOWrapper) -> None:
    assert written("● HEALTHY é\n")


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert not written("● HEALTHY\n")
    monkeypatch.undo()
    assert capsys.readouterr().err == "tq-tui: can't write: No space left on device\n"


def test_a_reader_that_has_left_costs_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tq_tui", "--once", "localhost:1"],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env={"PATH": ""},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (NOT_WRITTEN_STATUS, "")


def test_once_needs_no_textual() -> None:
    program = "import sys, tq_tui.report, tq_tui.client.http; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
