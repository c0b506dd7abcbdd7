"""Handshakes byte by byte, and peers that then say whatever a test wants."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.support.wire_kinds import MemoryWire
from tests.support.wires import CLUSTER, SECRET, RawPeer, WireNode, raw_peer
from tests.unit.tq_node.wire.conftest import House
from tq_node.wire import bounds, handshake
from tq_node.wire.commands import Lane
from tq_node.wire.handshake import DIALLER, INTRODUCTIONS

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
STRANGER_ID = "e" * 32


async def failure_of(wire: MemoryWire, answer: Deferred[Any]) -> Exception:
    try:
        await wire.wait(answer)
    except Exception as why:
        return why
    pytest.fail("it succeeded")


def introduction(wire: MemoryWire, **changes: Any) -> bytes:
    stranger = WireNode(wire, "e", node_id=STRANGER_ID).local
    made = stranger.introduction(CLUSTER, "", Lane.CONSENSUS, os.urandom(32))
    return INTRODUCTIONS.encode(msgspec.structs.replace(made, **changes))


def greet(wire: MemoryWire, peer: RawPeer) -> dict[bytes, bytes]:
    peer.say(b"Greet", cluster=CLUSTER.encode(), name=b"b", address=b"b", dialler=b"e")
    wire.network.settle()
    (answer,) = peer.boxes()
    return answer


def shake(wire: MemoryWire, peer: RawPeer, secret: bytes = SECRET, **changes: Any) -> dict[bytes, bytes]:
    """The whole handshake; the last answer."""
    (answer,) = ask_in(wire, peer, secret, **changes)
    return answer


def ask_in(wire: MemoryWire, peer: RawPeer, secret: bytes = SECRET, **changes: Any) -> list[dict[bytes, bytes]]:
    """As ``shake``; nothing if it is to wait."""
    greet(wire, peer)
    mine = introduction(wire, **changes)
    peer.say(b"Hello", hello=mine)
    wire.network.settle()
    (answer,) = peer.boxes()
    if b"_error" in answer:
        return [answer]
    peer.say(b"Prove", proof=handshake.proof(secret, DIALLER, mine, answer[b"hello"]))
    wire.network.settle()
    return peer.boxes()


async def friend(house: House, **changes: Any) -> tuple[WireNode, RawPeer]:
    """A node, and somebody who has proven to be a peer and now speaks in bytes."""
    node = house.nodes[0] if house.nodes else await house.node("b")
    peer = raw_peer(house.wire, "b")
    assert b"proof" in shake(house.wire, peer, **changes)
    return node, peer


async def later_run(house: House, incarnation: int = 2) -> RawPeer:
    """The next run of ``friend``, of which the node does not know that it has ended: it is just silent."""
    peer = raw_peer(house.wire, "b")
    assert ask_in(house.wire, peer, incarnation=incarnation) == []
    await house.wire.sleep(bounds.EARLIER_RUN_S + 0.01)
    (answer,) = peer.boxes()
    assert b"proof" in answer
    return peer


def hold_answers(node: WireNode) -> None:
    """What the node says no longer arrives: nor answers, nor pings."""
    for connection in node.listener._factory.connections:
        connection.transport.write = lambda data: None
