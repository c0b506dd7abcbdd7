"""docs/howto/import-data.md, with a kill in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.howto.conftest import Page, Run, ended, lines
from tests.support.harness import NodeProcess, Nodes, until
from tq_node import Context, Reject
from tq_node.types import Token

pytestmark = pytest.mark.cluster
PAGE = "import-data"
ENDLESS = """
CREATE VIEW endless AS
    WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1e15) SELECT n FROM numbers;
CREATE TRIGGER hang BEFORE INSERT ON products WHEN new.sku = '{sku}'
    BEGIN SELECT count(*) FROM endless; END;
"""


@pytest.fixture
def incoming(home: Path) -> Path:
    folder = home / "incoming"
    folder.mkdir(exist_ok=True)
    return folder


def ask(home: Path, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(home / "products.sqlite3", timeout=10)) as db:
        return db.execute(statement, values).fetchall()


def test_the_page_s_file(node: NodeProcess, page: Page, home: Path, incoming: Path) -> None:
    (incoming / page.task["payload"]["file"]).write_bytes(
        b"\xef\xbb\xbfsku,name,price\r\n"
        b"A1,Chair,49.90\r\n"
        b'A2,"Lamp, with a ""shade"",\nof two lines",7\r\n'
        b"\r\n"
        b"A3,No price,free\r\n"
        b"A4,Decimal comma,12,50\r\n"
        b"A5,Too exact,0.001\r\n"
        b"A6,Not UTF-8 \xff,1.00\r\n"
        b"A7\r\n"
        b'A8,"Half" quoted,1\r\n'
        b"A1,Armchair,1e2"
    )
    task = ended(node, node.post("/tasks/submit", page.task).json["task_id"])
    assert task["status"] == "completed", task
    assert task["result"] == {"good": 3, "bad": 6}
    assert task["progress"]["fraction"] == 1
    assert [line.split(":")[0] for line in lines(task)] == [f"record {number}" for number in range(3, 9)]
    assert ask(home, "SELECT * FROM products ORDER BY sku") == [
        ("A1", "Armchair", 10_000),
        ("A2", 'Lamp, with a "shade",\nof two lines', 700),
    ]


def test_ndjson(run: Run, home: Path, incoming: Path) -> None:
    (incoming / "more.ndjson").write_text(
        '{"sku": "J1", "name": "Tisch", "price": 12.10}\n'
        "\n"
        '{"sku": "J2", "name": "no price"}\n'
        '{"sku": "J3", "name": "\\ud800", "price": 1}\n'
        "[1, 2]\nnonsense\n" + "[" * 100_000 + "\n"
        '{"sku": "J4", "name": "NaN", "price": NaN}\n'
        '{"sku": "J5", "name": "Bank", "price": "99"}\n'
    )
    task = run("import-products", {"file": "more.ndjson"})
    assert task["result"] == {"good": 2, "bad": 6}, task
    assert ask(home, "SELECT sku, cents FROM products WHERE sku GLOB 'J*'") == [("J1", 1_210), ("J5", 9_900)]


@pytest.mark.parametrize(
    ("payload", "content"),
    [
        (None, ""),
        ({"file": "prices.xlsx"}, ""),
        ({"file": "../elsewhere.csv"}, "sku,name,price\n"),
        ({"file": "other.csv"}, "id,price\nA1,1\n"),
        ({"file": "empty.csv"}, ""),
    ],
)
def test_what_is_no_order_is_rejected(run: Run, incoming: Path, payload: dict[str, str] | None, content: str) -> None:
    if payload:
        (incoming / payload["file"]).write_text(content)
    task = run("import-products", payload)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject"), task["error"]


def who_has_open(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(fd.resolve() == path for fd in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
    return found


COUNT, STOP = 3_000, 1_700
BAD = (100, 2_900)


def begin(node: NodeProcess, home: Path, incoming: Path) -> str:
    """A task that has done three chunks, and hangs in the fourth: a trigger keeps one product from being inserted."""
    rows = ["bad" if number in BAD else f"K{number:05},Product {number},{number}.50" for number in range(COUNT)]
    (incoming / "many.csv").write_text("\n".join(["sku,name,price", *rows]))
    (incoming / "none.csv").write_text("sku,name,price\n")
    ended(node, node.submit("import-products", {"file": "none.csv"}))  # makes the tables
    with closing(sqlite3.connect(home / "products.sqlite3")) as db:
        db.executescript(ENDLESS.format(sku=f"K{STOP:05}"))
    task_id = node.submit("import-products", {"file": "many.csv"}, backoff=0.1)
    state = "SELECT good, bad FROM imports WHERE task_id = ?"
    until(lambda: ask(home, state, task_id) == [(1_499, 1)], what="the chunks before the one that hangs")
    return task_id


def let_go(home: Path) -> None:
    with closing(sqlite3.connect(home / "products.sqlite3", timeout=10)) as db, db:
        db.execute("DROP TRIGGER hang")


def check_whole(task: Mapping[str, Any], home: Path) -> None:
    """No product is missing, none there twice, and what was done before the kill is counted once."""
    assert (task["status"], len(task["attempts"])) == ("completed", 2), task
    assert task["result"] == {"good": COUNT - len(BAD), "bad": len(BAD)}
    assert any(line.startswith("goes on at byte") for line in lines(task)), task
    assert [line.split(":")[0] for line in lines(task) if line.startswith("record")][-1] == f"record {BAD[1] + 1}"
    assert ask(home, "SELECT count(*), sum(cents) FROM products WHERE sku GLOB 'K*'") == [
        (COUNT - len(BAD), sum(number * 100 + 50 for number in range(COUNT) if number not in BAD))
    ]


def test_when_its_process_is_killed_it_goes_on_where_it_was(node: NodeProcess, home: Path, incoming: Path) -> None:
    task_id = begin(node, home, incoming)
    assert node.post("/tasks/pause?queue=imports").status == 200
    (worker,) = who_has_open(home / "products.sqlite3")
    os.kill(worker, signal.SIGKILL)
    until(lambda: node.status(task_id)["attempts"], what="the end of the first attempt")
    let_go(home)
    assert node.post("/tasks/resume?queue=imports").status == 200
    task = ended(node, task_id)
    assert task["attempts"][0]["error"]["type"] == "worker_died"
    check_whole(task, home)


def test_when_its_node_is_killed_it_goes_on_where_it_was(nodes: Nodes, page: Page, tmp_path: Path) -> None:
    said, options = page.node
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    first = nodes.start(*options, cwd=tmp_path, environment=said)
    task_id = begin(first, tmp_path, incoming)
    first.kill9()
    let_go(tmp_path)  # waits for the process of the handler to die as well
    second = nodes.start(*options, cwd=tmp_path, environment=said)
    check_whole(ended(second, task_id), tmp_path)
    assert second.terminate() == 0


def test_a_straggler_is_refused(home: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples import etl

    monkeypatch.setattr(etl, "SOURCES", incoming.resolve())
    monkeypatch.setattr(etl, "DATABASE", tmp_path / "products.sqlite3")
    (incoming / "one.csv").write_text("sku,name,price\nA1,Chair,1\n")
    older, newer = (Context("t", attempt=attempt, token=Token(1, sequence)) for attempt, sequence in ((2, 7), (1, 9)))
    assert etl.import_products({"file": "one.csv"}, newer) == {"good": 1, "bad": 0}
    with pytest.raises(RuntimeError, match="a later attempt"):
        etl.import_products({"file": "one.csv"}, older)
    # What it had claimed before the newer one came is of no use to it either.
    stale = {"task_id": "t", "epoch": 1, "sequence": 7, "offset": 99, "good": 9, "bad": 9}
    with closing(sqlite3.connect(tmp_path / "products.sqlite3")) as db, pytest.raises(RuntimeError, match="later"):
        etl.execute_mine(db, etl.ADVANCE, stale)


@pytest.mark.parametrize(
    ("name", "content"),
    [("done.csv", "sku,name,price\nA1,Chair,1\n"), ("done.ndjson", '{"sku": "A1", "name": "Chair", "price": 1}\n')],
)
def test_what_is_done_is_not_read_again(
    home: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    from examples import etl

    monkeypatch.setattr(etl, "SOURCES", incoming.resolve())
    monkeypatch.setattr(etl, "DATABASE", tmp_path / "products.sqlite3")
    (incoming / name).write_text(content)
    for sequence in (1, 2):
        assert etl.import_products({"file": name}, Context("t", token=Token(1, sequence))) == {"good": 1, "bad": 0}


def test_another_file_of_the_same_name_is_not_gone_on_with(
    home: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples import etl

    monkeypatch.setattr(etl, "SOURCES", incoming.resolve())
    monkeypatch.setattr(etl, "DATABASE", tmp_path / "products.sqlite3")
    (incoming / "one.csv").write_text("sku,name,price\nA1,Chair,1\n")
    etl.import_products({"file": "one.csv"}, Context("t", token=Token(1, 1)))
    (incoming / "one.csv").write_text("sku,name,price\nA1,Chair,12\n")
    with pytest.raises(Reject, match="not the file that the import began with"):
        etl.import_products({"file": "one.csv"}, Context("t", attempt=2, token=Token(1, 2)))
