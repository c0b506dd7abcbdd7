"""Authenticated peers: bad boxes, silence, sessions (F34, F37, F42)."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.conftest import LoggedErrors
from tests.support.wire_kinds import MemoryWire
from tests.support.wires import WireNode, raw_box, raw_peer
from tests.unit.tq_node.wire.conftest import House
from tests.unit.tq_node.wire.talk import (
    STRANGER_ID,
    deferred,
    failure_of,
    friend,
    hold_answers,
    later_run,
    shake,
)
from tq_node.errors import OutcomeUnknown
from tq_node.raft.messages import Heartbeat
from tq_node.wire import bounds
from tq_node.wire.codec import encode_messages
from tq_node.wire.commands import Lane, Propose, Register
from tq_node.wire.connector import DialledPeer
from tq_node.wire.errors import MalformedBox, PeerUnreachable, Superseded, TooSlow, UnknownCommand, Unread


# --- F34: nothing that a peer says in a bad form closes more than it must ---
@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        (b"StartTLS", {}, b"unknown_command"),
        (b"Greet", {}, b"unknown_command"),
        (b"_ProtocolSwitch", {}, b"unknown_command"),
        (b"locateResponder", {}, b"unknown_command"),
        (b"\xff" * 200, {}, b"unknown_command"),
        (b"Forward", {"calls": b"\1\x90", "within_ms": b"1"}, b"unknown_command"),  # of the other lane
        (b"Register", {}, b"malformed_box"),
        (b"Register", {"body": b"x"}, b"malformed_box"),
        (b"Register", {"body": b"x", "within_ms": b"-5"}, b"malformed_box"),
        (b"Register", {"body": b"x", "within_ms": b"999999999"}, b"malformed_box"),
        (b"Ping", {"session": b"1e3"}, b"malformed_box"),
    ],
)  # fmt: skip
@deferred
async def test_bad_commands_are_answered(
    house: House, wire: MemoryWire, command: bytes, arguments: dict[str, bytes], code: bytes
) -> None:
    node, peer = await friend(house)
    tag = peer.say(command, **arguments)
    good = peer.say(b"Register", body=b"good", within_ms=b"1000")
    wire.network.settle()
    bad, answered = peer.boxes()
    assert (bad[b"_error"], bad[b"_error_code"]) == (tag, code)
    assert len(bad[b"_error_description"]) <= bounds.DETAIL_CHARS_MAX
    assert answered == {b"_answer": good, b"body": b"good"}
    assert not peer.over()
    assert [name for name, _, _ in node.handler.asked] == ["admit", "register"]


@pytest.mark.parametrize(
    "data",
    [
        raw_box({b"_answer": b"99", b"body": b"x"}),
        raw_box({b"_error": b"99", b"_error_code": b"x", b"_error_description": b"x"}),
        raw_box({b"neither": b"nor"}),
        raw_box({b"_command": b"Raft", b"messages": b"\1garbage"}),
        raw_box({b"_command": b"Raft", b"messages": next(iter(encode_messages([Heartbeat("x", "b", 1, 1, 1)])))[0]}),  # type: ignore[arg-type]
        raw_box({b"_command": b"Raft"}),
        raw_box({b"%d" % number: b"" for number in range(bounds.BOX_KEYS_MAX + 1)}),
        b"".join(b"\0\1%c\xff\xff" % number + bytes(65_535) for number in range(1, 40)),
    ],
)
@deferred
async def test_what_breaks_the_protocol_closes_the_connection(house: House, wire: MemoryWire, data: bytes) -> None:
    node, peer = await friend(house)
    peer.write(data)
    wire.network.settle()
    assert peer.over()
    assert not node.handler.messages
    assert not node.listener.peers
    _, again = await friend(house)
    assert not again.over()


@deferred
async def test_a_dialler_serves_nothing(house: House, wire: MemoryWire) -> None:
    """A listener that is asked may not ask back."""
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    (connection, *_) = [c for c in b.listener._factory.connections if c.peer is not None]
    connection.transport.write(raw_box({b"_command": b"Ping", b"_ask": b"1", b"session": b"0"}))
    await wire.until(lambda: a.handler.seen("lost"), "the connection given up")
    assert not a.handler.seen("lost")[0][4]


# --- silence ---
@deferred
async def test_a_quiet_lane_stays_open(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    await wire.sleep(60.0)
    assert not a.handler.seen("lost")
    assert len(b.listener.peers) == 2


@deferred
async def test_a_peer_that_no_longer_answers_pings_is_given_up(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    hold_answers(b)
    began_s = wire.reactor.seconds()
    await wire.until(lambda: a.handler.seen("lost"), "the lane given up")
    assert wire.reactor.seconds() - began_s <= bounds.PING_S + bounds.PING_ANSWER_S_MAX + 0.1


async def ask_each(seconds: float, a: WireNode, b: WireNode, wire: MemoryWire, times: int) -> None:
    """Ask as heartbeats do."""
    for _ in range(times):
        a.pool.ask(b.node_id, Register, b"x", 1.0).addErrback(lambda why: why.trap(OutcomeUnknown, PeerUnreachable))
        await wire.sleep(seconds)


@deferred
async def test_a_lane_that_other_calls_prove_is_not_pinged(
    house: House, wire: MemoryWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    pinged: list[float] = []
    ping = DialledPeer.ping

    def noted(connection: DialledPeer) -> Coroutine[Deferred[Any], Any, bool]:
        if connection.lane is Lane.CONSENSUS:
            pinged.append(wire.reactor.seconds())
        return ping(connection)

    monkeypatch.setattr(DialledPeer, "ping", noted)
    await ask_each(bounds.PING_S / 2, a, b, wire, 40)
    assert len(pinged) <= 1, "before the first call"
    pinged.clear()
    await wire.sleep(10.0)
    assert len(pinged) >= 10.0 / bounds.PING_S - 2, "as soon as nothing else is asked"


@deferred
async def test_a_peer_that_no_longer_answers_is_given_up_as_soon_while_others_ask(
    house: House, wire: MemoryWire
) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    await ask_each(bounds.PING_S / 2, a, b, wire, 10)
    hold_answers(b)
    passed_s = 0.0
    while not a.handler.seen("lost"):
        await ask_each(bounds.PING_S / 2, a, b, wire, 1)
        passed_s += bounds.PING_S / 2
        assert passed_s <= bounds.PING_S + bounds.PING_ANSWER_S_MAX + 0.1


@deferred
async def test_a_peer_that_says_nothing_any_more_is_given_up(house: House, wire: MemoryWire) -> None:
    node, peer = await friend(house)
    await wire.sleep(bounds.IDLE_S_MAX - 1.0)
    peer.say(b"Ping", session=b"0")
    await wire.sleep(bounds.IDLE_S_MAX - 1.0)
    assert not peer.over()
    await wire.sleep(1.5)
    assert peer.over()
    assert not node.listener.peers


# --- F42: sessions ---
@deferred
async def test_a_new_connection_takes_the_place_of_the_old_one(house: House, wire: MemoryWire) -> None:
    node, old = await friend(house)
    _, new = await friend(house)
    assert old.over()
    assert not new.over()
    assert len(node.listener.peers) == 1


@deferred
async def test_a_newer_run_closes_both_lanes_of_the_older(house: House, wire: MemoryWire) -> None:
    node, consensus = await friend(house, incarnation=1)
    _, bulk = await friend(house, incarnation=1, lane=Lane.BULK)
    assert not consensus.over(), "another lane of the same run"
    new = await later_run(house)
    assert consensus.over()
    assert bulk.over()
    assert [(peer.lane, peer.incarnation) for peer in node.listener.peers] == [(Lane.CONSENSUS, 2)]
    assert not new.over()


@deferred
async def test_what_a_superseded_connection_said_last_is_not_heard(house: House, wire: MemoryWire) -> None:
    """The bytes are here, but they are of a run that is over."""
    node, _ = await friend(house, incarnation=1)
    ((batch, _),) = encode_messages([Heartbeat(STRANGER_ID, node.node_id, 1, 1, 1)])  # type: ignore[arg-type]
    (accepted,) = node.listener._factory.connections
    await later_run(house)
    accepted.dataReceived(raw_box({b"_command": b"Raft", b"messages": batch}))
    assert not node.handler.messages
    assert isinstance(accepted.ended, Superseded)


@deferred
async def test_a_box_after_the_one_that_ends_a_connection_is_not_heard(house: House, wire: MemoryWire) -> None:
    node, peer = await friend(house)
    ((batch, _),) = encode_messages([Heartbeat(STRANGER_ID, node.node_id, 1, 1, 1)])  # type: ignore[arg-type]
    peer.write(raw_box({b"neither": b"nor"}) + raw_box({b"_command": b"Raft", b"messages": batch}))
    wire.network.settle()
    assert peer.over()
    assert not node.handler.messages


@deferred
async def test_what_comes_after_a_message_that_ended_the_connection_is_not_heard(
    house: House, wire: MemoryWire
) -> None:
    """Two messages in one packet; while the first is handled, a newer run of the sender has come."""
    node, peer = await friend(house)
    (accepted,) = node.listener._factory.connections
    node.handler.answers["raft"] = lambda _: accepted.give_up(Superseded())
    ((batch, _),) = encode_messages([Heartbeat(STRANGER_ID, node.node_id, 1, 1, 1)])  # type: ignore[arg-type]
    peer.write(raw_box({b"_command": b"Raft", b"messages": batch}) * 2)
    wire.network.settle()
    assert peer.over()
    assert len(node.handler.messages) == 1


@deferred
async def test_a_bug_of_the_wire_itself_is_no_evidence_against_the_peer(
    house: House, wire: MemoryWire, logged_errors: LoggedErrors
) -> None:
    """R5a: the connection ends, but by this side's doing."""
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    connection = a.pool.connection(b.node_id, Lane.CONSENSUS)
    assert connection is not None
    connection._calls.answered = None  # type: ignore[method-assign, assignment]
    await wire.until(lambda: a.handler.seen("lost"), "the next ping's answer")
    assert not a.handler.seen("lost")[0][4]
    assert len(logged_errors.flush(TypeError)) == 1


