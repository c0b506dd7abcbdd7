"""Registration, death, draining, removal (replication.md sections 2, 5 and 6)."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.cluster.tables import CLUSTER_ID, Table, nid, registration
from tq_node.cluster import commands as c
from tq_node.cluster.records import NodeStatus
from tq_node.cluster.refusals import Refusal
from tq_node.types import NodeName, PartitionId


class TestRegistration:
    def test_the_founder_holds_everything_alone(self) -> None:
        table = Table(partitions=8)
        assert {table.primary(p) for p in range(8)} == {1}
        assert table.entry(7).copies == table.entry(7).isr == (nid(1),)
        assert (table.entry().epoch, table.entry().partition_version, table.entry().min_isr) == (1, 1, 1)

    def test_a_session_is_the_index_of_the_registration(self) -> None:
        table = Table(2)
        assert (table.session(1), table.session(2)) == (1, 2)
        assert table.map.nodes[nid(2)].joined_index == 2
        table.register(2, 2)
        assert (table.session(2), table.map.nodes[nid(2)].joined_index) == (3, 2)

    def test_f15_another_cluster_is_refused(self) -> None:
        table = Table()
        assert table.refusals(c.RegisterNode("d" * 32, registration(2))) == [Refusal.WRONG_CLUSTER]

    def test_f13_a_wiped_disk_may_not_take_its_old_name_until_the_member_is_removed(self) -> None:
        table = Table(3)
        table.down(3)
        wiped = c.RegisterNode(CLUSTER_ID, registration(4, name=NodeName("node-3")))
        assert table.refusals(wiped) == [Refusal.NAME_TAKEN]
        table.do(c.RemoveNode(nid(3), table.session(3)))
        assert not table.refusals(wiped)
        assert table.map.node_named("node-3") == table.map.nodes[nid(4)]

    def test_a_node_may_change_its_own_name_but_not_to_a_member_s(self) -> None:
        table = Table(2)
        assert not table.register(2, 2, name=NodeName("other")).refused
        assert table.register(2, 3, name=NodeName("node-1")).refused[0].code == Refusal.NAME_TAKEN

    def test_a_removed_id_never_comes_back(self) -> None:
        table = Table(2)
        table.do(c.RemoveNode(nid(2), table.session(2)))
        assert table.register(2, 9).refused[0].code == Refusal.REMOVED

    @pytest.mark.parametrize("incarnation", [3, 2])
    def test_f14_a_copied_or_rolled_back_store_is_refused(self, incarnation: int) -> None:
        table = Table(2)
        table.register(2, 3)
        assert table.register(2, incarnation, nonce="another").refused[0].code == Refusal.STORE_CLONED

    def test_f14_an_older_run_with_its_own_nonce_is_refused_too(self) -> None:
        table = Table(2)
        table.register(2, 3)
        assert table.register(2, 1).refused[0].code == Refusal.STORE_CLONED

    def test_the_same_run_twice_is_one_session(self) -> None:
        table = Table(2)
        applied = table.register(2)
        assert (applied.changes, applied.refused, table.session(2)) == ((), (), 2)

    def test_a_run_that_was_taken_for_dead_gets_a_new_session(self) -> None:
        table = Table(2)
        table.down(2)
        table.register(2)
        assert table.map.nodes[nid(2)].is_up
        assert table.session(2) == table.index

    def test_f44_a_node_that_cannot_apply_the_feature_level_is_refused(self) -> None:
        table = Table()
        assert table.register(2, feature_level_min=2, feature_level_max=3).refused[0].code == Refusal.FEATURE_LEVEL
        assert table.register(2, feature_level_min=0, feature_level_max=0).refused[0].code == Refusal.FEATURE_LEVEL

    def test_r2_a_new_run_is_never_left_primary_of_an_old_epoch(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2)
        table.forge(1, 1)
        table.register(1, 2)
        assert (table.primary(0), table.entry(0).epoch) == (2, 2), "somebody else, who has not forgotten anything"
        assert (table.primary(1), table.entry(1).epoch) == (1, 2), "itself, in a new epoch"

    def test_r2_what_it_did_not_lead_stays(self) -> None:
        table = Table(2)
        table.forge(0, 2, 1)
        before = table.entry()
        table.register(1, 2)
        assert table.entry() is before

    def test_r1_a_member_of_the_set_that_returns_ends_the_waiting(self) -> None:
        table = Table(2)
        table.forge(0, 2, 1, isr=(2,))
        table.down(2)
        assert table.primary() is None
        table.register(1, 2)
        assert table.primary() is None, "not in sync"
        table.register(2, 2)
        assert (table.primary(), table.entry().epoch) == (2, 2)


class TestDeath:
    def test_all_its_partitions_get_primaries_in_one_entry(self) -> None:
        table = Table(3, partitions=6)
        table.forge_all(1, 2, 3)
        table.down(1)
        assert sorted(table.primary(p) or 0 for p in range(6)) == [2, 2, 2, 3, 3, 3]
        assert all(table.isr(p) == {2, 3} and table.entry(p).epoch == 2 for p in range(6))

    def test_r3_dead_members_leave_only_while_more_than_min_isr_remain(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, 3, min_isr=2)
        table.down(3)
        assert table.isr() == {1, 2}
        table.down(2)
        assert (table.isr(), table.primary()) == ({1, 2}, 1), "writes wait; nothing acknowledged exists outside the set"

    def test_r3_the_removed_leave_before_the_dead(self) -> None:
        table = Table(5)
        table.forge(0, 1, 2, 3, isr=(1, 2), min_isr=2)
        table.down(2)
        table.do(c.RemoveNode(nid(2), table.session(2)))
        table.do(table.alter(1, 2, 3))
        table.down(3)
        assert table.isr() == {1, 3}

    def test_f16_the_last_in_sync_copy_stays_the_set_and_nobody_else_leads(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, isr=(1,))
        table.down(1)
        assert (table.isr(), table.primary(), table.entry().epoch) == ({1}, None, 1)

    def test_r1_the_dead_and_the_lagging_are_not_chosen(self) -> None:
        table = Table(4)
        table.forge(0, 1, 2, 3, 4, isr=(1, 2, 3), min_isr=2)
        table.down(2)
        table.down(1)
        assert table.primary() == 3

    def test_f26_all_restart_one_after_the_other(self) -> None:
        table = Table(3)
        table.forge_all(1, 2, 3, min_isr=2)
        table.down(1, 2)
        for number in (2, 3, 1):
            table.register(number, 2)
        assert all(table.primary(p) and len(table.isr(p)) >= 2 for p in range(4))

    def test_f25_a_death_of_an_earlier_session_does_not_count(self) -> None:
        table = Table(2)
        old = table.session(2)
        table.register(2, 2)
        assert table.refusals(c.NodeDown(nid(2), old)) == [Refusal.STALE_SESSION]

    def test_the_unknown_and_the_dead_do_not_die(self) -> None:
        table = Table(2)
        assert table.refusals(c.NodeDown(nid(9), 1)) == [Refusal.NO_SUCH_NODE]
        table.down(2)
        assert table.refusals(c.NodeDown(nid(2), table.session(2))) == [Refusal.NOT_UP]

    def test_a_successor_that_dies_is_none(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, 3, successor=nid(2), min_isr=2)
        table.forge(1, 1, 2, 3, isr=(1, 2), successor=nid(2), min_isr=2)
        table.down(2)
        assert (table.entry(0).successor, table.entry(1).successor) == (None, None)

    def test_the_successor_follows_a_primary_that_dies(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, 3, successor=nid(3))
        table.down(1)
        assert (table.primary(), table.entry().successor) == (3, None)

    def test_a_choice_prefers_who_stays(self) -> None:
        table = Table(4)
        table.forge(0, 1, 2, 3, 4, removing=(nid(2),))
        table.do(c.DrainNode(nid(3)))
        table.down(1)
        assert table.primary() == 4


class TestLeaving:
    def test_draining_is_remembered_over_a_crash(self) -> None:
        table = Table(2)
        table.do(c.DrainNode(nid(2), then_remove=True))
        table.down(2)
        table.register(2, 2)
        node = table.map.nodes[nid(2)]
        assert (node.is_draining, node.is_leaving, node.is_up, node.is_target) == (True, True, True, False)
        table.do(c.DrainNode(nid(2)))
        assert table.map.nodes[nid(2)].is_leaving, "a later drain does not take back the removal"
        table.do(c.UndrainNode(nid(2)))
        assert table.map.nodes[nid(2)].is_target

    def test_the_last_node_stays(self) -> None:
        table = Table(2)
        assert not table.refusals(c.DrainNode(nid(2)))
        assert table.refusals(c.DrainNode(nid(1))) == [Refusal.LAST_NODE]
        assert table.refusals(c.RemoveNode(nid(1), 1)) == [Refusal.LAST_NODE]

    def test_the_unknown_and_the_removed_cannot_leave(self) -> None:
        table = Table(2)
        table.do(c.RemoveNode(nid(2), table.session(2)))
        for number, refusal in ((9, Refusal.NO_SUCH_NODE), (2, Refusal.REMOVED)):
            assert table.refusals(c.DrainNode(nid(number))) == [refusal]
            assert table.refusals(c.UndrainNode(nid(number))) == [refusal]
            assert table.refusals(c.RemoveNode(nid(number), 2)) == [refusal]

    def test_a_living_node_is_emptied_first(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, isr=(1,))
        assert table.refusals(c.RemoveNode(nid(2), table.session(2))) == [Refusal.HOLDS_COPIES]

    def test_a_removal_is_of_the_session_that_was_seen(self) -> None:
        table = Table(2)
        table.register(2, 2)
        assert table.refusals(c.RemoveNode(nid(2), 2)) == [Refusal.STALE_SESSION]

    def test_the_last_in_sync_copy_is_not_given_up(self) -> None:
        table = Table(3)
        table.forge(0, 2, 1, isr=(2,))
        table.down(2)
        assert table.refusals(c.RemoveNode(nid(2), table.session(2))) == [Refusal.LAST_COPY]
        assert table.refusals(c.RemoveNode(nid(2), table.session(2), (PartitionId(1),))) == [Refusal.LAST_COPY]

    def test_what_held_no_task_starts_again_elsewhere_and_says_so_for_ever(self) -> None:
        table = Table(3)
        table.forge(0, 2)
        table.down(2)
        table.do(c.RemoveNode(nid(2), table.session(2), (PartitionId(0),)))
        entry = table.entry()
        assert (table.primary(), table.copies(), entry.epoch) == (3, {3}, 2)
        assert [(r.node_id, r.epoch, r.reason) for r in entry.unsafe_recovered] == [(nid(3), 2, "removed_empty")]

    def test_a_dead_member_that_is_removed_stays_in_the_set_as_r3_says(self) -> None:
        table = Table(4)
        table.forge(0, 1, 2, min_isr=2)
        table.down(2)
        table.do(c.RemoveNode(nid(2), table.session(2)))
        assert (table.isr(), table.copies()) == ({1, 2}, {1, 2})

    def test_lost_disk_the_dead_go_first_and_no_rule_is_bent(self) -> None:
        """Section 6, lost disk: {A dead for good, B}; C copies; {A, B, C}; {B, C}."""
        table = Table(4)
        table.forge_all(1, 2, min_isr=2)
        table.down(1)
        assert (table.primary(), table.isr()) == (2, {1, 2})
        assert not table.refusals(c.RemoveNode(nid(1), table.session(1)))
        table.do(table.begin((3,)))
        assert not table.do(table.alter(1, 2, 3)).refused
        assert not table.do(table.alter(2, 3)).refused
        assert not table.do(c.FinishMove((table.seen(),))).refused
        assert (table.copies(), table.isr(), table.entry().min_isr) == ({2, 3}, {2, 3}, 2)

    def test_a_lagging_copy_goes_with_its_node(self) -> None:
        table = Table(4)
        table.forge(0, 1, 2, 3, isr=(1, 2), adding=(nid(3),), removing=(nid(2),))
        table.down(3)
        table.do(c.RemoveNode(nid(3), table.session(3)))
        assert (table.copies(), table.entry().adding, table.entry().removing) == ({1, 2}, (), (nid(2),))

    def test_only_a_removal_lowers_min_isr_when_two_members_remain(self) -> None:
        table = Table(3)
        table.forge(0, 1, 2, 3, isr=(1, 3), min_isr=2)
        table.down(3)
        assert (table.entry().min_isr, table.isr()) == (2, {1, 3})
        table.do(c.RemoveNode(nid(3), table.session(3)))
        assert (table.entry().min_isr, table.isr(), table.copies()) == (1, {1}, {1, 2})

    def test_a_removal_from_many_lowers_nothing(self) -> None:
        table = Table(4)
        table.forge(0, 1, 2, 3, min_isr=2)
        before = table.entry()
        table.do(c.RemoveNode(nid(4), table.session(4)))
        assert table.entry() is before
        assert table.map.nodes[nid(4)].status == NodeStatus.REMOVED
