"""Elections: who campaigns when, who votes for whom, and when a leader gives up.

Dissertation, 3.4; pre-vote 9.6; loyalty to a live leader 4.2.3, check-quorum 6.2: all are needed,
see replication.md F4, F5."""

from __future__ import annotations

from tq_node.raft import quorum
from tq_node.raft.lost_log import LostLog
from tq_node.raft.messages import Role, TimeoutNow, Vote, VoteReply
from tq_node.raft.read_index import ReadIndex
from tq_node.raft.replication import Replication
from tq_node.raft.roles import Roles
from tq_node.raft.state import NodeState
from tq_node.raft.transfer import Transfer
from tq_node.types import NodeId

EVIDENCE_CAMPAIGNS_MAX = 4
"""Campaigns by evidence before election timeouts take over; doubling pauses, one timeout in all."""


class Election:
    def __init__(
        self,
        state: NodeState,
        roles: Roles,
        replication: Replication,
        reads: ReadIndex,
        transfer: Transfer,
        lost_log: LostLog,
    ) -> None:
        self._state = state
        self._roles = roles
        self._replication = replication
        self._reads = reads
        self._transfer = transfer
        self._lost_log = lost_log
        self._heartbeat_elapsed = 0
        self._evidence_campaigns = 0
        """How many more are made on the same evidence."""
        self._evidence_pause_ms = 0

    # --- time ---
    def tick(self) -> None:
        state = self._state
        state.election_elapsed += 1
        if state.is_leader:
            self._tick_leader()
        elif state.election_elapsed >= state.election_timeout:
            if self.may_campaign():
                self.campaign()
            else:
                state.leader = None
        self.wake()

    def _tick_leader(self) -> None:
        state = self._state
        for node in state.others():
            state.progress[node].tick(state.log.last_index, state.settings)
        self._transfer.tick()
        if self.has_lost_quorum():
            self._roles.become_follower(state.term, None)
            return
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= state.settings.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._reads.begin_round()

    def has_lost_quorum(self) -> bool:
        """Whether no majority answered this leader within an election timeout (6.2, F5)."""
        state = self._state
        heard = {
            node
            for node, progress in state.progress.items()
            if node == state.me or not progress.is_silent(state.settings)
        }
        return not quorum.is_majority(heard, state.voters)

    # --- evidence of the leader's death (R5a) ---
    def leader_died(self, node: NodeId) -> None:
        """Forget the leader, so that pre-votes are granted; campaign after a drawn 0 to 150 ms."""
        state = self._state
        if state.is_leader or state.leader != node:
            return
        self.forget_leader()
        self._evidence_campaigns = EVIDENCE_CAMPAIGNS_MAX
        self._evidence_pause_ms = state.settings.evidence_delay_ms
        self._campaign_within(0)

    def forget_leader(self) -> None:
        self._state.leader = None
        self._state.election_elapsed = 0

    def wake(self) -> None:
        """Campaign by evidence, again until one wins: a split vote would cost a whole timeout."""
        state = self._state
        if state.campaign_at_ms is None or state.now_ms < state.campaign_at_ms:
            return
        state.campaign_at_ms = None
        self._evidence_campaigns -= 1
        if self.may_campaign():
            self.campaign()
        if self._evidence_campaigns:
            self._campaign_within(self._evidence_pause_ms)
            self._evidence_pause_ms *= 2

    def _campaign_within(self, from_ms: int) -> None:
        state = self._state
        state.campaign_at_ms = state.now_ms + from_ms + state.dice.below(state.settings.evidence_delay_ms + 1)

    # --- campaigning ---
    def may_campaign(self) -> bool:
        """Whether this node is a voter, by a configuration that is durable before its vote is."""
        return self._state.me in self._state.voters

    def campaign(self) -> None:
        """Ask for pre-votes: a node that cannot win disturbs nobody (9.6, F4)."""
        self._roles.become_pre_candidate()
        self._ask(self._state.term + 1, pre=True)
        self.count_vote(self._state.me, granted=True)

    def campaign_for_real(self, *, force: bool = False) -> None:
        """Begin a term, ask for votes. Its own counts once durable (``own_vote_durable``)."""
        self._roles.become_candidate()
        self._ask(self._state.term, force=force)

    def _ask(self, term: int, *, pre: bool = False, force: bool = False) -> None:
        state = self._state
        for node in state.voters:
            if node != state.me:
                state.send(Vote(state.me, node, term, state.log.last_index, state.log.last_term, pre, force))

    def count_vote(self, source: NodeId, *, granted: bool) -> None:
        state = self._state
        state.votes[source] = granted
        result = quorum.tally(state.votes, state.voters)
        if state.role is Role.PRE_CANDIDATE:
            self._lost_log.saw_grants({voter for voter, is_granted in state.votes.items() if is_granted})
        if result is quorum.Tally.LOST:
            self._roles.become_follower(state.term, None)
        elif result is quorum.Tally.WON and state.role is Role.PRE_CANDIDATE:
            if self._lost_log.may_campaign():  # else it goes on listening to who has no more than it has
                self.campaign_for_real()
        elif result is quorum.Tally.WON:
            self._roles.become_leader()
            self._heartbeat_elapsed = 0
            self._replication.open_term()

    def own_vote_durable(self) -> None:
        """A hard state is durable; a candidate's vote for itself in it counts now (F1)."""
        state = self._state
        durable = state.durable_hard_state
        if state.role is Role.CANDIDATE and (durable.term, durable.vote) == (state.term, state.me):
            self.count_vote(state.me, granted=True)

    # --- voting ---
    def is_loyal(self) -> bool:
        """Whether a leader was in contact within an election timeout: no vote, no term (4.2.3)."""
        state = self._state
        return state.is_leader or (state.leader is not None and state.election_elapsed < state.settings.election_ticks)

    def on_vote(self, message: Vote) -> None:
        """The term is ours by now, or the message asks for a pre-vote in a higher one."""
        state = self._state
        self._lost_log.saw_candidate(message)
        granted = self.may_vote_for(message) and self.is_log_good(message) and self._lost_log.may_vote_for(message)
        if granted and not message.pre:
            state.vote = message.source
            state.election_elapsed = 0
            if state.campaign_at_ms is not None:
                self._campaign_within(self._evidence_pause_ms)
        term = message.term if granted else state.term
        state.send(VoteReply(state.me, message.source, term, granted, message.pre))

    def may_vote_for(self, message: Vote) -> bool:
        """One vote per term (3.4). A pre-vote for a later term promises nothing."""
        state = self._state
        if message.pre and message.term > state.term:
            return True
        return state.vote == message.source or (state.vote is None and state.leader is None)

    def is_log_good(self, message: Vote) -> bool:
        """Only a log at least as complete as this one may win (3.6.1)."""
        return self._state.log.is_up_to_date(message.last_log_index, message.last_log_term)

    def on_vote_reply(self, message: VoteReply) -> None:
        state = self._state
        expected = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
        is_late = message.pre and message.granted and message.term != state.term + 1
        if state.role is expected and not is_late:
            self.count_vote(message.source, granted=message.granted)

    def on_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over: no pre-vote, and voters are not to be loyal to it (3.10)."""
        state = self._state
        is_asked = state.role is Role.FOLLOWER and state.leader == message.source
        if is_asked and self.may_campaign() and self._lost_log.may_campaign():
            self.campaign_for_real(force=True)
