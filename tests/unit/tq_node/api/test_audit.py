"""The audit log at both ways in: a line for each change and each refusal, none for the rest, and ``GET /audit``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit_now import AuditNow
from tests.unit.tq_node.api.talk import NOW_S, World
from tq_node import attempt_token, audit, errors, limits, tokens
from tq_node.api.assembly import documented_routes
from tq_node.audit import AuditLine, Chain, findings_of
from tq_node.tokens import Role
from tq_node.types import Token

Line = tuple[str, str, str, str, int]
"""Token, method, path, what, outcome."""
BODY = b'{"type":"email","id":"t-1","payload":"very private"}'


class Audited:
    """A world with an audit log, and tokens of an admin, a submitter and a viewer."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.log = AuditNow(directory)
        self.world = World(nodes=("node-1", "node-2"), audit=self.log, **settings)
        self.secrets = {
            role: self.world.tokens.make(role, name=f"the-{role}") for role in (Role.ADMIN, Role.SUBMIT, Role.VIEW)
        }
        self._seen = 0

    def token(self, role: Role) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[role]}"}

    def new(self) -> list[Line]:
        """Lines since the last call."""
        lines = self.log.lines[self._seen :]
        self._seen += len(lines)
        return [_short(line) for line in lines]

    def post(self, path: str, body: Any = None, role: Role = Role.ADMIN, **headers: str) -> int:
        return self.world.post(path, body, **self.token(role), **headers).status

    def close(self) -> None:
        self.world.site.server.audit.close()  # type: ignore[union-attr]
        self.world.close()
        self.log.close()
        chain = Chain()
        assert not list(findings_of(chain, (("", line) for line in self.log.path.read_bytes().splitlines())))
        assert chain.is_whole
        written = self.log.path.read_bytes()
        assert b"private" not in written
        assert not [secret for secret in self.secrets.values() if secret.encode() in written]


def _short(line: AuditLine) -> Line:
    return (line.token, line.method, line.path, line.what, line.outcome)


@pytest.fixture(params=[False, True], ids=["klein", "direct"])
def audited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Audited]:
    made = Audited(tmp_path, fast_path=request.param)
    yield made
    made.close()


# --- changes ---
CLAIM = {"task_id": "t-1", "token": attempt_token.text_of(1, 1, Token(1, 1))}
CHANGE_NOTHING = {"/work/extend"}
"""Of the POSTs; a lease is kept nowhere, and what a handler says meanwhile is no order."""
ORDERS: dict[str, tuple[str, Any, str]] = {
    "/tasks/submit": ("", {"type": "email", "id": "t-2"}, "t-2"),
    "/tasks/batch": ("", {"tasks": [{"type": "email", "id": "t-3"}]}, "t-3"),
    "/tasks/cancel": ("?id=t-1", None, "id=t-1"),
    "/tasks/retry": ("?id=t-1", None, "id=t-1"),
    "/tasks/purge": ("?id=t-1", None, "id=t-1"),
    "/tasks/pause": ("?queue=mail", None, "queue=mail"),
    "/tasks/resume": ("?queue=mail", None, "queue=mail"),
    "/cluster/join": ("", None, ""),
    "/cluster/invite": ("", None, "invitation"),
    "/cluster/drain": ("?node=node-2", None, "node=node-2"),
    "/cluster/undrain": ("?node=node-2", None, "node=node-2"),
    "/cluster/remove": ("?node=node-2", None, "node=node-2"),
    "/cluster/rebalance": ("", None, ""),
    "/cluster/shutdown": ("?node=node-2", None, "node=node-2"),
    "/cluster/snapshot": ("", None, ""),
    "/cluster/unsafe-recover": ("?partition=1&node=node-2", None, "partition=1&node=node-2"),
    "/workers/reload": ("", None, ""),
    "/workers/quiet": ("?worker=w-1", None, "worker=w-1"),
    "/workers/stop": ("?worker=w-1", None, "worker=w-1"),
    "/workers/resume": ("?worker=w-1", None, "worker=w-1"),
    "/work/claim": ("", {"worker": "w-1", "wait": 0}, "t-1"),
    "/work/finish": ("", {"worker": "w-1", "claims": [CLAIM | {"outcome": "completed"}]}, "t-1"),
    "/workers/announce": ("", {"worker": "w-1", "types": [{"type": "email", "queue": "mail"}]}, "w-1 email"),
    "/types/put": ("", {"type": "email", "max_attempts": 2}, "email"),
    "/types/delete": ("?type=email", None, "type=email"),
    "/tokens/put": ("", {"name": "deploy", "roles": ["submit"], "queues": ["mail"]}, "deploy roles=submit queues=mail"),
    "/tokens/revoke": ("?name=the-view", None, "name=the-view"),
}
"""Each POST with its query, its body, and what its line says that it is about."""


