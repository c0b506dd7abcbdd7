"""Lanes over links that are cut one way, both ways, slow or dead (F5, F35), and the proxy that does it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.support.proxy import Direction, LinkProxy, Links
from tests.support.wire_kinds import TcpWire
from tests.support.wires import WireNode, clean
from tq_node.errors import OutcomeUnknown
from tq_node.raft.messages import Heartbeat
from tq_node.wire import bounds
from tq_node.wire.commands import Lane, Register
from tq_node.wire.pool import Member

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


# --- the proxy ---
@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(5)
        yield made


class Talk:
    """A connection through a proxy, with both ends in hand."""

    def __init__(self, proxy: LinkProxy, server: socket.socket) -> None:
        self.dialler = socket.create_connection(("127.0.0.1", proxy.port), 5)
        self.target, _ = server.accept()
        for end in (self.dialler, self.target):
            end.settimeout(5)

    def close(self) -> None:
        self.dialler.close()
        self.target.close()


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[LinkProxy]:
    with LinkProxy(server.getsockname()[1]) as made:
        yield made


@pytest.fixture
def talk(proxy: LinkProxy, server: socket.socket) -> Iterator[Talk]:
    made = Talk(proxy, server)
    yield made
    made.close()


def arrives(end: socket.socket, within_s: float = 0.1) -> bool:
    end.settimeout(within_s)
    try:
        return bool(end.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        end.settimeout(5)


def test_the_proxy_carries_bytes_both_ways(proxy: LinkProxy, talk: Talk) -> None:
    talk.dialler.sendall(b"there")
    assert talk.target.recv(10) == b"there"
    talk.target.sendall(b"back")
    assert talk.dialler.recv(10) == b"back"
    talk.dialler.close()
    assert talk.target.recv(10) == b""
    assert (proxy.forward.carried_bytes, proxy.backward.carried_bytes) == (5, 4)


def test_a_black_hole_holds_one_direction_and_gives_it_back(proxy: LinkProxy, talk: Talk) -> None:
    proxy.forward.blackhole()
    talk.dialler.sendall(b"late")
    assert not arrives(talk.target)
    talk.target.sendall(b"back")
    assert talk.dialler.recv(10) == b"back"
    proxy.heal()
    assert talk.target.recv(10) == b"late"


def test_what_is_dropped_breaks_the_connection_once_it_heals(proxy: LinkProxy, talk: Talk) -> None:
    proxy.backward.drop()
    talk.target.sendall(b"gone")
    assert not arrives(talk.dialler)
    talk.dialler.sendall(b"there")
    assert talk.target.recv(10) == b"there"
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        talk.dialler.recv(10)


def test_a_slow_direction_is_late_and_in_order(proxy: LinkProxy, talk: Talk) -> None:
    proxy.forward.delay(0.15)
    began_s = time.monotonic()
    for number in range(5):
        talk.dialler.sendall(b"%d" % number)
    got = b""
    while len(got) < 5:
        got += talk.target.recv(10)
    assert got == b"01234"
    assert time.monotonic() - began_s > 0.14


def test_a_proxy_refuses_as_a_dead_node_does(proxy: LinkProxy, talk: Talk, server: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        talk.dialler.recv(10)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), 5)
    proxy.accept_again()
    again = Talk(proxy, server)
    again.dialler.sendall(b"x")
    assert again.target.recv(10) == b"x"
    again.close()


def test_a_full_black_hole_stops_reading(proxy: LinkProxy, talk: Talk) -> None:
    proxy.forward.blackhole()
    talk.dialler.settimeout(0.2)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64_000_000:
            sent += talk.dialler.send(bytes(65_536))
    assert sent < 64_000_000
    proxy.heal()
    received = 0
    while received < sent:
        received += len(talk.target.recv(1 << 20))
    assert received == sent


# --- lanes over links ---
class Linked:
    """Nodes that dial one another through a proxy for each ordered pair."""

    def __init__(self, wire: TcpWire, nodes: list[WireNode]) -> None:
        self.wire = wire
        self.nodes = {node.name: node for node in nodes}
        self.links = Links({node.name: int(node.address.rpartition(":")[2]) for node in nodes})
        for node in nodes:
            node.pool.set_members(
                Member(other.node_id, other.local.name, f"127.0.0.1:{self.links.port(node.name, other.name)}")
                for other in nodes
                if other is not node
            )
            node.pool.startService()

    def pairs(self) -> list[tuple[WireNode, WireNode]]:
        return list(itertools.permutations(self.nodes.values(), 2))

    async def whole(self) -> None:
        for me, other in self.pairs():
            for lane in Lane:
                await self.wire.until(
                    lambda me=me, other=other, lane=lane: me.pool.is_connected(other.node_id, lane),  # type: ignore[misc]
                    f"{me.name} to {other.name}",
                )


@async_fixture()
async def linked() -> AsyncIterator[Linked]:
    wire = TcpWire()
    nodes = [await WireNode(wire, name).listen() for name in "abc"]
    made = Linked(wire, nodes)
    try:
        await made.whole()
        yield made
    finally:
        made.links.heal()
        for node in nodes:
            await node.stop()
        made.links.close()
    assert not list(clean(wire, nodes))


@deferred
async def test_a_half_open_peer_is_given_up_in_seconds_and_found_again(linked: Linked) -> None:
    """F35: the peer's answers vanish. Calls end by their deadline, the lane by its ping, and healing brings it back."""
    a, b = linked.nodes["a"], linked.nodes["b"]
    began_s = linked.wire.reactor.seconds()
    linked.links.cut("b", "a")
    call = a.pool.ask(b.node_id, Register, b"x", deadline_s=0.5)
    with pytest.raises(OutcomeUnknown):
        await linked.wire.wait(call)
    assert linked.wire.reactor.seconds() - began_s > 0.4
    assert a.pool.is_connected(b.node_id), "the call has ended before the lane was given up"
    await linked.wire.until(lambda: not a.pool.is_connected(b.node_id), "the lane given up")
    lost = a.handler.seen("lost")[0]
    assert not lost[4], "a time-out is no evidence of death (R5a)"
    assert b.handler.asked[-1][0] == "register", "it was done over there, though nobody here knows"
    linked.links.heal()
    await linked.whole()
    assert await linked.wire.wait(a.pool.ask(b.node_id, Register, b"again")) == b"again"


