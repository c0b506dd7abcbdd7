"""Errors on the wire, deadlines, the outbox, proofs and sessions."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from tests.support.wires import SECRET, run_until
from tq_node import errors
from tq_node.errors import Busy, FieldError, NoController, NoSuchNode, NoSuchTask, TaskQueueError
from tq_node.raft.settings import NotLeader
from tq_node.types import NodeId, NodeName
from tq_node.wire import bounds, handshake
from tq_node.wire import errors as failures
from tq_node.wire.calls import Deadlines
from tq_node.wire.commands import Lane, PeerCommand
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.errors import (
    CODE_OF,
    Internal,
    MalformedBox,
    NoCommonProtocol,
    StaleSession,
    WireRefusal,
    WrongSecret,
)
from tq_node.wire.handshake import DIALLER, INTRODUCTIONS, LISTENER, Introduction, LocalIdentity, PeerIdentity, Sessions
from tq_node.wire.send_buffer import SendBuffer


# --- errors ---
@pytest.mark.parametrize("kind", CODE_OF, ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_itself(kind: type[TaskQueueError]) -> None:
    more: dict[str, Any] = {"field": "/delay"} if issubclass(kind, FieldError) else {"retry_after_s": 1.5}
    error = kind("one sentence", task_id="task-1", **more)
    code = failures.declared_code(error)
    assert code == CODE_OF[kind]
    arrived = failures.decode_error(code, failures.encode_error(error))
    assert type(arrived) is kind
    assert vars(arrived) == vars(error)
    assert arrived.definite == error.definite


def test_an_error_without_a_code_of_its_own_goes_as_its_kind() -> None:
    assert failures.declared_code(NotLeader(NodeId("b"))) == NoController.code
    for bug in (ValueError(), TaskQueueError("raw"), FieldError("raw", field="/x")):
        assert failures.declared_code(bug) is None


def test_two_that_http_does_not_tell_apart_are_apart_here() -> None:
    assert CODE_OF[NoSuchNode] != CODE_OF[NoSuchTask]


def test_every_error_of_the_shared_table_is_declared() -> None:
    shared = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TaskQueueError)}
    assert shared - {TaskQueueError, FieldError} <= set(CODE_OF)
    assert all(PeerCommand.errors[kind] == code.encode() for kind, code in CODE_OF.items())


@pytest.mark.parametrize("definite", [True, False])
def test_a_code_of_the_next_release_is_not_taken_for_more_than_it_says(definite: bool) -> None:
    body = msgspec.msgpack.encode(["new", None, None, None, definite, b"", "a field of the next release"])
    arrived = failures.decode_error("no_such_code_yet", body)
    assert arrived.definite is definite
    assert type(arrived) is (WireRefusal if definite else Internal)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_no_error_makes_a_caller_wait_for_ever(seconds: float) -> None:
    arrived = failures.decode_error("busy", msgspec.msgpack.encode(["later", None, seconds]))
    assert arrived.retry_after_s == Busy().retry_after_s


@given(st.text(max_size=20), st.binary(max_size=50))
@example(
    "", b"\xdc\x00\x01\xa3\x00\x00\x80"
)  # no UTF-8 in a text: msgspec says so with another error than for the rest
def test_any_error_box_is_an_error(code: str, body: bytes) -> None:
    with contextlib.suppress(MalformedBox):
        assert isinstance(failures.decode_error(code, body), TaskQueueError)


# --- deadlines ---
class Expiring:
    def __init__(self) -> None:
        self.clock = Clock()
        self.expired: list[tuple[str, float]] = []
        self.deadlines: Deadlines[str] = Deadlines(
            self.clock, lambda key: self.expired.append((key, self.clock.seconds()))
        )


def test_each_deadline_is_met_with_one_timer() -> None:
    it = Expiring()
    for key, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("gone", 1.5), ("d", 2.0)):
        it.deadlines.add(key, seconds)
        assert len(it.clock.getDelayedCalls()) == 1
    it.deadlines.discard("gone")
    run_until(it.clock, 10.0)
    assert it.expired == [("a", 1.0), ("b", 2.0), ("d", 2.0), ("c", 3.0)]
    assert not it.clock.getDelayedCalls()


def test_a_closed_list_rests() -> None:
    it = Expiring()
    it.deadlines.add("a", 1.0)
    it.deadlines.close()
    assert not it.clock.getDelayedCalls()
    it.deadlines.discard("a")


def test_one_that_expires_may_close_the_others() -> None:
    clock = Clock()
    expired: list[str] = []

    def expire(key: str) -> None:
        expired.append(key)
        deadlines.close()

    deadlines: Deadlines[str] = Deadlines(clock, expire)
    deadlines.add("a", 1.0)
    deadlines.add("b", 1.0)
    run_until(clock, 5.0)
    assert expired == ["a"]


def test_after_a_pause_the_sockets_are_read_first() -> None:
    """F40: a process that slept past its deadlines judges nobody before it has looked at what came meanwhile."""
    it = Expiring()
    it.deadlines.add("answered meanwhile", 1.0)
    it.deadlines.add("not answered", 1.0)
    it.clock.advance(60.0)  # asleep
    assert it.expired == []
    it.deadlines.discard("answered meanwhile")
    run_until(it.clock, 70.0)
    assert it.expired == [("not answered", 60.0 + bounds.PAUSE_S / 2)]


# --- outbox ---
class Sink:
    """A transport that takes what it is told to."""

    def __init__(self) -> None:
        self.producer: Any = None
        self.written = 0

    def registerProducer(self, producer: object, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.written += len(data)
        if self.written > 1_000:
            self.producer.pauseProducing()


def test_the_outbox_has_a_bound_and_says_when_there_is_room() -> None:
    clock, sink, drained = Clock(), Sink(), []  # type: Clock, Sink, list[int]
    outbox = SendBuffer(clock, 10_000, lambda: drained.append(1))
    outbox.attach(sink)
    while outbox.has_room(700):
        outbox.write(bytes(700))
    assert sink.written <= 10_000
    assert outbox.is_blocked
    assert not drained
    sink.written = 0
    outbox.resumeProducing()
    assert drained
    assert outbox.has_room(10_000)


def test_a_transport_that_blocks_only_afterwards_is_bounded_too() -> None:
    """TLS collects what is written in a turn."""
    clock, sink, drained = Clock(), Sink(), []  # type: Clock, Sink, list[int]
    sink.write = lambda data: None  # type: ignore[method-assign]
    outbox = SendBuffer(clock, 1_000_000, lambda: drained.append(1))
    outbox.attach(sink)
    sent = 0
    while outbox.has_room(100_000):
        outbox.write(bytes(100_000))
        sent += 100_000
    assert sent == 1_000_000
    clock.advance(0)
    assert outbox.has_room(1_000_000), "the next turn: it was not blocked after all"
    outbox.write(bytes(500_000))
    outbox.pauseProducing()
    clock.advance(0)
    assert not outbox.has_room(600_000)
    outbox.detach()
    assert not clock.getDelayedCalls()
    assert sink.producer is None


# --- proofs and sessions ---
def introduction(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "cluster": "c", "node_id": "a", "name": "node-a", "target": "b", "lane": Lane.BULK, "incarnation": 3, "session": 4,
        "protocol_min": 1, "protocol_max": 1, "features_min": 1, "features_max": 1, "nonce": bytes(32),
    }  # fmt: skip
    return INTRODUCTIONS.encode(Introduction(**(fields | changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": "d"}, {"node_id": "x"}, {"name": "node-b"}, {"target": ""}, {"lane": Lane.CONSENSUS}, {"incarnation": 9},
        {"session": 9}, {"protocol_max": 2}, {"features_max": 2}, {"nonce": b"\1" * 32},
    ],
)  # fmt: skip
def test_a_proof_covers_every_word_of_both_introductions(changes: dict[str, Any]) -> None:
    mine, theirs = introduction(), introduction(node_id="b", target="a")
    given_ = handshake.proof(SECRET, DIALLER, mine, theirs)
    handshake.check_proof(SECRET, DIALLER, mine, theirs, given_)
    for other in (
        (introduction(**changes), theirs),
        (mine, introduction(**({"node_id": "b", "target": "a"} | changes))),
    ):
        with pytest.raises(WrongSecret):
            handshake.check_proof(SECRET, DIALLER, *other, given_)


def test_a_proof_is_of_one_side_and_one_secret() -> None:
    mine, theirs = introduction(), introduction(node_id="b", target="a")
    given_ = handshake.proof(SECRET, DIALLER, mine, theirs)
    for secret, role, hellos in (
        (SECRET, LISTENER, (mine, theirs)),
        (SECRET, DIALLER, (theirs, mine)),
        (SECRET + b"x", DIALLER, (mine, theirs)),
        (SECRET, DIALLER, (mine + theirs, b"")),
    ):
        with pytest.raises(WrongSecret):
            handshake.check_proof(secret, role, *hellos, given_)


def test_introductions_are_bounded() -> None:
    longest = introduction(
        **dict.fromkeys(("cluster", "node_id", "name", "target"), "x" * bounds.ID_CHARS_MAX),
        **dict.fromkeys(("incarnation", "session", "protocol_max", "features_max"), 2**63 - 1),
    )
    assert len(longest) < bounds.HELLO_BYTES_MAX
    for changes in ({"cluster": ""}, {"node_id": "a b"}, {"name": "x" * 65}, {"session": -1}, {"nonce": b""}):
        with pytest.raises(MalformedBox):
            INTRODUCTIONS.decode(introduction(**changes))


def test_a_secret_is_long_enough_to_be_one() -> None:
    with pytest.raises(ValueError, match="at least"):
        LocalIdentity(node_id=NodeId("a"), name=NodeName("a"), incarnation=1, secret=b"short")
    joiner = LocalIdentity(node_id=NodeId("a"), name=NodeName("a"), incarnation=1)
    joiner.join("c", SECRET)
    assert (joiner.cluster, joiner.secret) == ("c", SECRET)
    with pytest.raises(ValueError, match="at least"):
        joiner.join("c", b"")


@pytest.mark.parametrize(("low", "high", "chosen"), [(1, 1, 1), (0, 1, 1), (1, 7, 1), (2, 3, None), (0, 0, None)])
def test_the_highest_common_protocol_is_spoken(low: int, high: int, chosen: int | None) -> None:
    theirs = INTRODUCTIONS.decode(introduction(protocol_min=low, protocol_max=high))
    if chosen is None:
        with pytest.raises(NoCommonProtocol):
            handshake.identity(theirs, "here")
    else:
        assert handshake.identity(theirs, "here").protocol == chosen


def peer(node_id: str, incarnation: int, session: int) -> PeerIdentity:
    return PeerIdentity(NodeId(node_id), NodeName(node_id), Lane.BULK, incarnation, session, 1, 1, 1, "here")


def test_sessions_only_grow() -> None:
    """F14, F42."""
    sessions, newer = Sessions(), []  # type: Sessions, list[tuple[int, int]]
    sessions.on_newer = lambda peer: newer.append(peer.order)
    for order in ((1, 0), (1, 0), (1, 5), (2, 0)):
        sessions.observe(peer("a", *order))
    assert newer == [(1, 0), (1, 5), (2, 0)]
    for order in ((1, 0), (1, 9)):
        with pytest.raises(StaleSession):
            sessions.observe(peer("a", *order))
    sessions.observe(peer("a", 2, 0))  # a stale one changes nothing
    assert len(newer) == 3
    sessions.observe(peer("b", 1, 0))
    assert newer[-1] == (1, 0)


def test_sessions_are_not_kept_without_end() -> None:
    sessions = Sessions()
    sessions.observe(peer("first", 1, 0))
    for number in range(bounds.KNOWN_SESSIONS_MAX):
        sessions.observe(peer(str(number), 1, 0))
    assert len(sessions._newest) == bounds.KNOWN_SESSIONS_MAX
    assert "first" not in sessions._newest


# --- addresses ---
@pytest.mark.parametrize(
    "address", ["127.0.0.1:9080", "localhost:1", "[::1]:65535", "node-1.example:9080", "unix:/run/peer"]
)
def test_addresses_become_endpoints(address: str) -> None:
    assert client_endpoint(MemoryReactorClock(), address, 1.0) is not None


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:1e3", "host:-1", "host:\u0661"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        client_endpoint(Clock(), address, 1.0)
