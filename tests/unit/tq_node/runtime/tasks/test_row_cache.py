from __future__ import annotations

import pytest

from tests.support.lifecycle import spec
from tq_node.partition import lifecycle
from tq_node.runtime.tasks.task_table import RowCache, Slot


def add_clean(rows: RowCache, task_id: str) -> Slot:
    slot = rows.add_pinned(task_id, lifecycle.born(spec(task_id), 0, 0), 0)
    rows.unpin(task_id)
    return slot


def test_least_recently_used_goes_first() -> None:
    rows = RowCache(bytes_max=2_500)
    for name in "ab":
        add_clean(rows, name)
    assert rows.get("a") is not None
    add_clean(rows, "c")
    assert rows.get("b") is None
    assert rows.get("a") is not None
    assert rows._clean_bytes <= 2_500


def test_a_dirty_row_stays_until_the_store_shows_its_last_change() -> None:
    rows = RowCache(bytes_max=0)
    row = lifecycle.born(spec("t"), 0, 0)
    rows.add_dirty("t", Slot(0, row, 5))
    rows.applied([("t", 4)])
    assert rows.get("t") is not None
    rows.applied([("t", 5)])
    assert rows.get("t") is None
    rows.applied([("t", 6)])


def test_a_pinned_row_stays() -> None:
    rows = RowCache(bytes_max=0)
    slot = rows.add_pinned("t", lifecycle.born(spec("t"), 0, 0), 0)
    rows.pin("t")
    rows.touch("t", slot, slot.row, 7)
    rows.applied([("t", 7)])
    rows.unpin("t")
    assert rows.get("t") is slot
    rows.unpin("t")
    assert rows.get("t") is None


def test_a_buried_row_goes_when_its_grave_is_written() -> None:
    rows = RowCache()
    slot = add_clean(rows, "t")
    rows.touch("t", slot, None, 3)
    rows.applied([("t", 3)])
    assert rows.get("t") is None
    assert len(rows) == 0


def test_a_row_changes_only_while_it_is_resident() -> None:
    rows = RowCache(bytes_max=0)
    slot = add_clean(rows, "t")
    with pytest.raises(AssertionError, match="resident"):
        rows.touch("t", slot, slot.row, 1)


def test_a_long_story_counts_against_the_bound() -> None:
    rows = RowCache(bytes_max=20_000)
    rows.add_pinned("t", lifecycle.born(spec("t"), 0, 0), 10_000)
    rows.unpin("t")
    assert rows.get("t") is None
