"""Drives the Raft core: persists its entries, then sends messages, then applies what is committed
(docs/explanation/raft.md).

Everything happens in the reactor's thread; the store writes in its own, so several Readys may be on
their way to the disk, in order. An assertion that fails in the core or in the state machine ends
the process (R20): it goes up to ``on_broken``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import NoController, OutcomeUnknown, StoreBroken, Unsound
from tq_node.raft.core import DEFAULT_SETTINGS, FollowerStatus, RaftCore, founding
from tq_node.raft.messages import (
    Append,
    Change,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Message,
    Persisted,
    Ready,
    Snapshot,
    SoftState,
)
from tq_node.runtime.clock import Clock, Loop
from tq_node.store.api import Batch, ConsensusRecord, ConsensusWrite, Store
from tq_node.types import NodeId

_log = Logger(namespace="taskqueue.raft")

TICK_S = 0.1
SNAPSHOT_EVERY = 1_000
"""Applied entries between two snapshots of the table."""
KEPT_BEHIND = 500
"""Entries kept below a snapshot for followers that are a little late."""
PROPOSAL_S_MAX = 5.0
"""How long a proposer waits; then its outcome is unknown."""
HARD_STATE = "raft.hard_state"
SNAPSHOT = "raft.snapshot"

_encode = msgspec.msgpack.Encoder().encode
_decode_hard_state = msgspec.msgpack.Decoder(HardState).decode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


def founding_values(me: NodeId, data: bytes) -> dict[str, bytes | None]:
    """What makes a store that of a cluster's first node: to be durable before the driver starts."""
    hard_state, snapshot = founding([me], data)
    return {HARD_STATE: _encode(hard_state), SNAPSHOT: _encode(snapshot)}


class StateMachine:
    """What the Raft log is applied to. Deterministic; an exception ends the process."""

    def apply(self, log_index: int, data: bytes) -> None:
        """Apply a committed entry; called exactly once for each, in order."""

    def configuration_changed(self, log_index: int, configuration: Configuration) -> None:
        """A change of voters and learners is committed."""

    def restore(self, log_index: int, data: bytes) -> None:
        """Replace the state by one of ``snapshot`` at ``log_index``, here or on another node."""

    def snapshot(self) -> bytes:
        """Return the whole state, encoded."""
        return b""

    def check_entry(self, data: bytes) -> None:
        """Check an entry of a peer before it goes into the log, where each start would meet it
        again.

        :raises Unsound: it could never be applied."""

    def can_restore(self, log_index: int, data: bytes) -> bool:
        """Whether a peer's snapshot could be restored."""
        return True


class _Proposal(msgspec.Struct, gc=False):
    term: int
    deferred: Deferred[int]
    since_ms: int


@dataclass(frozen=True, slots=True)
class RaftOutputs:
    """What a ``RaftDriver`` calls outside of the log."""

    send: Callable[[Sequence[Message]], None]
    """Hands messages to the wire, which may drop them."""
    on_soft_state: Callable[[SoftState], None]
    """Called when role, leader or term has changed."""
    on_broken: Callable[[BaseException], None]
    """Called once, when an assertion or the store has failed: the process must end."""


