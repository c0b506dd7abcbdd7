"""No request within the limits holds the reactor for over 100 ms of CPU; what is refused costs less than what is taken."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from tests.support.crowded import stretched
from tests.unit.tq_node.api.talk import World
from tq_node import limits
from tq_node.slices import Slices

HELD_S_MAX = limits.LOOP_HELD_MS / 1000
GOOD = b'{"type":"email","payload":{"to":"user@example.com","n":[1,2,3]},"priority":3,"tags":{"customer":"acme"}}'


class Reactor:
    """Runs what is to be called a turn at a time, and measures each call."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.took_s: list[float] = []

    def callLater(self, seconds: float, call: Callable[[], object]) -> object:
        self.calls.append(call)
        return call

    def measured(self, call: Callable[[], object]) -> None:
        began_s = time.thread_time()
        call()
        self.took_s.append(time.thread_time() - began_s)

    def run(self) -> None:
        while self.calls:
            calls, self.calls = self.calls, []
            for call in calls:
                self.measured(call)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def asked(world: World, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[Any, Reactor]:
    """The answer, and what the calls of the reactor took that led to it."""
    reactor = Reactor()
    world.site.server.slices = Slices(cast("Any", reactor))
    client = world.connect()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head += f"Content-Length: {len(body or b'')}\r\n\r\n"
    data = head.encode() + (body or b"")
    for at in range(0, len(data), 65_536):  # as a socket gives it
        piece = data[at : at + 65_536]
        reactor.measured(lambda piece=piece: client.send(piece))  # type: ignore[misc]  # bound at once
        reactor.run()
    (reply,) = client.replies()
    client.transport.hang_up()
    print(f"\n{method} {path}: {len(reactor.took_s)} calls, the longest {max(reactor.took_s) * 1000:.0f} ms")
    return reply, reactor


def batch_of(piece: bytes, count: int = limits.BATCH_TASKS_MAX) -> bytes:
    return b'{"tasks":[%b]}' % b",".join([piece] * count)


LISTS = b'{"type":"a","payload":[%b]}' % b",".join([b"[]"] * (limits.PAYLOAD_VALUES_MAX - 1))
KEYS = b'{"type":"a","payload":%b}' % json.dumps({f"{n:07}": n for n in range(58_000)}).encode()
BODIES = {
    "empty items": (batch_of(b"{}"), {}),
    "unknown fields": (batch_of(b'{"x":1}'), {}),
    "bad tags": (batch_of(b'{"type":"a","tags":{"a":1}}'), {}),
    "good tasks": (batch_of(GOOD), {}),
    "good lines": (b"%b\n" % GOOD * limits.BATCH_TASKS_MAX, {"Content_Type": "application/x-ndjson"}),
    "empty lines": (b"\n" * (16 << 20), {"Content_Type": "application/x-ndjson"}),
    "long lists": (batch_of(LISTS, 40), {}),
    "many keys": (batch_of(KEYS, 15), {}),
    "brackets in brackets": (b'{"tasks":[%b]}' % (b"[],[[]]," * 1_500_000 + b"1"), {}),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_batch(world: World, what: str) -> None:
    body, headers = BODIES[what]
    reply, reactor = asked(world, "POST", "/tasks/batch", body, **headers)
    assert reply.status in (200, 413)
    assert max(reactor.took_s) < stretched(HELD_S_MAX)


@pytest.mark.parametrize("body", [LISTS, KEYS], ids=["long lists", "many keys"])
def test_a_submit(world: World, body: bytes) -> None:
    reply, reactor = asked(world, "POST", "/tasks/submit", body)
    assert reply.status == 201
    assert max(reactor.took_s) < stretched(HELD_S_MAX)


def test_a_list(world: World) -> None:
    reply, _ = asked(world, "POST", "/tasks/batch", batch_of(GOOD))
    assert reply.json["accepted"] == limits.BATCH_TASKS_MAX
    reply, reactor = asked(world, "GET", "/tasks/list?limit=10000")
    assert reply.json["count"] == limits.LIST_LIMIT_MAX
    # The first call is the queue's own, which here is a model that knows no slices.
    assert max(reactor.took_s[1:]) < stretched(HELD_S_MAX)


@pytest.mark.parametrize("what", ["empty items", "unknown fields", "bad tags"])
def test_what_is_refused_costs_less_than_what_is_taken(world: World, what: str) -> None:
    """In turns, and the middle of five pairs: the speed of a shared machine drifts."""

    def cpu_s(kind: str) -> float:
        return sum(asked(world, "POST", "/tasks/batch", BODIES[kind][0])[1].took_s)

    assert statistics.median(cpu_s(what) / cpu_s("good tasks") for _ in range(5)) < 1.0
