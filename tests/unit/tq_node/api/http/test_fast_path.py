"""The short way: what it takes, what it leaves to ``twisted.web``, and that nobody can tell which of them answered."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.api.talk import World
from tq_node.api.access.access import Access
from tq_node.api.access.authenticator import Authenticator
from tq_node.api.http.fast_path import FastPath, NoRequest, PlainRequest
from tq_node.api.http.request_head import KnownHosts
from tq_node.api.routes import Route
from tq_node.facade import TokenTable

BODY = b'{"type":"a"}'
SUBMIT = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n" + BODY
STATUS = b"GET /tasks/status?id=a HTTP/1.1\r\nHost: localhost\r\n\r\n"


def path() -> FastPath:
    routes = [
        Route("POST", "/tasks/submit", Access.SUBMIT, lambda request: None, "", {}),
        Route("GET", "/tasks/status", Access.READ_OWN, lambda request: None, "", {}),
    ]
    anybody = Authenticator(TokenTable, lambda: 0.0)
    return FastPath(routes, 1_000, KnownHosts({"localhost"}), anybody)


def with_line(line: bytes) -> bytes:
    return SUBMIT.replace(b"Host: localhost\r\n", b"Host: localhost\r\n" + line + b"\r\n")


@pytest.mark.parametrize("data", [SUBMIT, STATUS, with_line(b"content-TYPE:text/plain"), with_line(b"Accept: */*")])
def test_plain_requests_are_taken(data: bytes) -> None:
    hot = path()
    for _ in range(2):
        found = hot.read(data)
        assert isinstance(found, PlainRequest)
        assert found.body == (BODY if b"POST" in data else b"")
        assert found.task_id == (None if b"POST" in data else "a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        SUBMIT + b"G",
        STATUS + b"G",
        SUBMIT.replace(b"HTTP/1.1", b"HTTP/1.0"),
        SUBMIT.replace(b" /", b"  /", 1),
        SUBMIT.replace(b"POST", b"PUT"),
        SUBMIT.replace(b"Host: localhost\r\n", b""),
        SUBMIT.replace(b"localhost", b"evil.example"),
        SUBMIT.replace(b"localhost", b""),
        with_line(b"Accept: " + b"a" * 17_000),
        SUBMIT.replace(b"submit", b"submit?x=1"),
        SUBMIT.replace(b"Content-Length: 12", b"Content-Length: +12"),
        SUBMIT.replace(b"Content-Length: 12", b"Content-Length: 1001"),
        SUBMIT.replace(b"Content-Length: 12", b"Content-Length: 12\r\nContent-Length: 12"),
        SUBMIT.replace(b"Content-Length: 12\r\n", b""),
        with_line(b"Transfer-Encoding: chunked"),
        with_line(b"Connection: close"),
        with_line(b"Expect: 100-continue"),
        with_line(b"Origin: http://x"),
        with_line(b"Content-Encoding: gzip"),
        with_line(b"X-Other: 1"),
        with_line(b" folded"),
        with_line(b"Accept : a"),
        with_line(b"Accept: a\rb"),
        with_line(b"no colon"),
        with_line(b"host: y"),
        STATUS.replace(b"id=a", b"id=a&wait=1"),
        STATUS.replace(b"id=a", b"id=%61"),
        STATUS.replace(b"id=a", b"id=" + b"a" * 300),
        STATUS.replace(b"Host: localhost\r\n", b"Host: localhost\r\nContent-Length: 0\r\n"),
    ],
)
def test_everything_else_is_left_to_twisted_web(data: bytes) -> None:
    hot = path()
    assert [hot.read(data), hot.read(data)] == [NoRequest.NOT_PLAIN] * 2


def test_a_body_that_is_on_its_way_is_waited_for() -> None:
    assert [path().read(SUBMIT[:-missing]) for missing in (1, 12)] == [NoRequest.INCOMPLETE] * 2


def test_heads_are_kept_within_a_bound() -> None:
    hot = path()
    for number in range(1_000):
        assert isinstance(hot.read(with_line(b"User-Agent: %d" % number)), PlainRequest)
        assert isinstance(hot.read(with_line(b"X-Request-Id: %d" % number)), PlainRequest)
    assert len(hot._heads) <= 256


@pytest.mark.parametrize("cut", [*range(1, len(SUBMIT), 7), len(SUBMIT) - 1])
def test_pieces_of_any_size_make_the_same_request(world: World, cut: int) -> None:
    client = world.connect()
    client.send(SUBMIT[:cut])
    assert client.received == b""
    client.send(SUBMIT[cut:])
    # Then plain ones again, on the same connection.
    client.send(SUBMIT)
    client.send(STATUS)
    assert [reply.status for reply in client.replies()] == [201, 201, 404]


def test_what_comes_behind_waits_for_its_turn(world: World) -> None:
    world.queue.hold()
    client = world.connect()
    client.send(SUBMIT)
    for piece in (STATUS[:10], STATUS[10:] + SUBMIT, STATUS):
        client.send(piece)
    assert len(world.queue.held) == 1
    world.queue.release()
    assert [reply.status for reply in client.replies()] == [201, 404, 201, 404]


def test_who_sends_on_without_end_is_not_read_any_more(world: World) -> None:
    world.queue.hold()
    client = world.connect()
    client.send(SUBMIT)
    client.send(SUBMIT * 1_000)
    assert client.transport.producerState == "paused"
    world.queue.release()
    assert client.transport.producerState == "producing"
    assert [reply.status for reply in client.replies()] == [201] * 1_001


def test_a_client_that_goes_with_more_behind_leaves_nothing(world: World) -> None:
    world.queue.hold()
    client = world.connect()
    client.send(SUBMIT)
    client.send(SUBMIT)
    client.transport.hang_up()
    assert (world.site.server.in_flight, world.site.server.bodies_held_bytes) == (0, 0)
    world.queue.release()


def test_idle_counts_from_the_answer(world: World) -> None:
    world.queue.hold()
    client = world.connect()
    client.send(SUBMIT)
    world.clock.advance(100)
    world.queue.release()
    world.clock.advance(74)
    assert not client.has_ended()
    world.clock.advance(1)
    assert client.has_ended()


def test_answers_are_the_same_to_the_letter(world: World) -> None:
    """But for the request's id and the task's own."""
    plain = world.connect()
    plain.send(SUBMIT.replace(b"Host: localhost\r\n", b"Host: localhost\r\nX-Request-Id: same\r\n"))
    other = world.connect()
    other.send(SUBMIT.replace(b"Host: localhost\r\n", b"Host: localhost\r\nX-Request-Id: same\r\nX-Other: 1\r\n"))
    ids = [client.replies()[0].json["task_id"].encode() for client in (plain, other)]
    assert plain.received.replace(ids[0], b"-") == other.received.replace(ids[1], b"-")
    assert world.metrics.http_s.keys() == {("/tasks/submit", 201)}
