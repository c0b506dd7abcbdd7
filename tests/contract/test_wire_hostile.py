"""Hostile bytes: whatever comes, memory is bounded, nothing is believed, and good peers are served on (F33, F34, F37, F38)."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.support.wire_kinds import MemoryWire, TcpWire
from tests.support.wires import CLUSTER, SECRET, RawPeer, Served, WireNode, accepted, clean, raw_box, raw_peer
from tq_node.limits import MIB
from tq_node.raft.messages import Heartbeat
from tq_node.wire import bounds, handshake
from tq_node.wire.codec import ForwardedCall, encode_messages
from tq_node.wire.commands import Lane, Register
from tq_node.wire.handshake import DIALLER, INTRODUCTIONS

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
HOSTILE = 200
HOSTILE_S, HOSTILE_S_MAX = 6.0, 60.0
KEY = b"k" * 255

NAMES = st.sampled_from(
    b"Greet Hello Prove Ping Raft Register Heartbeat Evidence Propose Forward Data StartTLS _ProtocolSwitch unknown \xff".split()
)
FIELDS = st.sampled_from(
    b"body calls messages hello proof session within_ms cluster name address dialler x body.1 calls.1".split()
    + b"_more _body _ask _command _error_code".split()
)
AWKWARD = [b"0", b"1", b"-1", b"1e9", b"nan", b"9" * 400, bytes(60_000)]
BODIES = [b"\1\x90", b"\1\xdd\xff\xff\xff\xff", b"\1" + b"\x91" * 5_000, b"\1\xca\x7f\xc0\0\0"]
VALUES = st.one_of(st.binary(max_size=40), st.sampled_from(AWKWARD + BODIES))
COMMANDS = st.builds(
    lambda name, tag, fields: raw_box({b"_command": name} | ({b"_ask": tag} if tag is not None else {}) | fields),
    NAMES,
    st.none() | st.sampled_from([b"1", b"2", b"x" * 16, b"x" * 17, b""]),
    st.dictionaries(FIELDS, VALUES, max_size=5),
)
ANSWERS = st.builds(
    lambda kind, tag, fields: raw_box({kind: tag} | fields),
    st.sampled_from([b"_answer", b"_error"]),
    st.sampled_from([b"1", b"999", b""]),
    st.dictionaries(FIELDS, VALUES, max_size=3),
)
CHUNKS = st.one_of(
    COMMANDS,
    ANSWERS,
    st.binary(max_size=300),
    COMMANDS.map(lambda box: box[:-3]),  # cut off
    st.integers(1, 80).map(lambda count: raw_box({b"%d" % number: b"" for number in range(count)})),
    st.just(b"\0\1k\xff\xff" + bytes(65_535)),
)


def authenticated(wire: MemoryWire, node_id: str, lane: Lane) -> RawPeer:
    """Somebody with the secret, who then says whatever he likes."""
    peer = raw_peer(wire, "b")
    peer.say(b"Greet", cluster=CLUSTER.encode(), name=b"b", address=b"b", dialler=b"e")
    mine = INTRODUCTIONS.encode(
        WireNode(wire, "e", node_id=node_id).local.introduction(CLUSTER, "", lane, os.urandom(32))
    )
    peer.say(b"Hello", hello=mine)
    wire.network.settle()
    theirs = peer.boxes()[-1][b"hello"]
    peer.say(b"Prove", proof=handshake.proof(SECRET, DIALLER, mine, theirs))
    wire.network.settle()
    assert b"proof" in peer.boxes()[0]
    return peer


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["stranger", *Lane]), st.lists(CHUNKS, min_size=1, max_size=6)),
        min_size=1,
        max_size=5,
    )
)
def test_any_boxes_from_anybody_harm_nobody(hostile: list[tuple[str, list[bytes]]]) -> None:
    """Strangers and peers, random and adversarial boxes; the autouse fixture fails for whatever is logged as an error."""
    wire = MemoryWire()
    a, b = WireNode(wire, "a"), WireNode(wire, "b")

    async def run() -> None:
        await a.listen()
        await b.listen()
        await a.meet(b)
        for number, (kind, chunks) in enumerate(hostile):
            peer = raw_peer(wire, "b") if kind == "stranger" else authenticated(wire, f"{number:0>32}", Lane(kind))
            for chunk in chunks:
                if peer.over():
                    break
                peer.write(chunk)
                wire.network.settle()
            peer.boxes()  # whatever came back is AMP
        await wire.sleep(bounds.HANDSHAKE_S_MAX + bounds.IDLE_S_MAX)
        assert len(accepted(b.listener)) == 2, "a's two lanes, and nobody else"
        assert await wire.wait(a.pool.ask(b.node_id, Register, b"served on")) == b"served on"
        assert (await wire.wait(a.pool.forward(b.node_id, [ForwardedCall("x", b"too")])))[0].body == b"too"
        assert a.pool.send(b.node_id, [Heartbeat(a.node_id, b.node_id, 1, 1, 1)])
        assert not a.handler.seen("lost")
        for node in (a, b):
            await node.stop()
        assert not list(clean(wire, [a, b]))

    ended: list[object] = []
    Deferred.fromCoroutine(run()).addBoth(ended.append)
    assert ended
    if ended[0] is not None:
        ended[0].raiseException()  # type: ignore[attr-defined]


@deferred
async def test_a_peer_gone_mad_holds_no_more_than_a_box() -> None:
    """It knows the secret: the bounds are wider, and still there."""
    wire = MemoryWire()
    b = await WireNode(wire, "b").listen()
    for _ in range(20):
        peer = authenticated(wire, "e" * 32, Lane.BULK)
        sent = 0
        for number in range(1_000):
            if peer.over():
                break
            peer.write(b"\0\3%03d\xff\xff" % number + bytes(65_535))
            sent += 65_535
            wire.network.settle()
        assert peer.over()
        assert sent <= bounds.BOX_BYTES_MAX + 2 * 65_535
    await b.stop()


# --- real sockets, another process, 200 at once ---
class Enemy:
    """One hostile connection after another, each of its own kind."""

    KINDS = ("silent", "drips", "keys", "value", "noise", "boxes", "half a greeting", "tls", "http", "guesses")

    def __init__(self, port: int, number: int) -> None:
        self.port = port
        self.kind = self.KINDS[number % len(self.KINDS)]
        self.random = random.Random(number)
        self.socket: socket.socket | None = None
        self.dials = 0
        self.sent = 0

    def dial(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port), 5)
        self.socket.setblocking(False)
        self.dials += 1
        self.step = 0

    def bytes_now(self) -> bytes:
        self.step += 1
        match self.kind:
            case "drips":
                return b"\0"
            case "keys":
                return b"".join(b"\0\4%04d\0\0" % number for number in range(2_000))
            case "value":
                return b"\0\1k\xff\xff" + bytes(65_535)
            case "noise":
                return self.random.randbytes(self.random.randrange(1, 3_000))
            case "boxes":
                return raw_box({b"_command": b"StartTLS", b"_ask": b"%d" % self.step}) + raw_box({KEY: bytes(3_000)})
            case "half a greeting":
                return raw_box({b"_command": b"Greet", b"_ask": b"1"})[:-4] if self.step == 1 else b""
            case "tls":
                return b"\x16\x03\x01\x02\x00\x01" + self.random.randbytes(500)
            case "http":
                return b"POST / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n" + bytes(2_000)
            case "guesses":
                greeting = {
                    b"_command": b"Greet",
                    b"_ask": b"1",
                    b"cluster": b"",
                    b"name": b"",
                    b"address": b"",
                    b"dialler": b"e",
                }
                return raw_box(greeting) + raw_box({b"_command": b"Prove", b"_ask": b"2", b"proof": bytes(32)})
        return b""

    def turn(self) -> None:
        """Say the next thing; dial again if it is over."""
        if self.socket is None:
            self.dial()
        assert self.socket is not None
        try:
            data = self.bytes_now()
            if data:
                self.sent += self.socket.send(data)
            while self.socket.recv(65_536):
                pass
            raise ConnectionResetError
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def attack(enemies: Sequence[Enemy], over: threading.Event) -> int:
    """In turns, until it is over; connections held at the end."""
    while not over.wait(0.05):
        for enemy in enemies:
            enemy.turn()
    held = sum(enemy.socket is not None for enemy in enemies)
    for enemy in enemies:
        enemy.close()
    return held


def dials(enemies: Sequence[Enemy]) -> int:
    return sum(enemy.dials for enemy in enemies)


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("answers", [5, pytest.param(20, marks=pytest.mark.long)])
@deferred
async def test_two_hundred_hostile_connections_cost_little_memory_and_nobody_an_answer(
    served: Served, answers: int
) -> None:
    wire = TcpWire()
    a = await WireNode(wire, "a").listen()
    a.pool.set_members([served.member])
    a.pool.startService()
    other_id = served.member.node_id
    await wire.until(lambda: all(a.pool.is_connected(other_id, lane) for lane in Lane), "both lanes")
    await wire.wait(a.pool.forward(other_id, [ForwardedCall("warm", bytes(MIB))]))
    before = served.memory_bytes()
    began_s, over = time.monotonic(), threading.Event()
    enemies = [Enemy(served.port, number) for number in range(HOSTILE)]
    attacking = deferToThread(attack, enemies, over)
    answered, worst_s, highest = 0, 0.0, before
    try:
        # Each call is answered by its deadline, also while those that were thrown out dial again.
        while time.monotonic() < began_s + HOSTILE_S or answered <= answers or dials(enemies) <= HOSTILE:
            assert time.monotonic() < began_s + HOSTILE_S_MAX, f"{answered} answers, {dials(enemies)} connections"
            asked_s = time.monotonic()
            body = b"%d" % answered
            assert await wire.wait(a.pool.ask(other_id, Register, body)) == body
            worst_s = max(worst_s, time.monotonic() - asked_s)
            answered += 1
            highest = max(highest, served.memory_bytes())
            await wire.sleep(0.02)
        newcomer = WireNode(wire, "n")
        connection = await wire.wait(newcomer.pool.dial(served.member.address))
        connection.close()
        await wire.wait(newcomer.dialling.close_all())
    finally:
        over.set()
        held = await attacking
    assert not a.handler.seen("lost")
    await a.stop()
    said = await deferToThread(served.close)
    print(
        f"{HOSTILE} hostile at once, {dials(enemies)} connections, {sum(enemy.sent for enemy in enemies) / MIB:.1f} MiB "
        f"({held} held at the end): memory {before / MIB:.1f} -> {highest / MIB:.1f} MiB, {answered} good calls, "
        f"the slowest {worst_s * 1000:.0f} ms"
    )
    assert highest - before < 24 * MIB
    assert "Traceback" not in said
    assert said.count("\n") < 60, "it does not fill the log either"


@deferred
async def test_a_message_that_is_no_message_ends_only_its_own_connection() -> None:
    wire = MemoryWire()
    b = await WireNode(wire, "b").listen()
    first, second = authenticated(wire, "1" * 32, Lane.CONSENSUS), authenticated(wire, "2" * 32, Lane.CONSENSUS)
    ((batch, _),) = encode_messages([Heartbeat("2" * 32, b.node_id, 1, 1, 1)])  # type: ignore[arg-type]
    first.write(raw_box({b"_command": b"Raft", b"messages": batch}))  # in the name of the second
    second.write(raw_box({b"_command": b"Raft", b"messages": batch}))
    wire.network.settle()
    assert first.over()
    assert not second.over()
    assert len(b.handler.messages) == 1
    await b.stop()
