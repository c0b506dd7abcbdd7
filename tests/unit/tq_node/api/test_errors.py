"""Contract, section 3: every row."""

from __future__ import annotations

import msgspec
import pytest

from tests.conftest import LoggedErrors
from tests.unit.tq_node.api.talk import World
from tq_node import errors
from tq_node.api.problems import PROBLEM_KINDS
from tq_node.errors import TaskQueueError
from tq_node.wire import errors as wire


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b'{"type":"a",}',
        b'{"type":"a"} {"type":"b"}',
        b"[]",
        b'"text"',
        b"5",
        b"null",
        b'\xef\xbb\xbf{"type":"a"}',
        b'{"type":"\xff"}',
        b'{"type":"\xed\xa0\x80"}',
        b'{"type":"\\ud800"}',
        b'{"type":"a","payload":"\xff"}',
        b'{"type":"a","payload":{"\xff":1}}',
        b'{"type":"a","payload":"\\udfff"}',
        b'{"type":"a","payload":NaN}',
        b'{"type":"a","payload":-Infinity}',
        b'{"type":"a","payload":01}',
        b'{"type":"a","payload":[1,]}',
        b'{"type":"a","\xff":1}',
        b'{"type":"a","tags":{"\xff":"1"}}',
        b'{"type":5,"payload":"\xff"}',
        b'{"type":"a","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_400_malformed_body(world: World, body: bytes) -> None:
    for path in ("/tasks/submit", "/tasks/batch"):
        reply = world.post(path, body)
        assert (reply.status, reply.code) == (400, "malformed")
    assert world.queue.rows == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/tasks/status", "id"),
        ("/tasks/status?id=a%20b", "id"),
        ("/tasks/status?id=a%0A", "id"),
        ("/tasks/status?id=a&id=b", "id"),
        ("/tasks/status?id=a&consistency=weak", "consistency"),
        ("/tasks/stats?scope=", "scope"),
        ("/tasks/stats?Scope=node", "Scope"),
        ("/cluster?x=1", "x"),
        ("/tasks/events?scope=moon", "scope"),
    ],
)
def test_400_bad_query_parameter(world: World, path: str, name: str) -> None:
    reply = world.get(path)
    assert (reply.status, reply.code) == (400, "bad_parameter")
    assert reply.json["detail"].startswith(f"{name}: ")


@pytest.mark.parametrize("path", ["/nothing", "/tasks", "/tasks/", "/tasks/submit/", "/problems/nothing"])
def test_404(world: World, path: str) -> None:
    reply = world.get(path)
    assert (reply.status, reply.code) == (404, "not_found")


@pytest.mark.parametrize("path", ["/%FF", "/tasks%2Fstats", "ftp:tasks", "*", "/\xb0", "//tasks/stats"])
def test_400_for_a_path_that_can_be_none(world: World, path: str) -> None:
    reply = world.get(path)
    assert (reply.status, reply.code) == (400, "malformed")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/tasks/submit", "POST"),
        ("DELETE", "/tasks/list", "GET, HEAD"),
        ("PUT", "/health", "GET, HEAD"),
        ("BREW", "/", "GET, HEAD"),
        ("OPTIONS", "/cluster/drain", "POST"),
        ("post", "/tasks/submit", "POST"),
    ],
)
def test_405_with_allow(world: World, method: str, path: str, allow: str) -> None:
    reply = world.call(method, path)
    if method == "post":
        # Werkzeug takes methods in either case; HTTP does not, but nobody is harmed.
        assert reply.status in (400, 405)
        return
    assert (reply.status, reply.code, reply.headers["allow"]) == (405, "method_not_allowed", allow)


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"a","payload":"%b"}' % (b"x" * 1_048_575),
        b'{"type":"a","payload":[%b]}' % b",".join([b"9e15"] * 99_000),
        b'{"type":"a","payload":"%b"}' % (b"x" * 3_000_000),
    ],
    ids=["sent", "stored", "sent by far"],
)
def test_413_payload_too_large(world: World, body: bytes) -> None:
    reply = world.post("/tasks/submit", body)
    assert (reply.status, reply.code) == (413, "payload_too_large")
    (item,) = world.post("/tasks/batch", b'{"tasks":[%b]}' % body).json["results"]
    assert item["error"]["code"] == "payload_too_large"


