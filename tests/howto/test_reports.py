"""docs/howto/make-a-report.md, from a database made here."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from tests.howto.conftest import Page, Run, ended
from tests.support.harness import NodeProcess, until
from tq_node import Context

pytestmark = pytest.mark.cluster
PAGE = "make-a-report"
DAYS = [f"2025-{month:02}-{day:02}" for month in range(6, 11) for day in range(1, 29)]
PRODUCTS = ['Stuhl "Köln", blue', "Lamp\nwith a shade"]
SALES = [(day, "Zürich", product, 1_999 + number) for number, day in enumerate(DAYS) for product in PRODUCTS]
QUARTER = ("2025-07-01", "2025-09-30")


@pytest.fixture
def database(home: Path) -> Path:
    path = home / "sales.sqlite3"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE IF EXISTS sales")
        db.execute("CREATE TABLE sales (day TEXT, region TEXT, product TEXT, cents INTEGER)")
        db.executemany("INSERT INTO sales VALUES (?, ?, ?, ?)", SALES)
    return path


def test_the_page_s_report(node: NodeProcess, page: Page, home: Path) -> None:
    """From the page's own database to the result that it shows."""
    ((_, (name, statements)),) = page.commands("sqlite3")
    with closing(sqlite3.connect(home / name)) as db:
        db.executescript(statements)
    task = ended(node, node.post("/tasks/submit", page.task).json["task_id"])
    assert task["status"] == "completed", task
    assert json.dumps(task["result"], separators=(",", ":")) in page.text


def test_a_report_of_some_pages(run: Run, home: Path, database: Path) -> None:
    first, last = QUARTER
    sales = sorted(sale for sale in SALES if first <= sale[0] <= last)
    task = run("sales-report", {"from": first, "to": last})
    assert task["status"] == "completed", task
    result, total, pages = task["result"], sum(sale[3] for sale in sales), -(-len(sales) // 40)
    assert pages > 2
    assert (result["rows"], result["cents"], result["pages"]) == (len(sales), total, pages)
    assert task["progress"] == {"fraction": 1, "note": f"page {pages} of {pages}"}

    with (home / "reports" / result["csv"]).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["day", "region", "product", "cents"]
    assert rows == [[*sale[:3], str(sale[3])] for sale in sales]

    reader = PdfReader(home / "reports" / result["pdf"])
    texts = [sheet.extract_text() for sheet in reader.pages]
    assert len(texts) == pages
    assert f"Sales from {first} to {last}: {total / 100:,.2f}" in texts[0]
    assert 'Stuhl "Köln", blue' in texts[0]
    assert "Zürich" in texts[0]
    assert f"page {pages} of {pages}" in texts[-1]
    assert [text.count("Zürich") for text in texts] == [40] * (pages - 1) + [len(sales) % 40]
    assert not list((home / "reports").glob(".*"))


def test_again_is_the_same_file_and_nothing_is_a_report_too(run: Run, home: Path, database: Path) -> None:
    order = {"from": "2025-06-01", "to": "2025-06-02"}
    files = [home / f"reports/sales_2025-06-01_2025-06-02{suffix}" for suffix in (".csv", ".pdf")]
    assert run("sales-report", order)["result"]["rows"] == 4
    data = [file.read_bytes() for file in files]
    assert run("sales-report", order)["result"]["pages"] == 1
    assert [file.read_bytes() for file in files] == data
    nothing = run("sales-report", {"from": "1999-01-01", "to": "1999-12-31"})["result"]
    assert (nothing["rows"], nothing["pages"], nothing["cents"]) == (0, 1, 0)


def test_a_cancelled_one_leaves_nothing(
    home: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples import reports

    monkeypatch.setattr(reports, "DATABASE", database)
    monkeypatch.setattr(reports, "REPORTS", tmp_path)
    context = Context()
    context._cancelled = True
    with pytest.raises(InterruptedError):
        reports.make_report({"from": QUARTER[0], "to": QUARTER[1]}, context)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("payload", [None, {}, {"from": "2025-01-01"}, {"from": "../x", "to": "2025-01-01"}, "2025"])
def test_what_is_no_order_is_rejected(run: Run, payload: object) -> None:
    task = run("sales-report", payload)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject"), task["error"]


def test_a_database_that_is_away_is_asked_again(node: NodeProcess, home: Path, database: Path) -> None:
    """The attempt after that is half a minute off: whoever can't wait says ``max_attempts``."""
    away = database.rename(home / "away")
    try:
        task_id = node.submit("sales-report", {"from": "2025-01-01", "to": "2025-01-01"})
        task: Any = until(lambda: (task := node.status(task_id))["attempts"] and task["status"] == "scheduled" and task)
        assert task["attempts"][0]["error"]["type"] == "Retry"
        assert "sales.sqlite3" in task["attempts"][0]["error"]["message"]
    finally:
        away.rename(database)
    assert node.post(f"/tasks/cancel?id={task_id}").json["status"] == "cancelled"
    assert not list((home / "reports").glob("*2025-01-01*"))
    assert not list((home / "reports").glob(".*"))
