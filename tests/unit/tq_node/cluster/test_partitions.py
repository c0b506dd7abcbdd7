"""R4 to the letter, and changes of primary (replication.md section 5; F16, F25, F27)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.tq_node.cluster.tables import Table, ids, nid
from tq_node.cluster import commands as c
from tq_node.cluster.primary_choice import candidates
from tq_node.cluster.refusals import Refusal
from tq_node.types import Epoch, PartitionId


@pytest.fixture
def table() -> Table:
    """Partition 0: copies 1 (primary), 2, 3, 4; in sync 1, 2, 3; at least 2."""
    table = Table(5)
    table.forge(0, 1, 2, 3, 4, isr=(1, 2, 3), min_isr=2)
    return table


class TestR4:
    def test_one_more_and_one_less(self, table: Table) -> None:
        assert not table.do(table.alter(1, 2, 3, 4)).refused
        assert not table.do(table.alter(1, 4, 2)).refused
        assert table.entry().isr == ids(1, 2, 4), "in the order of copies, however it was said"
        assert (table.entry().epoch, table.primary()) == (1, 1)

    @pytest.mark.parametrize(
        ("stale", "refusal"),
        [
            ({"epoch": 0}, Refusal.STALE_EPOCH),
            ({"epoch": 2}, Refusal.STALE_EPOCH),
            ({"partition_version": 1}, Refusal.STALE_VERSION),
            ({"partition_version": 3}, Refusal.STALE_VERSION),
        ],
    )
    def test_epoch_and_version_match(self, table: Table, stale: dict[str, Any], refusal: Refusal) -> None:
        assert table.refusals(table.alter(1, 2, **stale)) == [refusal]

    def test_the_sender_is_the_primary(self, table: Table) -> None:
        assert table.refusals(table.alter(1, 2, sender=2)) == [Refusal.NOT_PRIMARY]

    def test_f25_in_its_present_session(self, table: Table) -> None:
        assert table.refusals(table.alter(1, 2, session=99)) == [Refusal.STALE_SESSION]
        assert table.refusals(c.AlterIsr(nid(9), 1, (table.isr_step(1, 2),))) == [Refusal.STALE_SESSION]

    def test_f25_a_dead_primary_s_late_word(self, table: Table) -> None:
        late = table.alter(1, 2)
        table.down(1)
        assert table.refusals(late) == [Refusal.STALE_EPOCH]
        table.register(1, 2)
        assert table.refusals(late) == [Refusal.STALE_SESSION]

    def test_the_primary_stays_in(self, table: Table) -> None:
        assert table.refusals(table.alter(2, 3)) == [Refusal.PRIMARY_STAYS]

    @pytest.mark.parametrize("isr", [(1, 2, 3), (1,), (1, 4), (1, 2, 4)])
    def test_exactly_one(self, table: Table, isr: tuple[int, ...]) -> None:
        assert table.refusals(table.alter(*isr)) == [Refusal.NOT_ONE_STEP]

    def test_an_added_one_is_a_copy(self, table: Table) -> None:
        assert table.refusals(table.alter(1, 2, 3, 5)) == [Refusal.NOT_A_COPY]
        assert table.refusals(table.alter(1, 2, 3, 99)) == [Refusal.NOT_A_COPY]

    def test_an_added_one_is_up(self, table: Table) -> None:
        table.down(4)
        assert table.refusals(table.alter(1, 2, 3, 4)) == [Refusal.NOT_A_COPY]

    def test_r3_min_isr(self, table: Table) -> None:
        table.do(table.alter(1, 2))
        assert table.refusals(table.alter(1)) == [Refusal.MIN_ISR]

    def test_no_living_member_leaves_while_a_dead_one_stays(self, table: Table) -> None:
        table.do(table.alter(1, 2))
        table.down(2)
        table.do(table.alter(1, 2, 3))
        assert table.refusals(table.alter(1, 2)) == [Refusal.DEAD_GO_FIRST]
        assert not table.refusals(table.alter(1, 3))

    def test_the_removed_are_dead_and_go_as_copies_too(self, table: Table) -> None:
        table.do(table.alter(1, 2))
        table.down(2)
        table.do(c.RemoveNode(nid(2), table.session(2)))
        table.do(table.alter(1, 2, 3))
        assert table.refusals(table.alter(1, 2)) == [Refusal.DEAD_GO_FIRST]
        assert not table.refusals(table.alter(1, 3))
        assert table.copies() == {1, 3, 4}

    def test_a_successor_that_leaves_the_set_is_none(self, table: Table) -> None:
        table.do(c.PlanPrimary((table.primary_step(3),)))
        table.do(table.alter(1, 2))
        assert table.entry().successor is None

    def test_partitions_are_judged_one_by_one(self, table: Table) -> None:
        table.forge(1, 1, 2)
        steps = (table.isr_step(1, 2, epoch=9), table.isr_step(1, partition=1), table.isr_step(1, partition=77 - 74))
        beyond = c.IsrStep(PartitionId(77), Epoch(1), 1, ids(1))
        applied = table.do(c.AlterIsr(nid(1), 1, (*steps, beyond)))
        assert [(r.partition, r.code) for r in applied.refused] == [
            (0, Refusal.STALE_EPOCH),
            (3, Refusal.NOT_ONE_STEP),
            (77, Refusal.NO_SUCH_PARTITION),
        ]
        assert table.isr(1) == {1}

    def test_twice_in_one_entry_is_once(self, table: Table) -> None:
        """Found by random entries: both steps had seen the same version."""
        table.forge(0, 1, 2, 3, 4, isr=(1, 2, 3), min_isr=1)
        steps = (table.isr_step(1, 2), table.isr_step(1))
        applied = table.do(c.AlterIsr(nid(1), 1, steps))
        assert [r.code for r in applied.refused] == [Refusal.STALE_VERSION]
        assert table.isr() == {1, 2}
        led = c.Led(PartitionId(0), table.entry().epoch)
        assert table.refusals(c.StepDown(nid(1), 1, (led, led))) == [Refusal.STALE_EPOCH]

    @pytest.mark.parametrize("partition", [-1, 4, 10**9])
    def test_a_partition_that_is_not(self, table: Table, partition: int) -> None:
        step = c.IsrStep(PartitionId(partition), Epoch(1), 1, ids(1))
        assert table.refusals(c.AlterIsr(nid(1), 1, (step,))) == [Refusal.NO_SUCH_PARTITION]


class TestPrimaries:
    def test_r2_step_down_chooses_another_in_a_new_epoch(self, table: Table) -> None:
        assert not table.do(table.step_down(1, 0)).refused
        assert (table.primary(), table.entry().epoch) == (2, 2)

    def test_step_down_with_nobody_else_changes_nothing(self, table: Table) -> None:
        assert table.refusals(table.step_down(1, 1)) == [Refusal.NO_SUCCESSOR]

    def test_step_down_is_the_present_primary_s_to_say(self, table: Table) -> None:
        assert table.refusals(table.step_down(2, 0)) == [Refusal.NOT_PRIMARY]
        assert table.refusals(table.step_down(1, 0, session=7)) == [Refusal.STALE_SESSION]
        late = table.step_down(1, 0)
        table.do(late)
        assert table.refusals(late) == [Refusal.STALE_EPOCH]
        assert table.refusals(c.StepDown(nid(1), 1, (c.Led(PartitionId(9), Epoch(1)),))) == [Refusal.NO_SUCH_PARTITION]

    def test_step_down_prefers_the_successor(self, table: Table) -> None:
        table.do(c.PlanPrimary((table.primary_step(3),)))
        assert table.entry().successor == nid(3)
        table.do(table.step_down(1, 0))
        assert (table.primary(), table.entry().successor) == (3, None)

    @pytest.mark.parametrize("to", [4, 5, 99, None])
    def test_r1_a_successor_is_in_sync_and_up(self, table: Table, to: int | None) -> None:
        assert table.refusals(c.PlanPrimary((table.primary_step(to),))) == [Refusal.NO_SUCCESSOR]

    def test_a_successor_can_be_taken_back(self, table: Table) -> None:
        table.do(c.PlanPrimary((table.primary_step(3),)))
        assert not table.refusals(c.PlanPrimary((table.primary_step(1),)))
        assert table.entry().successor is None

    def test_a_partition_without_primary_has_no_successor(self, table: Table) -> None:
        table.down(1, 2, 3)
        assert table.refusals(c.PlanPrimary((table.primary_step(2),))) == [Refusal.NO_SUCCESSOR]
        assert table.refusals(c.ElectPrimary((table.primary_step(None),))) == [Refusal.NO_SUCCESSOR]

    def test_elect_at_once(self, table: Table) -> None:
        table.do(c.ElectPrimary((table.primary_step(3),)))
        assert (table.primary(), table.entry().epoch) == (3, 2)
        table.do(c.ElectPrimary((table.primary_step(3),)))
        assert (table.primary(), table.entry().epoch) == (3, 3), "R2: even the same node again"
        table.do(c.ElectPrimary((table.primary_step(None),)))
        assert (table.primary(), table.entry().epoch) == (2, 4), "as after a death: whoever leads least"

    def test_r1_elect_only_in_sync(self, table: Table) -> None:
        assert table.refusals(c.ElectPrimary((table.primary_step(4),))) == [Refusal.NO_SUCCESSOR]
        assert candidates(table.entry(), table.map.nodes) == list(ids(1, 2, 3))

    def test_f27_all_of_them_compare_and_set(self, table: Table) -> None:
        late = table.primary_step(2)
        table.do(table.alter(1, 2))
        assert table.refusals(c.PlanPrimary((late,))) == [Refusal.STALE_VERSION]
        assert table.refusals(c.ElectPrimary((late,))) == [Refusal.STALE_VERSION]


class TestMinIsr:
    def test_raised_as_soon_as_the_set_allows(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, 3, isr=(1,))
        assert table.refusals(c.RaiseMinIsr((table.seen(),))) == [Refusal.MIN_ISR]
        table.do(table.alter(1, 2))
        assert not table.refusals(c.RaiseMinIsr((table.seen(),)))
        assert table.entry().min_isr == 2
        assert table.refusals(c.RaiseMinIsr((table.seen(),))) == [Refusal.NOT_NEEDED]

    def test_one_is_enough_for_two_members(self) -> None:
        table = Table(2)
        table.forge(0, 1, 2)
        assert table.refusals(c.RaiseMinIsr((table.seen(),))) == [Refusal.NOT_NEEDED]

    @pytest.mark.parametrize(("factor", "wanted"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
    def test_a_majority_of_the_copies(self, factor: int, wanted: int) -> None:
        table = Table(5, factor=factor)
        table.forge(0, *range(1, factor + 1))
        table.do(c.RaiseMinIsr((table.seen(),)))
        assert table.entry().min_isr == wanted

    def test_compare_and_set(self) -> None:
        table = Table(3)
        late = table.seen()
        table.do(table.begin((2,)))
        assert table.refusals(c.RaiseMinIsr((late,))) == [Refusal.STALE_VERSION]


class TestUnsafeRecover:
    def recover(self, table: Table, node: int, partition: int = 0) -> c.UnsafeRecover:
        seen = table.seen(partition)
        return c.UnsafeRecover(seen.partition, seen.epoch, seen.partition_version, nid(node))

    def test_a_stale_copy_leads_and_it_is_recorded_for_ever(self, table: Table) -> None:
        table.down(1, 2, 3)
        assert table.primary() is None
        assert not table.refusals(self.recover(table, 4))
        assert (table.primary(), table.copies(), table.entry().epoch, table.entry().min_isr) == (4, {4}, 4, 1)
        record = table.entry().unsafe_recovered[0]
        assert (record.log_index, record.epoch, record.node_id, record.reason) == (table.index, 4, nid(4), "unsafe")
        table.down(4)
        table.do(self.recover(table, 5))
        assert [r.node_id for r in table.entry().unsafe_recovered] == [nid(4), nid(5)]

    def test_a_primary_that_cannot_commit_can_be_left_alone(self, table: Table) -> None:
        table.down(3)
        table.down(2)
        assert (table.primary(), table.isr()) == (1, {1, 2})
        assert not table.refusals(self.recover(table, 1))
        assert (table.primary(), table.isr()) == (1, {1})

    def test_not_while_nothing_needs_to_be_given_up(self, table: Table) -> None:
        assert table.refusals(self.recover(table, 4)) == [Refusal.NOT_NEEDED]

    def test_only_for_a_node_that_is_there(self, table: Table) -> None:
        late = self.recover(table, 4)
        table.down(1, 2, 3)
        assert table.refusals(self.recover(table, 9)) == [Refusal.NO_SUCH_NODE]
        assert table.refusals(self.recover(table, 3)) == [Refusal.NOT_UP]
        assert table.refusals(late) == [Refusal.STALE_EPOCH]
