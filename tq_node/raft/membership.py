"""One change of one server at a time, in effect when appended (dissertation, 4.1 to 4.3).

Chosen over joint consensus: docs/explanation/raft.md. The three conditions of ``refusal`` are what
makes it sound; without the first, two leaders can commit changes from the same parent (raft-dev
2015, "bug in single-server membership changes"; F3)."""

from __future__ import annotations

from tq_node.errors import Busy
from tq_node.raft import quorum
from tq_node.raft.messages import Change, ChangeKind, Configuration, ConfigurationChange, EntryKind, encode_change
from tq_node.raft.replication import Replication
from tq_node.raft.settings import ChangeRefused, NotLeader
from tq_node.raft.state import NodeState
from tq_node.types import NodeId


def changed(configuration: Configuration, change: Change) -> Configuration:
    """The configuration after ``change``; ``ChangeRefused`` if the node is not what it expects."""
    voters, learners = set(configuration.voters), set(configuration.learners)
    node = change.node
    if change.kind == ChangeKind.ADD_LEARNER:
        if node in voters or node in learners:
            raise ChangeRefused("already_member")
        learners.add(node)
    elif change.kind == ChangeKind.PROMOTE:
        _move(node, learners, voters)
    elif change.kind == ChangeKind.DEMOTE:
        _move(node, voters, learners)
    else:
        _move(node, voters if node in voters else learners, set())
    return Configuration(tuple(sorted(voters)), tuple(sorted(learners)))


def _move(node: NodeId, source: set[NodeId], target: set[NodeId]) -> None:
    if node not in source:
        raise ChangeRefused("no_such_member")
    source.remove(node)
    target.add(node)


class Membership:
    def __init__(self, state: NodeState, replication: Replication) -> None:
        self._state = state
        self._replication = replication

    def propose(self, change: Change, context: bytes) -> int:
        """See ``RaftCore.propose_change``."""
        state = self._state
        if not state.is_leader:
            raise NotLeader(state.leader)
        if state.transfer_target is not None:
            raise Busy("leadership is being handed over")
        configuration = changed(state.configuration, change)
        why = self.refusal(change, configuration)
        if why is not None:
            raise ChangeRefused(why)
        data = encode_change(ConfigurationChange(configuration, change, context))
        assert len(data) <= state.settings.entry_bytes_max, "the context is too long"
        log_index = self._replication.append(EntryKind.CONFIGURATION, data)
        self._replication.advance_commit()  # a smaller group may have a majority already
        return log_index

    def refusal(self, change: Change, configuration: Configuration) -> str | None:
        """Why the change is refused now; None: it is not."""
        state = self._state
        if not self.has_own_commit():
            return "no_own_commit"
        if self.is_change_pending():
            return "change_pending"
        if self.loses_leader(configuration):
            return "leader_itself"
        if change.kind == ChangeKind.PROMOTE and not self.is_caught_up(change.node):
            return "not_caught_up"
        active = {node for node in state.progress if node == state.me or state.progress[node].is_active}
        if configuration.voters != state.voters and not quorum.is_majority(active, configuration.voters):
            return "no_active_majority"
        return None

    def has_own_commit(self) -> bool:
        """Whether this leader committed an entry of its own term; no change before that (F3)."""
        return self._state.own_term_committed()

    def is_change_pending(self) -> bool:
        """At most one change is uncommitted: two steps at once need not overlap with the start."""
        return self._state.log.configuration_index > self._state.log.commit_index

    def loses_leader(self, configuration: Configuration) -> bool:
        """The leader would lead a group that it does not belong to (4.2.2): it transfers first."""
        return self._state.me not in configuration.voters

    def is_caught_up(self, node: NodeId) -> bool:
        """Whether the node has the log; a voter without it would delay every commit (4.2.1)."""
        return self._state.progress[node].is_caught_up
