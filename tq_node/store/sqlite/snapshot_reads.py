"""Snapshots of single partitions of a SQLite store, and digests over their content.

Each open snapshot is a read transaction on a connection opened for it. All of them are read in one
thread, ``store-snapshots``. They hold back the write-ahead log: where it outgrows its bound, the
writer thread has all of them given up (``lose_all``)."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import msgspec
from twisted.internet.defer import Deferred, DeferredSemaphore, fail
from twisted.python.failure import Failure

from tq_node.errors import Busy, StoreBroken
from tq_node.store.api import SNAPSHOT_CHUNK_BYTES, SNAPSHOTS_MAX, SNAPSHOTS_WAITING_MAX, SnapshotLost
from tq_node.store.checksums import tombstone_crc
from tq_node.store.snapshots import Chunk, Digest, TombstoneParts, encode_chunk
from tq_node.store.sqlite.generations import slot_of
from tq_node.store.sqlite.queries import rows_in_full
from tq_node.store.sqlite.reader import Reader

_DIGEST_CHUNK_BYTES = 256 * 1024
_CHUNK_ITEMS_MAX = 1_024
_CHUNK_BYTES_FLAT = 16
_ITEM_BYTES_FLAT = 80

_decode_sizes = msgspec.json.Decoder(list[tuple[int, str, int]]).decode
_decode_tombstones = msgspec.json.Decoder(list[tuple[str, str, int, int]]).decode

# The index by id holds the slot too: other partitions' rows are passed without a look.
_ROWS = (
    "SELECT json_group_array(json_array(num, id, size)) FROM (SELECT t.num AS num, t.id AS id, "
    "length(CAST(t.id AS BLOB)) + length(CAST(t.type AS BLOB)) + length(CAST(t.queue AS BLOB)) + length(t.body) + "
    "coalesce(length(t.spec), (SELECT length(spec) FROM specs WHERE specs.num = t.num)) AS size "
    "FROM (SELECT num FROM tasks INDEXED BY tasks_id WHERE id > ? AND partition = ? ORDER BY id LIMIT ?) AS w "
    "CROSS JOIN tasks AS t ON t.num = w.num)"
)
_TOMBSTONES = (
    "SELECT json_group_array(json_array(id, hex(content_hash), at_us, crc)) FROM "
    "(SELECT id, content_hash, at_us, crc FROM tombstones WHERE id > ? AND partition = ? ORDER BY id LIMIT ?)"
)

Ask = Callable[[Callable[[sqlite3.Connection], object]], Deferred[Any]]


class SnapshotLimit(DeferredSemaphore):
    """Lets ``SNAPSHOTS_MAX`` be open and ``SNAPSHOTS_WAITING_MAX`` calls wait, in order."""

    def __init__(self) -> None:
        super().__init__(SNAPSHOTS_MAX)

    def acquire(self) -> Deferred[Self]:
        """Wait for a place; the Deferred fails with ``Busy`` where too many calls wait already."""
        if len(self.waiting) >= SNAPSHOTS_WAITING_MAX:
            return fail(Busy(f"{SNAPSHOTS_WAITING_MAX} wait for a snapshot already"))
        return super().acquire()

    def fail_waiting(self, why: Exception) -> None:
        """The store is closed or broken: fail all calls that wait."""
        waiting, self.waiting = self.waiting, []
        for deferred in waiting:
            deferred.errback(why)


class SqliteSnapshot:
    """See ``api.PartitionSnapshot``."""

    def __init__(self, snapshots: SnapshotReads, reader: PartitionReader) -> None:
        self.partition = reader.partition
        self.applied: int = reader.applied
        self.epochs = reader.epochs
        self.horizon_us: int = reader.horizon_us
        self._snapshots = snapshots
        self._reader = reader
        self._closed = False

    def read(self, bytes_max: int = SNAPSHOT_CHUNK_BYTES) -> Deferred[bytes | None]:
        if self._closed:
            return fail(SnapshotLost("the snapshot is closed"))
        return self._snapshots.ask(partial(_read, self._reader, bytes_max)).addCallback(_raise_if_lost)

    def digest(self) -> bytes:
        return self._reader.digest.value()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._snapshots.release(self._reader)


class SnapshotReads:
    """Opens snapshots and computes digests. Called in the reactor thread, but for ``lose_all`` and
    ``stop`` (writer thread).

    :param connect: opens a read-only connection.
    :param ask: runs a function in ``thread``, unless the store is closed or broken."""

    def __init__(self, thread: Reader, connect: Callable[[], sqlite3.Connection], ask: Ask) -> None:
        self.ask = ask
        self._thread = thread
        self._connect = connect
        self._limit = SnapshotLimit()
        self._open: dict[PartitionReader, sqlite3.Connection] = {}
        """Used only by the snapshot thread."""
        self._stop_digests = threading.Event()

    # --- in the reactor thread ---
    def open(self, partition: int) -> Deferred[SqliteSnapshot]:
        return self._limit.acquire().addCallback(self._begin, partition)

    def digest(self, partition: int) -> Deferred[tuple[int, bytes]]:
        return self.ask(partial(self._digest, partition)).addCallback(_raise_if_lost)

    def release(self, reader: PartitionReader) -> None:
        """End the snapshot's transaction and let the next call that waits have its place."""
        self._thread.put((partial(self._end, reader), None))
        self._limit.release()

    def fail_waiting(self, why: Exception) -> None:
        """The store is closed or broken: fail all calls of ``open`` that wait."""
        self._limit.fail_waiting(why)

    def _begin(self, _: object, partition: int) -> Deferred[SqliteSnapshot]:
        result: Deferred[SqliteSnapshot] = Deferred()
        self.ask(partial(self._begin_in_thread, partition)).addCallbacks(
            self._opened, self._open_failed, callbackArgs=(result,), errbackArgs=(result,)
        )
        return result

    def _opened(self, reader: PartitionReader, result: Deferred[SqliteSnapshot]) -> None:
        snapshot = SqliteSnapshot(self, reader)
        if result.called:  # cancelled meanwhile
            snapshot.close()
        else:
            result.callback(snapshot)

    def _open_failed(self, why: Failure, result: Deferred[SqliteSnapshot]) -> None:
        self._limit.release()
        if not result.called:
            result.errback(why)

    # --- in the writer thread ---
    def lose_all(self) -> None:
        """Give up all snapshots and digests under way: they hold back the write-ahead log."""
        self._stop_digests.set()
        self._thread.put((self._lose, None))

    def stop(self) -> None:
        """Give up all snapshots and wait for the end of the thread."""
        self.lose_all()
        self._thread.stop()

    # --- in the snapshot thread ---
    def _begin_in_thread(self, partition: int, _: sqlite3.Connection) -> PartitionReader:
        connection = self._connect()
        try:
            reader = PartitionReader(connection, partition)
        except BaseException:
            connection.close()
            raise
        self._open[reader] = connection
        return reader

    def _end(self, reader: PartitionReader, _: sqlite3.Connection) -> None:
        connection = self._open.pop(reader, None)
        if connection is not None:
            reader.end()
            connection.close()

    def _lose(self, connection: sqlite3.Connection) -> None:
        for reader in list(self._open):
            reader.is_lost = True
            self._end(reader, connection)
        self._stop_digests.clear()

    def _digest(self, partition: int, connection: sqlite3.Connection) -> tuple[int, bytes] | SnapshotLost:
        reader = PartitionReader(connection, partition)
        try:
            while reader.read(_DIGEST_CHUNK_BYTES) is not None:
                if self._stop_digests.is_set():
                    return _lost()
            return reader.applied, reader.digest.value()
        finally:
            reader.end()


