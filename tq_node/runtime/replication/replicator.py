"""The copies of this node and everything that keeps them together: streams to peers, ping rounds, the table's records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from tq_node.errors import NotActive, NotEnoughReplicas, TaskQueueError
from tq_node.partition.effects import Step
from tq_node.partition.messages import Addressed, AnyMessage, encode
from tq_node.partition.record import Record
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.driver import TICK_S, ReplicaDriver
from tq_node.runtime.replication.ports import ReplicaEvents, Replicas, Surroundings
from tq_node.runtime.replication.read_index import ReadIndex
from tq_node.store.api import Store
from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire.errors import UNREADABLE, MalformedBox

BOX_BYTES_AIM = 1024 * 1024
_decode = msgspec.msgpack.Decoder(list[AnyMessage]).decode
SILENT_MS = 2_000
"""A peer that has said nothing for so long can't be counted on for an acknowledgement, whatever its connection looks like."""
LEFTOVER_KEPT_MS = 600_000
"""A copy stays for so long after this node's own table has it elsewhere (section 6, move): a late node must not delete what
it was just given again (F28)."""


class Replication:
    """Feeds the replica driver with the cluster map, the peers and time, and tells what this node may serve."""

    def __init__(
        self, store: Store, clock: Clock, replicas: Replicas, surroundings: Surroundings, events: ReplicaEvents
    ) -> None:
        self._clock = clock
        self._me = replicas.me
        self._ask_controller = surroundings.ask_controller
        self._records: dict[int, Record] = {}
        self._names: dict[NodeId, str] = {}
        self._begun_ms = clock.now_ms()
        self._heard_ms: dict[NodeId, int] = {}
        self._in_sync_ms: dict[int, int] = {}
        """When each copy here was last seen in its set."""
        self._connected: set[NodeId] = set()
        self._lost: set[NodeId] = set()
        self._left_ms: dict[int, int] = {}
        """Leftovers, and since when they are."""
        self._lost_timer = clock.timer(self._begin_anew)
        self.refusals: dict[int, TaskQueueError] = {}
        """Partitions led here that take no new work for now, and why."""
        link = surroundings.link
        self.driver = ReplicaDriver(store, clock, replicas, PeerBox(link.send_data, self._unsent), events, self)
        self.read_index = ReadIndex(self.driver, clock, link.send_confirm)

    # --- the table ---
    def follow(self, records: Mapping[int, Record], names: Mapping[NodeId, str]) -> None:
        """:param records: of every partition, as the table has them now; those that are not new cost nothing."""
        self._names = dict(names)
        known = self._records
        fresh = [(partition, record) for partition, record in records.items() if known.get(partition) != record]
        self._records = dict(records)
        if fresh:
            self.driver.follow(fresh)
            for partition, _ in fresh:
                self._judge(partition)

    def is_held(self, partition: int) -> bool:
        """Does the table name this node for it? What else lies here is a leftover of a move."""
        record = self._records.get(partition)
        return record is not None and self._me in record.copies

    def primary(self, partition: int) -> NodeId | None:
        record = self._records.get(partition)
        return None if record is None else record.primary

    def primary_name(self, partition: int) -> str:
        """Empty where there is none."""
        primary = self.primary(partition)
        return "" if primary is None else self._names.get(primary, primary)

    def held(self) -> list[int]:
        """The partitions that the table names this node for."""
        return [partition for partition, record in self._records.items() if self._me in record.copies]

    def age_s(self, partition: int) -> float:
        """How old what is read here may be.

        At the primary: since the others last confirmed it. At a member of the in-sync set, which lacks nothing that is committed:
        since the primary was last heard. At any other copy: since it was last in the set.
        """
        now_ms, record = self._clock.now_ms(), self._records.get(partition)
        since_ms = self._begun_ms
        if record is not None and record.primary == self._me:
            since_ms = max(since_ms, self.driver.cores[partition].confirmed_at_ms(now_ms))
        elif record is not None and record.primary is not None and self._me in record.isr:
            since_ms = self._heard_ms.get(record.primary, since_ms)
        else:
            since_ms = self._in_sync_ms.get(partition, since_ms)
        return (now_ms - since_ms) / 1000

    # --- DriverEvents ---
    def activated(self, partition: int, epoch: int) -> None:
        self._judge(partition)
        self.read_index.begin_soon()  # nothing may run before the others have confirmed it (section 8)

    def stepped_down(self, partition: int) -> None:
        self._judge(partition)
        self.read_index.stepped_down(partition)

    def wanted(self, steps: list[Step]) -> None:
        self._ask_controller(steps)

    # --- what may be served ---
    def _judge(self, partition: int) -> None:
        """May new work be taken into it? Known before anything is appended (section 9)."""
        core, record = self.driver.cores[partition], self._records.get(partition)
        refusal: TaskQueueError | None = None
        if core.is_leading and record is not None:
            if core.is_handing_over:
                refusal = NotActive("the partition is handed over to another node")
            elif self._within_reach(core.effective_set, record) < record.min_isr:
                refusal = NotEnoughReplicas("too few of the partition's in-sync copies can be reached")
        if refusal is None:
            self.refusals.pop(partition, None)
        else:
            self.refusals[partition] = refusal

    def _within_reach(self, members: frozenset[NodeId], record: Record) -> int:
        """How many members of the set could acknowledge now. Those that can't are soon removed, while ``min_isr`` remain."""
        since_ms = self._clock.now_ms() - SILENT_MS
        return sum(1 for node in members if node == self._me or (node in record.up and self._is_heard(node, since_ms)))

    def _is_heard(self, node: NodeId, since_ms: int) -> bool:
        """A cut that nobody tells of looks like a connection for a while (F35)."""
        return node in self._connected and self._heard_ms.get(node, 0) >= since_ms

    # --- peers ---
    def connected(self, node: NodeId) -> None:
        """There is a new connection with it, whoever dialled: streams begin anew."""
        self._connected.add(node)
        self._heard_ms[node] = self._clock.now_ms()
        self.driver.connected(node)
        self._judge_all()

    def disconnected(self, node: NodeId) -> None:
        self._connected.discard(node)
        self.driver.disconnected(node)
        self._judge_all()

    def _judge_all(self) -> None:
        cores, refusals = self.driver.cores, self.refusals
        for partition in self._records:
            if cores[partition].is_leading or partition in refusals:
                self._judge(partition)

    def received(self, source: NodeId, body: bytes) -> None:
        """:raises MalformedBox: not what peers say; what of it was sound has had its effect."""
        try:
            messages = messages_in(body)
        except UNREADABLE as why:
            raise MalformedBox(f"messages of partitions: {why}"[: bounds.DETAIL_CHARS_MAX]) from None
        count = len(self.driver.cores)
        for message in messages:  # for each box: a generator would cost more than what it looks at
            if message.partition >= count:
                raise MalformedBox("a partition that there is not")
        self._heard_ms[source] = self._clock.now_ms()
        refused = self.driver.receive(source, messages)
        if refused is not None:
            raise MalformedBox(str(refused)[: bounds.DETAIL_CHARS_MAX])

    def asked(self, source: NodeId, body: bytes) -> None:
        """A ping or its answer. :raises MalformedBox: it is neither."""
        self._heard_ms[source] = self._clock.now_ms()
        self.read_index.heard(source, body)

    def _unsent(self, node: NodeId) -> None:
        # In a later turn: the cores are in the middle of something.
        self._lost.add(node)
        self._lost_timer.start(TICK_S)

    def _begin_anew(self) -> None:
        lost, self._lost = self._lost, set()
        for node in sorted(lost):
            self.driver.disconnected(node)
            if node in self._connected:
                self.driver.connected(node)

    def led_with_others(self) -> list[tuple[int, int]]:
        """(partition, epoch) of those led here of which another copy, in sync and up, could be primary."""
        found = []
        for core in self.driver.cores:
            record = core.record
            epoch = core.epoch
            if epoch is not None and record is not None and record.up.intersection(record.isr) - {self._me}:
                found.append((core.partition, epoch))
        return found

    # --- time ---
    def round(self) -> None:
        """Each ``confirming.ROUND_S``."""
        self.driver.tick_all()
        self.read_index.give_up_overdue()
        self.read_index.begin()
        self._judge_all()
        self._note_in_sync()
        self._drop_leftovers()

    def _note_in_sync(self) -> None:
        now_ms = self._clock.now_ms()
        for partition, record in self._records.items():
            if self._me in record.isr:
                self._in_sync_ms[partition] = now_ms

    def _drop_leftovers(self) -> None:
        now_ms = self._clock.now_ms()
        for partition, record in self._records.items():
            if self._me in record.copies or not self.driver.cores[partition].last_sequence:
                self._left_ms.pop(partition, None)
            elif now_ms - self._left_ms.setdefault(partition, now_ms) >= LEFTOVER_KEPT_MS:
                del self._left_ms[partition]
                self.driver.drop(partition)

    def stop(self) -> None:
        self.read_index.stop()
        self.driver.stop()
        self._lost_timer.cancel()


