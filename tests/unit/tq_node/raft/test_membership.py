"""Membership: one server at a time, in effect when appended (dissertation, chapter 4; F3). And handing over (3.10)."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.raft.single import (
    A,
    B,
    C,
    D,
    E,
    acknowledge,
    answer,
    core_of,
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
from tq_node.raft.membership import changed
from tq_node.raft.messages import Append, Change, ChangeKind, Configuration, Entry, EntryKind, TimeoutNow, decode_change
from tq_node.raft.settings import ChangeRefused, NotLeader
from tq_node.types import NodeId

ADD, PROMOTE, DEMOTE, REMOVE = ChangeKind


def why(core: RaftCore, kind: ChangeKind, node: NodeId) -> str:
    with pytest.raises(ChangeRefused) as refused:
        core.propose_change(Change(kind, node))
    assert refused.value.detail == ChangeRefused.SENTENCES[refused.value.why]
    return refused.value.why


def caught_up(core: RaftCore, *nodes: NodeId) -> None:
    for node in nodes:
        acknowledge(core, node)
        answer(core, node, 1)


class TestChanged:
    BEFORE = Configuration((A, B), (C,))

    @pytest.mark.parametrize(
        ("kind", "node", "voters", "learners"),
        [
            (ADD, D, (A, B), (C, D)),
            (PROMOTE, C, (A, B, C), ()),
            (DEMOTE, B, (A,), (B, C)),
            (REMOVE, B, (A,), (C,)),
            (REMOVE, C, (A, B), ()),
        ],
    )
    def test_each_kind(
        self, kind: ChangeKind, node: NodeId, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...]
    ) -> None:
        assert changed(self.BEFORE, Change(kind, node)) == Configuration(voters, learners)

    @pytest.mark.parametrize(
        ("kind", "node"), [(ADD, A), (ADD, C), (PROMOTE, A), (PROMOTE, D), (DEMOTE, C), (REMOVE, D)]
    )
    def test_not_what_it_expects(self, kind: ChangeKind, node: NodeId) -> None:
        with pytest.raises(ChangeRefused):
            changed(self.BEFORE, Change(kind, node))


class TestRules:
    def test_in_effect_when_appended_with_the_words_of_the_proposer(self) -> None:
        core = leader_of()
        index = core.propose_change(Change(ADD, D), b"because")
        assert core.configuration == Configuration((A, B, C), (D,))
        entry = core.log.entries[-1]
        assert (entry.log_index, entry.kind) == (index, EntryKind.CONFIGURATION)
        assert decode_change(entry).context == b"because"
        assert any(append.target == D for append in only(said(core), Append))

    def test_none_before_an_own_commit_f3(self) -> None:
        core = core_of()
        lead(core, B)
        assert why(core, ADD, D) == "no_own_commit"
        acknowledge(core, B)
        core.propose_change(Change(ADD, D))

    def test_one_uncommitted_at_most(self) -> None:
        core = leader_of()
        core.propose_change(Change(ADD, D))
        assert why(core, ADD, E) == "change_pending"
        said(core)
        acknowledge(core, B)
        core.propose_change(Change(ADD, E))

    def test_an_inherited_one_is_pending_until_the_no_op_commits(self) -> None:
        core = core_of()
        donor = leader_of()
        donor.propose_change(Change(ADD, D))
        inherited = donor.log.entries[-1]
        step(core, Append(B, A, 2, 1, 1, 1, (Entry(2, 2, inherited.kind, inherited.data),)))
        tick(core, 10)
        lead(core, C)
        assert core.configuration.learners == (D,)
        assert why(core, ADD, E) == "no_own_commit"

    def test_the_leader_transfers_before_it_is_removed(self) -> None:
        core = leader_of()
        assert why(core, REMOVE, A) == "leader_itself"
        assert why(core, DEMOTE, A) == "leader_itself"

    def test_a_learner_is_promoted_when_it_is_caught_up(self) -> None:
        core = leader_of()
        core.propose_change(Change(ADD, D))
        said(core)
        acknowledge(core, B)
        assert why(core, PROMOTE, D) == "not_caught_up"
        caught_up(core, D)
        assert core.followers()[D].is_caught_up
        core.propose_change(Change(PROMOTE, D))
        assert core.configuration.voters == (A, B, C, D)

    def test_what_would_remain_must_answer(self) -> None:
        core = leader_of()
        for _ in range(10):
            tick(core)
            answer(core, B, 1)
        assert why(core, DEMOTE, B) == "no_active_majority"
        core.propose_change(Change(DEMOTE, C))

    def test_a_smaller_group_may_have_a_majority_already(self) -> None:
        core = leader_of(voters=(A, B))
        core.propose_change(Change(DEMOTE, B))
        said(core)
        assert core.log.configuration_index <= core.commit_index

    def test_only_a_leader_and_not_while_it_hands_over(self) -> None:
        with pytest.raises(NotLeader):
            core_of().propose_change(Change(ADD, D))
        core = leader_of()
        core.transfer_leadership(B)
        with pytest.raises(Busy):
            core.propose_change(Change(ADD, D))

    def test_who_is_removed_gets_nothing_more(self) -> None:
        core = leader_of()
        core.propose_change(Change(REMOVE, C))
        assert {append.target for append in only(said(core), Append)} == {B}


class TestTransfer:
    """3.10."""

    def test_a_target_that_has_everything_gets_leadership_at_once(self) -> None:
        core = leader_of()
        core.transfer_leadership(B)
        assert [message.target for message in only(said(core), TimeoutNow)] == [B]

    def test_another_gets_it_when_it_has(self) -> None:
        core = leader_of()
        core.propose(b"x")
        core.transfer_leadership(B)
        assert not only(said(core), TimeoutNow)
        assert only(acknowledge(core, B), TimeoutNow)
        assert only(answer(core, B, 1), TimeoutNow), "once more: the first may be lost"

    def test_no_proposals_meanwhile_and_given_up_after_an_election_timeout(self) -> None:
        core = leader_of()
        core.transfer_leadership(B)
        with pytest.raises(Busy):
            core.propose(b"x")
        for _ in range(10):
            tick(core)
            answer(core, C, 1)
        core.propose(b"x")

    def test_refusals(self) -> None:
        core = leader_of(learners=(D,))
        for target in (A, D, E):
            with pytest.raises(ChangeRefused, match="not what"):
                core.transfer_leadership(target)
        for _ in range(10):
            tick(core)
            answer(core, B, 1)
        with pytest.raises(ChangeRefused, match="does not answer"):
            core.transfer_leadership(C)
        follower = core_of()
        hear(follower, B)
        with pytest.raises(NotLeader):
            follower.transfer_leadership(C)
