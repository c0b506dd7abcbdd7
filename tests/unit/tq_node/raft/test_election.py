"""Elections, one rule a test. Sections in brackets: Ongaro's dissertation."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.raft.single import A, B, C, D, asks, core_of, hear, lead, leader_of, only, said, step, tick
from tq_node.errors import Unsound
from tq_node.raft.core import RaftCore
from tq_node.raft.election import EVIDENCE_CAMPAIGNS_MAX
from tq_node.raft.messages import (
    Append,
    AppendReply,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Persisted,
    Role,
    SnapshotChunk,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tq_node.raft.rng import Rng
from tq_node.raft.settings import RaftSettings

ELECTION = RaftSettings().election_ticks


class TestTime:
    def test_a_silent_follower_asks_between_one_and_two_election_timeouts_3_4(self) -> None:
        firsts = set()
        for seed in range(40):
            core = RaftCore(A, Persisted(HardState(1), core_of().log.snapshot), seed=seed)
            ticks = 0
            while core.role is Role.FOLLOWER:
                ticks += 1
                tick(core)
            firsts.add(ticks)
        assert min(firsts) >= ELECTION
        assert max(firsts) < 2 * ELECTION
        assert len(firsts) > 5, "drawn"

    def test_a_heartbeat_begins_the_time_anew(self) -> None:
        core = core_of()
        for _ in range(10):
            hear(core)
            tick(core, ELECTION - 1)
        assert core.role is Role.FOLLOWER

    def test_a_learner_never_asks_but_forgets_a_silent_leader_4_2_1(self) -> None:
        core = core_of(voters=(B, C), learners=(A,))
        hear(core)
        assert not only(tick(core, 5 * ELECTION), Vote)
        assert (core.role, core.leader) == (Role.FOLLOWER, None)

    def test_the_dice_are_the_same_for_the_same_seed(self) -> None:
        assert [Rng(5).draw() for _ in range(3)] == [Rng(5).draw() for _ in range(3)]
        assert Rng(5).draw() != Rng(6).draw()
        with pytest.raises(AssertionError):
            Rng(1).below(0)


class TestPreVote:
    """9.6; F4."""

    def test_asking_changes_neither_term_nor_vote(self) -> None:
        core = core_of(2, vote=B)
        core._election.campaign()
        ready = core.ready()
        assert ready.hard_state is None
        assert [(vote.pre, vote.term) for vote in only(ready.messages_after_persist, Vote)] == [(True, 3)] * 2

    def test_a_majority_of_grants_leads_to_a_real_campaign(self) -> None:
        core = core_of()
        core._election.campaign()
        said(core)
        votes = only(step(core, VoteReply(B, A, 2, granted=True, pre=True)), Vote)
        assert (core.role, core.term) == (Role.CANDIDATE, 2)
        assert all(not vote.pre and vote.term == 2 for vote in votes)

    def test_refusals_lead_back(self) -> None:
        core = core_of()
        core._election.campaign()
        step(core, VoteReply(B, A, 1, granted=False, pre=True))
        step(core, VoteReply(C, A, 1, granted=False, pre=True))
        assert (core.role, core.term) == (Role.FOLLOWER, 1)

    def test_a_late_grant_of_an_earlier_campaign_does_not_count(self) -> None:
        core = core_of(term=5)
        core._election.campaign()
        step(core, VoteReply(B, A, 5, granted=True, pre=True))
        step(core, VoteReply(B, A, 9, granted=True, pre=True))
        assert core.role is Role.PRE_CANDIDATE

    def test_giving_one_promises_nothing(self) -> None:
        core = core_of()
        for source in (B, C):
            reply = asks(core, source, term=2, pre=True)
            assert reply is not None
            assert (reply.granted, reply.term) == (True, 2)
        assert core.state.hard_state == HardState(1)

    def test_it_is_refused_to_a_log_that_could_not_win(self) -> None:
        reply = asks(core_of(2, 2), B, term=9, log=(2, 2), pre=True)
        assert reply is not None
        assert (reply.granted, reply.term) == (False, 2)

    def test_a_higher_term_in_a_refusal_is_taken_up(self) -> None:
        core = core_of()
        core._election.campaign()
        step(core, VoteReply(B, A, 9, granted=False, pre=True))
        assert (core.role, core.term) == (Role.FOLLOWER, 9)


class TestVote:
    """3.4, 3.6.1; F1."""

    def test_one_a_term_also_after_a_restart(self) -> None:
        core = core_of()
        first, second, again = (asks(core, source, term=2) for source in (B, C, B))
        assert [reply and reply.granted for reply in (first, second, again)] == [True, False, True]
        restarted = core_of(term=2, vote=B)
        reply = asks(restarted, C, term=2)
        assert reply is not None
        assert not reply.granted

    def test_it_leaves_only_after_the_disk_has_it(self) -> None:
        core = core_of()
        core.step(Vote(B, A, 2, 9, 9), 0)
        ready = core.ready()
        assert ready.hard_state == HardState(2, B)
        assert not ready.messages
        assert only(ready.messages_after_persist, VoteReply)

    @pytest.mark.parametrize(
        ("log", "granted"), [((3, 2), True), ((9, 1), False), ((2, 2), False), ((2, 3), True), ((4, 2), True)]
    )
    def test_only_a_log_at_least_as_complete_may_win(self, log: tuple[int, int], granted: bool) -> None:
        reply = asks(core_of(2, 2), B, term=3, log=log)
        assert reply is not None
        assert reply.granted is granted

    def test_who_is_led_in_this_term_gives_no_vote_in_it(self) -> None:
        core = core_of(term=2)
        hear(core)
        reply = asks(core, C, term=2)
        assert reply is not None
        assert not reply.granted

    def test_a_learner_votes_for_it_may_have_been_promoted_without_knowing(self) -> None:
        reply = asks(core_of(voters=(B, C, D), learners=(A,)), B, term=2)
        assert reply is not None
        assert reply.granted

    def test_loyalty_within_an_election_timeout_of_hearing_the_leader_4_2_3(self) -> None:
        core = core_of()
        hear(core)
        tick(core, ELECTION - 1)
        assert asks(core, C, term=9) is None
        assert asks(core, C, term=9, pre=True) is None
        assert core.term == 1
        core.state.election_timeout = 99
        tick(core)
        assert asks(core, C, term=9) is not None

    def test_a_leader_is_loyal_to_itself_unless_it_wishes_to_go_3_10(self) -> None:
        core = leader_of()
        assert asks(core, B, term=9) is None
        assert only(step(core, Vote(B, A, 9, 9, 9, force=True)), VoteReply)[0].granted


class TestCandidate:
    def test_its_own_vote_counts_when_it_is_durable_f1(self) -> None:
        core = core_of(voters=(A,))
        core._election.campaign()
        ready = core.ready()
        assert (core.role, ready.hard_state) == (Role.CANDIDATE, HardState(2, A))
        core.persisted(ready.number)
        assert core.is_leader

    def test_requests_for_votes_wait_for_the_disk(self) -> None:
        core = core_of()
        core._election.campaign_for_real()
        ready = core.ready()
        assert not ready.messages
        assert len(only(ready.messages_after_persist, Vote)) == 2

    def test_it_steps_back_for_a_leader_of_its_term(self) -> None:
        core = core_of()
        core._election.campaign_for_real()
        hear(core, C)
        assert (core.role, core.leader, core.term) == (Role.FOLLOWER, C, 2)

    def test_it_asks_anew_after_a_split_vote(self) -> None:
        core = core_of()
        core._election.campaign_for_real()
        said(core)
        assert any(vote.pre and vote.term == 3 for vote in only(tick(core, 2 * ELECTION), Vote))

    def test_votes_that_come_too_late_mean_nothing(self) -> None:
        core = leader_of()
        step(core, VoteReply(C, A, core.term, granted=True))
        assert core.is_leader

    def test_who_says_that_it_leads_in_the_leaders_own_term_is_not_believed(self) -> None:
        core = leader_of()
        with pytest.raises(Unsound, match="b says that it leads in term 2"):
            core.step(Heartbeat(B, A, core.term, 0, 1), 0)
        assert core.is_leader
        assert said(core) == []


class TestOldTerms:
    """Section 11: a stale leader or a stuck candidate learns the term."""

    @pytest.mark.parametrize(
        "message",
        [
            Append(B, A, 1, 1, 1, 1),
            Heartbeat(B, A, 1, 1, 1),
            SnapshotChunk(B, A, 1, 9, 1, core_of().configuration, 1, 0, 0, b""),
        ],
    )
    def test_a_stale_leader_is_told(self, message: Append | Heartbeat | SnapshotChunk) -> None:
        reply = only(step(core_of(term=5), message), AppendReply)[0]
        assert (reply.term, reply.rejected) == (5, True)

    @pytest.mark.parametrize("pre", [False, True])
    def test_a_stuck_candidate_is_told(self, pre: bool) -> None:
        reply = asks(core_of(term=5), B, term=2, pre=pre)
        assert reply is not None
        assert (reply.term, reply.granted, reply.pre) == (5, False, pre)

    def test_answers_of_an_old_term_are_dropped(self) -> None:
        core = leader_of(4)
        assert step(core, AppendReply(B, A, 2, 1)) == []
        assert step(core, HeartbeatReply(B, A, 2, 1)) == []

    def test_a_higher_term_deposes_a_leader(self) -> None:
        core = leader_of()
        step(core, AppendReply(B, A, 9, 0, rejected=True))
        assert (core.role, core.term, core.leader) == (Role.FOLLOWER, 9, None)

    def test_a_message_for_somebody_else_stops_the_process(self) -> None:
        with pytest.raises(AssertionError):
            core_of().step(Heartbeat(B, C, 1, 1, 1), 0)


class TestCheckQuorum:
    """6.2; F5."""

    def test_a_leader_that_hears_no_majority_steps_down(self) -> None:
        core = leader_of(voters=(A, B, C, D))
        tick(core, ELECTION - 1)
        step(core, HeartbeatReply(B, A, core.term, 1))
        tick(core)
        assert core.role is Role.FOLLOWER, "two of four are no majority"

    def test_answers_keep_it_in_place(self) -> None:
        core = leader_of()
        for _ in range(5):
            tick(core, ELECTION - 1)
            step(core, HeartbeatReply(C, A, core.term, 1))
        assert core.is_leader

    def test_a_learner_does_not_keep_it_in_place(self) -> None:
        core = leader_of(learners=(D,))
        for _ in range(2):
            tick(core, ELECTION - 1)
            if core.is_leader:
                step(core, HeartbeatReply(D, A, core.term, 1))
        assert not core.is_leader


class TestEvidence:
    """R5a."""

    def test_pre_votes_are_granted_at_once(self) -> None:
        core = core_of()
        hear(core, B)
        assert asks(core, C, term=2, pre=True) is None
        core.leader_died(B, 1_000)
        reply = asks(core, C, term=2, pre=True)
        assert reply is not None
        assert reply.granted

    def test_it_campaigns_within_150_ms(self) -> None:
        delays = set()
        for seed in range(30):
            core = RaftCore(A, Persisted(HardState(1), core_of().log.snapshot), seed=seed)
            hear(core, B)
            core.leader_died(B, 1_000)
            assert core.wake_at_ms is not None
            delays.add(core.wake_at_ms - 1_000)
            core.wake(core.wake_at_ms - 1)
            roles = [core.role]
            core.wake(core.wake_at_ms)
            assert [*roles, core.role] == [Role.FOLLOWER, Role.PRE_CANDIDATE]
        assert 0 <= min(delays) < max(delays) <= 150
        assert len(delays) > 10

    def test_it_tries_again_soon_and_not_for_ever(self) -> None:
        core = core_of()
        hear(core, B)
        core.leader_died(B, 0)
        campaigns = 0
        while core.wake_at_ms is not None:
            core.wake(core.wake_at_ms)
            campaigns += 1
            said(core)
        assert campaigns == EVIDENCE_CAMPAIGNS_MAX

    def test_a_leader_that_is_heard_ends_it(self) -> None:
        core = core_of()
        hear(core, B)
        core.leader_died(B, 0)
        hear(core, B)
        assert (core.leader, core.wake_at_ms) == (B, None)

    def test_a_vote_given_to_another_puts_it_off(self) -> None:
        core = core_of()
        hear(core, B)
        core.leader_died(B, 0)
        assert asks(core, C, term=2) is not None
        assert core.wake_at_ms is not None
        assert core.wake_at_ms >= 150

    def test_it_says_nothing_of_others_or_to_a_leader(self) -> None:
        core = core_of()
        hear(core, B)
        core.leader_died(C, 0)
        assert (core.leader, core.wake_at_ms) == (B, None)
        leader = leader_of()
        leader.leader_died(A, 0)
        assert leader.is_leader

    def test_a_learner_forgets_and_does_not_campaign(self) -> None:
        core = core_of(voters=(B, C), learners=(A,))
        hear(core, B)
        core.leader_died(B, 0)
        assert core.leader is None
        core.wake(500)
        assert not only(said(core), Vote)


class TestTimeoutNow:
    """3.10."""

    def test_campaigns_at_once_without_a_pre_vote(self) -> None:
        core = core_of()
        hear(core, B)
        votes = only(step(core, TimeoutNow(B, A, 1)), Vote)
        assert [(vote.force, vote.pre, vote.term) for vote in votes] == [(True, False, 2)] * 2

    def test_from_anybody_but_the_leader_or_to_a_learner_it_means_nothing(self) -> None:
        core = core_of()
        hear(core, B)
        assert step(core, TimeoutNow(C, A, 1)) == []
        learner = core_of(voters=(B, C), learners=(A,))
        hear(learner, B)
        assert step(learner, TimeoutNow(B, A, 1)) == []


def test_a_new_leader_begins_with_an_entry_of_its_term_3_6_2() -> None:
    core = core_of(2)
    appends = only(lead(core, B), Append)
    assert [(append.prev_log_index, append.entries[0].term, append.entries[0].log_index) for append in appends] == [
        (2, 3, 3)
    ] * 2