def test_every_route_that_changes_something_has_a_row_here() -> None:
    assert set(ORDERS) | CHANGE_NOTHING == {route.path for route in documented_routes() if route.method == "POST"}


@pytest.mark.parametrize("path", ORDERS)
def test_each_change_is_a_line_with_who_asked_for_it(audited: Audited, path: str) -> None:
    query, body, what = ORDERS[path]
    assert audited.post("/tasks/submit", BODY) == 201
    if path == "/types/delete":
        audited.post("/types/put", {"type": "email"})
    if path == "/tasks/purge":
        audited.post("/tasks/cancel?id=t-1")
    if path == "/tasks/retry":
        audited.post("/tasks/cancel?id=t-1")
    if path == "/cluster/unsafe-recover":
        audited.world.queue.members.set_partition(1, state="offline", primary=None)
    audited.new()
    status = audited.post(path + query, body)
    (line,) = audited.new()
    assert line == ("the-admin" if path != "/cluster/join" else line[0], "POST", path, what, status)
    assert status in (200, 201, 202, 403)


def test_a_line_says_when_from_where_and_under_which_request_id(audited: Audited) -> None:
    audited.post("/tasks/submit", BODY, Role.SUBMIT, X_Request_Id="mine-7")
    (line,) = audited.log.lines
    assert (line.at, line.host, line.request_id, line.node) == (
        audit.instant(round(NOW_S * 1_000_000)), "127.0.0.1", "mine-7", "node-1",
    )  # fmt: skip


def test_a_submit_is_a_line_whatever_becomes_of_it(audited: Audited) -> None:
    assert audited.post("/tasks/submit", BODY, Role.SUBMIT) == 201
    assert audited.post("/tasks/submit", BODY, Role.SUBMIT) == 200
    assert audited.post("/tasks/submit", BODY.replace(b"email", b"image"), Role.SUBMIT) == 409
    made = json.loads(audited.world.post("/tasks/submit", {"type": "x"}, **audited.token(Role.SUBMIT)).body)["task_id"]
    large = json.dumps({"type": "x", "id": "t-9", "payload": "private " * 20_000}).encode()
    assert audited.post("/tasks/submit", large, Role.SUBMIT) == 201
    assert [(line[0], line[3], line[4]) for line in audited.new()] == [
        ("the-submit", "t-1", 201), ("the-submit", "t-1", 200), ("the-submit", "t-1", 409), ("the-submit", made, 201),
        ("the-submit", "t-9", 201),
    ]  # fmt: skip


def test_an_order_for_what_is_not_there_is_a_line(audited: Audited) -> None:
    assert audited.post("/tasks/cancel?id=nobody-s") == 404
    audited.world.queue.fail_next("drain", errors.OutcomeUnknown("not in time"))
    assert audited.post("/cluster/drain?node=node-2") == 504
    assert [line[3:] for line in audited.new()] == [("id=nobody-s", 404), ("node=node-2", 504)]


def test_all_tasks_of_a_batch_are_named_in_as_many_lines_as_it_takes(audited: Audited) -> None:
    ids = [f"task-{number:0100}" for number in range(100)]
    tasks: list[dict[str, Any]] = [{"type": "x", "id": one, "payload": "private"} for one in ids]
    assert audited.post("/tasks/batch", {"tasks": [*tasks, {"type": "x", "wrong": 1}]}) == 200
    lines = audited.new()
    assert len(lines) > 2
    assert all(len(what) <= limits.AUDIT_WHAT_CHARS_MAX for _, _, _, what, _ in lines)
    assert " ".join(what for _, _, _, what, _ in lines) == " ".join([*ids, "(1 refused)"])
    assert len({line.request_id for line in audited.log.lines}) == 1


def test_tasks_of_a_batch_that_the_token_may_not_submit_are_counted(audited: Audited) -> None:
    token = audited.world.tokens.make(Role.SUBMIT, name="mailer", queues=("mail",))
    tasks = [{"type": "x", "id": "t-1", "queue": "mail"}, {"type": "x", "queue": "foreign"}, {"type": "x", "wrong": 1}]
    reply = audited.world.post("/tasks/batch", {"tasks": tasks}, Authorization=f"Bearer {token}")
    assert reply.json["accepted"] == 1
    (line,) = audited.new()
    assert line == ("mailer", "POST", "/tasks/batch", "t-1 (2 refused, 1 of them denied)", 200)


def test_what_a_token_may_not_know_of_is_a_line_when_it_is_asked_for(audited: Audited) -> None:
    audited.post("/tasks/submit", BODY)
    assert audited.post("/tasks/cancel?id=t-1", None, Role.SUBMIT) == 404
    assert audited.new()[-1] == ("the-submit", "POST", "/tasks/cancel", "id=t-1", 404)


