"""``decide``: deaths, moves, primaries, throttle, births (replication.md section 6; F7, F27, F44)."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests.unit.tq_node.cluster.settling import Settling
from tests.unit.tq_node.cluster.tables import Table, ids, nid, replace
from tq_node.cluster import commands as c
from tq_node.cluster import controller
from tq_node.cluster.controller import Decision, decide
from tq_node.cluster.liveness import Evidence, Health, Liveness
from tq_node.cluster.planner import Planner
from tq_node.cluster.voters import RaftView
from tq_node.limits import MIB


class Leader:
    """Node 1, at a time; everybody else answers at once."""

    def __init__(self, table: Table, voters: tuple[int, ...] = (1,)) -> None:
        self.table = table
        self.liveness = Liveness(0)
        self.now_ms = 0
        self.voters = voters
        self.hear({})

    def hear(self, sizes: dict[int, int], *but: int, may_lead: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> None:
        self.liveness.follow(self.table.map, self.now_ms)
        for node in self.table.map.nodes.values():
            number = int(node.node_id, 16)
            if node.is_up and number not in but:
                health = Health(sizes, may_lead=number in may_lead)
                self.liveness.record_heartbeat(node.node_id, self.now_ms, self.table.index, health)

    def decide(self, pending: Collection[c.AnyCommand] = ()) -> Decision:
        self.liveness.follow(self.table.map, self.now_ms)
        learners = [int(n, 16) for n in self.table.map.nodes if int(n, 16) not in self.voters]
        view = RaftView(nid(1), ids(*self.voters), ids(*learners))
        return decide(self.table.map, self.liveness, view, self.now_ms, pending=pending)

    def commands(self, pending: Collection[c.AnyCommand] = ()) -> tuple[c.AnyCommand, ...]:
        return self.decide(pending).commands


class TestDeaths:
    def test_r5_silence(self) -> None:
        leader = Leader(Table(3))
        leader.now_ms = 1_499
        assert not any(isinstance(command, c.NodeDown) for command in leader.commands())
        leader.now_ms = 2_000
        leader.hear({}, 3)
        assert leader.commands() == (c.NodeDown(nid(3), leader.table.session(3), "silence"),)

    def test_the_leader_does_not_bury_itself_nor_anybody_twice(self) -> None:
        leader = Leader(Table(3))
        leader.now_ms = 5_000
        first = leader.commands()
        assert [command.node_id for command in first if isinstance(command, c.NodeDown)] == [nid(2), nid(3)]
        assert not any(isinstance(command, c.NodeDown) for command in leader.commands(first))
        for command in first:
            leader.table.do(command)
        assert not any(isinstance(command, c.NodeDown) for command in leader.commands())

    def test_r5a_evidence(self) -> None:
        leader = Leader(Table(3), (1, 2, 3))
        for reporter in (1, 2):
            leader.liveness.add_evidence(Evidence(nid(reporter), reporter, nid(3), 3, True, (0, 50)))
        assert leader.commands() == (c.NodeDown(nid(3), 3, "evidence"),)

    def test_nothing_is_planned_while_somebody_is_dying(self) -> None:
        leader = Leader(Table(3, partitions=8))
        assert any(isinstance(command, c.BeginMove) for command in leader.commands())
        assert leader.commands([c.NodeDown(nid(3), 3)]) == ()

    def test_a_leader_that_is_not_in_the_table_yet_decides_nothing(self) -> None:
        table = Table(2)
        view = RaftView(nid(9), ids(9))
        assert decide(table.map, Liveness(0), view, 9_000) == Decision()


class TestBirth:
    """A newborn cluster."""

    def test_single_copies_spread_as_nodes_join(self) -> None:
        table = Table(1, partitions=64, factor=1)
        settling = Settling(table)
        for number, share in ((2, 32), (3, 22), (4, 16), (5, 13)):
            table.register(number)
            settling.run()
            settling.check_bounds()
            assert max(sum(table.primary(p) == n for p in range(64)) for n in range(1, number + 1)) == share
        assert settling.waiting == {}

    def test_all_copies_appear_and_min_isr_is_raised(self) -> None:
        table = Table(3, partitions=16)
        settling = Settling(table)
        assert settling.run() <= 6
        settling.check_bounds()
        assert all(table.entry(p).min_isr == 2 for p in range(16))
        assert table.map.has_had_three_voters

    def test_a_node_that_has_not_read_the_table_is_given_nothing(self) -> None:
        leader = Leader(Table(1))
        leader.table.register(2)
        leader.liveness.follow(leader.table.map, 0)
        assert leader.commands() == ()
        leader.liveness.record_heartbeat(nid(2), 0, leader.table.index, Health())
        assert leader.commands() != ()

    def test_a_suspect_is_given_nothing(self) -> None:
        leader = Leader(Table(2))
        leader.now_ms = 1_200
        assert leader.commands() == ()


class TestMoves:
    def test_drain_empties_a_node_and_remove_follows(self) -> None:
        table = Table(5, partitions=32)
        settling = Settling(table)
        settling.run()
        table.do(c.DrainNode(nid(1), then_remove=True))
        settling.run()
        settling.check_bounds()
        assert not table.map.nodes[nid(1)].is_member
        assert nid(1) not in settling.voters | settling.learners

    def test_draining_to_fewer_nodes_than_copies(self) -> None:
        table = Table(3, partitions=8)
        settling = Settling(table)
        settling.run()
        table.do(c.DrainNode(nid(3)))
        settling.run()
        settling.check_bounds()
        table.do(c.DrainNode(nid(2)))
        settling.run()
        assert set(settling.waiting.values()) == {"waiting_for_min_isr"}, "only a removal lowers it"
        table.do(c.RemoveNode(nid(3), table.session(3)))
        settling.run()
        settling.check_bounds()

    def test_a_dead_node_s_copies_are_made_elsewhere_after_a_minute(self) -> None:
        table = Table(4, partitions=16)
        settling = Settling(table)
        settling.run()
        table.down(4)
        assert settling.run(quiet_ms=50_000) <= 3, "at first only primaries settle"
        held = [p for p in range(16) if 4 in table.copies(p)]
        assert held
        settling.run()
        assert not any(4 in table.copies(p) for p in range(16))
        assert all(len(table.isr(p)) == 3 for p in range(16))

    def test_a_dead_node_that_nobody_can_stand_in_for_keeps_its_copies(self) -> None:
        table = Table(3, partitions=8)
        settling = Settling(table)
        settling.run()
        table.down(3)
        settling.run()
        assert all(table.copies(p) == {1, 2, 3} for p in range(8))
        table.register(3, 2)
        settling.run()
        settling.check_bounds()

    def test_a_newcomer_that_dies_ends_the_move(self) -> None:
        table = Table(4)
        table.forge_all(1, 2, 3, min_isr=2)
        table.do(table.begin((4,), (3,)))
        table.down(4)
        leader = Leader(table)
        assert c.AbortMove((table.seen(),)) in leader.commands()

    def test_without_a_primary_nothing_can_be_copied_and_it_says_so(self) -> None:
        table = Table(3, partitions=2)
        table.forge_all(3)
        leader = Leader(table)
        table.down(3)
        leader.decide()
        leader.now_ms = 70_000
        leader.liveness.lead(70_000)
        leader.hear({})
        assert leader.decide().waiting == {0: "waiting_for_primary", 1: "waiting_for_primary"}

    def test_at_most_two_big_moves_per_node_and_small_ones_together(self) -> None:
        big = dict.fromkeys(range(0, 32, 2), 2 * MIB)
        table = Table(3, partitions=32)
        settling = Settling(table, task_bytes=big)
        settling.run()
        settling.check_bounds()
        assert max(settling.peak_big.values()) == 2
        table = Table(3, partitions=32)
        leader = Leader(table)
        leader.hear(big)
        (begin,) = (command for command in leader.commands() if isinstance(command, c.BeginMove))
        assert {step.partition for step in begin.steps} == {*range(1, 32, 2), 0, 2}
        assert set(leader.decide().waiting) == set(range(4, 32, 2))

    def test_one_that_makes_up_for_a_lost_copy_goes_first(self) -> None:
        table = Table(5, partitions=8)
        for p in range(8):
            table.forge(p, 1, 2, 3, isr=(1, 2, 3) if p < 7 else (1, 2), min_isr=2)
        table.do(c.DrainNode(nid(3)))
        leader = Leader(table)
        leader.hear(dict.fromkeys(range(8), 2 * MIB))
        (begin,) = (command for command in leader.commands() if isinstance(command, c.BeginMove))
        assert 7 in {step.partition for step in begin.steps}

    def test_batches_are_bounded(self) -> None:
        leader = Leader(Table(3, partitions=300))
        begins = [command for command in leader.commands() if isinstance(command, c.BeginMove)]
        assert [len(begin.steps) for begin in begins] == [256, 44]

    @pytest.mark.parametrize("step", range(5))
    def test_f27_any_later_leader_goes_on(self, step: int) -> None:
        """The leader dies after each of the five steps of a move; its successor knows nothing but the table."""
        table = Table(5, partitions=1)
        settling = Settling(table)
        settling.run()
        leaving = table.primary() or 0
        table.do(c.DrainNode(nid(leaving)))
        for _ in range(step):
            settling.round()
            settling.now_ms += 100
        new = Settling(table, voters=tuple(n for n in settling.voters if n != nid(leaving)))
        new.learners = set(table.map.nodes) - new.voters
        new.run()
        new.check_rest()
        new.check_bounds()
        assert leaving not in table.copies()


class TestHeldMoves:
    """So many copies were lost while others were moving away that ``min_isr`` lets nobody go."""

    def lost_for_good(self) -> Table:
        """Node 4 is to go; only it and node 1 are left of the set; node 1 is dead, and removed."""
        table = Table(4, partitions=1)
        table.forge(0, 1, 4, min_isr=2, primary=nid(4), removing=ids(4))
        table.down(1)
        table.do(c.RemoveNode(nid(1), table.session(1)))
        return table

    def resting(self) -> Table:
        """Node 4 has come and 3 is to go; 1 and 2 are down."""
        table = Table(4, partitions=1)
        table.forge(0, 1, 2, 3, 4, adding=ids(4), removing=ids(3), min_isr=2)
        table.down(1, 2)
        return table

    def test_of_a_store_that_is_lost_for_good(self) -> None:
        table = self.lost_for_good()
        assert (table.isr(), table.entry().min_isr) == ({1, 4}, 2), "nothing can be committed"
        leader = Leader(table, (4,))
        assert leader.commands()[0] == c.AbortMove((table.seen(),))
        settling = Settling(table, voters=ids(2))
        settling.run()
        settling.check_rest()
        settling.check_bounds()
        assert table.copies() == {2, 3, 4}

    def test_nothing_else_is_planned_before_it_has_ended_and_then_it_does_not_begin_again_as_it_was(self) -> None:
        table = self.resting()
        leader = Leader(table, (3,))
        leader.liveness = Liveness(leader.now_ms)
        leader.hear({})
        view = RaftView(nid(3), ids(3), ids(1, 2, 4))
        abort = c.AbortMove((table.seen(),))
        first = decide(table.map, leader.liveness, view, 0)
        assert abort in first.commands
        assert first.waiting == {}
        assert not any(isinstance(command, c.BeginMove) for command in first.commands)
        assert not any(
            isinstance(x, c.AbortMove | c.BeginMove)
            for x in decide(table.map, leader.liveness, view, 0, pending=first.commands).commands
        )
        table.do(abort)
        assert (table.copies(), table.isr()) == ({1, 2, 3, 4}, {3, 4}), "what counts stays"
        leader.hear({})
        second = decide(table.map, leader.liveness, view, 0)
        assert not any(isinstance(command, c.BeginMove) for command in second.commands)

    def test_it_goes_on_when_a_node_comes_back(self) -> None:
        table = self.resting()
        table.do(c.DrainNode(nid(3)))
        settling = Settling(table, voters=ids(4))
        assert settling.run(quiet_ms=30_000) <= 3
        assert settling.waiting == {0: "waiting_for_min_isr"}
        table.register(1, 2)
        settling.run(quiet_ms=30_000)
        assert (table.copies(), table.isr()) == ({1, 2, 4}, {1, 4})
        table.register(2, 2)
        settling.run()
        settling.check_rest()
        settling.check_bounds()

    def test_or_elsewhere_when_none_does(self) -> None:
        table = self.resting()
        for number in (5, 6):
            table.register(number)
        table.do(c.DrainNode(nid(3)))
        settling = Settling(table, voters=ids(4))
        settling.run()
        settling.check_rest()
        settling.check_bounds()
        assert table.copies() == {4, 5, 6}

    def test_one_that_waits_for_its_newcomer_goes_on(self) -> None:
        table = Table(4, partitions=1)
        table.forge(0, 1, 2, 4, isr=(1, 2), adding=ids(4), removing=ids(2), min_isr=2)
        assert not any(isinstance(command, c.AbortMove) for command in Leader(table).commands())


class TestWaiting:
    """What has begun to move and cannot get on says why, too."""

    def waiting(self, table: Table) -> str | None:
        leader = Leader(table)
        return leader.decide().waiting.get(0)

    def test_for_a_primary(self) -> None:
        table = Table(4, partitions=1)
        table.forge(0, 1, 2, 3, isr=(2,))
        table.do(table.begin((4,), (3,)))
        table.down(2)
        assert self.waiting(table) == "waiting_for_primary"

    def test_for_another_copy_so_that_min_isr_is_kept(self) -> None:
        table = Table(4, partitions=1)
        table.forge(0, 1, 2, 3, min_isr=2)
        table.do(c.DrainNode(nid(3)))
        table.do(table.begin((4,), (3,)))
        table.do(table.alter(1, 2, 3, 4))
        assert self.waiting(table) is None
        table.forge(0, 1, 2, 3, 4, isr=(3, 4), adding=(nid(4),), removing=(nid(3),), min_isr=2, primary=nid(4))
        table.do(c.AbortMove((table.seen(),)))
        assert self.waiting(table) == "waiting_for_min_isr"

    def test_for_nodes(self) -> None:
        """Five copies; one node is drained, one is dead for longer than a minute: who is to be emptied goes, who rests stays."""
        table = Table(5, partitions=1, factor=5)
        table.forge(0, 1, 2, 3, 4, 5, min_isr=3)
        table.do(c.DrainNode(nid(5)))
        leader = Leader(table)
        table.down(4)
        leader.decide()
        leader.now_ms = 61_000
        leader.liveness.lead(61_000)
        leader.hear({})
        (begin,) = (command for command in leader.commands() if isinstance(command, c.BeginMove))
        assert begin.steps[0].removing == ids(5)
        table.do(begin)
        table.do(table.alter(1, 2, 3))
        table.do(c.FinishMove((table.seen(),)))
        leader.hear({})
        assert leader.decide().waiting == {0: "waiting_for_nodes"}, "no node is left to stand in for the dead one"


def test_the_order_of_copies_is_no_reason_to_move() -> None:
    table = Table(3)
    table.forge(0, 1, 2, 3)
    planner = Planner(table.map, Liveness(0), nid(1), 0)
    assert not planner.is_astray(table.entry(), set(ids(3, 2, 1)))
    assert planner.is_astray(table.entry(1), set(ids(3, 2, 1)))


class TestPrimaries:
    def test_one_that_may_not_lead_hands_over(self) -> None:
        table = Table(3, partitions=9)
        settling = Settling(table)
        settling.run()
        settling.unfit = {nid(2)}
        settling.run()
        settling.check_bounds()
        assert not any(table.primary(p) == 2 for p in range(9))
        settling.unfit = set()
        settling.run()
        assert sum(table.primary(p) == 2 for p in range(9)) == 3

    def test_where_nobody_may_lead_everybody_goes_on(self) -> None:
        table = Table(3, partitions=3)
        settling = Settling(table)
        settling.run()
        settling.unfit = set(ids(1, 2, 3))
        assert settling.run() == 0

    def test_a_primary_that_does_not_step_down_is_replaced_in_the_end(self) -> None:
        table = Table(3)
        table.forge_all(1, 2, 3, min_isr=2, successor=nid(2))
        leader = Leader(table)
        leader.decide()
        leader.now_ms = 9_999
        leader.hear({})
        assert not any(isinstance(command, c.ElectPrimary) for command in leader.commands())
        leader.now_ms = 10_000
        leader.hear({})
        (elect,) = (command for command in leader.commands() if isinstance(command, c.ElectPrimary))
        table.do(elect)
        assert {table.primary(p) for p in range(4)} == {2}

    def test_a_successor_whose_turn_has_passed_is_taken_back(self) -> None:
        table = Table(3, partitions=3)
        for p, order in enumerate(((1, 2, 3), (2, 3, 1), (3, 1, 2))):
            table.forge(p, *order, min_isr=2)
        table.forge(0, 1, 2, 3, min_isr=2, successor=nid(2))
        leader = Leader(table)
        leader.hear({}, may_lead=(1, 3))
        plans = [command for command in leader.commands() if isinstance(command, c.PlanPrimary)]
        (step,) = (step for plan in plans for step in plan.steps if step.partition == 0)
        assert step.to in ids(1, 3)


class TestTheCluster:
    def test_rebalance_evens_out_and_is_done(self) -> None:
        table = Table(3, partitions=8)
        settling = Settling(table)
        settling.run()
        table.do(c.Rebalance())
        settling.run()
        assert table.map.rebalance == 0
        assert sorted(sum(table.primary(p) == n for p in range(8)) for n in (1, 2, 3)) == [2, 3, 3]

    def test_rebalance_is_not_done_twice(self) -> None:
        table = Table(1)
        table.do(c.Rebalance())
        leader = Leader(table)
        (done,) = leader.commands()
        assert leader.commands([done]) == ()

    def test_rebalance_waits_for_what_is_under_way(self) -> None:
        table = Table(3)
        table.forge_all(1, 2, 3, min_isr=2)
        for p, order in enumerate(((1, 2, 3), (2, 3, 1), (3, 1, 2), (1, 3, 2))):
            table.forge(p, *order, min_isr=2)
        table.forge(3, 1, 2, min_isr=2)
        table.do(table.begin((3,), partition=3))
        table.do(c.Rebalance())
        assert not any(isinstance(command, c.RebalanceDone) for command in Leader(table).commands())

    def test_f44_the_feature_level_rises_when_all_support_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        table = Table()
        table.register(1, 2, feature_level_max=2)
        monkeypatch.setattr(controller, "FEATURE_LEVEL_MAX", 1)
        assert Leader(table).commands() == (), "this code cannot, whatever its node has registered with"
        monkeypatch.setattr(controller, "FEATURE_LEVEL_MAX", 2)
        assert Leader(table).commands() == (c.RaiseFeatureLevel(2),)
        table.register(2)
        assert not any(isinstance(command, c.RaiseFeatureLevel) for command in Leader(table).commands())

    def test_a_node_that_leaves_is_removed_when_it_is_empty_and_has_no_vote(self) -> None:
        table = Table(3)
        table.do(c.DrainNode(nid(3), then_remove=True))
        assert not any(isinstance(x, c.RemoveNode) for x in Leader(table, (1, 2, 3)).commands())
        assert c.RemoveNode(nid(3), 3) in Leader(table).commands()
        table.forge(0, 1, 3)
        assert not any(isinstance(x, c.RemoveNode) for x in Leader(table).commands())

    def test_the_last_that_could_hold_anything_is_not_removed(self) -> None:
        table = Table(2)
        table.do(c.DrainNode(nid(2), then_remove=True))
        partitions = tuple(replace(entry) for entry in table.map.partitions)
        nodes = {n: replace(node, is_draining=True) for n, node in table.map.nodes.items()}
        table.map = replace(table.map, partitions=partitions, nodes=nodes)
        assert not any(isinstance(x, c.RemoveNode) for x in Leader(table).commands())