class PartitionReader:
    """Reads one partition in order of ids, in ``connection``'s transaction from here to ``end``."""

    def __init__(self, connection: sqlite3.Connection, partition: int) -> None:
        self.partition = partition
        self.digest = Digest()
        self.is_lost = False
        """``lose_all`` has ended the transaction: no chunk can be read any more."""
        self._connection = connection
        self._after_row: str | None = ""
        """Id of the last row read; None: all are read. Tombstones, which come next, likewise."""
        self._after_tombstone: str | None = ""
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
        """The next chunk; None at the end; raises ``StoreBroken`` if something in it is damaged."""
        chunk = Chunk([], [])
        bytes_left = self._read_rows(chunk, bytes_max - _CHUNK_BYTES_FLAT)
        if self._after_row is None:
            self._read_tombstones(chunk, bytes_left)
        if not (chunk.rows or chunk.tombstones):
            return None
        return encode_chunk(chunk, self.digest)

    def end(self) -> None:
        self._connection.execute("COMMIT")

    def _read_rows(self, chunk: Chunk, bytes_left: int) -> int:
        if self._after_row is None:
            return bytes_left
        limit = max(min(_CHUNK_ITEMS_MAX, bytes_left // _ITEM_BYTES_FLAT), 1)
        (text,) = self._connection.execute(_ROWS, (self._after_row, self._slot, limit)).fetchone()
        found = _decode_sizes(text)
        numbers: list[int] = []
        for number, task_id, size in found:
            bytes_left -= size + _ITEM_BYTES_FLAT
            if numbers and bytes_left < 0:
                break
            numbers.append(number)
            self._after_row = task_id
        if len(numbers) == len(found) < limit:
            self._after_row = None
        chunk.rows = rows_in_full(self._connection, self.partition, numbers)
        return bytes_left

    def _read_tombstones(self, chunk: Chunk, bytes_left: int) -> None:
        if self._after_tombstone is None:
            return
        limit = max(min(_CHUNK_ITEMS_MAX, bytes_left // _ITEM_BYTES_FLAT), 0 if chunk.rows else 1)
        (text,) = self._connection.execute(_TOMBSTONES, (self._after_tombstone, self._slot, limit)).fetchone()
        found = _decode_tombstones(text)
        for task_id, content_hash, at_us, crc in found:
            bytes_left -= len(task_id.encode()) + len(content_hash) // 2 + _ITEM_BYTES_FLAT // 2
            if bytes_left < 0 and (chunk.rows or chunk.tombstones):
                return
            chunk.tombstones.append(self._verified_parts(task_id, bytes.fromhex(content_hash), at_us, crc))
            self._after_tombstone = task_id
        if len(found) < limit:
            self._after_tombstone = None

    def _verified_parts(self, task_id: str, content_hash: bytes, at_us: int, crc: int) -> TombstoneParts:
        if crc != tombstone_crc(task_id, self.partition, content_hash, at_us):
            raise StoreBroken(f"the stored tombstone of task {task_id} is damaged")
        return task_id, content_hash, at_us, crc


def _read(reader: PartitionReader, bytes_max: int, _: sqlite3.Connection) -> bytes | SnapshotLost | None:
    return _lost() if reader.is_lost else reader.read(bytes_max)


def _lost() -> SnapshotLost:
    return SnapshotLost("too much was written while the snapshot was open")


def _raise_if_lost(value: Any) -> Any:
    if isinstance(value, SnapshotLost):
        raise value
    return value
