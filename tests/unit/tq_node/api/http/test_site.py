"""What ``twisted.web`` is told: bounds, hang-ups, bad HTTP, the end."""

from __future__ import annotations

import re

import msgspec
import pytest
from twisted.internet.defer import Deferred

from tests.unit.tq_node.api.talk import World

BODY = b'{"type":"a"}'


class TestEveryAnswer:
    def test_it_carries_a_request_id_and_no_store(self, world: World) -> None:
        for reply in (world.get("/health"), world.get("/nothing"), world.post("/tasks/submit", b"{")):
            assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", reply.headers["x-request-id"])
            assert reply.headers["cache-control"] == "no-store"
            assert "date" in reply.headers

    def test_made_ids_differ(self, world: World) -> None:
        assert world.get("/health").headers["x-request-id"] != world.get("/health").headers["x-request-id"]

    @pytest.mark.parametrize(
        ("sent", "back"),
        [
            ("abc-123", "abc-123"),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ('a"b\\c d\te', "abcde"),
            ("x" * 300, "x" * 200),
            ("<script>", "script"),
        ],
    )
    def test_it_is_the_callers_made_harmless(self, world: World, sent: str, back: str | None) -> None:
        assert world.get("/health", X_Request_Id=sent).headers["x-request-id"] == (back or sent)

    @pytest.mark.parametrize("sent", ["", "\xe9\xff", '"""'])
    def test_nothing_left_of_it_means_a_made_one(self, world: World, sent: str) -> None:
        assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", world.get("/health", X_Request_Id=sent).headers["x-request-id"])

    def test_head_is_get_without_a_body(self, world: World) -> None:
        for path in (
            "/health",
            "/tasks/stats",
            "/tasks/list",
            "/metrics",
            "/openapi.json",
            "/",
            "/cluster",
            "/nothing",
        ):
            get, head = world.get(path), world.call("HEAD", path)
            assert head.status == get.status
            assert head.body == b""
            if path not in ("/metrics", "/nothing"):
                assert head.headers["content-length"] == str(len(get.body))

    def test_one_connection_takes_many_requests(self, world: World) -> None:
        client = world.connect()
        for _ in range(3):
            client.request("POST", "/tasks/submit", BODY)
        client.request("GET", "/nothing")
        assert [reply.status for reply in client.replies()] == [201, 201, 201, 404]

    def test_pipelined_requests_are_answered_in_order(self, world: World) -> None:
        client = world.connect()
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert [reply.status for reply in client.replies()] == [200, 404]

    def test_connection_close_is_honoured(self, world: World) -> None:
        client = world.connect()
        client.request("GET", "/health", Connection="close")
        assert client.replies()[0].headers["connection"] == "close"
        assert client.has_ended()

    def test_http_1_0_closes(self, world: World) -> None:
        client = world.connect()
        client.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert client.replies()[0].status == 200
        assert client.has_ended()


