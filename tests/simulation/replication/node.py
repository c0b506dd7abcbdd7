"""One simulated node of the data plane: its disk, and a driver that follows the contract of ``Ready`` and ``Outbox``.

It also is the queue in small: tasks are submitted, claimed with tokens, run under leases, completed, read strongly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tests.simulation.replication.store import NodeStore, OpenedSnapshot, Row, Rows, StoredPartition, Write
from tests.simulation.replication.tasks import Attempt, Operation, Read, TaskSide, decode_token
from tests.support.world import MS_US, Disk, VirtualTime
from tq_node.cluster.map import ClusterMap
from tq_node.cluster.records import EMPTY
from tq_node.partition import messages
from tq_node.partition.core import PartitionCore
from tq_node.partition.effects import (
    Activated,
    CloseSnapshot,
    Event,
    OpenSnapshot,
    ReadChunk,
    ReadLog,
    Step,
    SteppedDown,
    StoreRequest,
)
from tq_node.partition.entries import Effect
from tq_node.partition.leases import PingRounds
from tq_node.partition.messages import AnyMessage, Ping, Pong
from tq_node.partition.record import Record
from tq_node.partition.settings import Budget, ReplicationSettings
from tq_node.types import NodeId, State, Token

if TYPE_CHECKING:
    from tests.simulation.replication.checkers import DataCheckers

TICK_US = 50_000
PING_US = 250_000


def record_of(cluster_map: ClusterMap, partition: int) -> Record:
    """The driver's conversion of the table's entry."""
    entry = cluster_map.partitions[partition]
    return Record(
        epoch=entry.epoch,
        partition_version=entry.partition_version,
        primary=entry.primary,
        copies=entry.copies,
        isr=entry.isr,
        min_isr=entry.min_isr,
        up=frozenset(node for node in entry.copies if cluster_map.nodes[node].is_up),
        adding=entry.adding,
        removing=entry.removing,
        successor=entry.successor,
        reset_epoch=entry.unsafe_recovered[-1].epoch if entry.unsafe_recovered else 0,
    )


class DataNode(TaskSide):
    """:param send: (source, target, bytes or Ping or Pong) to the network. :param tell: a step, to the controller."""

    def __init__(
        self,
        me: NodeId,
        *,
        time: VirtualTime,
        disk_random: random.Random,
        timing_random: random.Random,
        pace: ReplicationSettings,
        partitions: int,
        budget_bytes: int,
        send: Callable[[NodeId, NodeId, Any], None],
        tell: Callable[[DataNode, list[Step]], None],
        checkers: DataCheckers,
        rule_breaks: frozenset[str],
    ) -> None:
        self.me = me
        self.store = NodeStore()
        self.disk: Disk[list[Write]] = Disk(time, disk_random, self._stored)
        self.is_up = False
        self.is_wiped = False
        self.incarnation = 0
        self.session = 0
        self.paused_until_us = 0
        self.map: ClusterMap = EMPTY
        self.table_index = 0
        self.cores: dict[int, PartitionCore[Operation]] = {}
        self.views: dict[int, Rows] = {}
        self.attempts: list[Attempt] = []
        self.budget = Budget()
        self._budget_bytes = budget_bytes
        self._time = time
        self._random = timing_random
        self._pace = pace
        self._partitions = partitions
        self._send = send
        self._tell = tell
        self._checkers = checkers
        self._breaks = rule_breaks
        self._rate = timing_random.uniform(0.995, 1.005)
        self._offset_ms = timing_random.randint(0, 10**6)
        self._in_flight_max = timing_random.choice((1, 1, 2, 3))
        self._spreads = self._in_flight_max == 1
        """What waits for the disk leaves for the other copies all the same (R21)."""
        self._apply_every = timing_random.choice((1, 1, 5, 20))
        self._in_flight = 0
        self._inbox: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    # --- time ---
    def ms_of(self, us: int) -> int:
        return self._offset_ms + int(us * self._rate / MS_US)

    def us_of(self, ms: int) -> int:
        return int((ms - self._offset_ms) * MS_US / self._rate)

    @property
    def now_ms(self) -> int:
        return self.ms_of(self._time.now_us)

    # --- the process ---
    def start(self) -> None:
        assert not self.is_up
        self.is_up = True
        self.incarnation += 1
        self.session = 0
        self.map, self.table_index = EMPTY, 0
        self.paused_until_us = 0
        self.budget = Budget(self._budget_bytes)
        self.cores, self.views = {}, {}
        self.overlays: dict[int, dict[str, Row]] = {}
        self.requeue: dict[int, dict[str, Token]] = {}
        self.reads: list[Read] = []
        self.rounds = PingRounds()
        self._unapplied: dict[int, list[tuple[int, list[Effect]]]] = {}
        self._in_flight = 0
        self._inbox = []
        self._dirty: set[int] = set()
        self._waiting: set[int] = set()
        self._stale_views: dict[int, int] = {}
        self._lost: list[tuple[int, int, str, Token]] = []
        self._snapshots: dict[tuple[int, NodeId, int], OpenedSnapshot] = {}
        for partition in range(self._partitions):
            stored = self.store.partition(partition)
            core = PartitionCore[Operation](
                partition, self.me, stored.stored(), settings=self._pace, budget=self.budget
            )
            self.cores[partition] = core
            self.views[partition] = stored.rows.copy()
            self._unapplied[partition] = []
        self._checkers.started(self)
        self._later(self._random.randint(0, TICK_US), self._tick)
        self._later(self._random.randint(0, PING_US), self._ping)

    def crash(self) -> None:
        self.is_up = False
        self._in_flight = 0
        self.disk.crash()
        for attempt in self.attempts:
            self._end(attempt)  # workers die with their parent
        self.attempts.clear()

    def pause(self, us: int) -> None:
        self.paused_until_us = max(self.paused_until_us, self._time.now_us + us)
        self._time.at(self.paused_until_us, self._wake, self.incarnation)

    def _wake(self, incarnation: int) -> None:
        if self.is_up and incarnation == self.incarnation and self._time.now_us >= self.paused_until_us:
            inbox, self._inbox = self._inbox, []
            for action, arguments in inbox:
                self.event(action, *arguments)

    def _later(self, delay_us: int, action: Callable[..., object], *arguments: Any) -> None:
        self._time.after(delay_us, self._timer, self.incarnation, action, arguments)

    def _timer(self, incarnation: int, action: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if incarnation == self.incarnation:
            self.event(action, *arguments)

    def event(self, action: Callable[..., object], *arguments: Any) -> None:
        """Everything that happens to the node, and what it then does about it."""
        if not self.is_up:
            return
        if self._time.now_us < self.paused_until_us:
            if len(self._inbox) < 5_000:
                self._inbox.append((action, arguments))
            return
        action(*arguments)
        self._turn()
        self._checkers.after_event(self)

    # --- the driver ---
    def _turn(self) -> None:
        while self.is_up and self._dirty:
            dirty, self._dirty = sorted(self._dirty), set()
            for partition in dirty:
                self._empty_outbox(partition)
            self._flush(dirty)

    def _empty_outbox(self, partition: int) -> None:
        core = self.cores[partition]
        while core.has_outbox:
            box = core.outbox()
            for target, message in box.messages:
                self._leave(target, message)
            for entry in box.committed:
                effects = entry.effects
                self._checkers.committed(self, partition, entry.sequence)
                self.views[partition].apply(effects)
                self._checkers.view(self, partition, entry.sequence, self.views[partition].digest)
                self._unapplied[partition].append((entry.sequence, effects))
                for operation in entry.news:
                    self._answered(partition, entry.sequence, operation)
            for event in box.events:
                self._lived(partition, event)
            for request in box.requests:
                self._wished(partition, request)
            if box.steps:
                self._tell(self, box.steps)
            if box.committed:
                self._serve_reads()

    def _leave(self, target: NodeId, message: AnyMessage) -> None:
        self._checkers.sent(self, target, message)
        self._send(self.me, target, messages.encode(message))

    def _flush(self, partitions: Sequence[int]) -> None:
        """All that waits goes into one transaction; several may be on their way."""
        if self._in_flight >= self._in_flight_max:
            self._dirty_later(partitions)
            return
        writes: list[Write] = []
        numbers: list[tuple[int, int, list[Any], int]] = []
        for partition in sorted({*partitions, *self._waiting}):
            core = self.cores[partition]
            unapplied = self._unapplied[partition]
            if not core.has_ready and len(unapplied) < self._apply_every:
                continue
            ready = core.ready(self.now_ms)
            if ready.write.drop or ready.write.install is not None:
                unapplied = []
                self._unapplied[partition] = []
                self._replaced(partition, ready.number)
            for target, message in ready.messages:
                self._leave(target, message)
            applies = [item for item in unapplied if item[0] <= core.log.durable_sequence]
            if len(applies) < self._apply_every:
                applies = []
            trim = 0
            if applies:
                self._unapplied[partition] = unapplied[len(applies) :]
                trim = core.trim_to(applies[-1][0])
            applied = applies[-1][0] if applies else 0
            if "ack before the sync" in self._breaks:
                for target, message in ready.messages_after:
                    self._send(self.me, target, messages.encode(message))
            if "answer before the commit" in self._breaks and core.is_leading:
                for entry in core.log.uncommitted:
                    for operation in entry.news:
                        self._answered(partition, entry.sequence, operation)
                    entry.news = []
            writes.append(Write(partition, ready.write, applies, trim))
            numbers.append((partition, ready.number, ready.messages_after, applied))
        self._waiting.clear()
        if writes:
            self._in_flight += 1
            self.disk.write(writes, lambda: self._persisted(self.incarnation, numbers))

    def _dirty_later(self, partitions: Sequence[int]) -> None:
        self._waiting.update(partitions)
        if self._spreads:
            for partition in partitions:
                core = self.cores[partition]
                for target, message in core.spread(self.now_ms) if core.is_leading else ():
                    self._leave(target, message)

    def _stored(self, writes: list[Write]) -> None:
        for write in writes:
            self._checkers.storing(self, write, self.store.partition(write.partition))
        self.store.write(writes)
        for write in writes:
            self._checkers.stored(self, write.partition, self.store.partition(write.partition))

    def _persisted(self, incarnation: int, numbers: list[tuple[int, int, list[Any], int]]) -> None:
        if incarnation == self.incarnation:
            self.event(self._on_persisted, numbers)

    def _on_persisted(self, numbers: list[tuple[int, int, list[Any], int]]) -> None:
        self._in_flight -= 1
        for partition, number, after, applied in numbers:
            core = self.cores[partition]
            core.persisted(number, self.now_ms)
            if applied > core.log.applied:
                core.applied(applied)
            if self._stale_views.get(partition, number + 1) <= number:
                del self._stale_views[partition]
                self.views[partition] = self.store.partition(partition).rows.copy()
            for target, message in after:
                if "ack before the sync" not in self._breaks:
                    self._leave(target, message)
            self._dirty.add(partition)
        self._dirty |= self._waiting

    # --- what the core wants of the store ---
    def _wished(self, partition: int, request: StoreRequest) -> None:
        delay_us = self._random.randint(100, 3_000)
        if isinstance(request, CloseSnapshot):
            self._snapshots.pop((partition, request.node, request.snapshot_id), None)
        else:
            self._later(delay_us, self._fulfil, partition, request)

    def _fulfil(self, partition: int, request: StoreRequest) -> None:
        core = self.cores[partition]
        stored: StoredPartition = self.store.partition(partition)
        self._dirty.add(partition)
        if isinstance(request, ReadLog):
            core.log_read(request.node, stored.read(request.first, request.bytes_max), self.now_ms)
            return
        key = (partition, request.node, request.snapshot_id)
        if isinstance(request, OpenSnapshot):
            opened = OpenedSnapshot(stored, 3)
            self._snapshots[key] = opened
            core.snapshot_opened(request.node, request.snapshot_id, opened.applied, opened.epochs, 0, self.now_ms)
        elif isinstance(request, ReadChunk):
            snapshot = self._snapshots.get(key)
            if snapshot is None:
                core.snapshot_failed(request.node, request.snapshot_id, self.now_ms)
                return
            data = snapshot.read()
            core.snapshot_chunk(request.node, request.snapshot_id, data, snapshot.digest if data is None else b"")

    def _replaced(self, partition: int, number: int) -> None:
        """Other rows are coming: what is in memory of them is void. They are looked at again once they are durable."""
        self.views[partition] = Rows()
        self._stale_views[partition] = number

    # --- time ---
    def _tick(self) -> None:
        self._later(int(TICK_US / self._rate), self._tick)
        now_ms = self.now_ms
        for partition, core in self.cores.items():
            core.tick(now_ms)
            self._dirty.add(partition)
            if core.is_active and not core.is_handing_over:
                self._requeue_inherited(partition)
        self._arm(now_ms)
        self._requeue_lost()
        self.reads = [read for read in self.reads if self._time.now_us - read.began_us < 2_000 * MS_US]

    def _ping(self) -> None:
        self._later(int(PING_US / self._rate), self._ping)
        self.begin_round()

    def begin_round(self) -> int:
        led = [(partition, epoch) for partition, core in self.cores.items() if (epoch := core.epoch) is not None]
        ping = self.rounds.begin(self.now_ms, led)
        for node in self.map.nodes:
            if node != self.me:
                self._send(self.me, node, ping)
        self._serve_reads()
        return ping.number

    # --- the network ---
    def receive(self, source: NodeId, message: Any) -> None:
        if isinstance(message, Ping):
            refused = [
                (partition, promised)
                for partition, epoch in message.led
                if (promised := self.cores[partition].refuses(epoch)) is not None
            ]
            self._send(self.me, source, Pong(message.number, tuple(refused)))
        elif isinstance(message, Pong):
            answered = self.rounds.answered(message)
            for partition, promised in message.refused:
                self.cores[partition].refused(source, promised)
                self._dirty.add(partition)
            if answered is not None:
                for partition, epoch in answered.led:
                    self.cores[partition].confirmed(source, epoch, answered.number, answered.sent_ms)
                self._serve_reads()
        else:
            decoded = messages.decode(message)
            self.cores[decoded.partition].receive(source, decoded, self.now_ms)
            self._dirty.add(decoded.partition)

    def connected(self, node: NodeId) -> None:
        for partition, core in self.cores.items():
            core.connected(node, self.now_ms)
            self._dirty.add(partition)

    def disconnected(self, node: NodeId) -> None:
        for partition, core in self.cores.items():
            core.disconnected(node)
            self._dirty.add(partition)

    # --- the table ---
    def learn(self, index: int, cluster_map: ClusterMap) -> None:
        """The next entry of the table has been applied here."""
        assert index > self.table_index
        before, self.map, self.table_index = self.map, cluster_map, index
        known = cluster_map.nodes.get(self.me)
        self.session = known.session if known is not None and known.incarnation == self.incarnation else 0
        for partition in range(len(cluster_map.partitions)):
            record = record_of(cluster_map, partition)
            if partition >= len(before.partitions) or record != record_of(before, partition):
                self.cores[partition].follow(record, self.now_ms)
                self._dirty.add(partition)

    # --- its life ---
    def _lived(self, partition: int, event: Event) -> None:
        self._checkers.lived(self, partition, event)
        self.overlays.pop(partition, None)
        self.requeue.pop(partition, None)
        if isinstance(event, Activated):
            self.overlays[partition] = {}
            self.requeue[partition] = {
                task: decode_token(row.body)
                for task, row in self.views[partition].rows.items()
                if row.state == State.PROCESSING
            }
        elif isinstance(event, SteppedDown):
            self._checkers.unknown(self, partition)


__all__ = ["Attempt", "DataNode", "Operation", "record_of"]
