"""Statements of many rows: unused places change nothing, and no parameter is of a type that ``sqlite3`` would adapt."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.stores import birth, change, group_writer, record
from tq_node.errors import Divergence
from tq_node.store.api import Batch, ConsensusRecord, ConsensusWrite, Tombstone
from tq_node.store.sqlite import open_database, sql
from tq_node.store.sqlite.group_commit import GroupWriter
from tq_node.types import State

PLAIN = (int, float, str, bytearray)


class Watched:
    """A connection that notes the types of the parameters that statements of many rows take."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.types: set[type] = set()

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        if "VALUES (?" in statement and isinstance(parameters, list):
            self.types.update(map(type, parameters))
        return self._connection.execute(statement, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = open_database.connect_writer(tmp_path / "store.db")
    yield made
    made.close()


@pytest.fixture
def writer(connection: sqlite3.Connection) -> GroupWriter:
    return group_writer(connection)


def count(connection: sqlite3.Connection, table: str) -> int:
    (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(rows)


def test_what_is_written_often_needs_no_adapter(connection: sqlite3.Connection) -> None:
    watched = Watched(connection)
    writer = group_writer(watched)  # type: ignore[arg-type]
    ids = [f"t{number}" for number in range(5)]
    consensus = ConsensusWrite(records=[ConsensusRecord(index, 1, 0, b"x") for index in range(1, 4)])
    births = Batch(entries=[record(0, 1)], rows=[birth(one) for one in ids], applied={0: 1}, consensus=[consensus])
    changes = [change(one, 2, State.PROCESSING, run_at_us=100) for one in ids[:3]]
    changes += [change(one, 2, State.SCHEDULED, run_at_us=200) for one in ids[3:]]
    tombstones = [Tombstone(f"gone{number}", 0, b"h", 1) for number in range(3)]
    for batch in (births, Batch(entries=[record(0, 2)], rows=changes, tombstones=tombstones, applied={0: 2})):
        writer.write([batch])
    assert watched.types <= set(PLAIN)
    assert {int, str, bytearray} <= watched.types


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 17, 100, 600, sql.ROWS_MAX - 1, sql.ROWS_MAX, sql.ROWS_MAX + 3])
def test_unused_places_change_nothing(rows: int, connection: sqlite3.Connection, writer: GroupWriter) -> None:
    """However many rows are born and changed, these are there afterwards, and no other."""
    entries = [record(partition, 1) for partition in range(rows)]
    applied = dict.fromkeys(range(rows), 1)
    births = [birth(f"t{number:05}", partition=number) for number in range(rows)]
    tombstones = [Tombstone(f"gone{number}", number, b"h", 1) for number in range(rows)]
    assert writer.write([Batch(entries=entries, rows=births, tombstones=tombstones, applied=applied)]) == (
        rows,
        2 * rows,
    )
    for table in ("log", "tasks", "partitions", "tombstones"):
        assert count(connection, table) == rows, table
    changes = [change(f"t{number:05}", 2, partition=number) for number in range(rows)]
    entries = [record(partition, 2) for partition in range(rows)]
    assert writer.write([Batch(entries=entries, rows=changes, applied=dict.fromkeys(applied, 2))]) == (rows, rows)
    found = connection.execute("SELECT id, partition, rev, state, body FROM tasks ORDER BY id").fetchall()
    assert found == [(f"t{number:05}", number, 2, int(State.PROCESSING), b"changed") for number in range(rows)]
    assert connection.execute("SELECT partition, applied FROM partitions ORDER BY 1").fetchall() == [
        (number, 2) for number in range(rows)
    ]
    assert connection.execute("SELECT pos FROM log ORDER BY 1").fetchall() == [(n,) for n in range(1, 2 * rows + 1)]


def test_a_key_that_is_there_is_refused(connection: sqlite3.Connection) -> None:
    """Passing by a taken key is for unused places alone."""
    row = [7, 0, 1, 1, 0, bytearray(b"x")]
    assert sql.insert(connection, sql.insert_log, sql.LOG_COLUMNS, [*row]) == 1
    with pytest.raises(sqlite3.IntegrityError, match="1 of 3 keys"):
        sql.insert(connection, sql.insert_log, sql.LOG_COLUMNS, [6, *row[1:], *row, 8, *row[1:]])


def test_an_id_that_is_there_is_refused(writer: GroupWriter) -> None:
    writer.write([Batch(entries=[record(0, 1)], rows=[birth("a")], applied={0: 1})])
    with pytest.raises(Divergence, match="a new row is there already"):
        writer.write([Batch(entries=[record(0, 2)], rows=[birth("b"), birth("a")], applied={0: 2})])
