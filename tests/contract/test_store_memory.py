"""What a simulation does with the model: when things become durable, and what a crash leaves."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.support.stores import ROWS_PER_NUMBERED, birth, change, numbered
from tq_node.errors import Divergence, StoreBroken
from tq_node.store.api import Batch, RowQuery
from tq_node.store.memory import MemoryStore


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


def test_a_divergence_is_told_to_its_batch() -> None:
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
