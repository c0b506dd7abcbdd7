"""Whole partitions on disk: what it costs to replace one, how the old rows leave, upgrades, damage, races with readers."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.support.model_store.store import MemoryStore
from tests.support.stores import SqliteKind, birth, change, group_writer, immediate, record, snapshot_of
from tq_node import limits
from tq_node.errors import StoreBroken
from tq_node.store.api import Batch, Install, RowDelete, RowQuery, RowWrite, SnapshotLost, StoredRow, Tombstone
from tq_node.store.checksums import epoch_crc, row_crc, spec_crc, tombstone_crc
from tq_node.store.sqlite import vacuum
from tq_node.store.sqlite.log_index import LogIndex
from tq_node.store.sqlite.open_database import DATABASE_NAME, connect, connect_writer, load_log, load_states
from tq_node.store.sqlite.queries import read_log
from tq_node.store.sqlite.upgrade import load_steps, upgrade

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


@async_fixture()
async def kind(tmp_path: Path) -> AsyncIterator[SqliteKind]:
    made = SqliteKind(tmp_path / "data")
    yield made
    await made.close()


async def failure_of(answer: Deferred[Any]) -> Exception:
    try:
        await answer
    except Exception as why:
        return why
    pytest.fail("it succeeded")


def ask(kind: SqliteKind, sql: str) -> list[Any]:
    connection = sqlite3.connect(kind.database)
    found = connection.execute(sql).fetchall()
    connection.close()
    return found


async def until_swept(kind: SqliteKind) -> None:
    from twisted.internet import reactor

    for _ in range(1_000):
        if not ask(kind, "SELECT * FROM hidden"):
            return
        await deferLater(reactor, 0.01)
    pytest.fail("rows that do not count are still there")


async def changes(kind: SqliteKind) -> int:
    """Rows that the write connection has changed, added or deleted so far."""
    store = kind.store
    assert store is not None
    count: int = await store._ask(store._writer.put, lambda: store._connection.total_changes)
    return count


def many(partition: int, count: int, **fields: Any) -> list[RowWrite]:
    return [birth(f"t{partition}-{n:05}", partition=partition, **fields) for n in range(count)]


# --- cost and sweeping ---
@deferred
async def test_an_install_or_a_drop_changes_a_handful_of_rows(
    kind: SqliteKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "SWEEP_ROWS_PER_COMMIT", 1)
    store = kind.open()
    await store.commit(Batch(rows=many(1, 2_000), entries=[record(1, 1), record(1, 2)], applied={1: 1}))
    sent = snapshot_of(1, many(1, 3_000, body=b"new"), bytes_max=40_000)
    await store.commit(Batch(stage=sent.stage(1)))
    before = await changes(kind)
    await store.commit(Batch(installs=[Install(1, 900, [(1, 1)], 0, len(sent.chunks), sent.digest)]))
    assert await store.digest(1) == (900, sent.digest)
    await store.commit(Batch(drops=[1]))
    assert (await store.page(RowQuery(limit=10))).rows == []
    assert await changes(kind) - before < 60


@pytest.mark.parametrize("way", ["idle", "busy", "reopened"])
@deferred
async def test_rows_that_no_longer_count_leave_the_tables(
    kind: SqliteKind, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """An id that is in two slots at once among them; what counts stays."""
    monkeypatch.setattr(vacuum, "SWEEP_ROWS_PER_COMMIT", 16)
    monkeypatch.setattr(vacuum, "SWEEP_LOOKS_PER_COMMIT", 40)
    store = kind.open()
    tombstones = [Tombstone(f"g{n:03}", 1, b"h", n) for n in range(100)]
    await store.commit(Batch(rows=many(1, 150, spec=bytes(3_000)), tombstones=tombstones, applied={1: 1}))
    await store.commit(Batch(rows=many(2, 200, spec=bytes(3_000)), applied={2: 1}))
    sent = snapshot_of(1, many(1, 100, spec=bytes(2_500)), tombstones[:40])
    await store.commit(Batch(stage=sent.stage(1)))
    await store.commit(Batch(installs=[Install(1, 9, [], 0, len(sent.chunks))], drops=[3]))
    await store.commit(Batch(stage=snapshot_of(4, many(4, 30)).stage(4)))
    await store.commit(Batch(unstage=[4]))
    if way == "busy":
        for n in range(200):
            await store.commit(Batch(rows=[birth(f"u{n}", partition=5)], applied={5: n}))
    if way == "reopened":
        store = await kind.crash()
    await until_swept(kind)
    added = 200 if way == "busy" else 0
    assert ask(kind, "SELECT count(*) FROM tasks") == [(300 + added,)]
    assert ask(kind, "SELECT count(*) FROM specs") == [(300,)]
    assert ask(kind, "SELECT count(*) FROM tombstones") == [(40,)]
    assert await store.digest(1) == (9, sent.digest)
    assert ask(kind, "PRAGMA integrity_check") == [("ok",)]
    assert store.sizes()[1].rows == 100


@deferred
async def test_positions_below_a_drop_are_not_given_out_again(
    kind: SqliteKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else records appended after a restart would be taken for those that were dropped."""
    monkeypatch.setattr(vacuum, "TRIM_ROWS_LEAST", 1)
    store = kind.open()
    await store.commit(Batch(entries=[record(1, s) for s in range(1, 301)], applied={1: 1}))
    await store.commit(Batch(drops=[1]))
    await store.commit(Batch(meta={"a": b"1"}))
    await store.commit(Batch(meta={"a": b"2"}))
    assert ask(kind, "SELECT count(*) FROM log") == [(0,)]
    store = await kind.reopen()
    await store.commit(Batch(entries=[record(1, 1), record(1, 2)]))
    store = await kind.reopen()
    assert len(await store.read_log(1, 1, bytes_max=1000)) == 2


