"""Before a peer has proven who it is: what it may say, and for how long."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport

from tests.conftest import LoggedErrors
from tests.support.wire_kinds import MemoryWire
from tests.support.wires import RawPeer, accepted, raw_box, raw_peer
from tests.unit.tq_node.wire.conftest import House
from tests.unit.tq_node.wire.talk import (
    deferred,
    greet,
)
from tq_node.errors import TaskQueueError
from tq_node.wire import bounds


# --- order, commands, bytes and time ---
@pytest.mark.parametrize(
    "command", [b"Hello", b"Prove", b"Ping", b"Raft", b"Register", b"StartTLS", b"nonsense", b"_ampSwitch"]
)
@deferred
async def test_anything_but_the_greeting_first_ends_the_connection(
    house: House, wire: MemoryWire, command: bytes
) -> None:
    """F37: StartTLS, which AMP answers to anybody, among them."""
    b = await house.node("b")
    peer = raw_peer(wire, "b")
    peer.say(command, hello=b"x", proof=bytes(32), session=b"0", messages=b"", body=b"")
    wire.network.settle()
    assert peer.over()
    assert not peer.boxes()
    assert b.listener.refusals == {"out_of_order": 1}
    assert not b.handler.asked


@deferred
async def test_a_step_can_not_be_repeated(house: House, wire: MemoryWire) -> None:
    b = await house.node("b")
    peer = raw_peer(wire, "b")
    greet(wire, peer)
    peer.say(b"Greet", cluster=b"", name=b"", address=b"", dialler=b"e")
    wire.network.settle()
    assert peer.over()
    assert len(b.handler.greetings) == 1


@pytest.mark.parametrize(
    "data",
    [
        raw_box({b"_answer": b"1"}),
        raw_box({b"_error": b"1", b"_error_code": b"X", b"_error_description": b"x"}),
        raw_box({b"neither": b"nor"}),
        raw_box({b"_command": b"Greet", b"_ask": b"1" * 17}),
        raw_box({b"_command": b"Greet", b"_ask": b"1"}),
        raw_box(
            {b"_command": b"Greet", b"_ask": b"1", b"cluster": b"\xff", b"name": b"", b"address": b"", b"dialler": b"e"}
        ),
        raw_box({b"_command": b"Greet"}),
        b"\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + bytes(200),  # TLS, where there is none
        b"\0\1k\xff\xff",
        raw_box({b"%d" % number: b"" for number in range(9)}),
        bytes(5_000),
    ],
)
@deferred
async def test_a_bad_box_ends_the_connection(house: House, wire: MemoryWire, data: bytes) -> None:
    b = await house.node("b")
    peer = raw_peer(wire, "b")
    peer.write(data)
    wire.network.settle()
    assert peer.over()
    assert sum(b.listener.refusals.values()) == 1
    assert not accepted(b.listener)


@deferred
async def test_a_stranger_has_five_seconds(house: House, wire: MemoryWire) -> None:
    b = await house.node("b")
    silent, slow, stuck = (raw_peer(wire, "b") for _ in range(3))
    greet(wire, stuck)
    for _ in range(46):
        slow.write(b"\0" if not slow.tags else b"")
        slow.tags = 1
        await wire.sleep(0.1)
    assert not any(peer.over() for peer in (silent, slow, stuck))
    await wire.sleep(0.5)
    assert silent.over()
    assert slow.over()
    assert stuck.over()
    assert b.listener.refusals == {"too_slow": 3}


@deferred
async def test_a_silent_listener_does_not_hold_a_dialler(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    wire.network.listening["b"] = Factory.forProtocol(RawPeer)
    a.dial(b)
    await wire.sleep(bounds.HANDSHAKE_S_MAX + 0.1)
    assert [why.code for why in a.handler.failures if isinstance(why, TaskQueueError)] == ["too_slow", "too_slow"]


@deferred
async def test_strangers_crowd_out_only_the_oldest_of_them(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    crowd = [raw_peer(wire, "b") for _ in range(bounds.UNAUTHENTICATED_MAX)]
    assert not any(peer.over() for peer in crowd)
    await a.meet(b)
    assert [peer.over() for peer in crowd[:3]] == [True, True, False]
    for _ in range(10):
        raw_peer(wire, "b")
    assert len(b.listener._acceptor._unauthenticated) == bounds.UNAUTHENTICATED_MAX
    assert a.pool.is_connected(b.node_id)
    assert b.listener.refusals["crowded"] == 10


@deferred
async def test_a_bug_in_the_greeting_is_not_the_end_of_the_listener(
    house: House, wire: MemoryWire, logged_errors: LoggedErrors
) -> None:
    b = await house.node("b")
    b.handler.greeted = None  # type: ignore[method-assign, assignment]
    peer = raw_peer(wire, "b")
    assert greet(wire, peer)[b"_error_code"] == b"internal"
    assert peer.over()
    del b.handler.greeted
    assert b"cluster" in greet(wire, raw_peer(wire, "b"))
    assert len(logged_errors.flush(TypeError)) == 1
    assert len(b.handler.bugs) == 1


@deferred
async def test_file_descriptors_are_not_taken(house: House) -> None:
    """AMP takes them from a Unix socket, and keeps them."""
    b = await house.node("b")
    connection = b.listener._factory.buildProtocol(None)
    transport: Any = StringTransport()
    transport.abortConnection = transport.loseConnection
    connection.makeConnection(transport)
    connection.fileDescriptorReceived(7)
    assert transport.disconnecting
    assert not connection._descriptors
    connection.connectionLost()
