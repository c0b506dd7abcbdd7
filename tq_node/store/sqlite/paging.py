"""A page of rows, by a walk along an index: never sorts, looks at no more rows than it may."""

from __future__ import annotations

# ruff: noqa: S608 -- the pieces put together are constants here; what a caller says is bound
import sqlite3

import msgspec

from tq_node.store.api import RowPage, RowQuery
from tq_node.store.sqlite.generations import PARTITION_MASK
from tq_node.store.sqlite.queries import VISIBLE_HERE, listed, rows_by_number, storable
from tq_node.types import State

_to_json = msgspec.json.Encoder().encode
_decode_matches = msgspec.json.Decoder(list[tuple[int, int, str, int]]).decode

_INDEXES = {
    "created_at": ("tasks_created", "created_us"),
    "run_at": ("tasks_run_at", "run_at_us"),
    "priority": ("tasks_priority", "priority"),
}
_COLUMNS = "num, id, state, partition, type, queue"


def page(connection: sqlite3.Connection, query: RowQuery) -> RowPage:
    walk, parameters = _walk(query)
    condition, values = _condition(query)
    size = "length(t.body) + coalesce(length(t.spec), (SELECT length(spec) FROM specs WHERE specs.num = w.num))"
    matching = (
        f"SELECT json_group_array(json_array(num, k, id, size)) FROM (SELECT w.num AS num, w.k AS k, w.id AS id, {size} AS size "
        f"FROM ({walk} LIMIT :scan) AS w CROSS JOIN tasks AS t ON t.num = w.num WHERE {condition} LIMIT :limit)"
    )
    connection.execute("BEGIN")
    try:
        bound = {**parameters, **values, "scan": query.scan_rows_max, "limit": query.limit}
        (text,) = connection.execute(matching, bound).fetchone()
        numbers: list[int] = []
        total = 0
        last: tuple[int, str] | None = None
        full = False
        for number, key, task_id, row_bytes in _decode_matches(text):
            numbers.append(number)
            last = (key, task_id)
            total += row_bytes
            full = len(numbers) == query.limit or total > query.bytes_max
            if full:
                break
        rows = rows_by_number(connection, numbers)
        return RowPage(rows, _next(connection, query, last if full else None))
    finally:
        connection.execute("COMMIT")


def _next(connection: sqlite3.Connection, query: RowQuery, last: tuple[int, str] | None) -> tuple[int, str] | None:
    """Where the next page begins: the last row looked at, or ``last``, which filled the page."""
    if last is None:
        walk, parameters = _walk(query)
        skip = query.scan_rows_max - 1
    else:
        walk, parameters = _walk(msgspec.structs.replace(query, after=last))
        skip = 0
    found = connection.execute(
        f"SELECT k, id FROM ({walk} LIMIT :rows OFFSET :skip)", {**parameters, "rows": 2, "skip": skip}
    )
    keys: list[tuple[int, str]] = found.fetchall()
    if last is None:
        return keys[0] if len(keys) == 2 else None
    return last if keys else None


def _walk(query: RowQuery) -> tuple[str, dict[str, object]]:
    """Rows in order behind ``after``: ``num``, ``k`` (sort value), ``id``, what conditions need."""
    direction = "DESC" if query.descending else "ASC"
    beyond = "<" if query.descending else ">"
    parameters: dict[str, object] = {}
    if query.after is not None:
        parameters = {"after_key": query.after[0], "after_id": storable(query.after[1])}
    if query.sort != "id":
        index, column = _INDEXES[query.sort]
        where = f"WHERE {VISIBLE_HERE}"
        if query.after is not None:
            where += f" AND ({column}, id) {beyond} (:after_key, :after_id)"
        order = f"ORDER BY {column} {direction}, id {direction}"
        return f"SELECT {_COLUMNS}, {column} AS k FROM tasks INDEXED BY {index} {where} {order}", parameters
    behind = f"{VISIBLE_HERE} AND id {beyond} :after_id" if query.after is not None else VISIBLE_HERE
    if query.states is None:
        return (
            f"SELECT {_COLUMNS}, 0 AS k FROM tasks INDEXED BY tasks_id WHERE {behind} ORDER BY id {direction}",
            parameters,
        )
    # One walk for each state, merged: a few failed tasks are found at once among a million.
    arms = [
        f"SELECT {_COLUMNS}, 0 AS k FROM tasks INDEXED BY tasks_state WHERE state = {int(state)} AND {behind}"
        for state in State
        if (state in query.states) is not query.states_not
    ]
    if not arms:
        return f"SELECT {_COLUMNS}, 0 AS k FROM tasks WHERE 0", parameters
    return f"{' UNION ALL '.join(arms)} ORDER BY id {direction}", parameters


def _condition(query: RowQuery) -> tuple[str, dict[str, object]]:
    terms = ["1"]
    values: dict[str, object] = {}
    for column, wanted, negated in (
        ("state", query.states, query.states_not),
        ("type", query.types, query.types_not),
        ("queue", query.queues, query.queues_not),
    ):
        if wanted is not None:
            values[column] = _to_json([storable(item) if isinstance(item, str) else item for item in wanted]).decode()
            terms.append(f"w.{column} {'NOT IN' if negated else 'IN'} (SELECT value FROM json_each(:{column}))")
    if query.partitions is not None:
        values["partitions"] = listed(query.partitions)
        terms.append(f"w.partition & {PARTITION_MASK} IN (SELECT value FROM json_each(:partitions))")
    if query.text is not None:
        # Both lower() of SQLite and this one change ASCII letters only.
        values["text"] = query.text.encode("utf-8", "replace").lower().decode()
        terms.append("(instr(lower(w.id), :text) OR instr(lower(w.type), :text))")
    return " AND ".join(terms), values
