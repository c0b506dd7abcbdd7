"""What a simulation does with the model: when things become durable, and what a crash leaves."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.support.model_store.store import MemoryStore
from tests.support.stores import (
    PARTITIONS_NUMBERED,
    RESHAPING_CYCLE,
    ROWS_PER_NUMBERED,
    birth,
    change,
    numbered,
    reshaping,
)
from tq_node.errors import Divergence, StoreBroken
from tq_node.store.api import Batch, RowQuery, SnapshotLost


def result_of(answer: Deferred[Any]) -> Any:
    results: list[Any] = []
    answer.addBoth(results.append)
    return results[0]


def committed(store: MemoryStore, first: int, last: int) -> list[int]:
    """Commit numbered batches; the list grows as they are acknowledged."""
    said: list[int] = []
    for n in range(first, last + 1):
        store.commit(numbered(n)).addCallback(lambda _, n: said.append(n), n)
    return said


def test_nothing_is_durable_or_seen_before_sync() -> None:
    store = MemoryStore()
    said = committed(store, 1, 5)
    assert (said, store.pending, store.meta()) == ([], 5, {})
    assert store.sync(2) == 2
    assert (said, store.pending, store.meta()) == ([1, 2], 3, {"n": b"2"})
    assert store.sync() == 3
    assert said == [1, 2, 3, 4, 5]
    assert store.sync() == 0


@pytest.mark.parametrize(("keep", "left"), [(0, 3), (1, 4), (4, 7), (None, 8), (99, 8)])
def test_a_crash_keeps_what_is_durable_and_a_prefix_of_the_rest(keep: int | None, left: int) -> None:
    store = MemoryStore()
    said = committed(store, 1, 8)
    store.sync(3)
    after = store.crash(keep)
    assert said == [1, 2, 3], "the dead say nothing"
    assert after.meta() == {"n": str(left).encode()}
    assert len(result_of(after.page(RowQuery())).rows) == left * ROWS_PER_NUMBERED
    assert after.pending == 0
    assert isinstance(result_of(store.commit(Batch())).value, StoreBroken)
    assert isinstance(result_of(store.lookup(["x"])).value, StoreBroken)
    assert store.sync() == 0
    assert committed(after, left + 1, left + 1) == []
    assert after.sync() == 1


@pytest.mark.parametrize("durable", range(2 * RESHAPING_CYCLE + 1))
def test_a_crash_between_any_two_steps_of_a_snapshot_a_cut_or_a_drop(durable: int) -> None:
    """F6: a prefix is there, wholly; what was staged in it and not installed is not."""
    count = 2 * RESHAPING_CYCLE
    for keep in range(count - durable + 1):
        store, model = MemoryStore(), MemoryStore(auto=True)
        for n in range(1, count + 1):
            store.commit(reshaping(n))
        for n in range(1, durable + keep + 1):
            model.commit(reshaping(n))
        assert store.sync(durable) == durable
        after, expected = store.crash(keep), model.crash()
        assert result_of(after.partitions()) == result_of(expected.partitions())
        assert after.sizes() == expected.sizes()
        for partition in range(PARTITIONS_NUMBERED):
            assert result_of(after.digest(partition)) == result_of(expected.digest(partition))
            for first in (1, 41, 45):
                found = result_of(after.read_log(partition, first, bytes_max=1 << 20))
                assert found == result_of(expected.read_log(partition, first, bytes_max=1 << 20))
        second_chunk = after.commit(Batch(stage=reshaping(3).stage[1:2]))
        after.sync()
        assert isinstance(result_of(second_chunk).value, Divergence), "it follows nothing"


def test_a_simulation_loses_snapshots() -> None:
    store = MemoryStore(auto=True)
    store.commit(Batch(rows=[birth("t", partition=1)], applied={1: 1}))
    snapshot = result_of(store.open_snapshot(1))
    store.lose_snapshots()
    assert isinstance(result_of(snapshot.read()).value, SnapshotLost)
    snapshot.close()
    another = result_of(store.open_snapshot(1))
    after = store.crash()
    assert isinstance(result_of(another.read()).value, StoreBroken)
    assert result_of(after.digest(1))[0] == 1


def test_a_failed_sync_is_the_last(logged_errors: Any) -> None:
    """R18, F8."""
    broken: list[Exception] = []
    store = MemoryStore(on_broken=broken.append)
    store.commit(numbered(1))
    store.sync()
    first, second = store.commit(numbered(2)), store.commit(numbered(3))
    why = OSError("sync")
    store.fail_next_sync(why)
    assert store.sync(1) == 0
    assert isinstance(result_of(first).value, StoreBroken)
    assert isinstance(result_of(second).value, StoreBroken)
    assert broken == [why]
    assert isinstance(result_of(store.lookup([])).value, StoreBroken)
    assert store.crash(None).meta() == {"n": b"1"}


def test_a_divergence_fails_its_batch() -> None:
    broken: list[Exception] = []
    store = MemoryStore(auto=True, on_broken=broken.append)
    result_of(store.commit(Batch(rows=[birth("t")])))
    assert isinstance(result_of(store.commit(Batch(rows=[change("t", 5)]))).value, Divergence)
    assert len(broken) == 1


def test_a_simulation_sets_the_free_space() -> None:
    store = MemoryStore(free_bytes=5)
    assert store.crash().disk_free_bytes() == 5
    store.free_bytes = 1
    assert store.disk_free_bytes() == 1
