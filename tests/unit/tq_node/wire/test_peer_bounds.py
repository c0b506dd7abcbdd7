"""Deadlines, and bounds on all that waits (F35)."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.python.failure import Failure

from tests.support.wire_kinds import MemoryWire
from tests.support.wires import raw_box
from tests.unit.tq_node.wire.conftest import House
from tests.unit.tq_node.wire.talk import (
    deferred,
    failure_of,
    friend,
    hold_answers,
)
from tq_node.errors import Busy, OutcomeUnknown
from tq_node.wire import bounds
from tq_node.wire.amp import BoundedAMP, Responder
from tq_node.wire.calls import ByteBudget
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.commands import Data, Forward, Lane, Register
from tq_node.wire.errors import Internal, Stopped, Unread


# --- F35: deadlines and bounds ---
@deferred
async def test_a_call_that_is_not_answered_ends_and_then_the_connection(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    hold_answers(b)
    began_s = wire.reactor.seconds()
    slow = a.pool.ask(b.node_id, Register, b"x", deadline_s=1.0)
    other = a.pool.ask(b.node_id, Register, b"y", deadline_s=60.0)
    assert isinstance(await failure_of(wire, slow), OutcomeUnknown)
    assert wire.reactor.seconds() - began_s < 1.1
    assert a.pool.is_connected(b.node_id), "it may be the handler that is slow"
    assert isinstance(await failure_of(wire, other), OutcomeUnknown), "but nobody says so: the peer is gone"
    assert wire.reactor.seconds() - began_s < 1.1 + bounds.ANSWER_GRACE_S
    lost = a.handler.seen("lost")[0]
    assert not lost[4]
    assert "no answer" in lost[5]


@deferred
async def test_a_slow_handler_costs_its_caller_an_answer_and_nobody_the_connection(
    house: House, wire: MemoryWire
) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    waiting: Deferred[bytes] = Deferred()
    b.handler.answers["register"] = lambda _: waiting
    began_s = wire.reactor.seconds()
    assert isinstance(await failure_of(wire, a.pool.ask(b.node_id, Register, b"x", deadline_s=1.0)), OutcomeUnknown)
    assert 0.9 < wire.reactor.seconds() - began_s < 1.2
    await wire.sleep(bounds.ANSWER_GRACE_S * 2)
    assert a.pool.is_connected(b.node_id)
    assert b.listener._acceptor.budgets[Lane.CONSENSUS].held_bytes > 0, (
        "what the handler holds is counted until it is done"
    )
    waiting.callback(b"too late")
    wire.network.settle()
    assert b.listener._acceptor.budgets[Lane.CONSENSUS].held_bytes == 0
    assert not a.handler.seen("lost")


@deferred
async def test_a_call_may_be_given_up_by_its_caller(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    waiting: Deferred[bytes] = Deferred()
    b.handler.answers["register"] = lambda _: waiting
    call = a.pool.ask(b.node_id, Register, b"x")
    call.addErrback(lambda _: None)
    wire.network.settle()
    call.cancel()
    waiting.callback(b"nobody wants it")
    wire.network.settle()
    b.handler.answers.clear()
    assert await wire.wait(a.pool.ask(b.node_id, Register, b"y")) == b"y"


@deferred
async def test_what_handlers_work_on_is_bounded_in_number(house: House, wire: MemoryWire) -> None:
    node, peer = await friend(house)
    waiting: list[Deferred[bytes]] = []

    def wait(_: object) -> Deferred[bytes]:
        waiting.append(Deferred())
        return waiting[-1]

    node.handler.answers["propose"] = wait
    for _ in range(bounds.COMMANDS_UNDER_WAY_MAX):
        peer.say(b"Propose", body=b"x", within_ms=b"60000")
    wire.network.settle()
    assert not peer.boxes()
    peer.say(b"Propose", body=b"x", within_ms=b"60000")
    peer.say(b"Ping", session=b"0")
    wire.network.settle()
    refused, ping = peer.boxes()
    assert refused[b"_error_code"] == Busy.code.encode()
    assert b"session" in ping, "a ping always goes through"
    for answer in waiting:
        answer.callback(b"")
    wire.network.settle()
    assert len(peer.boxes()) == bounds.COMMANDS_UNDER_WAY_MAX


@deferred
async def test_what_handlers_work_on_is_bounded_in_bytes_over_all_peers(house: House, wire: MemoryWire) -> None:
    a, b, c = await house.node("a"), await house.node("b"), await house.node("c")
    await a.meet(b)
    await c.meet(b)
    waiting: list[Deferred[Any]] = []

    def wait(_: object) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    b.handler.answers["forward"] = wait
    call = [ForwardedCall("submit", bytes(bounds.BLOB_BYTES_MAX - 100))]
    results: list[Any] = []
    for number in range(40):
        (a, c)[number % 2].pool.forward(b.node_id, call, deadline_s=60.0).addBoth(results.append)
        wire.network.settle()
    assert b.listener._acceptor.budgets[Lane.BULK].held_bytes <= bounds.HELD_BYTES_MAX
    assert len(waiting) == bounds.HELD_BYTES_MAX // (bounds.BLOB_BYTES_MAX)
    assert len(results) == 40 - len(waiting)
    assert all(isinstance(result, Failure) and result.check(Busy) for result in results)
    assert await wire.wait(a.pool.ask(b.node_id, Register, b"x")) == b"x", "consensus has a budget of its own"
    for answer in waiting:
        answer.callback([ForwardedResult("", b"")])


class SlowTransport(StringTransport):
    """Takes 64 KiB, as Twisted's do, and the rest when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.reading = True
        self.aborted = False

    def write(self, data: bytes) -> None:
        super().write(data)
        self.waiting += len(data)
        if self.waiting > 65_536 and self.producer is not None:
            self.producer.pauseProducing()

    def drain(self) -> None:
        self.waiting = 0
        self.clear()
        if self.producer is not None:
            self.producer.resumeProducing()

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def abortConnection(self) -> None:
        self.aborted = True

    def is_reading(self) -> bool:
        return self.reading

    def is_aborted(self) -> bool:
        return self.aborted

    def setTcpNoDelay(self, enabled: bool) -> None: ...


