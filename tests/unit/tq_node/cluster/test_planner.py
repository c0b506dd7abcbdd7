"""Moves as entries (replication.md section 6; F27)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.tq_node.cluster.settling import next_isr
from tests.unit.tq_node.cluster.tables import Table, ids, nid
from tq_node.cluster import commands as c
from tq_node.cluster.refusals import Refusal


@pytest.fixture
def table() -> Table:
    table = Table(6)
    table.forge(0, 1, 2, 3, min_isr=2)
    return table


def smaller(table: Table) -> set[int] | None:
    isr = next_isr(table.entry(), table.map.nodes)
    return None if isr is None else {int(node, 16) for node in isr}


def test_the_five_steps(table: Table) -> None:
    table.do(table.begin((4,), (1,)))
    assert (table.copies(), table.isr(), table.entry().intended) == ({1, 2, 3, 4}, {1, 2, 3}, ids(2, 3, 4))
    assert smaller(table) is None
    table.do(table.alter(1, 2, 3, 4))
    assert smaller(table) is None, "the primary moves away: it has a successor first"
    table.do(c.PlanPrimary((table.primary_step(2),)))
    table.do(table.step_down(1, 0))
    assert smaller(table) == {2, 3, 4}
    table.do(table.alter(2, 3, 4))
    table.do(c.FinishMove((table.seen(),)))
    assert (table.copies(), table.primary(), table.entry().is_moving) == ({2, 3, 4}, 2, False)


@pytest.mark.parametrize(
    ("adding", "removing", "refusal"),
    [
        ((), (), Refusal.NO_MOVE),
        ((2,), (), Refusal.BAD_TARGET),  # a copy already
        ((99,), (), Refusal.BAD_TARGET),  # not a node
        ((4, 4), (), Refusal.BAD_TARGET),
        ((4,), (5,), Refusal.NOT_A_COPY),
        ((4, 5), (1,), Refusal.TOO_MANY_COPIES),  # RF + 2 in between
        ((), (1,), Refusal.TOO_FEW_COPIES),  # RF - 1
        ((4,), (1, 2), Refusal.TOO_FEW_COPIES),
        ((), (1, 2, 3), Refusal.TOO_FEW_COPIES),
    ],
)
def test_what_may_not_begin(table: Table, adding: tuple[int, ...], removing: tuple[int, ...], refusal: Refusal) -> None:
    assert table.refusals(table.begin(adding, removing)) == [refusal]


@pytest.mark.parametrize("stale", [{"epoch": 9}, {"partition_version": 9}])
def test_f27_compare_and_set(table: Table, stale: dict[str, Any]) -> None:
    assert table.refusals(table.begin((4,), (1,), **stale))[0] in (Refusal.STALE_EPOCH, Refusal.STALE_VERSION)
    late = table.seen()
    table.do(table.begin((4,), (1,)))
    assert table.refusals(c.FinishMove((late,))) == [Refusal.STALE_VERSION]
    assert table.refusals(c.AbortMove((late,))) == [Refusal.STALE_VERSION]


def test_targets_are_up_and_stay(table: Table) -> None:
    table.down(4)
    table.do(c.DrainNode(nid(5)))
    assert table.refusals(table.begin((4,), (1,))) == [Refusal.BAD_TARGET]
    assert table.refusals(table.begin((5,), (1,))) == [Refusal.BAD_TARGET]


def test_one_move_at_a_time(table: Table) -> None:
    table.do(table.begin((4,), (1,)))
    assert table.refusals(table.begin((5,), (2,))) == [Refusal.MOVE_UNDER_WAY]


def test_fewer_copies_where_fewer_nodes_can_hold_them(table: Table) -> None:
    for number in (4, 5, 6):
        table.do(c.RemoveNode(nid(number), table.session(number)))
    assert table.refusals(table.begin((), (3,))) == [Refusal.TOO_FEW_COPIES]
    table.do(c.DrainNode(nid(3)))
    assert not table.refusals(table.begin((), (3,)))


def test_one_that_is_down_still_counts_its_data_may_only_be_resting(table: Table) -> None:
    for number in (4, 5, 6):
        table.do(c.RemoveNode(nid(number), table.session(number)))
    table.down(3)
    assert table.refusals(table.begin((), (3,))) == [Refusal.TOO_FEW_COPIES]


def test_the_last_copy_cannot_be_moved_to_nowhere() -> None:
    table = Table(2)
    table.forge(0, 1)
    table.do(c.DrainNode(nid(1)))
    assert table.refusals(table.begin((), (1,))) == [Refusal.TOO_FEW_COPIES]


def test_a_move_ends_when_the_newcomer_counts_and_the_leaver_does_not(table: Table) -> None:
    assert table.refusals(c.FinishMove((table.seen(),))) == [Refusal.NO_MOVE]
    table.do(table.begin((4,), (3,)))
    assert table.refusals(c.FinishMove((table.seen(),))) == [Refusal.NOT_IN_SYNC]
    table.do(table.alter(1, 2, 3, 4))
    assert table.refusals(c.FinishMove((table.seen(),))) == [Refusal.STILL_IN_SYNC]


def test_an_abort_drops_newcomers_that_never_counted(table: Table) -> None:
    assert table.refusals(c.AbortMove((table.seen(),))) == [Refusal.NO_MOVE]
    table.do(table.begin((4,), (3,)))
    table.do(c.AbortMove((table.seen(),)))
    assert (table.copies(), table.entry().is_moving) == ({1, 2, 3}, False)


def test_an_abort_keeps_newcomers_that_count() -> None:
    table = Table(4)
    table.do(table.begin((2, 3)))
    table.do(table.alter(1, 2))
    table.do(c.AbortMove((table.seen(),)))
    assert (table.copies(), table.isr()) == ({1, 2}, {1, 2})


class TestNextIsr:
    def test_the_dead_first_and_not_below_min_isr(self, table: Table) -> None:
        table.do(table.alter(1, 2))
        table.down(2)
        assert smaller(table) is None
        table.do(table.alter(1, 2, 3))
        assert smaller(table) == {1, 3}

    def test_nothing_to_do(self, table: Table) -> None:
        assert smaller(table) is None

    def test_not_before_the_newcomers_are_in(self, table: Table) -> None:
        table.do(table.begin((4,), (3,)))
        assert smaller(table) is None
        table.do(table.alter(1, 2, 3, 4))
        assert smaller(table) == {1, 2, 4}
