"""Whoever holds a connection keeps nobody out, and whoever reads nothing makes the node keep nothing."""

from __future__ import annotations

from unittest import mock

import pytest
from twisted.internet.address import IPv4Address

from tests.unit.tq_node.api.talk import Connection, World
from tq_node import limits
from tq_node.api.http.connections import address_of
from tq_node.api.settings import connections_max

PROBE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SUBMIT = b'POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{"type":"a"}'
PLAIN = {"hot": b"", "long": b"X-Other: 1\r\n"}


@pytest.fixture(params=["hot", "long"])
def ask(world: World, request: pytest.FixtureRequest) -> bytes:
    """A read of a task, by each way in."""
    more = PLAIN[request.param]
    return b"GET /tasks/status?id=%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (world.submit().encode(), more)


def fill(client: Connection) -> None:
    """From here on the socket takes nothing: each write says so, as a transport does."""
    write = client.transport.write

    def full(data: bytes) -> None:
        write(data)
        client.channel.pauseProducing()

    client.transport.write = full  # type: ignore[method-assign]
    client.transport.writeSequence = lambda pieces: full(b"".join(pieces))  # type: ignore[method-assign]


class TestUnsent:
    def test_no_request_is_taken_before_the_answer_has_gone(self, world: World, ask: bytes) -> None:
        client = world.connect()
        fill(client)
        client.send(ask * 2)
        client.send(ask)
        for answered in (1, 2, 3):
            assert len(client.replies()) == answered
            client.channel.resumeProducing()
        client.send(ask)
        assert [reply.status for reply in client.replies()] == [200] * 4

    def test_a_submit_behind_waits_too_and_is_done_once(self, world: World, ask: bytes) -> None:
        client = world.connect()
        fill(client)
        client.send(ask)
        client.send(SUBMIT)
        assert len(client.replies()) == 1
        client.channel.resumeProducing()
        assert [reply.status for reply in client.replies()] == [200, 201]

    def test_it_is_counted_until_it_has_gone(self, world: World, ask: bytes) -> None:
        client, other = world.connect(), world.connect()
        for one in (client, other):
            fill(one)
            one.send(ask)
        unsent = world.site.server.connections.unsent_bytes
        assert unsent > 2 * limits.UNSENT_UNCOUNTED_BYTES
        client.channel.resumeProducing()
        assert 0 < world.site.server.connections.unsent_bytes < unsent
        other.transport.hang_up()
        assert world.site.server.connections.unsent_bytes == 0

    def test_where_there_is_too_much_whoever_has_most_is_reset(self, world: World, ask: bytes) -> None:
        most, least = world.connect(), world.connect()
        for one in (most, least):
            fill(one)
        with mock.patch.object(limits, "UNSENT_BYTES_MAX", 2 * limits.UNSENT_UNCOUNTED_BYTES + 2_000):
            most.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert most.was_reset()
            assert world.site.server.connections.unsent_bytes == 0
            least.send(ask)
            assert not least.was_reset()

    def test_whoever_takes_nothing_for_long_is_reset(self, world: World, ask: bytes) -> None:
        client = world.connect()
        fill(client)
        client.send(ask)
        world.clock.pump([1.0] * (int(limits.UNSENT_STALL_S) - 1))
        assert not client.was_reset()
        world.clock.pump([1.0] * 3)
        assert client.was_reset()

    def test_whoever_takes_a_little_goes_on(self, world: World, ask: bytes) -> None:
        client = world.connect()
        fill(client)
        client.send(ask)
        for second in range(100):
            client.transport.offset = second  # type: ignore[attr-defined]  # as a transport counts what has gone
            world.clock.advance(1.0)
            assert not client.was_reset()


