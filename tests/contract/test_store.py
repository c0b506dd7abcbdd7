"""One suite over every implementation of the Store."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults

from tests.support.stores import MemoryKind, SqliteKind, StoreKind, birth, change, group_writer, record
from tq_node.errors import Divergence, StoreBroken
from tq_node.partition.entries import decode_spec, encode_spec
from tq_node.store.api import (
    Batch,
    ConsensusRecord,
    ConsensusWrite,
    MadeRow,
    OpenRow,
    PartitionLog,
    RowDelete,
    RowPage,
    RowQuery,
    RowWrite,
    Store,
    StoredRow,
    Tombstone,
)
from tq_node.store.sqlite.open_database import connect_writer
from tq_node.store.sqlite.paging import page
from tq_node.types import Backoff, State, TaskId, TaskSpec

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


# --- the log ---
@deferred
async def test_a_new_store_is_empty(store: Store) -> None:
    assert store.meta() == {}
    assert await store.partitions() == []
    assert await store.read_log(3, 1, bytes_max=1000) == []
    assert await store.lookup(["a"]) == {}
    assert await store.page(RowQuery()) == RowPage([], None)
    assert await store.counts() == []
    assert await store.open_rows(None, 10) == []
    assert await store.ended_before(1 << 60, 10) == []
    assert await store.tombstones_before(1 << 60, 10) == []
    assert await store.oldest_pending() == {}
    assert store.disk_free_bytes() > 0
    await store.commit(Batch())


@deferred
async def test_records_are_read_in_order_and_within_the_bound(store: Store, kind: StoreKind) -> None:
    mine = [record(4, sequence, payload=bytes(100)) for sequence in range(1, 11)]
    others = [record(5, sequence) for sequence in range(1, 11)]
    await store.commit(Batch(entries=[entry for pair in zip(mine, others, strict=True) for entry in pair]))
    for _ in range(2):
        assert await store.read_log(4, 1, bytes_max=10_000) == mine
        assert await store.read_log(4, 3, bytes_max=350) == mine[2:5]
        assert await store.read_log(4, 10, bytes_max=1) == mine[9:], "at least one"
        assert await store.read_log(4, 11, bytes_max=1000) == []
        assert await store.read_log(6, 1, bytes_max=1000) == []
        store = await kind.reopen()


@deferred
async def test_a_long_record_comes_back_whole(store: Store) -> None:
    entry = record(0, 1, payload=random.Random(1).randbytes(1_100_000))
    await store.commit(Batch(entries=[entry]))
    assert await store.read_log(0, 1, bytes_max=10) == [entry]


@deferred
async def test_the_end_of_an_empty_log_is_not_forgotten(store: Store, kind: StoreKind) -> None:
    await store.commit(Batch(entries=[record(1, s) for s in (1, 2, 3)], epochs=[(1, 1, 1)], promises={1: 1}))
    await store.commit(Batch(applied={1: 3}, trim={1: 3}))
    expected = PartitionLog(1, 1, [(1, 1)], log_start=4, last_sequence=3, applied=3, horizon_us=0)
    assert await store.partitions() == [expected]
    store = await kind.reopen()
    assert await store.partitions() == [expected]
    assert await store.read_log(1, 1, bytes_max=1000) == []
    await store.commit(Batch(entries=[record(1, 4)]))
    assert await store.read_log(1, 4, bytes_max=1000) == [record(1, 4)]


@deferred
async def test_trimming_stops_at_what_is_applied_and_touches_no_other_partition(store: Store, kind: StoreKind) -> None:
    await store.commit(Batch(entries=[record(p, s) for s in (1, 2, 3, 4) for p in (1, 2)]))
    await store.commit(Batch(applied={1: 2}, trim={1: 4, 2: 4}))
    for _ in range(2):
        assert [(log.log_start, log.last_sequence) for log in await store.partitions()] == [(3, 4), (1, 4)]
        assert await store.read_log(1, 2, bytes_max=1000) == []
        assert await store.read_log(1, 3, bytes_max=1000) == [record(1, 3), record(1, 4)]
        assert len(await store.read_log(2, 1, bytes_max=1000)) == 4
        store = await kind.reopen()


@deferred
async def test_applied_past_an_empty_log_moves_the_log_there(store: Store, kind: StoreKind) -> None:
    """A snapshot's place: the next record follows it."""
    await store.commit(Batch(applied={7: 100}, epochs=[(7, 3, 90)]))
    for _ in range(2):
        assert await store.partitions() == [PartitionLog(7, 0, [(3, 90)], 101, 100, 100, 0)]
        store = await kind.reopen()
    await store.commit(Batch(entries=[record(7, 101)]))


