"""Whatever a peer says, through the real decoders, to the real cores: the node lives, and starts again (A5).

What is sent has the right types and any values, so that it gets as far as a peer can get: bytes that are no value at all are
refused by the decoders, which have tests of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock as VirtualClock

from tests.support.any_value import anything
from tests.support.model_store.store import MemoryStore
from tests.support.node_world import ME, Nobody, NodeWorld
from tq_node.cluster.commands import FoundCluster, PauseQueue, RegisterNode, Registration
from tq_node.cluster.commands import encode as encode_command
from tq_node.cluster.map import EMPTY, apply
from tq_node.cluster.map import encode as encode_table
from tq_node.cluster.records import ClusterSettings
from tq_node.cluster.soundness import is_map_sound
from tq_node.facade import Submission
from tq_node.partition.entries import (
    Effect,
    LogEntry,
    checksum,
    encode_effects,
)
from tq_node.partition.messages import AnyMessage as PartitionMessage
from tq_node.partition.messages import (
    Ping,
    Pong,
    encode,
)
from tq_node.partition.record import Record
from tq_node.raft.messages import (
    AnyMessage,
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    HardState,
    Snapshot,
    encode_change,
)
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.map_machine import ClusterMachine
from tq_node.runtime.control.raft_driver import HARD_STATE, SNAPSHOT, RaftDriver, RaftOutputs
from tq_node.runtime.peer_calls import KINDS, SUBMIT, SUBMIT_MANY, PeerCall
from tq_node.runtime.replication.read_index import WORDS
from tq_node.runtime.replication.replicator import _joined
from tq_node.runtime.routing.peer_server import PeerServer, handlers_of
from tq_node.store.api import Batch
from tq_node.types import NodeId, NodeName, TaskId
from tq_node.wire.codec import ForwardedCall, decode_messages, encode_messages
from tq_node.wire.errors import MalformedBox

_encode = msgspec.msgpack.Encoder().encode
A, B, C = (NodeId(name * 32) for name in "abc")
calm = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


# --- consensus ---
def registration(node: NodeId, name: str) -> Registration:
    return Registration(node, NodeName(name), "", "127.0.0.1:1", 1, f"nonce-{name}", 1, 1)


def born() -> bytes:
    table = apply(
        EMPTY, 1, FoundCluster("c" * 32, "taskqueue", ClusterSettings(4, 3, 7, 3), registration(A, "node-1"))
    ).map
    return encode_table(table)


entries = st.builds(
    Entry,
    term=st.integers(0, 4),
    log_index=st.integers(0, 8),
    kind=st.sampled_from(list(EntryKind)),
    data=st.sampled_from(
        (
            b"",
            b"\x01garbage",
            encode_command(PauseQueue("mail")),
            encode_command(RegisterNode("c" * 32, registration(B, "node-2"))),
            encode_command(RegisterNode("c" * 32, Registration(C, NodeName(""), "", "", 2**63, "", -1, 2**63))),
            encode_change(ConfigurationChange(Configuration((A, B, C)), Change(ChangeKind.PROMOTE, C))),
            encode_change(ConfigurationChange(Configuration(), Change(ChangeKind.REMOVE, A))),
        )
    ),
)
near = st.integers(0, 6)
messages = anything(
    AnyMessage,
    source=st.just(B),
    target=st.just(A),
    term=st.integers(0, 6),
    prev_log_index=near,
    prev_log_term=st.integers(0, 3),
    commit_index=near,
    log_index=near,
    entries=st.lists(entries, max_size=3).map(tuple)
    | st.integers(1, 3).flatmap(
        lambda count: st.just(
            tuple(Entry(2, 2 + n, EntryKind.DATA, encode_command(PauseQueue(f"q{n}"))) for n in range(count))
        )
    ),
    configuration=st.just(Configuration((A, B, C))),
    configuration_index=near,
    offset=st.just(0),
    data=st.just(born()),
    total_bytes=st.just(len(born())),
)
sent = messages.map(
    lambda message: type(message)(
        **{**{f: getattr(message, f) for f in message.__struct_fields__}, "source": B, "target": A}
    )
)


class OneVoter:
    """Of three, over the model of the store. ``say`` comes in as the wire gives it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        snapshot = Snapshot(1, 1, Configuration((A, B, C)), 1, born())
        first: dict[str, bytes | None] = {HARD_STATE: _encode(HardState(1)), SNAPSHOT: _encode(snapshot)}
        self.done(self.store.commit(Batch(meta=first)))
        self.broken: list[BaseException] = []
        self.start()

    def done(self, waiting: Deferred[Any]) -> None:
        self.store.sync()
        found: list[Any] = []
        waiting.addBoth(found.append)
        assert found

    def start(self) -> None:
        self.clock = VirtualClock()
        self.machine = ClusterMachine(lambda _: None)
        self.driver = RaftDriver(
            A, self.store, Clock(self.clock), self.machine,
            RaftOutputs(lambda _: None, lambda _: None, self.broken.append), seed=1,
        )  # fmt: skip
        failed: list[Any] = []
        Deferred.fromCoroutine(self.driver.start()).addErrback(failed.append)
        self.turn()
        assert failed == []

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        for _ in range(8):
            self.store.sync()

    def say(self, message: Any) -> None:
        for body, _ in encode_messages([message]):
            with contextlib.suppress(MalformedBox):
                self.driver.receive(decode_messages(body, B, A))
        self.turn(0.05)

    def crash(self) -> None:
        """What was on its way to the disk is lost."""
        found = self.store.crash(0)
        self.store = MemoryStore()
        self.store._disk = found._disk
        self.start()


