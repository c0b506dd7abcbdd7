"""What all requests share, places in flight and bytes of bodies: where one caller has it all, another still gets its share."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from twisted.internet.address import IPv4Address

from tests.unit.tq_node.api.talk import Connection, World
from tq_node import limits
from tq_node.api.http.census import Census

AT_ONCE = 10
BODIES = 100_000


@pytest.fixture(params=[False, True], ids=["klein", "direct"])
def small(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(fast_path=request.param, requests_in_flight_max=AT_ONCE, bodies_held_bytes_max=BODIES)
    yield world
    world.close()


def come_from(world: World, host: str) -> None:
    world.peer = IPv4Address("TCP", host, 50_000)


def ask(world: World, count: int) -> list[Connection]:
    clients = [world.connect() for _ in range(count)]
    for client in clients:
        client.request("GET", "/tasks/status?id=a")
    return clients


def statuses(clients: list[Connection]) -> list[int]:
    return [reply.status for client in clients for reply in client.replies()]


def test_another_caller_gets_its_share_of_the_places_in_flight(small: World) -> None:
    small.queue.hold()
    ask(small, AT_ONCE)
    assert statuses(ask(small, 1)) == [429]
    come_from(small, "10.0.0.2")
    others = ask(small, AT_ONCE // 2)
    assert statuses(others) == [], "they wait for the queue"
    assert statuses(ask(small, 1)) == [429], "more than its share"
    come_from(small, "10.0.0.3")
    third = ask(small, AT_ONCE // 3)
    assert statuses(third) == []
    small.queue.release()
    assert statuses(others + third) == [404] * (len(others) + len(third))
    assert small.site.server.in_flight == 0


def test_however_many_come_there_is_a_bound(small: World) -> None:
    small.queue.hold()
    for number in range(4 * AT_ONCE):
        come_from(small, f"10.0.0.{number}")
        ask(small, 2)
    assert AT_ONCE < small.site.server.in_flight <= 2 * AT_ONCE
    small.queue.release()


def begin(world: World, size: int, length: int) -> Connection:
    client = world.connect()
    client.send(b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nX-Other: 1\r\nContent-Length: %d\r\n\r\n" % length)
    client.send(b" " * size)
    return client


def test_another_caller_gets_its_share_of_the_bodies(small: World) -> None:
    loud = [begin(small, BODIES // 2, BODIES) for _ in range(2)]
    assert small.site.server.bodies_held_bytes == BODIES
    come_from(small, "10.0.0.2")
    for size in (10, BODIES // 4):
        reply = small.post("/tasks/submit", b'{"type":"a","payload":"%b"}' % (b"x" * size))
        assert reply.status == 201, reply
    assert small.post("/tasks/submit", b'{"type":"a","payload":"%b"}' % (b"x" * (BODIES // 2))).status == 429
    loud[0].send(b" ")
    assert statuses(loud[:1]) == [429]
    assert loud[0].replies()[0].headers["connection"] == "close"
    loud[1].send(b" " * 100)
    assert statuses(loud[1:]) == [], "there is room again"


class Place(msgspec.Struct):
    who: str
    in_flight: int = 1
    body_bytes: int = 0


def test_it_is_looked_seldom_and_what_is_given_meanwhile_is_added() -> None:
    now_s = 1.0
    looks = 0

    def count(one: object) -> int:
        nonlocal looks
        looks += 1
        return 1

    places = [Place("loud") for _ in range(10)]
    census = Census(places, count, 10, lambda: now_s)
    assert [census.takes("quiet", 1, 11 + number) for number in range(7)] == [True] * 5 + [False] * 2
    assert looks == 10
    assert not census.takes("loud", 1, 12)
    now_s += limits.CENSUS_S
    assert census.takes("quiet", 1, 12), "by then its earlier ones are answered"
    assert looks == 20


def test_one_alone_has_all_and_no_more() -> None:
    census = Census([Place("loud")] * 10, lambda one: one.in_flight, 10, lambda: 1.0)
    assert not census.takes("loud", 1, 11)
