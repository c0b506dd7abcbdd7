"""The handshake, and what it is refused with, on either side."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from twisted.internet.protocol import Factory
from twisted.protocols import amp

from tests.support.wire_kinds import MemoryWire
from tests.support.wires import CLUSTER, SECRET, WireNode, raw_peer
from tests.unit.tq_node.wire.conftest import House
from tests.unit.tq_node.wire.talk import (
    STRANGER_ID,
    deferred,
    greet,
    introduction,
    shake,
)
from tq_node.errors import TaskQueueError
from tq_node.wire import bounds, handshake
from tq_node.wire.amp import BoundedAMP, Responder
from tq_node.wire.commands import Greet, Hello, Lane, Prove, Register
from tq_node.wire.connector import Target
from tq_node.wire.errors import (
    HandshakeRefused,
    NoCommonProtocol,
    NotAMember,
    Removed,
    StaleSession,
    WrongCluster,
    WrongNode,
    WrongSecret,
)
from tq_node.wire.handshake import DIALLER, INTRODUCTIONS, LISTENER


# --- the handshake, byte by byte ---
@deferred
async def test_the_handshake_as_the_reference_page_tells_it(house: House, wire: MemoryWire) -> None:
    b = await house.node("b")
    b.handler.newborn = True
    peer = raw_peer(wire, "b")
    answer = greet(wire, peer)
    assert answer == {
        b"_answer": b"1",
        b"cluster": CLUSTER.encode(),
        b"name": b"b",
        b"newborn": b"1",
        b"has_tasks": b"0",
    }
    (greeting,) = b.handler.greetings
    assert (greeting.cluster, greeting.name, greeting.address, greeting.dialler) == (CLUSTER, "b", "b", "e")
    mine = introduction(wire)
    peer.say(b"Hello", hello=mine)
    wire.network.settle()
    theirs = peer.boxes()[0][b"hello"]
    assert INTRODUCTIONS.decode(theirs).node_id == b.node_id
    peer.say(b"Prove", proof=handshake.proof(SECRET, DIALLER, mine, theirs))
    wire.network.settle()
    assert peer.boxes()[0][b"proof"] == handshake.proof(SECRET, LISTENER, mine, theirs)
    peer.say(b"Register", body=b"hello", within_ms=b"1000")
    wire.network.settle()
    assert peer.boxes() == [{b"_answer": b"4", b"body": b"hello"}]


@deferred
async def test_a_stock_amp_peer_can_take_part(house: House, wire: MemoryWire) -> None:
    """The bytes are AMP's: Twisted's own class speaks with ours, errors and all."""
    b = await house.node("b")
    made: list[Any] = []
    wire.network.connect("b", Factory.forProtocol(amp.AMP)).addCallback(made.append)
    stock: amp.AMP = made[0]
    greeting: Any = stock.callRemote(Greet, cluster="", name="b", address="b", dialler="e")
    assert (await wire.wait(greeting))["cluster"] == CLUSTER
    mine = introduction(wire)
    hello: Any = stock.callRemote(Hello, hello=mine)
    theirs = (await wire.wait(hello))["hello"]
    proven: Any = stock.callRemote(Prove, proof=handshake.proof(SECRET, DIALLER, mine, theirs))
    assert (await wire.wait(proven))["proof"] == handshake.proof(SECRET, LISTENER, mine, theirs)
    body = os.urandom(200_000)
    registered: Any = stock.callRemote(Register, body=body, within_ms=1_000)
    assert (await wire.wait(registered))["body"] == body

    def refuse(_: object) -> bytes:
        raise Removed("node e was removed")

    b.handler.answers["register"] = refuse
    refused: Any = stock.callRemote(Register, body=body, within_ms=1_000)
    with pytest.raises(Removed, match="node e was removed"):
        await wire.wait(refused)


# --- what refuses a dialler ---
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cluster": "d" * 32}, WrongCluster),
        ({"target": "f" * 32}, WrongNode),
        ({"node_id": f"{'b':0>32}"}, WrongNode),
        ({"protocol_min": 2, "protocol_max": 3}, NoCommonProtocol),
    ],
)
@deferred
async def test_an_introduction_that_does_not_fit(
    house: House, wire: MemoryWire, changes: dict[str, Any], error: type[TaskQueueError]
) -> None:
    b = await house.node("b")
    peer = raw_peer(wire, "b")
    answer = shake(wire, peer, **changes)
    assert answer[b"_error_code"] == error.code.encode()
    assert peer.over()
    assert b.listener.refusals == {error.code: 1}
    assert not b.handler.asked


@deferred
async def test_a_wrong_secret_is_told_apart_by_neither_time_nor_more_words(house: House, wire: MemoryWire) -> None:
    b = await house.node("b")
    peer = raw_peer(wire, "b")
    answer = shake(wire, peer, secret=b"another secret of another cluster")
    assert answer[b"_error_code"] == WrongSecret.code.encode()
    assert b"proof" not in answer
    assert peer.over()
    assert not b.listener.peers


@deferred
async def test_a_proof_can_not_be_used_again(house: House, wire: MemoryWire) -> None:
    b = await house.node("b")
    first, second = raw_peer(wire, "b"), raw_peer(wire, "b")
    mine = introduction(wire)
    hellos = []
    for peer in (first, second):
        greet(wire, peer)
        peer.say(b"Hello", hello=mine)
        wire.network.settle()
        hellos.append(peer.boxes()[0][b"hello"])
    proof = handshake.proof(SECRET, DIALLER, mine, hellos[0])
    for peer in (first, second):
        peer.say(b"Prove", proof=proof)
        wire.network.settle()
    assert b"proof" in first.boxes()[0]
    assert second.boxes()[0][b"_error_code"] == WrongSecret.code.encode()
    assert [p.node_id for p in b.listener.peers] == [STRANGER_ID]


@deferred
async def test_the_handler_has_the_last_word(house: House, wire: MemoryWire) -> None:
    b = await house.node("b")

    def removed(_: object) -> None:
        raise Removed("node e was removed at index 7")

    b.handler.answers["admit"] = removed
    peer = raw_peer(wire, "b")
    answer = shake(wire, peer)
    assert answer[b"_error_code"] == b"removed"
    assert answer[b"_error_description"] == b"node e was removed at index 7"
    assert peer.over()
    assert not b.listener.peers


@deferred
async def test_an_old_run_is_refused_and_harms_nobody(house: House, wire: MemoryWire) -> None:
    """F14: the copied data directory says an incarnation that is known to be over."""
    b = await house.node("b")
    alive = raw_peer(wire, "b")
    assert b"proof" in shake(wire, alive, incarnation=5)
    clone = raw_peer(wire, "b")
    answer = shake(wire, clone, incarnation=4)
    assert answer[b"_error_code"] == StaleSession.code.encode()
    assert clone.over()
    assert not alive.over()
    assert [peer.incarnation for peer in b.listener.peers] == [5]


@deferred
async def test_nobody_can_close_a_peer_s_connection_without_the_secret(house: House, wire: MemoryWire) -> None:
    b = await house.node("b")
    alive = raw_peer(wire, "b")
    assert b"proof" in shake(wire, alive, incarnation=5)
    attacker = raw_peer(wire, "b")
    shake(wire, attacker, secret=b"guessed guessed guessed", incarnation=99)
    assert not alive.over()
    again = raw_peer(wire, "b")
    assert b"proof" in shake(wire, again, incarnation=5), "and its own run is not stale now"
    assert alive.over()
    assert b.listener.refusals["wrong_secret"] == 1


@pytest.mark.parametrize(
    "lacking",
    [{"cluster": None}, {"secret": None}, {"cluster": None, "secret": None}],
    ids=["cluster", "secret", "both"],
)
@deferred
async def test_a_node_that_has_not_joined_says_so(house: House, wire: MemoryWire, lacking: dict[str, Any]) -> None:
    await house.node("b", **lacking)
    peer = raw_peer(wire, "b")
    assert shake(wire, peer)[b"_error_code"] == NotAMember.code.encode()
    assert peer.over()


# --- what refuses a listener ---
@pytest.mark.parametrize(
    ("listener", "dialler", "error"),
    [
        ({"cluster": "d" * 32}, {}, WrongCluster),
        ({"secret": b"another secret altogether"}, {}, WrongSecret),
        ({"cluster": None}, {}, NotAMember),
        ({}, {"secret": None}, NotAMember),
    ],
)
@deferred
async def test_a_dialler_says_why_it_can_not_connect(
    house: House, listener: dict[str, Any], dialler: dict[str, Any], error: type[HandshakeRefused]
) -> None:
    a, b = await house.node("a", **dialler), await house.node("b", **listener)
    a.dial(b)
    await house.wire.until(lambda: len(a.handler.failures) >= 6, "three dials on each lane")
    assert {type(why) for why in a.handler.failures} == {error}
    assert not a.dialling._open


@deferred
async def test_another_node_at_the_address_is_not_taken_for_the_member(house: House) -> None:
    a, b = await house.node("a"), await house.node("b")
    stale = msgspec.structs.replace(b.member, node_id="f" * 32)
    a.pool.set_members([stale])
    a.pool.startService()
    await house.wire.until(lambda: a.handler.failures, "a refusal")
    assert isinstance(a.handler.failures[0], WrongNode)


@deferred
async def test_a_listener_that_does_not_know_the_secret_is_found_out(house: House, wire: MemoryWire) -> None:
    """It can relay nothing and make nothing up; and all it has got is a proof that fits this connection only."""
    a, b = await house.node("a"), await house.node("b")

    def forge(proof: bytes) -> dict[str, Any]:
        return {"proof": proof}  # the dialler's own, sent back

    _replace_prove(b, forge)
    a.dial(b)
    await wire.until(lambda: len(a.handler.failures) >= 2, "both lanes refused")
    assert {type(why) for why in a.handler.failures} == {WrongSecret}
    assert not a.handler.seen("up")


def _replace_prove(node: WireNode, forge: Callable[..., dict[str, Any]]) -> None:
    build = node.listener._factory.buildProtocol

    def build_forger(address: Any) -> Any:
        made: Any = build(address)
        made._prove = forge
        return made

    factory: Any = node.listener._factory
    factory.buildProtocol = build_forger


@pytest.mark.parametrize("changes", [{"node_id": "f" * 32}, {"target": "f" * 32}, {"lane": Lane.BULK}], ids=str)
@deferred
async def test_a_member_that_answers_for_another_is_found_out(
    house: House, wire: MemoryWire, changes: dict[str, Any]
) -> None:
    """It knows the secret, and does not mind whom it is taken for: the dialler does."""
    a = await house.node("a")
    theirs = WireNode(wire, "b").local.introduction(CLUSTER, a.node_id, Lane.CONSENSUS, bytes(32))
    said = INTRODUCTIONS.encode(msgspec.structs.replace(theirs, **changes))

    def build() -> BoundedAMP:
        made = BoundedAMP(wire.reactor, bounds.CONSENSUS_SEND_BYTES_MAX, is_dialler=False)
        made.serve(
            Responder(Greet, lambda **_: {"cluster": CLUSTER, "name": "b", "newborn": False, "has_tasks": False}),
            Responder(Hello, lambda hello: {"hello": said}),
            Responder(Prove, lambda proof: {"proof": proof}),
        )
        return made

    wire.network.listening["b"] = Factory.forProtocol(build)
    dialling = a.dialling.open(Target("b", f"{'b':0>32}", "b"), Lane.CONSENSUS)
    with pytest.raises(WrongNode):
        await wire.wait(dialling)


@deferred
async def test_a_node_that_dials_itself_notices(house: House) -> None:
    a = await house.node("a")
    with pytest.raises(WrongNode, match="itself"):
        await house.wire.wait(a.pool.dial("a"))
