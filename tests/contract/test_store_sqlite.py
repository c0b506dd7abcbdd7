"""What only the store on disk can be asked: crashes, failing writes, damage, locks, versions, the sizes of its files."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.support.model_store.store import MemoryStore
from tests.support.stores import (
    PARTITIONS_NUMBERED,
    ROWS_PER_NUMBERED,
    SqliteKind,
    birth,
    change,
    first_of_reshaping,
    flip_bit,
    immediate,
    numbered,
    record,
    reshaping,
)
from tq_node import limits
from tq_node.errors import Divergence, StoreBroken
from tq_node.store.api import Batch, RowDelete, RowQuery, StoredRow, Tombstone
from tq_node.store.lock import DirectoryLocked
from tq_node.store.sqlite import upgrade as upgrades
from tq_node.store.sqlite import vacuum
from tq_node.store.sqlite.backup import BackupStopped
from tq_node.store.sqlite.open_database import DATABASE_NAME
from tq_node.store.sqlite.upgrade import SchemaTooNew, Step, load_steps, upgrade

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture
ROOT = Path(__file__).parents[2]


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


def raw(kind: SqliteKind) -> sqlite3.Connection:
    """A connection beside the store's, or to what it has left."""
    return sqlite3.connect(kind.database, isolation_level=None)


async def between_commits(kind: SqliteKind, function: Callable[[sqlite3.Connection], object]) -> None:
    """Run it in the writer thread on the write connection."""
    assert kind.store is not None
    store = kind.store
    await store._ask(store._writer.put, lambda: function(store._connection))