@pytest.mark.parametrize("cut", list(itertools.permutations("abc", 2)), ids="-".join)
@deferred
async def test_each_directed_link_harms_no_other(linked: Linked, cut: tuple[str, str]) -> None:
    """F5, at the level of lanes: the other pair goes on undisturbed, and the cut one comes back."""
    for how in (Direction.blackhole, Direction.drop):
        linked.links.cut(*cut, how)
        source, sink = (linked.nodes[name] for name in cut)
        (third,) = (node for name, node in linked.nodes.items() if name not in cut)
        got = len(third.handler.messages)
        assert source.pool.send(third.node_id, [Heartbeat(source.node_id, third.node_id, 1, 1, 1)])
        assert sink.pool.send(third.node_id, [Heartbeat(sink.node_id, third.node_id, 1, 1, 1)])
        await linked.wire.until(lambda third=third, got=got: len(third.handler.messages) == got + 2, "the others")  # type: ignore[misc]
        before = len(sink.handler.messages)
        source.pool.send(sink.node_id, [Heartbeat(source.node_id, sink.node_id, 1, 1, 1)])
        await linked.wire.sleep(0.1)
        assert len(sink.handler.messages) == before
        assert await linked.wire.wait(third.pool.ask(sink.node_id, Register, b"x")) == b"x"
        linked.links.heal()
        await linked.whole()
        await linked.wire.until(
            lambda sink=sink, source=source: source.node_id in {peer.node_id for peer in sink.listener.peers},  # type: ignore[misc]
            "it is heard again",
        )


@deferred
async def test_a_dead_port_is_evidence_and_a_silent_one_is_not(linked: Linked) -> None:
    """R5a: the connection broke and the port refused twice, 50 ms apart."""
    a, b = linked.nodes["a"], linked.nodes["b"]
    proxy = linked.links.proxies["a", "b"]
    assert not await linked.wire.wait(a.pool.probe_refused(b.node_id)), "it lives"
    proxy.backward.blackhole()
    assert not await linked.wire.wait(a.pool.probe_refused(b.node_id)), "it is silent"
    proxy.heal()
    began_s = time.monotonic()
    proxy.refuse()
    await linked.wire.until(lambda: a.handler.seen("lost"), "the loss")
    print(f"the break of a connection was seen after {(time.monotonic() - began_s) * 1000:.1f} ms")
    refused_at_ms = await linked.wire.wait(a.pool.probe_refused(b.node_id))
    assert len(refused_at_ms) == 2
    assert refused_at_ms[1] - refused_at_ms[0] >= 50
    assert a.handler.seen("lost")[0][4], "the network broke it"
    assert not await linked.wire.wait(a.pool.probe_refused(a.node_id)), "nobody probes himself, or a stranger"
    proxy.accept_again()
    await linked.whole()


@deferred
async def test_bulk_does_not_hold_up_consensus(linked: Linked) -> None:
    """F36: megabytes on a slow link, and no ping is late."""
    a, b = linked.nodes["a"], linked.nodes["b"]
    body = bytes(1_000_000)
    sent = 0
    while a.pool.send_data(b.node_id, body):
        sent += 1
    assert (sent + 1) * len(body) > bounds.BULK_SEND_BYTES_MAX, "until there is no room"
    worst_s, before_all = 0.0, 0
    for number in range(50):
        began_s = time.monotonic()
        assert await linked.wire.wait(a.pool.ask(b.node_id, Register, b"%d" % number)) == b"%d" % number
        worst_s = max(worst_s, time.monotonic() - began_s)
        before_all += len(b.handler.bodies) < sent
    print(f"worst call beside {sent} MB of bulk: {worst_s * 1000:.1f} ms; {before_all} calls before the last of it")
    assert before_all >= 2, "calls are answered while bulk that was sent before them is on its way"
    await linked.wire.until(lambda: len(b.handler.bodies) == sent, "all of it")
    assert ("writable", b.node_id, Lane.BULK) in a.handler.events
    assert not a.handler.seen("lost")
