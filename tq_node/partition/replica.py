"""The replica's half: promises, cuts, appends, acknowledgements in the order received (R13 to R17),
and snapshots coming in.

Nothing here knows who is primary by the cluster map: the epoch of a message says whom to obey."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Generic

import msgspec

from tq_node.errors import Divergence, Unsound
from tq_node.partition.effects import Outbox
from tq_node.partition.entries import Effect, LogEntry, decode_effects, is_intact
from tq_node.partition.epochs import EpochTable, common_prefix
from tq_node.partition.messages import (
    Ack,
    Addressed,
    AnyMessage,
    Append,
    Message,
    Reject,
    RejectCode,
    SnapAck,
    SnapBegin,
    SnapChunk,
    SnapEnd,
    Sync,
    SyncOk,
)
from tq_node.partition.record import Record
from tq_node.partition.replica_log import Install, News, ReplicaLog, follows_on
from tq_node.partition.settings import EPOCHS_AHEAD_MAX, JUMP_MAX
from tq_node.types import NodeId


class Replica(Generic[News]):
    """Follows the primary of the highest promised epoch: ``log`` is a prefix of the primary's."""

    def __init__(self, log: ReplicaLog[News], outbox: Outbox[News]) -> None:
        self._log = log
        self._outbox = outbox
        self.after_write: list[Addressed] = []
        """Answers that must wait until all that the log has pending is durable (R16)."""
        self.source: NodeId | None = None
        self.obeyed_epoch = 0
        """Of the latest ``Sync``."""
        self.synced_epoch = 0
        """The same, if all this log is the primary's: only then it takes entries (R14)."""
        self._received_commit = 0
        self.ack_to: NodeId | None = None
        """Whose entries the next write acknowledges."""
        self._incoming: SnapBegin | None = None
        self._next_chunk = 0

    # --- R13 ---
    def is_stale(self, message: Message) -> bool:
        return message.epoch < self._log.promised

    def refuse_stale(self, source: NodeId, message: Message) -> None:
        self._reject(source, message, RejectCode.STALE_EPOCH)

    def _reject(self, source: NodeId, message: Message, code: RejectCode) -> None:
        log = self._log
        self._outbox.messages.append((source, Reject(log.partition, message.epoch, code, log.promised)))

    def refuse_unsynced(self, source: NodeId, message: Message) -> None:
        self._reject(source, message, RejectCode.NOT_SYNCED)

    def _is_far(self, sequence: int) -> bool:
        return sequence - self._log.last_sequence > JUMP_MAX

    def check_sync(self, message: Sync) -> None:
        """Raises ``Unsound`` if no primary can have the log of this ``Sync``."""
        last = message.last_sequence
        epochs = message.epochs
        if (
            message.epoch - self._log.promised > JUMP_MAX
            or self._is_far(last)
            or not 1 <= message.log_start <= last + 1
            or not EpochTable.are_sound(epochs, last)
            or (epochs and epochs[-1][0] > message.epoch)
            or message.reset_epoch > message.epoch
        ):
            raise Unsound(f"a log of epoch {message.epoch} that ends at {last} with the epochs {epochs!r:.200}")

    def is_in_cluster_map(self, source: NodeId, sync: Sync, record: Record | None) -> bool:
        """Whether this node's cluster map has what a ``Sync`` asks for that can't be undone: a
        promise far ahead, or giving up the log for another history.

        :raises Unsound: by the cluster map another node is primary of that epoch."""
        if record is None:
            return True
        if sync.epoch == record.epoch and record.primary not in (None, source):
            raise Unsound(f"{source} says that it is primary of epoch {sync.epoch}, which is {record.primary}'s")
        gives_up = self._log.promised < sync.reset_epoch and self._log.last_sequence > 0
        return sync.epoch <= record.epoch + EPOCHS_AHEAD_MAX and not (
            gives_up and record.reset_epoch < sync.reset_epoch
        )

    # --- R14, R15 ---
    def on_sync(self, source: NodeId, message: Sync) -> None:
        """Promise, cut the log back to the primary's (R14, R15); answer when both are durable."""
        log = self._log
        if message.epoch > log.promised:
            if log.promised < message.reset_epoch and log.last_sequence:
                log.drop()  # another history was chosen outside the rules; what is here belongs to no log any more
            self.promise(message.epoch)
            self.forget_received_commit()
        if self.is_receiving:
            self.abort_snapshot()
        self.source, self.obeyed_epoch = source, message.epoch
        self.ack_to = None
        prefix = self.agreed(message)
        if prefix is None:
            # The primary has trimmed all that could tell. What is committed here is its too; the
            # rest stays until a snapshot takes its place: it may be the best that is left, should
            # the primary be lost before that.
            self.synced_epoch = 0
            prefix = log.committed
        else:
            self.synced_epoch = message.epoch
            if prefix < log.last_sequence:
                log.cut_after(prefix)
        self.after_write.append((source, SyncOk(log.partition, message.epoch, prefix)))

    def promise(self, epoch: int) -> None:
        """Obey no epoch below ``epoch`` from now on (R13). Pending answers of older epochs are
        dropped: their log may be cut."""
        self._log.promise(epoch)
        self.ack_to = None
        self.after_write = [addressed for addressed in self.after_write if addressed[1].epoch >= epoch]

    def agreed(self, sync: Sync) -> int | None:
        """Up to where this log is the primary's (R15); None: the primary has trimmed what would
        tell, a snapshot is needed.

        :raises Divergence: the two logs differ where both are committed."""
        log = self._log
        prefix = common_prefix(log.epochs, log.last_sequence, EpochTable(sync.epochs))
        if prefix is not None:
            return prefix
        if sync.log_start > 1 and log.committed < sync.log_start - 1:
            return None
        if log.committed:
            raise Divergence(
                f"partition {log.partition}: the log up to {log.committed} is not that of epoch {sync.epoch}'s primary"
            )
        return 0

    # --- R14, R16 ---
    def on_append(self, source: NodeId, message: Append) -> None:
        log = self._log
        if not self.is_synced(message):
            self._reject(source, message, RejectCode.NOT_SYNCED)
            return
        self._check_source(source, message)
        entries = message.entries
        fresh = entries
        if message.prev_sequence != log.last_sequence:
            if message.prev_sequence > log.last_sequence:
                self._reject(source, message, RejectCode.NOT_SYNCED)
                return
            fresh = self._not_yet_had(message)
        if fresh:
            if not (follows_on(fresh, log.last_sequence) and all(map(is_intact, fresh))):
                self._reject(source, message, RejectCode.NOT_SYNCED)  # damaged on its way
                return
            for entry, effects in zip(fresh, self._effects_of(fresh, message), strict=True):
                log.append(entry, effects, [])
        if entries:  # what is only told to be committed was acknowledged before
            self.ack_to = source
        if message.committed_sequence > self._received_commit:
            self._received_commit = message.committed_sequence
            self.commit_received()

    def _check_source(self, source: NodeId, message: Message) -> None:
        """An epoch has one primary: the one whose ``Sync`` was obeyed.

        :raises Unsound: another node sends as primary of this epoch."""
        if source != self.source:
            raise Unsound(f"{source} speaks as primary of epoch {message.epoch}, which {self.source} is")

    def _effects_of(self, entries: Sequence[LogEntry], message: Append) -> list[list[Effect]]:
        """Decode the effects before the entries are in the log: an unreadable one there would fail
        each start.

        :raises Unsound: a primary of this epoch can't have written these."""
        log = self._log
        epoch = log.epochs.last_epoch
        found = []
        for entry in entries:
            if not epoch <= entry.epoch <= message.epoch or entry.partition != log.partition:
                raise Unsound(f"entry {entry.sequence} of partition {entry.partition} and epoch {entry.epoch}")
            epoch = entry.epoch
            try:
                found.append(decode_effects(entry.payload))
            except (msgspec.DecodeError, ValueError, RecursionError) as why:
                raise Unsound(f"entry {entry.sequence} can't be read: {why}") from None
        return found

    def is_synced(self, message: Message) -> bool:
        """Whether this whole log is the primary's (R14); before a ``Sync`` its end may not be."""
        return message.epoch == self._log.promised and message.epoch == self.synced_epoch

    def is_obeyed(self, message: Message) -> bool:
        return message.epoch == self._log.promised and message.epoch == self.obeyed_epoch

    def _not_yet_had(self, message: Append) -> tuple[LogEntry, ...]:
        """The entries this log lacks. The others are equal: the logs agree since the ``Sync``."""
        log = self._log
        had = min(log.last_sequence - message.prev_sequence, len(message.entries))
        for entry in message.entries[:had]:
            if entry.sequence >= log.log_start and log.epochs.at(entry.sequence) != entry.epoch:
                raise Unsound(f"another entry {entry.sequence} than was sent before in epoch {message.epoch}")
        return message.entries[had:]

    # --- R17 ---
    def appliable(self) -> int:
        """Up to where the primary called the log committed *in this epoch*, if here too (R17)."""
        return min(self._received_commit, self._log.durable_sequence)

    def forget_received_commit(self) -> None:
        """Forget the committed sequence of an earlier epoch: it was of another primary's log."""
        self._received_commit = 0

    def commit_received(self) -> None:
        log = self._log
        if self._received_commit > log.committed and log.promised == self.synced_epoch:
            sequence = self.appliable()
            if sequence > log.committed:
                log.commit_to(sequence)

    def seal(self) -> None:
        """Acknowledge all entries that came since the last write with one ``Ack`` (R16)."""
        if self.ack_to is not None:
            log = self._log
            self.after_write.append((self.ack_to, Ack(log.partition, self.synced_epoch, log.last_sequence)))
            self.ack_to = None

    # --- snapshots ---
    @property
    def is_receiving(self) -> bool:
        return self._incoming is not None

    def abort_snapshot(self) -> None:
        """Stop receiving a snapshot and drop the chunks staged so far."""
        self._incoming = None
        self._next_chunk = 0
        self._log.unstage()

    def on_snapshot(self, source: NodeId, message: AnyMessage) -> None:
        if not self.is_obeyed(message):
            self._reject(source, message, RejectCode.NOT_SYNCED)
            return
        self._check_source(source, message)
        if isinstance(message, SnapBegin):
            if not EpochTable.are_sound(message.epochs, message.applied) or self._is_far(message.applied):
                raise Unsound(f"a snapshot of {message.applied} with the epochs {message.epochs!r:.200}")
            if self.is_news(message):
                self.abort_snapshot()
                self._incoming = message
        elif isinstance(message, SnapChunk):
            self._on_chunk(source, message)
        elif isinstance(message, SnapEnd):
            self._on_end(source, message)

    def is_news(self, begin: SnapBegin) -> bool:
        """Whether it goes beyond this log. A late one must not undo what was acknowledged since."""
        log = self._log
        return begin.applied > (log.last_sequence if self.synced_epoch == begin.epoch else log.committed)

    def _is_present(self, snapshot_id: int) -> bool:
        return self._incoming is not None and self._incoming.snapshot_id == snapshot_id

    def _on_chunk(self, source: NodeId, chunk: SnapChunk) -> None:
        if not self._is_present(chunk.snapshot_id) or chunk.number > self._next_chunk or not is_chunk_intact(chunk):
            self._reject(source, chunk, RejectCode.NOT_SYNCED)
            return
        if chunk.number < self._next_chunk:
            return
        self._log.stage(chunk.number, chunk.data)
        self._next_chunk += 1
        ack = SnapAck(self._log.partition, chunk.epoch, chunk.snapshot_id, self._next_chunk)
        self.after_write.append((source, ack))

    def _on_end(self, source: NodeId, end: SnapEnd) -> None:
        incoming = self._incoming
        if incoming is None or incoming.snapshot_id != end.snapshot_id or end.chunks != self._next_chunk:
            self._reject(source, end, RejectCode.NOT_SYNCED)
            return
        log = self._log
        self._incoming, self._next_chunk = None, 0
        if not self.is_news(incoming):
            return
        self.synced_epoch = end.epoch
        log.install(Install(incoming.applied, incoming.epochs, incoming.horizon_us, end.chunks, end.digest))
        self.after_write.append((source, SyncOk(log.partition, end.epoch, log.last_sequence)))


def is_chunk_intact(chunk: SnapChunk) -> bool:
    return zlib.crc32(chunk.data) == chunk.crc
