"""What the readers ask, each as a function of a read-only connection, each verified by checksum.

Every query returns one row with one JSON text, because each row more would cost a step, and each
step a switch of threads (see ``sql``). Blobs travel through it as hex. Rows of dead and staged
slots are not seen (``generations``)."""

from __future__ import annotations

# ruff: noqa: S608 -- the pieces put together are constants of this file
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as Seq

import msgspec

from tq_node import limits
from tq_node.errors import StoreBroken
from tq_node.partition.entries import Entry, is_intact
from tq_node.store.api import ConsensusRecord, MadeRow, OpenRow, StoredRow, Tombstone
from tq_node.store.checksums import consensus_crc, tombstone_crc
from tq_node.store.snapshots import RowParts, require_intact
from tq_node.store.sqlite.generations import PARTITION_MASK
from tq_node.store.sqlite.log_index import LogIndex
from tq_node.store.sqlite.sql import VISIBLE

_Row = tuple[str, int, int, int, int, int, int, str, str, int, int, int, str, str]
_TombstoneColumns = tuple[str, int, str, int, int]

_to_json = msgspec.json.Encoder().encode
_decode_rows = msgspec.json.Decoder(list[_Row]).decode
_decode_tombstones = msgspec.json.Decoder(list[_TombstoneColumns]).decode
_decode_records = msgspec.json.Decoder(list[tuple[int, int, int, int, str]]).decode
_decode_counts = msgspec.json.Decoder(list[tuple[int, str, int, int]]).decode
_decode_open = msgspec.json.Decoder(list[tuple[str, int, int, str, int, int, str]]).decode
_decode_makers = msgspec.json.Decoder(list[tuple[str, int, int, str, str]]).decode
_decode_sizes = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_oldest = msgspec.json.Decoder(list[tuple[str, int]]).decode

VISIBLE_HERE = VISIBLE.format("partition")
WANTED = (
    f"(:partitions IS NULL OR partition & {PARTITION_MASK} IN (SELECT value FROM json_each(:partitions))) "
    f"AND {VISIBLE_HERE}"
)
_ROW = (
    f"json_group_array(json_array(t.id, t.partition & {PARTITION_MASK}, t.rev, t.state, t.run_at_us, t.ended_us, t.crc, "
    "t.type, t.queue, t.priority, t.created_us, t.spec_crc, hex(coalesce(t.spec, s.spec)), hex(t.body)))"
)
_SPEC = "LEFT JOIN specs AS s ON s.num = t.num AND t.spec IS NULL"
_TOMBSTONE = f"json_group_array(json_array(id, partition & {PARTITION_MASK}, hex(content_hash), at_us, crc))"

