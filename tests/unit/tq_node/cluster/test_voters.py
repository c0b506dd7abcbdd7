"""Who votes (replication.md section 6)."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.cluster.settling import Settling
from tests.unit.tq_node.cluster.tables import Table, ids, nid
from tq_node.cluster import commands as c
from tq_node.cluster.liveness import Health, Liveness
from tq_node.cluster.voters import RaftView, VoterChange, VoterChangeKind, count_wanted, next_voter_change


class Group:
    """Node 1 leads; everybody answers and is caught up unless said otherwise."""

    def __init__(self, nodes: int, voters: tuple[int, ...], *, wanted: int = 3, had_three: bool = False) -> None:
        self.table = Table(nodes, voters=wanted)
        if had_three:
            self.table.do(c.NoteThreeVoters())
        self.voters = voters
        self.me = 1
        self.behind: tuple[int, ...] = ()
        self.liveness = Liveness(0)
        self.now_ms = 0
        self.go(0)

    def go(self, to_ms: int) -> None:
        """Time passes, in which all that are up are heard."""
        self.liveness.follow(self.table.map, self.now_ms)
        while self.now_ms <= to_ms:
            for node in self.table.map.nodes.values():
                if node.is_up:
                    self.liveness.record_heartbeat(node.node_id, self.now_ms, 0, Health())
            self.now_ms += 500

    def next_voter_change(self, *, pending: bool = False) -> tuple[str, int] | None:
        self.liveness.follow(self.table.map, self.now_ms)
        known = [int(node, 16) for node in self.table.map.nodes]
        learners = tuple(n for n in known if n not in self.voters)
        caught_up = tuple(n for n in known if n not in self.behind)
        view = RaftView(nid(self.me), ids(*self.voters), ids(*learners), ids(*caught_up), pending)
        found = next_voter_change(self.table.map, self.liveness, view, self.now_ms)
        return None if found is None else (found.kind.value, int(found.node, 16))


@pytest.mark.parametrize(
    ("able", "wanted", "voters"),
    [(1, 3, 1), (2, 3, 1), (3, 3, 3), (4, 3, 3), (9, 3, 3), (4, 5, 3), (5, 5, 5), (9, 5, 5), (9, 1, 1), (0, 3, 1)],
)
def test_one_three_or_five(able: int, wanted: int, voters: int) -> None:
    assert count_wanted(able, wanted) == voters


class TestGrowing:
    def test_everybody_registered_becomes_a_learner_the_first_first(self) -> None:
        table = Table(3)
        view = RaftView(nid(1), ids(1), (), ids(1, 2, 3))
        assert next_voter_change(table.map, Liveness(0), view, 0) == VoterChange(VoterChangeKind.ADD_LEARNER, nid(2))

    def test_of_two_members_only_the_first_votes(self) -> None:
        assert Group(2, (1,)).next_voter_change() is None

    def test_three_members_three_voters_at_once_and_one_at_a_time(self) -> None:
        assert Group(3, (1,)).next_voter_change() == ("promote", 2)
        assert Group(3, (1, 2)).next_voter_change() == ("promote", 3)
        assert Group(3, (1, 2, 3)).next_voter_change() is None
        assert Group(3, (1,)).next_voter_change(pending=True) is None

    def test_only_who_is_caught_up(self) -> None:
        group = Group(3, (1,))
        group.behind = (3,)
        assert group.next_voter_change() is None, "two would not do"

    def test_three_are_enough_unless_five_are_wanted(self) -> None:
        assert Group(5, (1, 2, 3), had_three=True).next_voter_change() is None
        group = Group(4, (1, 2, 3), wanted=5, had_three=True)
        group.go(40_000)
        assert group.next_voter_change() is None, "four would not do"
        group = Group(5, (1, 2, 3), wanted=5, had_three=True)
        assert group.next_voter_change() is None, "health first"
        group.go(31_000)
        assert group.next_voter_change() == ("promote", 4)

    def test_only_one_is_wanted(self) -> None:
        assert Group(5, (1,), wanted=1).next_voter_change() is None


class TestReplacing:
    def test_a_dead_voter_is_given_the_time_of_a_restart_and_goes_first(self) -> None:
        group = Group(4, (1, 2, 3), had_three=True)
        group.table.down(3)
        group.go(29_000)
        assert group.next_voter_change() is None
        group.go(31_000)
        assert group.next_voter_change() == ("demote", 3)
        group.voters = (1, 2)
        assert group.next_voter_change() == ("promote", 4)
        group.voters = (1, 2, 4)
        assert group.next_voter_change() is None

    def test_without_a_replacement_it_keeps_its_vote(self) -> None:
        group = Group(3, (1, 2, 3), had_three=True)
        group.table.down(3)
        group.go(90_000)
        assert group.next_voter_change() is None

    def test_a_replacement_has_shown_30_s_of_health(self) -> None:
        group = Group(3, (1, 2, 3), had_three=True)
        group.table.down(3)
        group.go(60_000)
        group.table.register(4)
        group.go(89_000)
        assert group.next_voter_change() is None
        group.go(92_000)
        assert group.next_voter_change() == ("demote", 3)

    def test_a_single_voter_does_not_wait_30_s_for_the_third(self) -> None:
        """The disk of one of three was lost: it is removed, and its replacement comes."""
        group = Group(2, (1,), had_three=True)
        group.go(31_000)
        group.table.register(3)
        group.go(32_000)
        assert group.next_voter_change() == ("promote", 2), "the one that is known"
        group.voters = (1, 2)
        assert group.next_voter_change() == ("promote", 3)
        group.voters = (1,)
        group.liveness.lead(group.now_ms)
        assert group.next_voter_change() is None, "not two that are not"

    def test_a_living_voter_that_is_drained_goes_after_its_replacement_has_come(self) -> None:
        group = Group(4, (1, 2, 3))
        group.table.do(c.DrainNode(nid(3)))
        assert group.next_voter_change() == ("promote", 4)
        group.voters = (1, 2, 3, 4)
        assert group.next_voter_change() == ("demote", 3)

    def test_a_removed_one_is_taken_out_and_two_are_not_kept(self) -> None:
        group = Group(3, (1, 2, 3), had_three=True)
        group.table.down(3)
        group.table.do(c.RemoveNode(nid(3), group.table.session(3)))
        assert group.next_voter_change() == ("remove", 3)
        group.table.map.nodes.pop(nid(3))
        group.voters = (1, 2)
        assert group.next_voter_change() == ("demote", 2)

    def test_four_are_not_kept_the_dead_go_first_then_the_youngest(self) -> None:
        group = Group(4, (1, 2, 3, 4), wanted=5, had_three=True)
        assert group.next_voter_change() == ("demote", 4)
        group.table.down(2)
        assert group.next_voter_change() == ("demote", 2)


class TestLeaving:
    def test_leadership_leaves_a_node_that_is_drained(self) -> None:
        group = Group(3, (1, 2, 3))
        group.table.do(c.DrainNode(nid(1)))
        assert group.next_voter_change() == ("transfer", 2)
        group.behind = (2,)
        assert group.next_voter_change() == ("transfer", 3)
        group.behind = (2, 3)
        assert group.next_voter_change() is None

    def test_a_vote_is_given_up_last(self) -> None:
        group = Group(3, (1, 2, 3))
        group.table.forge(0, 3, 1)
        group.table.do(c.DrainNode(nid(3), then_remove=True))
        assert group.next_voter_change() is None, "it still holds a copy"
        group.table.forge(0, 1)
        assert group.next_voter_change() == ("demote", 3)
        group.voters = (1, 2)
        assert group.next_voter_change() == ("demote", 2), "of two members one votes"

    def leaving(self, nodes: int) -> Group:
        """Node 3 votes, is alive and leaves with nothing left on it. All others have just been heard of."""
        group = Group(nodes, (1, 2, 3), had_three=True)
        group.table.forge_all(1)
        group.table.do(c.DrainNode(nid(3), then_remove=True))
        group.liveness.lead(group.now_ms)
        return group

    def test_three_never_become_one_while_somebody_could_vote(self) -> None:
        group = self.leaving(5)
        assert group.next_voter_change() == ("promote", 4), "though it has not shown 30 s of health"
        group.voters = (1, 2, 3, 4)
        assert group.next_voter_change() == ("demote", 3)
        group.voters = (1, 2, 4)
        assert group.next_voter_change() is None

    def test_a_trusted_one_is_preferred(self) -> None:
        group = self.leaving(4)
        group.go(group.now_ms + 31_000)
        group.table.down(2)
        group.table.register(2, 2)
        group.table.register(5)
        group.go(group.now_ms)
        group.voters = (1, 3)
        assert group.next_voter_change() == ("promote", 4)

    def test_one_that_may_yet_catch_up_is_waited_for_while_the_leaver_lives(self) -> None:
        group = self.leaving(4)
        group.behind = (4,)
        assert group.next_voter_change() is None
        group.behind = ()
        assert group.next_voter_change() == ("promote", 4)
        group.behind = (4,)
        group.go(group.now_ms + 31_000)
        assert group.next_voter_change() == ("demote", 3), "but not for ever"

    def test_nor_are_two_left_at_one_while_somebody_may_yet_catch_up(self) -> None:
        group = self.leaving(4)
        group.voters = (1, 2)
        group.behind = (4,)
        assert group.next_voter_change() is None
        group.behind = ()
        assert group.next_voter_change() == ("promote", 4)

    def test_a_leaver_that_is_down_is_not_waited_for(self) -> None:
        group = self.leaving(4)
        group.table.down(3)
        group.behind = (4,)
        group.go(group.now_ms + 31_000)
        assert group.next_voter_change() == ("demote", 3)
        group.voters = (1, 2)
        group.behind = ()
        assert group.next_voter_change() == ("promote", 4)

    def test_one_that_is_silent_stands_in_for_nobody(self) -> None:
        group = self.leaving(4)
        group.now_ms += group.liveness.settings.suspect_ms
        group.liveness.record_heartbeat(nid(3), group.now_ms, 0, Health())
        assert group.next_voter_change() == ("demote", 3)

    def test_a_leader_that_leaves_keeps_three_voters(self) -> None:
        group = Group(5, (1, 2, 3), had_three=True)
        group.table.forge_all(2)
        group.table.do(c.DrainNode(nid(1), then_remove=True))
        assert group.next_voter_change() == ("promote", 4)
        group.voters = (1, 2, 3, 4)
        assert group.next_voter_change() == ("transfer", 2)
        group.me = 2
        group.liveness.lead(group.now_ms)
        assert group.next_voter_change() == ("demote", 1)

    def test_a_leader_that_leaves_hands_over_first(self) -> None:
        group = Group(2, (1,))
        group.table.forge_all(2)
        group.table.do(c.DrainNode(nid(1), then_remove=True))
        assert group.next_voter_change() == ("promote", 2)
        group.voters = (1, 2)
        assert group.next_voter_change() == ("transfer", 2)
        group.me = 2
        assert group.next_voter_change() == ("demote", 1)
        group.voters = (2,)
        assert group.next_voter_change() is None

    def test_a_sole_voter_that_leaves_waits_for_somebody(self) -> None:
        group = Group(2, (1,))
        group.behind = (2,)
        group.table.forge_all(2)
        group.table.do(c.DrainNode(nid(1), then_remove=True))
        assert group.next_voter_change() is None


def test_members_that_the_table_does_not_know_are_left_alone() -> None:
    table = Table(2)
    view = RaftView(nid(1), ids(1, 8, 9), ids(2, 7), ids(1, 2, 7, 8, 9))
    assert next_voter_change(table.map, Liveness(0), view, 0) is None


@pytest.mark.parametrize("wanted", [1, 3, 5])
def test_a_cluster_that_grows_and_shrinks_never_rests_at_an_even_number(wanted: int) -> None:
    table = Table(1, voters=wanted, partitions=4)
    settling = Settling(table)
    for number in range(2, 7):
        table.register(number)
        settling.run()
        settling.check_rest()
    assert len(settling.voters) == wanted
    for number in (1, 6, 2, 5):
        table.do(c.DrainNode(nid(number), then_remove=True))
        settling.run()
        settling.check_rest()
        assert not table.map.nodes[nid(number)].is_member
    assert len(settling.voters) == 1
