"""The primary of one epoch: what it appends, what counts for it, when it is active, whom it wants in the set (R6 to R12)."""

from __future__ import annotations

from typing import Generic

from tq_node.partition.effects import Activated, AskEpoch, Event, ProposeIsr, ProposeStepDown, Step, Wish
from tq_node.partition.entries import EpochStart
from tq_node.partition.isr import (
    GiveUp,
    Larger,
    Members,
    Move,
    Standing,
    effective_set,
    floor_to_join,
    may_commit,
    next_move,
)
from tq_node.partition.leases import Confirmations
from tq_node.partition.messages import Ack, Addressed, SyncOk
from tq_node.partition.open_entry import OpenEntry
from tq_node.partition.progress import Mode, ReplicaProgress
from tq_node.partition.record import Record
from tq_node.partition.replica_log import News, ReplicaLog
from tq_node.partition.sender import Sender
from tq_node.partition.settings import Budget, ReplicationSettings
from tq_node.types import NodeId

_BARRIER_BYTES = 16


class Primary(Generic[News]):
    """See the module's docstring. Made when the table's choice is learned; thrown away at a higher epoch."""

    def __init__(
        self,
        me: NodeId,
        log: ReplicaLog[News],
        record: Record,
        pace: ReplicationSettings,
        budget: Budget,
        *,
        messages: list[Addressed],
        wishes: list[Wish],
        steps: list[Step],
        events: list[Event],
        now_ms: int,
    ) -> None:
        self.epoch = record.epoch
        self.record = record
        self.sending: Sender[News] = Sender(log, record, pace, budget, messages, wishes)
        self.confirmations = Confirmations()
        self.promise_durable_ms: int | None = None
        self.is_active = False
        self._me = me
        self._log = log
        self._pace = pace
        self._steps = steps
        self._events = events
        self._proposed: Members = frozenset()
        self._proposed_ms: int | None = None
        self._asked_ms: int | None = None
        self._heir_since_ms: int | None = None
        self.effective: Members = frozenset()
        self.others: tuple[NodeId, ...] = ()
        self._counted: tuple[ReplicaProgress, ...] = ()
        self.spread_to = log.last_sequence
        self.open: OpenEntry[News] = OpenEntry(log, self.epoch)
        self.barrier = self.open.add(EpochStart(self.epoch), _BARRIER_BYTES, None)
        self.open.close()
        self.follow(record, now_ms)

    # --- the table ---
    def follow(self, record: Record, now_ms: int) -> None:
        """Of the same epoch. A higher version settles every proposal: it was that one, or compare-and-set refuses it for
        ever (R9)."""
        assert record.epoch == self.epoch
        assert record.primary == self._me
        assert self._me in record.isr, "a primary is in sync (I3)"
        assert len(record.isr) >= record.min_isr, "the table keeps enough (I3)"
        if record.partition_version > self.record.partition_version:
            self.settle_proposals()
        if record.heir != self.record.heir or record.heir is None:
            self._heir_since_ms = None
        self.record = record
        self.sending.follow(record, self._me, now_ms)
        for stream in self.sending.streams.values():
            if stream.node not in record.up:
                stream.removals.count = 0  # whoever comes back from the dead has shown no slowness yet
        self._recount()

    def settle_proposals(self) -> None:
        self._proposed = frozenset()
        self._proposed_ms = None

    def _recount(self) -> None:
        """Who counts has changed: more may be committed, or less may be from now on."""
        self.effective = self.sending.counting = self.counted_set()
        streams = self.sending.streams
        assert all(node == self._me or node in streams for node in self.effective), "whoever counts is a copy"
        self.others = tuple(node for node in sorted(self.effective) if node != self._me)
        self._counted = tuple(streams[node] for node in self.others)
        self.advance()

    def counted_set(self) -> Members:
        """R8, R9."""
        return effective_set(self.record.isr, self._proposed)

    # --- committing ---
    def own_sequence(self) -> int:
        """R8: itself included, but only by its own sync."""
        return self._log.durable_sequence

    def advance(self) -> None:
        """R8: the least that is durable over the effective set, never below the barrier. On the hot path."""
        log = self._log
        least = self.own_sequence()
        for stream in self._counted:
            least = min(least, stream.acked)
        if least > log.committed and may_commit(least, self.barrier):
            log.commit_to(least)
            if not self.is_active and least >= self.barrier:
                self.is_active = True
                self._events.append(Activated(self.epoch))

    # --- the disk ---
    def promise_durable(self, connected: frozenset[NodeId] | set[NodeId], now_ms: int) -> None:
        """R6: only now may anything of this epoch leave."""
        if self.promise_durable_ms is None:
            self.promise_durable_ms = now_ms
            self.open_streams(connected, now_ms)

    def open_streams(self, connected: frozenset[NodeId] | set[NodeId], now_ms: int) -> None:
        if self.sending.may_send():
            for node, stream in self.sending.streams.items():
                if stream.mode is Mode.CLOSED and node in connected:
                    self.sending.begin(stream, now_ms)

    def seal(self, now_ms: int) -> None:
        """What was proposed since the last call is an entry, and leaves: before the own disk has it, but not before the
        promise."""
        self.open.close()
        log = self._log
        if self.spread_to < log.last_sequence:
            first = self.spread_to + 1
            self.spread_to = log.last_sequence
            self.sending.spread(first, now_ms)

    # --- answers ---
    def on_sync_ok(self, stream: ReplicaProgress, message: SyncOk, now_ms: int) -> None:
        self.sending.synced(stream, message.durable_sequence, now_ms)
        self.advance()

    def on_ack(self, stream: ReplicaProgress, message: Ack, now_ms: int) -> None:
        if self.sending.acked(stream, message.durable_sequence, now_ms):
            self.advance()

    # --- reads and leases ---
    def confirm(self, stream: ReplicaProgress, number: int, sent_ms: int) -> None:
        self.confirmations.confirm(stream.node, number, sent_ms)
        stream.answered_ms = max(stream.answered_ms, sent_ms)

    def confirmed_number(self) -> int:
        """R7: none before it is active."""
        return self.confirmations.number(self.others) if self.is_active else 0

    # --- the set (section 6) ---
    def tick(self, now_ms: int) -> bool:
        """False: there was nothing to do."""
        if self._rests(now_ms):
            return False
        for stream in self.sending.streams.values():
            stream.note_nearness(now_ms)
            self.sending.tick(stream, now_ms)
        self._decide(now_ms)
        return True

    def _rests(self, now_ms: int) -> bool:
        """Whether there is nothing to send, to tell or to decide: the usual case, asked for each partition at each tick."""
        if not self.record.is_settled:
            return False
        log = self._log
        last_sequence, committed = log.last_sequence, log.committed
        return all(stream.rests(last_sequence, committed, now_ms) for stream in self.sending.streams.values())

    def slept(self, now_ms: int) -> None:
        for stream in self.sending.streams.values():
            stream.slept(now_ms)

    def _decide(self, now_ms: int) -> None:
        if self.record.heir is not None and self.record.heir != self._me:
            self._hand_over(now_ms)
            return
        if self._proposed_ms is not None and now_ms - self._proposed_ms < self._pace.proposal_ms:
            return
        if self._is_stuck(now_ms):
            self._ask_epoch(now_ms)
            return
        standings = {node: self._standing(stream, now_ms) for node, stream in self.sending.streams.items()}
        move = self.next_move(standings)
        if move is not None:
            self._propose(move, now_ms)

    def next_move(self, standings: dict[NodeId, Standing]) -> Move | None:
        return next_move(self.record, self._me, standings, floor_to_join(self.barrier, self._log.committed))

    def _standing(self, stream: ReplicaProgress, now_ms: int) -> Standing:
        is_up = stream.node in self.record.up
        return Standing(stream.node, stream.acked, is_up, stream.lags(now_ms), stream.is_fit(now_ms))

    def _propose(self, move: Move, now_ms: int) -> None:
        record, log = self.record, self._log
        if isinstance(move, GiveUp):
            self._proposed_ms = now_ms
            self._steps.append(ProposeStepDown(log.partition, self.epoch))
            return
        isr = frozenset(record.isr)
        if isinstance(move, Larger):
            isr |= {move.node}
        else:
            isr -= {move.node}
            if move.for_lag:
                self.sending.streams[move.node].removed_for_lag(now_ms)
        self.note_proposal(isr, now_ms)
        step = ProposeIsr(log.partition, self.epoch, record.partition_version, record.ordered(isr))
        self._steps.append(step)

    def note_proposal(self, isr: Members, now_ms: int) -> None:
        """R9: it counts from before it leaves."""
        self._proposed |= isr
        self._proposed_ms = now_ms
        self._recount()

    def _is_stuck(self, now_ms: int) -> bool:
        """Somebody counts who was proposed and never learned to be in, and who has fallen silent. The proposal may have
        been lost, or may yet be applied: only a new epoch tells, for it overtakes it (R9)."""
        return any(
            stream.node not in self.record.isr and (stream.lags(now_ms) or stream.node not in self.record.up)
            for stream in self._counted
        )

    def _ask_epoch(self, now_ms: int) -> None:
        if self._asked_ms is None or now_ms - self._asked_ms >= self._pace.proposal_ms:
            self._asked_ms = now_ms
            self._steps.append(AskEpoch(self._log.partition, self.epoch, self.record.partition_version))

    def _hand_over(self, now_ms: int) -> None:
        """It drains: the driver proposes nothing new (``is_handing_over``). When all is committed, or after some time, it
        steps down."""
        if self._heir_since_ms is None:
            self._heir_since_ms = now_ms
        is_drained = self._log.committed == self._log.last_sequence and self.open.is_empty
        if not is_drained and now_ms - self._heir_since_ms < self._pace.handover_ms:
            return
        if self._asked_ms is None or now_ms - self._asked_ms >= self._pace.proposal_ms:
            self._asked_ms = now_ms
            self._steps.append(ProposeStepDown(self._log.partition, self.epoch))

    # --- trimming ---
    def trim_floor(self, wanted: int) -> int:
        for stream in self.sending.streams.values():
            wanted = self.sending.trim_floor(stream, wanted, counts=stream.node in self.effective)
        return wanted