def test_a_client_that_hangs_up_before_the_answer_leaves_a_line(audited: Audited) -> None:
    audited.world.queue.hold()
    client = audited.world.connect()
    client.request("POST", "/tasks/submit", BODY, **audited.token(Role.SUBMIT))
    assert client.received == b""
    client.transport.hang_up()
    client = audited.world.connect()
    client.request("POST", "/tasks/batch", b'{"type":"x","id":"b-1"}\n{"type":"x"}', **audited.token(Role.SUBMIT),
                   Content_Type="application/x-ndjson")  # fmt: skip
    client.transport.hang_up()
    client = audited.world.connect()
    client.request("POST", "/tasks/cancel?id=t-1", None, **audited.token(Role.ADMIN))
    client.transport.hang_up()
    audited.world.queue.release()
    assert audited.new() == [
        ("the-submit", "POST", "/tasks/submit", "t-1", 499), ("the-submit", "POST", "/tasks/batch", "b-1 -", 499),
        ("the-admin", "POST", "/tasks/cancel", "id=t-1", 499),
    ]  # fmt: skip


def test_what_changes_nothing_is_no_line(audited: Audited) -> None:
    for path in (
        "/tasks/list",
        "/tasks/stats",
        "/cluster",
        "/health",
        "/metrics",
        "/tasks/status?id=nobody-s",
        "/nowhere",
    ):
        audited.world.get(path, **audited.token(Role.ADMIN))
    assert audited.post("/tasks/submit", b"{") == 400
    assert audited.post("/tasks/submit", {"type": "x", "wrong": 1}) == 422
    assert audited.post("/tasks/submit", b"x" * 17_000_000) == 413
    assert audited.post("/tasks/list") == 405
    assert audited.post("/nowhere") == 404
    assert audited.post("/tasks/cancel?token=x") == 400
    assert audited.post("/work/claim", {"worker": "w-1", "wait": 0}) == 200
    assert audited.post("/work/extend", {"worker": "w-1", "claims": [CLAIM]}) == 200
    assert audited.post("/work/finish", {"worker": "w-1", "claims": []}) == 200
    audited.world.queue.fail_next("submit", errors.NotReady("joining"))
    assert audited.post("/tasks/submit", BODY) == 503
    assert audited.new() == []


# --- refusals ---
def test_each_refusal_is_a_line(audited: Audited) -> None:
    world = audited.world
    assert world.post("/tasks/submit", BODY).status == 401
    assert world.get("/tasks/list").status == 401
    audited.new()
    assert world.post("/tasks/submit", BODY, Authorization="Bearer x").status == 401
    assert world.get("/tasks/list?queue=mail", Authorization=f"Bearer {tokens.encode(bytes(32))}").status == 401
    assert audited.post("/tasks/submit", BODY, Role.VIEW) == 403
    assert audited.post("/cluster/drain?node=node-2", None, Role.SUBMIT) == 403
    assert audited.post("/tasks/submit", BODY, Origin="http://evil.example") == 403
    assert audited.new() == [
        ("", "POST", "/tasks/submit", "", 401),
        ("", "GET", "/tasks/list", "queue=mail", 401),
        ("the-view", "POST", "/tasks/submit", "", 403),
        ("the-submit", "POST", "/cluster/drain", "node=node-2", 403),
        ("", "POST", "/tasks/submit", "", 403),
    ]


def test_of_a_query_only_what_says_which_task_queue_or_node_is_written(audited: Audited) -> None:
    audited.world.get("/tasks/list?queue=mail&q=very+private&access_token=secret&id=a%0Ab")
    assert audited.new() == [("", "GET", "/tasks/list", "queue=mail&id=a\nb", 401)]


def test_a_request_for_another_host_is_a_refusal(tmp_path: Path) -> None:
    log = AuditNow(tmp_path)
    world = World(audit=log)
    assert world.get("/tasks/list", Host="rebound.example").status == 421
    assert [(line.method, line.outcome) for line in log.lines] == [("GET", 421)]
    world.site.server.audit.close()  # type: ignore[union-attr]
    world.close()
    log.close()


@pytest.mark.parametrize("length", [100_000, 5])
def test_a_refusal_is_a_line_though_the_client_does_not_wait_for_it(audited: Audited, length: int) -> None:
    client = audited.world.connect()
    client.request("POST", "/tasks/cancel?id=t-1", None, Content_Length=str(length))
    client.transport.hang_up()
    assert audited.new() == [("", "POST", "/tasks/cancel", "id=t-1", 401)]


