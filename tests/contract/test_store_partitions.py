"""What replication asks of every Store: cuts, snapshots out and in, drops, and answers about some partitions only."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from tests.support.stores import MemoryKind, Sent, SqliteKind, StoreKind, birth, change, record, snapshot_of
from tq_node.errors import Divergence, StoreBroken
from tq_node.store.api import (
    SNAPSHOT_CHUNK_BYTES,
    SNAPSHOTS_MAX,
    Batch,
    Install,
    PartitionLog,
    PartitionSize,
    PartitionSnapshot,
    RowDelete,
    RowQuery,
    SnapshotLost,
    StagedChunk,
    Store,
    StoredRow,
    Tombstone,
)
from tq_node.store.snapshots import ChunkDamaged, SnapshotCheck
from tq_node.types import State

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


@async_fixture(params=["memory", "sqlite"])
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreKind]:
    made: StoreKind = MemoryKind() if request.param == "memory" else SqliteKind(tmp_path / "data")
    yield made
    await made.close()


@pytest.fixture
def store(kind: StoreKind) -> Store:
    return kind.open()


async def failure_of(answer: Deferred[Any]) -> Exception:
    try:
        await answer
    except Exception as why:
        return why
    pytest.fail("it succeeded")


async def log_of(store: Store, partition: int) -> PartitionLog:
    return next(log for log in await store.partitions() if log.partition == partition)


async def all_of(snapshot: PartitionSnapshot, bytes_max: int = SNAPSHOT_CHUNK_BYTES) -> Sent:
    chunks: list[bytes] = []
    while (chunk := await snapshot.read(bytes_max)) is not None:
        chunks.append(chunk)
    return Sent(chunks, snapshot.digest())


async def ids_in(store: Store) -> list[str]:
    return [row.id for row in (await store.page(RowQuery(limit=10_000))).rows]


def log_batch(partition: int, first: int, last: int, epoch: int = 1) -> Batch:
    return Batch(
        entries=[record(partition, s, epoch) for s in range(first, last + 1)], epochs=[(partition, epoch, first)]
    )


# --- cuts ---
@deferred
async def test_a_cut_takes_records_and_epochs_above_it(store: Store, kind: StoreKind) -> None:
    """R15: and what is appended afterwards stands in the same place with another epoch, at once and after a crash."""
    await store.commit(log_batch(1, 1, 3))
    await store.commit(log_batch(1, 4, 6, epoch=2))
    await store.commit(log_batch(2, 1, 6))
    await store.commit(Batch(promises={1: 3}, cuts={1: 3}))
    assert await log_of(store, 1) == PartitionLog(1, 3, [(1, 1)], 1, 3, 0, 0)
    assert [entry.epoch for entry in await store.read_log(1, 1, bytes_max=1000)] == [1, 1, 1]
    assert await store.read_log(1, 4, bytes_max=1000) == []
    store = await kind.crash()
    assert await log_of(store, 1) == PartitionLog(1, 3, [(1, 1)], 1, 3, 0, 0)
    await store.commit(log_batch(1, 4, 5, epoch=3))
    for _ in range(2):
        assert [(e.sequence, e.epoch) for e in await store.read_log(1, 3, bytes_max=1000)] == [(3, 1), (4, 3), (5, 3)]
        assert (await log_of(store, 1)).epochs == [(1, 1), (3, 4)]
        assert len(await store.read_log(2, 1, bytes_max=1000)) == 6
        store = await kind.reopen()


@deferred
async def test_a_batch_promises_cuts_and_appends_in_this_order(store: Store, kind: StoreKind) -> None:
    await store.commit(log_batch(1, 1, 4))
    await store.commit(
        Batch(promises={1: 7}, cuts={1: 2}, epochs=[(1, 7, 3)], entries=[record(1, 3, 7)], applied={1: 3})
    )
    for _ in range(2):
        assert await log_of(store, 1) == PartitionLog(1, 7, [(1, 1), (7, 3)], 1, 3, 3, 0)
        store = await kind.reopen()


@deferred
async def test_cuts_of_batches_that_wait_together(store: Store, kind: StoreKind) -> None:
    """What one batch brings the next one cuts, in one transaction."""
    batches = [
        log_batch(1, 1, 3),
        Batch(cuts={1: 2}, entries=[record(1, 3, 2), record(1, 4, 2)]),
        Batch(entries=[record(1, 5, 2), record(2, 1)]),
        Batch(cuts={1: 3}, entries=[record(1, 4, 3), record(2, 2)]),
        Batch(cuts={1: 1, 2: 1}),
        Batch(entries=[record(1, 2, 9), record(2, 2, 9)]),
    ]
    await gatherResults([store.commit(batch) for batch in batches])
    for _ in range(2):
        assert [(e.sequence, e.epoch) for e in await store.read_log(1, 1, bytes_max=1000)] == [(1, 1), (2, 9)]
        assert [(e.sequence, e.epoch) for e in await store.read_log(2, 1, bytes_max=1000)] == [(1, 1), (2, 9)]
        store = await kind.crash()


@deferred
async def test_a_cut_to_the_end_or_past_it_changes_nothing(store: Store) -> None:
    await store.commit(log_batch(1, 1, 3))
    before = await store.partitions()
    await store.commit(Batch(cuts={1: 3}))
    await store.commit(Batch(cuts={1: 9}))
    assert await store.partitions() == before
    await store.commit(Batch(cuts={1: 0}))
    assert await log_of(store, 1) == PartitionLog(1, 0, [], 1, 0, 0, 0)


SENT = snapshot_of(1, [birth(f"s{n}", partition=1) for n in range(20)])
REFUSED = {
    "cut below applied (I5)": Batch(cuts={1: 1}),
    "install that leads back (F6)": Batch(installs=[Install(1, 1, [], 0, 0)]),
    "install of chunks never staged": Batch(installs=[Install(1, 9, [], 0, 2)]),
    "install of more chunks": Batch(stage=SENT.stage(1)[:1], installs=[Install(1, 9, [], 0, 2)]),
    "install of another digest": Batch(
        stage=SENT.stage(1), installs=[Install(1, 9, [], 0, len(SENT.chunks), bytes(16))]
    ),
    "install with epochs past it": Batch(installs=[Install(1, 9, [(3, 10)], 0, 0)]),
    "install with epochs in no order": Batch(installs=[Install(1, 9, [(3, 5), (2, 6)], 0, 0)]),
    "chunk out of turn": Batch(stage=SENT.stage(1)[1:2]),
    "chunk left out": Batch(stage=[SENT.stage(1)[0], StagedChunk(1, 2, SENT.chunks[0])]),
    "chunk that can't be read": Batch(stage=[StagedChunk(1, 0, b"\x92\x90")]),
    "chunk of another partition": Batch(stage=[StagedChunk(2, 0, SENT.chunks[0])]),
    "chunk with a row twice": Batch(stage=[StagedChunk(1, n, SENT.chunks[0]) for n in range(2)]),
    "epoch that is not later": Batch(epochs=[(1, 2, 3)]),
    "epoch that begins no later": Batch(epochs=[(1, 3, 1)]),
    "row of a dropped partition": Batch(drops=[1], rows=[change("t", 2, partition=1)]),
}


@pytest.mark.parametrize("batch", REFUSED.values(), ids=REFUSED)
@deferred
async def test_what_does_not_follow_ends_the_store(store: Store, kind: StoreKind, batch: Batch) -> None:
    await store.commit(
        Batch(
            entries=[record(1, 1, 2), record(1, 2, 2), record(1, 3, 2)],
            epochs=[(1, 2, 1)],
            rows=[birth("t", partition=1)],
            applied={1: 2},
        )
    )
    assert isinstance(await failure_of(store.commit(batch)), Divergence)
    assert isinstance(await failure_of(store.open_snapshot(1)), StoreBroken)
    assert isinstance(await failure_of(store.digest(1)), StoreBroken)
    assert [type(why) for why in kind.broken] == [Divergence]
    if kind.name == "sqlite":
        store = await kind.reopen()
        assert await log_of(store, 1) == PartitionLog(1, 0, [(2, 1)], 1, 3, 2, 0)
        assert await ids_in(store) == ["t"]


# --- the log of a primary whose replica lags ---
@deferred
async def test_records_stay_readable_until_they_are_trimmed(store: Store, kind: StoreKind) -> None:
    await store.commit(log_batch(1, 1, 50))
    await store.commit(Batch(applied={1: 50}))
    for _ in range(2):
        assert len(await store.read_log(1, 1, bytes_max=1 << 20)) == 50, "applied, not trimmed"
        store = await kind.reopen()
    await store.commit(Batch(trim={1: 30}))
    for _ in range(2):
        assert await store.read_log(1, 30, bytes_max=1 << 20) == [], "nothing, rather than something later"
        assert [e.sequence for e in await store.read_log(1, 31, bytes_max=1 << 20)] == list(range(31, 51))
        assert (await log_of(store, 1)).log_start == 31
        store = await kind.reopen()


@deferred
async def test_the_epoch_of_the_record_before_the_log_is_kept(store: Store, kind: StoreKind) -> None:
    await store.commit(log_batch(1, 1, 4, epoch=1))
    await store.commit(log_batch(1, 5, 8, epoch=3))
    await store.commit(Batch(applied={1: 4}, trim={1: 4}))
    for _ in range(3):
        assert (await log_of(store, 1)).epochs == [(1, 1), (3, 5)], "of record 4, which a stream from 5 on follows"
        store = await kind.reopen()
    await store.commit(Batch(applied={1: 5}, trim={1: 5}))
    assert (await log_of(store, 1)).epochs == [(3, 5)]


# --- snapshots out ---
def content(partition: int, count: int = 60) -> Batch:
    draw = random.Random(partition)
    rows = [
        birth(
            f"p{partition}-{draw.randrange(10**6):06}-{n}",
            partition=partition,
            state=draw.choice([0, 1, 3]),
            queue=f"q{n % 3}",
            spec=draw.randbytes(draw.choice([10, 4_000])),
            body=draw.randbytes(n),
        )
        for n in range(count)
    ]
    tombstones = [Tombstone(f"g{partition}-{n:03}", partition, draw.randbytes(8), n) for n in range(count // 2)]
    return Batch(
        entries=[record(partition, s, 4) for s in range(1, 11)],
        epochs=[(partition, 4, 1), (partition, 5, 9)],
        rows=rows,
        tombstones=tombstones,
        applied={partition: 8},
        horizons={partition: 77},
    )


@deferred
async def test_a_snapshot_is_the_partition_at_one_applied_sequence(store: Store) -> None:
    for partition in (1, 2):
        await store.commit(content(partition))
    before = await store.digest(1)
    snapshot = await store.open_snapshot(1)
    assert (snapshot.partition, snapshot.applied, snapshot.epochs, snapshot.horizon_us) == (1, 8, [(4, 1)], 77)
    first = await snapshot.read(2_000)
    rows = (await store.page(RowQuery(partitions=frozenset([1])))).rows
    await store.commit(
        Batch(
            deletes=[RowDelete(row.id, 1) for row in rows[:30]],
            rows=[change(row.id, 2, partition=1, body=b"later") for row in rows[30:]],
            tombstones=[Tombstone("later", 1, b"h", 1)],
            forgets=[f"g1-{n:03}" for n in range(10)],
            applied={1: 10},
        )
    )
    rest = await all_of(snapshot, 2_000)
    assert first is not None
    assert (snapshot.applied, rest.digest) == before
    assert (await store.digest(1))[0] == 10
    assert await snapshot.read() is None
    snapshot.close()
    snapshot.close()
    assert isinstance(await failure_of(snapshot.read()), SnapshotLost)


@deferred
async def test_chunks_keep_to_their_size_unless_one_row_is_longer(store: Store) -> None:
    rows = [birth(f"t{n:03}", partition=1, body=bytes(n * 37 % 700)) for n in range(300)]
    rows += [birth("u", partition=1, spec=bytes(70_000)), birth("v" * 180, partition=1)]
    tombstones = [Tombstone(f"g{n:04}" * 9, 1, bytes(32), n) for n in range(900)]
    await store.commit(Batch(rows=rows, tombstones=tombstones, applied={1: 1}))
    for bytes_max in (1, 500, 4_000, SNAPSHOT_CHUNK_BYTES):
        snapshot = await store.open_snapshot(1)
        sent = await all_of(snapshot, bytes_max)
        snapshot.close()
        assert sent.digest == (await store.digest(1))[1], "however it is cut"
        sizes = sorted(map(len, sent.chunks))
        assert sizes[-1] > 70_000
        assert sizes[-2] <= max(bytes_max, 1_000)
        if bytes_max == SNAPSHOT_CHUNK_BYTES:
            assert len(sizes) < 8, "and well filled"
        if bytes_max == 1:
            assert len(sizes) == len(rows) + len(tombstones)


@deferred
async def test_a_snapshot_of_nothing(store: Store) -> None:
    snapshot = await store.open_snapshot(9)
    assert (snapshot.applied, snapshot.epochs, snapshot.horizon_us) == (0, [], 0)
    assert await snapshot.read() is None
    assert await store.digest(9) == (0, snapshot.digest())
    snapshot.close()


@deferred
async def test_so_many_snapshots_at_once_and_the_others_wait(store: Store) -> None:
    opened = [await store.open_snapshot(1) for _ in range(SNAPSHOTS_MAX)]
    given_up, waiting, last = (store.open_snapshot(2) for _ in range(3))
    given_up.addErrback(lambda why: why.trap(CancelledError))
    given_up.cancel()
    await store.commit(Batch())
    assert not waiting.called
    opened.pop().close()
    opened.append(await waiting)
    assert not last.called
    for snapshot in opened:
        snapshot.close()
    (await last).close()
    for _ in range(2 * SNAPSHOTS_MAX):
        (await store.open_snapshot(1)).close()


@deferred
async def test_who_gives_up_a_snapshot_that_is_being_opened_leaves_his_turn(store: Store) -> None:
    for _ in range(2 * SNAPSHOTS_MAX):
        asked = store.open_snapshot(1)
        asked.addCallbacks(lambda snapshot: snapshot.close(), lambda why: why.trap(CancelledError))
        asked.cancel()
    (await store.open_snapshot(1)).close()


@deferred
async def test_closing_the_store_ends_its_snapshots(store: Store, kind: StoreKind) -> None:
    await store.commit(content(1))
    opened = [await store.open_snapshot(1) for _ in range(SNAPSHOTS_MAX)]
    waiting = failure_of(store.open_snapshot(1))
    await store.close()
    assert isinstance(await waiting, StoreBroken)
    for snapshot in opened:
        assert isinstance(await failure_of(snapshot.read()), StoreBroken)
        snapshot.close()
    assert kind.broken == []


@deferred
async def test_damage_that_a_snapshot_meets_breaks_the_store(store: Store, kind: StoreKind) -> None:
    await store.commit(Batch(rows=[birth("t", partition=1, body=b"a body to be damaged")], applied={1: 1}))
    store = await kind.damage(b"a body to be damaged")
    snapshot = await store.open_snapshot(1)
    assert isinstance(await failure_of(snapshot.read()), StoreBroken)
    assert len(kind.broken) == 1


# --- snapshots in ---
async def sent_by(store: Store, partition: int, bytes_max: int = 1_000) -> tuple[Sent, Install]:
    snapshot = await store.open_snapshot(partition)
    sent = await all_of(snapshot, bytes_max)
    snapshot.close()
    install = Install(partition, snapshot.applied, snapshot.epochs, snapshot.horizon_us, len(sent.chunks), sent.digest)
    return sent, install


@deferred
async def test_what_is_installed_is_what_was_sent(store: Store, kind: StoreKind, tmp_path: Path) -> None:
    """From either implementation to either, over what was there before; digests and rows are equal (I11)."""
    await store.commit(Batch(rows=[birth("other", partition=2)], promises={1: 6}, applied={2: 1}))
    for source in (MemoryKind(), SqliteKind(tmp_path / "source")):
        sender = source.open()
        await sender.commit(content(1))
        sent, install = await sent_by(sender, 1)
        check = SnapshotCheck(1)
        for chunk in sent.chunks:
            check.take(chunk)
        assert (check.chunks, check.digest()) == (len(sent.chunks), sent.digest)
        await store.commit(
            Batch(
                drops=[1],
                entries=[record(1, s, 2) for s in range(1, 13)],
                epochs=[(1, 2, 1)],
                rows=[birth("old", partition=1)],
                tombstones=[Tombstone("old tombstone", 1, b"", 1)],
                applied={1: 3},
            )
        )
        for staged in sent.stage(1):
            await store.commit(Batch(stage=[staged], entries=[record(1, 13 + staged.number, 2)]))
        await store.commit(Batch(installs=[install], entries=[record(1, 9, 6)], epochs=[(1, 6, 9)]))
        for _ in range(2):
            assert await store.digest(1) == await sender.digest(1) == (8, sent.digest)
            assert await log_of(store, 1) == PartitionLog(1, 6, [(4, 1), (6, 9)], 9, 9, 8, 77)
            assert await store.read_log(1, 8, bytes_max=1000) == []
            assert await store.read_log(1, 9, bytes_max=1000) == [record(1, 9, 6)]
            assert await ids_in(store) == sorted([*await ids_in(sender), "other"])
            assert store.sizes()[1] == sender.sizes()[1]
            assert await store.lookup(["old", "old tombstone"]) == {}
            store = await kind.crash()
        one, two, *_ = (await sender.page(RowQuery(limit=3))).rows
        await store.commit(Batch(rows=[change(one.id, 2, partition=1)], deletes=[RowDelete(two.id, 1)], applied={1: 9}))
        expected = StoredRow(one.id, 1, 2, State.PROCESSING, 100, 0, one.spec, b"changed")
        assert await store.lookup([one.id, two.id]) == {one.id: expected}
        await source.close()


@deferred
async def test_what_is_staged_is_seen_by_nobody(store: Store, kind: StoreKind) -> None:
    """The staged rows have the ids of rows that are there."""
    await store.commit(content(1))
    sent, install = await sent_by(store, 1)
    await store.commit(content(2))
    asks: list[Callable[[], Deferred[Any]]] = [
        store.partitions,
        lambda: store.page(RowQuery(limit=1000)),
        lambda: store.page(RowQuery(limit=7, sort="created_at", scan_rows_max=9)),
        lambda: store.page(RowQuery(states=frozenset([1]), limit=50)),
        store.counts,
        lambda: store.open_rows(None, 1000),
        lambda: store.tombstones_before(1000, 1000),
        store.oldest_pending,
        lambda: store.digest(1),
        lambda: store.lookup([f"g1-{n:03}" for n in range(20)]),
    ]
    before = [await ask() for ask in asks]
    sizes = store.sizes()
    await store.commit(Batch(stage=sent.stage(1)))
    for ask, answer in zip(asks, before, strict=True):
        assert await ask() == answer
    assert store.sizes() == sizes
    rows = (await store.page(RowQuery(partitions=frozenset([1]), limit=1000))).rows
    await store.commit(
        Batch(
            rows=[change(row.id, 2, partition=1) for row in rows[1:]],
            deletes=[RowDelete(rows[0].id, 1)],
            forgets=["g1-001"],
            applied={1: 9},
        )
    )
    assert len(await store.lookup([row.id for row in rows] + ["g1-001"])) == len(rows) - 1
    await store.commit(Batch(drops=[1], stage=sent.stage(1), installs=[install]))
    assert await store.digest(1) == (8, sent.digest), "what was changed meanwhile is not in it"
    assert await store.lookup(["g1-001"]) != {}


@deferred
async def test_a_crash_gives_up_what_is_staged(store: Store, kind: StoreKind) -> None:
    """F6: at each sub-step; the partition stays as it was until the install is durable."""
    await store.commit(Batch(rows=[birth("old", partition=1)], applied={1: 1}))
    staged = SENT.stage(1)
    install = Install(1, 9, [(1, 1)], 0, len(staged), SENT.digest)
    for steps in range(len(staged) + 1):
        for chunk in staged[:steps]:
            await store.commit(Batch(stage=[chunk]))
        store = await kind.crash()
        assert (await log_of(store, 1)).applied == 1
        assert await ids_in(store) == ["old"]
    for chunk in staged:
        await store.commit(Batch(stage=[chunk]))
    await store.commit(Batch(installs=[install]))
    store = await kind.crash()
    assert await store.digest(1) == (9, SENT.digest)
    await store.commit(Batch(stage=staged[:1]))
    store = await kind.crash()
    assert isinstance(await failure_of(store.commit(Batch(stage=staged[1:2]))), Divergence)


@deferred
async def test_staging_is_given_up_and_begun_anew(store: Store) -> None:
    staged = SENT.stage(1)
    install = Install(1, 9, [], 0, len(staged), SENT.digest)
    await store.commit(Batch(stage=staged[:2]))
    await store.commit(Batch(unstage=[1, 2]))
    await store.commit(Batch(stage=staged[:2]))
    await store.commit(Batch(stage=staged[:1]))
    await store.commit(Batch(unstage=[1], stage=staged, installs=[install]))
    assert await store.digest(1) == (9, SENT.digest)
    await store.commit(Batch(stage=staged[:1]))
    await store.commit(Batch(drops=[1]))
    assert isinstance(await failure_of(store.commit(Batch(stage=staged[1:2]))), Divergence)


@deferred
async def test_an_empty_snapshot_is_installed(store: Store, kind: StoreKind) -> None:
    await store.commit(content(1))
    await store.commit(Batch(installs=[Install(1, 20, [(5, 9)], 80, 0)]))
    for _ in range(2):
        assert await log_of(store, 1) == PartitionLog(1, 0, [(5, 9)], 21, 20, 20, 80)
        assert await ids_in(store) == []
        assert 1 not in store.sizes()
        store = await kind.reopen()
    await store.commit(Batch(entries=[record(1, 21, 5)], rows=[birth("t", partition=1)], applied={1: 21}))
    assert await ids_in(store) == ["t"]


@pytest.mark.parametrize("position", range(0, 900, 37))
def test_a_chunk_with_a_changed_bit_is_refused(position: int) -> None:
    chunk = bytearray(SENT.chunks[0])
    chunk[position % len(chunk)] ^= 4
    check = SnapshotCheck(1)
    try:
        check.take(bytes(chunk))
    except ChunkDamaged:
        return
    unharmed = SnapshotCheck(1)
    unharmed.take(SENT.chunks[0])
    assert check.digest() != unharmed.digest()


# --- drops ---
@deferred
async def test_a_dropped_partition_is_forgotten_but_for_its_promise(store: Store, kind: StoreKind) -> None:
    """R13: a primary of an older epoch is refused even by who has given its data away."""
    for partition in (1, 2):
        await store.commit(content(partition))
    await store.commit(Batch(promises={1: 9}))
    await store.commit(Batch(drops=[1]))
    for _ in range(2):
        assert await log_of(store, 1) == PartitionLog(1, 9, [], 1, 0, 0, 0)
        assert {row.partition for row in (await store.page(RowQuery())).rows} == {2}
        assert {p for p, *_ in await store.counts()} == {2}
        assert {t.partition for t in await store.tombstones_before(1000, 1000)} == {2}
        assert await store.read_log(1, 1, bytes_max=1000) == []
        assert len(await store.read_log(2, 1, bytes_max=10_000)) == 10
        assert 1 not in store.sizes()
        assert 1 not in store.partition_bytes()
        store = await kind.crash()
    await store.commit(content(1))
    await store.commit(Batch(drops=[3, 3]))
    for _ in range(2):
        assert await log_of(store, 1) == PartitionLog(1, 9, [(4, 1), (5, 9)], 1, 10, 8, 77)
        assert len(await store.read_log(1, 1, bytes_max=10_000)) == 10
        assert store.sizes()[1].rows == 60
        store = await kind.reopen()


# --- some partitions only ---
@deferred
async def test_questions_about_some_partitions(store: Store) -> None:
    rows = [
        birth(
            f"t{n:03}", partition=n % 5, state=n % 4, queue=f"q{n % 3}", run_at_us=1000 - n, ended_us=n * (n % 4 == 3)
        )
        for n in range(200)
    ]
    tombstones = [Tombstone(f"g{n}", n % 5, b"h", n) for n in range(50)]
    await store.commit(Batch(rows=rows, tombstones=tombstones))
    for wanted in ({1}, {0, 3}, {0, 1, 2, 3, 4}, {7}, set[int](), None):

        def mine(things: Any, wanted: set[int] | None = wanted) -> list[Any]:
            return [thing for thing in things if wanted is None or thing.partition in wanted]

        totals: dict[tuple[int, str, int], int] = {}
        for row in mine(rows):
            totals[row.partition, row.queue, row.state] = totals.get((row.partition, row.queue, row.state), 0) + 1
        counted = [(*key, n) for key, n in sorted(totals.items())]
        assert await store.counts(wanted) == counted
        for first in State:
            assert await store.counts(wanted, from_state=first) == [one for one in counted if one[2] >= first]
        found = []
        after = None
        while part := await store.open_rows(after, 7, wanted):
            found += part
            after = (part[-1].state, part[-1].id)
        expected = sorted((row.state, row.id) for row in mine(rows) if row.state < 3)
        assert [(row.state, row.id) for row in found] == expected
        ended = sorted((row.ended_us, row.id) for row in mine(rows) if 0 < row.ended_us < 150)
        assert [(r.ended_us, r.id) for r in await store.ended_before(150, 9, wanted)] == ended[:9]
        assert await store.tombstones_before(40, 6, wanted) == mine(tombstones[:40])[:6]
        oldest: dict[str, int] = {}
        for row in mine(rows):
            if row.state == State.PENDING:
                oldest[row.queue] = min(row.run_at_us, oldest.get(row.queue, row.run_at_us))
        assert await store.oldest_pending(wanted) == dict(sorted(oldest.items()))


@deferred
async def test_sizes_follow_every_commit(store: Store, kind: StoreKind) -> None:
    assert store.sizes() == {}
    await store.commit(Batch(rows=[birth("t", partition=1, spec=bytes(5_000), body=bytes(100))], applied={1: 1}))
    await store.commit(Batch(rows=[birth("u", partition=1, spec=b"", body=b"")], applied={1: 2}))
    one = store.sizes()[1]
    assert one.rows == 2
    assert 5_100 < one.bytes < 5_600
    await store.commit(Batch(rows=[change("t", 2, partition=1, body=bytes(1_100))], applied={1: 3}))
    assert store.sizes()[1] == PartitionSize(2, 0, one.bytes + 1_000)
    store = await kind.crash()
    assert store.sizes() == {1: PartitionSize(2, 0, one.bytes + 1_000)}
    tombstone = Tombstone("t", 1, bytes(32), 5)
    await store.commit(Batch(deletes=[RowDelete("t", 2)], tombstones=[tombstone], applied={1: 4}))
    two = store.sizes()[1]
    assert (two.rows, two.tombstones) == (1, 1)
    assert two.bytes < 400
    assert store.partition_bytes() == {1: two.bytes}
    await store.commit(Batch(forgets=["t", "nobody"], deletes=[RowDelete("u", 1)], applied={1: 5}))
    assert store.sizes() == {}
    store = await kind.reopen()
    assert store.sizes() == {}
