"""A lane is dialled again and again, and never leaves anything behind (F15a, R5a)."""

from __future__ import annotations

import itertools
import random
from typing import Any, cast

import msgspec
import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectError
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.internet.protocol import Factory

from tests.conftest import LoggedErrors
from tests.support.wire_kinds import MemoryWire
from tests.support.wires import RawPeer, WireNode, accepted
from tests.unit.tq_node.wire.conftest import House
from tests.unit.tq_node.wire.talk import deferred
from tq_node.wire import bounds
from tq_node.wire.commands import Lane, Register
from tq_node.wire.errors import PeerUnreachable
from tq_node.wire.pool import Member


class Reluctant:
    """An endpoint that lets every dial hang until it is told how it ends."""

    def __init__(self) -> None:
        self.dials: list[Deferred[Any]] = []
        self.cancelled = 0

    def connect(self, factory: object) -> Deferred[Any]:
        self.dials.append(Deferred(self._cancel))
        return self.dials[-1]

    def _cancel(self, dial: Deferred[Any]) -> None:
        self.cancelled += 1
        dial.errback(ConnectError())  # what Twisted's TCP endpoints do is not a CancelledError either


@deferred
async def test_a_lost_member_is_redialled_at_least_every_half_second(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    a.pool._rng = random.Random(1)
    del wire.network.listening["b"]
    a.dial(b)
    await wire.sleep(20.0)
    wire.network.listening["b"] = b.listener._outer  # for its end
    for lane in Lane:
        at_ms = [event[3] for event in a.handler.seen("failed") if event[2] is lane]
        gaps = [later - earlier for earlier, later in itertools.pairwise(at_ms)]
        assert max(gaps) <= bounds.REDIAL_S_MAX * 1000 + 1
        assert gaps[0] < 150
        assert len(set(gaps[5:])) > 3, "never in step"
        assert len(gaps) < 120, "and not all the time"
    assert all(isinstance(why, PortRefused) for why in a.handler.failures)


@deferred
async def test_a_member_that_comes_back_is_found_at_once(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    factory = wire.network.listening.pop("b")
    for connection in list(b.listener._factory.connections):
        connection.transport.loseConnection()
    await wire.until(lambda: len(a.handler.seen("lost")) == 2, "both lost")
    assert all(event[4] for event in a.handler.seen("lost"))
    await wire.sleep(5.0)
    wire.network.listening["b"] = factory
    began_s = wire.reactor.seconds()
    await a.meet(b)
    assert wire.reactor.seconds() - began_s <= bounds.REDIAL_S_MAX + 0.05


@deferred
async def test_a_newborn_cluster_is_greeted_before_it_takes_itself_for_ready(house: House, wire: MemoryWire) -> None:
    """Birth guard, F15a: node-1 lost its disk and founded a cluster of its own at its old address, with a secret of its own."""
    member, lost = await house.node("a"), await house.node("b")
    member.dial(lost)
    await wire.until(lambda: member.pool.is_connected(lost.node_id), "the old cluster")
    await lost.stop()
    await wire.sleep(10.0)
    newborn = WireNode(wire, "b", node_id="f" * 32, cluster="d" * 32, secret=b"another secret, made up anew")
    house.nodes[1] = await newborn.listen()
    newborn.handler.newborn = True
    await wire.sleep(bounds.BIRTH_GUARD_S / 2)
    greeting = newborn.handler.greetings[0]
    assert (greeting.cluster, greeting.name, greeting.address) == (member.local.cluster, "b", lost.address)
    assert greeting.dialler == "a"
    assert not newborn.listener.peers


@deferred
async def test_a_peer_that_closes_at_once_is_not_dialled_in_a_tight_loop(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    lanes: list[Lane] = []

    def close(peer: Any) -> None:
        lanes.append(peer.lane)
        wire.reactor.callLater(0, _close_accepted, b, peer.lane)

    b.handler.answers["admit"] = close
    a.dial(b)
    await wire.sleep(10.0)
    assert 20 < lanes.count(Lane.BULK) < 60


def _close_accepted(node: WireNode, *lanes: Lane) -> None:
    for connection in list(node.listener._factory.connections):
        if connection.peer is not None and connection.peer.lane in (lanes or Lane):
            connection.transport.loseConnection()


@pytest.mark.parametrize("stage", ["before", "dialling", "shaking hands", "waiting", "open"])
@pytest.mark.parametrize("how", ["stop", "leave out"])
@deferred
async def test_a_lane_stops_at_every_stage(house: House, wire: MemoryWire, stage: str, how: str) -> None:
    a, b = await house.node("a"), await house.node("b")
    endpoint = Reluctant()
    if stage == "dialling":
        a.dialling._endpoint_of = lambda address, timeout_s: cast("Any", endpoint)
    if stage == "shaking hands":
        wire.network.listening["b"] = Factory.forProtocol(RawPeer)  # says nothing
    if stage == "waiting":
        del wire.network.listening["b"]
    if stage == "before":
        a.pool.set_members([b.member])
    else:
        a.dial(b)
        wire.network.settle()
    if stage == "open":
        await a.meet(b)
    if how == "stop":
        if a.pool.running:
            await wire.wait(a.pool.stopService())
    else:
        a.pool.set_members([])
        wire.network.settle()
    assert endpoint.cancelled == (2 if stage == "dialling" else 0)
    events = list(a.handler.events)
    await wire.sleep(3.0)
    assert a.handler.events == events
    assert not a.dialling._open
    wire.network.listening["b"] = b.listener._outer


@deferred
async def test_a_pool_can_be_started_again(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    for _ in range(3):
        await a.meet(b)
        await wire.wait(a.pool.stopService())
        assert not a.pool.is_connected(b.node_id)
        assert not a.pool.running


@deferred
async def test_a_member_that_moves_is_dialled_at_its_new_address(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    await a.meet(b)
    wire.network.listening["new"] = wire.network.listening["b"]
    a.pool.set_members([a.member, msgspec.structs.replace(b.member, address="new")])
    assert not a.pool.is_connected(b.node_id)
    await wire.until(lambda: a.pool.is_connected(b.node_id), "the new address")
    assert b.handler.greetings[-1].address == "new"
    same = a.pool.connection(b.node_id, Lane.BULK)
    a.pool.set_members([msgspec.structs.replace(b.member, address="new")])
    assert a.pool.connection(b.node_id, Lane.BULK) is same, "no change, no new connection"


@deferred
async def test_an_address_that_is_none_is_a_failure_like_others(house: House, wire: MemoryWire) -> None:
    a = await house.node("a")

    def refuse(address: str, timeout_s: float) -> Any:
        raise ValueError(f"{address!r} is not an address of a peer")

    a.dialling._endpoint_of = refuse
    a.pool.set_members([Member("f" * 32, "f", "nonsense")])  # type: ignore[arg-type]
    a.pool.startService()
    await wire.sleep(1.0)
    assert len(a.handler.failures) > 4
    assert all(isinstance(why, ValueError) for why in a.handler.failures)


@deferred
async def test_a_watcher_with_a_bug_does_not_stop_the_lane(
    house: House, wire: MemoryWire, logged_errors: LoggedErrors
) -> None:
    a, b = await house.node("a"), await house.node("b")

    def fail_always(*arguments: object) -> None:
        raise ZeroDivisionError

    watcher: Any = a.handler
    watcher.lane_up = watcher.lane_lost = watcher.dial_failed = fail_always
    await a.meet(b)
    _close_accepted(b)
    await wire.until(lambda: not a.pool.is_connected(b.node_id), "the loss")
    await a.meet(b)
    assert len(logged_errors.flush(ZeroDivisionError)) >= 4


@deferred
async def test_the_pool_leaves_its_own_node_out(house: House) -> None:
    a, b = await house.node("a"), await house.node("b")
    a.dial(a, b)
    await house.wire.until(lambda: a.pool.is_connected(b.node_id), "the other")
    assert not a.pool.is_connected(a.node_id)
    assert (a.node_id, Lane.BULK) not in a.pool._lanes


# --- evidence ---
@pytest.mark.parametrize(
    ("outcomes", "is_evidence"),
    [
        ([PortRefused(), PortRefused()], True),
        ([PortRefused(), ConnectTimedOut()], False),
        ([ConnectTimedOut()], False),
        ([PortRefused(), ConnectError()], False),
        ([ValueError("no address")], False),
    ],
)
@deferred
async def test_only_two_refusals_are_evidence(
    house: House, wire: MemoryWire, outcomes: list[Exception], is_evidence: bool
) -> None:
    """R5a: a time-out is never evidence."""
    a, b = await house.node("a"), await house.node("b")
    a.pool.set_members([b.member])
    coming = iter(outcomes)

    class Refusing:
        def connect(self, factory: object) -> Deferred[Any]:
            return fail(next(coming))

    a.dialling._endpoint_of = lambda address, timeout_s: cast("Any", Refusing())
    began_ms = a.dialling.now_ms()
    refused_at_ms = await wire.wait(a.pool.probe_refused(b.node_id))
    assert bool(refused_at_ms) is is_evidence
    if is_evidence:
        assert refused_at_ms[0] == began_ms
        assert refused_at_ms[1] - refused_at_ms[0] >= 50


@deferred
async def test_a_probe_is_no_visit(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    a.pool.set_members([b.member])
    assert await wire.wait(a.pool.probe_refused(b.node_id)) == ()
    wire.network.settle()
    assert not accepted(b.listener)
    assert not b.handler.greetings


@deferred
async def test_calls_name_the_node_that_is_not_there(house: House, wire: MemoryWire) -> None:
    a, b = await house.node("a"), await house.node("b")
    a.pool.set_members([b.member])
    with pytest.raises(PeerUnreachable, match="node b is not connected"):
        await wire.wait(a.pool.ask(b.node_id, Register, b"x"))
