"""What the wire costs, printed (``pytest -s``). The bounds are about a tenth of what was measured: a real fault trips them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from tests.support.wire_kinds import TcpWire
from tests.support.wires import Served, WireNode
from tq_node.raft.messages import AnyMessage, Append, AppendReply, Entry, EntryKind
from tq_node.wire.codec import ForwardedCall
from tq_node.wire.commands import Lane, Ping, Register

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
RECORD = b"r" * 200
BATCH = [ForwardedCall("submit", RECORD)] * 100


async def per_second(rounds: int, once: Callable[[], Awaitable[object]]) -> float:
    began_s = time.perf_counter()
    for _ in range(rounds):
        await once()
    return rounds / (time.perf_counter() - began_s)


async def pipelined(rounds: int, at_once: int, once: Callable[[], Deferred[Any]]) -> float:
    places = DeferredSemaphore(at_once)
    began_s = time.perf_counter()
    await gatherResults([places.run(once) for _ in range(rounds)], consumeErrors=True)
    return rounds / (time.perf_counter() - began_s)


@deferred
async def test_between_two_nodes_of_one_process() -> None:
    wire = TcpWire()
    a, b = await WireNode(wire, "a").listen(), await WireNode(wire, "b").listen()
    await a.meet(b)
    await b.meet(a)
    append = Append(a.node_id, b.node_id, 3, 7, 3, 6, (Entry(3, 8, EntryKind.DATA, bytes(200)),))
    arrived: list[Deferred[None]] = []

    def reply(messages: list[AnyMessage]) -> None:
        b.pool.send(a.node_id, [AppendReply(b.node_id, a.node_id, 3, 8) for _ in messages])

    def replied(_: list[AnyMessage]) -> None:
        arrived.pop().callback(None)

    b.handler.answers["raft"], a.handler.answers["raft"] = reply, replied

    def round_trip() -> Deferred[None]:
        arrived.append(Deferred())
        waiting = arrived[0]
        a.pool.send(b.node_id, [append])
        return waiting

    await per_second(200, round_trip)
    raft = await per_second(2_000, round_trip)
    connection = a.pool.connection(b.node_id, Lane.CONSENSUS)
    assert connection is not None
    pings = await per_second(2_000, lambda: connection.call(Ping, session=0))
    calls = await pipelined(5_000, 64, lambda: a.pool.ask(b.node_id, Register, b"x" * 100))
    forwarded = await pipelined(500, 16, lambda: a.pool.forward(b.node_id, BATCH))
    bodies = 1_000
    began_s = time.perf_counter()
    for _ in range(bodies):
        while not a.pool.send_data(b.node_id, RECORD * 100):
            await wire.sleep(0)
    await wire.until(lambda: len(b.handler.bodies) == bodies, "the data")
    data = bodies / (time.perf_counter() - began_s)
    for node in (a, b):
        await node.stop()
    print(
        f"\none process, both ends: raft append and reply {1e6 / raft:.0f} µs, ping {1e6 / pings:.0f} µs, "
        f"{calls:,.0f} small calls/s, forwarded {forwarded * 100:,.0f} records/s, data {data * 100:,.0f} records/s"
    )
    assert min(raft, calls, forwarded, data) > 0, "printed above; no test is judged by the mood of the machine"


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as made:
        yield made


@pytest.mark.may_hold(
    "a measurement: the test sends its next calls from within the read that brings hundreds of answers"
)
@deferred
async def test_between_two_processes(served: Served) -> None:
    wire = TcpWire()
    a = WireNode(wire, "a")
    a.pool.set_members([served.member])
    a.pool.startService()
    other = served.member.node_id
    await wire.until(lambda: all(a.pool.is_connected(other, lane) for lane in Lane), "both lanes")
    await pipelined(500, 16, lambda: a.pool.ask(other, Register, b"x"))
    one = await per_second(2_000, lambda: a.pool.ask(other, Register, b"x" * 100))
    calls = await pipelined(10_000, 64, lambda: a.pool.ask(other, Register, b"x" * 100))
    forwarded = await pipelined(1_000, 16, lambda: a.pool.forward(other, BATCH))
    await wire.wait(a.pool.stopService())
    print(
        f"\ntwo processes: call and answer {1e6 / one:.0f} µs, {calls:,.0f} small calls/s, "
        f"forwarded {forwarded * 100:,.0f} records/s"
    )
    assert min(one, forwarded) > 0
