"""The primary of one epoch: what it appends, when it is active, which set it proposes (R6-R12)."""

from __future__ import annotations

from typing import Generic

from tq_node import limits
from tq_node.partition.effects import Activated, AskEpoch, Outbox, ProposeIsr, ProposeStepDown
from tq_node.partition.entries import Effect, EpochStart, make_entry
from tq_node.partition.isr import Commitment, GiveUp, Larger, Members, Move, Standing, floor_to_join, next_move
from tq_node.partition.leases import Confirmations
from tq_node.partition.messages import Ack, SyncOk
from tq_node.partition.progress import Mode, ReplicaProgress
from tq_node.partition.record import Record
from tq_node.partition.replica_log import News, ReplicaLog
from tq_node.partition.sender import Sender
from tq_node.types import NodeId, Token

_BARRIER_BYTES = 16
_EFFECT_OVERHEAD_BYTES = 100


class OpenEntry(Generic[News]):
    """What is proposed in one epoch between two seals: it shares one place in the log, which is
    what makes a batch cheap. Its sequence is known from the first effect on: a claim's token is the
    place of the entry that carries it."""

    __slots__ = ("_bytes", "_log", "_news", "effects", "epoch")

    def __init__(self, log: ReplicaLog[News], epoch: int) -> None:
        self._log = log
        self.epoch = epoch
        self.effects: list[Effect] = []
        """What was added since the entry was opened."""
        self._news: list[News] = []
        self._bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self.effects

    @property
    def sequence(self) -> int:
        """The sequence of the next effect, unless a large one starts another entry."""
        return self._log.last_sequence + 1

    def add(self, effect: Effect, size: int, news: News | None) -> int:
        """Add an effect; return its sequence. ``size``: its payloads' bytes, to cut entries by."""
        if self.effects and not self.has_room(size):
            self.close()
        self.effects.append(effect)
        self._bytes += size + _EFFECT_OVERHEAD_BYTES
        if news is not None:
            self._news.append(news)
        return self._log.last_sequence + 1

    def has_room(self, size: int) -> bool:
        """Whether an effect of ``size`` goes into this entry."""
        return not self.effects or self._bytes + size + _EFFECT_OVERHEAD_BYTES <= limits.ENTRY_BYTES_AIM

    def claim_token(self, claimed_before: int) -> Token:
        """The next claim's token; begins a new entry if this has the task's last claim (F30a)."""
        if self.effects and claimed_before == self._log.last_sequence + 1:
            self.close()
        return Token(self.epoch, self._log.last_sequence + 1)

    def close(self) -> None:
        """Encode the effects once, for the disk and all replicas; append the entry to the log."""
        if not self.effects:
            return
        log = self._log
        entry = make_entry(log.partition, log.last_sequence + 1, self.epoch, self.effects)
        log.append(entry, self.effects, self._news)
        self.effects, self._news, self._bytes = [], [], 0


