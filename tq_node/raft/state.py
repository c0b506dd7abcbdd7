"""What one node knows: shared by the core's parts, each of which owns one set of rules over it."""

from __future__ import annotations

from tq_node.raft.log import RaftLog
from tq_node.raft.messages import (
    AppendReply,
    Configuration,
    HardState,
    HeartbeatReply,
    Message,
    ReadState,
    Role,
    SnapshotReply,
    SoftState,
    Vote,
    VoteReply,
)
from tq_node.raft.progress import Progress
from tq_node.raft.rng import Rng
from tq_node.raft.settings import RaftSettings
from tq_node.types import NodeId

_AFTER_PERSIST = frozenset({Vote, VoteReply, AppendReply, SnapshotReply})


class NodeState:
    """``progress`` and ``transfer_target`` are of a leader only, ``votes`` of a candidate."""

    __slots__ = (
        "campaign_at_ms",
        "dice",
        "durable_hard_state",
        "election_elapsed",
        "election_timeout",
        "handed_hard_state",
        "leader",
        "log",
        "me",
        "messages",
        "messages_after_persist",
        "now_ms",
        "progress",
        "read_states",
        "role",
        "settings",
        "term",
        "term_start_index",
        "transfer_elapsed",
        "transfer_target",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(self, me: NodeId, log: RaftLog, hard_state: HardState, settings: RaftSettings, dice: Rng) -> None:
        assert hard_state.term >= log.last_term, "the hard state is older than the log"
        self.me = me
        self.settings = settings
        self.dice = dice
        self.log = log
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.durable_hard_state = self.handed_hard_state = hard_state
        self.role = Role.FOLLOWER
        self.leader: NodeId | None = None
        self.now_ms = 0
        self.election_elapsed = 0
        """Ticks since a leader sent, a vote was given, a candidacy began, a quorum was checked."""
        self.election_timeout = settings.election_ticks
        self.campaign_at_ms: int | None = None
        self.votes: dict[NodeId, bool] = {}
        self.progress: dict[NodeId, Progress] = {}
        self.term_start_index = 0
        self.transfer_target: NodeId | None = None
        self.transfer_elapsed = 0
        self.uncommitted_bytes = 0
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.read_states: list[ReadState] = []

    # --- what follows from it ---
    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote)

    @property
    def soft_state(self) -> SoftState:
        return SoftState(self.role, self.leader, self.term)

    @property
    def configuration(self) -> Configuration:
        return self.log.configuration

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """Who is counted: learners never (4.2.1)."""
        return self.log.configuration.voters

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    def others(self) -> list[NodeId]:
        """At a leader: everybody it sends to, in a fixed order."""
        return [node for node in self.progress if node != self.me]

    def own_term_committed(self) -> bool:
        """Has this leader committed in its term? Before, it can't know what is committed (6.4)."""
        return self.log.commit_index >= self.term_start_index

    # --- what leaves ---
    def send(self, message: Message) -> None:
        if self.waits_for_disk(message):
            self.messages_after_persist.append(message)
        else:
            self.messages.append(message)

    def waits_for_disk(self, message: Message) -> bool:
        """Persist first (3.8; F1): a reply tells of a vote or of entries; a request for votes of
        this node's own vote.

        A reply to a heartbeat tells of the term alone, so that a slow disk does not look like a
        dead node. What a leader sends does not wait: its term is durable since before it was
        elected, and its entries are counted apart (10.2.1)."""
        kind = type(message)
        if kind in _AFTER_PERSIST:
            return True
        return kind is HeartbeatReply and self.durable_hard_state.term != self.term