@deferred
async def test_what_only_grows_is_never_lowered(store: Store) -> None:
    await store.commit(Batch(promises={1: 7}, horizons={1: 500}))
    await store.commit(Batch(promises={1: 6}, horizons={1: 400}))
    (log,) = await store.partitions()
    assert (log.promised, log.horizon_us) == (7, 500)


@deferred
async def test_epochs_begin_with_the_one_that_covers_the_logs_start(store: Store, kind: StoreKind) -> None:
    records = [record(1, s) for s in range(1, 10)]
    await store.commit(Batch(entries=records, epochs=[(1, 1, 1), (1, 2, 4), (1, 5, 8)]))
    await store.commit(Batch(applied={1: 6}, trim={1: 6}))
    for _ in range(3):
        assert (await store.partitions())[0].epochs == [(2, 4), (5, 8)]
        store = await kind.reopen()


@pytest.mark.parametrize(
    "batch",
    [
        Batch(entries=[record(1, 4)]),
        Batch(entries=[record(1, 2)]),
        Batch(applied={1: 1}),
        Batch(applied={1: 3}),
        Batch(epochs=[(1, 1, 1)]),
        Batch(rows=[birth("t")]),
        Batch(rows=[change("t", 3)]),
        Batch(rows=[change("t", 3), change("u", 2)]),
        Batch(rows=[change("nobody", 2)]),
        Batch(rows=[RowWrite("t2", 0, 0, 1, 1, 0, 0, b"")]),
        Batch(deletes=[RowDelete("t", 2)]),
        Batch(deletes=[RowDelete("nobody", 1)]),
    ],
    ids=lambda batch: str(msgspec.structs.asdict(batch).get("rows") or batch)[:60],
)
@deferred
async def test_what_does_not_follow_ends_the_store(store: Store, kind: StoreKind, batch: Batch) -> None:
    await store.commit(
        Batch(entries=[record(1, 1), record(1, 2)], applied={1: 2}, epochs=[(1, 1, 1)], rows=[birth("t"), birth("u")])
    )
    batch.meta = {"seen": b"1"}
    refused, behind = store.commit(batch), store.commit(Batch(meta={"behind": b"1"}))
    assert isinstance(await failure_of(refused), Divergence)
    assert isinstance(await failure_of(behind), Divergence | StoreBroken)
    for answer in (store.commit(Batch()), store.lookup(["t"]), store.partitions(), store.counts()):
        assert isinstance(await failure_of(answer), StoreBroken)
    assert [type(why) for why in kind.broken] == [Divergence], "told once"
    if kind.name == "sqlite":
        store = await kind.reopen()
        assert store.meta() == {}, "nothing of the batch, nothing behind it"
        assert (await store.lookup(["t"]))["t"].partition == 0


# --- rows ---
@deferred
async def test_the_newest_time_is_that_of_a_birth_or_an_end(store: Store) -> None:
    assert await store.newest_us() == 0
    await store.commit(Batch(rows=[birth("a", created_us=50), birth("b", created_us=70)], applied={0: 1}))
    assert await store.newest_us() == 70
    await store.commit(Batch(rows=[change("a", 2, State.COMPLETED, ended_us=90)], applied={0: 1}))
    assert await store.newest_us() == 90