@deferred
async def test_dropped_records_shut_in_behind_live_ones_leave_the_table(
    kind: SqliteKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "DEAD_ROWS_MAX", 100)
    store = kind.open()
    await store.commit(Batch(entries=[record(9, 1)]))
    await store.commit(Batch(entries=[record(1, s) for s in range(1, 501)]))
    await store.commit(Batch(drops=[1], entries=[record(1, 1, 7)]))
    for n in range(10):
        await store.commit(Batch(meta={"n": b"%d" % n}))
    assert ask(kind, "SELECT count(*) FROM log")[0][0] <= 102
    assert await store.read_log(1, 1, bytes_max=1000) == [record(1, 1, 7)]


# --- readers beside the writer ---
@deferred
async def test_a_snapshot_that_is_held_too_long_is_given_up_for_the_writers_sake(
    kind: SqliteKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAL_CHECKPOINT_BYTES", 64 * limits.KIB)
    monkeypatch.setattr(limits, "WAL_BYTES_MAX", 512 * limits.KIB)
    monkeypatch.setattr("tq_node.store.sqlite.open_database.BUSY_S", 300.0)
    store = kind.open()
    await store.commit(Batch(rows=many(1, 300), applied={1: 1}))
    snapshot = await store.open_snapshot(1)
    assert await snapshot.read(500) is not None
    for n in range(1, 40):
        await store.commit(Batch(entries=[record(2, n, payload=bytes(50_000))]))
    assert isinstance(await failure_of(snapshot.read()), SnapshotLost)
    snapshot.close()
    assert max(seconds for *_, seconds in kind.commits) < 60, "nobody waited for SQLite's own patience"
    assert store._wal_size.bytes_used() < 2 * limits.MIB
    other = await store.open_snapshot(1)
    assert await other.read() is not None
    other.close()
    assert kind.broken == []


class Interrupted(LogIndex):
    """Something happens between a reader's look at the index and its look at the table."""

    between: Callable[[], object] | None = None

    def find(self, partition: int, first: int, bytes_max: int) -> list[int]:
        found = super().find(partition, first, bytes_max)
        between, self.between = self.between, None
        if between is not None:
            between()
        return found


@pytest.mark.parametrize(
    ("batch", "first", "expected"),
    [
        (Batch(cuts={1: 3}), 2, [2, 3]),
        (Batch(cuts={1: 3}), 4, []),
        (Batch(cuts={1: 2}, entries=[record(1, 3, 9)]), 2, [2, 3]),
        (Batch(drops=[1]), 2, []),
        (Batch(installs=[Install(1, 10, [], 0, 0)], entries=[record(1, 11)]), 2, []),
        (Batch(applied={1: 4}, trim={1: 4}), 2, []),
    ],
)
def test_records_that_go_while_they_are_read_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Batch, first: int, expected: list[int]
) -> None:
    monkeypatch.setattr("tests.support.stores.LogIndex", Interrupted)
    monkeypatch.setattr(vacuum, "TRIM_ROWS_LEAST", 1)
    connection = connect_writer(tmp_path / "x")
    group = group_writer(connection)
    index = group._index
    assert isinstance(index, Interrupted)
    group.write([Batch(entries=[record(1, s) for s in range(1, 7)])])
    reading = connect(tmp_path / "x", cache_kib=100, read_only=True)
    index.between = lambda: (group.write([batch]), group.write([Batch(meta={"a": b""})]))
    assert [entry.sequence for entry in read_log(reading, index, 1, first, 1_000)] == expected
    connection.execute("DELETE FROM log")
    if expected:
        with pytest.raises(StoreBroken, match="is missing"):
            read_log(reading, index, 1, first, 1_000)
    reading.close()
    connection.close()