_LOOKUP = (
    f"SELECT (SELECT {_ROW} FROM json_each(?1) AS j CROSS JOIN tasks AS t ON t.id = j.value {_SPEC} "
    f"WHERE {VISIBLE.format('t.partition')}), "
    f"(SELECT {_TOMBSTONE} FROM tombstones WHERE id IN (SELECT value FROM json_each(?1)) AND {VISIBLE_HERE})"
)
_ROWS = f"SELECT {_ROW} FROM json_each(?) AS j CROSS JOIN tasks AS t ON t.num = j.value {_SPEC}"
_RECORDS = (
    "SELECT json_group_array(json_array(partition, sequence, epoch, crc, hex(payload))) FROM "
    "(SELECT * FROM log WHERE pos IN (SELECT value FROM json_each(?)) ORDER BY pos)"
)
_COUNTS = (
    "SELECT json_group_array(json_array(p, queue, state, n)) FROM "
    f"(SELECT partition & {PARTITION_MASK} AS p, queue, state, count(*) AS n "
    "FROM (SELECT partition, queue, state FROM tasks INDEXED BY tasks_state "
    "WHERE (state, id, queue, partition) > (:state, :id, :queue, :slot) ORDER BY state, id, queue, partition LIMIT :rows) "
    f"WHERE {WANTED} GROUP BY 1, 2, 3)"
)
_COUNTS_LAST = (
    "SELECT state, id, queue, partition FROM tasks INDEXED BY tasks_state "
    "WHERE (state, id, queue, partition) > (:state, :id, :queue, :slot) "
    "ORDER BY state, id, queue, partition LIMIT 1 OFFSET :rows - 1"
)
_OPEN = (
    f"SELECT json_group_array(json_array(id, partition & {PARTITION_MASK}, state, queue, priority, run_at_us, type)) FROM "
    "(SELECT id, partition, state, queue, priority, run_at_us, type FROM tasks INDEXED BY tasks_state "
    f"WHERE state < 3 AND (state, id) > (:state, :id) AND {WANTED} ORDER BY state, id LIMIT :rows)"
)
# Only the specs that name a token have a twelfth value, which their first byte says.
_MAKERS = (
    f"SELECT json_group_array(json_array(id, partition & {PARTITION_MASK}, state, queue, "
    "CASE WHEN substr(spec, 1, 1) > x'9b' THEN made_by(spec) ELSE '' END)) FROM "
    "(SELECT id, partition, state, queue, "
    "coalesce(spec, (SELECT spec FROM specs WHERE specs.num = tasks.num)) AS spec FROM tasks INDEXED BY tasks_state "
    f"WHERE state < 3 AND (state, id) > (:state, :id) AND {WANTED} ORDER BY state, id LIMIT :rows)"
)
_ENDED = (
    "SELECT json_group_array(json_array(num, size)) FROM (SELECT num, length(body) + coalesce(length(spec), "
    "(SELECT length(spec) FROM specs WHERE specs.num = tasks.num)) AS size FROM tasks INDEXED BY tasks_ended "
    f"WHERE ended_us > 0 AND ended_us < :us AND {WANTED} ORDER BY ended_us LIMIT :rows)"
)
_TOMBSTONES = (
    f"SELECT {_TOMBSTONE} FROM (SELECT * FROM tombstones INDEXED BY tombstones_at "
    f"WHERE at_us < :us AND {WANTED} ORDER BY at_us, id LIMIT :rows)"
)
# Steps from queue to queue instead of walking all pending rows.
_NEXT_QUEUE = "SELECT queue FROM tasks INDEXED BY tasks_pending WHERE state = 1 {} ORDER BY queue LIMIT 1"
_OLDEST = (
    f"WITH RECURSIVE q (queue) AS (SELECT * FROM ({_NEXT_QUEUE.format('')}) UNION ALL "
    f"SELECT ({_NEXT_QUEUE.format('AND queue > q.queue')}) FROM q WHERE q.queue IS NOT NULL) "
    "SELECT json_group_array(json_array(queue, oldest)) FROM (SELECT queue, (SELECT run_at_us FROM tasks "
    f"INDEXED BY tasks_pending WHERE state = 1 AND tasks.queue = q.queue AND {WANTED} ORDER BY run_at_us LIMIT 1) AS oldest "
    "FROM q WHERE queue IS NOT NULL) WHERE oldest IS NOT NULL"
)

LOOKUP_IDS_MAX = 1_000
COUNT_ROWS_PER_QUERY = 50_000


def _one(connection: sqlite3.Connection, sql: str, parameters: Seq[object] | Mapping[str, object]) -> tuple[str, ...]:
    row: tuple[str, ...] = connection.execute(sql, parameters).fetchone()
    return row


def listed(partitions: Collection[int] | None) -> str | None:
    """What ``WANTED`` takes for ``:partitions``."""
    return None if partitions is None else _to_json(list(partitions)).decode()


def storable(text: str) -> str:
    """The text without what UTF-8 can't say (lone surrogates)."""
    return text.encode("utf-8", "replace").decode()


def _verified(row: _Row) -> StoredRow:
    partition, parts = _parts(row)
    require_intact(partition, parts)
    task_id, rev, state, run_at_us, ended_us, _, _, _, _, _, _, spec, body = parts
    return StoredRow(task_id, partition, rev, state, run_at_us, ended_us, spec, body)