class Primary(Generic[News]):
    """This node as primary of one epoch, until the cluster map has a higher one (R12)."""

    def __init__(self, me: NodeId, log: ReplicaLog[News], record: Record, outbox: Outbox[News], now_ms: int) -> None:
        self.epoch = record.epoch
        self.record = record
        self.sender: Sender[News] = Sender(log, record, outbox)
        self.confirmations = Confirmations()
        self.promise_durable_ms: int | None = None
        self.is_active = False
        self._me = me
        self._log = log
        self._settings = log.settings
        self._outbox = outbox
        self._proposed_ms: int | None = None
        self._asked_ms: int | None = None
        self._successor_since_ms: int | None = None
        self.spread_to = log.last_sequence
        self.open_entry: OpenEntry[News] = OpenEntry(log, self.epoch)
        self.commitment = Commitment(me, self.open_entry.add(EpochStart(self.epoch), _BARRIER_BYTES, None))
        self.open_entry.close()
        self.follow(record, now_ms)

    # --- the cluster map ---
    def follow(self, record: Record, now_ms: int) -> None:
        """Take up a record of this epoch. A higher version settles every proposal: it is one of
        them, or compare-and-set refuses them for ever (R9)."""
        assert record.epoch == self.epoch
        assert record.primary == self._me
        assert self._me in record.isr, "a primary is in sync (I3)"
        assert len(record.isr) >= record.min_isr, "the cluster map keeps enough (I3)"
        is_newer = record.partition_version > self.record.partition_version
        if is_newer:
            self._proposed_ms = None
        if record.successor != self.record.successor or record.successor is None:
            self._successor_since_ms = None
        self.record = record
        self.sender.follow(record, self._me, now_ms)
        for stream in self.sender.streams.values():
            if stream.node not in record.up:
                stream.removals.count = 0  # whoever comes back from the dead has shown no slowness yet
        self.commitment.learn(record.isr, self.sender.streams, settles=is_newer)
        self._recounted()

    def _recounted(self) -> None:
        """The effective set has changed: more may be committed now, or less from now on."""
        self.sender.counting = self.commitment.effective
        self.advance()

    # --- committing ---
    def advance(self) -> None:
        """Commit what the effective set has durable; the barrier activates (R7, R8). A hot path."""
        log = self._log
        sequence = self.commitment.advance(log.durable_sequence, log.committed)
        if sequence is not None:
            log.commit_to(sequence)
            if not self.is_active and sequence >= self.commitment.barrier:
                self.is_active = True
                self._outbox.events.append(Activated(self.epoch))

    # --- the disk ---
    def promise_durable(self, connected: frozenset[NodeId] | set[NodeId], now_ms: int) -> None:
        """The promise of this epoch is durable: from now on its messages may leave (R6)."""
        if self.promise_durable_ms is None:
            self.promise_durable_ms = now_ms
            self.open_streams(connected, now_ms)

    def open_streams(self, connected: frozenset[NodeId] | set[NodeId], now_ms: int) -> None:
        if self.sender.may_send():
            for node, stream in self.sender.streams.items():
                if stream.mode is Mode.CLOSED and node in connected:
                    self.sender.begin(stream, now_ms)

    def seal(self, now_ms: int) -> None:
        """Close the open entry and send it once the promise is durable, before the entry is."""
        self.open_entry.close()
        log = self._log
        if self.spread_to < log.last_sequence:
            first = self.spread_to + 1
            self.spread_to = log.last_sequence
            self.sender.spread(first, now_ms)

    # --- answers ---
    def on_sync_ok(self, stream: ReplicaProgress, message: SyncOk, now_ms: int) -> None:
        self.sender.synced(stream, message.durable_sequence, now_ms)
        self.advance()

    def on_ack(self, stream: ReplicaProgress, message: Ack, now_ms: int) -> None:
        if self.sender.acked(stream, message.durable_sequence, now_ms):
            self.advance()

    # --- reads and leases ---
    def confirm(self, stream: ReplicaProgress, number: int, sent_ms: int) -> None:
        self.confirmations.confirm(stream.node, number, sent_ms)
        stream.answered_ms = max(stream.answered_ms, sent_ms)

    def confirmed_number(self) -> int:
        """The latest round that the effective set answered in full; 0 before active (R7)."""
        return self.confirmations.number(self.commitment.others) if self.is_active else 0

    # --- the set (section 6) ---
    def tick(self, now_ms: int) -> bool:
        """Look at each stream and at the set. False: there was nothing to do."""
        if self._is_idle(now_ms):
            return False
        for stream in self.sender.streams.values():
            stream.note_nearness(now_ms)
            self.sender.tick(stream, now_ms)
        # Where all are in sync, up and near, no change of the set is due.
        if not self.record.is_settled or any(stream.lags(now_ms) for stream in self.sender.streams.values()):
            self._decide(now_ms)
        return True

    def _is_idle(self, now_ms: int) -> bool:
        """Whether there is nothing to send or decide: the usual case, at each partition's tick."""
        if not self.record.is_settled:
            return False
        log = self._log
        last_sequence, committed = log.last_sequence, log.committed
        for stream in self.sender.streams.values():  # noqa: SIM110 (a generator costs as much as the rest)
            if not stream.is_idle(last_sequence, committed, now_ms):
                return False
        return True

    def paused(self, now_ms: int) -> None:
        for stream in self.sender.streams.values():
            stream.paused(now_ms)

    def _decide(self, now_ms: int) -> None:
        if self.record.successor is not None and self.record.successor != self._me:
            self._hand_over(now_ms)
            return
        if self._proposed_ms is not None and now_ms - self._proposed_ms < self._settings.proposal_ms:
            return
        if self._is_stuck(now_ms):
            self._ask_epoch(now_ms)
            return
        standings = {node: self._standing(stream, now_ms) for node, stream in self.sender.streams.items()}
        move = self.next_move(standings)
        if move is not None:
            self._propose(move, now_ms)

    def next_move(self, standings: dict[NodeId, Standing]) -> Move | None:
        return next_move(self.record, self._me, standings, floor_to_join(self.commitment.barrier, self._log.committed))

    def _standing(self, stream: ReplicaProgress, now_ms: int) -> Standing:
        is_up = stream.node in self.record.up
        return Standing(stream.node, stream.acked, is_up, stream.lags(now_ms), stream.is_fit(now_ms))

    def _propose(self, move: Move, now_ms: int) -> None:
        record, log = self.record, self._log
        if isinstance(move, GiveUp):
            self._proposed_ms = now_ms
            self._outbox.steps.append(ProposeStepDown(log.partition, self.epoch))
            return
        isr = frozenset(record.isr)
        if isinstance(move, Larger):
            isr |= {move.node}
        else:
            isr -= {move.node}
            if move.for_lag:
                self.sender.streams[move.node].removed_for_lag(now_ms)
        self.note_proposal(isr, now_ms)
        step = ProposeIsr(log.partition, self.epoch, record.partition_version, record.ordered(isr))
        self._outbox.steps.append(step)

    def note_proposal(self, isr: Members, now_ms: int) -> None:
        """Count ``isr`` from before its proposal leaves (R9)."""
        self._proposed_ms = now_ms
        self.commitment.propose(isr, self.sender.streams)
        self._recounted()

    def _is_stuck(self, now_ms: int) -> bool:
        """Whether a copy that counts only because it was proposed has fallen silent. The proposal
        may be lost or may yet be applied; only a new epoch, which overtakes it, settles that
        (R9)."""
        up = self.record.up
        return any(stream.lags(now_ms) or stream.node not in up for stream in self.commitment.unlearned())

    def _ask_epoch(self, now_ms: int) -> None:
        if self._asked_ms is None or now_ms - self._asked_ms >= self._settings.proposal_ms:
            self._asked_ms = now_ms
            self._outbox.steps.append(AskEpoch(self._log.partition, self.epoch, self.record.partition_version))

    def _hand_over(self, now_ms: int) -> None:
        """Step down for the successor when all is committed, or after ``handover_ms``. The driver
        proposes nothing new meanwhile."""
        if self._successor_since_ms is None:
            self._successor_since_ms = now_ms
        is_drained = self._log.committed == self._log.last_sequence and self.open_entry.is_empty
        if not is_drained and now_ms - self._successor_since_ms < self._settings.handover_ms:
            return
        if self._asked_ms is None or now_ms - self._asked_ms >= self._settings.proposal_ms:
            self._asked_ms = now_ms
            self._outbox.steps.append(ProposeStepDown(self._log.partition, self.epoch))

    # --- trimming ---
    def trim_floor(self, wanted: int) -> int:
        """The lowest floor that any replica needs, at most ``wanted``."""
        for stream in self.sender.streams.values():
            wanted = self.sender.trim_floor(stream, wanted, counts=stream.node in self.commitment.effective)
        return wanted