def test_a_refusal_that_waits_for_its_turn_is_one_line_whoever_is_there_to_hear_it(audited: Audited) -> None:
    clients = []
    for _ in range(limits.REFUSED_CALLERS_PER_S):
        client = audited.world.connect()
        client.request("GET", "/tasks/list")
        clients.append(client)
    waiting = [client for client in clients if not client.received]
    assert waiting
    for client in clients:
        client.transport.hang_up()
    audited.world.clock.pump([0.02] * 100)
    assert len(audited.new()) == len(clients)


def test_a_flood_of_refusals_is_counted_and_does_not_fill_the_log(audited: Audited) -> None:
    flood = limits.AUDIT_REFUSALS_PER_S + 50
    for _ in range(flood):
        client = audited.world.connect()
        client.request("GET", "/tasks/list")
        client.transport.hang_up()
    audited.world.clock.pump([0.1] * 11)
    lines = audited.new()
    assert len(lines) == limits.AUDIT_REFUSALS_PER_S + 1
    assert lines[-1] == ("", "", "", "50 more requests were refused within this second", 0)
    client = audited.world.connect()
    client.request("GET", "/tasks/list")
    client.transport.hang_up()
    assert len(audited.new()) == 1
    audited.world.clock.pump([0.02] * 200)


def test_a_token_in_a_wrong_place_is_in_no_line(audited: Audited) -> None:
    secret = audited.secrets[Role.ADMIN]
    audited.world.get(f"/tasks/list?token={secret}")
    audited.world.get(f"/{secret}")
    audited.world.post(f"/tasks/cancel?id={secret}", X_Request_Id=secret)
    assert [line[4] for line in audited.new()] == [401, 401]


# --- GET /audit ---
def read(audited: Audited, query: str = "") -> Any:
    reply = audited.world.get(f"/audit{query}", **audited.token(Role.ADMIN))
    assert reply.status == 200, reply
    return reply.json


def test_the_log_is_read_in_pages_as_it_was_written(audited: Audited) -> None:
    for number in range(25):
        audited.post("/tasks/submit", {"type": "x", "id": f"t-{number}"})
        audited.world.clock.advance(1)
    page = read(audited, "?limit=10")
    found = page["lines"]
    while page["next"] is not None:
        assert page["count"] == 10
        page = read(audited, f"?limit=10&cursor={page['next']}")
        found += page["lines"]
    assert (page["node"], page["unreadable"]) == ("node-1", 0)
    assert [line["what"] for line in found] == [f"t-{n}" for n in range(25)]
    assert found == [json.loads(line) for line in audited.log.path.read_bytes().splitlines()]
    since = found[20]["at"]
    assert [line["what"] for line in read(audited, f"?since={since}")["lines"]] == [f"t-{n}" for n in range(20, 25)]
    assert read(audited, f"?since={NOW_S + 22.5}")["lines"] == found[23:]


@pytest.mark.parametrize("query", ["?since=yesterday", "?since=2026-01-01T00:00:00", "?cursor=x", "?cursor=-1-2", "?limit=0",
                                   "?limit=10001", "?until=1", "?since=nan", "?since=1e300"])  # fmt: skip
def test_a_wrong_parameter_is_named(audited: Audited, query: str) -> None:
    reply = audited.world.get(f"/audit{query}", **audited.token(Role.ADMIN))
    assert (reply.status, reply.code) == (400, "bad_parameter")
    assert query[1:].partition("=")[0] in reply.json["detail"]


@pytest.mark.parametrize("since", ["", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00%2B01:00", "2026-01-01", "0", "-5"])
def test_an_instant_is_taken_in_the_forms_of_the_contract(audited: Audited, since: str) -> None:
    reply = audited.world.get(f"/audit?since={since}", **audited.token(Role.ADMIN))
    assert reply.status == (400 if since == "2026-01-01" else 200)


@pytest.mark.parametrize("role", [Role.VIEW, Role.SUBMIT])
def test_only_an_admin_reads_the_log(audited: Audited, role: Role) -> None:
    assert audited.world.get("/audit", **audited.token(role)).status == 403


def test_an_admin_of_some_queues_does_not_read_what_was_done_in_others(audited: Audited) -> None:
    token = audited.world.tokens.make(Role.ADMIN, name="mail-admin", queues=("mail",))
    reply = audited.world.get("/audit", Authorization=f"Bearer {token}")
    assert (reply.status, reply.code) == (403, "denied")
    assert "the audit log tells of all queues" in reply.json["detail"]


def test_a_node_without_a_log_says_so(world: World) -> None:
    reply = world.get("/audit")
    assert (reply.status, reply.code) == (404, "no_audit_log")
    assert "--audit-log" in reply.json["detail"]