def _parts(row: _Row) -> tuple[int, RowParts]:
    task_id, partition, *middle, spec, body = row
    return partition, (task_id, *middle, bytes.fromhex(spec), bytes.fromhex(body))  # type: ignore[return-value]


def _verified_tombstone(columns: _TombstoneColumns) -> Tombstone:
    task_id, partition, content_hash, at_us, crc = columns
    tombstone = Tombstone(task_id, partition, bytes.fromhex(content_hash), at_us)
    if crc != tombstone_crc(task_id, partition, tombstone.content_hash, at_us):
        raise StoreBroken(f"the stored tombstone of task {task_id} is damaged")
    return tombstone


def consensus_log(connection: sqlite3.Connection) -> list[ConsensusRecord]:
    records = []
    for log_index, term, kind, data, crc in connection.execute(
        "SELECT log_index, term, kind, data, crc FROM consensus_log ORDER BY log_index"
    ):
        if crc != consensus_crc(log_index, term, kind, data):
            raise StoreBroken(f"the Raft log's entry {log_index} is damaged")
        records.append(ConsensusRecord(log_index, term, kind, data))
    return records


def lookup(connection: sqlite3.Connection, ids: Seq[str]) -> dict[str, StoredRow | Tombstone]:
    found: dict[str, StoredRow | Tombstone] = {}
    for start in range(0, len(ids), LOOKUP_IDS_MAX):
        part = ids[start : start + LOOKUP_IDS_MAX]
        try:
            wanted = _to_json(part).decode()
        except UnicodeEncodeError:  # an id that is no text can't be stored, but somebody may ask for it
            wanted = _to_json([task_id for task_id in part if storable(task_id) == task_id]).decode()
        rows, tombstones = _one(connection, _LOOKUP, (wanted,))
        for tombstone in _decode_tombstones(tombstones):
            found[tombstone[0]] = _verified_tombstone(tombstone)
        for row in _decode_rows(rows):
            found[row[0]] = _verified(row)
    return found


def rows_by_number(connection: sqlite3.Connection, numbers: Iterable[int]) -> list[StoredRow]:
    """In the order of ``numbers``, all of which must be there."""
    return [_verified(row) for row in _rows_by_number(connection, list(numbers))]


def rows_in_full(connection: sqlite3.Connection, partition: int, numbers: list[int]) -> list[RowParts]:
    """As ``rows_by_number``, with all that a snapshot takes along; all are the partition's."""
    found = []
    for row in _rows_by_number(connection, numbers):
        _, parts = _parts(row)
        require_intact(partition, parts)
        found.append(parts)
    return found


def _rows_by_number(connection: sqlite3.Connection, numbers: list[int]) -> list[_Row]:
    if not numbers:
        return []
    (text,) = _one(connection, _ROWS, (_to_json(numbers).decode(),))
    rows = _decode_rows(text)
    if len(rows) != len(numbers):
        raise StoreBroken(f"{len(numbers) - len(rows)} rows are in an index and not in the table")
    return rows


def read_records(
    connection: sqlite3.Connection, partition: int, first: int, positions: list[int]
) -> list[Entry] | None:
    """The records at ``positions``, one after another from ``first`` on; None: one is gone."""
    (text,) = _one(connection, _RECORDS, (_to_json(positions).decode(),))
    records = _decode_records(text)
    if len(records) != len(positions):
        return None
    entries = []
    for sequence, (stored_partition, stored_sequence, epoch, crc, payload) in enumerate(records, first):
        entry = Entry(stored_partition, stored_sequence, epoch, crc, bytes.fromhex(payload))
        if (stored_partition, stored_sequence) != (partition, sequence) or not is_intact(entry):
            raise StoreBroken(f"log record {sequence} of partition {partition} is damaged")
        entries.append(entry)
    return entries