def connected(wire: MemoryWire, connection: BoundedAMP) -> SlowTransport:
    transport = SlowTransport()
    connection.makeConnection(transport)
    return transport


def test_a_peer_that_does_not_read_fills_no_memory(wire: MemoryWire) -> None:
    """The dialler's side: calls are refused, messages dropped, and there is word when there is room."""
    told: list[str] = []
    connection = BoundedAMP(wire.reactor, 1_000_000, is_dialler=True)
    connection.writable = lambda: told.append("writable")  # type: ignore[method-assign]
    transport = connected(wire, connection)
    sent = 0
    while connection.tell(Data, body=bytes(100_000)):
        sent += 1
    assert 9 <= sent <= 10
    assert transport.waiting <= 1_000_000
    call = connection.call(Forward, calls=bytes(100_000))
    refused: list[Failure] = []
    call.addErrback(refused.append)
    assert refused[0].check(Busy)
    assert not told
    transport.drain()
    assert told == ["writable"]
    assert connection.tell(Data, body=bytes(100_000))
    assert told == ["writable"]
    connection.connectionLost(Failure(ConnectionDone()))
    assert not wire.reactor.getDelayedCalls()


def test_a_peer_that_asks_and_does_not_read_is_not_listened_to(wire: MemoryWire) -> None:
    """The listener's side: first nothing more is read from it, and past the bound it is given up."""
    answer = {"results": bytes(1_500_000)}
    waiting: list[Deferred[Any]] = []

    def respond(calls: bytes, within_ms: int) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    connection = BoundedAMP(wire.reactor, 1_000_000, is_dialler=False)
    connection.serve(Responder(Forward, respond))
    connection.trust(ByteBudget(1 << 30))
    transport = connected(wire, connection)
    for number in range(100):
        ask = {b"_command": b"Forward", b"_ask": b"%d" % number, b"calls": b"", b"within_ms": b"60000"}
        connection.dataReceived(raw_box(ask))
    waiting[0].callback(answer)
    assert not transport.is_reading()
    transport.drain()
    assert transport.is_reading()
    for asked in waiting[1:]:
        asked.callback(answer)
    assert isinstance(connection.ended, Unread)
    assert transport.is_aborted()
    assert transport.waiting < bounds.ANSWERS_BYTES_MAX + 2_000_000
    connection.connectionLost(Failure(ConnectionDone()))
    assert not wire.reactor.getDelayedCalls()