class TestBodies:
    def test_a_form_is_not_parsed(self, world: World) -> None:
        body = b"--x\r\nnonsense"
        assert world.post("/tasks/cancel?id=x", body, Content_Type="multipart/form-data; boundary=x").status == 404

    @pytest.mark.parametrize("sent", [0, 1, 99])
    def test_too_long_by_its_header_is_refused_before_it_comes(self, sent: int) -> None:
        world = World(body_bytes_max=1_000)
        client = world.connect()
        client.request("POST", "/tasks/submit", b"x" * sent, Content_Length="1001", X_Request_Id="abc")
        (reply,) = client.replies()
        assert (reply.status, reply.code) == (413, "body_too_large")
        assert reply.headers["connection"] == "close"
        assert reply.headers["x-request-id"] == "abc"
        assert world.site.server.bodies_held_bytes == 0
        # The sender may go on for a moment, so that it gets to read the answer instead of a reset.
        assert not client.has_ended()
        client.send(b"x" * (1_001 - sent))
        assert client.has_ended()
        world.close()

    def test_a_refused_sender_who_goes_on_is_cut_off(self) -> None:
        world = World(body_bytes_max=1_000)
        for sends, seconds in ((5_000, 0.0), (0, 5.0)):
            client = world.connect()
            client.request("POST", "/tasks/submit", b"", Content_Length="1000000")
            client.send(b"x" * sends)
            world.clock.advance(seconds)
            assert client.has_ended()
            assert len(client.replies()) == 1
        world.close()

    def test_too_long_in_chunks_is_refused_at_the_bound(self) -> None:
        world = World(body_bytes_max=1_000)
        client = world.connect()
        client.send(b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            client.send(b"64\r\n" + b" " * 100 + b"\r\n")
        assert client.received == b""
        assert world.site.server.bodies_held_bytes == 1_000
        client.send(b"1\r\n \r\n")
        (reply,) = client.replies()
        assert (reply.status, reply.code) == (413, "body_too_large")
        assert world.site.server.bodies_held_bytes == 0
        client.send(b"0\r\n\r\n")
        assert client.has_ended()
        world.close()

    def test_chunks_are_put_together(self, world: World) -> None:
        client = world.connect()
        client.send(b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in BODY:
            client.send(b"1\r\n%c\r\n" % byte)
        client.send(b"0\r\n\r\n")
        assert client.replies()[0].status == 201

    def test_just_the_bound_is_taken(self) -> None:
        world = World(body_bytes_max=1_000)
        assert world.post("/tasks/submit", BODY.ljust(1_000)).status == 201
        assert world.post("/tasks/submit", BODY.ljust(1_001)).status == 413
        world.close()

    def test_all_bodies_together_are_bounded(self) -> None:
        world = World(body_bytes_max=1_000, bodies_held_bytes_max=1_500)
        first, second = world.connect(), world.connect()
        for client in (first, second):
            client.request("POST", "/tasks/submit", BODY.ljust(900), Content_Length="1000")
        assert first.received == b""
        (refused,) = second.replies()
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "busy", "1")
        first.send(b" " * 100)
        assert first.replies()[0].status == 201
        world.close()

    def test_expect_100_continue(self, world: World) -> None:
        client = world.connect()
        client.request("POST", "/tasks/submit", b"", Content_Length=str(len(BODY)), Expect="100-continue")
        assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(BODY)
        assert b"201 Created" in client.received

    def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing(self, world: World) -> None:
        client = world.connect()
        client.request("POST", "/tasks/submit", BODY, Content_Length="100")
        assert world.site.server.bodies_held_bytes == len(BODY)
        client.transport.hang_up()
        assert world.site.server.bodies_held_bytes == 0


class TestHangUp:
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "/tasks/submit", BODY),
            ("POST", "/tasks/batch", b'{"tasks":[{"type":"a"}]}'),
            ("GET", "/tasks/status?id=x", None),
            ("GET", "/tasks/list", None),
            ("GET", "/tasks/stats", None),
            ("POST", "/tasks/cancel?id=x", None),
            ("POST", "/cluster/snapshot", None),
        ],
    )
    def test_it_cancels_the_call_and_nothing_else(
        self, world: World, method: str, path: str, body: bytes | None
    ) -> None:
        world.queue.hold()
        first, second = world.connect(), world.connect()
        for client in (first, second):
            client.request(method, path, body)
        first.transport.hang_up()
        assert (world.queue.cancelled_calls, len(world.queue.held)) == (1, 1)
        assert world.site.server.in_flight == 1
        world.queue.release()
        assert first.received == b""
        assert len(second.replies()) == 1
        # That nothing was logged is what conftest looks after.

    def test_a_call_that_can_t_be_cancelled_ends_in_silence(self, world: World) -> None:
        stubborn: Deferred[object] = Deferred(lambda d: d.callback({}))
        world.queue.oldest_pending_age_s = lambda: stubborn  # type: ignore[method-assign, assignment, return-value]  # a fake
        client = world.connect()
        client.request("GET", "/metrics")
        client.transport.hang_up()
        world.clock.advance(0)
        assert client.received == b""

    def test_in_the_middle_of_a_long_list(self, world: World) -> None:
        world.post("/tasks/batch", {"tasks": [{"type": "a"}] * 1_001})
        world.site.server.slices.slice_s = 0.0  # it is cut behind each task
        client = world.connect()
        client.request("GET", "/tasks/list?limit=5000")
        assert len(world.site.server.slices) == 1
        client.transport.hang_up()
        world.clock.pump([0, 0, 0])
        assert client.received == b""


class TestBadHttp:
    @pytest.mark.parametrize(
        "data",
        [
            b"nonsense\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET /a b HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(101)) + b"\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        ],
        ids=lambda data: data[:30].decode("latin-1").strip(),
    )
    def test_it_is_a_400_in_our_form_and_the_end(self, world: World, data: bytes) -> None:
        client = world.connect()
        client.send(data)
        (reply,) = client.replies()
        assert (reply.status, reply.code, reply.headers["connection"]) == (400, "malformed", "close")
        assert client.has_ended()

    def test_a_line_without_end_is_cut_off(self, world: World) -> None:
        client = world.connect()
        client.send(b"x" * 100_000)
        assert client.has_ended()


