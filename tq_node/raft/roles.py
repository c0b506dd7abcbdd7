"""The four roles and how a node passes from one to another; drawn in docs/explanation/raft.md.

Dissertation, 3.3 and 3.4; the pre-candidate, 9.6."""

from __future__ import annotations

from tq_node.raft.messages import Role
from tq_node.raft.progress import Progress
from tq_node.raft.read_index import ReadIndex
from tq_node.raft.snapshots import Snapshots
from tq_node.raft.state import NodeState
from tq_node.types import NodeId


class Roles:
    """Changes the role's state only; ``Election`` and ``Replication`` send what it then says."""

    def __init__(self, state: NodeState, reads: ReadIndex, snapshots: Snapshots) -> None:
        self._state = state
        self._reads = reads
        self._snapshots = snapshots
        self._draw_timeout()

    def become_follower(self, term: int, leader: NodeId | None) -> None:
        """Any role to follower, of ``leader`` or none. Only a higher term forgets the vote (F1)."""
        state = self._state
        assert term >= state.term, "terms never decrease"
        if leader is not None:
            state.election_elapsed = 0
            state.campaign_at_ms = None
        if term == state.term and leader == state.leader and state.role is Role.FOLLOWER:
            return
        had_leadership = state.is_leader
        if term > state.term:
            self._enter_term(term, vote=None)
        if state.role is not Role.FOLLOWER:
            self._leave_candidacy(Role.FOLLOWER)
            state.election_elapsed = 0
        self._draw_timeout()
        state.leader = leader
        if had_leadership:
            state.progress = {}
            state.transfer_target = None
            self._reads.drop()

    def become_pre_candidate(self) -> None:
        """Follower to pre-candidate; neither term nor vote changes (9.6)."""
        self._leave_candidacy(Role.PRE_CANDIDATE)
        self._begin_campaign()

    def become_candidate(self) -> None:
        """Follower or pre-candidate to candidate, in a new term, with its vote for itself."""
        state = self._state
        self._leave_candidacy(Role.CANDIDATE)
        self._enter_term(state.term + 1, vote=state.me)
        self._begin_campaign()

    def become_leader(self) -> None:
        state = self._state
        assert state.role is Role.CANDIDATE
        self._leave_candidacy(Role.LEADER)
        state.leader = state.me
        state.election_elapsed = 0
        state.campaign_at_ms = None
        last_index = state.log.last_index
        state.progress = {node: Progress(last_index) for node in state.configuration.members}
        state.transfer_target = None
        self._reads.begin_term()

    def _enter_term(self, term: int, vote: NodeId | None) -> None:
        self._state.term = term
        self._state.vote = vote
        self._snapshots.forget()

    def _leave_candidacy(self, role: Role) -> None:
        self._state.role = role
        self._state.votes = {}

    def _begin_campaign(self) -> None:
        self._state.leader = None
        self._state.election_elapsed = 0
        self._draw_timeout()

    def _draw_timeout(self) -> None:
        state = self._state
        ticks = state.settings.election_ticks
        state.election_timeout = ticks + state.dice.below(ticks)
