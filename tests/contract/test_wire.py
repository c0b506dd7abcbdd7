"""One suite over every kind of wire: in memory over iosim, TCP on loopback, mutual TLS."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from tests.conftest import LoggedErrors
from tests.support.wire_kinds import MemoryWire, TcpWire, TlsWire, Wire, make_cluster_ca
from tests.support.wires import WireNode, clean
from tq_node.errors import Busy, IdConflict, InvalidField, NoController, NotPrimary, OutcomeUnknown, TaskQueueError
from tq_node.limits import MIB
from tq_node.raft.messages import Append, Entry, EntryKind, Heartbeat, SnapshotChunk
from tq_node.raft.messages import Configuration as RaftConfiguration
from tq_node.raft.settings import RaftSettings
from tq_node.wire import bounds, errors
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.commands import Evidence, Lane, Ping, Propose, Register
from tq_node.wire.commands import Heartbeat as NodeHeartbeat
from tq_node.wire.errors import AnswerTooLarge, BoxTooLarge, Internal, PeerUnreachable, UnknownCommand

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca") / "made"
    done = make_cluster_ca(folder, "a", "b")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=["memory", "tcp", "tls"])
def wire(request: pytest.FixtureRequest, authority: Path) -> Wire:
    if request.param == "memory":
        return MemoryWire()
    return TcpWire() if request.param == "tcp" else TlsWire(authority)


@async_fixture()
async def pair(wire: Wire) -> AsyncIterator[tuple[WireNode, WireNode]]:
    """Two nodes that have met; after the test nothing of them may be left."""
    nodes = [await WireNode(wire, name).listen() for name in "ab"]
    try:
        await nodes[0].meet(nodes[1])
        await nodes[1].meet(nodes[0])
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            await node.stop()
    assert not list(clean(wire, nodes))


async def failure_of(wire: Wire, answer: Deferred[Any]) -> Exception:
    try:
        await wire.wait(answer)
    except Exception as why:
        return why
    pytest.fail("it succeeded")


@deferred
async def test_peers_know_one_another_after_the_handshake(pair: tuple[WireNode, WireNode]) -> None:
    a, b = pair
    for me, other in ((a, b), (b, a)):
        for lane in Lane:
            connection = me.pool.connection(other.node_id, lane)
            assert connection is not None
            assert connection.peer is not None
            assert (connection.peer.node_id, connection.peer.name, connection.peer.lane) == (
                other.node_id,
                other.name,
                lane,
            )
        assert {(peer.node_id, peer.lane) for peer in me.listener.peers} == {(other.node_id, lane) for lane in Lane}
    assert [event[:3] for event in a.handler.seen("up")] == [("up", "b", lane) for lane in Lane]


@deferred
async def test_calls_to_the_controller_are_answered_with_opaque_bodies(
    wire: Wire, pair: tuple[WireNode, WireNode]
) -> None:
    a, b = pair
    for command, name in (
        (Register, "register"),
        (NodeHeartbeat, "heartbeat"),
        (Evidence, "evidence"),
        (Propose, "propose"),
    ):
        body = name.encode() * 100
        assert await wire.wait(a.pool.ask(b.node_id, command, body)) == body
        assert b.handler.asked[-1] == (name, b.listener.peers[0], body)
    longest = random.Random(1).randbytes(bounds.ASK_BYTES_MAX)
    assert await wire.wait(a.pool.ask(b.node_id, Propose, longest)) == longest
    assert await wire.wait(a.pool.ask(b.node_id, Propose, b"")) == b""


@deferred
async def test_consensus_messages_arrive_in_order_and_whole(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    a, b = pair
    entry = Entry(7, 12, EntryKind.DATA, bytes(RaftSettings().entry_bytes_max))
    chunk = SnapshotChunk(
        a.node_id, b.node_id, 7, 9, 6, RaftConfiguration((a.node_id,), (b.node_id,)), 3, 0, 400_000, bytes(192 * 1024)
    )
    messages = [
        Heartbeat(a.node_id, b.node_id, 7, 11, 5),
        Append(a.node_id, b.node_id, 7, 11, 6, 10, (entry,)),
        chunk,
        *(Heartbeat(a.node_id, b.node_id, 7, 11, number) for number in range(6, 30)),
    ]
    assert a.pool.send(b.node_id, messages)
    await wire.until(lambda: len(b.handler.messages) == len(messages), "the messages")
    assert [message for _, message in b.handler.messages] == messages
    assert b.handler.messages[0][0].node_id == a.node_id


@deferred
async def test_forwarded_calls_have_a_result_each(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    a, b = pair
    calls = [ForwardedCall("submit", bytes([number])) for number in range(200)]
    assert await wire.wait(a.pool.forward(b.node_id, calls)) == [ForwardedResult("", call.body) for call in calls]
    refusal = NotPrimary("ask node-2")
    b.handler.answers["forward"] = lambda asked: [
        ForwardedResult(refusal.code, errors.encode_error(refusal)) for _ in asked
    ]
    result = (await wire.wait(a.pool.forward(b.node_id, calls[:1])))[0]
    error = errors.decode_error(result.error, result.body)
    assert (type(error), error.detail) == (NotPrimary, "ask node-2")


@deferred
async def test_payloads_of_a_megabyte_pass_both_ways(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    """F36."""
    a, b = pair
    payload = random.Random(2).randbytes(MIB + 64 * 1024)
    assert (await wire.wait(a.pool.forward(b.node_id, [ForwardedCall("submit", payload)])))[0].body == payload
    assert a.pool.send_data(b.node_id, payload)
    await wire.until(lambda: b.handler.bodies, "the batch")
    assert b.handler.bodies[0][1] == payload


@deferred
async def test_a_long_answer_comes_in_parts(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    a, b = pair
    page = random.Random(3).randbytes(7 * MIB)
    b.handler.answers["forward"] = lambda _: [ForwardedResult("", page)]
    assert (await wire.wait(a.pool.forward(b.node_id, [ForwardedCall("list", b"")])))[0].body == page
    b.handler.answers["forward"] = lambda _: [ForwardedResult("", bytes(bounds.ANSWER_BYTES_MAX))]
    why = await failure_of(wire, a.pool.forward(b.node_id, [ForwardedCall("list", b"")]))
    assert isinstance(why, AnswerTooLarge)
    assert not why.definite
    assert a.pool.is_connected(b.node_id, Lane.BULK)


@deferred
async def test_what_is_too_long_is_refused_before_it_is_sent(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    """F36: not at the peer, and not by closing the connection."""
    a, b = pair
    assert isinstance(
        await failure_of(wire, a.pool.ask(b.node_id, Propose, bytes(bounds.ASK_BYTES_MAX + 1))), BoxTooLarge
    )
    too_long = [ForwardedCall("x", bytes(bounds.BLOB_BYTES_MAX))]
    assert isinstance(await failure_of(wire, a.pool.forward(b.node_id, too_long)), BoxTooLarge)
    with pytest.raises(BoxTooLarge):
        a.pool.send_data(b.node_id, bytes(bounds.BLOB_BYTES_MAX + 1))
    assert a.pool.is_connected(b.node_id, Lane.CONSENSUS)
    assert a.pool.is_connected(b.node_id, Lane.BULK)
    assert not [name for name, _, _ in b.handler.asked if name != "admit"]


@pytest.mark.parametrize(
    "error",
    [
        Busy("later", retry_after_s=2.5),
        NoController("the leader is b"),
        IdConflict("other content", task_id="task-1"),
        InvalidField("is not a number", field="/delay", task_id="task-2"),
        OutcomeUnknown("not committed in time"),
    ],
    ids=lambda error: error.code,
)
@deferred
async def test_declared_errors_arrive_as_themselves(
    wire: Wire, pair: tuple[WireNode, WireNode], error: TaskQueueError
) -> None:
    a, b = pair

    async def refuse(_: object) -> bytes:
        raise error

    def refuse_at_once(_: object) -> bytes:
        raise error

    for answer in (refuse, refuse_at_once):
        b.handler.answers["register"] = answer
        arrived = await failure_of(wire, a.pool.ask(b.node_id, Register, b"x"))
        assert type(arrived) is type(error)
        assert isinstance(arrived, TaskQueueError)
        assert arrived.detail == error.detail
        assert (arrived.task_id, arrived.retry_after_s, arrived.definite) == (
            error.task_id,
            error.retry_after_s,
            error.definite,
        )
        assert getattr(arrived, "field", None) == getattr(error, "field", None)
    assert a.pool.is_connected(b.node_id)


@deferred
async def test_a_bug_of_a_responder_is_an_answer_and_not_the_end(
    wire: Wire, pair: tuple[WireNode, WireNode], logged_errors: LoggedErrors
) -> None:
    """F34."""
    a, b = pair

    def fail(_: object) -> bytes:
        raise ZeroDivisionError("a bug")

    other = a.pool.ask(b.node_id, Register, b"not harmed")
    b.handler.answers["propose"] = fail
    why = await failure_of(wire, a.pool.ask(b.node_id, Propose, b"x"))
    assert isinstance(why, Internal)
    assert not why.definite
    assert "ZeroDivisionError" not in str(why)
    assert await wire.wait(other) == b"not harmed"
    b.handler.answers["propose"] = lambda _: 17  # not what the command answers
    assert isinstance(await failure_of(wire, a.pool.ask(b.node_id, Propose, b"x")), Internal)
    b.handler.answers["raft"] = fail
    assert a.pool.send(b.node_id, [Heartbeat(a.node_id, b.node_id, 1, 1, 1)])
    await wire.until(lambda: len(b.handler.bugs) == 3, "the third bug")
    assert await wire.wait(a.pool.ask(b.node_id, Register, b"still there")) == b"still there"
    assert len(logged_errors.flush(ZeroDivisionError)) == 2
    assert len(logged_errors.flush()) == 1


@deferred
async def test_a_command_of_the_other_lane_is_unknown(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    """F36: nothing of bulk may get in the way of consensus."""
    a, b = pair
    connection = a.pool.connection(b.node_id, Lane.BULK)
    assert connection is not None
    assert isinstance(await failure_of(wire, connection.call(Propose, body=b"x")), UnknownCommand)
    assert a.pool.is_connected(b.node_id, Lane.BULK)


@deferred
async def test_a_lost_connection_leaves_calls_unknown_and_comes_back(
    wire: Wire, pair: tuple[WireNode, WireNode]
) -> None:
    a, b = pair
    waiting: Deferred[bytes] = Deferred()
    b.handler.answers["register"] = lambda _: waiting
    call = a.pool.ask(b.node_id, Register, b"x")
    await wire.until(lambda: b.listener._acceptor.budgets[Lane.CONSENSUS].held_bytes, "the call at the handler")
    for connection in list(b.listener._factory.connections):
        connection.transport.abortConnection()
    assert isinstance(await failure_of(wire, call), OutcomeUnknown)
    await wire.until(lambda: len(a.handler.seen("lost")) == 2, "both lanes lost")
    assert all(event[4] for event in a.handler.seen("lost")), "the other side broke them"
    await a.meet(b)
    waiting.callback(b"too late, for nobody")
    b.handler.answers.clear()
    assert await wire.wait(a.pool.ask(b.node_id, Register, b"again")) == b"again"


@deferred
async def test_without_a_connection_nothing_is_sent_and_that_is_said(
    wire: Wire, pair: tuple[WireNode, WireNode]
) -> None:
    a, b = pair
    await wire.wait(b.pool.stopService())
    await wire.wait(b.listener.stop())
    await wire.until(lambda: not a.pool.is_connected(b.node_id), "the loss")
    why = await failure_of(wire, a.pool.ask(b.node_id, Register, b"x"))
    assert isinstance(why, PeerUnreachable)
    assert why.definite
    assert not a.pool.send(b.node_id, [Heartbeat(a.node_id, b.node_id, 1, 1, 1)])
    assert a.pool.dropped == 1
    assert isinstance(await failure_of(wire, a.pool.ask(a.node_id, Register, b"x")), PeerUnreachable)


@deferred
async def test_many_calls_at_once(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    a, b = pair
    bodies = [b"%d" % number for number in range(bounds.CALLS_OUTSTANDING_MAX)]
    calls = [a.pool.ask(b.node_id, Propose, body) for body in bodies]
    assert isinstance(await failure_of(wire, a.pool.ask(b.node_id, Propose, b"one more")), Busy)
    assert await wire.wait(gatherResults(calls, consumeErrors=True)) == bodies


@deferred
async def test_a_session_that_rises_is_sent_to_the_peers(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    a, b = pair
    a.local.session = 41
    b.local.session = 42
    a.pool.announce()
    await wire.until(lambda: all(peer.session == 41 for peer in b.listener.peers), "a's session at b")
    connection = a.pool.connection(b.node_id, Lane.CONSENSUS)
    assert connection is not None
    await wire.until(lambda: connection.peer is not None and connection.peer.session == 42, "b's session at a")
    assert (await wire.wait(connection.call(Ping, session=41)))["session"] == 42
    assert a.pool.is_connected(b.node_id, Lane.BULK)


@deferred
async def test_a_node_that_knows_only_an_address_learns_the_rest(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    """Join: the cluster's id comes with the greeting, and the proof covers it."""
    _, b = pair
    joiner = WireNode(wire, "j", cluster=None, with_tls="a" if wire.name == "tls" else "")
    if wire.name == "tls":
        joiner.local.name = pair[0].local.name  # the certificate's
    connection = await wire.wait(joiner.pool.dial(b.address))
    assert connection.peer is not None
    assert connection.peer.node_id == b.node_id
    assert b.handler.greetings[-1].cluster == ""
    assert (await wire.wait(connection.call(Register, body=b"me")))["body"] == b"me"
    connection.close()
    await wire.wait(joiner.dialling.close_all())


@deferred
async def test_a_member_that_is_no_longer_named_is_left_alone(wire: Wire, pair: tuple[WireNode, WireNode]) -> None:
    a, b = pair
    a.pool.set_members([a.member])
    assert not a.pool.is_connected(b.node_id)
    await wire.until(lambda: not b.listener.peers, "the lanes closed")
    await wire.sleep(0.6)
    assert not b.listener.peers
    assert not a.handler.seen("lost")
