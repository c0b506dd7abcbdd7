"""A later run of a node, or a copy of its directory: what tells them apart is whether the earlier run still answers (F14)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.wire_kinds import MemoryWire
from tests.support.wires import SECRET, WireNode, accepted, raw_peer
from tests.unit.tq_node.wire.conftest import House
from tests.unit.tq_node.wire.talk import ask_in, deferred, friend, greet, hold_answers, introduction, later_run
from tq_node.wire import bounds, handshake
from tq_node.wire.commands import Lane
from tq_node.wire.connector import Target
from tq_node.wire.errors import EarlierRun, HandshakeRefused, Removed, StaleSession, Superseded, Unproven
from tq_node.wire.handshake import DIALLER, LISTENER


async def met(house: House) -> tuple[WireNode, WireNode]:
    """Two nodes with all four connections between them."""
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    await b.meet(a)
    return a, b


async def run_of(house: House, node: WireNode, incarnation: int) -> WireNode:
    """Another process with that node's identity, at an address of its own."""
    made = WireNode(house.wire, f"{node.name}{incarnation}", node_id=node.node_id, incarnation=incarnation)
    house.nodes.append(await made.listen())
    return made


# --- copies ---
@deferred
async def test_a_copy_of_a_node_that_lives_is_refused_and_harms_nobody(house: House, wire: MemoryWire) -> None:
    a, b = await met(house)
    events = len(a.handler.events), len(b.handler.events)
    copy = await run_of(house, b, 7)
    began_s = wire.reactor.seconds()
    copy.dial(a)
    await wire.until(lambda: copy.handler.failures, "it is refused")
    assert wire.reactor.seconds() - began_s < 0.2, "at once: the original was asked"
    await wire.sleep(3.0)
    assert {type(why) for why in copy.handler.failures} == {StaleSession}
    assert (len(a.handler.events), len(b.handler.events)) == events, "not a lane was lost, nor a new one let in"


@deferred
async def test_the_original_s_own_next_run_is_not_taken_for_the_copy(house: House, wire: MemoryWire) -> None:
    """It has the very incarnation that the copy had."""
    a, b = await met(house)
    copy = await run_of(house, b, 2)
    copy.dial(a)
    await wire.until(lambda: copy.handler.failures, "the copy is refused")
    await copy.stop()
    await b.stop()
    again = await run_of(house, b, 2)
    again.dial(a)
    await wire.until(lambda: again.pool.is_connected(a.node_id), "it is let in")
    assert not again.handler.failures


# --- the next run ---
@deferred
async def test_after_the_end_of_the_earlier_no_time_is_lost(house: House, wire: MemoryWire) -> None:
    a, b = await met(house)
    await b.stop()
    again = await run_of(house, b, 2)
    began_s = wire.reactor.seconds()
    again.dial(a)
    await wire.until(lambda: again.pool.is_connected(a.node_id), "it is let in")
    assert wire.reactor.seconds() - began_s < 0.05
    assert not again.handler.failures


@deferred
async def test_an_earlier_one_that_sleeps_is_replaced(house: House, wire: MemoryWire) -> None:
    """No packet says that it has ended: the machine lost its power, or the process is stopped."""
    a, b = await met(house)
    hold_answers(b)
    for lane in Lane:
        connection = b.pool.connection(a.node_id, lane)
        assert connection is not None
        connection.transport.write = lambda data: None
    again = await run_of(house, b, 2)
    began_s = wire.reactor.seconds()
    again.dial(a)
    await wire.until(lambda: again.pool.is_connected(a.node_id), "it is let in")
    assert bounds.EARLIER_RUN_S - 0.01 < wire.reactor.seconds() - began_s < bounds.EARLIER_RUN_S + 0.1
    assert {why for why in again.handler.failures if not isinstance(why, EarlierRun)} == set()


@deferred
async def test_late_words_of_the_dead_make_nobody_a_copy(house: House, wire: MemoryWire) -> None:
    """They only take it longer: what was sent before may arrive at any time."""
    _, old = await friend(house, incarnation=1)
    for _ in range(6):
        new = raw_peer(wire, "b")
        assert ask_in(wire, new, incarnation=2) == []
        await wire.sleep(0.5)
        old.say(b"Ping", session=b"0")
        await wire.sleep(0.1)
        (answer,) = new.boxes()
        assert answer[b"_error_code"] == b"earlier_run"
        assert new.over()
    await later_run(house)
    assert old.over()


@deferred
async def test_the_end_of_the_earlier_is_noticed_meanwhile(house: House, wire: MemoryWire) -> None:
    """Its last packet comes late."""
    _, old = await friend(house, incarnation=1)
    new = raw_peer(wire, "b")
    assert ask_in(wire, new, incarnation=2) == []
    await wire.sleep(0.3)
    assert not new.boxes()
    assert old.transport is not None
    old.transport.loseConnection()
    await wire.sleep(0.1)
    (answer,) = new.boxes()
    assert b"proof" in answer


@deferred
async def test_a_listener_that_slept_does_not_take_the_living_for_silent(house: House, wire: MemoryWire) -> None:
    """F40: the time that it waits for has passed, and the words of the earlier run have not been read yet."""
    a, b = await met(house)
    copy = await run_of(house, b, 7)
    settle, wire.network.settle = wire.network.settle, lambda: None  # type: ignore[method-assign]
    copy.dial(a)
    settle()
    wire.reactor.advance(bounds.EARLIER_RUN_S + 2.0)
    wire.network.settle = settle  # type: ignore[method-assign]
    await wire.until(lambda: copy.handler.failures, "it is refused")
    assert {type(why) for why in copy.handler.failures} == {StaleSession}
    assert not b.handler.seen("lost")