@deferred
async def test_a_session_rises_and_does_not_fall(house: House, wire: MemoryWire) -> None:
    node, consensus = await friend(house, session=0)
    _, bulk = await friend(house, session=0, lane=Lane.BULK)
    for peer, session in ((consensus, b"7"), (consensus, b"3"), (bulk, b"7")):
        peer.say(b"Ping", session=session)
        wire.network.settle()
    assert [peer.session for peer in node.listener.peers] == [7, 7]
    _, again = await friend(house, session=7)
    assert consensus.over()
    assert not bulk.over(), "it is of the same session"
    stale = raw_peer(wire, "b")
    assert shake(wire, stale, session=6)[b"_error_code"] == b"stale_session"
    assert not again.over()


@deferred
async def test_answers_of_a_run_that_is_over_do_not_count(house: House, wire: MemoryWire) -> None:
    """The old process hangs and holds its connections; the new one, elsewhere, has introduced itself."""
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    hold_answers(b)
    waiting: Deferred[bytes] = Deferred()
    b.handler.answers["register"] = lambda _: waiting
    call = a.pool.ask(b.node_id, Register, b"x")
    wire.network.settle()
    new = WireNode(wire, "n", node_id=b.node_id, incarnation=2)
    house.nodes.append(await new.listen())
    new.dial(a)
    assert isinstance(await failure_of(wire, call), OutcomeUnknown)
    assert a.handler.seen("lost")
    assert not a.handler.seen("lost")[0][4], "no evidence: this side closed it"
    waiting.callback(b"late")
    await wire.sleep(1.0)
    assert {type(why) for why in a.handler.failures} == {Superseded}, "the old one is not let in again"


@deferred
async def test_a_newer_session_closes_lanes_that_still_say_the_older(house: House, wire: MemoryWire) -> None:
    _, bulk = await friend(house, session=3, lane=Lane.BULK)
    await friend(house, session=4)
    assert bulk.over()


def test_the_errors_used_here_are_of_the_kinds_they_should_be() -> None:
    assert all(kind.closes for kind in (TooSlow, Superseded, Unread))
    assert not any(kind.closes for kind in (MalformedBox, UnknownCommand))
    assert Propose.is_timed