@calm
@given(st.lists(sent, max_size=12), st.booleans())
def test_of_consensus(said: list[Any], leads: bool) -> None:
    voter = OneVoter()
    if leads:
        voter.turn(3.0)
        voter.driver.core._election.campaign_for_real()
        voter.driver._enter(lambda: None)
        voter.turn()
        voter.say(_vote(voter))
        assert voter.driver.core.is_leader
    for message in said:
        voter.say(message)
    voter.turn(2.0)
    assert voter.broken == []
    voter.crash()
    assert voter.broken == []
    assert voter.driver.core.term < 2**40
    assert is_map_sound(voter.machine.map)


def _vote(voter: OneVoter) -> Any:
    from tq_node.raft.messages import VoteReply

    return VoteReply(B, A, voter.driver.core.term, granted=True)


# --- partitions ---
@st.composite
def log_entries(draw: Any) -> tuple[LogEntry, ...]:
    found = []
    for number in range(draw(st.integers(0, 3))):
        payload = encode_effects(
            draw(st.lists(anything(Effect, state=st.integers(0, 5), was=st.integers(-1, 5)), max_size=2))
        )
        if draw(st.booleans()):
            payload = draw(st.sampled_from((b"", b"garbage", b"\x91\x91\x63", payload)))
        sequence, epoch = draw(st.integers(1, 4)) + number, draw(st.integers(0, 4))
        partition = draw(st.sampled_from((0, 0, 0, 1, 2**31)))
        crc = checksum(partition, sequence, epoch, payload) if draw(st.booleans()) else 7
        found.append(LogEntry(partition, sequence, epoch, crc, payload))
    return tuple(found)


of_partitions = anything(
    PartitionMessage,
    partition=st.just(0),
    epoch=st.integers(1, 4),
    entries=log_entries(),
    epochs=st.sampled_from((((1, 1),), ((1, 1), (2, 2)), ((3, 1),), ())),
    log_start=st.just(1),
    last_sequence=st.integers(0, 3),
    prev_sequence=st.integers(0, 3),
    reset_epoch=st.just(0),
    durable_sequence=st.integers(0, 3),
    snapshot_id=st.just(1),
)


def one_node(role: str) -> NodeWorld:
    world = NodeWorld(1)
    primary = {"primary": ME, "replica": B, "nobody": None}[role]
    if role != "alone":
        records = {p: Record(2, 2, primary, (ME, B), (ME, B), 1, frozenset([ME, B])) for p in range(world.partitions)}
        world.queue.follow(records, {ME: "node-1", B: "node-2"})
        world.queue.replication.connected(B)
        settle(world)
    return world


