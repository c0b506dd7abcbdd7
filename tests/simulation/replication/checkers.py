"""Invariants I1 to I9, I11 to I13 and I15 of replication.md, looked at after every step; incremental, so that a seed stays
cheap.

Logs are compared as: an entry of (sequence, epoch) is the same everywhere, and so is the epoch before it; by induction two
logs that have the same epoch at a position are equal up to it (I6). So a look at one position tells of all below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.families import need
from tests.simulation.replication.store import StoredPartition, Write
from tq_node.cluster.map import ClusterMap
from tq_node.partition.effects import Activated, Event
from tq_node.partition.messages import (
    Ack,
    AnyMessage,
    Append,
    SnapBegin,
    SnapChunk,
    SnapEnd,
    Sync,
    SyncOk,
)
from tq_node.partition.replica_log import ENTRY_OVERHEAD_BYTES
from tq_node.partition.settings import ReplicationSettings
from tq_node.types import NodeId, Token

if TYPE_CHECKING:
    from tests.simulation.replication.node import Attempt, DataNode, Operation

ORDERS = (Sync, Append, SnapBegin, SnapChunk, SnapEnd)


class History:
    """What was ever committed in one partition: (epoch, checksum) by sequence - 1, by anybody's knowledge."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int]] = []
        self.answered = 0
        """Highest sequence whose proposer has heard that it is done."""
        self.known: dict[tuple[int, int], tuple[int, int]] = {}
        """(sequence, epoch) -> (epoch before it, checksum), of every entry that was ever stored anywhere."""
        self.digests: dict[int, int] = {}
        self.active: dict[int, NodeId] = {}
        self.tokens: dict[tuple[str, Token], bool] = {}
        self.open: dict[str, int] = {}
        self.reset: tuple[int, int] = (0, 0)
        """Last sequence of the copy that a recovery outside the rules chose, and the epoch that began then."""

    def has_abandoned(self, stored: StoredPartition) -> bool:
        """Whether a copy still holds entries that a recovery gave up: its node has been down, and has not learnt it."""
        last, epoch = self.reset
        return stored.last_sequence > last and stored.epoch_at(stored.last_sequence) < epoch

    @property
    def length(self) -> int:
        return len(self.entries)

    def epoch(self, sequence: int) -> int:
        return self.entries[sequence - 1][0] if 0 < sequence <= len(self.entries) else 0


class Seen:
    """What was last seen of one core in one run."""

    __slots__ = ("committed", "epoch", "inherited", "promised")

    def __init__(self) -> None:
        self.inherited = 0
        """One more than was committed when it began to lead; 0: it does not, or is active."""
        self.committed = self.epoch = self.promised = 0


