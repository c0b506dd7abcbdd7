"""Both implementations of the Store behind one face, builders for batches, and a process to kill while it commits."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred

from tests.support.model_store.store import MemoryStore
from tq_node.partition.entries import Effect, Entry, EpochStart, checksum, encode_effects
from tq_node.store.api import Batch, Install, RowWrite, StagedChunk, Store, Tombstone
from tq_node.store.sqlite.group_commit import GroupWriter
from tq_node.store.sqlite.log_index import LogIndex
from tq_node.store.sqlite.open_database import DATABASE_NAME, load_log, load_states, next_task_number
from tq_node.store.sqlite.store import SqliteStore, open_store
from tq_node.types import State


def make_entry(partition: int, sequence: int, epoch: int, effects: list[Effect]) -> Entry:
    payload = encode_effects(effects)
    return Entry(partition, sequence, epoch, checksum(partition, sequence, epoch, payload), payload)


class StoreKind(Protocol):
    """One implementation under test. ``broken`` collects what ``on_broken`` was told."""

    name: str
    broken: list[Exception]

    def open(self) -> Store: ...

    async def reopen(self) -> Store:
        """Close in order, and open what is there then."""

    async def damage(self, content: bytes) -> Store:
        """As ``reopen``, with one bit flipped where ``content`` is stored."""

    async def crash(self) -> Store:
        """What is found after a crash at this moment, the store left as it is and no longer looked at."""

    async def close(self) -> None: ...


class MemoryKind:
    name = "memory"

    def __init__(self) -> None:
        self.broken: list[Exception] = []
        self.store: MemoryStore | None = None

    def open(self) -> MemoryStore:
        self.store = MemoryStore(auto=True, on_broken=self.broken.append)
        return self.store

    async def reopen(self) -> MemoryStore:
        assert self.store is not None
        await self.store.close()
        self.store = self.store.crash()
        return self.store

    async def crash(self) -> MemoryStore:
        assert self.store is not None
        self.store = self.store.crash()
        return self.store

    async def damage(self, content: bytes) -> MemoryStore:
        store = await self.reopen()
        for task in store._disk.tasks.values():
            if content in task.body:
                store.damage_row(task.id)
            if content in task.spec:
                task.spec = bytes([task.spec[0] ^ 1]) + task.spec[1:]
        for partition, records in store._disk.records.items():
            for sequence, entry in list(records.items()):
                if content in entry.payload:
                    store.damage_record(partition, sequence)
        return store

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()


class SqliteKind:
    name = "sqlite"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.broken: list[Exception] = []
        self.commits: list[tuple[int, int, int, float]] = []
        self.store: SqliteStore | None = None

    @property
    def database(self) -> Path:
        return self.directory / DATABASE_NAME

    def open(self) -> SqliteStore:
        from twisted.internet import reactor

        self.store = open_store(
            self.directory,
            reactor=reactor,  # type: ignore[arg-type]
            on_broken=self.broken.append,
            on_commit=lambda *figures: self.commits.append(figures),
        )
        return self.store

    async def reopen(self) -> SqliteStore:
        await self.close()
        return self.open()

    async def crash(self) -> SqliteStore:
        """The files as the kernel has them, which is what a kill -9 leaves."""
        before, self.directory = self.directory, self.directory.with_name(self.directory.name + "-after")
        self.directory.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{before / DATABASE_NAME}{suffix}", f"{self.database}{suffix}")
        await self.close()
        return self.open()

    async def damage(self, content: bytes) -> SqliteStore:
        await self.close()
        flip_bit(self.database, content)
        return self.open()

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()


def group_writer(connection: sqlite3.Connection) -> GroupWriter:
    """What the writer thread of a store on this connection would use; for tests without threads."""
    (states, slots), index = load_states(connection), LogIndex()
    log = load_log(connection, states, slots, index)
    return GroupWriter(connection, states, slots, index, log, next_task_number(connection))


def flip_bit(file: Path, content: bytes) -> None:
    """Change one bit in the middle of the only place where ``content`` is."""
    data = bytearray(file.read_bytes())
    assert data.count(content) == 1
    data[data.index(content) + len(content) // 2] ^= 4
    file.write_bytes(data)


def record(partition: int, sequence: int, epoch: int = 1, payload: bytes | None = None) -> Entry:
    if payload is None:
        return make_entry(partition, sequence, epoch, [EpochStart(epoch)])
    return Entry(partition, sequence, epoch, checksum(partition, sequence, epoch, payload), payload)


def birth(task_id: str, *, state: int = State.PENDING, rev: int = 1, spec: bytes = b"spec", **fields: Any) -> RowWrite:
    """A new row; what is not said is the same for all."""
    known: dict[str, Any] = {
        "partition": 0, "run_at_us": 100, "ended_us": 0, "body": b"body", "type": "email", "queue": "default",
        "priority": 5, "created_us": 50,
    }  # fmt: skip
    return RowWrite(id=task_id, expected_rev=0, rev=rev, state=state, spec=spec, **{**known, **fields})


def change(task_id: str, rev: int, state: int = State.PROCESSING, **fields: Any) -> RowWrite:
    """The change from ``rev`` - 1 to ``rev``."""
    known: dict[str, Any] = {"partition": 0, "run_at_us": 100, "ended_us": 0, "body": b"changed"}
    return RowWrite(id=task_id, expected_rev=rev - 1, rev=rev, state=state, **{**known, **fields})


def immediate(answer: Deferred[Any]) -> Any:
    """What a Deferred of the store's model has fired with."""
    results: list[Any] = []
    answer.addCallback(results.append)
    return results[0]


