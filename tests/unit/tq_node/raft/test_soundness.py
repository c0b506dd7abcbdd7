"""What a peer can't say without being refused, and that a refusal changes nothing (F14, section 12)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.tq_node.raft.single import A, B, C, asks, core_of, entry, leader_of, only, said, step, tick
from tq_node.errors import Unsound
from tq_node.raft.core import RaftCore
from tq_node.raft.messages import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    Role,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
    encode_change,
)

FAR = 2**33
ABSURD = 2**62 + 1
US = Configuration((A, B, C))


def configuration(data: bytes) -> Entry:
    return Entry(1, 2, EntryKind.CONFIGURATION, data)


def change(*voters: Any, learners: Any = ()) -> Entry:
    return configuration(
        encode_change(ConfigurationChange(Configuration(voters, learners), Change(ChangeKind.PROMOTE, B)))
    )


def chunk(**fields: Any) -> SnapshotChunk:
    good = SnapshotChunk(B, A, 1, 9, 1, US, 1, 0, 2, b"xx")
    return replace(good, **fields)


UNSOUND: list[Message] = [
    *(Vote(B, A, term, 1, 1) for term in (-1, FAR, ABSURD)),
    *(VoteReply(B, A, term, True, True) for term in (-1, FAR)),
    *(TimeoutNow(B, A, term) for term in (-1, FAR)),
    Vote(B, A, 2, -1, 1),
    Vote(B, A, 2, FAR, 1),
    Vote(B, A, 2, 1, -1),
    Vote(B, A, 2, 1, ABSURD),
    Append(B, A, 1, -1, 0, 0),
    Append(B, A, 1, FAR, 1, 0),
    Append(B, A, 1, 1, 2, 0),
    Append(B, A, 1, 1, -1, 0),
    Append(B, A, 1, 1, 1, FAR),
    Append(B, A, 1, 1, 1, -1),
    Append(B, A, 1, 1, 1, 1, (entry(1, 3),)),
    Append(B, A, 1, 1, 1, 1, (entry(1, 2), entry(1, 2))),
    Append(B, A, 1, 1, 1, 1, (entry(0, 2),)),
    Append(B, A, 1, 1, 1, 1, (entry(2, 2),)),
    Append(B, A, 3, 1, 1, 1, (entry(3, 2), entry(2, 3))),
    Append(B, A, 1, 1, 1, 1, (configuration(b"garbage"),)),
    Append(B, A, 1, 1, 1, 1, (configuration(b""),)),
    Append(B, A, 1, 1, 1, 1, (change(),)),
    Append(B, A, 1, 1, 1, 1, (change(A, A),)),
    Append(B, A, 1, 1, 1, 1, (change(A, learners=(A,)),)),
    Append(B, A, 1, 1, 1, 1, (change(A, ""),)),
    Append(B, A, 1, 1, 1, 1, (change(A, "x" * 65),)),
    AppendReply(B, A, 1, -1),
    AppendReply(B, A, 1, FAR),
    AppendReply(B, A, 1, 1, True, -1, 0),
    AppendReply(B, A, 1, 1, True, FAR, 0),
    AppendReply(B, A, 1, 1, True, 0, -1),
    Heartbeat(B, A, 1, -1, 1),
    Heartbeat(B, A, 1, FAR, 1),
    Heartbeat(B, A, 1, 1, -1),
    Heartbeat(B, A, 1, 1, ABSURD),
    HeartbeatReply(B, A, 1, -1),
    chunk(log_index=0),
    chunk(log_index=FAR),
    chunk(log_term=2),
    chunk(configuration=Configuration()),
    chunk(configuration_index=10),
    chunk(configuration_index=-1),
    chunk(offset=-1),
    chunk(offset=1),
    chunk(total_bytes=1),
    chunk(total_bytes=-1, data=b""),
    SnapshotReply(B, A, 1, FAR, 0),
    SnapshotReply(B, A, 1, 1, -1),
    ReadRequest(B, A, 1, -1),
    ReadRequest(B, A, 1, 2**64),
    ReadReply(B, A, 1, 1, FAR),
]


@pytest.mark.parametrize("message", UNSOUND, ids=repr)
def test_what_can_not_be_is_refused_and_changes_nothing(message: Message) -> None:
    for core in (core_of(), leader_of()):
        _is_refused(core, replace(message, term=core.term) if message.term == 1 else message)


def _is_refused(core: RaftCore, message: Message) -> None:
    before = core.state.hard_state, core.state.soft_state, core.log.last_index, core.commit_index
    with pytest.raises(Unsound):
        core.step(message, 0)
    assert (core.state.hard_state, core.state.soft_state, core.log.last_index, core.commit_index) == before
    assert said(core) == []


def test_a_leader_does_not_believe_answers_to_what_it_never_asked() -> None:
    core = leader_of()
    for message in (
        AppendReply(B, A, core.term, core.log.last_index + 1),
        HeartbeatReply(B, A, core.term, core._reads.round + 1),
    ):
        with pytest.raises(Unsound):
            core.step(message, 0)
    assert core.is_leader


def test_a_snapshot_that_can_not_be_read_is_not_taken() -> None:
    core = core_of()
    core._snapshots._is_readable = lambda log_index, data: data != b"xx"
    with pytest.raises(Unsound, match="can't be read"):
        core.step(chunk(), 0)
    assert core.log.last_index == 1
    assert said(core) == []
    assert only(step(core, chunk(data=b"yy")), AppendReply) == [AppendReply(A, B, 1, 9)]


class TestArrears:
    """A leader's word that this node had acknowledged more than it has (F14; docs/explanation/raft.md)."""

    def test_it_gets_no_answer_that_counts_and_what_is_missing_is_asked_for(self) -> None:
        core = core_of()
        assert step(core, Heartbeat(B, A, 1, 5, 1)) == [AppendReply(A, B, 1, 5, True, 1, 1, lost=True)]
        assert core.claim is not None
        assert (core.claim.source, core.claim.term, core.claim.log_index) == (B, 1, 5)
        assert core.commit_index == 1

    def test_it_votes_for_nobody_who_lacks_what_was_claimed(self) -> None:
        for log, granted in (((1, 1), False), ((4, 1), False), ((5, 1), True), ((2, 2), True)):
            core = core_of()
            step(core, Heartbeat(B, A, 1, 5, 1))
            tick(core, 20)
            reply = asks(core, C, term=3, log=log)
            assert reply is not None
            assert reply.granted is granted, log

    def test_it_asks_for_pre_votes_and_never_campaigns(self) -> None:
        core = core_of()
        step(core, Heartbeat(B, A, 1, 5, 1))
        assert any(vote.pre for vote in only(tick(core, 20), Vote))
        assert core.role is Role.PRE_CANDIDATE
        step(core, VoteReply(C, A, core.term + 1, granted=True, pre=True))
        assert (core.role, core.term) == (Role.PRE_CANDIDATE, 1)
        step(core, Heartbeat(B, A, 1, 5, 1))
        assert only(step(core, TimeoutNow(B, A, 1)), Vote) == []

    def test_entries_up_to_the_place_settle_it(self) -> None:
        core = core_of()
        step(core, Heartbeat(B, A, 1, 3, 1))
        step(core, Append(B, A, 1, 1, 1, 1, (entry(1, 2),)))
        assert core.claim is not None
        step(core, Append(B, A, 1, 2, 1, 1, (entry(1, 3),)))
        assert core.claim is None

    def test_an_entry_of_a_later_term_settles_it(self) -> None:
        core = core_of()
        step(core, Heartbeat(B, A, 1, 99, 1))
        step(core, Append(C, A, 2, 1, 1, 1))
        assert core.claim is not None, "that the logs agree so far says nothing yet"
        step(core, Append(C, A, 2, 1, 1, 1, (entry(2, 2),)))
        assert core.claim is None

    def test_a_snapshot_settles_it(self) -> None:
        core = core_of()
        step(core, Heartbeat(B, A, 1, 9, 1))
        step(core, chunk())
        assert core.claim is None

    def test_logs_of_all_others_that_end_before_settle_it(self) -> None:
        core = core_of()
        step(core, Heartbeat(B, A, 1, 99, 1))
        tick(core, 20)
        asks(core, B, term=2, log=(1, 1), pre=True)
        asks(core, C, term=3, log=(1, 1), pre=True)
        assert core.claim is not None, "one of term 1 may have been sent before the other acknowledged anything"
        asks(core, B, term=3, log=(1, 1), pre=True)
        assert core.claim is None

    def test_the_furthest_claim_counts(self) -> None:
        core = core_of()
        step(core, Heartbeat(B, A, 1, 9, 1))
        step(core, Heartbeat(B, A, 1, 5, 1))
        assert core.claim is not None
        assert core.claim.log_index == 9

    def test_the_leader_sends_again_what_was_lost(self) -> None:
        core = leader_of()
        for _ in range(3):
            core.propose(b"x")
        said(core)
        step(core, AppendReply(B, A, core.term, 5))
        assert core.followers()[B].match_index == 5
        [append] = only(step(core, AppendReply(B, A, core.term, 5, True, 1, 1, lost=True)), Append)
        assert append.prev_log_index == 1
        assert core.followers()[B].match_index == 0
        assert core.commit_index == 5
        [append] = only(step(core, AppendReply(B, A, core.term, 1)), Append)
        assert [one.log_index for one in append.entries] == [2, 3, 4, 5]

    def test_a_late_word_of_a_loss_changes_nothing(self) -> None:
        core = leader_of()
        assert step(core, AppendReply(B, A, core.term, 3, True, 1, 1, lost=True)) == []
        assert core.followers()[B].match_index == 2

    def test_a_run_that_has_taken_entries_knows_better_than_a_later_leader(self) -> None:
        core = core_of()
        step(core, Append(B, A, 1, 1, 1, 1, (entry(1, 2),)))
        assert only(step(core, Heartbeat(C, A, 2, 99, 1)), AppendReply)[0].lost
        assert core.claim is not None
        assert not core.claim.binds
        tick(core, 20)
        assert asks(core, B, term=4, log=(2, 1)).granted  # type: ignore[union-attr]
        step(core, Append(B, A, 4, 2, 1, 1))
        assert core.claim is None, "an entry agrees"

    def test_pre_votes_of_all_others_settle_it(self) -> None:
        core = core_of()
        step(core, Heartbeat(B, A, 1, 99, 1))
        tick(core, 20)
        for node in (C, B):
            assert core.claim is not None
            step(core, VoteReply(node, A, core.term + 1, granted=True, pre=True))
        assert core.claim is None
        assert core.role is Role.CANDIDATE