def test_a_payload_of_just_a_mebibyte_is_taken(world: World) -> None:
    assert world.post("/tasks/submit", {"type": "a", "payload": "x" * 1_048_574}).status == 201


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "multipart/form-data; boundary=x"},
        {"Content_Type": "application/x-ndjson"},
        {"Content_Type": "application/json; charset=latin-1"},
        {"Content_Type": "json"},
        {"Content_Type": ""},
        {"Content_Encoding": "gzip"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_415_not_json(world: World, headers: dict[str, str]) -> None:
    reply = world.post("/tasks/submit", {"type": "a"}, **headers)
    assert (reply.status, reply.code) == (415, "not_json")


def test_415_says_to_curl_users_what_to_add(world: World) -> None:
    reply = world.post("/tasks/submit", b"type=email", Content_Type="application/x-www-form-urlencoded")
    assert (reply.status, reply.code) == (415, "not_json")
    assert "-H 'Content-Type: application/json'" in reply.json["detail"]


@pytest.mark.parametrize(
    "path", ["/tasks/submit", "/tasks/batch", "/tasks/cancel?id=x", "/cluster/shutdown?node=node-1"]
)
def test_403_a_page_of_another_site(world: World, path: str) -> None:
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        reply = world.post(path, {"type": "a"}, Origin=origin)
        assert (reply.status, reply.code) == (403, "cross_origin")


@pytest.mark.parametrize("path", ["/tasks/submit", "/tasks/batch"])
@pytest.mark.parametrize("headers", [{}, {"Content_Type": "application/json"}], ids=["untyped", "json"])
@pytest.mark.parametrize("between", [b"\n", b""], ids=["lines", "as curl -d sends them"])
def test_lines_that_don_t_say_so_are_refused_with_what_to_add(
    world: World, path: str, headers: dict[str, str], between: bytes
) -> None:
    reply = world.post(path, b'{"type":"a"}' + between + b'{"type":"b"}', **headers)
    assert (reply.status, reply.code) == (400, "malformed")
    assert "Content-Type: application/x-ndjson" in reply.json["detail"]
    assert "/tasks/batch" in reply.json["detail"]
    assert "ndjson" not in world.post(path, b'{"type":').json["detail"]


def test_json_that_curl_calls_a_form_is_taken(world: World) -> None:
    form = "application/x-www-form-urlencoded"
    assert world.post("/tasks/submit", b' {"type":"a"}', Content_Type=form).status == 201
    assert world.post("/tasks/batch", b'{"tasks":[{"type":"a"}]}', Content_Type=form).status == 200


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({}, "missing_field", "/type"),
        ({"type": "a", "colour": 1}, "unknown_field", "/colour"),
        ({"type": "a", "a/b~c": 1}, "unknown_field", "/a~1b~0c"),
        ({"type": "a", "": 1}, "unknown_field", "/"),
        ({"colour": 1}, "unknown_field", "/colour"),
        ({"type": ""}, "invalid_field", "/type"),
        ({"type": "x" * 101}, "invalid_field", "/type"),
        ({"type": None}, "invalid_field", "/type"),
        ({"type": ["a"]}, "invalid_field", "/type"),
        ({"type": "a\x1b]52;c;eA==\x1b\\"}, "invalid_field", "/type"),
        ({"type": "a\n"}, "invalid_field", "/type"),
        ({"type": "a", "queue": "\x00"}, "invalid_field", "/queue"),
        ({"type": "a", "queue": "b\x9b"}, "invalid_field", "/queue"),
        ({"type": "a", "queue": "b\x7f"}, "invalid_field", "/queue"),
        ({"type": "a", "queue": "b\u202e"}, "invalid_field", "/queue"),
        ({"type": "a", "queue": "b\u2069"}, "invalid_field", "/queue"),
        ({"type": "a", "queue": "b\u2028"}, "invalid_field", "/queue"),
        ({"type": "a", "id": ""}, "invalid_field", "/id"),
        ({"type": "a", "id": "x" * 201}, "invalid_field", "/id"),
        ({"type": "a", "id": "a b"}, "invalid_field", "/id"),
        ({"type": "a", "id": "a\n"}, "invalid_field", "/id"),
        ({"type": "a", "id": "é"}, "invalid_field", "/id"),
        ({"type": "a", "id": 7}, "invalid_field", "/id"),
        ({"type": "a", "priority": 10}, "invalid_field", "/priority"),
        ({"type": "a", "priority": -1}, "invalid_field", "/priority"),
        ({"type": "a", "priority": True}, "invalid_field", "/priority"),
        ({"type": "a", "priority": 5.5}, "invalid_field", "/priority"),
        ({"type": "a", "priority": 1e30}, "invalid_field", "/priority"),
        ({"type": "a", "priority": "5"}, "invalid_field", "/priority"),
        ({"type": "a", "delay": -0.1}, "invalid_field", "/delay"),
        ({"type": "a", "delay": 1e18}, "invalid_field", "/delay"),
        ({"type": "a", "delay": "5"}, "invalid_field", "/delay"),
        ({"type": "a", "delay": 1, "run_at": 1}, "invalid_field", "/run_at"),
        ({"type": "a", "run_at": "tomorrow"}, "invalid_field", "/run_at"),
        ({"type": "a", "run_at": "2030-01-01T00:00:00"}, "invalid_field", "/run_at"),
        ({"type": "a", "run_at": "2030-13-01T00:00:00Z"}, "invalid_field", "/run_at"),
        ({"type": "a", "run_at": "9999-12-31T23:59:59-01:00"}, "invalid_field", "/run_at"),
        ({"type": "a", "run_at": 1_700_000_000_000}, "invalid_field", "/run_at"),
        ({"type": "a", "max_attempts": 0}, "invalid_field", "/max_attempts"),
        ({"type": "a", "max_attempts": 101}, "invalid_field", "/max_attempts"),
        ({"type": "a", "timeout": 0}, "invalid_field", "/timeout"),
        ({"type": "a", "timeout": "30"}, "invalid_field", "/timeout"),
        ({"type": "a", "backoff": -1}, "invalid_field", "/backoff"),
        ({"type": "a", "backoff": "fast"}, "invalid_field", "/backoff"),
        ({"type": "a", "backoff": {"kind": "magic"}}, "invalid_field", "/backoff/kind"),
        ({"type": "a", "backoff": {"base": -1}}, "invalid_field", "/backoff/base"),
        ({"type": "a", "backoff": {"cap": None}}, "invalid_field", "/backoff/cap"),
        ({"type": "a", "backoff": {"jitter": 1}}, "invalid_field", "/backoff/jitter"),
        ({"type": "a", "backoff": {"speed": 1}}, "unknown_field", "/backoff/speed"),
        ({"type": "a", "queue": ""}, "invalid_field", "/queue"),
        ({"type": "a", "queue": "x" * 101}, "invalid_field", "/queue"),
        ({"type": "a", "tags": []}, "invalid_field", "/tags"),
        ({"type": "a", "tags": {str(n): "" for n in range(21)}}, "invalid_field", "/tags"),
        ({"type": "a", "tags": {"a": 1}}, "invalid_field", "/tags/a"),
        ({"type": "a", "tags": {"a": "x" * 201}}, "invalid_field", "/tags/a"),
        ({"type": "a", "tags": {"": "x"}}, "invalid_field", "/tags/"),
        ({"type": "a", "payload": 1 << 64}, "invalid_field", "/payload"),
        ({"type": "a", "payload": [{"n": -(1 << 63) - 1}]}, "invalid_field", "/payload"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_422_a_field(world: World, fields: object, code: str, field: str) -> None:
    reply = world.post("/tasks/submit", fields)
    assert (reply.status, reply.code, reply.json["field"]) == (422, code, field)
    assert world.queue.rows == {}


@pytest.mark.parametrize(
    "payload",
    [b"1e400", b"9" * 400, b"1" + b"0" * 30 + b".5e400", b"[" * 201 + b"]" * 201, b'{"a":' * 201 + b"1" + b"}" * 201],
)
def test_422_a_payload_that_others_could_not_read(world: World, payload: bytes) -> None:
    reply = world.post("/tasks/submit", b'{"type":"a","payload":%b}' % payload)
    assert (reply.status, reply.code, reply.json["field"]) == (422, "invalid_field", "/payload")


@pytest.mark.parametrize(
    "payload", [b"[" * 200 + b"]" * 200, b'"%b"' % (b"[{" * 300), b"18446744073709551615", b'"%b"' % (b"9" * 40)]
)
def test_what_is_just_within_the_bounds_is_taken(world: World, payload: bytes) -> None:
    reply = world.post("/tasks/submit", b'{"type":"a","payload":%b}' % payload)
    assert reply.status == 201
    assert world.queue.rows[reply.json["task_id"]].spec.payload == payload


def test_of_equal_keys_the_last_stays_and_space_goes(world: World) -> None:
    reply = world.post("/tasks/submit", b'{"type":"a","payload":{"a" : 1, "a" : [ 2 ]},"type":"b"}')
    spec = world.queue.rows[reply.json["task_id"]].spec
    assert (spec.type, spec.payload) == ("b", b'{"a":[2]}')


FROM_THE_QUEUE = [
    (errors.Busy, 429, "busy"),
    (errors.NotPrimary, 503, "not_primary"),
    (errors.NotActive, 503, "not_active"),
    (errors.NotReady, 503, "not_ready"),
    (errors.Draining, 503, "draining"),
    (errors.NotEnoughReplicas, 503, "not_enough_replicas"),
    (errors.NoController, 503, "no_controller"),
    (errors.NotConfirmed, 503, "not_confirmed"),
    (errors.DiskReserve, 503, "disk_full"),
    (errors.IdConflict, 409, "id_conflict"),
    (errors.IdTooOld, 409, "id_too_old"),
    (errors.AlreadyFinal, 409, "already_final"),
    (errors.TaskPurged, 410, "task_purged"),
    (errors.NoSuchTask, 404, "not_found"),
    (errors.Denied, 403, "denied"),
    (errors.ClusterRefused, 409, "refused"),
    (wire.PeerUnreachable, 503, "peer_unreachable"),
    # What nodes refuse one another: nothing was done, and callers need no words for it.
    (wire.WireRefusal, 503, "peer_unreachable"),
    (wire.UnknownCommand, 503, "peer_unreachable"),
    (wire.NotAMember, 503, "peer_unreachable"),
    (wire.WrongSecret, 503, "peer_unreachable"),
    # What another node may have done.
    (wire.Internal, 504, "outcome_unknown"),
    (wire.AnswerTooLarge, 504, "outcome_unknown"),
    (errors.OutcomeUnknown, 504, "outcome_unknown"),
]


@pytest.mark.parametrize(("kind", "status", "code"), FROM_THE_QUEUE, ids=str)
def test_what_the_queue_says(world: World, kind: type[TaskQueueError], status: int, code: str) -> None:
    world.queue.fail_next("submit", kind("a reason", task_id="t1"))
    reply = world.post("/tasks/submit", {"type": "a"})
    assert (reply.status, reply.code) == (status, code)
    assert (reply.json["detail"], reply.json["task_id"]) == ("a reason", "t1")
    assert ("retry-after" in reply.headers) is (status in (429, 503))


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        # A read has no outcome: it may be asked again.
        (errors.OutcomeUnknown, 503, "not_confirmed"),
        (wire.AnswerTooLarge, 503, "not_confirmed"),
        (wire.PeerUnreachable, 503, "peer_unreachable"),
        (wire.UnknownCommand, 503, "peer_unreachable"),
        (wire.Internal, 500, "internal"),
    ],
    ids=str,
)
def test_what_a_read_meets_at_another_node(world: World, kind: type[TaskQueueError], status: int, code: str) -> None:
    for method, path in (("get", "/tasks/status?id=x"), ("stats", "/tasks/stats?scope=cluster")):
        world.queue.fail_next(method, kind("a reason"))
        reply = world.get(path)
        assert (reply.status, reply.code, reply.json["detail"]) == (status, code, "a reason")
        assert ("retry-after" in reply.headers) is (status == 503)


