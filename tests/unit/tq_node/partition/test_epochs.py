from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_node.errors import Divergence
from tq_node.partition.epochs import EpochTable, common_prefix


def table_of(epochs: list[int]) -> EpochTable:
    table = EpochTable()
    for sequence, epoch in enumerate(epochs, 1):
        if epoch != table.last_epoch:
            table.append(epoch, sequence)
    return table


def test_a_table_knows_the_epoch_of_each_position() -> None:
    table = table_of([1, 1, 3, 3, 4])
    assert [table.at(sequence) for sequence in range(7)] == [0, 1, 1, 3, 3, 4, 4]
    assert (table.last_epoch, len(table), table.runs) == (4, 3, ((1, 1), (3, 3), (4, 5)))
    assert EpochTable().last_epoch == 0


def test_cut_and_trim() -> None:
    table = table_of([1, 1, 3, 3, 4])
    table.cut_after(4)
    assert table.runs == ((1, 1), (3, 3))
    table.trim(2)
    assert table.runs == ((1, 1), (3, 3)), "the epoch of the last entry that was trimmed stays known"
    table.trim(3)
    assert list(table.runs) == [(3, 3)]


def test_epochs_ascend() -> None:
    table = table_of([2, 2])
    with pytest.raises(AssertionError, match="ascend"):
        table.append(2, 3)
    with pytest.raises(AssertionError, match="barrier"):
        table.append(3, 1)


def test_r15_the_newest_epoch_of_the_primary_is_open_ended() -> None:
    """A ``Sync`` that is older than what came after it cuts nothing."""
    assert common_prefix(table_of([1, 2, 2, 2]), 4, table_of([1, 2])) == 4


def test_r15_kip_101_not_the_commit_mark_decides() -> None:
    """KIP-101's first scenario: what the follower has beyond its mark may be committed, and is the leader's."""
    assert common_prefix(table_of([1, 1]), 2, table_of([1, 1, 2])) == 2


def test_r15_kip_279_an_epoch_that_the_primary_never_saw_is_cut() -> None:
    assert common_prefix(table_of([1, 1, 2]), 3, table_of([1, 1, 1, 3])) == 2
    assert common_prefix(table_of([2]), 1, table_of([3])) is None


def test_i6_an_epoch_begins_at_one_place() -> None:
    with pytest.raises(Divergence, match="I6"):
        common_prefix(table_of([1, 2]), 2, table_of([1, 1, 2]))


@given(st.data())
def test_r15_is_the_naive_comparison(data: st.DataObject) -> None:
    """Two logs that share a prefix and then go on in epochs of their own: the last position with equal epochs."""
    shared = sorted(data.draw(st.lists(st.integers(1, 5), max_size=8)))
    last = shared[-1] if shared else 0
    mine = shared + sorted(data.draw(st.lists(st.sampled_from([last, 10, 12]), max_size=5)))
    theirs = shared + sorted(data.draw(st.lists(st.sampled_from([last, 11, 13]), max_size=5))) + [20]
    mine, theirs = [e for e in mine if e], [e for e in theirs if e]
    naive = 0
    for sequence in range(1, min(len(mine), len(theirs)) + 1):
        if mine[sequence - 1] == theirs[sequence - 1]:
            naive = sequence
    assert (common_prefix(table_of(mine), len(mine), table_of(theirs)) or 0) == naive
