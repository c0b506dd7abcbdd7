"""No operation of ``openapi.json`` tells a token of tasks that it may not know of, or changes one. Each operation is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from tests.unit.tq_node.api.talk import World
from tests.unit.tq_node.api.test_scope import holder
from tq_node import attempt_token
from tq_node.tokens import Role
from tq_node.types import LogLine, Progress, TaskError, Token

FOREIGN = "f0reign"
"""In all that the foreign tasks are made of: ids, queue, payload, results, logs."""
VALUES = {
    "id": f"{FOREIGN}-done", "queue": f"{FOREIGN}-queue", "node": "node-2", "partition": "0", "name": "nobody", "since": "0",
    "code": "busy", "worker": "w-1", "type": "email",
}  # fmt: skip
"""For each parameter that an operation asks for: the foreign task, wherever it could be meant."""
NOT_BY_TASK = {("GET", "/metrics"), ("GET", "/audit"), ("POST", "/tokens/put"), ("GET", "/tokens/list")}
"""Of the node or the cluster as a whole, for who operates them: docs/reference/http-api.md."""


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    world = World()
    paths = world.get("/openapi.json").json["paths"]
    world.close()
    return [(method.upper(), path, said) for path, methods in paths.items() for method, said in methods.items()]


OPERATIONS = operations()


@pytest.fixture(params=[False, True], ids=["klein", "direct"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(nodes=("node-1", "node-2", "node-3"), fast_path=request.param)
    for name in ("done", "open"):
        world.submit(id=f"{FOREIGN}-{name}", queue=f"{FOREIGN}-queue", payload=FOREIGN, tags={FOREIGN: FOREIGN})
    world.queue.start_task(f"{FOREIGN}-done")
    world.queue.note_task(f"{FOREIGN}-done", Progress(0.5, FOREIGN), (LogLine(1, FOREIGN),), 0)
    world.queue.fail_task(f"{FOREIGN}-done", TaskError(FOREIGN, FOREIGN, FOREIGN))
    world.queue.paused.add(f"{FOREIGN}-queue")
    yield world
    world.close()


def targets(path: str, said: dict[str, Any]) -> Iterator[str]:
    """The operation with what it must be given, and over the whole cluster where it can be asked for that."""
    given = {}
    for parameter in said.get("parameters", []):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", VALUES[parameter["name"]])
        elif parameter["in"] == "query" and (parameter.get("required") or parameter["name"] in ("queue", "id")):
            given[parameter["name"]] = VALUES[parameter["name"]]
    named = {parameter["name"] for parameter in said.get("parameters", [])}
    ways: list[dict[str, str]] = [{}, {"scope": "cluster"}, {"consistency": "local"}, {"wait": "1"}]
    for more in ways:
        if named >= more.keys():
            for asked in (given, {name: value for name, value in given.items() if name != "queue"}):
                yield f"{path}?{urlencode(asked | more)}" if asked or more else path


HELD = {"task_id": f"{FOREIGN}-done", "token": attempt_token.text_of(0, 1, Token(1, 1))}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/tasks/submit": [{"type": "a", "id": f"{FOREIGN}-open"}, {"type": "a", "queue": f"{FOREIGN}-queue"}],
    "/tasks/batch": [{"tasks": [{"type": "a", "queue": f"{FOREIGN}-queue"}, {"type": "a", "id": f"{FOREIGN}-done"}]}],
    "/work/claim": [{"worker": "w-1", "wait": 0}, {"worker": "w-1", "wait": 0, "queues": [f"{FOREIGN}-queue"]}],
    "/work/extend": [{"worker": "w-1", "claims": [HELD | {"progress": 0.1, "log": ["x"]}]}],
    "/work/finish": [{"worker": "w-1", "claims": [HELD | {"outcome": "completed"}]}],
}
OF_ITS_OWN: list[dict[str, Any]] = [{"type": "a", "id": f"{FOREIGN}-open"}]
"""Who has no queues may submit to any."""


@pytest.mark.parametrize("has_queues", [True, False])
def test_no_operation_tells_of_a_foreign_task_or_changes_one(world: World, has_queues: bool) -> None:
    token = holder(world, Role.ADMIN, queues=("mail",)) if has_queues else holder(world, Role.SUBMIT)
    before, tried = dict(world.queue.rows), 0
    for method, path, said in OPERATIONS:
        if (method, path) in NOT_BY_TASK:
            continue
        bodies = [{}] if path not in BODIES else BODIES[path] if has_queues else OF_ITS_OWN
        for target in set(targets(path, said)):
            for body in bodies:
                sent = None if method == "GET" else msgspec.json.encode(body)
                connection = world.connect()
                connection.request(method, target, sent, Last_Event_ID="0", **token)
                world.clock.advance(0.02)
                told = connection.received.partition(b"\r\n\r\n")[2].decode()
                connection.transport.hang_up()
                for mine in (VALUES["id"], VALUES["queue"], f"{FOREIGN}-open"):
                    if mine in target or mine.encode() in (sent or b""):
                        told = told.replace(mine, "")  # what it has said itself it may hear again
                assert FOREIGN not in told, (method, target)
                tried += 1
    rows = world.queue.rows
    assert {task_id: row for task_id, row in rows.items() if FOREIGN in task_id or FOREIGN in row.spec.queue} == before
    assert world.queue.paused == {f"{FOREIGN}-queue"}
    assert tried > len(OPERATIONS)


def test_who_may_know_is_told(world: World) -> None:
    """Else the test above would find nothing anywhere."""
    reader = holder(world, Role.READ)
    told = {
        (method, path)
        for method, path, said in OPERATIONS
        for target in targets(path, said)
        if method == "GET"
        and path not in ("/tasks/events", "/audit")
        and FOREIGN in world.get(target, **reader).body.decode()
    }
    assert {path for _, path in told} >= {"/tasks/status", "/tasks/list", "/tasks/dead", "/cluster"}
