from __future__ import annotations

import pytest

from tests.support.lifecycle import spec
from tq_node.errors import Divergence
from tq_node.partition import lifecycle
from tq_node.partition.apply_queue import ApplyQueue
from tq_node.partition.entries import (
    DeleteTombstone,
    EpochStart,
    Horizon,
    Put,
    encode_spec,
    put_born,
    put_changed,
    tombstone_of,
)
from tq_node.types import TaskRow, Token


def born(task_id: str = "t") -> TaskRow:
    return lifecycle.born(spec(task_id), 0, 0)


def claimed(row: TaskRow) -> TaskRow:
    return lifecycle.transition(row, lifecycle.Claim(1, Token(1, 2), "n"))


def test_birth_and_changes_fold_into_one_row() -> None:
    row, waiting = born(), ApplyQueue()
    waiting.add(0, 1, [put_born(row)])
    waiting.add(0, 2, [put_changed(row, claimed(row))])
    assert len(waiting) == 1
    taken = waiting.take(1)
    [(partition, fold)] = taken.rows
    assert (partition, fold.stored_rev, fold.rev) == (0, 0, 2)
    assert fold.spec == encode_spec(row.spec)
    assert taken.applied == {0: 2}
    assert (waiting.rows, waiting.bytes, waiting.has_any) == (0, 0, False)


def test_a_change_of_a_stored_row_expects_its_revision() -> None:
    row, waiting = born(), ApplyQueue()
    waiting.add(0, 5, [put_changed(row, claimed(row))])
    [(_, fold)] = waiting.take(1).rows
    assert (fold.stored_rev, fold.rev, fold.spec) == (1, 2, None)


def test_born_and_buried_in_between_leaves_only_the_tombstone() -> None:
    row, waiting = born(), ApplyQueue()
    waiting.add(0, 1, [put_born(row), tombstone_of(row, 77)])
    taken = waiting.take(1)
    assert (taken.rows, taken.deletes) == ([], [])
    assert [t.at_us for _, t in taken.tombstones] == [77]
    assert (waiting.rows, waiting.bytes) == (0, 0)


def test_buried_from_the_store() -> None:
    row, waiting = born(), ApplyQueue()
    waiting.add(4, 9, [tombstone_of(row, 77)])
    taken = waiting.take(1)
    assert taken.deletes == [("t", 1)]
    assert taken.applied == {4: 9}


def test_tombstones_and_horizons() -> None:
    waiting = ApplyQueue()
    waiting.add(1, 3, [EpochStart(1), Horizon(5), Horizon(4), DeleteTombstone("old")])
    taken = waiting.take(1)
    assert (taken.horizons, taken.forgets, taken.applied) == ({1: 5}, ["old"], {1: 3})


def test_a_revision_that_does_not_follow_is_a_divergence() -> None:
    row, waiting = born(), ApplyQueue()
    put = put_born(row)
    waiting.add(0, 1, [put])
    wrong = Put(put.id, 7, 8, 1, 2, 0, 0, b"")
    with pytest.raises(Divergence, match="expects 7"):
        waiting.add(0, 2, [wrong])
    with pytest.raises(Divergence, match="tombstone"):
        waiting.add(0, 2, [tombstone_of(claimed(row), 0)])


def test_a_slice_takes_whole_partitions_the_oldest_first() -> None:
    waiting = ApplyQueue()
    for partition in (5, 2, 9):
        waiting.add(partition, 1, [put_born(born(f"{partition}-{n}")) for n in range(3)])
    waiting.add(5, 2, [put_born(born("5-late"))])
    assert list(waiting.sequences().items()) == [(5, 2), (2, 1), (9, 1)]
    assert waiting.take(4).applied == {5: 2}
    assert waiting.take(4).applied == {2: 1, 9: 1}
    assert waiting.take(4).applied == {}


def test_a_slice_ends_with_the_partition_that_fills_it_by_bytes() -> None:
    waiting = ApplyQueue()
    for partition in (5, 2, 9):
        waiting.add(partition, 1, [put_born(born(f"{partition}-{n}")) for n in range(3)])
    one = waiting.bytes // 3
    assert waiting.take(100, one).applied == {5: 1}
    assert waiting.take(100, one + 1).applied == {2: 1, 9: 1}


def test_an_id_does_not_come_back_before_its_grave_is_written() -> None:
    row, waiting = born(), ApplyQueue()
    waiting.add(0, 1, [tombstone_of(row, 7), DeleteTombstone("t")])
    with pytest.raises(Divergence, match="buried"):
        waiting.add(0, 2, [put_born(row)])