class RaftDriver:
    """Runs the Raft core of this node against store, clock and peers; see the module's docstring.

    :param seed: of the core's random election timeouts."""

    def __init__(
        self, me: NodeId, store: Store, clock: Clock, machine: StateMachine, outputs: RaftOutputs, *, seed: int
    ) -> None:
        self.me = me
        self.core = RaftCore(me, seed=seed)
        """Until ``start`` that of a node that knows of no voter: it neither leads nor follows.
        ``start`` replaces it by the one that the store has."""
        self.applied_index = 0
        self._store = store
        self._clock = clock
        self._machine = machine
        self._seed = seed
        self._send = outputs.send
        self._on_soft_state = outputs.on_soft_state
        self._on_broken = outputs.on_broken
        self._proposals: dict[int, _Proposal] = {}
        self._reads: dict[int, Deferred[int]] = {}
        self._served: list[tuple[int, Deferred[int]]] = []
        self._unwritten: deque[tuple[Ready, bool]] = deque()
        """Readys whose messages wait for the disk, in order; with each, if its write is durable."""
        self._snapshot_under_way = False
        self._snapshot_index = 0
        self._wake_timer = clock.timer(self._wake)
        self._wake_at_ms: int | None = None
        self._loop: Loop | None = None
        self._stopped = False

    # --- life ---
    async def start(self) -> None:
        """Read the log and snapshot from the store. A sole voter leads at once."""
        meta = self._store.meta()
        hard_state = _decode_hard_state(meta[HARD_STATE]) if HARD_STATE in meta else HardState()
        snapshot = _decode_snapshot(meta[SNAPSHOT]) if SNAPSHOT in meta else Snapshot()
        records = await self._store.consensus_log()
        entries = tuple(Entry(r.term, r.log_index, EntryKind(r.kind), r.data) for r in records)
        self.core = RaftCore(
            self.me, Persisted(hard_state, snapshot, entries), seed=self._seed, is_readable=self._machine.can_restore
        )
        self._snapshot_index = self.applied_index = snapshot.log_index
        if snapshot.log_index:
            self._machine.restore(snapshot.log_index, snapshot.data)
        if self.core.configuration.voters == (self.me,):
            for _ in range(2 * DEFAULT_SETTINGS.election_ticks):
                self.core.tick(self._clock.now_ms())
        self._loop = self._clock.every(TICK_S, self._tick, "a Raft tick")

    async def stop(self) -> None:
        """Send nothing from now on. Proposals that wait fail with ``OutcomeUnknown``."""
        self._stopped = True
        self._wake_timer.cancel()
        if self._loop is not None:
            self._loop.stop()
            await self._loop.ended
        self._fail_proposals(lambda proposal: True)

    # --- events ---
    def receive(self, messages: Sequence[Message]) -> Unsound | None:
        """Step the core with messages of a peer, whose connection is authenticated as their source.
        Returns why one was refused, of the first if several were."""
        now_ms = self._clock.now_ms()
        refused: list[Unsound] = []

        def step_all() -> None:
            for message in messages:
                if message.target == self.me:
                    try:
                        self._check(message)
                        self.core.step(message, now_ms)
                    except Unsound as why:
                        refused.append(why)

        self._enter(step_all)
        return refused[0] if refused else None

    def _check(self, message: Message) -> None:
        if isinstance(message, Append):
            for entry in message.entries:
                if entry.kind is EntryKind.DATA:
                    self._machine.check_entry(entry.data)

    def leader_died(self, node: NodeId) -> None:
        """Tell the core that ``node`` is dead (R5a): if it led, an election begins early."""
        self._enter(lambda: self.core.leader_died(node, self._clock.now_ms()))

    def _tick(self) -> None:
        self._enter(lambda: self.core.tick(self._clock.now_ms()))
        oldest_ms = self._clock.now_ms() - int(PROPOSAL_S_MAX * 1000)
        self._fail_proposals(lambda proposal: proposal.since_ms < oldest_ms)

    # --- calls ---
    def propose(self, data: bytes) -> Deferred[int]:
        """Append ``data``; fires with its log_index once it is applied *here*.

        :raises NotLeader, Busy: nothing was done.
        :raises NoController: another leader's entry took its place: it never happens.
        :raises OutcomeUnknown: not known within ``PROPOSAL_S_MAX``. (All through the Deferred.)"""
        return self._append(lambda: self.core.propose(data))

    def propose_change(self, change: Change) -> Deferred[int]:
        """One change of the group's members; raises as ``propose``, and ``ChangeRefused``."""
        return self._append(lambda: self.core.propose_change(change))

    def _append(self, call: Callable[[], int]) -> Deferred[int]:
        if self._stopped:
            return fail(NoController("the node is stopping"))
        try:
            log_index = call()
        except AssertionError:
            self._break(Failure())
            return fail(StoreBroken("consensus is broken"))
        except Exception as why:  # refused: NotLeader, Busy, PayloadTooLarge, ChangeRefused
            return fail(why)
        proposal = _Proposal(self.core.term, Deferred(), self._clock.now_ms())
        cut = self._proposals.get(log_index)
        if cut is not None and not cut.deferred.called:
            # This node led before, lost its place and its tail, and leads again: the older entry
            # will never be committed.
            cut.deferred.errback(NoController("the entry was cut by another leader"))
        self._proposals[log_index] = proposal
        self._enter(lambda: None)
        return proposal.deferred

    def transfer_leadership(self, target: NodeId) -> None:
        """Begin a transfer of leadership; raises ``NotLeader``, ``ChangeRefused``: not now."""
        self.core.transfer_leadership(target)
        self._enter(lambda: None)

    def read_index(self) -> Deferred[int]:
        """Fires once all committed at the call is applied here; raises ``NoController``. Question
        and answer may be lost: who waits no longer cancels it."""
        try:
            read_id = self.core.read_index()
        except Exception as why:  # NotLeader, Busy
            return fail(why)

        def given_up(_: object) -> None:
            self._reads.pop(read_id, None)

        deferred: Deferred[int] = Deferred(given_up)
        self._reads[read_id] = deferred
        self._enter(lambda: None)
        return deferred

    def followers(self) -> dict[NodeId, FollowerStatus]:
        return self.core.followers()

    # --- the loop ---
    def _enter(self, event: Callable[[], object]) -> None:
        if self._stopped:
            return
        try:
            event()
            self._pump()
        except Exception:
            self._break(Failure())

    def _pump(self) -> None:
        while self.core.has_ready and not self._stopped:
            ready = self.core.ready()
            if ready.messages:
                self._send(ready.messages)
            self._persist(ready)
            for entry in ready.committed:
                self._apply(entry)
            for read in ready.read_states:
                self._confirmed(read.read_id, read.log_index)
            if ready.soft_state is not None:
                self._on_soft_state(ready.soft_state)
        self._serve_reads()
        self._wake_in_time()

    def _persist(self, ready: Ready) -> None:
        if not ready.must_persist:
            if ready.messages_after_persist:
                self._unwritten.append((ready, True))
                self._send_written()
            return
        batch = Batch()
        if ready.hard_state is not None:
            batch.meta[HARD_STATE] = _encode(ready.hard_state)
        if ready.snapshot is not None:
            batch.meta[SNAPSHOT] = _encode(ready.snapshot)
        if ready.entries or ready.snapshot is not None:
            records = [ConsensusRecord(e.log_index, e.term, e.kind, e.data) for e in ready.entries]
            batch.consensus = [ConsensusWrite(records, replace_all=ready.snapshot is not None)]
        self._unwritten.append((ready, False))
        self._store.commit(batch).addCallbacks(lambda _: self._enter(lambda: self._written(ready)), self._break)

    def _written(self, ready: Ready) -> None:
        # Batches become durable in order, so this is the first that is not.
        waiting = [(known, True if known is ready else durable) for known, durable in self._unwritten]
        self._unwritten = deque(waiting)
        self.core.persisted(ready.number)
        self._send_written()
        if ready.snapshot is not None:
            self.applied_index = self._snapshot_index = ready.snapshot.log_index
            self._machine.restore(ready.snapshot.log_index, ready.snapshot.data)

    def _send_written(self) -> None:
        while self._unwritten and self._unwritten[0][1]:
            ready, _ = self._unwritten.popleft()
            if ready.messages_after_persist:
                self._send(ready.messages_after_persist)

    def _apply(self, entry: Entry) -> None:
        assert entry.log_index == self.applied_index + 1, "applied out of order"
        self.applied_index = entry.log_index
        if entry.kind is EntryKind.DATA:
            self._machine.apply(entry.log_index, entry.data)
        elif entry.kind is EntryKind.CONFIGURATION:
            self._machine.configuration_changed(entry.log_index, self.core.log.configuration_at(entry.log_index)[1])
        proposal = self._proposals.pop(entry.log_index, None)
        if proposal is not None and not proposal.deferred.called:
            if proposal.term == entry.term:
                proposal.deferred.callback(entry.log_index)
            else:
                proposal.deferred.errback(NoController("another leader's entry took the place of this one"))
        if entry.log_index - self._snapshot_index >= SNAPSHOT_EVERY:
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        if self._snapshot_under_way:
            return
        snapshot = self.core.snapshot_at(self.applied_index, self._machine.snapshot())
        if snapshot is None:
            return
        self._snapshot_under_way = True
        self._snapshot_index = snapshot.log_index

        def durable(_: None) -> None:
            self._snapshot_under_way = False
            first = self.core.compact(snapshot, max(1, snapshot.log_index - KEPT_BEHIND))
            self._store.commit(Batch(consensus=[ConsensusWrite(cut_below=first)])).addErrback(self._break)

        self._store.commit(Batch(meta={SNAPSHOT: _encode(snapshot)})).addCallbacks(
            lambda _: self._enter(lambda: durable(None)), self._break
        )

    # --- reads ---
    def _confirmed(self, read_id: int, log_index: int | None) -> None:
        deferred = self._reads.pop(read_id, None)
        if deferred is None or deferred.called:
            return
        if log_index is None:
            deferred.errback(NoController("the read could not be confirmed"))
        else:
            self._served.append((log_index, deferred))

    def _serve_reads(self) -> None:
        due = [deferred for log_index, deferred in self._served if log_index <= self.applied_index]
        self._served = [(index, deferred) for index, deferred in self._served if index > self.applied_index]
        for deferred in due:
            if not deferred.called:
                deferred.callback(self.applied_index)

    # --- timers, trouble ---
    def _wake_in_time(self) -> None:
        due_ms = self.core.wake_at_ms
        if due_ms == self._wake_at_ms:
            return
        self._wake_at_ms = due_ms
        self._wake_timer.cancel()
        if due_ms is not None:
            self._wake_timer.start(max(0.0, (due_ms - self._clock.now_ms()) / 1000))

    def _wake(self) -> None:
        self._wake_at_ms = None
        self._enter(lambda: self.core.wake(self._clock.now_ms()))

    def _fail_proposals(self, is_over: Callable[[_Proposal], bool]) -> None:
        for log_index, proposal in list(self._proposals.items()):
            if is_over(proposal):
                del self._proposals[log_index]
                if not proposal.deferred.called:
                    proposal.deferred.errback(OutcomeUnknown("not known to be committed in time"))

    def _break(self, why: Failure) -> None:
        if self._stopped:
            return
        self._stopped = True
        _log.critical("consensus has failed: {why}", why=why.getTraceback(), event="raft_broken")
        self._on_broken(cast("BaseException", why.value))
