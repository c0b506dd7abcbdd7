"""Defaults of types, and pauses of queues and types, over HTTP."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.api.talk import NOW_S, World
from tests.unit.tq_node.api.test_scope import holder
from tq_node import limits
from tq_node.errors import Upgrading
from tq_node.tokens import Role
from tq_node.types import Backoff, HandledType, PauseEntry, WaitsFor

EMAIL = {"type": "email", "queue": "mail", "max_attempts": 7, "timeout": 1.5, "backoff": 2}


def test_put_list_and_delete(world: World) -> None:
    assert world.post("/types/put", EMAIL).json == {"success": True, "type": "email"}
    assert world.post("/types/put", {"type": "audio", "max_attempts": 2}).status == 200
    kept = HandledType("email", "mail", 7, 1500, Backoff("constant", 2000, 3_600_000, False))
    assert world.queue.types.put == (kept, HandledType("audio", max_attempts=2))
    world.queue.types = type(world.queue.types)(world.queue.types.put, (HandledType("email", "other"),))
    backoff = {"kind": "constant", "base": 2.0, "cap": 3600.0, "jitter": False}
    assert world.get("/types/list").json == {
        "types": [
            {"type": "audio", "set_by": "operator", "max_attempts": 2},
            EMAIL | {"set_by": "operator", "backoff": backoff},
            {"type": "email", "set_by": "worker", "queue": "other"},
        ]
    }
    assert world.post("/types/delete?type=email").json == {"success": True, "type": "email"}
    missing = world.post("/types/delete?type=email")
    assert (missing.status, missing.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "missing_field", "/type"),
        ({"type": ""}, "invalid_field", "/type"),
        ({"type": "a\x1b"}, "invalid_field", "/type"),
        ({"type": "a", "queue": "\x07"}, "invalid_field", "/queue"),
        ({"type": "a", "max_attempts": 0}, "invalid_field", "/max_attempts"),
        ({"type": "a", "timeout": 0}, "invalid_field", "/timeout"),
        ({"type": "a", "payload": 1}, "unknown_field", "/payload"),
    ],
)
def test_what_is_wrong_is_named(world: World, body: dict[str, object], code: str, field: str) -> None:
    refused = world.post("/types/put", body)
    assert (refused.status, refused.code, refused.json["field"]) == (422, code, field)
    announced = world.post("/workers/announce", {"worker": "w-1", "types": [{"type": "b"}, body]})
    assert announced.status == 422
    assert announced.json["field"] in ("/types", f"/types/1{field}")
    assert world.queue.types.put == world.queue.types.announced == ()


def test_a_worker_announces_what_its_handlers_declare(world: World) -> None:
    body = {"worker": "w-1", "types": [EMAIL, {"type": "plain"}]}
    assert world.post("/workers/announce", body).json == {"success": True, "worker": "w-1", "types": 2}
    assert [one.type for one in world.queue.types.announced] == ["email"], "what says nothing changes nothing"
    many = [{"type": f"{number:03}" + "x" * 97, "queue": "q" * 100} for number in range(limits.HANDLED_TYPES_MAX)]
    assert world.post("/workers/announce", {"worker": "w-1", "types": many}).json["field"] == "/types"


def test_below_their_level_nobody_takes_them(world: World) -> None:
    for call, body in (("put_type", "/types/put"), ("announce_types", "/workers/announce")):
        world.queue.fail_next(call, Upgrading("not yet"))
        sent: dict[str, object] = EMAIL if "put" in body else {"worker": "w", "types": [EMAIL]}
        assert world.post(body, sent).code == "upgrading"


def test_a_narrowed_token_announces_its_queues_and_sets_nothing_for_others(world: World) -> None:
    worker = holder(world, Role.WORK, queues=("mail",))
    chief = holder(world, Role.OPERATE, name="chief", queues=("mail",))
    assert world.post("/workers/announce", {"worker": "w", "types": [EMAIL]}, **worker).status == 200
    foreign = EMAIL | {"queue": "shop"}
    assert world.post("/workers/announce", {"worker": "w", "types": [foreign]}, **worker).code == "denied"
    assert world.post("/types/put", EMAIL, **chief).code == "denied"
    assert world.post("/types/delete?type=email", **chief).code == "denied"
    assert world.post("/tasks/pause?type=email", **chief).code == "denied"
    assert world.post("/tasks/resume?type=email", **chief).code == "denied"
    world.queue.types = type(world.queue.types)((HandledType("email", "mail"), HandledType("image", "shop")))
    assert [one["type"] for one in world.get("/types/list", **chief).json["types"]] == ["email"]


class TestPauses:
    def test_of_a_type_with_all_that_there_is_to_say(self, world: World) -> None:
        query = "type=email&reason=it%20bounces&until=2100-01-01T00:00:00Z"
        done = {"success": True, "type": "email", "status": "paused"}
        assert world.post(f"/tasks/pause?{query}").json == done
        until_us = 4_102_444_800_000_000
        assert world.queue.paused_with == [PauseEntry("type", "email", "it bounces", until_us=until_us)]
        shown = world.get("/cluster").json["cluster"]
        assert shown["paused_queues"] == []
        assert shown["paused"] == [{"type": "email", "reason": "it bounces", "until": "2100-01-01T00:00:00.000000Z"}]
        assert world.post("/tasks/resume?type=email").json == {**done, "status": "active"}
        assert world.queue.paused_with == []

    def test_until_a_time_in_seconds(self, world: World) -> None:
        assert world.post(f"/tasks/pause?queue=mail&until={NOW_S + 10}").status == 200
        assert world.queue.paused_with[0].until_us == (NOW_S + 10) * 1_000_000

    @pytest.mark.parametrize(
        "query",
        ["queue=a&type=b", "reason=x", "type=", "type=a&until=1", "type=a&until=soon", "type=a&reason=%07", "type=%07"],
    )
    def test_what_can_not_be_is_refused(self, world: World, query: str) -> None:
        assert world.post(f"/tasks/pause?{query}").code == "bad_parameter"
        assert not world.queue.paused_with


def test_tasks_say_why_they_wait_and_are_found_by_it(world: World) -> None:
    first, second, third = (world.post("/tasks/submit", {"type": "a"}).json["task_id"] for _ in range(3))
    world.queue.waits[first] = [WaitsFor("no_handler", 1_000_000, "a")]
    world.queue.waits[second] = [WaitsFor("queue_paused", 2_000_000, "mail", 3_000_000), WaitsFor("slots", 1)]
    assert world.get(f"/tasks/status?id={second}").json["waiting_for"] == [
        {
            "kind": "queue_paused",
            "since": "1970-01-01T00:00:02.000000Z",
            "name": "mail",
            "until": "1970-01-01T00:00:03.000000Z",
        },
        {"kind": "slots", "since": "1970-01-01T00:00:00.000001Z"},
    ]
    assert "waiting_for" not in world.get(f"/tasks/status?id={third}").json

    def found(asked: str) -> list[str]:
        return [one["id"] for one in world.get(f"/tasks/list?waiting_for={asked}").json["tasks"]]

    assert found("no_handler") == found("no_handler:a") == [first]
    assert found("queue_paused:mail") == found("slots") == [second]
    assert found("queue_paused:shop") == []
    assert sorted(found("")) == sorted([first, second, third])
    assert world.get("/tasks/list?waiting_for=rain").code == "bad_parameter"