def settle(world: NodeWorld) -> None:
    for _ in range(6):
        world.store.deliver()
        world.store.sync()
        world.turn(0.06)


@calm
@given(role=st.sampled_from(("primary", "replica", "nobody")), said=st.lists(of_partitions, max_size=8))
def _of_partitions(role: str, said: list[Any]) -> None:
    world = one_node(role)
    for message in said:
        with contextlib.suppress(MalformedBox):
            world.queue.replication.received(B, _joined([encode(message)]))
        settle(world)
    assert [fault for fault in world.faults if "Divergence" not in fault] == []
    if not world.faults:
        world.crash()
        assert world.faults == []


def test_of_partitions(logged_errors: Any) -> None:
    """A divergence may end the process, for that is a matter of what was agreed before (R15, I5); nothing else may."""
    _of_partitions()
    logged_errors.flush()  # of each divergence there was a critical line; that there was nothing else was looked at


@calm
@given(said=st.lists(anything(Ping | Pong, number=st.integers(0, 3)), max_size=6))
def test_of_who_stands_behind_whom(said: list[Any]) -> None:
    world = one_node("primary")
    for word in said:
        with contextlib.suppress(MalformedBox):
            world.queue.replication.asked(B, WORDS.encode(word))
        settle(world)
    assert world.faults == []


# --- calls ---
some_kind = st.sampled_from([kind for kind in KINDS.values() if kind.name != "shutdown"])


def send_calls(kind: PeerCall, data: st.DataObject) -> None:
    world = NodeWorld(1)
    world.submit()
    settle(world)
    row = next(iter(world.acknowledged), "t")
    decoder: Any = getattr(kind.call._decode, "__self__")  # noqa: B009 (a bound method of msgspec's)
    values = anything(decoder.type, partition=st.integers(-1, 5), task_id=st.just(row), limit=st.integers(0, 3))
    serving = PeerServer(handlers_of(lambda: world.queue, world.queue._clock, lambda offer: None, lambda: None, Nobody))
    for value in data.draw(st.lists(values, max_size=4)):
        answers: list[Any] = []
        serving.serve([ForwardedCall(kind.name, b"\x01" + _encode(value))]).addBoth(answers.append)
        settle(world)
    assert world.faults == []
    for value in _stored_numbers(world):
        assert -(2**63) <= value < 2**63, "SQLite holds 64 bits; more fails the write, and with it the store"
    world.crash()
    assert world.faults == []


@settings(calm, max_examples=120)
@given(kind=some_kind, data=st.data())
def test_of_calls(kind: PeerCall, data: st.DataObject) -> None:
    send_calls(kind, data)


@pytest.mark.long
@settings(calm, max_examples=2_000)
@given(kind=some_kind, data=st.data())
def test_of_many_calls(kind: PeerCall, data: st.DataObject) -> None:
    send_calls(kind, data)


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "in a batch"])
def test_an_id_that_a_peer_says_is_new_is_looked_for(at_once: bool) -> None:
    """A second row of one id would break the store. Any failure that is logged fails the test."""
    world = NodeWorld(1)
    settle(world)
    serving = PeerServer(handlers_of(lambda: world.queue, world.queue._clock, lambda offer: None, lambda: None, Nobody))
    said = Submission("echo", b"1", TaskId("mine"), made=True)
    bodies = [[said, said]] if at_once else [said, said]
    kind = SUBMIT_MANY if at_once else SUBMIT
    answers: list[Any] = []
    for body in bodies:
        serving.serve([ForwardedCall(kind.name, b"\x01" + _encode(body))]).addCallback(answers.extend)
        settle(world)
    accepted = [kind.result.decode(answer.body) for answer in answers]
    items = [item.accepted for item in accepted[0]] if at_once else accepted
    assert [item.created for item in items] == [True, False]
    assert world.faults == []


def _stored_numbers(world: NodeWorld) -> Iterator[int]:
    for stored in world.store._disk.tasks.values():
        for field in stored.__struct_fields__:
            value = getattr(stored, field)
            if isinstance(value, int):
                yield value
