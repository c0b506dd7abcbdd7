"""Contract, section 2, line by line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.tq_node.api.talk import NOW_S, World
from tq_node import limits
from tq_node.errors import InvalidField, NotConfirmed, OutcomeUnknown, TaskQueueError
from tq_node.types import Backoff, LogLine, Progress, State, TaskError, TaskRow
from tq_node.wire.errors import AnswerTooLarge, Internal, UnknownCommand

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
DONE = TaskError("ValueError", "no such address", "Traceback …")


def row(world: World, task_id: str) -> TaskRow:
    return world.queue.rows[task_id]


class TestSubmit:
    def test_it_answers_201_with_location_and_compact_json(self, world: World) -> None:
        reply = world.post("/tasks/submit", b'{"type": "email", "payload": "user@example.com"}')
        task_id = reply.json["task_id"]
        assert reply.status == 201
        assert reply.body == b'{"success":true,"task_id":"%b","status":"pending","node":"node-1"}' % task_id.encode()
        assert reply.headers["location"] == f"/tasks/status?id={task_id}"
        assert task_id.startswith("task-")
        assert world.get(reply.headers["location"]).json["payload"] == "user@example.com"

    @pytest.mark.parametrize("name", ["größe", "очередь", "队列", "👩\u200d💻", "a\u00a0b", "שלום"])
    def test_names_in_any_script_and_with_emoji_are_fine(self, world: World, name: str) -> None:
        assert world.post("/tasks/submit", {"type": name, "queue": name}).status == 201

    def test_a_batch_refuses_the_item_whose_name_a_terminal_obeys(self, world: World) -> None:
        items = [{"type": "a"}, {"type": "a", "queue": "\x1b]52;c;eA==\x1b\\"}]
        good, bad = world.post("/tasks/batch", {"tasks": items}).json["results"]
        assert "task_id" in good
        assert (bad["error"]["status"], bad["error"]["field"]) == (422, "/tasks/1/queue")

    def test_no_content_type_counts_as_json(self, world: World) -> None:
        assert world.post("/tasks/submit", {"type": "a"}).status == 201

    @pytest.mark.parametrize(
        "content_type",
        ["application/json", "application/JSON; charset=UTF-8", 'application/vnd.x+json;charset="utf-8"'],
    )
    def test_json_by_any_of_its_names(self, world: World, content_type: str) -> None:
        assert world.post("/tasks/submit", {"type": "a"}, Content_Type=content_type).status == 201

    def test_what_is_not_said_is_left_to_the_queue(self, world: World) -> None:
        task = row(world, world.submit())
        assert task.spec.payload == b"null"
        assert (task.spec.priority, task.spec.max_attempts, task.spec.timeout_ms) == (5, 3, None)
        assert (task.spec.queue, task.spec.backoff, task.spec.tags) == ("default", Backoff(), None)
        assert len(task.spec.content_hash) == 16

    def test_every_field(self, world: World) -> None:
        task_id = world.submit(
            id="a:b.c_d-1",
            payload={"to": ["é"]},
            priority=9,
            delay=1.5,
            max_attempts=7,
            timeout=0.25,
            backoff={"kind": "linear", "base": 2},
            queue="mail",
            tags={"customer": "7"},
        )
        task = row(world, task_id)
        assert task.spec.payload == '{"to":["é"]}'.encode()
        assert (task.spec.priority, task.spec.max_attempts, task.spec.timeout_ms) == (9, 7, 250)
        assert task.spec.backoff == Backoff("linear", 2_000, 3_600_000, True)
        assert (task.spec.queue, task.spec.tags) == ("mail", {"customer": "7"})
        assert task.state is State.SCHEDULED
        assert task.run_at_us == int((NOW_S + 1.5) * 1e6)

    @pytest.mark.parametrize(
        "run_at", [1_800_000_000, 1_800_000_000.0, "2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00"]
    )
    def test_run_at_is_rfc_3339_or_unix_seconds(self, world: World, run_at: object) -> None:
        assert row(world, world.submit(run_at=run_at)).run_at_us == 1_800_000_000_000_000

    @pytest.mark.parametrize("run_at", ["0001-01-01T00:00:00Z", -1, -1e308, 0])
    def test_run_at_long_ago_is_now(self, world: World, run_at: object) -> None:
        assert row(world, world.submit(run_at=run_at)).state is State.PENDING

    def test_a_plain_backoff_is_constant_and_to_the_letter(self, world: World) -> None:
        assert row(world, world.submit(backoff=5)).spec.backoff == Backoff("constant", 5_000, 3_600_000, False)
        assert row(world, world.submit(backoff=7_200)).spec.backoff == Backoff("constant", 7_200_000, 7_200_000, False)

    def test_a_whole_number_may_have_a_point(self, world: World) -> None:
        task = row(world, world.submit(priority=7.0, max_attempts=2.0))
        assert repr((task.spec.priority, task.spec.max_attempts)) == "(7, 2)"

    def test_null_counts_as_not_sent(self, world: World) -> None:
        nothing = dict.fromkeys(
            ["id", "payload", "priority", "delay", "run_at", "max_attempts", "timeout", "backoff", "queue", "tags"]
        )
        assert row(world, world.submit(**nothing)).spec.priority == 5

    def test_the_same_again_answers_200_with_the_present_status(self, world: World) -> None:
        first = world.post("/tasks/submit", {"type": "a", "id": "x", "payload": {"a": 1, "b": 2}})
        world.queue.start_task("x")
        again = world.post("/tasks/submit", b'{"payload":{"b":2,"a":1}, "id":"x","type":"a","queue":null}')
        assert (first.status, again.status) == (201, 200)
        assert again.json == {"success": True, "task_id": "x", "status": "processing", "node": "node-1"}
        assert again.headers["idempotency-replayed"] == "true"

    @pytest.mark.parametrize(
        ("first", "again", "is_same"),
        [
            ('"payload":1.50', '"payload":1.5', True),
            ('"payload":[1e1,10.0]', '"payload":[10.0,1E+1]', True),
            ('"payload":1', '"payload":1.0', False),  # a handler can tell them apart, too
            ('"payload":100', '"payload":1e2', False),
            ('"payload":0.0', '"payload":-0.0', False),
            ('"payload":{"a":1,"b":2}', '"payload": {"b":2, "a":1}', True),
            ('"payload":"\\u0041"', '"payload":"A"', True),
            ('"delay":5,"timeout":10,"priority":5', '"delay":5.0,"timeout":1e1,"priority":5.0', True),
            ('"max_attempts":3,"backoff":2', '"max_attempts":3.0,"backoff":2.0', True),
            ('"run_at":1893456000', '"run_at":1893456000.0', True),
            ('"run_at":"2030-01-01T00:00:00Z"', '"run_at":"2030-01-01T00:00:00.000+00:00"', True),
            ('"run_at":"2030-01-01T00:00:00Z"', '"run_at":1893456000', False),
            ('"run_at":"2030-01-01T00:00:00Z"', '"run_at":"2030-01-01T01:00:00+01:00"', False),
            ('"priority":5', '"queue":null', False),
        ],
    )
    def test_what_is_the_same_content(self, world: World, first: str, again: str, is_same: bool) -> None:
        for sent, status in ((first, 201), (again, 200 if is_same else 409)):
            body = f'{{"type":"email","id":"a",{sent}}}'.encode()
            assert world.post("/tasks/submit", body).status == status

    def test_a_leap_second_is_refused_by_name(self, world: World) -> None:
        reply = world.post("/tasks/submit", {"type": "a", "run_at": "2016-12-31T23:59:60Z"})
        assert (reply.status, reply.code, reply.json["field"]) == (422, "invalid_field", "/run_at")

    def test_the_same_id_with_other_content_is_a_conflict(self, world: World) -> None:
        world.submit(id="x")
        reply = world.post("/tasks/submit", {"type": "email", "id": "x", "priority": 5})
        assert (reply.status, reply.code) == (409, "id_conflict")
        assert reply.json["task_id"] == "x"

    @pytest.mark.parametrize("key", ["key-1", '"key-1"', " key-1 "])
    def test_an_idempotency_key_is_the_id(self, world: World, key: str) -> None:
        reply = world.post("/tasks/submit", {"type": "a"}, Idempotency_Key=key)
        assert reply.json["task_id"] == "key-1"
        assert world.post("/tasks/submit", {"type": "a", "id": "key-1"}).status == 200

    def test_an_idempotency_key_counts_only_where_no_id_is_given(self, world: World) -> None:
        assert world.post("/tasks/submit", {"type": "a", "id": "x"}, Idempotency_Key="y").json["task_id"] == "x"

    @pytest.mark.parametrize("key", ["", '""', "a b", "x" * 201, "é"])
    def test_a_bad_idempotency_key_is_refused(self, world: World, key: str) -> None:
        reply = world.post("/tasks/submit", {"type": "a"}, Idempotency_Key=key)
        assert (reply.status, reply.code, reply.json["field"]) == (422, "invalid_field", "/id")

    def test_an_unknown_outcome_is_504_with_the_id_made_here(self, world: World) -> None:
        world.queue.fail_next("submit", OutcomeUnknown("not in time", task_id="task-7"))
        reply = world.post("/tasks/submit", {"type": "a"})
        assert (reply.status, reply.code, reply.json["task_id"]) == (504, "outcome_unknown", "task-7")

    def test_an_unknown_outcome_under_the_callers_id_is_safe_to_send_again(self, world: World) -> None:
        world.queue.fail_next("submit", OutcomeUnknown("not in time"))
        reply = world.post("/tasks/submit", {"type": "a", "id": "x"})
        assert (reply.status, reply.code, reply.json["task_id"]) == (503, "not_confirmed", "x")
        assert reply.headers["retry-after"] == "1"

    def test_an_idempotency_key_makes_it_as_safe(self, world: World) -> None:
        world.queue.fail_next("submit", OutcomeUnknown("not in time"))
        reply = world.post("/tasks/submit", {"type": "a"}, Idempotency_Key="k")
        assert (reply.status, reply.code, reply.json["task_id"]) == (503, "not_confirmed", "k")

    @pytest.mark.parametrize("lost", [Internal("a bug"), AnswerTooLarge("too long")], ids=repr)
    def test_what_hid_the_outcome_at_another_node_does_not_matter(self, world: World, lost: TaskQueueError) -> None:
        world.queue.fail_next("submit", lost, lost)
        assert world.post("/tasks/submit", {"type": "a"}).code == "outcome_unknown"
        reply = world.post("/tasks/submit", {"type": "a", "id": "x"})
        assert (reply.status, reply.code, reply.json["task_id"]) == (503, "not_confirmed", "x")


class TestBatch:
    def test_one_result_for_each_in_order(self, world: World) -> None:
        reply = world.post("/tasks/batch", {"tasks": [{"type": "a", "id": "1"}, {"type": "b", "id": "2", "delay": 9}]})
        assert reply.status == 200
        assert reply.body == (
            b'{"success":true,"accepted":2,"rejected":0,"results":[{"task_id":"1","status":"pending"},'
            b'{"task_id":"2","status":"scheduled"}]}'
        )

    def test_a_bad_item_does_not_sink_the_good_ones(self, world: World) -> None:
        world.submit(id="taken")
        items = [
            {"type": "a", "id": "1"},
            {"type": ""},
            7,
            {"type": "a", "colour": "red"},
            {"type": "a", "id": "taken", "priority": 1},
            {"payload": 1},
            {"type": "a", "id": "2"},
        ]
        answer = world.post("/tasks/batch", {"tasks": items}).json
        errors = [item.get("error") for item in answer["results"]]
        assert (answer["accepted"], answer["rejected"]) == (2, 5)
        assert [error and (error["code"], error["status"], error.get("field")) for error in errors] == [
            None,
            ("invalid_field", 422, "/tasks/1/type"),
            ("invalid_field", 422, "/tasks/2"),
            ("unknown_field", 422, "/tasks/3/colour"),
            ("id_conflict", 409, None),
            ("missing_field", 422, "/tasks/5/type"),
            None,
        ]
        assert {"1", "2"} <= world.queue.rows.keys()

    def test_what_only_conversion_finds_is_named_by_its_place_too(self, world: World) -> None:
        items = [{"type": "a"}, {"type": "a", "delay": 1, "run_at": 2}]
        answer = world.post("/tasks/batch", {"tasks": items}).json
        assert answer["results"][1]["error"]["field"] == "/tasks/1/run_at"

    def test_lines(self, world: World) -> None:
        body = b'{"type":"a","id":"1"}\r\n\n{"type":\n  {"type":"a","id":"2"}'
        answer = world.post("/tasks/batch", body, Content_Type="application/x-ndjson").json
        assert [item.get("task_id") for item in answer["results"]] == ["1", None, "2"]
        assert answer["results"][1]["error"]["code"] == "malformed"

    @pytest.mark.parametrize("lines", [False, True], ids=["json", "ndjson"])
    def test_ten_thousand_are_taken_and_one_more_is_413(self, world: World, lines: bool) -> None:
        item = b'{"type":"a"}'

        def body(count: int) -> bytes:
            return b"\n".join([item] * count) if lines else b'{"tasks":[%b]}' % b",".join([item] * count)

        content_type = "application/x-ndjson" if lines else "application/json"
        assert world.post("/tasks/batch", body(10_000), Content_Type=content_type).json["accepted"] == 10_000
        reply = world.post("/tasks/batch", body(10_001), Content_Type=content_type)
        assert (reply.status, reply.code) == (413, "body_too_large")

    def test_all_parts_but_the_last_say_that_more_comes(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[bool] = []
        submit_many = world.queue.submit_many

        def submit(part: Any, *, has_more: bool) -> Any:
            said.append(has_more)
            return submit_many(part, has_more=has_more)

        monkeypatch.setattr(world.queue, "submit_many", submit)
        tasks = [{"type": "a"}] * (2 * limits.BATCH_SUBMITS_PER_TURN + 1)
        assert world.post("/tasks/batch", {"tasks": tasks}).json["accepted"] == len(tasks)
        assert said == [True, True, False]

    def test_an_empty_batch_is_fine(self, world: World) -> None:
        answer = world.post("/tasks/batch", {"tasks": []}).json
        assert answer == {"success": True, "accepted": 0, "rejected": 0, "results": []}

    @pytest.mark.parametrize(
        ("body", "code", "field"),
        [
            (b"{}", "missing_field", "/tasks"),
            (b'{"tasks":5}', "invalid_field", "/tasks"),
            (b'{"tasks":[],"x":1}', "unknown_field", "/x"),
            (b"[]", "malformed", None),
            (b'{"tasks":[{"type":"a"},]}', "malformed", None),
        ],
    )
    def test_a_whole_that_is_not_understood(self, world: World, body: bytes, code: str, field: str | None) -> None:
        reply = world.post("/tasks/batch", body)
        assert (reply.code, reply.json.get("field")) == (code, field)

    def test_a_key_for_many_is_refused(self, world: World) -> None:
        assert world.post("/tasks/batch", {"tasks": []}, Idempotency_Key="k").code == "malformed"

    def test_an_unknown_outcome_is_reported_for_each_item(self, world: World) -> None:
        world.queue.fail_next("submit_many", OutcomeUnknown("not in time"))
        assert world.post("/tasks/batch", {"tasks": [{"type": "a"}]}).status == 504

    @pytest.mark.parametrize(("tasks", "status"), [(("1", "2"), 503), (("1", None), 504)])
    def test_a_batch_of_own_ids_is_safe_to_send_again(
        self, world: World, tasks: tuple[str | None, ...], status: int
    ) -> None:
        world.queue.fail_next("submit_many", OutcomeUnknown("not in time"))
        assert world.post("/tasks/batch", {"tasks": [{"type": "a", "id": id_} for id_ in tasks]}).status == status

    def test_items_fail_each_in_their_own_way(self, world: World) -> None:
        world.queue.fail_next("item", Internal("a bug"), Internal("a bug", task_id="made"), UnknownCommand("new"))
        results = world.post("/tasks/batch", {"tasks": [{"type": "a", "id": "1"}, {"type": "a"}, {"type": "a"}]}).json
        found = [(item["error"]["status"], item["error"]["code"]) for item in results["results"]]
        assert found == [(503, "not_confirmed"), (504, "outcome_unknown"), (503, "peer_unreachable")]
        assert [item["error"].get("task_id") for item in results["results"]] == ["1", "made", None]


class TestStatus:
    def test_a_task_that_has_not_begun(self, world: World) -> None:
        task_id = world.submit(payload=[1, 2.5, None], timeout=30, tags={"a": "b"})
        reply = world.get(f"/tasks/status?id={task_id}")
        task = reply.json
        assert reply.status == 200
        assert task.keys() == {
            *(
                "id",
                "type",
                "payload",
                "status",
                "queue",
                "priority",
                "attempt",
                "max_attempts",
                "created_at",
                "run_at",
            ),
            *("node", "partition", "version", "tags", "timeout", "backoff", "log", "attempts"),
        }
        assert task["payload"] == [1, 2.5, None]
        assert (task["attempt"], task["attempts"], task["log"], task["timeout"]) == (0, [], [], 30)
        assert task["backoff"] == {"kind": "exponential", "base": 1, "cap": 3600, "jitter": True}
        assert TIME.fullmatch(task["created_at"])
        assert b'": ' not in reply.body
        assert b", " not in reply.body

    def test_a_task_that_failed(self, world: World) -> None:
        task_id = world.submit()
        world.queue.start_task(task_id)
        world.queue.fail_task(task_id, DONE)
        task = world.get(f"/tasks/status?id={task_id}").json
        error = {"type": "ValueError", "message": "no such address", "traceback": "Traceback …"}
        assert (task["status"], task["attempt"], task["worker"], task["error"]) == ("failed", 1, "node-1", error)
        (attempt,) = task["attempts"]
        assert attempt.keys() == {"attempt", "node", "started_at", "ended_at", "outcome", "error"}
        assert TIME.fullmatch(task["started_at"])
        assert TIME.fullmatch(task["completed_at"])
        assert "result" not in task

    def test_a_task_that_runs(self, world: World) -> None:
        task_id = world.submit()
        world.queue.start_task(task_id)
        lines = (LogLine(int(NOW_S * 1e6) + 1, "half way"),)
        world.queue.note_task(task_id, Progress(0.5, "half"), lines, 3)
        task = world.get(f"/tasks/status?id={task_id}").json
        assert task["progress"] == {"fraction": 0.5, "note": "half"}
        assert task["log"] == [{"at": "2023-11-14T22:13:20.000001Z", "line": "half way"}]
        assert task["log_dropped"] == 3

    def test_a_result_is_passed_on_as_it_is(self, world: World) -> None:
        task_id = world.submit()
        world.queue.start_task(task_id)
        world.queue.finish_task(task_id, b'{"sent":[1]}')
        assert world.get(f"/tasks/status?id={task_id}").json["result"] == {"sent": [1]}

    def test_without_id_never_was_and_purged(self, world: World) -> None:
        task_id = world.submit(id="old")
        world.queue.purge_task(task_id)
        assert (world.get("/tasks/status").status, world.get("/tasks/status?id=").status) == (400, 400)
        never = world.get("/tasks/status?id=never")
        assert (never.status, never.code) == (404, "not_found")
        purged = world.get("/tasks/status?id=old")
        assert (purged.status, purged.code) == (410, "task_purged")

    def test_a_local_read_says_how_old_it_may_be(self, world: World) -> None:
        task_id = world.submit()
        assert world.get(f"/tasks/status?id={task_id}&consistency=local").json["age"] == 0.0
        assert "age" not in world.get(f"/tasks/status?id={task_id}&consistency=strong").json

    def test_a_read_that_is_not_proven_is_503(self, world: World) -> None:
        world.queue.fail_next("get", NotConfirmed())
        reply = world.get("/tasks/status?id=x")
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "not_confirmed", "1")


class TestWait:
    def test_it_answers_as_soon_as_the_task_is_final(self, world: World) -> None:
        task_id = world.submit()
        client = world.connect()
        client.request("GET", f"/tasks/status?id={task_id}&wait=60")
        assert client.received == b""
        assert (world.site.server.waiting, world.site.server.in_flight) == (1, 0)
        world.queue.start_task(task_id)
        world.queue.finish_task(task_id)
        assert client.replies()[0].json["status"] == "completed"
        assert world.site.server.waiting == 0

    def test_else_with_the_task_as_it_is_then(self, world: World) -> None:
        task_id = world.submit()
        client = world.connect()
        client.request("GET", f"/tasks/status?id={task_id}&wait=2.5")
        world.clock.advance(2.4)
        assert client.received == b""
        world.clock.advance(0.1)
        assert (client.replies()[0].status, client.replies()[0].json["status"]) == (200, "pending")

    @pytest.mark.parametrize("wait", ["61", "-1", "x", "1s", "NaN", "inf"])
    def test_what_is_no_time_to_wait(self, world: World, wait: str) -> None:
        reply = world.get(f"/tasks/status?id=x&wait={wait}")
        assert (reply.status, reply.code) == (400, "bad_parameter")
        assert reply.json["detail"].startswith("wait: ")

    def test_a_client_that_hangs_up_stops_waiting_and_harms_nobody(self, world: World) -> None:
        task_id = world.submit()
        first, second = world.connect(), world.connect()
        for client in (first, second):
            client.request("GET", f"/tasks/status?id={task_id}&wait=60")
        first.transport.hang_up()
        assert (world.queue.cancelled_calls, world.site.server.waiting) == (1, 1)
        world.queue.start_task(task_id)
        world.queue.finish_task(task_id)
        assert second.replies()[0].json["status"] == "completed"

    def test_there_is_a_bound(self) -> None:
        world = World(waiting_requests_max=1)
        task_id = world.submit()
        client = world.connect()
        client.request("GET", f"/tasks/status?id={task_id}&wait=60")
        assert world.get(f"/tasks/status?id={task_id}&wait=1").code == "busy"
        assert world.get(f"/tasks/status?id={task_id}").status == 200
        world.close()


class TestChanges:
    def test_cancel_and_retry(self, world: World) -> None:
        task_id = world.submit()
        cancelled = world.post(f"/tasks/cancel?id={task_id}")
        assert (cancelled.status, cancelled.json) == (200, {"success": True, "task_id": task_id, "status": "cancelled"})
        again = world.post(f"/tasks/cancel?id={task_id}")
        assert (again.status, again.code) == (409, "already_final")
        assert world.post(f"/tasks/retry?id={task_id}").json["status"] == "pending"
        refused = world.post(f"/tasks/retry?id={task_id}")
        assert (refused.status, refused.code) == (409, "not_retryable")

    def test_purge(self, world: World) -> None:
        task_id = world.submit(id="a")
        refused = world.post(f"/tasks/purge?id={task_id}")
        assert (refused.status, refused.code) == (409, "not_final")
        world.post(f"/tasks/cancel?id={task_id}")
        purged = world.post(f"/tasks/purge?id={task_id}")
        assert (purged.status, purged.json) == (200, {"success": True, "task_id": task_id, "status": "purged"})
        again = world.post(f"/tasks/purge?id={task_id}")
        assert (again.status, again.code) == (410, "task_purged")

    def test_a_queue_too_many_is_named_where_it_stands(self, world: World) -> None:
        world.queue.fail_next("item", InvalidField("queue: too many", field="/queue"))
        bad, good = world.post("/tasks/batch", {"tasks": [{"type": 1}, {"type": "a"}]}).json["results"]
        assert bad["error"]["field"] == "/tasks/0/type"
        assert (good["error"]["status"], good["error"]["code"]) == (422, "invalid_field")
        assert good["error"]["field"] == "/tasks/1/queue"

    @pytest.mark.parametrize("call", ["cancel", "retry", "purge"])
    def test_of_no_task(self, world: World, call: str) -> None:
        assert world.post(f"/tasks/{call}?id=never").status == 404
        assert world.post(f"/tasks/{call}").status == 400

    def test_an_unknown_outcome_of_a_change_is_504(self, world: World) -> None:
        for call in ("cancel", "retry", "purge"):
            world.queue.fail_next(call, OutcomeUnknown("not in time", task_id="x"), OutcomeUnknown("not in time"))
            for _ in range(2):
                reply = world.post(f"/tasks/{call}?id=x")
                assert (reply.status, reply.code, reply.json["task_id"]) == (504, "outcome_unknown", "x")
        for call in ("pause", "resume"):
            world.queue.fail_next(call, OutcomeUnknown("not in time"))
            assert world.post(f"/tasks/{call}?queue=mail").code == "outcome_unknown"

    def test_pause_and_resume(self, world: World) -> None:
        assert world.post("/tasks/pause?queue=mail").json == {"success": True, "queue": "mail", "status": "paused"}
        assert world.queue.paused == {"mail"}
        assert world.post("/tasks/resume?queue=mail").json == {"success": True, "queue": "mail", "status": "active"}
        assert world.queue.paused == set()

    def test_a_queue_whose_name_a_terminal_obeys_is_resumed_and_never_paused(self, world: World) -> None:
        for name in ("a%1b%5D52;c;eA%3D%3D", "a%0a", "a%E2%80%AE"):
            assert world.post(f"/tasks/pause?queue={name}").code == "bad_parameter"
            assert world.post(f"/tasks/resume?queue={name}").status == 200

    @pytest.mark.parametrize("query", ["", "?queue=", "?queue=" + "x" * 101, "?q=mail"])
    def test_pause_needs_a_queue(self, world: World, query: str) -> None:
        assert world.post(f"/tasks/pause{query}").code == "bad_parameter"


def test_answers_with_long_tasks_take_a_turn_of_the_reactor_each(world: World) -> None:
    """All who ask for one task are answered by one look into the store."""
    task_id = world.submit(payload="x" * limits.LARGE_BODY_BYTES)
    slices: list[str] = []
    world.site.server.slices.on_slice = slices.append
    askers = [world.connect() for _ in range(3)]
    for asker in askers:
        asker.request("GET", f"/tasks/status?id={task_id}")
    assert [asker.replies() for asker in askers] == [[], [], []]
    world.clock.advance(0)
    assert slices == ["/tasks/status"] * 3
    assert [reply.status for asker in askers for reply in asker.replies()] == [200] * 3
    for asker in askers:
        asker.transport.hang_up()
