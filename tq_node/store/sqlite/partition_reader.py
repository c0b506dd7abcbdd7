"""One partition's content out of SQLite, in one read transaction, in order of ids. Runs in the connection's thread."""

from __future__ import annotations

import sqlite3

import msgspec

from tq_node.errors import StoreBroken
from tq_node.store.checksums import tombstone_crc
from tq_node.store.snapshots import Chunk, Digest, GraveParts, encode_chunk
from tq_node.store.sqlite.generations import slot_of
from tq_node.store.sqlite.queries import rows_in_full

_CHUNK_ITEMS_MAX = 1_024
_CHUNK_BYTES_FLAT = 16
_ITEM_BYTES_FLAT = 80

_decode_sizes = msgspec.json.Decoder(list[tuple[int, str, int]]).decode
_decode_graves = msgspec.json.Decoder(list[tuple[str, str, int, int]]).decode

# The index by id holds the slot too: the walk passes other partitions' entries without a look at their rows.
_ROWS = (
    "SELECT json_group_array(json_array(num, id, size)) FROM (SELECT t.num AS num, t.id AS id, "
    "length(CAST(t.id AS BLOB)) + length(CAST(t.type AS BLOB)) + length(CAST(t.queue AS BLOB)) + length(t.body) + "
    "coalesce(length(t.spec), (SELECT length(spec) FROM specs WHERE specs.num = t.num)) AS size "
    "FROM (SELECT num FROM tasks INDEXED BY tasks_id WHERE id > ? AND partition = ? ORDER BY id LIMIT ?) AS w "
    "CROSS JOIN tasks AS t ON t.num = w.num)"
)
_GRAVES = (
    "SELECT json_group_array(json_array(id, hex(content_hash), at_us, crc)) FROM "
    "(SELECT id, content_hash, at_us, crc FROM tombstones WHERE id > ? AND partition = ? ORDER BY id LIMIT ?)"
)


class PartitionReader:
    """``connection`` is in a transaction from here to ``end``."""

    def __init__(self, connection: sqlite3.Connection, partition: int) -> None:
        self.partition = partition
        self.digest = Digest()
        self.is_lost = False
        self._connection = connection
        self._row: str | None = ""
        self._grave: str | None = ""
        connection.execute("BEGIN")
        found = connection.execute(
            "SELECT applied, horizon_us, generation FROM partitions WHERE partition = ?", (partition,)
        ).fetchone()
        state: tuple[int, int, int] = found or (0, 0, 0)
        self.applied, self.horizon_us, generation = state
        self._slot = slot_of(partition, generation)
        self.epochs: list[tuple[int, int]] = connection.execute(
            "SELECT epoch, first_sequence FROM epochs WHERE partition = ? AND first_sequence <= ? ORDER BY epoch",
            (partition, self.applied),
        ).fetchall()

    def read(self, bytes_max: int) -> bytes | None:
        """The next chunk; None at the end. :raises StoreBroken: something in it is damaged."""
        chunk = Chunk([], [])
        left = self._read_rows(chunk, bytes_max - _CHUNK_BYTES_FLAT)
        if self._row is None:
            self._read_graves(chunk, left)
        if not (chunk.rows or chunk.graves):
            return None
        return encode_chunk(chunk, self.digest)

    def end(self) -> None:
        self._connection.execute("COMMIT")

    def _read_rows(self, chunk: Chunk, left: int) -> int:
        if self._row is None:
            return left
        limit = max(min(_CHUNK_ITEMS_MAX, left // _ITEM_BYTES_FLAT), 1)
        (text,) = self._connection.execute(_ROWS, (self._row, self._slot, limit)).fetchone()
        found = _decode_sizes(text)
        numbers: list[int] = []
        for number, task_id, size in found:
            left -= size + _ITEM_BYTES_FLAT
            if numbers and left < 0:
                break
            numbers.append(number)
            self._row = task_id
        if len(numbers) == len(found) < limit:
            self._row = None
        chunk.rows = rows_in_full(self._connection, self.partition, numbers)
        return left

    def _read_graves(self, chunk: Chunk, left: int) -> None:
        if self._grave is None:
            return
        limit = max(min(_CHUNK_ITEMS_MAX, left // _ITEM_BYTES_FLAT), 0 if chunk.rows else 1)
        (text,) = self._connection.execute(_GRAVES, (self._grave, self._slot, limit)).fetchone()
        found = _decode_graves(text)
        for task_id, content_hash, at_us, crc in found:
            left -= len(task_id.encode()) + len(content_hash) // 2 + _ITEM_BYTES_FLAT // 2
            if left < 0 and (chunk.rows or chunk.graves):
                return
            chunk.graves.append(self._verified(task_id, bytes.fromhex(content_hash), at_us, crc))
            self._grave = task_id
        if len(found) < limit:
            self._grave = None

    def _verified(self, task_id: str, content_hash: bytes, at_us: int, crc: int) -> GraveParts:
        if crc != tombstone_crc(task_id, self.partition, content_hash, at_us):
            raise StoreBroken(f"the stored tombstone of task {task_id} is damaged")
        return task_id, content_hash, at_us, crc
