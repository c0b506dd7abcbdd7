"""What is made of samples: medians, ratios, goals, tables, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import drains, pages, pickups, plot, report, submits
from bench.goals import GOALS, RATIOS
from bench.peers import PEERS
from bench.processes import Failed
from bench.reads import STATUS
from bench.samples import OURS, Book, Kind

RATE = Kind("submit", "32 in flight", "tasks/s")
WAIT = Kind("pick-up", "async handler, p50", "ms", more_is_better=False)
ABOUT: dict[str, Any] = {
    "commit": "abc", "changed_files": 0, "date": "today", "cores": 2, "machine": "x", "python": "3", "rounds": 3,
    "systems": {OURS: "three nodes", "other": "a <queue> & more"},
}  # fmt: skip


@pytest.fixture
def book() -> Book:
    book = Book({("submit", "32 in flight"): 9_000.0, ("pick-up", "async handler, p50"): 1.5})
    book.probe_us = 100.0
    for ours, other in ((8_000.0, 4_000.0), (9_500.0, 4_100.0), (9_100.0, 100.0)):
        book.add(RATE, OURS, ours, p50_ms=1.0, p99_ms=2.0, node_cpu_us_per_task=90.0)
        book.add(RATE, "other", other)
    book.add(WAIT, OURS, 2.0)
    book.add(WAIT, "other", 1.0)
    return book


def test_ours_is_compared_by_medians_and_better_means_less_where_less_is_better(book: Book) -> None:
    of_rate, of_wait = book.rows(RATE), book.rows(WAIT)

    assert [row.system for row in of_rate] == [OURS, "other"]
    assert of_rate[0].median == 9_100.0
    assert book.ratio(of_rate[1]) == pytest.approx(9_100 / 4_000)
    assert book.ratio(of_wait[1]) == pytest.approx(0.5)
    assert book.ratio(of_rate[0]) is None


def test_goals_are_ours_alone(book: Book) -> None:
    assert [row.meets_goal for row in book.rows(RATE)] == [True, None]
    assert [row.meets_goal for row in book.rows(WAIT)] == [False, None]


def test_a_goal_can_be_how_many_times_better_ours_is_than_another(book: Book) -> None:
    ratios = {("submit", "32 in flight", "other"): 2.3, ("pick-up", "async handler, p50", "other"): 1 / 1.9}
    beside = Book(ratios=ratios)
    for kind in (RATE, WAIT):
        for row in book.rows(kind):
            for value in row.values:
                beside.add(kind, row.system, value)

    assert [beside.meets_goal(row) for row in beside.rows(RATE)] == [None, False]
    assert [beside.meets_goal(row) for row in beside.rows(WAIT)] == [None, False]
    shown = report.table(beside)
    assert "2.27 x better, short of its goal ≥ 2.30 x better" in shown
    assert "2.00 x worse, short of its goal ≤ 1.90 x worse" in shown
    beside.add(WAIT, "other", 1.2)
    assert [beside.meets_goal(row) for row in beside.rows(WAIT)] == [None, True]
    assert "1.82 x worse, at its goal ≤ 1.90 x worse" in report.table(beside)
    assert "| 4,000 (missed: ≥ 2.30 x better) |" in report.markdown(ABOUT, beside)
    assert report.goals(beside).splitlines() == [
        "goals: 1 of 2 reached",
        "  submit, 32 in flight, other: 4,000 tasks/s, 2.27 x better, short of its goal ≥ 2.30 x better",
    ]


def test_each_goal_is_of_a_row_that_there_is() -> None:
    kinds = [submits.submit_kind(32), submits.submit_kind(128), submits.cpu_kind(32), submits.cpu_kind(128)]
    kinds += [
        submits.FIRST_P50,
        submits.FIRST_P99,
        drains.ASYNC,
        drains.PROCESS,
        pickups.ASYNC,
        pickups.PROCESS,
        STATUS,
    ]
    kinds += map(submits.batch_kind, submits.BATCHES)
    names = {(kind.part, kind.what) for kind in kinds}
    systems = {peer.name for peer in PEERS}

    for of_nodes in GOALS.values():
        assert of_nodes.keys() <= names
    for ratios in RATIOS.values():
        assert {(part, what) for part, what, _ in ratios} <= names
        assert {system for _, _, system in ratios} <= systems


def test_another_disk_is_noted(book: Book) -> None:
    book.probe_us = 250.0
    book.add(RATE, "third", 1.0)
    third = book.rows(RATE)[-1]

    assert book.saw_another_disk(third)
    assert not book.saw_another_disk(book.rows(RATE)[1])
    assert "9,100 x better, on another disk" in report.table(book)


def test_the_page_has_a_row_for_each_kind_a_column_for_each_peer_and_no_empty_column(book: Book) -> None:
    shown = report.markdown(ABOUT, book)
    rows = [line for line in shown.splitlines() if line.startswith("|")]

    assert "### submit" in shown
    assert rows[0] == "|  | unit | taskqueue | range | CPU µs/task | goal | other |"
    assert rows[1] == "| --- | --- | --: | --: | --: | --- | --: |"
    assert rows[2] == "| 32 in flight | tasks/s | 9,100 | 8,000 to 9,500 | 90.0 | met: ≥ 9,000 | 4,000 |"
    pick_up = rows[rows.index("|  | unit | taskqueue | goal | other |") :]
    assert pick_up[2:] == ["| async handler, p50 | ms | 2.00 | missed: ≤ 1.50 | 1.00 |"]


def test_the_page_marks_a_peer_measured_on_another_disk(book: Book) -> None:
    book.probe_us = 250.0
    book.add(RATE, "third", 1.0)

    assert "| met: ≥ 9,000 | 4,000 | 1.00 (another disk) |" in report.markdown(ABOUT, book)


def test_the_picture_is_xml_with_bars_in_proportion(book: Book) -> None:
    book.add(RATE, "a <queue> & more", 4_550.0)
    drawn = ET.fromstring(plot.svg(book, "2 cores & more"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in drawn.iter(f"{space}text")]
    bars = [float(element.attrib["width"]) for element in drawn.iter(f"{space}rect")][1:]

    assert "a <queue> & more" in texts
    assert "submit: 32 in flight" in texts
    assert bars[2] == pytest.approx(bars[0] / 2, abs=0.2)
    assert len(bars) == 5


def test_the_page_keeps_what_is_not_between_the_marks(book: Book, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n")

    pages.write_page(page, ABOUT, book)

    text = page.read_text()
    assert text.startswith(f"before\n{pages.BEGIN}\ntaskqueue bench, commit abc")
    assert text.endswith(f"\n{pages.END}\nafter\n")
    assert "old" not in text
    page.write_text("no marks")
    with pytest.raises(Failed):
        pages.write_page(page, ABOUT, book)


def test_the_page_of_the_documentation_has_the_marks() -> None:
    text = pages.PAGE.read_text("utf-8")

    assert text.index(pages.BEGIN) < text.index(pages.END)


def test_json_has_every_sample(book: Book, tmp_path: Path) -> None:
    json_file, picture = pages.write(tmp_path / "new", ABOUT, book)

    rows = json.loads(json_file.read_text())["rows"]
    assert rows[0]["values"] == [8_000.0, 9_500.0, 9_100.0]
    assert rows[0]["goal"] == 9_000.0
    assert rows[0]["meets_goal"] is True
    assert rows[1]["ours_is_better_by"] == pytest.approx(9_100 / 4_000)
    assert picture.read_text().startswith("<svg")
