"""SQL with many rows in one statement.

Every ``sqlite3_step`` gives up the GIL and, beside a busy reactor thread, waits a whole switch
interval to get it back: a thousand single-row statements take seconds. So a statement carries many
rows, and unused places are filled up: fewer statements are worth more than the cost of binding a
number.

Python's ``sqlite3`` looks for an adapter for each parameter that is not exactly an int, float, str
or bytearray, in vain, at some 4,000 instructions each. So what is written often is handed over as
plain ints and as bytearrays, never as None, bytes or members of an enumeration."""

from __future__ import annotations

# ruff: noqa: S608 -- what is put in is a number of question marks
import functools
import sqlite3
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

ROWS_MAX = 1024
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, ROWS_MAX)
_UNUSED = -1
"""Stands in all columns of an unused place but the first, which repeats the last row's. So an
``INSERT`` passes by it as a key that is there, and other statements as less than any promise and
any slot."""

LOG_COLUMNS = 6
BIRTH_COLUMNS = 15
CHANGE_COLUMNS = 9
PARTITION_COLUMNS = 11
TOMBSTONE_COLUMNS = 5
CONSENSUS_COLUMNS = 5

assert ROWS_MAX * BIRTH_COLUMNS < 32_000, "SQLite's default bound on variables is 32,766"


def _values(rows: int, columns: int) -> str:
    return ",".join(["(" + ",".join("?" * columns) + ")"] * rows)


@functools.cache
def insert_log(rows: int) -> str:
    return (
        "INSERT INTO log (pos, partition, sequence, epoch, crc, payload) "
        f"VALUES {_values(rows, LOG_COLUMNS)} ON CONFLICT (pos) DO NOTHING"
    )


@functools.cache
def insert_consensus(rows: int) -> str:
    return (
        "INSERT INTO consensus_log (log_index, term, kind, data, crc) "
        f"VALUES {_values(rows, CONSENSUS_COLUMNS)} ON CONFLICT (log_index) DO NOTHING"
    )


@functools.cache
def insert_tasks(rows: int) -> str:
    return (
        "INSERT INTO tasks (num, id, partition, rev, state, run_at_us, ended_us, crc, type, queue, priority, created_us, "
        f"spec_crc, spec, body) VALUES {_values(rows, BIRTH_COLUMNS)} ON CONFLICT (num) DO NOTHING"
    )


@functools.cache
def change_tasks(rows: int) -> str:
    """Leaves ``run_at_us`` and its index alone; rows for which it differs are not matched."""
    return (
        "UPDATE tasks SET rev = v.column3, state = v.column4, ended_us = v.column6, crc = v.column7, body = v.column8 "
        f"FROM (VALUES {_values(rows, CHANGE_COLUMNS)}) AS v "
        "WHERE v.column9 >= 0 AND tasks.id = v.column1 AND tasks.partition = v.column9 AND tasks.rev = v.column2 "
        "AND tasks.run_at_us = v.column5"
    )


@functools.cache
def reschedule_tasks(rows: int) -> str:
    return (
        "UPDATE tasks SET rev = v.column3, state = v.column4, run_at_us = v.column5, ended_us = v.column6, "
        f"crc = v.column7, body = v.column8 FROM (VALUES {_values(rows, CHANGE_COLUMNS)}) AS v "
        "WHERE v.column9 >= 0 AND tasks.id = v.column1 AND tasks.partition = v.column9 AND tasks.rev = v.column2"
    )


@functools.cache
def put_partitions(rows: int) -> str:
    return (
        "INSERT OR REPLACE INTO partitions (partition, promised, applied, horizon_us, trimmed, "
        "generation, log_from, task_rows, tombstone_rows, content_bytes, crc) "
        f"SELECT * FROM (VALUES {_values(rows, PARTITION_COLUMNS)}) WHERE column2 >= 0"
    )


@functools.cache
def put_tombstones(rows: int) -> str:
    return (
        "INSERT OR REPLACE INTO tombstones (id, partition, content_hash, at_us, crc) "
        f"SELECT * FROM (VALUES {_values(rows, TOMBSTONE_COLUMNS)}) WHERE column2 >= 0"
    )