def read_log(
    connection: sqlite3.Connection, index: LogIndex, partition: int, first: int, bytes_max: int
) -> list[Entry]:
    """See ``api.Store.read_log``. Records may go between a look at the index and at the table."""
    positions = index.find(partition, first, bytes_max)
    entries = read_records(connection, partition, first, positions) if positions else []
    if entries is not None:
        return entries
    with index.settled:  # nothing is cut meanwhile
        positions = index.find(partition, first, bytes_max)
        entries = read_records(connection, partition, first, positions) if positions else []
        if entries is not None:
            return entries
        if index.find(partition, first, 0):  # not trimmed either: the index forgets a record before the table does
            raise StoreBroken(f"partition {partition}: a log record from {first} on is missing")
        return []


def counts(
    connection: sqlite3.Connection, partitions: Collection[int] | None = None, from_state: int = 0
) -> list[tuple[int, str, int, int]]:
    """In pieces, to sort few rows at a time; in one transaction, so that nothing counts twice."""
    totals: dict[tuple[int, str, int], int] = {}
    # An id may be there twice, in two slots of its partition.
    after: tuple[int, str, str, int] | None = (from_state, "", "", -1)
    wanted = listed(partitions)
    connection.execute("BEGIN")
    try:
        while after is not None:
            bound = dict(zip(("state", "id", "queue", "slot"), after, strict=True)) | {"rows": COUNT_ROWS_PER_QUERY}
            (text,) = _one(connection, _COUNTS, {**bound, "partitions": wanted})
            for partition, queue, state, rows in _decode_counts(text):
                key = (partition, queue, state)
                totals[key] = totals.get(key, 0) + rows
            after = connection.execute(_COUNTS_LAST, bound).fetchone()
    finally:
        connection.execute("COMMIT")
    return [(*key, rows) for key, rows in sorted(totals.items())]


def open_rows(
    connection: sqlite3.Connection, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
) -> list[OpenRow]:
    state, task_id = after or (-1, "")
    bound = {"state": state, "id": task_id, "rows": limit, "partitions": listed(partitions)}
    (text,) = _one(connection, _OPEN, bound)
    return [OpenRow(*row) for row in _decode_open(text)]


def open_makers(
    connection: sqlite3.Connection, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
) -> list[MadeRow]:
    state, task_id = after or (-1, "")
    bound = {"state": state, "id": task_id, "rows": limit, "partitions": listed(partitions)}
    (text,) = _one(connection, _MAKERS, bound)
    return [MadeRow(*row) for row in _decode_makers(text)]


def ended_before(
    connection: sqlite3.Connection, us: int, limit: int, partitions: Collection[int] | None = None
) -> list[StoredRow]:
    """Fewer than ``limit`` where rows are long: at least one, up to ``limits.LIST_BYTES_MAX``."""
    connection.execute("BEGIN")
    try:
        (text,) = _one(connection, _ENDED, {"us": us, "rows": limit, "partitions": listed(partitions)})
        numbers: list[int] = []
        total = 0
        for number, size in _decode_sizes(text):
            total += size
            if numbers and total > limits.LIST_BYTES_MAX:
                break
            numbers.append(number)
        return rows_by_number(connection, numbers)
    finally:
        connection.execute("COMMIT")


def tombstones_before(
    connection: sqlite3.Connection, us: int, limit: int, partitions: Collection[int] | None = None
) -> list[Tombstone]:
    (text,) = _one(connection, _TOMBSTONES, {"us": us, "rows": limit, "partitions": listed(partitions)})
    return [_verified_tombstone(tombstone) for tombstone in _decode_tombstones(text)]


def oldest_pending(connection: sqlite3.Connection, partitions: Collection[int] | None = None) -> dict[str, int]:
    (text,) = _one(connection, _OLDEST, {"partitions": listed(partitions)})
    return dict(_decode_oldest(text))


def newest_us(connection: sqlite3.Connection) -> int:
    """Two looks at the end of an index."""
    (newest,) = connection.execute(
        "SELECT max((SELECT coalesce(max(created_us), 0) FROM tasks), "
        "(SELECT coalesce(max(ended_us), 0) FROM tasks WHERE ended_us > 0))"
    ).fetchone()
    return int(newest)