def raft(*places: tuple[int, int]) -> list[ConsensusRecord]:
    return [ConsensusRecord(index, term, 0, b"%d.%d" % (index, term)) for index, term in places]


@deferred
async def test_the_raft_log_is_replaced_from_its_first_record_on_and_cut_from_below(
    store: Store, kind: StoreKind
) -> None:
    await store.commit(Batch(consensus=[ConsensusWrite(raft((1, 1), (2, 1), (3, 1)))]))
    await store.commit(
        Batch(
            consensus=[ConsensusWrite(raft((4, 1))), ConsensusWrite(raft((3, 2), (4, 2)), cut_below=2)],
            meta={"raft.hard_state": b"2"},
        )
    )
    assert await store.consensus_log() == raft((2, 1), (3, 2), (4, 2))
    store = await kind.reopen()
    assert await store.consensus_log() == raft((2, 1), (3, 2), (4, 2))
    await store.commit(Batch(consensus=[ConsensusWrite(raft((9, 4)), replace_all=True)]))
    assert await store.consensus_log() == raft((9, 4))
    await store.commit(Batch(consensus=[ConsensusWrite(replace_all=True)]))
    assert await store.consensus_log() == []


@deferred
async def test_a_row_is_born_changed_and_deleted(store: Store, kind: StoreKind) -> None:
    await store.commit(Batch(rows=[birth("t", partition=3, body=b"1")]))
    assert await store.lookup(["t", "u"]) == {"t": StoredRow("t", 3, 1, State.PENDING, 100, 0, b"spec", b"1")}
    await store.commit(Batch(rows=[change("t", 2, body=b"2", partition=3)]))
    await store.commit(Batch(rows=[change("t", 3, State.SCHEDULED, body=b"3", run_at_us=777, partition=3)]))
    expected = StoredRow("t", 3, 3, State.SCHEDULED, 777, 0, b"spec", b"3")
    assert await store.lookup(["t"]) == {"t": expected}
    store = await kind.reopen()
    assert await store.lookup(["t"]) == {"t": expected}
    await store.commit(Batch(rows=[change("t", 4, State.COMPLETED, run_at_us=778, ended_us=9, partition=3)]))
    assert await store.ended_before(10, 5) == [StoredRow("t", 3, 4, State.COMPLETED, 778, 9, b"spec", b"changed")]
    tombstone = Tombstone("t", 3, b"hash", 55)
    await store.commit(Batch(deletes=[RowDelete("t", 4)], tombstones=[tombstone]))
    assert await store.lookup(["t"]) == {"t": tombstone}
    assert await store.tombstones_before(56, 5) == [tombstone]
    assert await store.tombstones_before(55, 5) == []
    store = await kind.reopen()
    assert await store.lookup(["t"]) == {"t": tombstone}
    await store.commit(Batch(forgets=["t"]))
    assert await store.lookup(["t"]) == {}
    await store.commit(Batch(rows=[birth("t")]))


@deferred
async def test_batches_on_one_task_that_wait_together_keep_their_order(store: Store) -> None:
    batches = [
        Batch(rows=[birth("t"), birth("u")]),
        Batch(rows=[change("t", 2)]),
        Batch(rows=[change("t", 3, State.COMPLETED, ended_us=5)]),
        Batch(deletes=[RowDelete("t", 3)], tombstones=[Tombstone("t", 0, b"h", 1)]),
        Batch(forgets=["t"]),
        Batch(rows=[birth("t", rev=9, body=b"again")]),
        Batch(rows=[change("u", 2)]),
    ]
    fired: list[int] = []
    for number, batch in enumerate(batches):
        store.commit(batch).addCallback(lambda _, number: fired.append(number), number)
    await store.commit(Batch())
    assert fired == list(range(len(batches)))
    found = await store.lookup(["t", "u"])
    assert [(row.rev, row.body) for row in found.values() if isinstance(row, StoredRow)] == [
        (9, b"again"),
        (2, b"changed"),
    ]


