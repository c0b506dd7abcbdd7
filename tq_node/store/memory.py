"""A model of the Store in memory, for simulations: no thread, no clock, no randomness.

What is committed stays pending until ``sync``; ``crash`` gives the store that a restart would find. Reads answer at once,
from what is durable.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed

from tq_node.errors import Divergence, StoreBroken
from tq_node.partition.entries import Entry, is_intact
from tq_node.store.api import (
    Batch,
    ConsensusRecord,
    OpenRow,
    PartitionLog,
    RowPage,
    RowQuery,
    RowWrite,
    StoredRow,
    Tombstone,
)
from tq_node.store.checksums import row_crc, spec_crc
from tq_node.store.log_state import LogState, fold

_ascii_lower = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_SORT_KEYS: dict[str, Callable[[_Task], int]] = {
    "id": lambda task: 0,
    "created_at": lambda task: task.created_us,
    "run_at": lambda task: task.run_at_us,
    "priority": lambda task: task.priority,
}


class _Task(msgspec.Struct, gc=False):
    id: str
    partition: int
    rev: int
    state: int
    run_at_us: int
    ended_us: int
    type: str
    queue: str
    priority: int
    created_us: int
    spec: bytes
    body: bytes
    crc: int = 0
    spec_crc: int = 0

    def sum_of_change(self) -> int:
        return row_crc(self.id, self.partition, self.rev, self.state, self.run_at_us, self.ended_us, self.body)

    def sum_of_birth(self) -> int:
        return spec_crc(self.id, self.type, self.queue, self.priority, self.created_us, self.spec)

    def stored(self) -> StoredRow:
        if self.crc != self.sum_of_change() or self.spec_crc != self.sum_of_birth():
            raise StoreBroken(f"the stored row of task {self.id} is damaged")
        return StoredRow(
            self.id, self.partition, self.rev, self.state, self.run_at_us, self.ended_us, self.spec, self.body
        )


class _Disk:
    """What is durable."""

    def __init__(self) -> None:
        self.meta: dict[str, bytes] = {}
        self.consensus: dict[int, ConsensusRecord] = {}
        self.states: dict[int, LogState] = {}
        self.records: dict[int, dict[int, Entry]] = {}
        self.emptied_to: dict[int, int] = {}
        self.tasks: dict[str, _Task] = {}
        self.tombstones: dict[str, Tombstone] = {}

    def apply(self, batch: Batch) -> None:
        """:raises Divergence: the batch does not follow; some of it may be applied, so the store must end."""
        changed = fold(self.states, batch)
        for entry in batch.entries:
            self.records.setdefault(entry.partition, {})[entry.sequence] = entry
        for row in batch.rows:
            self._put(row)
        for delete in batch.deletes:
            task = self.tasks.pop(delete.id, None)
            if task is None or task.rev != delete.expected_rev:
                raise Divergence(f"task {delete.id}: to be deleted at revision {delete.expected_rev}")
        for tombstone in batch.tombstones:
            self.tombstones[tombstone.id] = tombstone
        for task_id in batch.forgets:
            self.tombstones.pop(task_id, None)
        for partition in changed:
            records = self.records.get(partition, {})
            trimmed = self.states[partition].trimmed
            for sequence in range(self.emptied_to.get(partition, 0) + 1, trimmed + 1):
                records.pop(sequence, None)
            self.emptied_to[partition] = trimmed
        for write in batch.consensus:
            first = 0 if write.replace_all else write.records[0].log_index if write.records else None
            kept = self.consensus.items() if first is None else ((i, r) for i, r in self.consensus.items() if i < first)
            self.consensus = dict(kept) | {record.log_index: record for record in write.records}
            self.consensus = {i: r for i, r in self.consensus.items() if i >= write.cut_below}
        for key, value in batch.meta.items():
            if value is None:
                self.meta.pop(key, None)
            else:
                self.meta[key] = value

    def _put(self, row: RowWrite) -> None:
        task = self.tasks.get(row.id)
        if (task.rev if task else 0) != row.expected_rev:
            raise Divergence(f"task {row.id}: revision {row.rev} does not follow {task.rev if task else 0}")
        if task is None:
            if row.spec is None:
                raise Divergence(f"task {row.id}: a new row without its spec")
            task = self.tasks[row.id] = _Task(
                row.id, row.partition, row.rev, row.state, row.run_at_us, row.ended_us,
                row.type, row.queue, row.priority, row.created_us, row.spec, row.body,
            )  # fmt: skip
            task.spec_crc = task.sum_of_birth()
        task.rev, task.state, task.body = row.rev, row.state, row.body
        task.run_at_us, task.ended_us = row.run_at_us, row.ended_us
        task.crc = row_crc(row.id, row.partition, row.rev, row.state, row.run_at_us, row.ended_us, row.body)


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
        self._disk = _Disk()
        self._pending: list[tuple[Batch, Deferred[None]]] = []
        self._failure: Exception | None = None
        self._over: str | None = None

    # --- what a simulation does ---
    @property
    def pending(self) -> int:
        """Batches committed and not yet durable."""
        return len(self._pending)

    def sync(self, count: int | None = None) -> int:
        """Make the oldest ``count`` pending batches durable (all of them without it), fire their Deferreds; return how many."""
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
        """The store as found after a crash: what is durable and the first ``keep`` pending batches (None: all of them).

        This object is dead afterwards: what waits on it never hears anything.
        """
        after = type(self)(auto=self.auto, on_broken=self._on_broken, free_bytes=self.free_bytes)
        after._disk, self._disk = self._disk, _Disk()
        for batch, _ in self._pending[:keep]:
            after._disk.apply(batch)
        self._pending = []
        self._over = "the store has crashed"
        return after

    def fail_next_sync(self, why: Exception) -> None:
        """The next ``sync`` fails and loses what it was to write (R18)."""
        self._failure = why

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
        return self._answer(lambda: [states[partition].as_partition_log(partition) for partition in sorted(states)])

    def consensus_log(self) -> Deferred[list[ConsensusRecord]]:
        return self._answer(lambda: [self._disk.consensus[index] for index in sorted(self._disk.consensus)])

    def read_log(self, partition: int, first: int, *, bytes_max: int) -> Deferred[list[Entry]]:
        def read() -> list[Entry]:
            records = self._disk.records.get(partition, {})
            found: list[Entry] = []
            total = 0
            sequence = first
            while (entry := records.get(sequence)) is not None:
                total += len(entry.payload)
                if found and total > bytes_max:
                    break
                if not is_intact(entry):
                    raise StoreBroken(f"log record {sequence} of partition {partition} is damaged")
                found.append(entry)
                sequence += 1
            return found

        return self._answer(read)

    def lookup(self, ids: Seq[str]) -> Deferred[dict[str, StoredRow | Tombstone]]:
        def look() -> dict[str, StoredRow | Tombstone]:
            found: dict[str, StoredRow | Tombstone] = {}
            for task_id in ids:
                if task_id in self._disk.tasks:
                    found[task_id] = self._disk.tasks[task_id].stored()
                elif task_id in self._disk.tombstones:
                    found[task_id] = self._disk.tombstones[task_id]
            return found

        return self._answer(look)

    def page(self, query: RowQuery) -> Deferred[RowPage]:
        return self._answer(lambda: _page(list(self._disk.tasks.values()), query))

    def counts(self) -> Deferred[list[tuple[int, str, int, int]]]:
        totals: dict[tuple[int, str, int], int] = {}
        for task in self._disk.tasks.values():
            key = (task.partition, task.queue, task.state)
            totals[key] = totals.get(key, 0) + 1
        return self._answer(lambda: [(*key, rows) for key, rows in sorted(totals.items())])

    def open_rows(self, after: tuple[int, str] | None, limit: int) -> Deferred[list[OpenRow]]:
        behind = after or (-1, "")
        tasks = sorted(
            (task for task in self._disk.tasks.values() if task.state < 3 and (task.state, task.id) > behind),
            key=lambda task: (task.state, task.id),
        )
        return self._answer(
            lambda: [OpenRow(t.id, t.partition, t.state, t.queue, t.priority, t.run_at_us) for t in tasks[:limit]]
        )

    def ended_before(self, us: int, limit: int) -> Deferred[list[StoredRow]]:
        tasks = [task for task in self._disk.tasks.values() if 0 < task.ended_us < us]
        tasks.sort(key=lambda task: task.ended_us)
        return self._answer(lambda: [task.stored() for task in tasks[:limit]])

    def tombstones_before(self, us: int, limit: int) -> Deferred[list[Tombstone]]:
        found = sorted((t for t in self._disk.tombstones.values() if t.at_us < us), key=lambda t: (t.at_us, t.id))
        return self._answer(lambda: found[:limit])

    def oldest_pending(self) -> Deferred[dict[str, int]]:
        oldest: dict[str, int] = {}
        for task in self._disk.tasks.values():
            if task.state == 1:
                oldest[task.queue] = min(task.run_at_us, oldest.get(task.queue, task.run_at_us))
        return self._answer(lambda: dict(sorted(oldest.items())))

    def newest_us(self) -> Deferred[int]:
        times = [max(task.created_us, task.ended_us) for task in self._disk.tasks.values()]
        return self._answer(lambda: max(times, default=0))

    def backup(self, path: str) -> Deferred[None]:
        return self._answer(lambda: None)

    def disk_free_bytes(self) -> int:
        return self.free_bytes

    def bytes_on_disk(self) -> int:
        return sum(len(task.spec) + len(task.body) for task in self._disk.tasks.values()) + sum(
            len(entry.payload) for records in self._disk.records.values() for entry in records.values()
        )

    def close(self) -> Deferred[None]:
        self.sync()
        if self._over is None:
            self._over = "the store is closed"
        return succeed(None)

    # --- failing ---
    def _write(self, batches: Iterable[Batch]) -> None:
        if self._failure is not None:
            raise self._failure
        for batch in batches:
            self._disk.apply(batch)

    def _answer(self, read: Callable[[], Any]) -> Deferred[Any]:
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


def _page(tasks: list[_Task], query: RowQuery) -> RowPage:
    """The contract read out loud: sort everything, look at so many. By id, rows of other states are not looked at."""
    sort_key = _SORT_KEYS[query.sort]

    def place(task: _Task) -> tuple[int, str]:
        return sort_key(task), task.id

    if query.sort == "id" and query.states is not None:
        tasks = [task for task in tasks if (task.state in query.states) is not query.states_not]
    tasks.sort(key=place, reverse=query.descending)
    if query.after is not None:
        after = (0, query.after[1]) if query.sort == "id" else query.after
        if query.descending:
            tasks = [task for task in tasks if place(task) < after]
        else:
            tasks = tasks[bisect.bisect_right(tasks, after, key=place) :]
    text = query.text.translate(_ascii_lower) if query.text is not None else None
    rows: list[StoredRow] = []
    total = 0
    for looked, task in enumerate(tasks, 1):
        if _matches(task, query, text):
            rows.append(task.stored())
            total += len(task.spec) + len(task.body)
        if len(rows) == query.limit or total > query.bytes_max or looked == query.scan_rows_max:
            return RowPage(rows, place(task) if looked < len(tasks) else None)
    return RowPage(rows, None)


def _matches(task: _Task, query: RowQuery, text: str | None) -> bool:
    return (
        (query.states is None or (task.state in query.states) is not query.states_not)
        and (query.types is None or (task.type in query.types) is not query.types_not)
        and (query.queues is None or (task.queue in query.queues) is not query.queues_not)
        and (query.partitions is None or task.partition in query.partitions)
        and (text is None or text in task.id.translate(_ascii_lower) or text in task.type.translate(_ascii_lower))
    )
