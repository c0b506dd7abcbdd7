"""What a token's owner sees and changes, at both ways in: its queues, its own tasks, and redacted where it may only look."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.logger import capturedLogs

from tests.unit.tq_node.api.talk import Reply, World
from tests.unit.tq_node.api.test_callers import with_token
from tests.unit.tq_node.api.test_events import blocks, data, opened
from tq_node import limits
from tq_node.tokens import Role
from tq_node.types import LogLine, Progress, TaskError

SECRETS = ("s3cret-payload", "s3cret-result", "s3cret-line", "s3cret-message", "s3cret-traceback", "s3cret-note")
FAILURE = TaskError("ValueError", "s3cret-message", "s3cret-traceback")


def holder(world: World, *roles: Role, **fields: Any) -> dict[str, str]:
    """The header of a new token, known to the node by now."""
    header = with_token(world, *roles, **fields)
    world.clock.advance(limits.TOKENS_LOOK_S)
    return header


def submitted(world: World, token: dict[str, str], **fields: Any) -> str:
    reply = world.post("/tasks/submit", {"type": "email", **fields}, **token)
    assert reply.status == 201, reply
    task_id: str = reply.json["task_id"]
    return task_id


def ids(reply: Reply) -> list[str]:
    assert reply.status == 200, reply
    return [task["id"] for task in reply.json["tasks"]]


def check_unknown(world: World, reply: Reply, token: dict[str, str], method: str, path: str) -> None:
    """It hears, to the byte, what is said of a task that never was."""
    task_id = path.partition("id=")[2].partition("&")[0]
    never = world.call(method, path.replace(task_id, "never-there"), **token)
    assert (reply.status, reply.code, never.status) == (404, "not_found", 404)
    mine, others = reply.json, never.json
    assert mine.pop("request_id") != others.pop("request_id")
    assert str(mine).replace(task_id, "never-there") == str(others)


# --- own tasks ---
def test_who_submits_is_kept_with_the_task(world: World) -> None:
    free = world.submit()
    ann, operator = holder(world, Role.SUBMIT, name="ann"), holder(world, Role.OPERATE, name="operator")
    large = "x" * (limits.LARGE_BODY_BYTES + 1)
    made = {
        free: "",
        submitted(world, ann): "ann",
        submitted(world, operator, payload=large): "operator",
        submitted(world, ann, payload=large): "ann",
    }
    for item in world.post("/tasks/batch", {"tasks": [{"type": "email"}] * 3}, **ann).json["results"]:
        made[item["task_id"]] = "ann"
    assert {task_id: row.spec.made_by for task_id, row in world.queue.rows.items()} == made


def test_a_submitter_sees_and_cancels_its_own_tasks_alone(world: World) -> None:
    ann, bob = holder(world, Role.SUBMIT, name="ann"), holder(world, Role.SUBMIT, name="bob")
    mine, others = submitted(world, ann, id="mine", payload="hi"), submitted(world, bob, id="others")
    assert world.get(f"/tasks/status?id={mine}", **ann).json["payload"] == "hi"
    for path in (f"/tasks/status?id={others}", f"/tasks/status?id={others}&wait=30",
                 f"/tasks/status?id={others}&consistency=local"):  # fmt: skip
        check_unknown(world, world.get(path, **ann), ann, "GET", path)
    path = f"/tasks/cancel?id={others}"
    check_unknown(world, world.post(path, **ann), ann, "POST", path)
    assert world.post(f"/tasks/cancel?id={mine}", **ann).json["status"] == "cancelled"
    assert world.get(f"/tasks/status?id={others}", **bob).json["status"] == "pending"
    for path in ("/tasks/list", "/tasks/dead", "/tasks/stats", "/cluster"):
        assert world.get(path, **ann).status == 403


def test_the_id_of_another_submitters_task_is_a_conflict(world: World) -> None:
    ann, bob = holder(world, Role.SUBMIT, name="ann"), holder(world, Role.SUBMIT, name="bob")
    submitted(world, ann, id="one")
    assert world.post("/tasks/submit", {"type": "email", "id": "one"}, **ann).status == 200
    assert world.post("/tasks/submit", {"type": "email", "id": "one"}, **bob).code == "id_conflict"
    operator = holder(world, Role.OPERATE)
    assert world.post("/tasks/submit", {"type": "email", "id": "one"}, **operator).status == 200


def test_a_second_role_widens_what_is_seen_and_not_what_is_changed(world: World) -> None:
    both = holder(world, Role.SUBMIT, Role.VIEW, name="both")
    mine = submitted(world, both, payload="s3cret-payload")
    others = world.queue.rows[submitted(world, holder(world, Role.SUBMIT), payload="s3cret-payload")].id
    assert world.get(f"/tasks/status?id={mine}", **both).json["payload"] == "s3cret-payload"
    assert "payload" not in world.get(f"/tasks/status?id={others}", **both).json
    shown = {task["id"]: "payload" in task for task in world.get("/tasks/list", **both).json["tasks"]}
    assert shown == {mine: True, others: False}
    assert world.post(f"/tasks/cancel?id={others}", **both).status == 404
    assert world.post(f"/tasks/cancel?id={mine}", **both).status == 200


# --- queues ---
@pytest.fixture
def filled(world: World) -> World:
    """Tasks a-mail, b-news and c-shop, each in its queue."""
    for name in ("a-mail", "b-news", "c-shop"):
        world.submit(id=name, queue=name[2:])
    return world


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["a-mail", "b-news"]),
        ("?scope=cluster", ["a-mail", "b-news"]),
        ("?queue=mail", ["a-mail"]),
        ("?queue=mail,shop", ["a-mail"]),
        ("?queue=shop", []),
        ("?queue=!mail", ["b-news"]),
        ("?queue=!mail,news", []),
        ("?queue=!shop", ["a-mail", "b-news"]),
        ("?q=-", ["a-mail", "b-news"]),
        ("?sort=-created_at", ["b-news", "a-mail"]),
        ("?limit=1", ["a-mail"]),
    ],
)
def test_lists_show_a_tokens_queues_alone(filled: World, query: str, found: list[str]) -> None:
    token = holder(filled, Role.READ, queues=("mail", "news", "empty"))
    reply = filled.get(f"/tasks/list{query}", **token)
    assert ids(reply) == found
    assert reply.json["count"] == len(found)


def test_pages_go_on_within_a_tokens_queues(filled: World) -> None:
    token = holder(filled, Role.READ, queues=("mail", "shop"))
    first = filled.get("/tasks/list?limit=1", **token)
    assert ids(first) == ["a-mail"]
    assert ids(filled.get(f"/tasks/list?limit=1&cursor={first.json['next']}", **token)) == ["c-shop"]


def test_dead_letters_and_counts_are_of_a_tokens_queues(filled: World) -> None:
    token = holder(filled, Role.READ, queues=("mail", "news"))
    for name in ("a-mail", "c-shop"):
        filled.queue.start_task(name)
        filled.queue.fail_task(name, FAILURE)
    assert ids(filled.get("/tasks/dead", **token)) == ["a-mail"]
    assert ids(filled.get("/tasks/dead?queue=shop", **token)) == []
    for scope in ("node", "cluster"):
        counts = filled.get(f"/tasks/stats?scope={scope}", **token).json
        assert counts["stats"]["total"] == 2
        assert (counts["stats"]["failed"], counts["stats"]["pending"]) == (1, 1)
    assert filled.get("/tasks/stats", **holder(filled, Role.READ)).json["stats"]["total"] == 3


def test_a_task_of_another_queue_is_unknown_and_stays_as_it_is(filled: World) -> None:
    token = holder(filled, Role.OPERATE, queues=("mail",))
    for method, call in (("GET", "status"), ("POST", "cancel"), ("POST", "retry"), ("POST", "purge")):
        path = f"/tasks/{call}?id=c-shop"
        check_unknown(filled, filled.call(method, path, **token), token, method, path)
    assert filled.queue.rows["c-shop"].rev == 1
    assert filled.get("/tasks/status?id=a-mail", **token).status == 200
    for call, status in (("cancel", "cancelled"), ("retry", "pending"), ("cancel", "cancelled"), ("purge", "purged")):
        assert filled.post(f"/tasks/{call}?id=a-mail", **token).json["status"] == status
    # Nobody knows of which queue a purged task was.
    assert filled.get("/tasks/status?id=a-mail", **token).status == 404
    assert filled.get("/tasks/status?id=a-mail", **holder(filled, Role.OPERATE)).status == 410


def test_a_token_submits_to_its_queues_alone(world: World) -> None:
    world.queue.queues_of_types["invoice"] = "mail"
    token = holder(world, Role.SUBMIT, name="mailer", queues=("mail", "news"))
    assert world.queue.rows[submitted(world, token, queue="news")].spec.queue == "news"
    assert world.queue.rows[submitted(world, token, type="invoice")].spec.queue == "mail"
    refused = world.post("/tasks/submit", {"type": "email", "queue": "shop"}, **token)
    assert (refused.status, refused.code) == (403, "denied")
    assert refused.json["detail"] == "the token mailer is for queues 'mail', 'news', not for queue 'shop'"
    assert world.post("/tasks/submit", {"type": "email"}, **token).code == "denied", "its type's queue is the default"
    assert len(world.queue.rows) == 2


def test_the_id_of_a_task_in_another_queue_is_a_conflict(world: World) -> None:
    """The content is the same: neither names a queue, and the handlers said another one then."""
    world.queue.queues_of_types["invoice"] = "mail"
    free = world.submit(id="one", type="invoice")
    assert world.queue.rows[free].spec.queue == "default"
    token = holder(world, Role.OPERATE, queues=("mail",))
    assert world.post("/tasks/submit", {"type": "invoice", "id": "one"}, **token).code == "id_conflict"
    assert submitted(world, token, type="invoice", id="two")
    assert world.post("/tasks/submit", {"type": "invoice", "id": "two"}, **token).status == 200


def test_a_foreign_item_of_a_batch_is_refused_by_itself(world: World) -> None:
    token = holder(world, Role.SUBMIT, queues=("mail",))
    tasks = [{"type": "email", "queue": queue} for queue in ("mail", "shop", "mail")]
    answer = world.post("/tasks/batch", {"tasks": [*tasks, {"type": 7}]}, **token).json
    assert (answer["accepted"], answer["rejected"]) == (2, 2)
    kept, denied, kept_too, invalid = answer["results"]
    assert {kept["status"], kept_too["status"]} == {"pending"}
    assert (denied["error"]["code"], denied["error"]["status"]) == ("denied", 403)
    assert invalid["error"]["code"] == "invalid_field"
    assert [row.spec.queue for row in world.queue.rows.values()] == ["mail", "mail"]


def test_a_token_pauses_its_queues_alone(world: World) -> None:
    token = holder(world, Role.OPERATE, name="mailer", queues=("mail",))
    assert world.post("/tasks/pause?queue=mail", **token).status == 200
    world.queue.paused.add("shop")
    for call in ("pause", "resume"):
        refused = world.post(f"/tasks/{call}?queue=shop", **token)
        assert (refused.status, refused.code) == (403, "denied")
    assert world.get("/cluster", **token).json["cluster"]["paused_queues"] == ["mail"]
    assert world.get("/cluster", **holder(world, Role.VIEW)).json["cluster"]["paused_queues"] == ["mail", "shop"]
    assert world.post("/tasks/resume?queue=mail", **token).status == 200
    assert world.queue.paused == {"shop"}
    assert list(world.queue.orders) == [("pause", "mailer"), ("resume", "mailer")]


def test_a_token_without_any_queue_sees_nothing(filled: World) -> None:
    token = holder(filled, Role.OPERATE, queues=())
    assert ids(filled.get("/tasks/list", **token)) == []
    assert filled.get("/tasks/stats", **token).json["stats"]["total"] == 0
    refused = filled.post("/tasks/submit", {"type": "email"}, **token)
    assert "is for no queue, not for queue 'default'" in refused.json["detail"]


# --- what ``view`` sees ---
def secret_task(world: World) -> str:
    task_id = world.submit(payload="s3cret-payload", queue="mail", tags={"who": "acme"})
    world.queue.start_task(task_id)
    world.queue.note_task(task_id, Progress(0.5, "s3cret-note"), (LogLine(1, "s3cret-line"),), 0)
    world.queue.fail_task(task_id, FAILURE)
    return task_id


def test_who_may_only_look_is_shown_nothing_that_a_task_carries(world: World) -> None:
    failed, done = secret_task(world), world.submit(payload=["s3cret-payload"])
    world.queue.start_task(done)
    world.queue.finish_task(done, b'"s3cret-result"')
    world.queue.start_task(world.submit(payload={"s3cret-payload": 1}))
    reader, viewer = holder(world, Role.READ), holder(world, Role.VIEW)
    paths = [f"/tasks/status?id={failed}", f"/tasks/status?id={done}", "/tasks/list", "/tasks/list?scope=cluster"]
    paths += ["/tasks/dead", f"/tasks/status?id={done}&wait=1", f"/tasks/status?id={failed}&consistency=local"]
    whole = b"".join(world.get(path, **reader).body for path in paths).decode()
    assert all(secret in whole for secret in SECRETS)
    for path in paths:
        reply = world.get(path, **viewer)
        assert reply.status == 200
        assert "s3cret" not in reply.body.decode(), path
    task = world.get(f"/tasks/status?id={failed}", **viewer).json
    assert {"payload", "result"}.isdisjoint(task)
    assert task["error"] == {"type": "ValueError", "message": ""}
    assert task["attempts"][0]["error"] == {"type": "ValueError", "message": ""}
    assert (task["progress"], task["log"], task["tags"]) == ({"fraction": 0.5}, [], {"who": "acme"})
    assert (task["status"], task["attempt"], task["queue"]) == ("failed", 1, "mail")


# --- events ---
def test_a_stream_tells_of_what_its_token_may_know(world: World) -> None:
    tokens = {
        "all": holder(world, Role.VIEW),
        "mail": holder(world, Role.READ, queues=("mail",)),
        "ann": holder(world, Role.SUBMIT, name="ann"),
        "ann in mail": holder(world, Role.SUBMIT, name="ann", queues=("mail",)),
    }
    streams = {
        (name, scope): opened(world, f"/tasks/events?scope={scope}", **token)
        for name, token in tokens.items()
        for scope in ("node", "cluster")
    }
    for made_by, queue in (("all", "mail"), ("ann", "shop"), ("ann", "mail"), ("all", "shop")):
        token = tokens["ann"] if made_by == "ann" else holder(world, Role.OPERATE)
        submitted(world, token, id=f"{made_by}-{queue}", queue=queue)
    told = {key: [data(block)["task_id"] for block in blocks(stream)[1:]] for key, stream in streams.items()}
    expected = {
        "all": ["all-mail", "ann-shop", "ann-mail", "all-shop"],
        "mail": ["all-mail", "ann-mail"],
        "ann": ["ann-shop", "ann-mail"],
        "ann in mail": ["ann-mail"],
    }
    assert told == {(name, scope): expected[name] for name, scope in streams}
    # Ids are those of the whole stream: who comes back goes on where it was.
    again = opened(world, Last_Event_ID="2", **tokens["ann"])
    assert [data(block)["task_id"] for block in blocks(again)[1:]] == ["ann-mail"]
    for stream in (*streams.values(), again):
        stream.transport.hang_up()


def test_a_revoked_tokens_stream_ends_before_it_tells_more(world: World) -> None:
    client = opened(world, **holder(world, Role.READ, name="gone"))
    stays = opened(world, **holder(world, Role.READ))
    operator = holder(world, Role.OPERATE)
    submitted(world, operator, id="one")
    world.tokens.revoke("gone")
    world.clock.advance(limits.TOKENS_LOOK_S)
    submitted(world, operator, id="two")
    assert [data(block)["task_id"] for block in blocks(client)[1:]] == ["one"]
    assert client.received.endswith(b"0\r\n\r\n"), "it has ended in order"
    assert [data(block)["task_id"] for block in blocks(stays)[1:]] == ["one", "two"]
    stays.transport.hang_up()


def test_the_stream_of_a_token_that_is_valid_no_more_ends_without_an_event_too(world: World) -> None:
    client = opened(world, **holder(world, Role.READ, name="gone"))
    world.clock.pump([15.0])
    assert world.queue.watchers == 1
    world.tokens.revoke("gone")
    world.clock.pump([15.0])
    assert world.queue.watchers == 0
    assert client.received.endswith(b"0\r\n\r\n")


def narrowed(world: World, name: str, **fields: Any) -> None:
    """The same token, as its file may say it anew, knows of less from now on."""
    entries = world.tokens.table.tokens
    world.tokens.set(
        tokens=tuple(msgspec.structs.replace(one, **fields) if one.name == name else one for one in entries)
    )
    world.clock.advance(limits.TOKENS_LOOK_S)


def test_the_stream_of_a_token_that_knows_of_less_now_ends(world: World) -> None:
    reader = holder(world, Role.READ, name="reader")
    client = opened(world, **reader)
    operator = holder(world, Role.OPERATE)
    narrowed(world, "reader", queues=("mail",))
    submitted(world, operator, queue="shop")
    assert blocks(client) == [b"retry: 2000"]
    assert client.received.endswith(b"0\r\n\r\n")
    again = opened(world, **reader)
    submitted(world, operator, id="mail", queue="mail")
    assert [data(block)["task_id"] for block in blocks(again)[1:]] == ["mail"]
    again.transport.hang_up()


def test_who_waits_is_answered_as_its_token_may_know_in_the_end(world: World) -> None:
    reader = holder(world, Role.READ, name="reader")
    task_id = submitted(world, holder(world, Role.OPERATE), queue="shop", payload="s3cret-payload")
    client = world.connect()
    client.request("GET", f"/tasks/status?id={task_id}&wait=30", None, **reader)
    narrowed(world, "reader", roles=(Role.VIEW,))
    world.queue.start_task(task_id)
    world.queue.finish_task(task_id)
    (seen,) = client.replies()
    assert (seen.json["status"], "payload" in seen.json) == ("completed", False)
    client.transport.hang_up()


def test_who_waits_for_a_task_that_it_may_know_of_no_more_hears_that_there_is_none(world: World) -> None:
    reader = holder(world, Role.READ, name="reader")
    task_id = submitted(world, holder(world, Role.OPERATE), queue="shop")
    client = world.connect()
    client.request("GET", f"/tasks/status?id={task_id}&wait=30", None, **reader)
    narrowed(world, "reader", queues=("mail",))
    world.queue.start_task(task_id)
    world.queue.finish_task(task_id)
    assert (client.replies()[0].status, client.replies()[0].code) == (404, "not_found")
    client.transport.hang_up()


def test_what_a_stream_passes_over_counts_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENT_CHUNK_BYTES", 10 * limits.EVENT_PASSED_BYTES)
    monkeypatch.setattr(limits, "EVENT_TURN_BYTES", 30 * limits.EVENT_PASSED_BYTES)
    world = World()
    operator, ann = holder(world, Role.OPERATE), holder(world, Role.SUBMIT, name="ann")
    submitted(world, operator)
    for _ in range(100):
        submitted(world, operator)
    submitted(world, ann, id="mine")
    client = opened(world, Last_Event_ID="1", **ann)
    assert blocks(client) == [b"retry: 2000"], "a hundred of others are more than a turn allows"
    world.clock.pump([0.0] * 5)
    assert [data(block)["task_id"] for block in blocks(client)[1:]] == ["mine"]
    client.transport.hang_up()
    world.close()


# --- orders ---
@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("/cluster/drain?node=node-2", "drain"),
        ("/cluster/undrain?node=node-2", "undrain"),
        ("/cluster/remove?node=node-2", "remove"),
        ("/cluster/rebalance", "rebalance"),
        ("/cluster/shutdown?node=node-2", "shutdown"),
        ("/cluster/unsafe-recover?partition=0&node=node-2", "unsafe_recover"),
    ],
)
def test_an_order_is_given_in_the_name_of_its_token(three: World, path: str, order: str) -> None:
    three.post(path)
    admin = holder(three, Role.ADMIN, name="chief")
    three.post(path, **admin)
    assert list(three.queue.orders) == [(order, ""), (order, "chief")]


def test_a_node_that_is_told_to_stop_says_by_whom(three: World) -> None:
    admin = holder(three, Role.ADMIN, name="chief")
    with capturedLogs() as logged:
        assert three.post("/cluster/shutdown?node=node-1", **admin).status == 202
    assert [event["by"] for event in logged if event.get("event") == "ordered"] == ["chief"]