class DataCheckers:
    def __init__(
        self, nodes: dict[NodeId, DataNode], partitions: int, pace: ReplicationSettings, budget_bytes: int
    ) -> None:
        self._nodes = nodes
        self._pace = pace
        self._budget_bytes = budget_bytes
        self.histories = [History() for _ in range(partitions)]
        self.map: ClusterMap | None = None
        self._seen: dict[tuple[NodeId, int], Seen] = {}
        self._attempts: dict[tuple[int, str], list[Attempt]] = {}
        self.answers = self.reads = self.attempts = self.snapshots = self.cuts = self.activations = self.resets = 0
        self.completed: dict[tuple[int, str], Token] = {}
        self.submitted: set[tuple[int, str]] = set()

    # --- the life of a node ---
    def started(self, node: DataNode) -> None:
        for partition, core in node.cores.items():
            seen = self._seen[node.me, partition] = Seen()
            seen.promised = core.log.promised
            seen.committed = core.committed

    def lived(self, node: DataNode, partition: int, event: Event) -> None:
        if isinstance(event, Activated):
            self.activations += 1
            known = self.histories[partition].active.setdefault(event.epoch, node.me)
            need(known == node.me, "two nodes are active in one epoch (I4):", partition, event.epoch, known, node.me)

    # --- after every event ---
    def after_event(self, node: DataNode) -> None:
        budget_used = longest = 0
        for partition, core in node.cores.items():
            log = core.log
            seen = self._seen[node.me, partition]
            need(log.promised >= seen.promised, "a promise never decreases (I7):", node.me, partition)
            need(
                log.committed >= seen.committed or log.applied == 0,
                "what is committed never decreases (I7):",
                *(node.me, partition),
            )
            seen.promised, seen.committed = log.promised, log.committed
            if core.epoch is not None:
                need(core.epoch >= seen.epoch, "who leads never goes back to an older epoch (I7):", node.me, partition)
                seen.epoch = core.epoch
                if core.is_active:
                    seen.inherited = 0
                elif not seen.inherited:
                    seen.inherited = log.committed + 1
                else:
                    need(log.committed < seen.inherited, "nothing commits below the barrier (R8):", node.me, partition)
                self._check_set(node, partition)
                for stream in core.streams.values():
                    budget_used += stream.in_flight_bytes
                    longest += max((sent.size for sent in stream.in_flight), default=0)
                    self._check_window(stream)
            else:
                seen.inherited = 0
        need(node.budget.in_flight_bytes == budget_used, "bytes in flight are counted right (I15):", node.me)
        need(budget_used <= self._budget_bytes + longest, "bytes in flight of a node are bounded (I15):", node.me)

    def _check_set(self, node: DataNode, partition: int) -> None:
        """I8."""
        if self.map is None:
            return
        core = node.cores[partition]
        entry = self.map.partitions[partition]
        if entry.epoch == core.epoch and entry.primary == node.me:
            need(
                core.effective_set.issuperset(entry.isr),
                "the effective set contains the table's (I8):",
                *(node.me, partition, sorted(core.effective_set), entry.isr),
            )

    def _check_window(self, stream: object) -> None:
        from tq_node.partition.progress import ReplicaProgress

        assert isinstance(stream, ReplicaProgress)
        longest = max((sent.size for sent in stream.in_flight), default=0)  # a single entry may be longer than a window
        need(stream.in_flight_entries <= self._pace.window_entries, "entries in flight are bounded (I15)")
        need(stream.in_flight_bytes <= self._pace.window_bytes + longest, "bytes in flight are bounded (I15)")
        need(stream.acked < stream.next_sequence, "what is sent next lies above what is known")
        if stream.outgoing is not None:
            waiting = stream.outgoing.sent - stream.outgoing.staged
            need(waiting <= self._pace.snapshot_window, "chunks in flight are bounded (I15)")

    # --- the table ---
    def table_changed(self, before: ClusterMap, after: ClusterMap) -> None:
        self.map = after
        for partition, entry in enumerate(after.partitions):
            if partition < len(before.partitions) and before.partitions[partition] is entry:
                continue
            need(len(entry.isr) >= entry.min_isr, "the set is never below min_isr (I3):", partition)
            need(entry.primary is None or entry.primary in entry.isr, "the primary is in sync (I3):", partition)
            self.check_members(partition)

    def check_members(self, partition: int) -> None:
        """I1, at the newest committed entry; whoever has it with its epoch has all before it."""
        assert self.map is not None
        history = self.histories[partition]
        sequence = history.length
        if not sequence:
            return
        epoch = history.epoch(sequence)
        for member in self.map.partitions[partition].isr:
            node = self._nodes[member]
            if node.is_wiped:
                continue
            stored = node.store.partition(partition)
            has = stored.epoch_at(sequence) == epoch or (
                stored.last_sequence >= sequence and stored.log_start > sequence
            )
            need(
                has,
                "what is committed is durable on every member of the set (I1):",
                *(member, partition, sequence, epoch, stored.last_sequence, stored.epochs),
            )

    def recovered(self, partition: int, kept: int, reset: tuple[int, int]) -> None:
        """Outside the rules a copy was made the partition: what it lacks never happened (an operator's ``unsafe-recover``)."""
        history = self.histories[partition]
        history.reset = reset
        del history.entries[kept:]
        history.answered = min(history.answered, kept)
        history.digests = {sequence: digest for sequence, digest in history.digests.items() if sequence <= kept}
        self.completed = {key: token for key, token in self.completed.items() if key[0] != partition}
        self.submitted = {key for key in self.submitted if key[0] != partition}

    # --- the disk ---
    def storing(self, node: DataNode, write: Write, stored: StoredPartition) -> None:
        """Just before it is durable."""
        history = self.histories[write.partition]
        draft = write.draft
        is_member = self.map is not None and node.me in self.map.partitions[write.partition].isr
        if draft.cut_after is not None:
            self.cuts += 1
        if draft.cut_after is not None and is_member:
            # Of one that is no member it may have been decided before what it takes away was committed, by others.
            top = min(stored.last_sequence, history.length)
            while top > draft.cut_after and stored.epoch_at(top) != history.epoch(top):
                top -= 1
            need(
                top <= draft.cut_after,
                "no cut takes away what was committed (I5):",
                *(node.me, write.partition, draft.cut_after, top),
            )
        if draft.install is not None:
            self.snapshots += 1
            need(draft.install.applied <= history.length, "a snapshot holds only what is committed")
        if draft.drop:
            self.resets += 1

    def stored(self, node: DataNode, partition: int, stored: StoredPartition) -> None:
        history = self.histories[partition]
        for entry in reversed(stored.entries):
            key = (entry.sequence, entry.epoch)
            before = stored.epoch_at(entry.sequence - 1)
            known = history.known.get(key)
            if known is None:
                history.known[key] = (before, entry.crc)
                continue
            need(known[1] == entry.crc, "one epoch, two entries at a place (I6):", node.me, partition, key)
            need(
                not before or not known[0] or known[0] == before,
                "equal epochs, unequal logs before (I6):",
                *(node.me, partition, key, before, known[0]),
            )
            break
        if history.has_abandoned(stored):
            return
        need(stored.applied <= history.length, "only what is committed is applied (R17):", node.me, partition)
        if stored.applied:
            known_digest = history.digests.setdefault(stored.applied, stored.rows.digest)
            need(
                known_digest == stored.rows.digest,
                "rows at equal applied are equal (I11):",
                *(node.me, partition, stored.applied),
            )

    # --- what leaves the core ---
    def sent(self, node: DataNode, target: NodeId, message: AnyMessage) -> None:
        """At the moment it leaves."""
        stored = node.store.partition(message.partition)
        if isinstance(message, ORDERS):
            need(
                stored.promised >= message.epoch,
                "nothing of an epoch leaves before its promise is durable (I4, R6):",
                *(node.me, message.epoch, stored.promised),
            )
            if isinstance(message, Append):
                size = sum(len(entry.payload) + ENTRY_OVERHEAD_BYTES for entry in message.entries)
                most = self._pace.append_bytes_aim
                need(len(message.entries) <= 1 or size <= most, "an append is bounded (I15):", size)
        elif isinstance(message, (Ack, SyncOk)):
            # A later write may have cut it again: then the promise has grown too.
            need(stored.promised >= message.epoch, "an answer leaves after its promise (R13):", node.me)
            need(
                stored.promised > message.epoch or stored.last_sequence >= message.durable_sequence,
                "what is acknowledged is durable (R16):",
                *(node.me, message.durable_sequence, stored.last_sequence),
            )

    def committed(self, node: DataNode, partition: int, sequence: int) -> None:
        """A core hands out a committed entry."""
        history = self.histories[partition]
        core = node.cores[partition]
        epoch = core.log.epochs.at(sequence)
        if sequence <= history.length:
            need(
                not epoch or history.epoch(sequence) == epoch,
                "a place is committed with one entry only (I2):",
                *(node.me, partition, sequence, epoch, history.epoch(sequence)),
            )
            return
        need(sequence == history.length + 1, "nobody commits what nobody has committed before it:", partition, sequence)
        need(core.is_leading, "only a primary commits what nobody knew to be committed:", node.me, partition, sequence)
        known = history.known.get((sequence, epoch))
        need(known is not None, "what is committed was durable somewhere:", node.me, partition, sequence)
        assert known is not None
        history.entries.append((epoch, known[1]))
        self.check_members(partition)

    def view(self, node: DataNode, partition: int, sequence: int, digest: int) -> None:
        known = self.histories[partition].digests.setdefault(sequence, digest)
        need(known == digest, "states at equal sequence are equal (I11):", node.me, partition, sequence)

    # --- clients ---
    def asked(self, partition: int, operation: Operation) -> None: ...

    def answered(self, partition: int, sequence: int, operation: Operation) -> None:
        """I9: ``ok`` is said of a committed entry only."""
        history = self.histories[partition]
        need(sequence <= history.length, "ok is said of what is committed (I9)")
        history.answered = max(history.answered, sequence)
        self.answers += 1
        if operation.kind == "submit":
            self.submitted.add((partition, operation.task))
        if operation.kind == "complete":
            assert operation.token is not None
            first = self.completed.setdefault((partition, operation.task), operation.token)
            need(first == operation.token, "one entry ends a run (P2):", operation.task)

    def unknown(self, node: DataNode, partition: int) -> None: ...

    def claimed(self, partition: int, task: str, token: Token) -> None:
        tokens = self.histories[partition].tokens
        need((task, token) not in tokens, "two claims of one task share a token (F30a):", task, token)
        tokens[task, token] = True

    def attempt_began(self, attempt: Attempt) -> None:
        """I12."""
        self.attempts += 1
        others = self._attempts.setdefault((attempt.partition, attempt.task), [])
        for other in others:
            need(
                other.ended_us is not None or other.deadline_us <= attempt.began_us,
                "two workers run one task at once (I12):",
                *(attempt.task, other.node, other.token, attempt.node, attempt.token, other.deadline_us),
            )
            need(other.token < attempt.token, "tokens only grow (I10):", other.token, attempt.token)
        others.append(attempt)

    def read_served(self, me: NodeId, partition: int, floor: int, committed: int) -> None:
        """I13."""
        self.reads += 1
        need(
            committed >= floor,
            "a strong read is not older than what was answered before it began (I13):",
            *(me, partition, committed, floor),
        )
