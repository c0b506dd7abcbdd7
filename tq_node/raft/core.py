"""``RaftCore``: one node's consensus. Events go in, a ``Ready`` comes out; nothing here has a
clock, a disk, a socket or dice.

The driver's loop is at ``messages.Ready`` and in docs/explanation/raft.md. Everything is
synchronous and belongs to one thread. A failed assertion means that a promise of Raft is broken:
the process must stop (R20)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tq_node.errors import Unsound
from tq_node.raft import soundness
from tq_node.raft.election import Election
from tq_node.raft.log import RaftLog, Write
from tq_node.raft.lost_log import Claim, LostLog
from tq_node.raft.membership import Membership
from tq_node.raft.messages import (
    Append,
    AppendReply,
    Change,
    Configuration,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Persisted,
    ReadReply,
    ReadRequest,
    Ready,
    Role,
    Snapshot,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tq_node.raft.progress import Mode
from tq_node.raft.read_index import ReadIndex
from tq_node.raft.replication import Replication
from tq_node.raft.rng import Rng
from tq_node.raft.roles import Roles
from tq_node.raft.settings import RaftSettings
from tq_node.raft.snapshots import Snapshots
from tq_node.raft.state import NodeState
from tq_node.raft.transfer import Transfer
from tq_node.types import NodeId

FOUNDING_INDEX = 1
FOUNDING_TERM = 1
DEFAULT_SETTINGS = RaftSettings()
NOTHING_PERSISTED = Persisted()


def founding(voters: Sequence[NodeId], data: bytes = b"") -> tuple[HardState, Snapshot]:
    """What the first node of a cluster persists before it starts: a snapshot as if one entry had
    been committed. It is at index 1, so that whoever joins gets it, and the first configuration
    with it, as a snapshot."""
    configuration = Configuration(tuple(sorted(voters)))
    return HardState(FOUNDING_TERM), Snapshot(FOUNDING_INDEX, FOUNDING_TERM, configuration, FOUNDING_INDEX, data)


class FollowerStatus(msgspec.Struct, frozen=True):
    """What a leader knows of a member, for ``/cluster`` and for deciding promotions."""

    match_index: int
    mode: Mode
    is_active: bool
    is_caught_up: bool


class RaftCore:
    """The Raft core of one node, without IO: events and a time go in, ``Ready`` comes out.

    :param seed: 64 random bits, different at each start.
    :param is_readable: can the driver's state machine become what a snapshot of this index
        holds? One that it can't is not taken."""

    def __init__(
        self,
        me: NodeId,
        persisted: Persisted = NOTHING_PERSISTED,
        *,
        seed: int,
        settings: RaftSettings = DEFAULT_SETTINGS,
        is_readable: Callable[[int, bytes], bool] = lambda log_index, data: True,
    ) -> None:
        self.log = RaftLog(persisted.snapshot, persisted.entries, persisted.applied_index)
        self.state = state = NodeState(me, self.log, persisted.hard_state, settings, Rng(seed))
        self._transfer = Transfer(state)
        self._reads = ReadIndex(state)
        self._lost_log = LostLog(state)
        self._snapshots = Snapshots(state, self._lost_log, is_readable)
        self._roles = Roles(state, self._reads, self._snapshots)
        self._replication = Replication(state, self._reads, self._snapshots, self._transfer, self._lost_log)
        self._membership = Membership(state, self._replication)
        self._election = Election(state, self._roles, self._replication, self._reads, self._transfer, self._lost_log)
        self._handed_soft_state = state.soft_state
        self._ready_number = 0
        self._from_leader: dict[type[Message], Callable[[Any], None]] = {
            Append: self._replication.on_append,
            Heartbeat: self._replication.on_heartbeat,
            SnapshotChunk: self._snapshots.on_chunk,
        }
        self._from_follower: dict[type[Message], Callable[[Any], None]] = {
            AppendReply: self._replication.on_append_reply,
            HeartbeatReply: self._on_heartbeat_reply,
            SnapshotReply: self._snapshots.on_reply,
        }
        self._from_anyone: dict[type[Message], Callable[[Any], None]] = {
            Vote: self._election.on_vote,
            VoteReply: self._election.on_vote_reply,
            TimeoutNow: self._election.on_timeout_now,
            ReadRequest: self._reads.on_request,
            ReadReply: self._reads.on_reply,
        }

    # --- looking ---
    @property
    def me(self) -> NodeId:
        return self.state.me

    @property
    def term(self) -> int:
        return self.state.term

    @property
    def role(self) -> Role:
        return self.state.role

    @property
    def leader(self) -> NodeId | None:
        return self.state.leader

    @property
    def is_leader(self) -> bool:
        return self.state.is_leader

    @property
    def configuration(self) -> Configuration:
        """The configuration in effect here, committed or not."""
        return self.log.configuration

    @property
    def commit_index(self) -> int:
        return self.log.commit_index

    @property
    def wake_at_ms(self) -> int | None:
        """When to call ``wake``, besides the ticks; None: not needed. Look after every call."""
        return self.state.campaign_at_ms

    @property
    def claim(self) -> Claim | None:
        """A leader's word that this node acknowledged more than it has; bounds its votes."""
        return self._lost_log.claim

    def followers(self) -> dict[NodeId, FollowerStatus]:
        """What a leader knows of each other member; empty elsewhere."""
        return {
            node: FollowerStatus(progress.match_index, progress.mode, progress.is_active, progress.is_caught_up)
            for node, progress in self.state.progress.items()
            if node != self.me
        }

    # --- events ---
    def tick(self, now_ms: int) -> None:
        """Count 0.1 s; once after a pause, so that sockets are read before an election begins."""
        self.state.now_ms = now_ms
        self._election.tick()

    def wake(self, now_ms: int) -> None:
        """``wake_at_ms`` has come; campaign if that is still due. Harmless at any other time."""
        self.state.now_ms = now_ms
        self._election.wake()

    def leader_died(self, node: NodeId, now_ms: int) -> None:
        """R5a's evidence about ``node``: its connection broke *and* its port refused twice, 50 ms
        apart. Never a mere timeout. Nothing happens unless it is believed to be the leader.
        Evidence may be repeated; a wrong one costs at most a pre-vote."""
        self.state.now_ms = now_ms
        self._election.leader_died(node)

    def step(self, message: Message, now_ms: int) -> None:
        """Handle a message; messages may come in any order, late or twice.

        :raises Unsound: no peer that keeps to the protocol sends this. Nothing has changed but,
            where only that was right, the term."""
        state = self.state
        assert message.target == state.me, "a message for another node"
        soundness.check(state, message)
        state.now_ms = now_ms
        if message.term != state.term and not self._settle_term(message):
            return
        kind = type(message)
        if kind in self._from_leader:
            if state.is_leader:
                raise Unsound(f"{message.source} says that it leads in term {state.term}, in which {state.me} does")
            if state.leader not in (None, message.source):
                raise Unsound(f"{message.source} says that it leads in term {state.term}, in which {state.leader} does")
            self._roles.become_follower(state.term, message.source)
            self._from_leader[kind](message)
        elif kind in self._from_follower:
            if state.is_leader and message.source in state.progress:
                state.progress[message.source].note_contact()
                self._from_follower[kind](message)
        else:
            self._from_anyone[kind](message)

    def _settle_term(self, message: Message) -> bool:
        """Take up a higher term, answer a lower one. True: the message is to be handled (3.3)."""
        state = self.state
        if message.term < state.term:
            self.answer_old_term(message)
            return False
        if isinstance(message, Vote):
            if self._election.is_loyal() and not message.force:
                return False
            if message.pre:
                return True
        elif isinstance(message, VoteReply) and message.pre and message.granted:
            return True
        leader = message.source if type(message) in self._from_leader else None
        self._roles.become_follower(message.term, leader)
        return True

    def answer_old_term(self, message: Message) -> None:
        """A stale leader or stuck candidate learns the term, else neither would move (6.2)."""
        state = self.state
        if isinstance(message, Vote):
            state.send(VoteReply(state.me, message.source, state.term, granted=False, pre=message.pre))
        elif type(message) in self._from_leader:
            state.send(AppendReply(state.me, message.source, state.term, 0, rejected=True))

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        self._reads.check_round(message)
        self._replication.on_heartbeat_reply(message)
        self._reads.on_heartbeat_reply(message)

    # --- calls ---
    def propose(self, data: bytes) -> int:
        """Append an entry. Returns its log_index; it is committed when ``Ready.committed`` holds
        that index with *this* ``term``. If it raises, nothing was done.

        :raises NotLeader: ``leader`` says who to ask.
        :raises Busy: too much waits, or leadership is being handed over.
        :raises PayloadTooLarge: more than ``entry_bytes_max``."""
        return self._replication.propose(data)

    def propose_change(self, change: Change, context: bytes = b"") -> int:
        """Append a change of the configuration, in effect here at once. Returns its log_index.
        If it raises, nothing was done.

        :raises NotLeader, Busy: as ``propose``.
        :raises ChangeRefused: ``why`` is the stable word for it."""
        return self._membership.propose(change, context)

    def transfer_leadership(self, target: NodeId) -> None:
        """Try to make this voter the leader, within an election timeout; watch ``soft_state``.

        :raises NotLeader: not the leader.
        :raises ChangeRefused: ``no_such_member`` or ``not_active``."""
        self._transfer.begin(target)

    def read_index(self) -> int:
        """Ask for a ``ReadState``, on a follower or learner from the leader. Returns its id.

        A read that came *before this call* may be served once ``ReadState.log_index`` is applied.
        An answer can be lost or come twice: the driver has a deadline, and each attempt asks anew;
        ids are never used again.

        :raises NotLeader: no leader is known.
        :raises Busy: too many wait."""
        return self._reads.read_index()

    # --- snapshots ---
    def snapshot_at(self, log_index: int, data: bytes) -> Snapshot | None:
        """What to persist for a state machine that has applied everything up to ``log_index``.
        None: a newer one came in. Queue its write before the next Ready's; call ``compact`` when it
        is durable."""
        assert len(data) <= self.state.settings.snapshot_bytes_max, "the state machine has outgrown its snapshots"
        assert log_index <= self.log.applied_index, "a snapshot of what is not applied"
        term = self.log.term(log_index)
        if term is None or log_index < self.log.snapshot.log_index:
            return None
        configuration_index, configuration = self.log.configuration_at(log_index)
        return Snapshot(log_index, term, configuration, configuration_index, data)

    def compact(self, snapshot: Snapshot, first_kept: int) -> int:
        """This snapshot is durable: entries below ``first_kept`` may go, at most up to its end.
        Keep some for slow followers. Returns the first log_index still held; the driver may delete
        what is below it on disk."""
        return self.log.compact(snapshot, first_kept)

    # --- Ready ---
    @property
    def has_ready(self) -> bool:
        state = self.state
        log = self.log
        return bool(
            state.messages
            or state.messages_after_persist
            or state.read_states
            or log.handed_index < log.last_index
            or log.snapshot_waits
            or log.has_committed()
            or state.handed_hard_state != state.hard_state
            or self._handed_soft_state != state.soft_state
        )

    def ready(self) -> Ready:
        """All that is to be done, each once. The next may be taken before this is persisted."""
        state = self.state
        self._ready_number += 1
        hard_state = state.hard_state if state.hard_state != state.handed_hard_state else None
        state.handed_hard_state = hard_state or state.handed_hard_state
        soft_state = state.soft_state if state.soft_state != self._handed_soft_state else None
        self._handed_soft_state = soft_state or self._handed_soft_state
        committed = self.log.next_committed(state.settings.committed_bytes_max)
        snapshot, entries = self.log.hand_out()
        ready = Ready(
            number=self._ready_number,
            hard_state=hard_state,
            snapshot=snapshot,
            entries=entries,
            messages=tuple(state.messages),
            messages_after_persist=tuple(state.messages_after_persist),
            committed=committed,
            read_states=tuple(state.read_states),
            soft_state=soft_state,
        )
        if ready.must_persist:
            upto = self.log.handed_index if entries or snapshot else 0
            self.log.writes.append(Write(ready.number, upto, hard_state))
        state.messages.clear()
        state.messages_after_persist.clear()
        state.read_states.clear()
        return ready

    def persisted(self, number: int) -> None:
        """The writes of all Readys up to ``number`` are durable."""
        state = self.state
        durable_before = self.log.durable_index
        hard_state = self.log.persisted(number)
        if hard_state is not None:
            state.durable_hard_state = hard_state
            self._election.own_vote_durable()
        if state.is_leader:
            self._replication.own_disk_moved(durable_before)
