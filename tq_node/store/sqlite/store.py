"""The Store on SQLite: log and rows in one file, one writer thread, group commit
(docs/reference/on-disk-format.md).

Threads: ``store-writer`` writes, ``store-lookups`` answers what somebody waits for, ``store-scans``
answers what takes longer, ``store-snapshots`` reads whole partitions, ``store-helper`` copies the
WAL into the database and makes backups. Each has its own connection; results reach the reactor by
one ``callFromThread`` for all that are ready."""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads

from tq_node import limits
from tq_node.errors import Divergence, StoreBroken
from tq_node.partition.entries import Entry
from tq_node.store.api import (
    Batch,
    ConsensusRecord,
    MadeRow,
    OpenRow,
    PartitionLog,
    PartitionSize,
    PartitionSnapshot,
    RowPage,
    RowQuery,
    StoredRow,
    Tombstone,
)
from tq_node.store.lock import DirectoryLock
from tq_node.store.sqlite import open_database, paging, queries
from tq_node.store.sqlite.backup import BackupStopped, back_up, keep_newest
from tq_node.store.sqlite.group_commit import GroupWriter
from tq_node.store.sqlite.log_index import LogIndex
from tq_node.store.sqlite.reader import Reader
from tq_node.store.sqlite.snapshot_reads import SnapshotReads
from tq_node.store.sqlite.wal import WalKeeper, WalSize
from tq_node.store.sqlite.writer import Writer

T = TypeVar("T")
OnBroken = Callable[[Exception], None]
OnCommit = Callable[[int, int, int, float], None]


def open_store(
    directory: str | os.PathLike[str],
    *,
    reactor: IReactorFromThreads,
    on_broken: OnBroken,
    on_commit: OnCommit | None = None,
) -> SqliteStore:
    """Open the store in ``directory``, making both where they are not there. Blocks: some seconds
    for a large log.

    :param on_broken: called once, in the reactor thread, with the first failure (R18) before any
        Deferred hears of it; it is to end the process.
    :param on_commit: called in the reactor thread after each commit with (batches, log records,
        rows, seconds).

    :raises DirectoryLocked: another process has it open.
    :raises SchemaTooNew: a later release wrote it.
    :raises StoreBroken: it is damaged or not ours.
    :raises OSError: the directory can't be made or read."""
    return SqliteStore(Path(directory), reactor, on_broken, on_commit)


