"""Tokens at both ways in: who is let in, what others are told, and that the head alone decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address

from tests.support.memory_tokens import token_of
from tests.unit.tq_node.api.talk import Connection, Reply, World
from tq_node import limits
from tq_node.api.access.access import Access
from tq_node.api.access.authenticator import ANONYMOUS
from tq_node.api.http.load_shedding import TICK_S
from tq_node.api.http.request import ApiRequest
from tq_node.tokens import Role

BODY = b'{"type":"email"}'
HEAD_ONLY = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\n"


def bearer(token: str) -> str:
    return f"Bearer {token}"


def with_token(world: World, *roles: Role, **fields: Any) -> dict[str, str]:
    return {"Authorization": bearer(world.tokens.make(*roles, **fields))}


def refused(world: World, token: dict[str, str]) -> dict[str, float]:
    page = world.get("/metrics", **token).body.decode()
    return {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "taskqueue_callers_refused_total"
    }


def check_unauthorized(reply: Reply, error: str | None) -> None:
    assert (reply.status, reply.code) == (401, "unauthorized")
    more = "" if error is None else f', error="{error}"'
    assert reply.headers["www-authenticate"] == f'Bearer realm="taskqueue"{more}'


def test_a_submit_and_its_status_need_a_token(world: World) -> None:
    token = with_token(world, Role.SUBMIT, Role.READ)
    check_unauthorized(world.post("/tasks/submit", BODY), None)
    check_unauthorized(world.get("/tasks/status?id=a"), None)
    check_unauthorized(world.post("/tasks/submit", BODY, Authorization="Bearer x"), "invalid_token")
    check_unauthorized(world.get("/tasks/status?id=a", Authorization="Bearer x"), "invalid_token")
    assert not world.queue.calls
    task_id = world.post("/tasks/submit", BODY, **token).json["task_id"]
    assert world.get(f"/tasks/status?id={task_id}", **token).json["id"] == task_id


def test_not_enough_names_the_missing_role(world: World) -> None:
    view, submit = with_token(world, Role.VIEW, name="seer"), with_token(world, Role.SUBMIT)
    reply = world.post("/tasks/submit", BODY, **view)
    assert (reply.status, reply.code) == (403, "denied")
    assert reply.json["detail"] == "the role submit is missing; seer has view"
    assert "www-authenticate" not in reply.headers
    assert world.post("/tasks/retry?id=a", **submit).json["detail"].startswith("the role operate is missing")
    assert not world.queue.calls


def test_a_node_that_cannot_tell_says_so(world: World) -> None:
    token = with_token(world, Role.SUBMIT)
    of_file = with_token(world, Role.SUBMIT, in_file=True)
    world.tokens.set(is_fresh=False)
    reply = world.post("/tasks/submit", BODY, **token)
    assert (reply.status, reply.code) == (503, "not_ready")
    assert "retry-after" in reply.headers
    assert world.post("/tasks/submit", BODY, **of_file).status == 201


def test_a_revoked_token_on_an_open_connection(world: World) -> None:
    token = with_token(world, Role.SUBMIT, name="gone")
    connection = world.connect()
    connection.request("POST", "/tasks/submit", BODY, **token)
    world.tokens.revoke("gone")
    world.clock.advance(limits.TOKENS_LOOK_S)
    connection.request("POST", "/tasks/submit", BODY, **token)
    assert [reply.status for reply in connection.replies()] == [201, 401]


def told(reply: Reply) -> tuple[int, dict[str, str], dict[str, Any]]:
    """An answer without what differs each time: its date, and the id that it may have been given."""
    passing = {"date", "x-request-id", "content-length"}
    headers = {name: value for name, value in reply.headers.items() if name not in passing}
    return reply.status, headers, {**reply.json, "request_id": ""}


def test_both_ways_in_refuse_alike() -> None:
    seen: list[list[tuple[int, dict[str, str], Any]]] = []
    for fast_path in (False, True):
        world = World(fast_path=fast_path)
        view = with_token(world, Role.VIEW)
        replies = [
            world.call(method, path, body, X_Request_Id="r", **headers)
            for method, path, body in (("POST", "/tasks/submit", BODY), ("GET", "/tasks/status?id=a", None))
            for headers in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": bearer(token_of(99))}, view)
        ]
        seen.append([told(reply) for reply in replies])
        world.close()
    assert seen[0] == seen[1]
    assert [status for status, _, _ in seen[0]] == [401, 401, 401, 403, 401, 401, 401, 404]


def test_open_routes_are_served_with_and_without_a_token(world: World) -> None:
    world.tokens.make(Role.VIEW)
    for path in ("/health", "/livez", "/ready", "/readyz", "/openapi.json", "/", "/problems/unauthorized"):
        assert world.get(path).status == 200
        assert world.get(path, Authorization="Bearer gone").status == 200
        assert world.call("HEAD", path).status == 200


def test_the_page_shows_the_nodes_to_who_may_see_them(world: World) -> None:
    address = world.queue.cluster().nodes[0].http.encode()
    assert address in world.get("/").body
    view, submit = with_token(world, Role.VIEW), with_token(world, Role.SUBMIT)
    assert address in world.get("/", **view).body
    assert address not in world.get("/").body
    assert address not in world.get("/", **submit).body


def test_metrics_are_open_where_that_is_said() -> None:
    for is_open, status in ((False, 401), (True, 200)):
        world = World(open_metrics=is_open)
        world.tokens.make(Role.VIEW)
        assert world.get("/metrics").status == status
        world.close()


def test_what_is_no_route_is_not_found_rather_than_refused(world: World) -> None:
    world.tokens.make(Role.VIEW)
    assert world.get("/nothing").status == 404
    assert world.get("/problems/nothing").status == 404
    assert world.call("PUT", "/tasks/submit", BODY).status == 405


def test_head_asks_what_get_asks(world: World) -> None:
    token = with_token(world, Role.VIEW)
    assert world.call("HEAD", "/tasks/list").status == 401
    assert world.call("HEAD", "/tasks/list", **token).status == 200


@pytest.mark.parametrize("path", ["/tasks/list", "/tasks/status?id=a"])
@pytest.mark.parametrize("name", ["access_token", "token", "authorization", "bearer"])
def test_a_token_in_the_address_is_never_taken(world: World, path: str, name: str) -> None:
    token = world.tokens.make(Role.ADMIN)
    joint = "&" if "?" in path else "?"
    check_unauthorized(world.get(f"{path}{joint}{name}={token}"), None)
    check_unauthorized(world.get(path, Cookie=f"{name}={token}"), None)
    check_unauthorized(world.get(path, Proxy_Authorization=bearer(token)), None)
    check_unauthorized(world.get(path, X_Authorization=bearer(token)), None)


def test_a_token_in_the_host_s_place_is_never_taken(world: World) -> None:
    token = world.tokens.make(Role.ADMIN)
    assert world.get(f"http://x:{token}@localhost/tasks/list").status in (400, 401)


@pytest.mark.parametrize(
    "target",
    [
        "/tasks/list/", "//tasks/list", "/./tasks/list", "/tasks//list", "/tasks/list;a=b", "/TASKS/LIST",
        "/tasks/%6cist", "/%74asks/list", "/tasks%2flist", "/tasks/list%00", "/tasks/list%20", "/tasks/list?", "/tasks/list?a",
        "/health/../tasks/list", "/problems/../tasks/list", "/problems/%2e%2e/tasks/list", "/problems//tasks/list",
        "/problems/x?/../tasks/list", "/health/tasks/list", "/health;/../tasks/list", "http://localhost/tasks/list",
        "http://localhost//tasks/list", "http://localhost/health/../tasks/list", "HTTP://LOCALHOST/tasks/list",
    ],
)  # fmt: skip
def test_no_spelling_of_an_address_leads_past_the_door(world: World, target: str) -> None:
    world.tokens.make(Role.ADMIN)
    reply = world.get(target)
    assert reply.status in (400, 401, 404)
    assert not world.queue.calls


@pytest.mark.parametrize("name", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-HTTP-Method-Override"])
def test_no_header_leads_past_the_door(world: World, name: str) -> None:
    world.tokens.make(Role.ADMIN)
    assert world.get("/tasks/list", **{name.replace("-", "_"): "/health"}).status == 401
    assert world.get("/health", **{name.replace("-", "_"): "/tasks/list"}).json["status"] == "ok"


def test_each_request_of_a_connection_shows_its_own_token(world: World) -> None:
    token = with_token(world, Role.ADMIN)
    connection = world.connect()
    connection.request("POST", "/tasks/submit", BODY, **token)
    connection.request("POST", "/tasks/submit", BODY)
    connection.request("GET", "/tasks/stats", None, **token)
    connection.request("GET", "/tasks/stats")
    world.clock.advance(TICK_S)
    assert [reply.status for reply in connection.replies()] == [201, 401, 200, 401]


def test_a_token_behind_the_body_is_none(world: World) -> None:
    token = world.tokens.make(Role.ADMIN)
    chunks = b"10\r\n" + BODY + b"\r\n0\r\nAuthorization: Bearer " + token.encode() + b"\r\n\r\n"
    connection = begin(world, b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert b" 401 " in connection.received
    assert not world.queue.calls


@pytest.mark.parametrize("lines", ["{0}{0}", "{0}{1}", "{1}{0}"])
def test_two_headers_are_refused_whatever_they_say(world: World, lines: str) -> None:
    good = f"Authorization: {bearer(world.tokens.make(Role.ADMIN))}\r\n"
    connection = world.connect()
    both = lines.format(good, "authorization: Basic eDp5\r\n")
    connection.send(f"GET /tasks/status?id=a HTTP/1.1\r\nHost: localhost\r\n{both}\r\n".encode())
    (reply,) = connection.replies()
    assert (reply.status, reply.code) == (400, "malformed")


def test_a_folded_header_is_refused(world: World) -> None:
    token = world.tokens.make(Role.ADMIN)
    connection = world.connect()
    connection.send(
        f"GET /tasks/status?id=a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer\r\n {token}\r\n\r\n".encode()
    )
    assert b" 400 " in connection.received


# --- the head alone decides ---
def begin(world: World, more: bytes, **headers: str) -> Connection:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection = world.connect()
    connection.send(HEAD_ONLY + lines.encode() + more)
    return connection


def test_nothing_of_a_large_body_is_held_for_who_may_not_send_it(world: World) -> None:
    world.tokens.make(Role.SUBMIT)
    connection = begin(world, b"Content-Length: 10000000\r\n\r\n" + b"a" * 10_000)
    assert b" 401 " in connection.received
    assert b"Connection: close" in connection.received
    assert world.site.server.bodies_held_bytes == 0


def test_a_body_is_not_asked_for(world: World) -> None:
    token = with_token(world, Role.SUBMIT)
    ask = b"Expect: 100-continue\r\nContent-Length: 16\r\n\r\n"
    assert begin(world, ask).received.startswith(b"HTTP/1.1 401 ")
    assert begin(world, ask, **token).received.startswith(b"HTTP/1.1 100 ")


def test_a_chunked_body_is_refused_by_its_head(world: World) -> None:
    world.tokens.make(Role.SUBMIT)
    connection = begin(world, b"Transfer-Encoding: chunked\r\n\r\n")
    assert b" 401 " in connection.received


def test_a_small_body_that_has_begun_is_not_put_together_for_who_may_not_send_it(world: World) -> None:
    world.tokens.make(Role.SUBMIT)
    connection = begin(world, b"Content-Length: 16\r\n\r\n" + BODY[:4])
    assert not connection.channel._begun
    connection.send(BODY[4:])
    assert [reply.status for reply in connection.replies()] == [401]
    connection.request("GET", "/health")
    assert [reply.status for reply in connection.replies()] == [401, 200], "the connection stays of use"


def test_a_token_that_is_revoked_while_the_body_arrives_counts_no_more(world: World) -> None:
    token = with_token(world, Role.SUBMIT, name="gone")
    for size, more in ((b"Content-Length: 70000", b"a" * 70_000), (b"Content-Length: 16", BODY)):
        connection = begin(world, size + b"\r\n\r\n" + more[:10], **token)
        world.tokens.revoke("gone")
        connection.send(more[10:])
        world.clock.advance(0.02)
        assert [reply.status for reply in connection.replies()] == [401]
        assert not world.queue.calls
        token = with_token(world, Role.SUBMIT, name="gone")


def test_a_wait_tells_nothing_to_a_token_that_was_revoked_meanwhile(world: World) -> None:
    kept, gone = (with_token(world, Role.READ, name=name) for name in ("kept", "gone"))
    task_id = world.post("/tasks/submit", BODY, **with_token(world, Role.SUBMIT)).json["task_id"]
    waiting = [world.connect() for _ in range(2)]
    for connection, token in zip(waiting, (kept, gone), strict=True):
        connection.request("GET", f"/tasks/status?id={task_id}&wait=60", None, **token)
    world.tokens.revoke("gone")
    world.queue.start_task(task_id)
    world.queue.finish_task(task_id)
    assert [reply.status for connection in waiting for reply in connection.replies()] == [200, 401]
    assert world.site.server.waiting == 0


# --- slowed down, and counted ---
def test_refusals_are_counted_by_reason(world: World) -> None:
    view = with_token(world, Role.VIEW)
    world.get("/tasks/list")
    world.post("/tasks/submit", BODY)
    world.get("/tasks/list", Authorization="Basic eDp5")
    world.get("/tasks/list", Authorization="Bearer x")
    world.get("/tasks/status?id=a", Authorization=bearer(token_of(99)))
    world.post("/tasks/submit", BODY, **view)
    begin(world, b"Content-Length: 10000000\r\n\r\n")
    assert refused(world, view) == {"missing": 3, "scheme": 1, "malformed": 1, "unknown": 1, "denied": 1}


def test_who_fails_often_waits_and_others_do_not(world: World) -> None:
    token = with_token(world, Role.SUBMIT)
    world.clock.advance(0)
    guessers = [world.connect() for _ in range(10 * limits.REFUSED_CALLERS_PER_S)]
    for number, guesser in enumerate(guessers):
        guesser.request("POST", "/tasks/submit", BODY, Authorization=bearer(token_of(1_000 + number)))
    world.clock.pump([TICK_S] * round(0.5 / TICK_S))
    told = sum(bool(guesser.received) for guesser in guessers)
    assert 1 <= told <= 0.5 * limits.REFUSED_CALLERS_PER_S + 1
    assert world.post("/tasks/submit", BODY, **token).status == 201
    for _ in range(int(limits.REFUSAL_WAIT_MS_MAX / 20) + 2):
        world.clock.advance(0.02)
    assert all(b" 401 " in guesser.received for guesser in guessers), "each is told in the end"
    for _ in range(100):
        world.clock.advance(0.02)


def test_who_still_waits_is_told_when_the_node_stops(world: World) -> None:
    world.tokens.make(Role.SUBMIT)
    guessers = [world.connect() for _ in range(10)]
    for guesser in guessers:
        guesser.request("POST", "/tasks/submit", BODY)
    assert sum(bool(guesser.received) for guesser in guessers) < 10
    closed = world.site.close(within_s=5.0)
    assert all(b" 401 " in guesser.received for guesser in guessers)
    assert closed.called


def test_a_request_that_was_not_judged_may_nothing() -> None:
    assert (ApiRequest.access, ApiRequest.caller) == (Access.ADMIN, ANONYMOUS)


def test_who_hangs_up_while_it_waits_is_forgotten(world: World) -> None:
    world.tokens.make(Role.SUBMIT)
    for _ in range(3 * limits.REFUSED_CALLERS_PER_S):
        guesser = world.connect()
        guesser.request("POST", "/tasks/submit", BODY)
        guesser.transport.hang_up()
    world.peer = IPv4Address("TCP", "127.0.0.2", 1)
    for _ in range(200):
        world.clock.advance(0.02)
    assert world.get("/tasks/list").status == 401
    world.clock.advance(1)


# --- both ways in, whatever is sent ---
HEADER_BYTES = st.binary(max_size=80).filter(lambda data: not set(data) & set(b"\r\n"))
NEARLY = st.builds(
    lambda scheme, gap, token, rest: scheme + gap + token + rest,
    st.sampled_from([b"Bearer", b"bearer", b"Basic", b"Bearer Bearer", b"", b"\xff"]),
    st.sampled_from([b" ", b"", b"\t", b"  ", b":", b"="]),
    st.sampled_from([token_of(1).encode(), token_of(2).encode(), token_of(1).encode()[:-1], b"tq_", b""]),
    st.sampled_from([b"", b" ", b"\t", b"\x00", b",", b"\xc2\xa0", b"x"]),
)


@given(st.lists(HEADER_BYTES | NEARLY, min_size=1, max_size=2), st.sampled_from(["Authorization", "authorization"]))
def test_whatever_is_shown_both_ways_in_say_the_same(values: list[bytes], name: str) -> None:
    answers = []
    for fast_path in (False, True):
        world = World(fast_path=fast_path)
        assert world.tokens.make(Role.SUBMIT) == token_of(1)
        lines = b"".join(b"%b: %b\r\n" % (name.encode(), value) for value in values)
        connection = world.connect()
        connection.send(HEAD_ONLY + b"X-Request-Id: r\r\nContent-Length: 16\r\n" + lines + b"\r\n" + BODY)
        world.clock.advance(0.02)
        (reply,) = connection.replies()
        answers.append(told(reply))
        world.close()
    assert answers[0] == answers[1]
    status = answers[0][0]
    shown = values[0].strip(b" \t").split(b" ")
    is_right = (
        len(values) == 1
        and shown[0].lower() == b"bearer"
        and shown[-1] == token_of(1).encode()
        and not any(shown[1:-1])
    )
    assert status == (201 if is_right else 400 if len(values) > 1 else status)
    assert is_right or status in (400, 401)
