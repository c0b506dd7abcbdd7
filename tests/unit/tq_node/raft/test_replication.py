"""Replication, one rule a test. Sections in brackets: Ongaro's dissertation."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.raft.single import (
    A,
    B,
    C,
    D,
    acknowledge,
    answer,
    core_of,
    drain,
    entry,
    hear,
    lead,
    leader_of,
    only,
    said,
    step,
    tick,
)
from tq_node.errors import Busy, PayloadTooLarge, Unsound
from tq_node.raft.core import RaftCore
from tq_node.raft.messages import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Persisted,
)
from tq_node.raft.progress import Mode
from tq_node.raft.settings import NotLeader, RaftSettings


class TestFollower:
    """3.5."""

    def test_answers_only_after_the_disk_has_the_entries(self) -> None:
        core = core_of()
        core.step(Append(B, A, 1, 1, 1, 1, (entry(1, 2),)), 0)
        ready = core.ready()
        assert [each.log_index for each in ready.entries] == [2]
        assert not ready.messages
        assert only(ready.messages_after_persist, AppendReply)[0].log_index == 2

    def test_says_where_it_may_agree(self) -> None:
        reply = only(step(core_of(1, 1, 5, 5), Append(B, A, 6, 5, 3, 1)), AppendReply)[0]
        assert (reply.rejected, reply.log_index, reply.hint_index, reply.hint_term) == (True, 5, 3, 1)

    def test_commits_what_is_proven_and_no_more(self) -> None:
        core = core_of(1, 1, 1)
        step(core, Append(B, A, 1, 1, 1, 9, (entry(1, 2),)))
        assert core.commit_index == 2
        step(core, Append(B, A, 1, 3, 1, 3))
        assert core.commit_index == 3

    def test_an_append_below_the_commit_index_is_answered_with_it(self) -> None:
        core = core_of(1, 1)
        step(core, Append(B, A, 1, 3, 1, 3))
        reply = only(step(core, Append(B, A, 1, 1, 1, 1, (entry(1, 2),))), AppendReply)[0]
        assert (reply.rejected, reply.log_index) == (False, 3)

    def test_a_heartbeat_is_answered_while_the_disk_is_slow(self) -> None:
        core = core_of()
        core.step(Append(B, A, 1, 1, 1, 1, (entry(1, 2),)), 0)
        core.ready()
        hear_reply = only(hear(core), HeartbeatReply)
        assert hear_reply

    def test_but_not_before_a_new_term_is_durable(self) -> None:
        core = core_of()
        core.step(Append(B, A, 4, 1, 1, 1), 0)
        core.ready()
        core.step(HeartbeatReply(C, A, 1, 1), 0)
        core.step(Heartbeat(B, A, 4, 1, 1), 0)
        ready = core.ready()
        assert not ready.messages
        assert only(ready.messages_after_persist, HeartbeatReply)


class TestCommit:
    """3.6.2; F2."""

    def test_a_majority_commits(self) -> None:
        core = leader_of()
        index = core.propose(b"x")
        said(core)
        assert core.commit_index == index - 1
        acknowledge(core, B)
        assert core.commit_index == index

    def test_an_entry_of_an_old_term_is_not_counted(self) -> None:
        core = core_of(2, 2)
        lead(core, B)
        step(core, AppendReply(B, A, core.term, 3))
        assert core.commit_index == 1
        step(core, AppendReply(B, A, core.term, 4))
        assert core.commit_index == 4, "with the no-op all before it commits"

    def test_a_leader_counts_itself_when_its_disk_has_it(self) -> None:
        core = leader_of()
        index = core.propose(b"x")
        ready = core.ready()
        assert only(ready.messages, Append), "but it sends at once"
        core.step(AppendReply(B, A, core.term, index), 0)
        assert core.commit_index == index - 1
        core.persisted(ready.number)
        assert core.commit_index == index

    def test_others_may_be_the_majority(self) -> None:
        core = leader_of()
        index = core.propose(b"x")
        ready = core.ready()
        for node in (B, C):
            core.step(AppendReply(node, A, core.term, index), 0)
        assert core.commit_index == index
        assert not core.ready().committed, "what is not durable here is not applied"
        core.persisted(ready.number)
        assert [each.log_index for each in core.ready().committed] == [index]

    def test_learners_are_not_counted_4_2_1(self) -> None:
        core = leader_of(learners=(D,))
        index = core.propose(b"x")
        said(core)
        acknowledge(core, D)
        assert core.commit_index == index - 1

    def test_followers_are_told(self) -> None:
        core = leader_of()
        core.propose(b"x")
        said(core)
        assert [append.commit_index for append in only(acknowledge(core, B), Append)] == [3, 3]

    def test_a_follower_that_says_it_has_more_than_its_leader_is_not_counted(self) -> None:
        core = leader_of()
        core.propose(b"x")
        said(core)
        with pytest.raises(Unsound, match="a follower has 99"):
            core.step(AppendReply(B, A, core.term, 99), 0)
        assert core.commit_index == core.log.last_index - 1


class TestProposals:
    def test_only_a_leader_takes_them_and_says_who_is(self) -> None:
        core = core_of()
        with pytest.raises(NotLeader) as refused:
            core.propose(b"x")
        assert refused.value.leader is None
        hear(core, B)
        with pytest.raises(NotLeader) as refused:
            core.propose(b"x")
        assert (refused.value.leader, refused.value.definite, refused.value.retryable) == (B, True, True)

    def test_they_are_bounded_one_by_one(self) -> None:
        core = leader_of()
        with pytest.raises(PayloadTooLarge):
            core.propose(b"x" * (192 * 1024))

    def test_they_are_bounded_together_until_they_commit(self) -> None:
        core = leader_of(settings=RaftSettings(uncommitted_bytes_max=1_000, entry_bytes_max=1_000))
        for _ in range(7):
            core.propose(b"x" * 100)
        with pytest.raises(Busy):
            core.propose(b"x" * 100)
        said(core)
        acknowledge(core, B)
        assert core.state.uncommitted_bytes == 0
        core.propose(b"x" * 100)

    def test_what_an_election_inherits_is_counted(self) -> None:
        core = core_of(1, 1, 1)
        lead(core, B)
        assert core.state.uncommitted_bytes == sum(each.size_bytes for each in core.log.entries)


class TestFlow:
    """10.2; replication.md section 11."""

    def test_a_message_is_bounded(self) -> None:
        core = leader_of(
            settings=RaftSettings(
                message_bytes_max=500, entry_bytes_max=400, snapshot_chunk_bytes=100, inflight_messages_max=2
            )
        )
        for _ in range(20):
            core.propose(b"x" * 100)
        appends = only(said(core), Append)
        assert max(sum(each.size_bytes for each in append.entries) for append in appends) <= 500
        assert len(appends) == 4, "and so many are under way to each"

    def test_a_full_window_opens_with_an_answer(self) -> None:
        core = leader_of(settings=RaftSettings(inflight_messages_max=1))
        core.propose(b"x")
        core.propose(b"y")
        assert len(only(said(core), Append)) == 2
        more = only(step(core, AppendReply(B, A, core.term, 3)), Append)
        assert [append.entries[0].data for append in more if append.entries] == [b"y"]

    def test_a_lost_append_is_noticed_at_the_next_heartbeat_even_with_a_full_window(self) -> None:
        core = leader_of(settings=RaftSettings(inflight_messages_max=1))
        core.propose(b"x")
        said(core)
        tick(core, 2)
        append = only(answer(core, B, 1), Append)[0]
        assert (append.prev_log_index, append.entries) == (3, ())
        append = only(step(core, AppendReply(B, A, core.term, 3, rejected=True, hint_index=2, hint_term=2)), Append)[0]
        assert (append.prev_log_index, append.entries[0].data) == (2, b"x")

    def test_a_lost_probe_is_sent_again_at_the_next_heartbeat(self) -> None:
        core = core_of()
        lead(core, B)
        acknowledge(core, B)
        assert core.followers()[C].mode is Mode.PROBE
        assert only(answer(core, C, 1), Append)

    def test_a_probe_that_has_nothing_to_tell_still_ends(self) -> None:
        core = leader_of()
        core.state.progress[C].mode = Mode.PROBE
        assert only(answer(core, C, 1), Append)

    def test_old_rejections_move_nothing(self) -> None:
        core = leader_of()
        assert step(core, AppendReply(B, A, core.term, 1, rejected=True)) == []

    def test_answers_of_strangers_are_not_counted(self) -> None:
        core = leader_of()
        assert step(core, AppendReply(D, A, core.term, 2)) == []

    def test_a_change_of_membership_waits_for_the_leaders_disk(self) -> None:
        core = leader_of()
        core.propose_change(Change(ChangeKind.DEMOTE, C))
        core.propose(b"behind it")
        ready = core.ready()
        assert not only(ready.messages, Append)
        core.persisted(ready.number)
        kinds = [each.kind for append in only(said(core), Append) for each in append.entries]
        assert kinds == [EntryKind.CONFIGURATION, EntryKind.DATA] * 2


class TestReady:
    def test_nothing_is_handed_out_twice(self) -> None:
        core = core_of()
        core.step(Append(B, A, 2, 1, 1, 1, (entry(2, 2),)), 0)
        assert core.has_ready
        first = core.ready()
        assert first.must_persist
        assert first.soft_state is not None
        second = core.ready()
        assert not bool(core.has_ready)
        assert not second.must_persist
        assert (second.soft_state, second.messages_after_persist, second.number) == (None, (), first.number + 1)

    def test_committed_entries_come_once_each_and_in_bounded_portions(self) -> None:
        core = core_of(*[1] * 9, settings=RaftSettings(committed_bytes_max=100))
        core.step(Append(B, A, 1, 10, 1, 10), 0)
        _, readies = drain(core)
        assert [each.log_index for ready in readies for each in ready.committed] == list(range(2, 11))
        assert len([ready for ready in readies if ready.committed]) > 1

    def test_one_voter_needs_only_its_disk(self) -> None:
        core = core_of(voters=(A,))
        core._election.campaign()
        _, readies = drain(core)
        assert [each.kind for ready in readies for each in ready.committed] == [EntryKind.NO_OP]
        index = core.propose(b"x")
        _, readies = drain(core)
        assert [each.log_index for ready in readies for each in ready.committed] == [index]

    def test_restart_begins_where_the_state_machine_is(self) -> None:
        entries = tuple(entry(1, index) for index in (2, 3))
        core = RaftCore(A, Persisted(HardState(1), core_of().log.snapshot, entries, applied_index=2), seed=1)
        core.step(Append(B, A, 1, 3, 1, 3), 0)
        _, readies = drain(core)
        assert [each.log_index for ready in readies for each in ready.committed] == [3]

    def test_a_hard_state_older_than_the_log_stops_the_process(self) -> None:
        with pytest.raises(AssertionError):
            core_of(5, term=2)


def test_what_a_leader_knows_of_its_followers() -> None:
    core = leader_of(learners=(D,))
    assert sorted(core.followers()) == [B, C, D]
    status = core.followers()[B]
    assert (status.match_index, status.mode, status.is_active) == (2, Mode.REPLICATE, True)
    assert core_of().followers() == {}
