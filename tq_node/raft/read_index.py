"""Rounds of heartbeats, and the reads that they confirm: ReadIndex (dissertation, 6.4), never a
clock lease.

A read is registered with the commit index of its arrival and answered once a majority has
acknowledged, in this term, a round that was *begun after* the read came. A round in flight does not
do: its acknowledgements may lie in this node's sockets since before a pause in which others elected
a leader and committed (etcd-io/etcd#20418). Read ids are made here, never used twice."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tq_node.errors import Busy, Unsound
from tq_node.raft import quorum
from tq_node.raft.messages import Heartbeat, HeartbeatReply, ReadReply, ReadRequest, ReadState
from tq_node.raft.settings import NotLeader
from tq_node.raft.state import NodeState
from tq_node.types import NodeId

_COUNTER_BITS = 32


class _Read(NamedTuple):
    read_id: int
    source: NodeId
    log_index: int
    round: int


class ReadIndex:
    """A leader's rounds and the reads that wait for them; elsewhere, requests are sent on."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._ids_from = (state.dice.draw() & 0x7FFF_FFFF) << _COUNTER_BITS
        """Differs at each start: no late answer to an earlier run's read meets a new one."""
        self._ids = 0
        self.round = 0
        self.confirmed_round = 0
        self.waiting: deque[_Read] = deque()
        self.early: deque[tuple[int, NodeId]] = deque()
        """Came before the leader's no-op was committed."""

    # --- asking ---
    def read_index(self) -> int:
        """Raises ``NotLeader`` if there is nobody to ask, ``Busy`` if too many reads wait."""
        state = self._state
        if not state.is_leader and state.leader is None:
            raise NotLeader(None)
        if state.is_leader and self._is_full():
            raise Busy("too many reads wait for a majority")
        self._ids = (self._ids + 1) & ((1 << _COUNTER_BITS) - 1)
        read_id = self._ids_from | self._ids
        if state.is_leader:
            self._register(read_id, state.me)
        else:
            assert state.leader is not None
            state.send(ReadRequest(state.me, state.leader, state.term, read_id))
        return read_id

    def on_request(self, message: ReadRequest) -> None:
        if not self._state.is_leader or self._is_full():
            self._state.send(ReadReply(self._state.me, message.source, self._state.term, message.read_id, None))
            return
        self._register(message.read_id, message.source)

    def on_reply(self, message: ReadReply) -> None:
        """An answer counts only if it is this run's: the id says so."""
        if message.read_id >> _COUNTER_BITS == self._ids_from >> _COUNTER_BITS:
            self._state.read_states.append(ReadState(message.read_id, message.log_index))

    def _is_full(self) -> bool:
        return len(self.waiting) + len(self.early) >= self._state.settings.reads_max

    def _register(self, read_id: int, source: NodeId) -> None:
        if not self.may_register():
            self.early.append((read_id, source))
            return
        is_idle = self.confirmed_round >= self.round
        self.waiting.append(_Read(read_id, source, self._state.log.commit_index, self.round_for_new_read()))
        if is_idle:
            self.begin_round()

    def may_register(self) -> bool:
        """Only once the no-op is committed: an earlier commit index may lag the last leader's."""
        return self._state.own_term_committed()

    def round_for_new_read(self) -> int:
        """The next to begin; never the one in flight."""
        return self.round + 1

    # --- rounds ---
    def begin_round(self) -> None:
        """Heartbeats to all, also as a sign of life. A group of one confirms itself."""
        state = self._state
        self.round += 1
        for node in state.others():
            commit_index = min(state.log.commit_index, state.progress[node].match_index)
            state.send(Heartbeat(state.me, node, state.term, commit_index, self.round))
        self.confirm()

    def check_round(self, message: HeartbeatReply) -> None:
        """Raises ``Unsound`` for a round never begun: it would confirm what nobody vouches for."""
        if message.round > self.round:
            raise Unsound(f"an answer to round {message.round}, of {self.round}")

    def on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        progress = self._state.progress[message.source]
        progress.acked_round = max(progress.acked_round, message.round)
        self.confirm()

    def confirm(self) -> None:
        """Answer what is confirmed; also after a change of configuration or commit index."""
        if self.early and self.may_register():
            early, self.early = self.early, deque()
            for read_id, source in early:
                self._register(read_id, source)
        self.confirmed_round = max(self.confirmed_round, self.majority_round())
        while self.waiting and self.waiting[0].round <= self.confirmed_round:
            self._answer(self.waiting.popleft())
        if self.waiting and self.confirmed_round >= self.round:
            self.begin_round()

    def majority_round(self) -> int:
        """The latest round that a majority of the voters has acknowledged in this term."""
        state = self._state
        acked = {node: progress.acked_round for node, progress in state.progress.items()}
        acked[state.me] = self.round
        return quorum.majority_value(acked, state.voters)

    def _answer(self, read: _Read) -> None:
        state = self._state
        if read.source == state.me:
            state.read_states.append(ReadState(read.read_id, read.log_index))
        else:
            state.send(ReadReply(state.me, read.source, state.term, read.read_id, read.log_index))

    def begin_term(self) -> None:
        self.round = self.confirmed_round = 0
        assert not self.waiting
        assert not self.early

    def drop(self) -> None:
        """Leadership is lost: reads that wait must be asked anew."""
        state = self._state
        asked = [(read.read_id, read.source) for read in self.waiting] + list(self.early)
        self.waiting.clear()
        self.early.clear()
        for read_id, source in asked:
            if source == state.me:
                state.read_states.append(ReadState(read_id, None))
            else:
                state.send(ReadReply(state.me, source, state.term, read_id, None))
