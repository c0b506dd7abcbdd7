"""Deletes dead records and rows in slices of the writer's transactions, so no commit waits long."""

from __future__ import annotations

# ruff: noqa: S608 -- the pieces put together are constants of this file
import sqlite3

import msgspec

from tq_node import limits
from tq_node.store.sqlite import sql
from tq_node.store.sqlite.generations import Generations
from tq_node.store.sqlite.log_index import LogIndex, LogLoad

TRIM_ROWS_PER_COMMIT = 4_096
TRIM_ROWS_LEAST = 256
TRIM_BYTES_PER_COMMIT = 16 * limits.MIB
DEAD_ROWS_MAX = 65_536
"""Dead records that may lie behind live ones; past this and the live ones' number: a search."""
SWEEP_ROWS_PER_COMMIT = 64
"""Some 50 µs each: their index entries are scattered."""
SWEEP_LOOKS_PER_COMMIT = 8_192
"""Index entries that one slice may walk past, some 100 ns each."""

_to_json = msgspec.json.Encoder().encode
_Entry = tuple[int, str, str, int]
"""An index entry: state, id, queue, slot. An id may be in two slots of its partition."""
_decode_rows = msgspec.json.Decoder(list[tuple[int, int, str, str, int]]).decode
_decode_ids = msgspec.json.Decoder(list[tuple[str, int]]).decode

_DEAD = "partition IN (SELECT value FROM json_each(:dead))"
_ENTRY = "state, id, queue, partition"
_FIND_ROWS = (
    f"SELECT json_group_array(json_array(num, {_ENTRY})) FROM (SELECT num, {_ENTRY} FROM "
    f"(SELECT num, {_ENTRY} FROM tasks INDEXED BY tasks_state WHERE ({_ENTRY}) > (:state, :id, :queue, :slot) "
    f"ORDER BY {_ENTRY} LIMIT :looks) WHERE {_DEAD} LIMIT :rows)"
)
_LAST_ROW = (
    f"SELECT {_ENTRY} FROM tasks INDEXED BY tasks_state WHERE ({_ENTRY}) > (?, ?, ?, ?) "
    f"ORDER BY {_ENTRY} LIMIT 1 OFFSET ?"
)
_DELETE_SPECS = "DELETE FROM specs WHERE num IN (SELECT value FROM json_each(?))"
_DELETE_ROWS = "DELETE FROM tasks WHERE num IN (SELECT value FROM json_each(?))"
_FIND_TOMBSTONES = (
    "SELECT json_group_array(json_array(id, partition)) FROM (SELECT id, partition FROM "
    "(SELECT id, partition FROM tombstones WHERE (id, partition) > (:id, :slot) ORDER BY id, partition LIMIT :looks) "
    f"WHERE {_DEAD} LIMIT :rows)"
)
_LAST_TOMBSTONE = (
    "SELECT id, partition FROM tombstones WHERE (id, partition) > (?, ?) ORDER BY id, partition LIMIT 1 OFFSET ?"
)
_DELETE_DEAD_TOMBSTONES = (
    "DELETE FROM tombstones WHERE (id, partition) IN "
    "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
)