class PeerBox:
    """:param send: one body to one peer; False if it could not be sent.

    :param on_lost: what was for this peer did not leave: its streams must begin anew. Called in a later turn.
    """

    def __init__(
        self,
        send: Callable[[NodeId, bytes], bool],
        on_lost: Callable[[NodeId], None],
    ) -> None:
        self._send = send
        self._on_lost = on_lost
        self._gathered: dict[NodeId, list[bytes]] = {}

    def gather(self, messages: Iterable[Addressed]) -> None:
        for node, message in messages:
            box = self._gathered.get(node)
            if box is None:
                box = self._gathered[node] = []
            box.append(encode(message))

    def send(self) -> None:
        """Everything that was gathered, in order."""
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, {}
        for node, box in gathered.items():
            # What follows one that was lost must not arrive either.
            if not all(self._send(node, body) for body in _bodies(box)):
                self._on_lost(node)


def _bodies(box: list[bytes]) -> Iterable[bytes]:
    if sum(map(len, box)) <= BOX_BYTES_AIM:  # nearly always
        return (_joined(box),)
    return _cut(box)


def _cut(box: list[bytes]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for data in box:
        if part and size + len(data) > BOX_BYTES_AIM:
            yield _joined(part)
            part, size = [], 0
        part.append(data)
        size += len(data)
    yield _joined(part)


def _joined(part: list[bytes]) -> bytes:
    """The bytes of a list whose items are encoded already (msgpack's array of 32-bit length)."""
    return b"".join((b"\xdd", len(part).to_bytes(4, "big"), *part))


def messages_in(body: bytes) -> list[AnyMessage]:
    """:raises msgspec.DecodeError: it is no such list."""
    return _decode(body)
