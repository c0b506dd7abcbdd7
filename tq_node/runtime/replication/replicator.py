"""Feeds the replica driver: the map's records, peers, messages, time. Tells what may be served."""

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
messages_in: Callable[[bytes], list[AnyMessage]] = msgspec.msgpack.Decoder(list[AnyMessage]).decode
"""Decodes a box; raises ``msgspec.DecodeError`` if it is none."""
SILENT_MS = 2_000
"""A peer silent for this long is not counted on for acknowledgements, though connected (F35)."""
LEFTOVER_KEPT_MS = 600_000
"""How long a replica stays on disk after the cluster map has moved it away (section 6, move): a
node whose map is late must not delete what it was just given again (F28)."""


class Replication:
    """All replicas of this node, joined to its cluster.

    :param surroundings: the link to peers, and the controller.
    :param events: what the node's tasks are told."""

    def __init__(
        self, store: Store, clock: Clock, replicas: Replicas, surroundings: Surroundings, events: ReplicaEvents
    ) -> None:
        self._clock = clock
        self._me = replicas.me
        self._ask_controller = surroundings.ask_controller
        self._records: dict[int, Record] = {}
        self._names: dict[NodeId, str] = {}
        self._started_ms = clock.now_ms()
        self._received_ms: dict[NodeId, int] = {}
        self._in_sync_ms: dict[int, int] = {}
        """When the cluster map last had each replica of this node in its in-sync set."""
        self._connected: set[NodeId] = set()
        self._lost: set[NodeId] = set()
        self._leftover_since_ms: dict[int, int] = {}
        """Since when each leftover lies here: a replica that the cluster map has moved away."""
        self._restart_timer = clock.timer(self._restart_streams)
        self.refusals: dict[int, TaskQueueError] = {}
        """Why partitions that are led here take no new work for now; those that do are absent."""
        link = surroundings.link
        self.driver = ReplicaDriver(store, clock, replicas, PeerBox(link.send_data, self._unsent), events, self)
        self.read_index = ReadIndex(self.driver, clock, link.send_confirm)

    # --- the cluster map ---
    def follow(self, records: Mapping[int, Record], names: Mapping[NodeId, str]) -> None:
        """Take over the cluster map's records of all partitions, and the names of all nodes.
        Records that have not changed cost nothing."""
        self._names = dict(names)
        known = self._records
        fresh = [(partition, record) for partition, record in records.items() if known.get(partition) != record]
        self._records = dict(records)
        if fresh:
            self.driver.follow(fresh)
            for partition, _ in fresh:
                self._judge(partition)

    def is_held(self, partition: int) -> bool:
        """Whether the map places a replica of the partition here; any other is a leftover."""
        record = self._records.get(partition)
        return record is not None and self._me in record.copies

    def primary(self, partition: int) -> NodeId | None:
        record = self._records.get(partition)
        return None if record is None else record.primary

    def primary_name(self, partition: int) -> str:
        """Name of the partition's primary; empty if it has none."""
        primary = self.primary(partition)
        return "" if primary is None else self._names.get(primary, primary)

    def held(self) -> list[int]:
        """Partitions of which the cluster map places a replica here."""
        return [partition for partition, record in self._records.items() if self._me in record.copies]

    def age_s(self, partition: int) -> float:
        """Seconds by which a local read may be stale. At the primary: since the others last
        confirmed it. At an in-sync replica, which lacks nothing that is committed: since the
        primary last sent anything. At any other replica: since it was last in sync."""
        now_ms, record = self._clock.now_ms(), self._records.get(partition)
        since_ms = self._started_ms
        if record is not None and record.primary == self._me:
            since_ms = max(since_ms, self.driver.cores[partition].confirmed_at_ms(now_ms))
        elif record is not None and record.primary is not None and self._me in record.isr:
            since_ms = self._received_ms.get(record.primary, since_ms)
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
        """Decide whether to take new work; refusals come before work is appended (section 9)."""
        core, record = self.driver.cores[partition], self._records.get(partition)
        refusal: TaskQueueError | None = None
        if core.is_leading and record is not None:
            if core.is_handing_over:
                refusal = NotActive("the partition is handed over to another node")
            elif self._reachable(core.effective_set, record) < record.min_isr:
                refusal = NotEnoughReplicas("too few of the partition's in-sync copies can be reached")
        if refusal is None:
            self.refusals.pop(partition, None)
        else:
            self.refusals[partition] = refusal

    def _reachable(self, members: frozenset[NodeId], record: Record) -> int:
        """How many members could acknowledge now; others soon go, while ``min_isr`` remain."""
        since_ms = self._clock.now_ms() - SILENT_MS
        return sum(1 for node in members if node == self._me or (node in record.up and self._is_alive(node, since_ms)))

    def _is_alive(self, node: NodeId, since_ms: int) -> bool:
        """Whether a peer is connected and has sent something: cut links look connected (F35)."""
        return node in self._connected and self._received_ms.get(node, 0) >= since_ms

    # --- peers ---
    def connected(self, node: NodeId) -> None:
        """Restart the streams to a peer with a new connection, whoever dialled."""
        self._connected.add(node)
        self._received_ms[node] = self._clock.now_ms()
        self.driver.connected(node)
        self._judge_all()

    def disconnected(self, node: NodeId) -> None:
        """Stop the streams to a peer."""
        self._connected.discard(node)
        self.driver.disconnected(node)
        self._judge_all()

    def _judge_all(self) -> None:
        refusals = self.refusals
        since_ms = self._clock.now_ms() - SILENT_MS
        alive = {node for node in self._connected if self._is_alive(node, since_ms)} | {self._me}
        for partition in list(refusals):
            self._judge(partition)
        for core in self.driver.leading():
            record = self._records.get(core.partition)
            if core.partition not in refusals and record is not None:
                members = core.effective_set
                all_reachable = members <= alive and members <= record.up and len(members) >= record.min_isr
                if core.is_handing_over or not all_reachable:
                    self._judge(core.partition)

    def received(self, source: NodeId, body: bytes) -> None:
        """Take messages of partitions from a peer.

        :raises MalformedBox: some were refused; the sound ones have had their effect."""
        try:
            messages = messages_in(body)
        except UNREADABLE as why:
            raise MalformedBox(f"messages of partitions: {why}"[: bounds.DETAIL_CHARS_MAX]) from None
        count = len(self.driver.cores)
        for message in messages:  # a generator would cost more than the comparison
            if message.partition >= count:
                raise MalformedBox("a partition that there is not")
        self._received_ms[source] = self._clock.now_ms()
        refused = self.driver.receive(source, messages)
        if refused is not None:
            raise MalformedBox(str(refused)[: bounds.DETAIL_CHARS_MAX])

    def asked(self, source: NodeId, body: bytes) -> None:
        """Take a ping or the answer to one; raises ``MalformedBox`` if it is neither."""
        self._received_ms[source] = self._clock.now_ms()
        self.read_index.received(source, body)

    def _unsent(self, node: NodeId) -> None:
        """A peer's box was dropped: restart its streams in a later turn; the cores are busy now."""
        self._lost.add(node)
        self._restart_timer.start(TICK_S)

    def _restart_streams(self) -> None:
        lost, self._lost = self._lost, set()
        for node in sorted(lost):
            self.driver.disconnected(node)
            if node in self._connected:
                self.driver.connected(node)

    def led_with_others(self) -> list[tuple[int, int]]:
        """(partition, epoch) of those led here that another node, in sync and up, could lead."""
        found = []
        for core in self.driver.cores:
            record = core.record
            epoch = core.epoch
            if epoch is not None and record is not None and record.up.intersection(record.isr) - {self._me}:
                found.append((core.partition, epoch))
        return found

    # --- time ---
    def look(self) -> None:
        """Tick all partitions and judge what they may serve; called each ``read_index.LOOK_S``."""
        self.driver.tick_all()
        self.read_index.give_up_overdue()
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
                self._leftover_since_ms.pop(partition, None)
            elif now_ms - self._leftover_since_ms.setdefault(partition, now_ms) >= LEFTOVER_KEPT_MS:
                del self._leftover_since_ms[partition]
                self.driver.drop(partition)

    def stop(self) -> None:
        self.read_index.stop()
        self.driver.stop()
        self._restart_timer.cancel()


