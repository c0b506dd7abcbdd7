"""One secret of the cluster takes the place of another while connections are open and in use."""

from __future__ import annotations

import pytest

from tests.support.wire_kinds import MemoryWire
from tests.support.wires import SECRET, WireNode, raw_peer
from tests.unit.tq_node.wire.conftest import House
from tests.unit.tq_node.wire.talk import deferred, friend, shake
from tq_node.wire import bounds, handshake
from tq_node.wire.commands import Lane, Register
from tq_node.wire.errors import WrongSecret
from tq_node.wire.handshake import DIALLER, DIALLER_AGAIN, LISTENER_AGAIN

NEW = b"the secret that takes its place"
AGES_S = 2 * (bounds.IDLE_S_MAX + bounds.RENEW_S_MAX)


def holds(node: WireNode, *secrets: bytes) -> None:
    """Its file holds these from now on."""
    node.local.secret, node.local.other_secrets = secrets[0], secrets[1:]


async def works(wire: MemoryWire, a: WireNode, b: WireNode) -> None:
    assert await wire.wait(a.pool.ask(b.node_id, Register, b"said")) == b"said"


async def pair(house: House) -> tuple[WireNode, WireNode]:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    await b.meet(a)
    return a, b


@deferred
async def test_a_secret_is_replaced_without_a_connection_lost(house: House, wire: MemoryWire) -> None:
    """Each step at one node after the other, as in the how-to; the last one drops the old secret for good."""
    a, b = await pair(house)
    ups = [len(node.handler.seen("up")) for node in (a, b)]
    for held in ((SECRET, NEW), (NEW, SECRET), (NEW,)):
        for node in (a, b):
            holds(node, *held)
            await wire.sleep(3.0)
            await works(wire, a, b)
            await works(wire, b, a)
    await wire.sleep(AGES_S)
    await works(wire, a, b)
    assert [len(node.handler.seen("up")) for node in (a, b)] == ups
    assert not a.handler.seen("lost") + b.handler.seen("lost")
    assert b"error_code" in b"".join(shake(wire, raw_peer(wire, "b")))
    assert b.listener.refusals == {"wrong_secret": 1}


@pytest.mark.parametrize("shown", [SECRET, NEW])
@deferred
async def test_whoever_shows_either_of_two_is_let_in(house: House, wire: MemoryWire, shown: bytes) -> None:
    b = await house.node("b", secret=SECRET, other_secrets=(NEW,))
    a = await house.node("a", secret=shown)
    await a.meet(b)
    await works(wire, a, b)


@deferred
async def test_a_third_is_not(house: House, wire: MemoryWire) -> None:
    b = await house.node("b", other_secrets=(NEW,))
    assert shake(wire, raw_peer(wire, "b"), secret=b"guessed guessed guessed")[b"_error_code"] == b"wrong_secret"
    assert b.listener.refusals == {"wrong_secret": 1}


@deferred
async def test_only_the_first_is_shown(house: House, wire: MemoryWire) -> None:
    """A listener that was not given it refuses the dialler, whatever else that accepts."""
    a, b = await house.node("a", secret=NEW, other_secrets=(SECRET,)), await house.node("b")
    a.dial(b)
    await wire.until(lambda: a.handler.failures, "a refusal")
    assert isinstance(a.handler.failures[0], WrongSecret)


@deferred
async def test_who_knows_only_the_dropped_secret_is_put_out(house: House, wire: MemoryWire) -> None:
    """A connection that a thief has kept open; it may talk on, and ping, for a bounded time."""
    b, thief = await friend(house)
    holds(b, NEW)
    for tag in range(int(AGES_S)):
        if thief.over():
            break
        await wire.sleep(1.0)
        thief.say(b"Ping", session=b"%d" % tag)
    assert thief.over()
    assert tag <= bounds.IDLE_S_MAX + bounds.RENEW_S_MAX + 2


@deferred
async def test_a_connection_is_proven_anew_by_a_secret_that_is_known(house: House, wire: MemoryWire) -> None:
    """Neither by another one, nor by what was said in the handshake; and each proof fits one connection."""
    b, peer = await friend(house)
    (connection,) = b.listener._factory.connections
    hellos = connection._hellos
    other = raw_peer(wire, "b")
    shake(wire, other, node_id="f" * 32)
    for said in (
        handshake.proof(b"guessed guessed guessed", DIALLER_AGAIN, *hellos),
        handshake.proof(SECRET, DIALLER, *hellos),
        handshake.proof(SECRET, LISTENER_AGAIN, *hellos),
    ):
        peer.say(b"Renew", proof=said)
        wire.network.settle()
        assert peer.boxes()[0][b"_error_code"] == b"unknown_secret"
    good = handshake.proof(SECRET, DIALLER_AGAIN, *hellos)
    other.say(b"Renew", proof=good)
    wire.network.settle()
    assert other.boxes()[0][b"_error_code"] == b"unknown_secret"
    peer.say(b"Renew", proof=good)
    wire.network.settle()
    assert peer.boxes()[0][b"proof"] == handshake.proof(SECRET, LISTENER_AGAIN, *hellos)
    assert not peer.over()


@deferred
async def test_a_new_secret_that_the_other_end_lacks_waits_for_as_long_as_the_old_one_counts(
    house: House, wire: MemoryWire
) -> None:
    a, b = await pair(house)
    holds(a, NEW, SECRET)
    await wire.sleep(AGES_S)
    await works(wire, a, b)
    holds(a, NEW)
    await wire.until(lambda: not a.pool.is_connected(b.node_id, Lane.CONSENSUS), "the end")
    assert "does not know the secret" in a.handler.seen("lost")[0][5]


@deferred
async def test_a_listener_that_only_says_that_it_knows_the_new_secret_is_found_out(
    house: House, wire: MemoryWire
) -> None:
    """It was let in by the old one, and answers the proof with whatever it likes."""
    a, b = await pair(house)
    for connection in list(b.listener._factory.connections):
        replies = {**connection._served}
        replies[b"Renew"] = replies[b"Renew"]._replace(respond=lambda proof: {"proof": proof})
        connection._served = replies
    holds(a, NEW, SECRET)
    await wire.until(lambda: a.handler.seen("lost"), "the end")
    assert "differs" in a.handler.seen("lost")[0][5]