@deferred
async def test_thousands_of_rows_in_one_batch(store: Store) -> None:
    ids = [f"t{n:05}" for n in range(2_500)]
    await store.commit(Batch(rows=[birth(i, run_at_us=n) for n, i in enumerate(ids)]))
    # Every third has another run_at_us than before, which the fast path does not expect of a running task.
    rows = [change(i, 2, run_at_us=n if n % 3 else n + 1) for n, i in enumerate(ids)]
    await store.commit(Batch(rows=rows))
    found = await store.lookup(ids)
    assert [found[i].run_at_us for i in ids] == [row.run_at_us for row in rows]  # type: ignore[union-attr]
    assert await store.counts() == [(0, "default", State.PROCESSING, 2_500)]
    await store.commit(Batch(deletes=[RowDelete(i, 2) for i in ids], tombstones=[Tombstone(i, 0, b"", 1) for i in ids]))
    assert len(await store.tombstones_before(2, 10_000)) == 2_500
    await store.commit(Batch(forgets=ids))
    assert await store.lookup(ids) == {}


@deferred
async def test_long_and_empty_specs_and_bodies(store: Store, kind: StoreKind) -> None:
    sizes = [0, 1, 2_048, 2_049, 1_000_000]
    blob = random.Random(2).randbytes(1_000_000)
    await store.commit(Batch(rows=[birth(f"t{n}", spec=blob[:n], body=blob[:n]) for n in sizes]))
    await store.commit(Batch(rows=[change(f"t{n}", 2, body=blob[: n // 2]) for n in sizes]))
    store = await kind.reopen()
    found = await store.lookup([f"t{n}" for n in sizes])
    assert all(found[f"t{n}"] == StoredRow(f"t{n}", 0, 2, 2, 100, 0, blob[:n], blob[: n // 2]) for n in sizes)
    await store.commit(Batch(deletes=[RowDelete(f"t{n}", 2) for n in sizes]))
    assert await store.lookup([f"t{n}" for n in sizes]) == {}
    await store.commit(Batch(rows=[birth(f"t{n}", spec=blob[:n][::-1]) for n in sizes]))
    assert (await store.page(RowQuery())).rows[0].spec == b""


@deferred
async def test_ids_of_any_letters(store: Store) -> None:
    ids = ["ä", "a b", 'q"uote', "back\\slash", "\U0001f600", "%", "_", "'", "nl\n", "NULL", "1"]
    await store.commit(Batch(rows=[birth(i, queue=i, type=i) for i in ids]))
    assert set(await store.lookup(ids)) == set(ids)
    assert [row.id for row in (await store.page(RowQuery())).rows] == sorted(ids)
    assert [row.id for row in (await store.page(RowQuery(text="%"))).rows] == ["%"]
    assert [row.id for row in (await store.page(RowQuery(queues=frozenset(["'"])))).rows] == ["'"]
    assert sorted(queue for _, queue, _, _ in await store.counts()) == sorted(ids)
    await store.commit(Batch(deletes=[RowDelete(i, 1) for i in ids]))
    assert await store.lookup([*ids, "\ud800"]) == {}
    await store.page(RowQuery(text="\ud800", queues=frozenset(["\ud800"]), after=(0, "\ud800")))


@deferred
async def test_a_lookup_sees_what_was_durable_when_it_was_asked(store: Store) -> None:
    seen: list[int] = []
    for n in range(1, 30):
        await store.commit(Batch(rows=[birth("t") if n == 1 else change("t", n)]))
        answers = [store.lookup(["t", "u"]), store.lookup(["u"]), store.lookup(["t"])]
        found = await gatherResults(answers)
        assert found[1] == {}
        seen += [row.rev for row in (found[0]["t"], found[2]["t"]) if isinstance(row, StoredRow)]
    assert seen == sorted([*range(1, 30)] * 2)


@deferred
async def test_named_values(store: Store, kind: StoreKind) -> None:
    done = store.commit(Batch(meta={"a": b"1", "b": b""}))
    await done
    assert store.meta() == {"a": b"1", "b": b""}
    store.meta()["c"] = b"the caller's own copy"
    await store.commit(Batch(meta={"a": None, "b": b"2", "never": None}))
    assert store.meta() == {"b": b"2"}
    assert (await kind.reopen()).meta() == {"b": b"2"}


@deferred
async def test_open_rows_come_in_pages_by_state_and_id(store: Store) -> None:
    states = [State.PENDING, State.SCHEDULED, State.PROCESSING, State.COMPLETED, State.FAILED, State.CANCELLED]
    rows = [
        birth(f"t{n:03}", state=states[n % 6], partition=n % 4, queue=f"q{n % 3}", priority=n % 10, run_at_us=1000 - n)
        for n in range(120)
    ]
    await store.commit(Batch(rows=rows))
    found: list[OpenRow] = []
    after = None
    while part := await store.open_rows(after, 7):
        assert len(part) <= 7
        found += part
        after = (part[-1].state, part[-1].id)
    expected = sorted((row for row in rows if row.state < 3), key=lambda row: (row.state, row.id))
    assert found == [OpenRow(r.id, r.partition, r.state, r.queue, r.priority, r.run_at_us, r.type) for r in expected]


@deferred
async def test_who_made_what_is_open_comes_in_the_same_pages(store: Store) -> None:
    def spec(number: int) -> bytes:
        # Long ones lie in a place of their own; who made nothing has no such value.
        payload = b'"%b"' % (b"x" * (20_000 if number % 5 == 0 else 5))
        made_by = ("", "ann", "a-name-of-fifty-characters-" + "x" * 23)[number % 3]
        return encode_spec(
            TaskSpec(TaskId(f"t{number:03}"), "email", payload, "q", 5, 1, 0, Backoff(), None, 50, b"hash", made_by)
        )

    rows = [
        birth(f"t{n:03}", state=list(State)[n % 6], partition=n % 4, queue=f"q{n % 3}", spec=spec(n)) for n in range(60)
    ]
    await store.commit(Batch(rows=rows))
    for partitions in (None, [1, 2]):
        found: list[MadeRow] = []
        after = None
        while part := await store.open_makers(after, 7, partitions):
            assert len(part) <= 7
            found += part
            after = (part[-1].state, part[-1].id)
        mine = [row for row in rows if row.state < 3 and (partitions is None or row.partition in partitions)]
        assert found == [
            MadeRow(r.id, r.partition, r.state, r.queue, decode_spec(r.spec or b"").made_by)
            for r in sorted(mine, key=lambda row: (row.state, row.id))
        ]
        assert {row.made_by[:3] for row in found} == {"", "ann", "a-n"}


@deferred
async def test_what_retention_and_metrics_ask(store: Store) -> None:
    rows = [birth(f"p{n}", queue=f"q{n % 3}", run_at_us=500 - n) for n in range(9)]
    rows += [birth("later", queue="q9", state=State.SCHEDULED, run_at_us=1)]
    rows += [birth(f"e{n}", state=State.COMPLETED, ended_us=100 - n, queue="q7", run_at_us=1) for n in range(5)]
    await store.commit(Batch(rows=rows, tombstones=[Tombstone(f"g{n}", 1, b"%d" % n, 50 - n) for n in range(5)]))
    assert await store.oldest_pending() == {"q0": 494, "q1": 493, "q2": 492}
    assert [row.id for row in await store.ended_before(99, 2)] == ["e4", "e3"]
    assert [row.id for row in await store.ended_before(99, 9)] == ["e4", "e3", "e2"]
    assert [(t.id, t.content_hash) for t in await store.tombstones_before(50, 3)] == [
        ("g4", b"4"),
        ("g3", b"3"),
        ("g2", b"2"),
    ]
    counted = {(0, f"q{n}", 1): 3 for n in range(3)} | {(0, "q7", 3): 5, (0, "q9", 0): 1}
    assert {(p, q, s): rows for p, q, s, rows in await store.counts()} == counted


# --- damage, ends ---
@deferred
async def test_damage_to_a_row_is_found_when_it_is_read(store: Store, kind: StoreKind) -> None:
    await store.commit(Batch(rows=[birth("t", body=b"a body to be damaged"), birth("u")]))
    store = await kind.damage(b"a body to be damaged")
    assert set(await store.lookup(["u"])) == {"u"}
    assert isinstance(await failure_of(store.lookup(["u", "t"])), StoreBroken)
    assert len(kind.broken) == 1
    assert isinstance(await failure_of(store.commit(Batch())), StoreBroken)
    assert isinstance(await failure_of(store.lookup(["u"])), StoreBroken)


@deferred
async def test_damage_to_a_spec_is_found_in_a_page(store: Store, kind: StoreKind) -> None:
    await store.commit(Batch(rows=[birth("t", spec=b"a spec to be damaged"), birth("u")]))
    store = await kind.damage(b"a spec to be damaged")
    assert isinstance(await failure_of(store.page(RowQuery())), StoreBroken)
    assert len(kind.broken) == 1


@deferred
async def test_damage_to_a_record_is_found_when_it_is_read(store: Store, kind: StoreKind) -> None:
    """F10: never taken for the end of the log."""
    await store.commit(Batch(entries=[record(1, 1), record(1, 2, payload=b"a record to be damaged"), record(1, 3)]))
    store = await kind.damage(b"a record to be damaged")
    assert len(await store.read_log(1, 1, bytes_max=1)) == 1
    assert isinstance(await failure_of(store.read_log(1, 1, bytes_max=1000)), StoreBroken)
    assert len(kind.broken) == 1


@deferred
async def test_a_caller_who_gives_up_harms_nobody(store: Store) -> None:
    given_up: list[Deferred[Any]] = [
        store.commit(Batch(rows=[birth("t")])),
        store.lookup(["t"]),
        store.page(RowQuery()),
    ]
    for answer in given_up:
        answer.addErrback(lambda _: None)
        answer.cancel()
    await store.commit(Batch(rows=[birth("u")]))
    assert set(await store.lookup(["t", "u"])) == {"t", "u"}


@deferred
async def test_closing_finishes_what_was_accepted(store: Store, kind: StoreKind) -> None:
    accepted = [store.commit(Batch(rows=[birth(f"t{n}")])) for n in range(20)]
    await gatherResults([store.close(), *accepted, store.close()])
    assert isinstance(await failure_of(store.commit(Batch())), StoreBroken)
    assert isinstance(await failure_of(store.lookup(["t0"])), StoreBroken)
    await store.close()
    assert kind.broken == [], "an end in order is no failure"
    store = await kind.reopen()
    assert len((await store.page(RowQuery())).rows) == 20


# --- pages ---
ROWS = [
    birth(
        f"{draw.choice(['task', 'Mail', 'ä'])}-{n:03}",
        partition=n % 5,
        state=draw.choice([0, 1, 1, 2, 3, 3, 3, 3, 4, 5]),
        type=draw.choice(["email", "Resize", "x"]),
        queue=draw.choice(["default", "slow", "other"]),
        priority=draw.randrange(3),
        created_us=draw.randrange(40),
        run_at_us=draw.randrange(1000),
        spec=draw.randbytes(draw.choice([3, 50, 3_000])),
        body=draw.randbytes(20),
    )
    for draw in [random.Random(11)]
    for n in range(300)
]


Ask = Callable[[RowQuery], RowPage]


@pytest.fixture(scope="module")
def ask_memory() -> Ask:
    store = MemoryKind().open()
    store.commit(Batch(rows=ROWS))
    return lambda query: result_of(store.page(query))


@pytest.fixture(scope="module")
def ask_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """What the store's thread runs, without the thread and the reactor: Hypothesis knows neither."""
    connection = connect_writer(tmp_path_factory.mktemp("store") / "pages")
    group_writer(connection).write([Batch(rows=ROWS)])
    yield lambda query: page(connection, query)
    connection.close()


def result_of(answer: Deferred[RowPage]) -> RowPage:
    results: list[RowPage] = []
    answer.addCallback(results.append)
    return results[0]


def some_of(*values: Any) -> st.SearchStrategy[frozenset[Any] | None]:
    return st.none() | st.frozensets(st.sampled_from(values))


queries = st.builds(
    RowQuery,
    states=some_of(0, 1, 2, 3, 4, 5),
    states_not=st.booleans(),
    types=some_of("email", "Resize", "x", "absent"),
    types_not=st.booleans(),
    queues=some_of("default", "slow", "other", "absent"),
    queues_not=st.booleans(),
    partitions=some_of(0, 1, 2, 3, 4),
    text=st.none() | st.sampled_from(["TASK", "mail", "1", "-29", "size", "", "ä", "Ä", "%"]),
    sort=st.sampled_from(["id", "created_at", "run_at", "priority"]),
    descending=st.booleans(),
    limit=st.integers(1, 400),
    scan_rows_max=st.integers(1, 400),
    bytes_max=st.sampled_from([1, 100, 5_000, 1 << 30]),
)


def ascii_lower(text: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


def wanted(query: RowQuery) -> list[RowWrite]:
    """Every row that the query means, sorted, by the words of the contract."""

    def is_wanted(row: RowWrite) -> bool:
        for value, chosen, negated in (
            (row.state, query.states, query.states_not),
            (row.type, query.types, query.types_not),
            (row.queue, query.queues, query.queues_not),
            (row.partition, query.partitions, False),
        ):
            if chosen is not None and (value in chosen) == negated:
                return False
        text = ascii_lower(query.text or "")
        return text in ascii_lower(row.id) or text in ascii_lower(row.type)

    value: dict[str, Callable[[RowWrite], int]] = {
        "id": lambda r: 0,
        "created_at": lambda r: r.created_us,
        "run_at": lambda r: r.run_at_us,
        "priority": lambda r: r.priority,
    }
    return sorted(filter(is_wanted, ROWS), key=lambda row: (value[query.sort](row), row.id), reverse=query.descending)


# Two tests, not one with parameters: pytest-twisted wraps a Hypothesis test anew for each parameter.
@given(query=queries)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_of_memory_one_after_another_are_all_that_is_wanted(ask_memory: Ask, query: RowQuery) -> None:
    check_pages(ask_memory, query)


@given(query=queries)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_of_sqlite_one_after_another_are_all_that_is_wanted(ask_sqlite: Ask, query: RowQuery) -> None:
    check_pages(ask_sqlite, query)


def check_pages(ask: Ask, query: RowQuery) -> None:
    found: list[StoredRow] = []
    while True:
        part = ask(query)
        assert len(part.rows) <= query.limit
        assert sum(len(row.spec) + len(row.body) for row in part.rows[:-1]) <= query.bytes_max
        found += part.rows
        if part.next is None:
            break
        assert part.next != query.after
        if query.states is None:
            assert part.rows or query.scan_rows_max < len(ROWS)
        query = msgspec.structs.replace(query, after=part.next)
    expected = wanted(query)
    assert [row.id for row in found] == [row.id for row in expected]
    assert [(row.spec, row.body, row.run_at_us) for row in found] == [(r.spec, r.body, r.run_at_us) for r in expected]


@deferred
async def test_a_page_looks_at_so_many_rows_and_no_more(store: Store) -> None:
    await store.commit(Batch(rows=ROWS))
    query = RowQuery(sort="created_at", queues=frozenset(["absent"]), scan_rows_max=100)
    found = await store.page(query)
    looked_at = sorted((row.created_us, row.id) for row in ROWS)[:100]
    assert found == RowPage([], looked_at[-1])


@deferred
async def test_few_of_one_state_are_found_among_many_of_another(store: Store) -> None:
    """By id, rows of other states are not even looked at."""
    await store.commit(Batch(rows=ROWS))
    found = await store.page(RowQuery(states=frozenset([4]), scan_rows_max=100))
    assert found.next is None
    assert {row.state for row in found.rows} == {4}


# --- the two against one another ---
@pytest.mark.parametrize("seed", range(4))
@deferred
async def test_both_implementations_agree(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    memory, sqlite = MemoryKind(), SqliteKind(tmp_path / "data")
    stores: list[Store] = [memory.open(), sqlite.open()]
    lasts: dict[int, int] = {}
    applied: dict[int, int] = {}
    revs: dict[str, int] = {}
    for step in range(60):
        batch = Batch()
        for _ in range(draw.randrange(6)):
            partition = draw.randrange(4)
            lasts[partition] = lasts.get(partition, 0) + 1
            batch.entries.append(
                record(partition, lasts[partition], payload=draw.randbytes(draw.choice([5, 300, 9_000])))
            )
        for partition, last in lasts.items():
            if draw.random() < 0.3:
                applied[partition] = draw.randint(applied.get(partition, 0), last)
                batch.applied[partition] = applied[partition]
            if draw.random() < 0.2:
                batch.trim[partition] = draw.randint(0, last)
            if draw.random() < 0.1:
                batch.promises[partition] = draw.randrange(20)
                batch.horizons[partition] = draw.randrange(1000)
        for task_id in {f"t{draw.randrange(60)}" for _ in range(draw.randrange(20))}:
            rev = revs.get(task_id, 0)
            fields: dict[str, Any] = {
                "state": draw.randrange(6), "run_at_us": draw.randrange(5), "ended_us": draw.randrange(3),
                "body": draw.randbytes(draw.choice([0, 10, 5_000])),
            }  # fmt: skip
            if rev and draw.random() < 0.2:
                batch.deletes.append(RowDelete(task_id, rev))
                batch.tombstones.append(Tombstone(task_id, 1, draw.randbytes(4), step))
                del revs[task_id]
                continue
            if rev == 0:
                batch.rows.append(
                    birth(
                        task_id, queue=f"q{draw.randrange(3)}", spec=draw.randbytes(draw.choice([9, 4_000])), **fields
                    )
                )
            else:
                batch.rows.append(change(task_id, rev + 1, **fields))
            revs[task_id] = rev + 1
        batch.forgets = [f"t{draw.randrange(60)}" for _ in range(draw.randrange(3))]
        batch.meta = {draw.choice("abc"): draw.choice([None, draw.randbytes(3)])}
        committed = gatherResults([store.commit(batch) for store in stores])
        if draw.random() < 0.6:
            await committed
        if step % 20 == 19:
            stores = [await memory.reopen(), await sqlite.reopen()]
        if draw.random() < 0.4:
            await stores[1].commit(Batch())
            asks: list[Callable[[Store], Deferred[Any]]] = [
                lambda store: store.partitions(),
                lambda store: store.lookup([f"t{n}" for n in range(60)]),
                lambda store: store.page(RowQuery(sort="priority", descending=True)),
                lambda store: store.counts(),
                lambda store: store.open_rows((0, "t3"), 9),
                lambda store: store.tombstones_before(60, 10),
                lambda store: store.oldest_pending(),
                lambda store: store.read_log(2, 1, bytes_max=9_500),
                lambda store: store.read_log(3, 9, bytes_max=9_500),
            ]
            for ask in asks:
                assert await ask(stores[0]) == await ask(stores[1])
            assert stores[0].meta() == stores[1].meta()
    assert memory.broken == sqlite.broken == []
    await sqlite.close()