class TestArriving:
    @pytest.mark.parametrize("begin", [b"P", b"GET /health HTTP/1.1\r\n", PROBE[:-2], PROBE + PROBE[:-2]])
    def test_a_head_is_whole_within_ten_seconds(self, world: World, begin: bytes) -> None:
        client = world.connect()
        client.send(begin)
        for _ in range(9):
            world.clock.advance(1.0)
            client.send(b" " if begin == b"P" else b"")
        assert not client.is_gone()
        world.clock.pump([1.0] * 3)
        assert client.is_gone()

    @pytest.mark.parametrize("way", ["hot", "long"])
    @pytest.mark.parametrize(("each_s", "lives"), [(1, False), (600, False), (1_100, True)])
    def test_a_body_comes_at_a_kibibyte_a_second(self, world: World, way: str, each_s: int, lives: bool) -> None:
        client = world.connect()
        head = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: 60000\r\n\r\n" % PLAIN[way]
        client.send(head)
        for _ in range(40):
            client.send(b" " * each_s)
            world.clock.advance(1.0)
            if client.is_gone():
                break
        assert client.is_gone() is not lives

    def test_one_that_is_quiet_between_requests_is_not_meant(self, world: World, ask: bytes) -> None:
        client = world.connect()
        client.send(ask)
        world.clock.pump([1.0] * 60)
        client.send(ask)
        assert len(client.replies()) == 2

    def test_nor_one_that_waits_for_its_answer(self, world: World) -> None:
        client = world.connect()
        task_id = world.submit()
        client.send(b"GET /tasks/status?id=%b&wait=50 HTTP/1.1\r\nHost: localhost\r\n\r\n" % task_id.encode())
        world.clock.pump([1.0] * 60)
        assert len(client.replies()) == 1


class TestRoom:
    def test_the_quietest_makes_room(self) -> None:
        world = World(connections_max=3)
        first, second, third = (world.connect() for _ in range(3))
        first.send(PROBE)
        fourth = world.connect()
        assert [one.was_reset() for one in (first, second, third, fourth)] == [False, True, False, False]
        fourth.send(SUBMIT)
        assert fourth.replies()[0].status == 201
        world.close()

    def test_one_that_drips_is_as_quiet_as_one_that_says_nothing(self) -> None:
        world = World(connections_max=2)
        drips, client = world.connect(), world.connect()
        client.send(PROBE)
        drips.send(b"GET ")
        world.connect()
        assert drips.was_reset()
        world.close()

    def test_where_all_are_busy_places_are_left_for_probes(self) -> None:
        world = World(connections_max=1)
        world.queue.hold()
        busy = world.connect()
        busy.send(SUBMIT)
        for _ in range(limits.HTTP_PROBES_MAX - 1):
            world.connect()
        probe = world.connect()
        probe.send(PROBE + PROBE)
        assert [reply.status for reply in probe.replies()] == [200, 200]
        probe.send(SUBMIT)
        assert (probe.replies()[-1].code, probe.has_ended()) == ("busy", True)
        assert not busy.was_reset()
        world.queue.release()
        assert busy.replies()[0].status == 201
        world.close()

    def test_one_address_takes_its_own_places_only(self) -> None:
        world = World(connections_of_address_max=2)
        first = world.connect()
        world.peer = IPv4Address("TCP", "10.0.0.2", 5)
        mine = [world.connect() for _ in range(2)]
        world.connect()
        assert [one.was_reset() for one in (first, *mine)] == [False, True, False]
        world.close()

    @pytest.mark.parametrize(
        ("descriptors", "bound"), [(1_048_576, 10_000), (4_096, 3_200), (1_024, 640), (256, limits.HTTP_PROBES_MAX)]
    )
    def test_the_bound_fits_the_process(self, descriptors: int, bound: int) -> None:
        assert connections_max(descriptors) == bound


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.1", "@10.0.0.1"),
        ("::1", "@::/64"),
        ("2001:db8:1:2:3:4:5:6", "@2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "@2001:db8:1:2::/64"),
        ("fe80::1%eth0", "@fe80::/64"),
        ("::ffff:10.0.0.1", "@10.0.0.1"),
        ("", "@"),
        ("not:an:address", "@not:an:address"),
    ],
)
def test_whom_an_address_stands_for(host: str, address: str) -> None:
    assert address_of(host) == address