class PeerBox:
    """Collects the partitions' messages into one box for each peer and turn, whatever partitions
    they are about.

    :param send: send one body to one peer; returns False if it was dropped.
    :param on_lost: called with a peer for which something was dropped: its streams must be
        restarted."""

    def __init__(self, send: Callable[[NodeId, bytes], bool], on_lost: Callable[[NodeId], None]) -> None:
        self._send = send
        self._on_lost = on_lost
        self._gathered: dict[NodeId, list[bytes]] = {}

    def gather(self, messages: Iterable[Addressed]) -> None:
        last: AnyMessage | None = None
        data = b""
        for node, message in messages:
            box = self._gathered.get(node)
            if box is None:
                box = self._gathered[node] = []
            if message is not last:  # one object for all copies, one behind the other
                last, data = message, encode(message)
            box.append(data)

    def send(self) -> None:
        """Send everything gathered, in order."""
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, {}
        for node, box in gathered.items():
            if sum(map(len, box)) <= BOX_BYTES_AIM:  # nearly always
                is_sent = self._send(node, _joined(box))
            else:
                # After a body that was dropped, no other may arrive.
                is_sent = all(self._send(node, body) for body in _cut(box))
            if not is_sent:
                self._on_lost(node)


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
    """Encode a list whose items are encoded already (msgpack's array of 32-bit length)."""
    return b"".join((b"\xdd", len(part).to_bytes(4, "big"), *part))