def test_whatever_is_503_may_be_sent_again() -> None:
    for kind in PROBLEM_KINDS:
        assert kind.retryable is (kind.status in (429, 503)), kind


def test_a_kind_nobody_knows_of_that_blames_the_caller_stays_what_it_is(world: World) -> None:
    class Odd(TaskQueueError):
        status, code, title = 418, "teapot", "A teapot"

    world.queue.fail_next("submit", Odd())
    reply = world.post("/tasks/submit", {"type": "a"})
    assert (reply.status, reply.code, "retry-after" in reply.headers) == (418, "teapot", False)


def test_retry_after_is_what_the_queue_says_in_whole_seconds(world: World) -> None:
    world.queue.fail_next("submit", errors.Busy("later", retry_after_s=2.2), errors.Busy("now", retry_after_s=0.0))
    assert world.post("/tasks/submit", {"type": "a"}).headers["retry-after"] == "3"
    assert world.post("/tasks/submit", {"type": "a"}).headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/tasks/submit", "/tasks/batch", "/tasks/cancel?id=x"])
def test_a_bug_is_500_without_a_traceback_and_logged_once(world: World, path: str, logged_errors: LoggedErrors) -> None:
    for method in ("submit", "submit_many", "cancel"):
        world.queue.fail_next(method, ZeroDivisionError("secret"))
    body = {"/tasks/submit": {"type": "a"}, "/tasks/batch": {"tasks": []}}.get(path)
    reply = world.post(path, body, X_Request_Id="find-me")
    assert (reply.status, reply.code) == (500, "internal")
    assert b"secret" not in reply.body
    (event,) = logged_errors.events
    assert (event["event"], event["request_id"]) == ("request_failed", "find-me")
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


def test_every_kind_of_error_is_in_the_table() -> None:
    def kinds(parent: type[TaskQueueError]) -> set[type[TaskQueueError]]:
        return {kind for child in parent.__subclasses__() for kind in (child, *kinds(child))}

    # Those of rooms that HTTP does not reach stay there; another test of this run may have imported them.
    reachable = {k for k in kinds(TaskQueueError) if k.__module__.startswith(("tq_node.errors", "tq_node.api"))}
    unlisted = reachable - set(PROBLEM_KINDS)
    assert {kind.__name__ for kind in unlisted} <= {"FieldError", "SubmitNotConfirmed", "JoinDenied"}


def test_each_code_has_a_page(world: World) -> None:
    for kind in PROBLEM_KINDS:
        reply = world.get(f"/problems/{kind.code}")
        assert reply.status == 200
        assert kind.title.encode() in reply.body


def test_a_detail_is_bounded(world: World) -> None:
    reply = world.post("/tasks/submit", msgspec.json.encode({"type": "a", "x" * 500_000: 1}))
    assert reply.code == "unknown_field"
    assert len(reply.body) < 3_000