def test_a_reader_waits_for_the_index_where_records_were_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the commit that removes them and the change of the index."""
    connection = connect_writer(tmp_path / "x")
    group = group_writer(connection)
    group.write([Batch(entries=[record(1, s) for s in range(1, 7)])])
    reading = connect(tmp_path / "x", cache_kib=100, read_only=True)
    answers: list[object] = []

    def read() -> None:
        try:
            answers.append([entry.sequence for entry in read_log(reading, group._index, 1, 2, 1_000)])
        except StoreBroken as why:
            answers.append(why)

    reader = threading.Thread(target=read)
    committed = group._installer.committed

    def read_before() -> None:
        reader.start()
        reader.join(0.2)
        assert answers == [], "it waits"
        committed()

    monkeypatch.setattr(group._installer, "committed", read_before)
    group.write([Batch(cuts={1: 3})])
    reader.join(10)
    assert answers == [[2, 3]]
    reading.close()
    connection.close()


def test_the_index_forgets_a_record_before_the_table_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacuum, "DEAD_ROWS_MAX", 10)
    connection = connect_writer(tmp_path / "x")
    group = group_writer(connection)
    group.write([Batch(entries=[record(9, 1), *(record(1, s) for s in range(1, 21))])])
    group.write([Batch(applied={1: 20}, trim={1: 15})])
    group.write([Batch(meta={"a": b"the front is looked at first"})])
    reading = connect(tmp_path / "x", cache_kib=100, read_only=True)
    trim = group._trim

    def read_before(changed: set[int]) -> None:
        assert connection.execute("SELECT min(sequence) FROM log WHERE partition = 1").fetchone() == (19,)
        assert read_log(reading, group._index, 1, 16, 1_000) == []
        trim(changed)

    monkeypatch.setattr(group, "_trim", read_before)
    group.write([Batch(trim={1: 18})])
    reading.close()
    connection.close()


# --- damage ---
@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"UPDATE partitions SET {column} = {column} + 1"
            for column in ("generation", "log_from", "task_rows", "tombstone_rows", "content_bytes", "trimmed")
        ),
        "UPDATE hidden SET slot = slot + 1",
    ],
)
@deferred
async def test_damage_to_where_rows_are_refuses_the_start(kind: SqliteKind, statement: str) -> None:
    store = kind.open()
    await store.commit(Batch(rows=many(1, 5), applied={1: 1}))
    await store.commit(Batch(stage=snapshot_of(1, many(1, 5)).stage(1)))
    await kind.close()
    connection = sqlite3.connect(kind.database, isolation_level=None)
    connection.execute(statement)
    connection.close()
    with pytest.raises(StoreBroken, match="damaged"):
        kind.open()


# --- schema 2 ---
ROWS_BEFORE = [
    *many(1, 20, body=b"one", spec=bytes(50)),
    *many(2, 5, state=3, ended_us=7, spec=bytes(5_000)),
]
GRAVES_BEFORE = [Tombstone(f"g{n}", 1, b"hash", n) for n in range(4)]


def write_schema_2(database: Path) -> None:
    """A store as the release before the slots left it."""
    from zlib import crc32

    from tq_node.store.checksums import _partition_2

    database.parent.mkdir()
    connection = sqlite3.connect(database, isolation_level=None)
    upgrade(connection, load_steps()[:2])
    execute = connection.execute
    for num, row in enumerate(ROWS_BEFORE, 1):
        assert row.spec is not None
        crc = row_crc(row.id, row.partition, row.rev, row.state, row.run_at_us, row.ended_us, row.body)
        fixed = spec_crc(row.id, row.type, row.queue, row.priority, row.created_us, row.spec)
        is_long = len(row.spec) > limits.INLINE_SPEC_BYTES_MAX
        values = (
            num, row.id, row.partition, row.rev, row.state, row.run_at_us, row.ended_us, crc, row.type, row.queue,
            row.priority, row.created_us, fixed, None if is_long else row.spec, row.body,
        )  # fmt: skip
        execute(f"INSERT INTO tasks VALUES ({','.join('?' * len(values))})", values)
        if is_long:
            execute("INSERT INTO specs VALUES (?, ?)", (num, row.spec))
    for t in GRAVES_BEFORE:
        crc = tombstone_crc(t.id, t.partition, t.content_hash, t.at_us)
        execute("INSERT INTO tombstones VALUES (?, ?, ?, ?, ?)", (t.id, t.partition, t.content_hash, t.at_us, crc))
    for state in ((1, 6, 9, 44, 8), (2, 0, 3, 0, 3), (5, 1, 0, 0, 0)):
        execute("INSERT INTO partitions VALUES (?, ?, ?, ?, ?, ?)", (*state, crc32(_partition_2(*state))))
    execute("INSERT INTO epochs VALUES (1, 2, 5, ?)", (epoch_crc(1, 2, 5),))
    for position, entry in enumerate((record(1, 9, 2), record(1, 10, 2), record(5, 1)), 1):
        placed = (position, entry.partition, entry.sequence, entry.epoch, entry.crc, entry.payload)
        execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", placed)
    connection.close()


@deferred
async def test_a_store_of_schema_2_is_brought_up(kind: SqliteKind) -> None:
    write_schema_2(kind.database)
    model = MemoryStore(auto=True)
    model.commit(Batch(rows=ROWS_BEFORE, tombstones=GRAVES_BEFORE, applied={1: 9, 2: 3}))
    store = kind.open()
    for _ in range(2):
        assert ask(kind, "PRAGMA user_version") == [(load_steps()[-1].version,)]
        logs = {log.partition: log for log in await store.partitions()}
        assert (logs[1].promised, logs[1].applied, logs[1].horizon_us, logs[1].last_sequence) == (6, 9, 44, 10)
        assert logs[1].epochs == [(2, 5)]
        assert (logs[1].log_start, logs[2].log_start, logs[5].last_sequence) == (9, 4, 1)
        for partition in (1, 2):
            assert await store.digest(partition) == immediate(model.digest(partition))
        assert store.sizes() == model.sizes()
        assert await store.counts() == immediate(model.counts())
        assert await store.tombstones_before(9, 9) == GRAVES_BEFORE
        store = await kind.reopen()
    await store.commit(
        Batch(
            rows=[change("t1-00000", 2, partition=1)],
            deletes=[RowDelete("t2-00000", 1)],
            forgets=["g0"],
            entries=[record(1, 11, 2)],
            applied={1: 10, 2: 3},
        )
    )
    assert isinstance((await store.lookup(["t1-00000"]))["t1-00000"], StoredRow)
    assert (store.sizes()[1].tombstones, store.sizes()[2].rows) == (3, 4)
    assert ask(kind, "PRAGMA integrity_check") == [("ok",)]


@deferred
async def test_damage_is_not_carried_over_by_an_upgrade(kind: SqliteKind) -> None:
    write_schema_2(kind.database)
    connection = sqlite3.connect(kind.database, isolation_level=None)
    connection.execute("UPDATE partitions SET promised = 5 WHERE partition = 1")
    connection.close()
    with pytest.raises(StoreBroken):
        kind.open()
    assert ask(kind, "PRAGMA user_version") == [(2,)]


def test_a_start_reads_what_the_writer_has_in_memory(tmp_path: Path) -> None:
    """Counters, slots and positions as kept over many commits are those that a start finds."""
    connection = connect_writer(tmp_path / DATABASE_NAME)
    group = group_writer(connection)
    sent = snapshot_of(1, many(1, 40), [Tombstone("g", 1, b"", 1)])
    group.write([Batch(rows=many(1, 9), applied={1: 1}), Batch(stage=sent.stage(1))])
    group.write(
        [Batch(installs=[Install(1, 5, [(1, 2)], 3, len(sent.chunks))]), Batch(rows=many(3, 2), applied={3: 0})]
    )
    group.write([Batch(rows=[change("t1-00003", 2, partition=1, body=bytes(99))], deletes=[RowDelete("t3-00001", 1)])])
    states, slots = load_states(connection)
    load_log(connection, states, slots, LogIndex())
    assert slots.sizes() == group._generations.sizes()
    assert slots.live_slots == group._generations.live_slots
    assert slots.dead_slots == group._generations.dead_slots
    assert states[1].as_partition_log(1) == group._states[1].as_partition_log(1)
    connection.close()
