"""Snapshots of partitions of a SQLite store, each on a connection of its own, one thread for all.

The desk's public calls come from the reactor thread, but for ``lose_all`` and ``stop``, which are the writer's.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from tq_node.store.api import SNAPSHOT_CHUNK_BYTES, SNAPSHOTS_MAX, SNAPSHOTS_WAITING_MAX, SnapshotLost
from tq_node.store.sqlite.partition_reader import PartitionReader
from tq_node.store.sqlite.reader import Reader
from tq_node.store.sqlite.turns import Turns

_DIGEST_CHUNK_BYTES = 256 * 1024

Ask = Callable[[Callable[[sqlite3.Connection], object]], Deferred[Any]]


class SqliteSnapshot:
    """See ``api.PartitionSnapshot``."""

    def __init__(self, desk: SnapshotReads, reader: PartitionReader) -> None:
        self.partition = reader.partition
        self.applied: int = reader.applied
        self.epochs = reader.epochs
        self.horizon_us: int = reader.horizon_us
        self._desk = desk
        self._reader = reader
        self._closed = False

    def read(self, bytes_max: int = SNAPSHOT_CHUNK_BYTES) -> Deferred[bytes | None]:
        if self._closed:
            return fail(SnapshotLost("the snapshot is closed"))
        return self._desk.ask(partial(_read, self._reader, bytes_max)).addCallback(_raise_if_lost)

    def digest(self) -> bytes:
        return self._reader.digest.value()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._desk.let_go(self._reader)


class SnapshotReads:
    """:param connect: makes a read-only connection. :param ask: puts a question to ``thread`` unless the store is over."""

    def __init__(self, thread: Reader, connect: Callable[[], sqlite3.Connection], ask: Ask) -> None:
        self.ask = ask
        self._thread = thread
        self._connect = connect
        self._turns = Turns(SNAPSHOTS_MAX, SNAPSHOTS_WAITING_MAX)
        self._open: dict[PartitionReader, sqlite3.Connection] = {}
        """The thread's own."""
        self._hurry = threading.Event()

    # --- in the reactor thread ---
    def open(self, partition: int) -> Deferred[SqliteSnapshot]:
        return self._turns.take().addCallback(self._begin, partition)

    def digest(self, partition: int) -> Deferred[tuple[int, bytes]]:
        return self.ask(partial(self._digest, partition)).addCallback(_raise_if_lost)

    def let_go(self, reader: PartitionReader) -> None:
        self._thread.put((partial(self._end, reader), None))
        self._turns.give_back()

    def end(self, why: Exception) -> None:
        """The store is over: nobody gets a turn any more."""
        self._turns.end(why)

    def _begin(self, _: None, partition: int) -> Deferred[SqliteSnapshot]:
        result: Deferred[SqliteSnapshot] = Deferred()
        self.ask(partial(self._begin_here, partition)).addCallbacks(
            self._hand_over, self._refused, callbackArgs=(result,), errbackArgs=(result,)
        )
        return result

    def _hand_over(self, reader: PartitionReader, result: Deferred[SqliteSnapshot]) -> None:
        snapshot = SqliteSnapshot(self, reader)
        if result.called:  # given up meanwhile
            snapshot.close()
        else:
            result.callback(snapshot)

    def _refused(self, why: Failure, result: Deferred[SqliteSnapshot]) -> None:
        self._turns.give_back()
        if not result.called:
            result.errback(why)

    # --- in the writer's ---
    def lose_all(self) -> None:
        """Let go of all snapshots: they hold back the write-ahead log."""
        self._hurry.set()
        self._thread.put((self._lose, None))

    def stop(self) -> None:
        self._hurry.set()
        self._thread.put((self._lose, None))
        self._thread.stop()

    # --- in the thread ---
    def _begin_here(self, partition: int, _: sqlite3.Connection) -> PartitionReader:
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
        self._hurry.clear()

    def _digest(self, partition: int, connection: sqlite3.Connection) -> tuple[int, bytes] | SnapshotLost:
        reader = PartitionReader(connection, partition)
        try:
            while reader.read(_DIGEST_CHUNK_BYTES) is not None:
                if self._hurry.is_set():
                    return _lost()
            return reader.applied, reader.digest.value()
        finally:
            reader.end()


def _read(reader: PartitionReader, bytes_max: int, _: sqlite3.Connection) -> bytes | SnapshotLost | None:
    return _lost() if reader.is_lost else reader.read(bytes_max)


def _lost() -> SnapshotLost:
    return SnapshotLost("too much was written while the snapshot was open")


def _raise_if_lost(value: Any) -> Any:
    if isinstance(value, SnapshotLost):
        raise value
    return value
