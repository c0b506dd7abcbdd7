"""``PartitionCore``: one node's copy of one partition, in both roles (R6 to R17)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

from tq_node.errors import Unsound
from tq_node.partition.effects import AskEpoch, Outbox, Ready, SteppedDown
from tq_node.partition.entries import Effect, Entry
from tq_node.partition.leases import NEVER_MS, is_read_confirmed, requeue_at_ms, runs_until_ms
from tq_node.partition.messages import Ack, Addressed, AnyMessage, Append, Reject, RejectCode, SnapAck, Sync, SyncOk
from tq_node.partition.primary import Primary
from tq_node.partition.progress import ReplicaProgress
from tq_node.partition.record import Record
from tq_node.partition.replica import Replica
from tq_node.partition.replica_log import News, ReplicaLog, Stored
from tq_node.partition.settings import DEFAULT_SETTINGS, Budget, ReplicationSettings
from tq_node.types import NodeId, Token

_ANSWERS = (SyncOk, Ack, Reject, SnapAck)


class PartitionCore(Generic[News]):
    """One node's copy of one partition, as replica or primary. The package's docstring says how to
    drive it.

    :param stored: what the store has of the partition; empty for a new copy.
    :param budget: what all cores of the node share."""

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
        self.log: ReplicaLog[News] = ReplicaLog(partition, stored, settings, budget or Budget())
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
        """Whether this copy leads an epoch, though perhaps it is not yet ``is_active``."""
        return self._primary is not None

    @property
    def is_active(self) -> bool:
        """Whether the barrier is committed. Before that: no reads, no claims, no answers (R7)."""
        return self._primary is not None and self._primary.is_active

    @property
    def is_handing_over(self) -> bool:
        """Whether the cluster map names a successor: propose nothing new; the primary steps down
        once all is committed."""
        record = self.record
        return self._primary is not None and record is not None and record.successor not in (None, self.me)

    @property
    def primary(self) -> NodeId | None:
        """The partition's primary by the cluster map, as far as it is known here."""
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
        """The nodes whose disks a commit waits for (R9); empty unless this copy leads."""
        return self._primary.commitment.effective if self._primary is not None else frozenset()

    @property
    def streams(self) -> dict[NodeId, ReplicaProgress]:
        """The primary's view of each other copy; empty unless this copy leads."""
        return self._primary.sender.streams if self._primary is not None else {}

    def lag(self) -> dict[NodeId, int]:
        """By how many entries each other copy is behind, for operators; empty unless this leads."""
        return {node: self.log.last_sequence - stream.acked for node, stream in self.streams.items()}

    def copying(self, content_bytes: int) -> dict[NodeId, tuple[int, int]]:
        """About how many bytes were sent to, and are missing at, each copy that does not count yet.
        Shown to operators."""
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
        """Take up a record of the cluster map: each version in order, and again when only ``up``
        has changed. Learning it late is harmless.

        :raises Divergence: the record names this node primary, though its copy belongs to another
            history."""
        known = self.record
        if known is not None:
            newer = (record.epoch, record.partition_version) >= (known.epoch, known.partition_version)
            assert newer, "the cluster map never goes back"
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
        """Whether this copy may lead ``epoch``: not one that it may have led before a restart. It
        would use sequences again that replicas have filled (R6, F20)."""
        return epoch > self.log.promised

    def _begin_epoch(self, record: Record, now_ms: int) -> None:
        log = self.log
        assert self._primary is None
        if self._replica.is_receiving:
            self._replica.abort_snapshot()
        self._replica.promise(record.epoch)
        self._primary = Primary(self.me, log, record, self._outbox, now_ms)
        self._primary.open_streams(self._connected, now_ms)  # not before the promise is durable (R6)

    def _step_down(self) -> None:
        """Go from primary to replica at once (R12). What is proposed and not committed stays in the
        log until a ``Sync`` cuts it or a barrier commits it."""
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
        """Forget everything but the promise (R13): the cluster map does not list this node as a
        copy any more (F28).

        :raises AssertionError: the cluster map lists it, or this copy leads."""
        record = self.record
        assert record is not None
        assert self.me not in record.copies, "only a leftover is dropped"
        assert self._primary is None
        if self._replica.is_receiving:
            self._replica.abort_snapshot()
        self.log.drop()

    # --- peers ---
    def connected(self, node: NodeId, now_ms: int) -> None:
        """A new connection with ``node``: nothing sent over an older one arrives any more."""
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
        """Handle a message of the present session with ``source``; messages may come in any order,
        late or twice.

        :raises Divergence: this copy's log contradicts what is committed.
        :raises Unsound: no peer that keeps to the protocol sends this; nothing has changed."""
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
        """Whether ``answer`` is of the epoch that this copy leads, else it is ignored (R8, F23)."""
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
        """Handle a message that only a primary sends."""
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
        """``node`` answered a ``Reject`` or ``Pong`` with this promise; if it is above this
        primary's epoch, step down (R12)."""
        if self._primary is not None and promised > self._primary.epoch:
            self._step_down()

    def refuses(self, epoch: int) -> int | None:
        """The promise to answer a ``Ping`` with, if above the ``epoch`` asked for; else None."""
        return self.log.promised if self.log.promised > epoch else None

    # --- reads and leases (sections 7 and 8) ---
    def confirmed(self, node: NodeId, epoch: int, number: int, sent_ms: int) -> None:
        """``node`` answered round ``number``, sent at ``sent_ms``, and accepts this partition."""
        primary = self._primary
        if primary is not None and primary.epoch == epoch:
            stream = primary.sender.streams.get(node)
            if stream is not None:
                primary.confirm(stream, number, sent_ms)

    def may_read(self, needed: int) -> bool:
        """Whether a strong read may be answered, from a state that shows ``committed``. ``needed``:
        the first round that began after the read came."""
        return self._primary is not None and is_read_confirmed(self._primary.confirmed_number(), needed)

    def confirmed_at_ms(self, now_ms: int) -> int:
        """When the latest round was sent that the whole effective set has answered; ``now_ms`` for
        a primary that is alone in it."""
        primary = self._primary
        if primary is None or not primary.is_active:
            return NEVER_MS
        return primary.confirmations.sent_ms(primary.commitment.others, now_ms)

    def runs_until_ms(self, now_ms: int) -> int:
        """Until when an attempt that this node claimed may run, by the rounds confirmed so far."""
        return runs_until_ms(self.confirmed_at_ms(now_ms), self._settings.lease_ms, self._settings.lease_margin_ms)

    @property
    def requeue_at_ms(self) -> int | None:
        """When inherited attempts not renewed may be queued again; None: promise not durable."""
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
        """The token of the claim proposed next: the place of the entry that will carry it.

        :param claimed_before: the entry of the task's latest claim, 0 for none. Two claims of one
            task never share an entry, else they would share a token, as happened to claim, cancel,
            retry, claim within one turn (F30a)."""
        primary = self._primary
        assert primary is not None, "only a primary claims"
        return primary.open_entry.claim_token(claimed_before)

    def will_share_entry(self, size: int) -> bool:
        """Whether an effect of ``size`` proposed now goes into the open entry."""
        return self._primary is None or self._primary.open_entry.has_room(size)

    def close_open(self) -> None:
        """Make the next effect begin a new entry."""
        if self._primary is not None:
            self._primary.open_entry.close()

    # --- time ---
    def tick(self, now_ms: int) -> bool:
        """Look at timeouts, about every 50 ms; after a pause once, not once for each missed tick.
        False: there was nothing to do."""
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
        """Whether ``ready`` would give a write, or an answer that waits for one."""
        replica, primary = self._replica, self._primary
        return bool(
            self.log.has_pending
            or replica.after_write
            or replica.ack_to is not None
            or (primary is not None and primary.open_entry.effects)
        )

    def spread(self, now_ms: int) -> list[Addressed]:
        """Close the open entry and return the messages that carry it; the write of it comes with
        the next ``ready`` (R21). Only while ``is_leading``."""
        primary, outbox = self._primary, self._outbox
        assert primary is not None, "only a primary has anything to send before its write"
        primary.seal(now_ms)
        messages, outbox.messages = outbox.messages, []
        return messages

    def ready(self, now_ms: int) -> Ready:
        """Close the open entry; return all for the disk, also while the last is not durable yet."""
        if self._primary is not None:
            self._primary.seal(now_ms)
        self._replica.seal()
        self._number += 1
        outbox, replica = self._outbox, self._replica
        ready = Ready(self._number, self.log.take(self._number), outbox.messages, replica.after_write)
        outbox.messages, replica.after_write = [], []
        return ready

    def persisted(self, number: int, now_ms: int) -> None:
        """The writes of all Readys up to ``number`` are durable."""
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
        """Take what need not wait for the disk. Look after every call."""
        box = self._outbox
        taken = Outbox(box.messages, self.log.take_newly(), box.events, box.steps, box.requests)
        box.messages, box.events, box.steps, box.requests = [], [], [], []
        return taken

    # --- the store's answers ---
    def applied(self, sequence: int) -> None:
        """The rows show every entry up to ``sequence``, durably."""
        assert sequence <= self.log.committed, "only what is committed is applied (R17)"
        self.log.applied = max(self.log.applied, sequence)

    def trim_to(self, sequence: int) -> int:
        """The last entry that a transaction which brings the rows to ``sequence`` may drop from the
        log; 0: none. The entries are given up by this call. Never past ``sequence``; some are kept
        for replicas that lag, within the bounds of ``ReplicationSettings``."""
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
        """Answer to ``ReadLog``; no ``entries``: the store has nothing from there on any more."""
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
        """Answer to ``OpenSnapshot``: the read transaction sees the rows at ``applied``."""
        stream = self.streams.get(node)
        if stream is not None and self._primary is not None:
            self._primary.sender.snapshot_opened(stream, snapshot_id, applied, epochs, horizon_us, now_ms)

    def snapshot_chunk(self, node: NodeId, snapshot_id: int, data: bytes | None, digest: bytes = b"") -> None:
        """Answer to ``ReadChunk``. ``data`` None: no more chunks, ``digest`` is of them all."""
        stream = self.streams.get(node)
        if stream is not None and self._primary is not None:
            self._primary.sender.snapshot_chunk(stream, snapshot_id, data, digest)

    def snapshot_failed(self, node: NodeId, snapshot_id: int, now_ms: int) -> None:
        """The snapshot can't be opened or read on; the core will ask for another."""
        stream = self.streams.get(node)
        if stream is not None and self._primary is not None:
            self._primary.sender.snapshot_failed(stream, snapshot_id, now_ms)