class Sent(NamedTuple):
    """A snapshot as its sender gives it away."""

    chunks: list[bytes]
    digest: bytes

    def stage(self, partition: int) -> list[StagedChunk]:
        return [StagedChunk(partition, number, chunk) for number, chunk in enumerate(self.chunks)]


def snapshot_of(
    partition: int, rows: list[RowWrite], tombstones: list[Tombstone] | None = None, *, bytes_max: int = 1_000
) -> Sent:
    """What another node, which has these and nothing else of the partition, would send."""
    store = MemoryStore(auto=True)
    store.commit(Batch(rows=rows, tombstones=tombstones or []))
    snapshot = immediate(store.open_snapshot(partition))
    chunks = []
    while (chunk := immediate(snapshot.read(bytes_max))) is not None:
        chunks.append(chunk)
    return Sent(chunks, snapshot.digest())


ROWS_PER_NUMBERED = 5
PARTITIONS_NUMBERED = 3


def numbered(n: int) -> Batch:
    """Batch ``n`` (from 1) of a series that tells on reopening how far it came and whether each batch is whole."""
    partition, sequence = n % PARTITIONS_NUMBERED, (n - 1) // PARTITIONS_NUMBERED + 1
    rows = [birth(f"b{n:06}-{i}", partition=partition, body=b"x" * 200) for i in range(ROWS_PER_NUMBERED)]
    if n > 1:
        before = (n - 1) % PARTITIONS_NUMBERED
        rows += [
            change(f"b{n - 1:06}-{i}", 2, State.COMPLETED, ended_us=n, partition=before)
            for i in range(ROWS_PER_NUMBERED)
        ]
    trim = {partition: sequence - 40} if sequence > 40 else {}
    return Batch(
        entries=[make_entry(partition, sequence, 1, [EpochStart(n)])],
        rows=rows,
        applied={partition: sequence},
        trim=trim,
        meta={"n": str(n).encode()},
    )


RESHAPING_CYCLE = 8


def reshaping(n: int) -> Batch:
    """Batch ``n`` (from 1) of a series that drops, stages, installs, cuts and appends. A cycle can follow anything."""
    cycle, step = divmod(n - 1, RESHAPING_CYCLE)
    partition = cycle % PARTITIONS_NUMBERED
    rows = [birth(f"c{cycle:05}-{i:02}", partition=partition, body=b"y" * (100 + i)) for i in range(20)]
    sent = snapshot_of(partition, rows, [Tombstone(f"g{cycle:05}", partition, b"h", cycle)], bytes_max=1_500)
    half = len(sent.chunks) // 2
    staged = sent.stage(partition)
    epoch = cycle + 1
    batch = [
        Batch(drops=[partition]),
        Batch(
            promises={partition: epoch},
            epochs=[(partition, epoch, 1)],
            entries=[record(partition, s, epoch) for s in range(1, 6)],
            rows=[birth(f"d{cycle:05}", partition=partition)],
            applied={partition: 1},
        ),
        Batch(stage=staged[:half]),
        Batch(stage=staged[half:]),
        Batch(
            installs=[Install(partition, 40, [(epoch, 30)], cycle, len(staged), sent.digest)],
            entries=[record(partition, s, epoch) for s in range(41, 51)],
        ),
        Batch(
            cuts={partition: 44},
            epochs=[(partition, epoch + 1, 45)],
            entries=[record(partition, s, epoch + 1) for s in (45, 46)],
        ),
        Batch(cuts={partition: 45}, entries=[record(partition, 46, epoch + 1, b"another")], stage=staged[:1]),
        Batch(rows=[change(f"c{cycle:05}-03", 2, partition=partition)], applied={partition: 46}, trim={partition: 44}),
    ][step]
    batch.meta = {"n": str(n).encode()}
    return batch


def first_of_reshaping(last: int) -> int:
    """Where the series goes on after a crash behind batch ``last``: what was staged is gone, so a cycle begins."""
    return -(-last // RESHAPING_CYCLE) * RESHAPING_CYCLE + 1


SERIES: dict[str, tuple[Callable[[int], Batch], Callable[[int], int]]] = {
    "numbered": (numbered, lambda last: last + 1),
    "reshaping": (reshaping, first_of_reshaping),
}


def _commit_until_killed(directory: str, count: int, in_flight: int, series: str) -> None:
    """Say "ready", wait for a line, then commit the series' batches from where the store is and say each that is durable."""
    from twisted.internet import reactor

    from tq_node import limits

    limits.WAL_CHECKPOINT_BYTES = 128 * limits.KIB  # so that checkpoints are among the moments it is killed at
    print("ready", flush=True)
    sys.stdin.readline()
    store = open_store(directory, reactor=reactor, on_broken=lambda why: sys.exit(74))  # type: ignore[arg-type]
    make, first_after = SERIES[series]
    n = first = first_after(int(store.meta().get("n", b"0")))
    waiting: deque[Deferred[None]] = deque()

    def said(_: object, number: int) -> None:
        print(number, flush=True)
        send()
        if number == first + count - 1:
            store.close().addCallback(lambda _: reactor.stop())

    def send() -> None:
        nonlocal n
        if n < first + count:
            waiting.append(store.commit(make(n)).addCallback(said, n))
            n += 1

    for _ in range(in_flight):
        reactor.callWhenRunning(send)
    reactor.run()


if __name__ == "__main__":
    _commit_until_killed(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