@deferred
async def test_who_waits_is_sent_away_when_the_listener_stops(house: House, wire: MemoryWire) -> None:
    node, _ = await friend(house, incarnation=1)
    new = raw_peer(wire, "b")
    assert ask_in(wire, new, incarnation=2) == []
    await node.stop()
    wire.network.settle()
    assert new.over()


@deferred
async def test_who_does_not_wait_leaves_nothing_behind(house: House, wire: MemoryWire) -> None:
    a, b = await met(house)
    hold_answers(b)
    guests = len(accepted(a.listener))
    new = raw_peer(wire, "a")
    greeted = greet(wire, new)
    mine = introduction(wire, node_id=b.node_id, name="b", incarnation=2)
    new.say(b"Hello", hello=mine)
    wire.network.settle()
    (answer,) = new.boxes()
    assert greeted[b"name"] == b"a"
    new.say(b"Prove", proof=handshake.proof(SECRET, DIALLER, mine, answer[b"hello"]))
    wire.network.settle()
    assert not new.boxes(), "the earlier run is being asked"
    new.say(b"Ping", session=b"0")
    wire.network.settle()
    assert new.over(), "nothing is served meanwhile"
    await wire.sleep(bounds.EARLIER_RUN_S + 0.1)
    assert len(accepted(a.listener)) == guests
    assert [peer.incarnation for peer in a.listener.peers if peer.node_id == b.node_id] == [1, 1]


# --- who may say so ---
@pytest.mark.parametrize("step", ["greeted", "admit"])
@pytest.mark.parametrize("word", ["removed", "stale_session"])
@deferred
async def test_an_impostor_ends_nobody(house: House, wire: MemoryWire, step: str, word: str) -> None:
    """It listens where a member was, and says what would end this one, before or instead of a proof."""
    a, b = await house.node("a"), await house.node("b", secret=b"not the cluster's secret, a guess")

    def refuse(_: object) -> Any:
        raise _refusal(word)

    if step == "greeted":
        b.handler.greeted = refuse  # type: ignore[method-assign, assignment]
    else:
        _believe_anybody(b)
        b.handler.answers["admit"] = refuse
    a.dial(b)
    await wire.until(lambda: len(a.handler.failures) >= 2, "both lanes refused")
    assert {type(why) for why in a.handler.failures} == {Unproven}
    assert word in str(a.handler.failures[0])


@deferred
async def test_a_member_is_believed(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")

    def refuse(_: object) -> Any:
        raise _refusal("removed")

    b.handler.answers["admit"] = refuse
    a.dial(b)
    await wire.until(lambda: len(a.handler.failures) >= 2, "both lanes refused")
    assert {why.code for why in a.handler.failures if isinstance(why, HandshakeRefused)} == {"removed"}


@deferred
async def test_the_proof_of_one_refusal_is_none_of_another(house: House, wire: MemoryWire) -> None:
    """Nor is that of letting in, nor one made for another connection."""
    a, b = await house.node("a"), await house.node("b")
    connection = a.dialling.build(Target(b.address, b.node_id, b.name), Lane.CONSENSUS)
    a.dialling._open.pop(connection, None)  # it is never dialled
    why = _refusal("removed")
    mine, theirs = introduction(wire), introduction(wire, node_id=b.node_id)
    for role, hellos in (
        (handshake.refusing("starting"), (mine, theirs)),
        (LISTENER, (mine, theirs)),
        (DIALLER, (mine, theirs)),
        (handshake.refusing("removed"), (introduction(wire), theirs)),
    ):
        why.proof = handshake.proof(SECRET, role, *hellos)
        with pytest.raises(Unproven):
            connection._check_refusal(why, SECRET, mine, theirs)
    why.proof = handshake.proof(SECRET, handshake.refusing("removed"), mine, theirs)
    connection._check_refusal(why, SECRET, mine, theirs)


@deferred
async def test_a_connection_that_came_late_makes_nobody_a_copy(house: House, wire: MemoryWire) -> None:
    """It was registered while the handshake went on, and said so over another connection."""
    a, b = await house.node("a"), await house.node("b")

    def registered(_: object) -> None:
        a.local.session = 9
        b.sessions.observe(handshake.identity(a.local.introduction("c", "", Lane.BULK, bytes(32)), "here"))

    b.handler.answers["admit"] = registered
    a.dial(b)
    await wire.until(lambda: a.handler.failures, "it is refused")
    assert {type(why) for why in a.handler.failures} == {Superseded}
    await wire.until(lambda: a.pool.is_connected(b.node_id), "and comes again")


def _refusal(word: str) -> HandshakeRefused:
    kind = {"removed": Removed, "stale_session": StaleSession}[word]
    return kind(f"{word}, says whoever listens")


def _believe_anybody(node: WireNode) -> None:
    """It can't check a proof, so it doesn't."""
    build = node.listener._factory.buildProtocol

    def build_impostor(address: Any) -> Any:
        made: Any = build(address)
        made._prove = lambda proof: made._let_in(made._authentication.key(), made._candidate)
        return made

    factory: Any = node.listener._factory
    factory.buildProtocol = build_impostor
