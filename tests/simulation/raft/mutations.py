"""The mutations of consensus: each rule of section 11 and F1 to F6 switched off in the real code.

F7 is rule R5 of the controller: no core of consensus knows who is up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from tests.scenarios.runner import SCENARIOS, rewritten
from tests.simulation.mutations import Mutation, always
from tests.simulation.raft import handmade, partitions, rolled_back
from tests.simulation.raft import world as raft_world
from tests.simulation.raft.faults import MEMBERS, PAIR, READS, SNAPSHOTS, TERMS, VOTES, Faults
from tests.support.world import SECOND_US
from tq_node.raft.core import RaftCore
from tq_node.raft.election import Election
from tq_node.raft.log import RaftLog
from tq_node.raft.lost_log import LostLog
from tq_node.raft.membership import Membership
from tq_node.raft.messages import AppendReply, Message, Role, VoteReply
from tq_node.raft.progress import Progress
from tq_node.raft.read_index import ReadIndex
from tq_node.raft.replication import Replication
from tq_node.raft.snapshots import Snapshots
from tq_node.raft.state import NodeState
from tq_node.raft.transfer import Transfer

BASES = (0, 100_000, 200_000)
SEEDS_DEFAULT = 60
SAFETY_US = 60 * SECOND_US


def swarm(seed: int) -> None:
    with mock.patch.object(raft_world, "SAFETY_US", SAFETY_US):
        raft_world.simulate(seed)


def pressed(faults: Faults, *rule_breaks: str, voters: int | None = None) -> Callable[[int], None]:
    """A world that presses on one part of the rules."""

    def run(seed: int) -> None:
        with mock.patch.object(raft_world, "SAFETY_US", SAFETY_US):
            raft_world.simulate(seed, faults=faults, voters=voters, rule_breaks=frozenset(rule_breaks))

    return run


def scripted(name: str, *, breaks: bool = False) -> Callable[[int], None]:
    """A scenario, whose every step is prescribed: it fails where its golden output changes. The same for every seed.

    ``breaks``: it must not only go another way, but break a promise.
    """

    def run(_seed: int) -> None:
        path = SCENARIOS / f"{name}.txt"
        output = rewritten(path.read_text())
        assert output == path.read_text() if not breaks else "\n!!" not in output, f"scenario {name} goes wrong"

    return run


def mutation(
    name: str, rule: str, patches: tuple[tuple[Any, str, Any], ...], world: Callable[[int], None] = swarm
) -> Mutation:
    return Mutation(name, rule, patches, world)


def _sends_at_once(*kinds: type[Message]) -> Callable[[NodeState, Message], bool]:
    original = NodeState.waits_for_disk
    return lambda self, message: type(message) not in kinds and original(self, message)


def _keeps_no_configuration(self: RaftLog, snapshot: Any) -> tuple[int, Any]:
    return self.configurations[-1] if self.configurations else (0, snapshot.configuration)


def _in_effect_when_committed(self: RaftLog) -> Any:
    return next(pair[1] for pair in reversed(self.configurations) if pair[0] <= self.commit_index or pair[0] <= 1)


def _counts_learners(self: NodeState) -> tuple[Any, ...]:
    return self.log.configuration.members


def _cuts_always(self: RaftLog, entries: Any) -> int | None:
    return 0 if entries else None


def _opens_without_no_op(self: Replication) -> None:
    state = self._state
    state.term_start_index = state.log.last_index + 1
    state.uncommitted_bytes = sum(
        e.size_bytes for e in state.log.slice(state.log.commit_index + 1, state.log.last_index, 1 << 62)
    )
    self.send_all()


def _campaigns_at_once(self: Election) -> None:
    self.campaign_for_real()


def _restores_anything(self: RaftLog, snapshot: Any) -> None:
    self._forget_writes_from(0)
    self.snapshot, self.snapshot_waits = snapshot, True
    self.durable_index = self.applied_index = min(self.applied_index, snapshot.log_index)
    self.entries = []
    self.offset_index, self.offset_term = snapshot.log_index, snapshot.term
    self.commit_index = self.handed_index = snapshot.log_index
    self.configurations = [self.configuration_of(snapshot)]


def _transfers_without_force(self: Election, message: Any) -> None:
    if self._state.role is Role.FOLLOWER and self._state.leader == message.source and self.may_campaign():
        self.campaign_for_real()


_COMMITS_ALL = (
    (Replication, "commit_after", lambda self, m, last_new: min(m.commit_index, self._state.log.last_index)),
)
_COUNTS_CUT_WRITES = ((RaftLog, "_forget_writes_from", always(None)),)
_INSTALLS_OLD = ((Snapshots, "is_news", always(True)), (RaftLog, "restore", _restores_anything))
_SENDS_CHANGES = ((Replication, "sendable_index", lambda self: self._state.log.last_index),)

MUTATIONS = (
    # --- persist first (F1) ---
    mutation("replies and votes leave before the disk has them", "F1", (), pressed(VOTES, "send before persist")),
    mutation(
        "vote replies leave before the disk has them",
        "F1",
        ((NodeState, "waits_for_disk", _sends_at_once(VoteReply)),),
        pressed(VOTES),
    ),
    mutation(
        "append replies leave before the disk has the entries",
        "11 persist first",
        ((NodeState, "waits_for_disk", _sends_at_once(AppendReply)),),
    ),
    mutation(
        "a leader counts itself before its own sync",
        "11 persist first",
        ((Replication, "own_match", lambda self: self._state.log.last_index),),
    ),
    mutation("a write counts although the log was cut (swarm)", "11 persist first", _COUNTS_CUT_WRITES, pressed(TERMS)),
    mutation(
        "a write counts although the log was cut (hand)", "11 persist first", _COUNTS_CUT_WRITES, handmade.run_cut_write
    ),
    mutation(
        "what is not durable here is applied",
        "11 persist first",
        ((RaftLog, "appliable_index", property(lambda self: self.commit_index if not self.snapshot_waits else 0)),),
    ),
    # --- elections ---
    mutation("a voter votes twice in a term", "I14 one vote", ((Election, "may_vote_for", always(True)),)),
    mutation("a vote is given to any log", "3.6.1", ((Election, "is_log_good", always(True)),)),
    mutation("no pre-vote", "F4", ((Election, "campaign", _campaigns_at_once),), partitions.run_isolated),
    mutation(
        "voters are not loyal to a live leader",
        "F4, F5",
        ((Election, "is_loyal", always(False)),),
        partitions.run_unheard_leader,
    ),
    mutation("no check-quorum", "F5", ((Election, "has_lost_quorum", always(False)),), partitions.run_deaf_leader),
    mutation(
        "messages of an old term are not answered",
        "11 pre-vote, check-quorum",
        ((RaftCore, "answer_old_term", always(None)),),
        partitions.run_stuck_candidate,
    ),
    mutation(
        "evidence of death is ignored", "R5a", ((Election, "leader_died", always(None)),), partitions.run_evidence
    ),
    mutation(
        "with evidence the leader is not forgotten",
        "R5a",
        ((Election, "forget_leader", always(None)),),
        scripted("evidence"),
    ),
    # --- the log ---
    mutation(
        "old terms are committed by counting (swarm)",
        "F2",
        ((Replication, "may_commit", always(True)),),
        pressed(TERMS, voters=5),
    ),
    mutation(
        "old terms are committed by counting (script)",
        "F2",
        ((Replication, "may_commit", always(True)),),
        scripted("figure8", breaks=True),
    ),
    mutation("no no-op of the term", "F2", ((Replication, "open_term", _opens_without_no_op),)),
    mutation(
        "an append is taken whatever is before it",
        "3.5",
        ((RaftLog, "matches", lambda self, index, term: self.term(index) is not None),),
    ),
    mutation("an append cuts the log though nothing conflicts", "3.5", ((RaftLog, "first_conflict", _cuts_always),)),
    mutation("a follower commits beyond what was proven (swarm)", "3.5", _COMMITS_ALL, pressed(TERMS)),
    mutation("a follower commits beyond what was proven (hand)", "3.5", _COMMITS_ALL, handmade.run_leftovers),
    # --- membership ---
    mutation(
        "a change before the own-term commit (swarm)",
        "F3",
        ((Membership, "has_own_commit", always(True)),),
        pressed(MEMBERS, voters=4),
    ),
    *(
        Mutation(
            f"a change before the own-term commit ({name})",
            "F3",
            ((Membership, "has_own_commit", always(True)),),
            scripted(f"membership_{name.replace(' ', '_')}", breaks=True),
        )
        for name in ("add remove", "two adds", "two removes")
    ),
    mutation(
        "two uncommitted changes at once",
        "11 membership",
        ((Membership, "is_change_pending", always(False)),),
        pressed(MEMBERS, voters=4),
    ),
    mutation(
        "cutting the log keeps the configuration (swarm)",
        "11 membership",
        ((RaftLog, "_roll_back_configuration", always(None)),),
        pressed(MEMBERS),
    ),
    mutation(
        "cutting the log keeps the configuration (script)",
        "11 membership",
        ((RaftLog, "_roll_back_configuration", always(None)),),
        scripted("confchange_rollback"),
    ),
    mutation(
        "a change takes effect when committed",
        "11 membership",
        ((RaftLog, "configuration", property(_in_effect_when_committed)),),
    ),
    mutation(
        "the leader may remove itself",
        "11 membership",
        ((Membership, "loses_leader", always(False)),),
        pressed(MEMBERS),
    ),
    mutation("learners are counted", "11 learners", ((NodeState, "voters", property(_counts_learners)),)),
    mutation(
        "a learner is promoted before it is caught up",
        "11 learners",
        ((Membership, "is_caught_up", always(True)),),
        partitions.run_promotion,
    ),
    mutation(
        "a change leaves before the leader's disk has it (swarm)",
        "11 membership",
        _SENDS_CHANGES,
        pressed(PAIR),
    ),
    mutation(
        "a change leaves before the leader's disk has it (script)",
        "11 membership",
        _SENDS_CHANGES,
        scripted("demote_crash"),
    ),
    # --- a disk that was set back, a leader's lie ---
    mutation(
        "who lost what it had acknowledged votes as before",
        "F14",
        ((LostLog, "may_vote_for", always(True)),),
        rolled_back.run_set_back,
    ),
    mutation(
        "who lost what it had acknowledged campaigns",
        "F14",
        ((LostLog, "may_campaign", always(True)),),
        rolled_back.run_set_back,
    ),
    mutation(
        "what a follower has lost is not sent again",
        "F14",
        ((Replication, "_on_loss", always(None)),),
        rolled_back.run_refilled,
    ),
    mutation(
        "a claim that nobody bears out is heeded for ever",
        "F14",
        ((LostLog, "saw_candidate", always(None)), (LostLog, "saw_grants", always(None))),
        rolled_back.run_lie_at_start,
    ),
    mutation(
        "a run that knows better heeds a claim",
        "F14",
        ((LostLog, "may_bind", always(True)),),
        rolled_back.run_lie,
    ),
    # --- transfer, reads ---
    mutation(
        "a transfer leaves voters loyal", "3.10", ((Election, "on_timeout_now", _transfers_without_force),), swarm
    ),
    mutation(
        "leadership goes to a log that is not whole",
        "3.10",
        ((Transfer, "has_whole_log", always(True)),),
        scripted("transfer"),
    ),
    mutation(
        "a read is answered without a round",
        "11 ReadIndex",
        ((ReadIndex, "majority_round", lambda self: self.round + 1),),
        pressed(READS),
    ),
    mutation(
        "a read is answered before the no-op commits",
        "11 ReadIndex",
        ((ReadIndex, "may_register", always(True)),),
        pressed(READS),
    ),
    mutation(
        "a read joins the round in flight",
        "11 ReadIndex, etcd#20418",
        ((ReadIndex, "round_for_new_read", lambda self: max(1, self.round)),),
        partitions.run_paused_reads,
    ),
    # --- snapshots ---
    mutation("an old snapshot is installed (swarm)", "F6", _INSTALLS_OLD, pressed(SNAPSHOTS)),
    mutation("an old snapshot is installed (hand)", "F6", _INSTALLS_OLD, handmade.run_old_snapshot),
    mutation(
        "a snapshot loses its configuration",
        "11 snapshots",
        ((RaftLog, "configuration_of", _keeps_no_configuration),),
        pressed(SNAPSHOTS),
    ),
    mutation(
        "the log is cut before the snapshot is durable (swarm)",
        "F6",
        (),
        pressed(SNAPSHOTS, "cut before the snapshot is durable"),
    ),
    mutation(
        "the log is cut before the snapshot is durable (hand)",
        "F6",
        (),
        partial(handmade.snapshot_crash, frozenset({"cut before the snapshot is durable"})),
    ),
    # --- flow ---
    mutation("the window of a follower has no bound", "11 flow", ((Progress, "is_window_full", always(False)),)),
    mutation("uncommitted bytes have no bound", "11 flow", ((Replication, "has_room", always(True)),)),
    mutation("a message has no bound", "11 flow", ((Replication, "batch_bytes_max", always(1 << 30)),)),
    mutation("waiting reads have no bound", "11 flow", ((ReadIndex, "_is_full", always(False)),), pressed(READS)),
)

EXPLAINED: dict[str, str] = {}
RARE = {
    "a write counts although the log was cut (swarm)",
    "old terms are committed by counting (swarm)",
    "a follower commits beyond what was proven (swarm)",
    "a change before the own-term commit (swarm)",
    "cutting the log keeps the configuration (swarm)",
    "an old snapshot is installed (swarm)",
    "the log is cut before the snapshot is durable (swarm)",
}
"""Thousands of schedules: each but one has a (script) or (hand) beside it, which is not rare."""
