"""ReadIndex (dissertation, 6.4; etcd-io/etcd#20418)."""

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
    hear,
    lead,
    leader_of,
    only,
    said,
    step,
    tick,
)
from tq_node.errors import Busy
from tq_node.raft.core import RaftCore
from tq_node.raft.messages import AppendReply, Heartbeat, HeartbeatReply, Persisted, ReadReply, ReadRequest, ReadState
from tq_node.raft.settings import NotLeader, RaftSettings


def read_states(core: RaftCore) -> list[ReadState]:
    return [state for ready in drain(core)[1] for state in ready.read_states]


def answered(core: RaftCore, *answers: tuple[str, int]) -> list[ReadState]:
    for node, round_ in answers:
        core.step(HeartbeatReply(node, A, core.term, round_), 0)  # type: ignore[arg-type]
    return read_states(core)


def test_a_majority_confirms_a_round_begun_after_the_read() -> None:
    core = leader_of()
    read_id = core.read_index()
    assert [heartbeat.round for heartbeat in only(said(core), Heartbeat)] == [1, 1]
    assert answered(core, (B, 1)) == [ReadState(read_id, 2)]


def test_a_round_in_flight_does_not_do() -> None:
    core = leader_of()
    tick(core, 2)
    read_id = core.read_index()
    assert answered(core, (B, 1), (C, 1)) == [], "round 1 was begun before the read"
    assert answered(core, (B, 2)) == [ReadState(read_id, 2)]


def test_a_learners_answer_confirms_nothing() -> None:
    core = leader_of(learners=(D,))
    core.read_index()
    assert answered(core, (D, 1)) == []


def test_answers_of_an_old_round_do_not_add_up() -> None:
    core = leader_of(voters=(A, B, C, D, "e"))
    read_id = core.read_index()
    assert answered(core, (B, 0), (C, 0), (D, 0)) == []
    assert answered(core, (B, 1)) == []
    assert answered(core, (C, 1)) == [ReadState(read_id, 2)]


def test_not_before_the_no_op_commits() -> None:
    core = core_of()
    lead(core, B)
    read_id = core.read_index()
    assert answered(core, (B, 0), (C, 0)) == []
    acknowledge(core, B)
    assert answered(core, (B, 1)) == [ReadState(read_id, 2)]


def test_a_group_of_one_confirms_itself() -> None:
    core = core_of(voters=(A,))
    core._election.campaign()
    said(core)
    read_id = core.read_index()
    assert read_states(core) == [ReadState(read_id, 2)]


def test_a_lost_round_is_made_good_by_the_next_heartbeat() -> None:
    core = leader_of()
    read_id = core.read_index()
    said(core)
    tick(core, 2)
    assert answered(core, (C, 2)) == [ReadState(read_id, 2)]


def test_who_loses_leadership_says_so() -> None:
    core = leader_of()
    mine = core.read_index()
    step(core, ReadRequest(C, A, core.term, 77))
    core.step(AppendReply(B, A, 9, 0, rejected=True), 0)
    messages, readies = drain(core)
    assert [state for ready in readies for state in ready.read_states] == [ReadState(mine, None)]
    assert [(reply.target, reply.read_id, reply.log_index) for reply in only(messages, ReadReply)] == [(C, 77, None)]


def test_early_reads_too_are_told() -> None:
    core = core_of()
    lead(core, B)
    read_id = core.read_index()
    core.step(AppendReply(B, A, 9, 0, rejected=True), 0)
    assert read_states(core) == [ReadState(read_id, None)]


def test_a_follower_asks_the_leader() -> None:
    core = core_of()
    with pytest.raises(NotLeader):
        core.read_index()
    hear(core, B)
    read_id = core.read_index()
    assert [(request.target, request.read_id) for request in only(said(core), ReadRequest)] == [(B, read_id)]
    core.step(ReadReply(B, A, 1, read_id, 5), 0)
    assert read_states(core) == [ReadState(read_id, 5)]


def test_a_leader_answers_a_follower() -> None:
    core = leader_of()
    step(core, ReadRequest(C, A, core.term, 77))
    replies = only(answer(core, B, 1), ReadReply)
    assert [(reply.target, reply.read_id, reply.log_index) for reply in replies] == [(C, 77, 2)]


def test_who_is_no_leader_refuses() -> None:
    reply = only(step(core_of(), ReadRequest(C, A, 1, 77)), ReadReply)[0]
    assert reply.log_index is None


def test_an_answer_to_an_earlier_run_meets_nobody() -> None:
    first, second = (RaftCore(A, Persisted(core_of().state.hard_state), seed=seed) for seed in (1, 2))
    hear(first)
    read_id = first.read_index()
    second.step(ReadReply(B, A, 1, read_id, 5), 0)
    assert read_states(second) == []


def test_ids_are_never_used_again() -> None:
    core = leader_of()
    assert len({core.read_index() for _ in range(50)}) == 50


def test_waiting_reads_are_bounded() -> None:
    core = leader_of(settings=RaftSettings(reads_max=2))
    core.read_index()
    core.read_index()
    with pytest.raises(Busy):
        core.read_index()
    assert only(step(core, ReadRequest(C, A, core.term, 77)), ReadReply)[0].log_index is None
