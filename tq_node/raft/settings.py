"""The bounds of consensus and the relations between them; what a call may be refused with."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from tq_node.errors import NoController, TaskQueueError
from tq_node.limits import KIB, MIB
from tq_node.types import NodeId

NUMBER_MAX = 2**62
"""No term, position or counter is greater: the store's 64 signed bits hold a sum of two too."""


class RaftSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Ticks are the driver's, 0.1 s each (replication.md, Defaults). Sizes in bytes."""

    heartbeat_ticks: int = 2
    election_ticks: int = 10
    """A follower campaigns after 1 to 2 times as many silent ticks; so long a voter is loyal."""
    evidence_delay_ms: int = 150
    """With evidence of the leader's death a voter campaigns after 0 to so many ms, drawn (R5a)."""
    message_bytes_max: int = 256 * KIB
    entry_bytes_max: int = 192 * KIB
    inflight_messages_max: int = 32
    inflight_bytes_max: int = 2 * MIB
    uncommitted_bytes_max: int = 8 * MIB
    """Entries of this leader that are not committed; past it proposals are refused as busy."""
    committed_bytes_max: int = 4 * MIB
    """Aim for one Ready, so that applying does not hold up heartbeats."""
    snapshot_chunk_bytes: int = 192 * KIB
    snapshot_bytes_max: int = 64 * MIB
    reads_max: int = 1_024
    jump_max: int = 2**32
    """A term or position this much further than known here is absurd: no absence lasts so long."""

    def __post_init__(self) -> None:
        assert 0 < self.heartbeat_ticks * 3 <= self.election_ticks, "a leader survives two lost heartbeats"
        assert self.entry_bytes_max <= self.message_bytes_max, "an entry fits into a message"
        assert self.entry_bytes_max <= self.uncommitted_bytes_max, "an entry can be proposed at all"
        assert self.message_bytes_max <= self.inflight_bytes_max, "a full message can be sent at all"
        assert 0 < self.snapshot_chunk_bytes < self.message_bytes_max
        assert 0 < self.jump_max < NUMBER_MAX
        assert min(self.inflight_messages_max, self.reads_max, self.snapshot_bytes_max, self.evidence_delay_ms) > 0


class NotLeader(NoController):
    """Only the leader can do this; nothing was done. ``leader``: who may be it, or None."""

    def __init__(self, leader: NodeId | None) -> None:
        super().__init__(f"the leader is {leader}" if leader else "there is no leader")
        self.leader = leader


class ChangeRefused(TaskQueueError):
    """This change or transfer is not possible now; nothing was done. ``why``: a stable word."""

    status, code, title, retryable = 503, "change_refused", "Change of membership refused", True
    SENTENCES: ClassVar[dict[str, str]] = {
        "no_own_commit": "the leader has not yet committed an entry of its own term",
        "change_pending": "another change is not yet committed",
        "leader_itself": "the leader does not remove or demote itself: transfer leadership first",
        "no_such_member": "the node is not what this change expects it to be",
        "already_member": "the node is a member already",
        "not_caught_up": "the learner is not within one round of the end of the log",
        "no_active_majority": "too few of the voters that would remain answer",
        "not_active": "the node does not answer",
    }

    def __init__(self, why: str) -> None:
        super().__init__(self.SENTENCES[why])
        self.why = why