class TestBounds:
    def test_requests_in_flight(self) -> None:
        world = World(requests_in_flight_max=1)
        world.queue.hold()
        client = world.connect()
        client.request("POST", "/tasks/submit", BODY)
        reply = world.post("/tasks/submit", BODY)
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "busy", "1")
        assert world.get("/health").status == 200
        world.queue.release()
        assert client.replies()[0].status == 201
        assert world.post("/tasks/submit", BODY).status == 201
        world.close()

    def test_an_idle_connection_is_closed(self, world: World) -> None:
        quiet, slow = world.connect(), world.connect()
        slow.request("GET", "/health")
        world.clock.advance(74)
        slow.request("GET", "/health")
        world.clock.advance(1)
        assert quiet.has_ended()
        assert not slow.has_ended()
        world.clock.advance(74)
        assert slow.has_ended()

    def test_a_request_that_takes_long_is_not_idle(self, world: World) -> None:
        world.queue.hold()
        client = world.connect()
        client.request("POST", "/tasks/submit", BODY)
        world.clock.advance(600)
        assert not client.has_ended()
        world.queue.release()
        assert client.replies()[0].status == 201

    def test_the_time_begins_anew_with_each_request_and_takes_one_timer(self, world: World) -> None:
        client = world.connect()
        timers = len(world.clock.getDelayedCalls())
        for _ in range(5):
            world.clock.advance(50)
            client.request("POST", "/tasks/submit", BODY)
            assert len(world.clock.getDelayedCalls()) == timers
        world.clock.advance(74)
        assert not client.has_ended()
        world.clock.advance(1)
        assert client.has_ended()

    def test_who_does_not_take_the_end_is_aborted(self, world: World) -> None:
        client = world.connect()
        client.transport.loseConnection = lambda: None  # type: ignore[method-assign]  # output that nobody reads
        world.clock.advance(75)
        assert not client.was_reset()
        world.clock.advance(15)
        assert client.was_reset()


class TestClose:
    def test_idle_connections_go_at_once_others_after_their_answer(self, world: World) -> None:
        idle, busy = world.connect(), world.connect()
        world.queue.hold()
        busy.request("POST", "/tasks/submit", BODY)
        over: list[None] = []
        world.site.close(10).addCallback(over.append)
        assert idle.has_ended()
        assert not busy.has_ended()
        assert world.site.buildProtocol(None) is None
        world.queue.release()
        (reply,) = busy.replies()
        assert (reply.status, reply.headers["connection"]) == (201, "close")
        assert busy.has_ended()
        assert over == [None]

    def test_what_is_left_is_aborted(self, world: World) -> None:
        client = world.connect()
        world.queue.hold()
        client.request("POST", "/tasks/submit", BODY)
        over: list[None] = []
        world.site.close(10).addCallback(over.append)
        world.clock.advance(10)
        assert client.was_reset()
        assert over == [None]

    def test_with_nobody_there(self, world: World) -> None:
        over: list[None] = []
        world.site.close(10).addCallback(over.append)
        world.site.close(10).addCallback(over.append)
        assert over == [None, None]


def test_an_answer_is_counted(world: World) -> None:
    world.post("/tasks/submit", BODY)
    world.post("/tasks/submit", b"{")
    world.get("/secret-path")
    client = world.connect()
    client.request("GET", "/tasks/events")
    client.transport.hang_up()
    counts = {key: sum(histogram.counts) for key, histogram in world.metrics.http_s.items()}
    assert counts == {
        ("/tasks/submit", 201): 1,
        ("/tasks/submit", 400): 1,
        ("other", 404): 1,
        ("/tasks/events", 200): 1,
    }


def test_ready_made_answers_equal_the_structs(world: World) -> None:
    from tq_node.api.responses import BatchAnswer, BatchItem, Submitted

    reply = world.post("/tasks/submit", {"type": "a", "id": "x"})
    assert reply.body == msgspec.json.encode(Submitted(True, "x", "pending", "node-1"))
    reply = world.post("/tasks/batch", {"tasks": [{"type": "a", "id": "y"}]})
    assert reply.body == msgspec.json.encode(BatchAnswer(True, 1, 0, [BatchItem("y", "pending")]))
