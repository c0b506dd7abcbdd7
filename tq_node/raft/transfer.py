"""Handing leadership over, for restarts, drains and a leader's removal (dissertation, 3.10)."""

from __future__ import annotations

from tq_node.raft.messages import TimeoutNow
from tq_node.raft.settings import ChangeRefused, NotLeader
from tq_node.raft.state import NodeState
from tq_node.types import NodeId


class Transfer:
    """A transfer; meanwhile no proposals. Ends with the term or after an election timeout."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def begin(self, target: NodeId) -> None:
        """Begin a transfer; ``NotLeader``, or ``ChangeRefused`` if it is no other active voter."""
        state = self._state
        if not state.is_leader:
            raise NotLeader(state.leader)
        if target == state.me or target not in state.voters:
            raise ChangeRefused("no_such_member")
        if not state.progress[target].is_active:
            raise ChangeRefused("not_active")
        state.transfer_target = target
        state.transfer_elapsed = 0
        self.hand_over_if_caught_up(target)

    def hand_over_if_caught_up(self, node: NodeId) -> None:
        """The target must have the whole log, or it could not win."""
        state = self._state
        if node == state.transfer_target and self.has_whole_log(node):
            state.send(TimeoutNow(state.me, node, state.term))

    def has_whole_log(self, node: NodeId) -> bool:
        return self._state.progress[node].match_index == self._state.log.last_index

    def tick(self) -> None:
        state = self._state
        if state.transfer_target is not None:
            state.transfer_elapsed += 1
            if state.transfer_elapsed >= state.settings.election_ticks:
                state.transfer_target = None