VISIBLE = "{} NOT IN (SELECT slot FROM hidden)"
"""Of a slot column. ``hidden`` is empty but while slots are staged or deleted: a look at
one page."""

# The one parameter is a JSON array: [[id, rev], ...] for the first three, then [id, ...].
_DOOMED = (
    "json_each(?) AS j CROSS JOIN tasks AS t ON t.id = json_extract(j.value, '$[0]') "
    f"AND t.rev = json_extract(j.value, '$[1]') AND {VISIBLE.format('t.partition')}"
)
WEIGH_TASKS = (
    "SELECT json_group_array(json_array(slot, n, size)) FROM (SELECT t.partition AS slot, count(*) AS n, "
    "sum(length(t.body) + coalesce(length(t.spec), (SELECT length(spec) FROM specs WHERE specs.num = t.num))) AS size "
    f"FROM {_DOOMED} GROUP BY 1)"
)
DELETE_SPECS = f"DELETE FROM specs WHERE num IN (SELECT t.num FROM {_DOOMED} WHERE t.spec IS NULL)"
DELETE_TASKS = f"DELETE FROM tasks WHERE num IN (SELECT t.num FROM {_DOOMED})"
_FORGOTTEN = f"FROM tombstones WHERE id IN (SELECT value FROM json_each(?)) AND {VISIBLE.format('partition')}"
WEIGH_TOMBSTONES = (
    "SELECT json_group_array(json_array(slot, n, 0)) FROM "
    f"(SELECT partition AS slot, count(*) AS n {_FORGOTTEN} GROUP BY 1)"
)
DELETE_TOMBSTONES = f"DELETE {_FORGOTTEN}"

# How much longer or shorter the bodies of a slot have become: an UPDATE can't say what was there
# before, a trigger can.
WATCH_BODIES = """
CREATE TEMP TABLE IF NOT EXISTS growth (slot INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TEMP TRIGGER IF NOT EXISTS body_growth AFTER UPDATE OF body ON main.tasks WHEN length(OLD.body) <> length(NEW.body) BEGIN
    INSERT INTO growth VALUES (NEW.partition, length(NEW.body) - length(OLD.body))
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;
"""
READ_GROWTH = "SELECT json_group_array(json_array(slot, bytes)) FROM growth"
CLEAR_GROWTH = "DELETE FROM growth"

# What opening and cutting need of the log.
SWEEP_LOG = (
    "DELETE FROM log WHERE pos >= ? AND pos < ? AND EXISTS (SELECT 1 FROM partitions AS p "
    "WHERE p.partition = log.partition AND (log.sequence <= p.trimmed OR log.pos < p.log_from))"
)
DELETE_RECORDS = "DELETE FROM log WHERE pos IN (SELECT value FROM json_each(?))"


def insert(connection: sqlite3.Connection, statement: Callable[[int], str], columns: int, parameters: list[Any]) -> int:
    """Like ``run_in_chunks``, for statements that pass by a key that is there.

    :raises sqlite3.IntegrityError: one of the rows was passed by."""
    rows = len(parameters) // columns
    inserted = run_in_chunks(connection, statement, columns, parameters)
    if inserted != rows:
        raise sqlite3.IntegrityError(f"{rows - inserted} of {rows} keys are there already")
    return inserted


def run_in_chunks(
    connection: sqlite3.Connection, statement: Callable[[int], str], columns: int, parameters: list[Any]
) -> int:
    """Run ``statement`` over ``parameters``, ``columns`` of them a row; return the number of rows
    changed. ``parameters`` may be lengthened."""
    changed = 0
    full = ROWS_MAX * columns
    for start in range(0, len(parameters), full):
        chunk = parameters if len(parameters) <= full else parameters[start : start + full]
        rows = len(chunk) // columns
        size = _SIZES[bisect_left(_SIZES, rows)]
        if size > rows:
            chunk.extend([chunk[-columns], *[_UNUSED] * (columns - 1)] * (size - rows))
        changed += connection.execute(statement(size), chunk).rowcount
    return changed
