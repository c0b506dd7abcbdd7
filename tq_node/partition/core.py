"""``PartitionCore``: one node's copy of one partition, in both roles. Events go in, an ``Outbox``
and ``Ready``s come out.

No clock, disk, socket or dice: every call says what time it is, in monotonic ms. Everything is
synchronous and belongs to one thread. A failed assertion or a ``Divergence`` means that a promise
is broken: the process must stop (R20). Rules and invariants in brackets are those of
replication.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

from tq_node.errors import Unsound
from tq_node.partition.effects import AskEpoch, Outbox, Ready, SteppedDown
from tq_node.partition.entries import Effect, Entry
from tq_node.partition.leases import NEVER_MS, is_read_confirmed, requeue_at_ms, runs_until_ms
from tq_node.partition.messages import (
    Ack,
    AnyMessage,
    Append,
    Reject,
    RejectCode,
    SnapAck,
    Sync,
    SyncOk,
)
from tq_node.partition.primary import Primary
from tq_node.partition.progress import ReplicaProgress
from tq_node.partition.record import Record
from tq_node.partition.replica import Replica
from tq_node.partition.replica_log import News, ReplicaLog, Stored
from tq_node.partition.settings import DEFAULT_SETTINGS, Budget, ReplicationSettings
from tq_node.types import NodeId, Token

_ANSWERS = (SyncOk, Ack, Reject, SnapAck)


class PartitionCore(Generic[News]):
    """:param stored: what the store has of the partition; nothing, for a copy that is new.

    :param budget: one for all cores of the node.
    """

    def __init__(
        self,
        partition: int,
        me: NodeId,
        stored: Stored,
        *,
        settings: ReplicationSettings = DEFAULT_SETTINGS,
        budget: Budget | None = None,
    ) -> None:
        self.partition = partition
        self.me = me
        self._settings = settings
        self._budget = budget if budget is not None else Budget()
        self.log: ReplicaLog[News] = ReplicaLog(partition, stored, settings, self._budget)
        self.record: Record | None = None
        self._outbox: Outbox[News] = Outbox()
        self._replica: Replica[News] = Replica(self.log, self._outbox)
        self._primary: Primary[News] | None = None
        self._connected: set[NodeId] = set()
        self._number = 0
        self._ticked_ms: int | None = None
        self._asked_ms: int | None = None

    # --- looking ---
    @property
    def epoch(self) -> int | None:
        """The epoch that this copy leads in; None while it does not lead."""
        return self._primary.epoch if self._primary is not None else None

    @property
    def is_leading(self) -> bool:
        """It believes to be the primary; not yet ``is_active``."""
        return self._primary is not None

    @property
    def is_active(self) -> bool:
        """R7: its barrier is committed. Before that no reads, no claims, no answers."""
        return self._primary is not None and self._primary.is_active

    @property
    def is_handing_over(self) -> bool:
        """The cluster map names a successor: propose nothing new, it steps down as soon as all is
        committed."""
        record = self.record
        return self._primary is not None and record is not None and record.successor not in (None, self.me)

    @property
    def primary(self) -> NodeId | None:
        """By the cluster map."""
        return self.record.primary if self.record is not None else None

    @property
    def committed(self) -> int:
        return self.log.committed

    @property
    def last_sequence(self) -> int:
        return self.log.last_sequence

    @property
    def uncommitted_bytes(self) -> int:
        return self.log.uncommitted_bytes

    @property
    def effective_set(self) -> frozenset[NodeId]:
        """Empty unless it leads."""
        return self._primary.commitment.effective if self._primary is not None else frozenset()

    @property
    def streams(self) -> dict[NodeId, ReplicaProgress]:
        """Of the other copies, while it leads."""
        return self._primary.sender.streams if self._primary is not None else {}

    def lag(self) -> dict[NodeId, int]:
        """Entries that each other copy is behind, while it leads; for people."""
        return {node: self.log.last_sequence - stream.acked for node, stream in self.streams.items()}

    def copying(self, content_bytes: int) -> dict[NodeId, tuple[int, int]]:
        """(bytes sent, bytes left), about, of each copy that does not count yet, while it leads;
        for people."""
        primary = self._primary
        if primary is None:
            return {}
        return {
            node: (stream.copied_bytes, primary.sender.left_bytes(stream, content_bytes))
            for node, stream in self.streams.items()
            if node not in primary.commitment.effective
        }

    # --- the cluster map ---
    def follow(self, record: Record, now_ms: int) -> None:
        """The cluster map's record, each version in order; again, when only ``up`` has changed.
        Late is harmless.

        :raises Divergence: the cluster map has this node as primary, though its copy belongs to
            another history.
        """
        known = self.record
        if known is not None:
            newer = (record.epoch, record.partition_version) >= (known.epoch, known.partition_version)
            assert newer, "the table never goes back"
        self.record = record
        primary = self._primary
        if primary is not None:
            if record.epoch == primary.epoch and record.primary == self.me:
                primary.follow(record, now_ms)
                primary.open_streams(self._connected, now_ms)
                return
            if record.epoch >= primary.epoch:
                self._step_down()
        if record.primary == self.me:
            if self.may_begin(record.epoch):
                self._begin_epoch(record, now_ms)
            else:
                self._ask_epoch(record, now_ms)

    def may_begin(self, epoch: int) -> bool:
        """R6: it never goes on in an epoch that it may have led before a restart: it would use
        places again that replicas have already filled (F20)."""
        return epoch > self.log.promised

    def _begin_epoch(self, record: Record, now_ms: int) -> None:
        log = self.log
        assert self._primary is None
        if self._replica.is_receiving:
            self._replica.abort_snapshot()
        self._replica.promise(record.epoch)
        self._primary = Primary(self.me, log, record, self._settings, self._budget, self._outbox, now_ms)
        self._primary.open_streams(self._connected, now_ms)  # not before the promise is durable (R6)

    def _step_down(self) -> None:
        """R12: at once. What it proposed and has not committed stays in the log until a ``Sync``
        cuts it or a barrier commits it."""
        primary = self._primary
        assert primary is not None
        primary.sender.close_all()
        self._primary = None
        outbox = self._outbox
        outbox.messages = [(node, message) for node, message in outbox.messages if type(message) in _ANSWERS]
        outbox.steps = []
        self.log.abandon_news()
        self._outbox.events.append(SteppedDown(primary.epoch, primary.is_active))

    def _ask_epoch(self, record: Record, now_ms: int) -> None:
        self._asked_ms = now_ms
        self._outbox.steps.append(AskEpoch(self.partition, record.epoch, record.partition_version))

    def drop(self) -> None:
        """Forget everything but the promise (R13). The copy is a leftover: by its own cluster map
        this node is no replica (F28).

        :raises AssertionError: it is.
        """
        assert self.record is not None
        assert self.me not in self.record.copies, "only a leftover is dropped"
        assert self._primary is None
        if self._replica.is_receiving:
            self._replica.abort_snapshot()
        self.log.drop()

    # --- peers ---
    def connected(self, node: NodeId, now_ms: int) -> None:
        """A new connection: whatever was on its way over an older one never arrives (the wire sees
        to that)."""
        self._connected.add(node)
        primary = self._primary
        if primary is not None and node in primary.sender.streams:
            primary.sender.close(primary.sender.streams[node])
            primary.open_streams(self._connected, now_ms)

    def disconnected(self, node: NodeId) -> None:
        self._connected.discard(node)
        primary = self._primary
        if primary is not None and node in primary.sender.streams:
            primary.sender.close(primary.sender.streams[node])

    def receive(self, source: NodeId, message: AnyMessage, now_ms: int) -> None:
        """A message of the present session with ``source``; in any order, late or twice.

        :raises Divergence: this copy is not what the log says. :raises Unsound: no peer that keeps
            to the protocol says this; it changed nothing.
        """
        assert message.partition == self.partition, "a message for another partition"
        if type(message) is Ack:
            assert isinstance(message, Ack)
            primary = self._primary
            if primary is not None and self.counts(message):
                stream = primary.sender.streams.get(source)
                if stream is not None:
                    primary.on_ack(stream, message, now_ms)
        elif isinstance(message, _ANSWERS):
            self._on_answer(source, message, now_ms)
        else:
            self._on_order(source, message)

    def counts(self, answer: AnyMessage) -> bool:
        """R8: only what is said in this epoch counts for it (F23)."""
        return answer.epoch == self.epoch

    def _on_answer(self, source: NodeId, message: Any, now_ms: int) -> None:
        primary = self._primary
        if primary is None:
            return
        if isinstance(message, Reject) and message.code is RejectCode.STALE_EPOCH:
            self.refused(source, message.promised)
            return
        stream = primary.sender.streams.get(source)
        if stream is None or not self.counts(message):
            return
        if isinstance(message, SyncOk):
            primary.on_sync_ok(stream, message, now_ms)
        elif isinstance(message, SnapAck):
            primary.sender.snap_acked(stream, message, now_ms)
        else:
            primary.sender.not_synced(stream, now_ms)

    def _on_order(self, source: NodeId, message: AnyMessage) -> None:
        """From a primary."""
        replica = self._replica
        if replica.is_stale(message):
            replica.refuse_stale(source, message)
            return
        primary = self._primary
        if isinstance(message, Sync):
            replica.check_sync(message)
            if primary is not None and message.epoch == primary.epoch:
                raise Unsound(f"{source} says that it is primary of epoch {primary.epoch}, as this node is")
            if not replica.is_in_cluster_map(source, message, self.record):
                replica.refuse_unsynced(source, message)
                return
            if primary is not None:
                self._step_down()
            replica.on_sync(source, message)
        elif isinstance(message, Append):
            replica.on_append(source, message)
        else:
            replica.on_snapshot(source, message)

    def refused(self, node: NodeId, promised: int) -> None:
        """``node`` has promised this, by a ``Reject`` or a ``Pong`` (R12)."""
        if self._primary is not None and promised > self._primary.epoch:
            self._step_down()

    def refuses(self, epoch: int) -> int | None:
        """What to answer a ``Ping`` about this partition: the promise, if it is above the epoch
        asked about."""
        return self.log.promised if self.log.promised > epoch else None

    # --- reads and leases (sections 7 and 8) ---
    def confirmed(self, node: NodeId, epoch: int, number: int, sent_ms: int) -> None:
        """``node`` has answered, without refusing this partition, the round ``number`` that was
        sent at ``sent_ms``."""
        primary = self._primary
        if primary is not None and primary.epoch == epoch:
            stream = primary.sender.streams.get(node)
            if stream is not None:
                primary.confirm(stream, number, sent_ms)

    def may_read(self, needed: int) -> bool:
        """May a strong read be answered whose first round after it came has this number? From a
        state that shows ``committed``."""
        return self._primary is not None and is_read_confirmed(self._primary.confirmed_number(), needed)

    def confirmed_at_ms(self, now_ms: int) -> int:
        """When the latest round was sent that every other member of the effective set has answered;
        alone: now."""
        primary = self._primary
        if primary is None or not primary.is_active:
            return NEVER_MS
        return primary.confirmations.sent_ms(primary.commitment.others, now_ms)

    def runs_until_ms(self, now_ms: int) -> int:
        """Until when an attempt that this node claimed may run, as things are."""
        return runs_until_ms(self.confirmed_at_ms(now_ms), self._settings.lease_ms, self._settings.lease_margin_ms)

    @property
    def requeue_at_ms(self) -> int | None:
        """When attempts inherited from earlier primaries may be queued again, those that were not
        renewed; None: not yet known."""
        primary = self._primary
        if primary is None or primary.promise_durable_ms is None:
            return None
        return requeue_at_ms(primary.promise_durable_ms, self._settings.lease_ms)

    # --- proposing ---
    def propose(self, effect: Effect, size: int, news: News | None = None) -> int:
        """Add ``effect`` to the open entry and return its sequence. Only while ``is_leading``;
        before ``is_active`` it waits behind the barrier. ``size``: bytes of its payloads."""
        primary = self._primary
        assert primary is not None, "only a primary proposes"
        return primary.open_entry.add(effect, size, news)

    def claim_token(self, claimed_before: int) -> Token:
        """The token of a claim that is proposed next: the place of the entry that carries it.

        :param claimed_before: the entry of the task's latest claim, 0 for none. Two claims of one
            task never share an entry, else they would share a token: claim, cancel, retry, claim
            within one turn did so.
        """
        primary = self._primary
        assert primary is not None, "only a primary claims"
        return primary.open_entry.claim_token(claimed_before)

    def will_share_entry(self, size: int) -> bool:
        """Whether an effect of ``size`` proposed now goes into the open entry."""
        return self._primary is None or self._primary.open_entry.has_room(size)

    def close_open(self) -> None:
        """Start a new entry with the next effect."""
        if self._primary is not None:
            self._primary.open_entry.close()

    # --- time ---
    def tick(self, now_ms: int) -> bool:
        """Some 50 ms have passed; after a pause once, not once for each missed. False: nothing came
        of it."""
        paused = self._ticked_ms is not None and now_ms - self._ticked_ms > self._settings.pause_ms
        self._ticked_ms = now_ms
        primary = self._primary
        if primary is not None:
            if paused:
                primary.paused(now_ms)
            return primary.tick(now_ms)
        record = self.record
        if record is None or record.primary != self.me or self._asked_ms is None:
            return False
        if now_ms - self._asked_ms >= self._settings.proposal_ms and not self.may_begin(record.epoch):
            self._ask_epoch(record, now_ms)
        return True

    # --- the disk ---
    @property
    def has_ready(self) -> bool:
        """Is there anything for the disk, or anything that waits for it?"""
        log = self.log
        if self._replica.after_write or log.pending.entries:  # asked for each copy and turn: what is usual comes first
            return True
        primary = self._primary
        if primary is None:
            return self._replica.owes_answer or not log.pending.is_empty
        return not (primary.open_entry.is_empty and log.pending.is_empty)

    def ready(self, now_ms: int) -> Ready:
        """Seal what was proposed, and hand out everything for the disk. The next may be taken
        before this one is durable."""
        if self._primary is not None:
            self._primary.seal(now_ms)
        self._replica.seal()
        self._number += 1
        outbox, replica = self._outbox, self._replica
        ready = Ready(self._number, self.log.take(self._number), outbox.messages, replica.after_write)
        outbox.messages, replica.after_write = [], []
        return ready

    def persisted(self, number: int, now_ms: int) -> None:
        """All that Readys up to this number gave to persist is durable."""
        log = self.log
        log.persisted(number)
        primary = self._primary
        if primary is not None:
            primary.advance()
            if primary.promise_durable_ms is None and log.durable_promised >= primary.epoch:
                primary.promise_durable(self._connected, now_ms)
        else:
            self._replica.commit_received()

    @property
    def has_outbox(self) -> bool:
        box = self._outbox
        return bool(box.messages or self.log.newly or box.events or box.steps or box.requests)

    def outbox(self) -> Outbox[News]:
        """What need not wait for the disk. Look after every event."""
        return self._outbox.take(self.log.take_newly())

    # --- the store's answers ---
    def applied(self, sequence: int) -> None:
        """The rows show everything up to here, durably."""
        assert sequence <= self.log.committed, "only what is committed is applied (R17)"
        self.log.applied = max(self.log.applied, sequence)

    def trim_to(self, sequence: int) -> int:
        """For a transaction that brings the rows to ``sequence``: up to and with which entry it may
        drop the log; 0: nothing.

        What is said here is given up at once. Never past ``sequence``; kept for replicas that lag,
        within bounds (section 6).
        """
        log = self.log
        sequence = min(sequence, log.durable_sequence)
        wanted = min(sequence, log.keeps_from(self._settings.keep_bytes))
        if wanted < log.log_start:
            return 0
        if self._primary is not None:
            wanted = self._primary.trim_floor(wanted)
            if wanted < log.log_start:
                return 0
        log.trimmed(wanted)
        return wanted

    def log_read(self, node: NodeId, entries: Sequence[Entry], now_ms: int) -> None:
        """The answer to ``ReadLog``; empty if the store has nothing from there on any more."""
        stream = self.streams.get(node)
        if stream is not None and self._primary is not None:
            self._primary.sender.log_read(stream, entries, now_ms)

    def snapshot_opened(
        self,
        node: NodeId,
        snapshot_id: int,
        applied: int,
        epochs: Sequence[tuple[int, int]],
        horizon_us: int,
        now_ms: int,
    ) -> None:
        """The answer to ``OpenSnapshot``: the read transaction sees the rows at ``applied``."""
        stream = self.streams.get(node)
        if stream is not None and self._primary is not None:
            self._primary.sender.snapshot_opened(stream, snapshot_id, applied, epochs, horizon_us, now_ms)

    def snapshot_chunk(self, node: NodeId, snapshot_id: int, data: bytes | None, digest: bytes = b"") -> None:
        """The answer to ``ReadChunk``; None: there are no more, and ``digest`` is of them all."""
        stream = self.streams.get(node)
        if stream is not None and self._primary is not None:
            self._primary.sender.snapshot_chunk(stream, snapshot_id, data, digest)

    def snapshot_failed(self, node: NodeId, snapshot_id: int, now_ms: int) -> None:
        """It can't be opened or read on. Another is asked for."""
        stream = self.streams.get(node)
        if stream is not None and self._primary is not None:
            self._primary.sender.snapshot_failed(stream, snapshot_id, now_ms)