# --- crashes ---
class Child:
    """A process that commits numbered batches. It is started ahead of need: importing takes longer than the rest."""

    def __init__(
        self,
        directory: Path,
        count: int = 1_000_000,
        in_flight: int = 8,
        wrapper: tuple[str, ...] = (),
        series: str = "numbered",
    ) -> None:
        program = [sys.executable, "-m", "tests.support.stores"]
        command = [*wrapper, *program, str(directory), str(count), str(in_flight), series]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def acknowledged(self) -> list[int]:
        """What it said until its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        return [int(line) for line in said.splitlines() if line]

    def kill_after(self, batches: int) -> list[int]:
        """kill -9 once so many batches are acknowledged."""
        assert self.process.stdout is not None
        first = [int(self.process.stdout.readline()) for _ in range(batches)]
        self.process.send_signal(signal.SIGKILL)
        return first + self.acknowledged()


@deferred
async def test_kill_9_at_any_moment_loses_nothing_acknowledged(kind: SqliteKind) -> None:
    """R16, F9: all that was acknowledged is there, what was not is there wholly or not at all, nothing is left out between."""
    draw = random.Random(3)
    following = Child(kind.directory)
    seen = 0
    for last_round in [False] * 19 + [True]:
        child = following
        child.begin()
        if not last_round:
            following = Child(kind.directory)
        acknowledged = child.kill_after(draw.randint(1, 60))
        assert acknowledged == list(range(seen + 1, seen + 1 + len(acknowledged))), (
            "in order, from where the last one ended"
        )
        store = kind.open()
        seen = int(store.meta()["n"])
        assert seen >= acknowledged[-1]
        ends = {log.partition: log.last_sequence for log in await store.partitions()}
        expected: dict[int, int] = {}
        for n in range(1, seen + 1):
            expected |= {entry.partition: entry.sequence for entry in numbered(n).entries}
        assert ends == expected
        for partition, last in ends.items():
            assert (await store.read_log(partition, last, bytes_max=1))[0].sequence == last
        rows = (await store.page(RowQuery(limit=10_000, descending=True, bytes_max=1 << 30))).rows
        assert {row.id: row.rev for row in rows} == {
            f"b{n:06}-{i}": 1 if n == seen else 2 for n in range(1, seen + 1) for i in range(ROWS_PER_NUMBERED)
        }
        await kind.close()
    check(kind.database)
    assert kind.broken == []


@deferred
async def test_kill_9_amid_cuts_installs_and_drops_leaves_what_the_model_says(kind: SqliteKind) -> None:
    """F6: each is there wholly or not at all, what was staged is gone, no record that was cut is back."""
    draw = random.Random(4)
    model = MemoryStore(auto=True)
    following = Child(kind.directory, series="reshaping")
    seen = 0
    for last_round in [False] * 11 + [True]:
        child = following
        child.begin()
        if not last_round:
            following = Child(kind.directory, series="reshaping")
        child.kill_after(draw.randint(1, 40))
        store = kind.open()
        begun, seen = seen, int(store.meta()["n"])
        for n in range(first_of_reshaping(begun), seen + 1):
            model.commit(reshaping(n))
        model = model.crash()
        assert await store.partitions() == immediate(model.partitions())
        assert await store.counts() == immediate(model.counts())
        assert store.sizes() == model.sizes()
        for partition in range(PARTITIONS_NUMBERED):
            assert await store.digest(partition) == immediate(model.digest(partition))
            for first in (1, 41, 45):
                expected = immediate(model.read_log(partition, first, bytes_max=1 << 20))
                assert await store.read_log(partition, first, bytes_max=1 << 20) == expected
        await kind.close()
    check(kind.database)
    assert kind.broken == []


def check(database: Path) -> None:
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@deferred
async def test_each_commit_is_synced_before_it_is_acknowledged(kind: SqliteKind, tmp_path: Path) -> None:
    """F9, as the kernel saw it: between two acknowledgements lies at least one sync of the WAL."""
    strace, trace = shutil.which("strace"), tmp_path / "trace"
    if strace is None:
        pytest.skip("strace is not installed")
    if subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    wrapper = (strace, "-f", "-y", "-e", "trace=fdatasync,fsync,write", "-o", str(trace))
    child = Child(kind.directory, count=30, in_flight=1, wrapper=wrapper)
    child.begin()
    assert len(child.acknowledged()) == 30
    calls = trace.read_text()
    waking = re.search(r'^(\d+) +write\(\d+<pipe:\[\d+\]>, "x", 1', calls, re.MULTILINE)
    assert waking is not None, "the writer thread is the first that wakes the reactor"
    synced, acknowledged = False, 0
    for line in calls.splitlines():
        if re.match(waking[1] + r" +f(data)?sync\(\d+<[^>]*-wal>", line):
            synced = True
        elif re.search(r'write\(1<[^>]*>, "\d+(\\n)?"', line):
            assert synced, f"acknowledged without a sync: {line}"
            synced, acknowledged = False, acknowledged + 1
    assert acknowledged == 30


# --- R18 ---
@deferred
async def test_the_first_failed_write_is_the_last(kind: SqliteKind) -> None:
    """R18: nothing behind it succeeds, it is told once, and what was acknowledged before is there afterwards."""
    store = kind.open()
    await store.commit(Batch(rows=[birth("before")], meta={"a": b"1"}))
    full = os.open("/dev/full", os.O_RDWR)
    for fd in [fd for fd in os.listdir("/proc/self/fd") if _target(fd) == f"{kind.database}-wal"]:
        os.dup2(full, int(fd), inheritable=False)
    os.close(full)
    waiting = [store.commit(Batch(rows=[birth(f"t{n}")])) for n in range(5)]
    for answer in waiting:
        assert isinstance(await failure_of(answer), StoreBroken)
    assert len(kind.broken) == 1
    assert isinstance(kind.broken[0], sqlite3.Error)
    for late in (
        store.commit(Batch()),
        store.lookup(["before"]),
        store.partitions(),
        store.page(RowQuery()),
        store.backup("/x", "x", 1),
    ):
        assert isinstance(await failure_of(late), StoreBroken)
    assert len(kind.broken) == 1


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


@deferred
async def test_a_full_disk_ends_the_store_and_keeps_what_was_acknowledged(kind: SqliteKind) -> None:
    """F11, as SQLite sees it."""
    store = kind.open()
    await store.commit(Batch(rows=[birth("before")]))
    await between_commits(kind, lambda connection: connection.execute("PRAGMA max_page_count = 60").fetchone())
    acknowledged = 1
    while True:
        try:
            await store.commit(Batch(rows=[birth(f"t{acknowledged}", body=bytes(3_000)), birth(f"u{acknowledged}")]))
        except StoreBroken:
            break
        acknowledged += 2
    assert "full" in str(kind.broken[0])
    store = await kind.reopen()
    assert len((await store.page(RowQuery())).rows) == acknowledged


@deferred
async def test_an_owner_that_raises_does_not_keep_the_news_from_others(kind: SqliteKind, logged_errors: Any) -> None:
    def raise_it(why: Exception) -> None:
        raise RuntimeError("the owner is at fault")

    from twisted.internet import reactor

    store = kind.open()
    store._on_broken = raise_it
    first, second = store.commit(Batch(rows=[change("nobody", 2)])), store.commit(Batch())
    assert isinstance(await failure_of(first), Divergence)
    assert isinstance(await failure_of(second), StoreBroken | Divergence)
    await deferLater(reactor, 0)
    assert len(logged_errors.flush(RuntimeError)) == 1


# --- damage, foreign files, versions, locks ---
@deferred
async def test_a_lost_record_is_no_end_of_the_log(kind: SqliteKind) -> None:
    await kind.open().commit(Batch(entries=[record(1, s) for s in (1, 2, 3)]))
    await kind.close()
    with raw(kind) as connection:
        connection.execute("DELETE FROM log WHERE sequence = 2")
    connection.close()
    with pytest.raises(StoreBroken, match="record 2 is missing"):
        kind.open()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE partitions SET promised = promised - 1",
        "UPDATE partitions SET applied = 0",
        "UPDATE epochs SET first_sequence = 2",
        "UPDATE meta SET value = x'00'",
        "UPDATE meta SET key = 'other'",
    ],
)
@deferred
async def test_damage_to_what_is_read_at_the_start_refuses_the_start(kind: SqliteKind, statement: str) -> None:
    await kind.open().commit(
        Batch(entries=[record(1, 1)], promises={1: 5}, applied={1: 1}, epochs=[(1, 1, 1)], meta={"a": b"1"})
    )
    await kind.close()
    connection = raw(kind)
    connection.execute(statement)
    connection.close()
    with pytest.raises(StoreBroken, match="damaged"):
        kind.open()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tasks SET state = 3",
        "UPDATE tasks SET rev = 9",
        "UPDATE tasks SET run_at_us = 9",
        "UPDATE tasks SET priority = 9",
        "UPDATE tasks SET queue = 'other'",
        "UPDATE tasks SET id = 'u'",
        "UPDATE tasks SET rev = 'text'",
        "UPDATE tasks SET partition = 9",
        "DELETE FROM specs",
    ],
)
@deferred
async def test_every_column_of_a_row_is_under_a_checksum(kind: SqliteKind, statement: str) -> None:
    await kind.open().commit(Batch(rows=[birth("t", spec=bytes(5_000))]))
    await kind.close()
    connection = raw(kind)
    connection.execute(statement)
    connection.close()
    assert isinstance(await failure_of(kind.open().lookup(["t", "u"])), StoreBroken)
    assert len(kind.broken) == 1


@deferred
async def test_a_damaged_tombstone_is_found(kind: SqliteKind) -> None:
    await kind.open().commit(Batch(tombstones=[Tombstone("t", 1, b"the content's hash", 5)]))
    await kind.close()
    flip_bit(kind.database, b"the content's hash")
    assert isinstance(await failure_of(kind.open().tombstones_before(10, 10)), StoreBroken)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"not a database, and long enough to be looked at" * 99), "not a database"),
        (
            lambda path: sqlite3.connect(path).execute("CREATE TABLE mine (x)").connection.close(),
            "not made by taskqueue",
        ),
    ],
    ids=["no database", "another program's"],
)
@deferred
async def test_a_file_that_is_not_ours_is_refused_in_one_line(
    kind: SqliteKind, make: Callable[[Path], object], message: str
) -> None:
    kind.directory.mkdir()
    make(kind.database)
    before = kind.database.read_bytes()
    with pytest.raises(StoreBroken, match=message) as refused:
        kind.open()
    assert "\n" not in str(refused.value)
    assert kind.database.read_bytes() == before


@deferred
async def test_a_damaged_page_refuses_the_start_or_the_read(kind: SqliteKind) -> None:
    await kind.open().commit(Batch(rows=[birth(f"t{n:03}") for n in range(500)], entries=[record(1, 1)]))
    await kind.close()
    data = bytearray(kind.database.read_bytes())
    for offset in range(4_096, len(data), 4_096):
        data[offset : offset + 16] = bytes(16)
    kind.database.write_bytes(data)
    with pytest.raises(StoreBroken):
        await kind.open().page(RowQuery())


@deferred
async def test_a_second_process_is_refused(kind: SqliteKind) -> None:
    """F15. The lock goes with the process that held it, however that ends."""
    child = Child(kind.directory)
    child.begin()
    assert child.process.stdout is not None
    child.process.stdout.readline()
    with pytest.raises(DirectoryLocked, match=f"in use by process {child.process.pid}"):
        kind.open()
    child.kill_after(1)
    kind.open()
    with pytest.raises(DirectoryLocked):
        SqliteKind(kind.directory).open()
    assert kind.store is not None
    await kind.store.commit(Batch())


@deferred
async def test_the_directory_is_made_for_its_owner_only(kind: SqliteKind, tmp_path: Path) -> None:
    deep = SqliteKind(tmp_path / "a" / "b")
    store = deep.open()
    assert stat.S_IMODE(deep.directory.stat().st_mode) == 0o700
    assert store.bytes_on_disk() > 0
    assert store.disk_free_bytes() > 1 << 20
    await deep.close()
    assert sorted(path.name for path in deep.directory.iterdir()) == ["lock", DATABASE_NAME]


def _read_pragma(pragma: str, found: list[object], connection: sqlite3.Connection) -> None:
    found.append(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


@deferred
async def test_the_settings_that_durability_rests_on(kind: SqliteKind) -> None:
    kind.open()
    found: list[object] = []
    for pragma in ("journal_mode", "synchronous", "wal_autocheckpoint", "secure_delete"):
        ask = partial(_read_pragma, pragma, found)
        await between_commits(kind, ask)
    assert found == ["wal", 2, 0, 0]


@deferred
async def test_an_older_schema_is_brought_up_step_by_step(kind: SqliteKind, monkeypatch: pytest.MonkeyPatch) -> None:
    await kind.open().commit(Batch(rows=[birth("t")]))
    await kind.close()
    newest = load_steps()[-1].version
    added = [
        Step(newest + 1, "CREATE TABLE first (x); INSERT INTO first SELECT id FROM tasks;"),
        Step(newest + 2, "ALTER TABLE first ADD COLUMN y;"),
    ]
    steps = load_steps() + added
    monkeypatch.setattr("tq_node.store.sqlite.open_database.load_steps", lambda: steps)
    assert set(await kind.open().lookup(["t"])) == {"t"}
    await kind.close()
    connection = raw(kind)
    assert connection.execute("SELECT x, y FROM first").fetchall() == [("t", None)]
    assert upgrade(connection, steps) == 0
    connection.close()
    monkeypatch.undo()
    with pytest.raises(SchemaTooNew, match=f"schema version {newest + 2}, this release knows versions up to {newest}"):
        kind.open()


def test_a_step_that_fails_leaves_the_version_before_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x", isolation_level=None)
    steps = [Step(1, "CREATE TABLE one (x);"), Step(2, "CREATE TABLE two (x); INSERT INTO absent VALUES (1);")]
    with pytest.raises(sqlite3.Error):
        upgrade(connection, steps)
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("one",)]
    assert upgrade(connection, [steps[0], Step(2, "CREATE TABLE two (x);")]) == 1
    connection.close()


def test_steps_count_up_from_one() -> None:
    assert [step.version for step in load_steps()] == list(range(1, len(load_steps()) + 1))
    assert upgrades.APPLICATION_ID < 1 << 31


# --- housekeeping ---
@deferred
async def test_the_wal_begins_again_while_commits_go_on(kind: SqliteKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAL_CHECKPOINT_BYTES", 256 * limits.KIB)
    store = kind.open()
    written, begun = 0, set()
    for n in range(3_000):
        payload = random.Random(n).randbytes(50_000)
        written += len(payload)
        await store.commit(Batch(entries=[record(1, n + 1, payload=payload)]))
        with Path(f"{kind.database}-wal").open("rb") as wal:
            begun.add(wal.read(24)[16:])  # salts: others each time that it begins again
        if n >= 300 and len(begun) > 3:
            break
    assert len(begun) > 3, "checkpoints get to the end of it while commits go on"
    assert written > Path(f"{kind.database}-wal").stat().st_size
    assert kind.database.stat().st_size > written // 2


@deferred
async def test_a_long_reader_makes_the_writer_wait_at_the_bound(
    kind: SqliteKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAL_CHECKPOINT_BYTES", 64 * limits.KIB)
    monkeypatch.setattr(limits, "WAL_BYTES_MAX", 512 * limits.KIB)
    monkeypatch.setattr("tq_node.store.sqlite.open_database.BUSY_S", 0.05)
    store = kind.open()
    await store.commit(Batch(entries=[record(1, 1)]))
    reader = raw(kind)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM log").fetchall()
    for n in range(2, 30):
        await store.commit(Batch(entries=[record(1, n, payload=bytes(50_000))]))
    reader.execute("COMMIT")
    reader.close()
    for n in range(30, 60):
        await store.commit(Batch(entries=[record(1, n, payload=bytes(50_000))]))
    assert store._wal_size.bytes_used() < 2 * limits.MIB
    assert kind.broken == []


@deferred
async def test_trimmed_records_leave_the_table(kind: SqliteKind) -> None:
    store = kind.open()
    sequence = 0
    for _ in range(20):
        await store.commit(Batch(entries=[record(p, sequence + s) for s in range(1, 501) for p in (1, 2)]))
        sequence += 500
        await store.commit(Batch(applied={1: sequence, 2: sequence}, trim={1: sequence - 100, 2: sequence - 100}))
    await store.commit(Batch(meta={"a": b""}))
    assert rows_in(kind, "log") < 2_000
    assert len(await store.read_log(1, sequence - 99, bytes_max=1 << 30)) == 100
    store = await kind.reopen()
    assert len(await store.read_log(2, sequence - 99, bytes_max=1 << 30)) == 100


def rows_in(kind: SqliteKind, table: str) -> int:
    connection = raw(kind)
    (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(rows)


@deferred
async def test_one_partition_that_keeps_its_records_does_not_keep_all_others(
    kind: SqliteKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "DEAD_ROWS_MAX", 300)
    store = kind.open()
    await store.commit(Batch(entries=[record(9, 1)]))
    for n in range(40):
        await store.commit(Batch(entries=[record(1, n * 100 + s) for s in range(1, 101)] + [record(9, n + 2)]))
        await store.commit(Batch(applied={1: n * 100 + 100}, trim={1: n * 100 + 90}))
    for n in range(20):
        await store.commit(Batch(meta={"n": b"%d" % n}))
    assert rows_in(kind, "log") <= 41 + 10 + 300
    for _ in range(2):
        assert len(await store.read_log(9, 1, bytes_max=1 << 30)) == 41
        assert len(await store.read_log(1, 3991, bytes_max=1 << 30)) == 10
        store = await kind.reopen()


@deferred
async def test_deleted_tasks_leave_no_spec_behind(kind: SqliteKind) -> None:
    store = kind.open()
    await store.commit(Batch(rows=[birth(f"t{n}", spec=bytes(3_000 * (n % 2))) for n in range(100)]))
    assert rows_in(kind, "specs") == 50
    await store.commit(Batch(deletes=[RowDelete(f"t{n}", 1) for n in range(100)]))
    assert rows_in(kind, "specs") == rows_in(kind, "tasks") == 0


@deferred
async def test_a_backup_is_the_store_at_one_moment(kind: SqliteKind, tmp_path: Path) -> None:
    store = kind.open()
    for n in range(1, 60):
        await store.commit(numbered(n))
    copy = SqliteKind(tmp_path / "copy")
    copy.directory.mkdir()
    made = store.backup(str(copy.database.parent), copy.database.name, 1)
    n = 60
    while not made.called:
        await store.commit(numbered(n))
        n += 1
    await made
    assert [path.name for path in copy.directory.iterdir()] == [DATABASE_NAME]
    check(copy.database)
    copied = copy.open()
    seen = int(copied.meta()["n"])
    assert 59 <= seen < n
    assert len((await copied.page(RowQuery(limit=10_000))).rows) == seen * ROWS_PER_NUMBERED
    await copied.commit(numbered(seen + 1))
    await copy.close()


@deferred
async def test_a_backup_that_fails_harms_nothing(kind: SqliteKind, tmp_path: Path) -> None:
    store = kind.open()
    await store.commit(Batch(rows=[birth("t")]))
    assert isinstance(await failure_of(store.backup("/dev/null/below", "copy", 1)), OSError)
    stopped = store.backup(str(tmp_path), "copy", 1)
    store._stop_backup.set()
    assert isinstance(await failure_of(stopped), BackupStopped)
    assert not list(tmp_path.glob("copy*"))
    await store.backup(str(tmp_path), "copy", 1)
    assert (tmp_path / "copy").exists()
    assert kind.broken == []


@deferred
async def test_the_newest_backups_are_kept(kind: SqliteKind, tmp_path: Path) -> None:
    store = kind.open()
    there = tmp_path / "made" / "for them"
    for n in (5, 6, 7):
        await store.backup(str(there), f"snapshot-{n}.sqlite3", 2)
    (there / "snapshot-8.sqlite3.partial").touch()
    for name in ("taskqueue.sqlite3", "snapshot-1.sqlite3.mine", "notes"):
        (there / name).touch()
    (there / "snapshot-9.sqlite3").symlink_to(there / "notes")
    # The clock has gone back: the one just made is the newest all the same.
    kept = await store.backup(str(there), "snapshot-3.sqlite3", 2)
    assert [Path(path).name for path in kept] == ["snapshot-3.sqlite3", "snapshot-7.sqlite3"]
    left = {"taskqueue.sqlite3", "snapshot-1.sqlite3.mine", "notes", "snapshot-9.sqlite3"}
    assert {path.name for path in there.iterdir()} == {Path(path).name for path in kept} | left
    assert {Path(path).stat().st_mode & 0o777 for path in kept} == {0o600}
    assert stat.S_IMODE(there.stat().st_mode) == 0o700


@deferred
async def test_a_backup_follows_no_link(kind: SqliteKind, tmp_path: Path) -> None:
    store = kind.open()
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.write_text("kept")
    (there / "snapshot-1.sqlite3.partial").symlink_to(elsewhere)
    (there / "snapshot-1.sqlite3").symlink_to(elsewhere)
    await store.backup(str(there), "snapshot-1.sqlite3", 2)
    assert elsewhere.read_text() == "kept"
    assert not (there / "snapshot-1.sqlite3").is_symlink()


@deferred
async def test_answers_that_take_their_askers_long_share_no_turn_of_the_reactor(kind: SqliteKind) -> None:
    """Others come in between where many wait for long tasks."""
    from twisted.internet import reactor

    store = kind.open()
    turns: list[int] = []
    turn = 0

    def next_turn() -> None:
        nonlocal turn
        turn += 1

    def answer_slowly(_: object) -> None:
        turns.append(turn)
        cast("Any", reactor).callFromThread(next_turn)
        end_s = time.perf_counter() + limits.SLICE_MS / 1000
        while time.perf_counter() < end_s:
            pass

    def all_at_once() -> list[tuple[Deferred[object] | None, object]]:
        return [(Deferred[object]().addCallback(answer_slowly), None) for _ in range(8)]

    last: Deferred[object] = Deferred()
    store._post_answers(all_at_once())
    for one in all_at_once():
        store._post_answers([one])
    store._post_answers([(last, None)])
    await last
    assert len(turns) == len(set(turns)) == 16


@deferred
async def test_what_waits_goes_into_one_commit(kind: SqliteKind) -> None:
    store = kind.open()
    await gatherResults([store.commit(Batch(entries=[record(1, n)], rows=[birth(f"t{n}")])) for n in range(1, 201)])
    batches, entries, rows, seconds = (sum(figures) for figures in zip(*kind.commits, strict=True))
    assert (batches, entries, rows) == (200, 200, 200)
    assert len(kind.commits) < 20
    assert 0 < seconds < 60
    found = await store.lookup(["t1", "t200"])
    assert all(isinstance(row, StoredRow) for row in found.values())