def test_a_connection_that_is_closed_in_order_flushes_for_a_moment_only(wire: MemoryWire) -> None:
    connection = BoundedAMP(wire.reactor, 1_000_000, is_dialler=True)
    transport = connected(wire, connection)
    call = connection.call(Register, body=b"x")
    unknown: list[Failure] = []
    call.addErrback(unknown.append)
    connection.close()
    assert unknown[0].check(OutcomeUnknown)
    assert transport.disconnecting
    assert transport.producer is None, "a paused one would keep the transport open"
    assert not transport.is_aborted()
    connection.dataReceived(b"whatever comes now")
    assert isinstance(connection.ended, Stopped)
    wire.reactor.advance(bounds.LINGER_S)
    assert transport.is_aborted()
    connection.connectionLost(Failure(ConnectionDone()))
    assert not wire.reactor.getDelayedCalls()
    assert not connection.tell(Data, body=b"x")


def test_answers_of_a_stranger_kind_are_not_believed(wire: MemoryWire) -> None:
    """Errors as AMP's own class sends them, parts without end, answers that lack a field."""
    for box, kind in (
        ({b"_error": b"1", b"_error_code": b"UNHANDLED", b"_error_description": b"Unhandled Command"}, Internal),
        ({b"_error": b"1", b"_error_code": b"UNKNOWN", b"_error_description": b"\xff"}, Internal),
        ({b"_answer": b"1"}, OutcomeUnknown),
    ):
        connection = BoundedAMP(wire.reactor, 1_000_000, is_dialler=True)
        connection.trust(ByteBudget(1))
        connected(wire, connection)
        failed: list[Failure] = []
        connection.call(Register, body=b"x").addErrback(failed.append)
        connection.dataReceived(raw_box(box))
        assert failed[0].check(kind), kind
        assert (connection.ended is None) is (kind is Internal)
        connection.connectionLost(Failure(ConnectionDone()))
    connection = BoundedAMP(wire.reactor, 1_000_000, is_dialler=True)
    connection.trust(ByteBudget(1))
    connected(wire, connection)
    failed = []
    connection.call(Forward, calls=b"").addErrback(failed.append)
    part = raw_box({b"_answer": b"1", b"_more": b""} | {b"results.%d" % n: bytes(60_000) for n in range(30)})
    for _ in range(6):
        connection.dataReceived(part)
    assert isinstance(connection.ended, Exception)
    assert failed[0].check(OutcomeUnknown)
    connection.connectionLost(Failure(ConnectionDone()))


def test_amp_s_own_names_are_bounded_too(wire: MemoryWire) -> None:
    connection = BoundedAMP(wire.reactor, 1_000_000, is_dialler=True)
    connection.trust(ByteBudget(1))
    transport = connected(wire, connection)
    assert not connection._served
    failed: list[Failure] = []
    connection.callRemote(Register, body=b"x", within_ms=1).addErrback(failed.append)
    assert connection.callRemote(Data, body=b"x") is None
    assert transport.value().count(b"_command") == 2
    assert connection.callRemote(amp.StartTLS).addErrback(failed.append) is not None
    connection.connectionLost(Failure(ConnectionDone()))
    assert len(failed) == 2
