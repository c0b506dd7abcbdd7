"""A model of the Store in memory, for simulations: no thread, no clock, no randomness.

What is committed stays pending until ``sync``; ``crash`` gives the store that a restart would find.
Reads answer at once, from what is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Sequence as Seq
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed

from tests.support.model_store.disk import Disk
from tests.support.model_store.reads import PartitionCopy, digest, is_wanted, page, read_log
from tq_node.errors import Divergence, StoreBroken
from tq_node.partition.entries import Entry, maker_of
from tq_node.store.api import (
    SNAPSHOT_CHUNK_BYTES,
    Batch,
    ConsensusRecord,
    MadeRow,
    OpenRow,
    PartitionLog,
    PartitionSize,
    PartitionSnapshot,
    RowPage,
    RowQuery,
    SnapshotLost,
    StoredRow,
    Tombstone,
)
from tq_node.store.sqlite.snapshot_reads import SnapshotLimit


class MemorySnapshot:
    """See ``api.PartitionSnapshot``."""

    def __init__(self, store: MemoryStore, copy: PartitionCopy, partition: int) -> None:
        self.partition = partition
        self.applied = copy.applied
        self.epochs = copy.epochs
        self.horizon_us = copy.horizon_us
        self._store = store
        self._copy = copy
        self._lost: SnapshotLost | None = None

    def read(self, bytes_max: int = SNAPSHOT_CHUNK_BYTES) -> Deferred[bytes | None]:
        if self._lost is not None:
            return fail(self._lost)
        return self._store.answer(lambda: self._copy.read(bytes_max))

    def digest(self) -> bytes:
        return self._copy.digest.value()

    def lose(self) -> None:
        self._lost = SnapshotLost("too much was written while the snapshot was open")

    def close(self) -> None:
        self._lost = SnapshotLost("the snapshot is closed")
        self._store.release(self)


class MemoryStore:
    """See ``api.Store``.

    :param auto: every commit is durable at once and its Deferred has fired when ``commit`` returns.
    :param on_broken: called once with the first failure, before any Deferred hears of it.
    :param free_bytes: what ``disk_free_bytes`` says; may be changed.
    """

    def __init__(
        self,
        *,
        auto: bool = False,
        on_broken: Callable[[Exception], None] | None = None,
        free_bytes: int = 1 << 40,
    ) -> None:
        self.auto = auto
        self.free_bytes = free_bytes
        self._on_broken = on_broken
        self._disk = Disk()
        self._pending: list[tuple[Batch, Deferred[None]]] = []
        self._failure: Exception | None = None
        self._over: str | None = None
        self._limit = SnapshotLimit()
        self._snapshots: list[MemorySnapshot] = []

    # --- what a simulation does ---
    @property
    def pending(self) -> int:
        """Batches committed and not yet durable."""
        return len(self._pending)

    def sync(self, count: int | None = None) -> int:
        """Make the oldest ``count`` pending batches durable (all of them without it), fire their
        Deferreds; return how many.
        """
        group = self._pending[:count]
        del self._pending[: len(group)]
        if self._over is not None:
            return 0
        try:
            self._write(batch for batch, _ in group)
        except Exception as why:
            self._break(why, [ticket for _, ticket in group])
            return 0
        for _, ticket in group:
            ticket.callback(None)
        return len(group)

    def crash(self, keep: int | None = 0) -> MemoryStore:
        """The store as found after a crash: what is durable and the first ``keep`` pending batches
        (None: all of them).

        What was staged and not installed is gone either way.

        This object is dead afterwards: what waits on it never hears anything.
        """
        after = type(self)(auto=self.auto, on_broken=self._on_broken, free_bytes=self.free_bytes)
        after._disk, self._disk = self._disk, Disk()
        for batch, _ in self._pending[:keep]:
            after._disk.apply(batch)
        after._disk.staged.clear()
        self._pending = []
        self._over = "the store has crashed"
        return after

    def fail_next_sync(self, why: Exception) -> None:
        """The next ``sync`` fails and loses what it was to write (R18)."""
        self._failure = why

    def lose_snapshots(self) -> None:
        """All open ones are given up, as if too much had been written meanwhile."""
        for snapshot in self._snapshots:
            snapshot.lose()

    def damage_row(self, task_id: str) -> None:
        """Flip a bit in a durable row's body."""
        task = self._disk.tasks[task_id]
        task.body = _flipped(task.body)

    def damage_record(self, partition: int, sequence: int) -> None:
        """Flip a bit in a durable log record's payload."""
        records = self._disk.records[partition]
        records[sequence] = msgspec.structs.replace(records[sequence], payload=_flipped(records[sequence].payload))

    # --- the contract ---
    def commit(self, batch: Batch) -> Deferred[None]:
        if self._over is not None:
            return fail(StoreBroken(self._over))
        ticket: Deferred[None] = Deferred()
        self._pending.append((batch, ticket))
        if self.auto:
            self.sync()
        return ticket

    def meta(self) -> dict[str, bytes]:
        return dict(self._disk.meta)

    def partitions(self) -> Deferred[list[PartitionLog]]:
        states = self._disk.states
        return self.answer(lambda: [states[partition].as_partition_log(partition) for partition in sorted(states)])

    def consensus_log(self) -> Deferred[list[ConsensusRecord]]:
        return self.answer(lambda: [self._disk.consensus[index] for index in sorted(self._disk.consensus)])

    def read_log(self, partition: int, first: int, *, bytes_max: int) -> Deferred[list[Entry]]:
        return self.answer(lambda: read_log(self._disk.records.get(partition, {}), partition, first, bytes_max))

    def open_snapshot(self, partition: int) -> Deferred[PartitionSnapshot]:
        if self._over is not None:
            return fail(StoreBroken(self._over))
        return self._limit.acquire().addCallback(self._begin_snapshot, partition)

    def _begin_snapshot(self, _: object, partition: int) -> Deferred[PartitionSnapshot]:
        def begin() -> MemorySnapshot:
            snapshot = MemorySnapshot(self, PartitionCopy(self._disk, partition), partition)
            self._snapshots.append(snapshot)
            return snapshot

        return self.answer(begin)

    def release(self, snapshot: MemorySnapshot) -> None:
        """A snapshot is closed."""
        if snapshot in self._snapshots:
            self._snapshots.remove(snapshot)
            self._limit.release()

    def digest(self, partition: int) -> Deferred[tuple[int, bytes]]:
        return self.answer(lambda: digest(self._disk, partition))

    def sizes(self) -> dict[int, PartitionSize]:
        return {partition: extent.size() for partition, extent in self._disk.extents.items() if not extent.is_empty}

    def partition_bytes(self) -> dict[int, int]:
        return {partition: size.bytes for partition, size in self.sizes().items()}

    def lookup(self, ids: Seq[str]) -> Deferred[dict[str, StoredRow | Tombstone]]:
        def look() -> dict[str, StoredRow | Tombstone]:
            found: dict[str, StoredRow | Tombstone] = {}
            for task_id in ids:
                if task_id in self._disk.tasks:
                    found[task_id] = self._disk.tasks[task_id].stored()
                elif task_id in self._disk.tombstones:
                    found[task_id] = self._disk.tombstones[task_id]
            return found

        return self.answer(look)

    def page(self, query: RowQuery) -> Deferred[RowPage]:
        return self.answer(lambda: page(list(self._disk.tasks.values()), query))

    def counts(
        self, partitions: Collection[int] | None = None, *, from_state: int = 0
    ) -> Deferred[list[tuple[int, str, int, int]]]:
        totals: dict[tuple[int, str, int], int] = {}
        for task in self._disk.tasks.values():
            if task.state >= from_state and is_wanted(task.partition, partitions):
                key = (task.partition, task.queue, task.state)
                totals[key] = totals.get(key, 0) + 1
        return self.answer(lambda: [(*key, rows) for key, rows in sorted(totals.items())])

    def open_rows(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[OpenRow]]:
        behind = after or (-1, "")
        tasks = [
            task
            for task in self._disk.tasks.values()
            if task.state < 3 and (task.state, task.id) > behind and is_wanted(task.partition, partitions)
        ]
        tasks.sort(key=lambda task: (task.state, task.id))
        return self.answer(
            lambda: [
                OpenRow(t.id, t.partition, t.state, t.queue, t.priority, t.run_at_us, t.type) for t in tasks[:limit]
            ]
        )

    def open_makers(
        self, after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[MadeRow]]:
        behind = after or (-1, "")
        tasks = [
            task
            for task in self._disk.tasks.values()
            if task.state < 3 and (task.state, task.id) > behind and is_wanted(task.partition, partitions)
        ]
        tasks.sort(key=lambda task: (task.state, task.id))
        return self.answer(
            lambda: [MadeRow(t.id, t.partition, t.state, t.queue, maker_of(t.spec)) for t in tasks[:limit]]
        )

    def ended_before(self, us: int, limit: int, partitions: Collection[int] | None = None) -> Deferred[list[StoredRow]]:
        tasks = [
            task
            for task in self._disk.tasks.values()
            if 0 < task.ended_us < us and is_wanted(task.partition, partitions)
        ]
        tasks.sort(key=lambda task: task.ended_us)
        return self.answer(lambda: [task.stored() for task in tasks[:limit]])

    def tombstones_before(
        self, us: int, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[Tombstone]]:
        found = [t for t in self._disk.tombstones.values() if t.at_us < us and is_wanted(t.partition, partitions)]
        found.sort(key=lambda t: (t.at_us, t.id))
        return self.answer(lambda: found[:limit])

    def oldest_pending(self, partitions: Collection[int] | None = None) -> Deferred[dict[str, int]]:
        oldest: dict[str, int] = {}
        for task in self._disk.tasks.values():
            if task.state == 1 and is_wanted(task.partition, partitions):
                oldest[task.queue] = min(task.run_at_us, oldest.get(task.queue, task.run_at_us))
        return self.answer(lambda: dict(sorted(oldest.items())))

    def newest_us(self) -> Deferred[int]:
        times = [max(task.created_us, task.ended_us) for task in self._disk.tasks.values()]
        return self.answer(lambda: max(times, default=0))

    def backup(self, directory: str, name: str, kept: int) -> Deferred[Seq[str]]:
        return self.answer(lambda: [f"{directory}/{name}"])

    def disk_free_bytes(self, directory: str | None = None) -> int:
        return self.free_bytes

    def bytes_on_disk(self) -> int:
        return sum(len(task.spec) + len(task.body) for task in self._disk.tasks.values()) + sum(
            len(entry.payload) for records in self._disk.records.values() for entry in records.values()
        )

    def close(self) -> Deferred[None]:
        self.sync()
        if self._over is None:
            self._over = "the store is closed"
        self._limit.fail_waiting(StoreBroken(self._over))
        return succeed(None)

    # --- failing ---
    def _write(self, batches: Iterable[Batch]) -> None:
        if self._failure is not None:
            raise self._failure
        for batch in batches:
            self._disk.apply(batch)

    def answer(self, read: Callable[[], Any]) -> Deferred[Any]:
        """What ``read`` returns, at once; damage that it meets breaks the store."""
        if self._over is not None:
            return fail(StoreBroken(self._over))
        try:
            return succeed(read())
        except StoreBroken as why:
            answer: Deferred[Any] = Deferred()
            self._break(why, [answer])
            return answer

    def _break(self, why: Exception, tickets: list[Deferred[Any]]) -> None:
        self._over = f"the store is broken: {why}"
        waiting, self._pending = self._pending, []
        self._limit.fail_waiting(StoreBroken(self._over))
        try:
            if self._on_broken is not None:
                self._on_broken(why)
        finally:
            known = isinstance(why, StoreBroken | Divergence)
            for ticket in tickets:
                ticket.errback(why if known else StoreBroken(self._over))
            for _, ticket in waiting:
                ticket.errback(StoreBroken(self._over))


def _flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:] if content else b"\1"