class SqliteStore:
    """See ``open_store`` and ``api.Store``."""

    def __init__(
        self, directory: Path, reactor: IReactorFromThreads, on_broken: OnBroken, on_commit: OnCommit | None
    ) -> None:
        self._directory = directory
        self._database = directory / open_database.DATABASE_NAME
        self._reactor = reactor
        self._on_broken = on_broken
        self._on_commit = on_commit
        self._broken: Exception | None = None
        self._closing: list[Deferred[None]] | None = None
        self._closed = False
        self._stop_backup = threading.Event()
        self._undelivered: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._delivery_scheduled = False
        self._slice_ends_s = 0.0
        open_database.make_directory(directory)
        self._lock = DirectoryLock(directory)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        self._connection = connection = open_database.connect_writer(self._database)
        try:
            self._states, self._generations = open_database.load_states(connection)
            self._meta = open_database.load_meta(connection)
            self._index = LogIndex()
            log = open_database.load_log(connection, self._states, self._generations, self._index)
            open_database.prune_epochs(connection, self._states)
            next_num = open_database.next_task_number(connection)
            lookups, scans, snapshots, helper = (
                open_database.connect(self._database, cache_kib=open_database.READER_CACHE_KIB, read_only=read_only)
                for read_only in (True, True, True, False)
            )
            self._wal_size = WalSize(self._database)
        except (OSError, StoreBroken):
            connection.close()
            raise
        except Exception as why:  # a damaged database raises many things
            connection.close()
            raise StoreBroken(f"store {self._database}: {why}") from why
        group = GroupWriter(connection, self._states, self._generations, self._index, log, next_num)
        wal = WalKeeper(self._wal_size, self._request_checkpoint, self._end_long_reads)
        self._copy_wal = wal.copy_most
        self._lookups = Reader("store-lookups", lookups, self._post_answers, self._post_failure)
        self._scans = Reader("store-scans", scans, self._post_answers, self._post_failure)
        self._helper = Reader("store-helper", helper, self._post_answers, self._post_failure)
        reader = Reader("store-snapshots", snapshots, self._post_answers, self._post_failure)
        self._snapshots = SnapshotReads(
            reader,
            functools.partial(
                open_database.connect, self._database, cache_kib=open_database.READER_CACHE_KIB, read_only=True
            ),
            functools.partial(self._ask, reader.put),
        )
        self._writer = Writer(connection, group, wal, self)

    # --- the contract ---
    def commit(self, batch: Batch) -> Deferred[None]:
        return self._ask(self._writer.put, batch)

    def meta(self) -> dict[str, bytes]:
        return dict(self._meta)

    def partitions(self) -> Deferred[list[PartitionLog]]:
        return self._ask(self._writer.put, self._partition_logs)

    def consensus_log(self) -> Deferred[list[ConsensusRecord]]:
        return self._ask(self._lookups.put, queries.consensus_log)

    def read_log(self, partition: int, first: int, *, bytes_max: int) -> Deferred[list[Entry]]:
        return self._ask(
            self._lookups.put, lambda connection: queries.read_log(connection, self._index, partition, first, bytes_max)
        )

    def open_snapshot(self, partition: int) -> Deferred[PartitionSnapshot]:
        return self._refusal() or cast("Deferred[PartitionSnapshot]", self._snapshots.open(partition))

    def digest(self, partition: int) -> Deferred[tuple[int, bytes]]:
        """See ``api.Store.digest``; may fail with ``SnapshotLost``, as a snapshot may."""
        return self._snapshots.digest(partition)

    def sizes(self) -> dict[int, PartitionSize]:
        return self._generations.sizes()

    def partition_bytes(self) -> dict[int, int]:
        return {partition: size.bytes for partition, size in self.sizes().items()}

    def lookup(self, ids: Seq[str]) -> Deferred[dict[str, StoredRow | Tombstone]]:
        return self._ask(self._lookups.put, ids)

    def page(self, query: RowQuery) -> Deferred[RowPage]:
        return self._scan(paging.page, query)

    def counts(
        self, partitions: Collection[int] | None = None, *, from_state: int = 0
    ) -> Deferred[list[tuple[int, str, int, int]]]:
        return self._scan(queries.counts, partitions, from_state)

    def open_rows(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[OpenRow]]:
        return self._scan(queries.open_rows, after, limit, partitions)

    def open_makers(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[MadeRow]]:
        return self._scan(queries.open_makers, after, limit, partitions)

    def ended_before(self, us: int, limit: int, partitions: Collection[int] | None = None) -> Deferred[list[StoredRow]]:
        return self._scan(queries.ended_before, us, limit, partitions)

    def tombstones_before(
        self, us: int, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[Tombstone]]:
        return self._scan(queries.tombstones_before, us, limit, partitions)

    def oldest_pending(self, partitions: Collection[int] | None = None) -> Deferred[dict[str, int]]:
        return self._scan(queries.oldest_pending, partitions)

    def newest_us(self) -> Deferred[int]:
        return self._scan(queries.newest_us)

    def backup(self, directory: str, name: str, kept: int) -> Deferred[Seq[str]]:
        """Fails with ``BackupStopped``, OSError, sqlite3.Error: no copy made, the store is well."""
        folder = Path(directory)

        def run(connection: sqlite3.Connection) -> Seq[str] | Exception:
            try:
                open_database.make_directory(folder)
                back_up(connection, folder / name, self._stop_backup)
                return keep_newest(folder / name, kept)
            except (BackupStopped, OSError, sqlite3.Error) as why:
                return why

        def raise_if_failed(result: Seq[str] | Exception) -> Seq[str]:
            if isinstance(result, Exception):
                raise result
            return result

        if self._closing is None:
            self._stop_backup.clear()
        return self._ask(self._helper.put, run).addCallback(raise_if_failed)

    def disk_free_bytes(self, directory: str | None = None) -> int:
        place = self._directory if directory is None else Path(directory)
        while not place.exists():
            place = place.parent
        disk = os.statvfs(place)
        return disk.f_bavail * disk.f_frsize

    def bytes_on_disk(self) -> int:
        return open_database.size_on_disk(self._database)

    def close(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        if self._closed:
            done.callback(None)
        elif self._closing is not None:
            self._closing.append(done)
        else:
            self._closing = [done]
            self._stop_backup.set()
            self._snapshots.fail_waiting(StoreBroken("the store is closed"))
            self._writer.stop()
        return done

    # --- asking a thread ---
    def _ask(self, put: Callable[[tuple[Any, Any]], None], question: Any) -> Deferred[Any]:
        refusal = self._refusal()
        if refusal is not None:
            return refusal
        answer: Deferred[Any] = Deferred()
        put((question, answer))
        return answer

    def _refusal(self) -> Deferred[Any] | None:
        """A failed Deferred once the store is closed or broken, else None."""
        if self._broken is not None:
            return fail(StoreBroken(f"the store is broken: {self._broken}"))
        if self._closing is not None:
            return fail(StoreBroken("the store is closed"))
        return None

    def _scan(self, function: Callable[..., T], *arguments: object) -> Deferred[T]:
        return self._ask(self._scans.put, lambda connection: function(connection, *arguments))

    def _partition_logs(self) -> list[PartitionLog]:
        return [self._states[partition].as_partition_log(partition) for partition in sorted(self._states)]

    def _request_checkpoint(self) -> None:
        self._helper.put((self._copy_wal, None))

    def _end_long_reads(self) -> None:
        self._stop_backup.set()
        self._snapshots.lose_all()

    # --- from the threads ---
    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Have ``function`` called in the reactor thread, in order; one wake-up serves many."""
        self._undelivered.append((function, arguments))
        if not self._delivery_scheduled:
            self._delivery_scheduled = True
            self._reactor.callFromThread(self._deliver)

    def committed(
        self, batches: Seq[Batch], deferreds: Seq[Deferred[None]], entries: int, rows: int, seconds: float
    ) -> None:
        self._post(self._fire_committed, batches, deferreds, entries, rows, seconds)

    def answered(self, deferred: Deferred[object], value: object) -> None:
        self._post(self._fire, [(deferred, value)])

    def failed(self, why: Exception, deferreds: Seq[Deferred[Any]]) -> None:
        self._post(self._break, why, list(deferreds))

    def refused(self, deferreds: Seq[Deferred[Any]]) -> None:
        self._post(self._break, StoreBroken("an earlier write failed"), list(deferreds))

    def writer_ended(self) -> None:
        for reader in (self._lookups, self._scans, self._snapshots, self._helper):
            reader.stop()
        try:
            self._connection.close()
        finally:
            self._wal_size.close()
            self._lock.release()
            self._post(self._fire_closed)

    def _post_answers(self, answers: list[tuple[Deferred[object] | None, object]]) -> None:
        self._post(self._fire, answers)

    def _post_failure(self, why: Exception, deferreds: list[Deferred[Any] | None]) -> None:
        self._writer.put((functools.partial(_raise, why), None))
        self._post(self._break, why, deferreds)

    # --- in the reactor thread ---
    def _deliver(self) -> None:
        """Deliver for one slice, then give the reactor back: answers of long values take long."""
        self._delivery_scheduled = False  # first: what is posted after the last look schedules again
        self._slice_ends_s = time.perf_counter() + limits.SLICE_MS / 1000
        try:
            while self._undelivered and time.perf_counter() < self._slice_ends_s:
                function, arguments = self._undelivered.popleft()
                function(*arguments)
        finally:
            if self._undelivered:  # or a callback raised, which the reactor logs
                self._delivery_scheduled = True
                self._reactor.callFromThread(self._deliver)

    def _fire_committed(
        self, batches: Seq[Batch], deferreds: Seq[Deferred[None]], entries: int, rows: int, seconds: float
    ) -> None:
        if self._on_commit is not None:
            self._on_commit(len(batches), entries, rows, seconds)
        for batch, deferred in zip(batches, deferreds, strict=True):
            for key, value in batch.meta.items():
                if value is None:
                    self._meta.pop(key, None)
                else:
                    self._meta[key] = value
            deferred.callback(None)

    def _fire(self, answers: list[tuple[Deferred[object] | None, object]]) -> None:
        for number, (deferred, value) in enumerate(answers, 1):
            if deferred is None:
                continue
            if self._broken is not None:
                deferred.errback(StoreBroken(f"the store is broken: {self._broken}"))
            else:
                deferred.callback(value)
            if number < len(answers) and time.perf_counter() >= self._slice_ends_s:
                self._undelivered.appendleft((self._fire, (answers[number:],)))
                return

    def _break(self, why: Exception, deferreds: Seq[Deferred[Any] | None]) -> None:
        """Fail ``deferreds``; the first failure calls ``on_broken`` and fails all later calls."""
        try:
            if self._broken is None:
                self._broken = why
                self._snapshots.fail_waiting(StoreBroken(f"the store is broken: {why}"))
                self._on_broken(why)
        finally:
            known = isinstance(why, StoreBroken | Divergence)
            for deferred in deferreds:
                if deferred is not None:
                    deferred.errback(why if known else StoreBroken(f"the store is broken: {why}"))

    def _fire_closed(self) -> None:
        self._closed = True
        waiting, self._closing = self._closing or [], []
        for done in waiting:
            done.callback(None)


def _raise(why: Exception) -> None:
    raise why