class RecordSweeper:
    """Deletes dead log records: first those below the first live one, then those between."""

    def __init__(self, connection: sqlite3.Connection, index: LogIndex, log: LogLoad) -> None:
        self._connection = connection
        self._index = index
        self._rows = log.rows
        self._bytes = log.bytes
        self._lowest = 0
        self._live_from = index.first_position(otherwise=log.next_position)
        self._swept_to = 0

    def added(self, records: list[tuple[int, int, int, int]]) -> None:
        self._rows += len(records)
        self._bytes += sum([size for _, _, _, size in records])

    def removed(self, rows: int) -> None:
        self._bytes -= rows * self._average
        self._rows -= rows

    def update_first_live(self, next_position: int) -> None:
        """Update the first live position after the index has changed."""
        self._live_from = self._index.first_position(otherwise=next_position)

    @property
    def is_due(self) -> bool:
        """Whether enough is dead at the front, or between live records, that a search pays."""
        if self._live_from - self._lowest >= TRIM_ROWS_LEAST:
            return True
        return self._rows - self._index.kept > max(DEAD_ROWS_MAX, self._index.kept)

    @property
    def _average(self) -> int:
        return max(self._bytes // max(self._rows, 1), 1)

    def sweep(self, next_position: int) -> None:
        """Delete a slice."""
        slice_rows = min(max(TRIM_BYTES_PER_COMMIT // self._average, TRIM_ROWS_LEAST), TRIM_ROWS_PER_COMMIT)
        if self._live_from > self._lowest:
            self._lowest = min(self._lowest + slice_rows, self._live_from)
            deleted = self._connection.execute("DELETE FROM log WHERE pos < ?", (self._lowest,)).rowcount
        else:
            if not self._live_from <= self._swept_to < next_position:
                self._swept_to = self._live_from
            bounds = (self._swept_to, self._swept_to + slice_rows)
            deleted = self._connection.execute(sql.SWEEP_LOG, bounds).rowcount
            self._swept_to += slice_rows
        self.removed(deleted)


class RowSweeper:
    """Deletes rows and tombstones of dead slots. No index leads to them: a pass walks all of them,
    a slice at a time. A row in a dead slot never changes, so a pass finds all that were dead when
    it began."""

    def __init__(self, connection: sqlite3.Connection, generations: Generations) -> None:
        self._connection = connection
        self._generations = generations
        self._sweeping: set[int] = set()
        self._row: _Entry | None = None
        self._tombstone: tuple[str, int] | None = None

    @property
    def is_due(self) -> bool:
        return bool(self._generations.dead_slots)

    def sweep(self) -> None:
        """Delete one slice; begins a pass if none is under way."""
        if not self._sweeping:
            self._sweeping = set(self._generations.dead_slots)
            self._row, self._tombstone = (-1, "", "", -1), ("", -1)
        dead = _to_json(list(self._sweeping)).decode()
        if self._row is not None:
            self._sweep_rows(dead, self._row)
        elif self._tombstone is not None:
            self._sweep_tombstones(dead, self._tombstone)
        if self._row is None and self._tombstone is None:
            self._connection.execute("DELETE FROM hidden WHERE slot IN (SELECT value FROM json_each(?))", (dead,))
            self._generations.slots_deleted(self._sweeping)
            self._sweeping = set()

    def _sweep_rows(self, dead: str, after: _Entry) -> None:
        bound = dict(zip(("state", "id", "queue", "slot"), after, strict=True)) | _slice(dead)
        (text,) = self._connection.execute(_FIND_ROWS, bound).fetchone()
        found = _decode_rows(text)
        if len(found) == SWEEP_ROWS_PER_COMMIT:
            self._row = found[-1][1:]
        else:
            self._row = self._connection.execute(_LAST_ROW, (*after, SWEEP_LOOKS_PER_COMMIT - 1)).fetchone()
        if found:
            numbers = _to_json([number for number, *_ in found]).decode()
            self._connection.execute(_DELETE_SPECS, (numbers,))
            self._connection.execute(_DELETE_ROWS, (numbers,))

    def _sweep_tombstones(self, dead: str, after: tuple[str, int]) -> None:
        bound = {"id": after[0], "slot": after[1], **_slice(dead)}
        (text,) = self._connection.execute(_FIND_TOMBSTONES, bound).fetchone()
        found = _decode_ids(text)
        if len(found) == SWEEP_ROWS_PER_COMMIT:
            self._tombstone = found[-1]
        else:
            self._tombstone = self._connection.execute(_LAST_TOMBSTONE, (*after, SWEEP_LOOKS_PER_COMMIT - 1)).fetchone()
        if found:
            self._connection.execute(_DELETE_DEAD_TOMBSTONES, (_to_json(found).decode(),))


def _slice(dead: str) -> dict[str, object]:
    return {"dead": dead, "looks": SWEEP_LOOKS_PER_COMMIT, "rows": SWEEP_ROWS_PER_COMMIT}
