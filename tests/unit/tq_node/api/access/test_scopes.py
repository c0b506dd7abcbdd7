"""What a token may do with whose tasks: every cell of a table written by hand, at both ways in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.scope_matrix import COVERED, ROLES, ROWS, Row
from tests.unit.tq_node.api.access.test_matrix import operations
from tests.unit.tq_node.api.talk import Reply, World
from tests.unit.tq_node.api.test_callers import with_token
from tq_node import attempt_token
from tq_node.api.access import access as product
from tq_node.api.access.access import Access
from tq_node.facade import Submission
from tq_node.tokens import Role
from tq_node.types import TaskError

SECRET = "s3cret"
STATE_FOR = {
    "/tasks/retry": "failed", "/tasks/purge": "failed", "/tasks/dead": "failed", "/work/extend": "processing",
    "/work/finish": "processing",
}  # fmt: skip
"""Others are asked of a pending task, and those that wait of one that completes meanwhile."""


class Asked:
    """A world in which one cell after the other is asked."""

    def __init__(self, fast_path: bool) -> None:
        self.world = World(fast_path=fast_path)
        self.tokens = {
            (role, scope): with_token(
                self.world, Role(role), name=f"{role}-{scope}", queues=None if scope == "any" else ("mail",)
            )
            for role in ROLES
            for scope in ("any", "mail")
        }

    def task(self, row: Row, role: str) -> str:
        """The only task that there is."""
        queue = self.world.queue
        queue.rows.clear()
        made_by = f"{role}-{row.token}" if row.whose == "own" else "somebody"
        made = Submission("email", b'"%b"' % SECRET.encode(), queue=row.queue, made_by=made_by)
        task_id = queue._submit(made).task_id
        if STATE_FOR.get(row.path) == "failed":
            queue.start_task(task_id)
            queue.fail_task(task_id, TaskError("ValueError", SECRET, SECRET))
        elif STATE_FOR.get(row.path) == "processing":
            queue.start_task(task_id)
        return task_id

    def answer(self, row: Row, role: str) -> str:
        world, token = self.world, self.tokens[role, row.token]
        if row.path == "/tasks/events":
            return self._events(row, role, token)
        task_id = self.task(row, role)
        if row.path == "/tasks/resume":
            world.queue.paused.update(("mail", "sms"))
        before = dict(world.queue.rows), set(world.queue.paused)
        reply = self._call(row, task_id, token)
        is_changed = before != (dict(world.queue.rows), set(world.queue.paused))
        world.queue.paused.clear()
        assert is_changed == ((row.method == "POST" and is_done(row, reply)) or (row.waits and reply.status == 200))
        return told(row, reply)

    def _call(self, row: Row, task_id: str, token: dict[str, str]) -> Reply:
        world, fields = self.world, {"type": "email", "queue": row.queue}
        match row.path:
            case "/tasks/submit":
                return world.post(row.path, fields, **token)
            case "/tasks/batch":
                return world.post(row.path, {"tasks": [fields]}, **token)
            case "/work/claim":
                return world.post(row.path, {"worker": "w", "queues": [row.queue], "wait": 0}, **token)
            case "/work/extend" | "/work/finish":
                held = world.queue.rows[task_id]
                assert held.token is not None
                named = {"task_id": task_id, "token": attempt_token.text_of(held.partition, held.attempt, held.token)}
                said = {"progress": 0.5} if row.path == "/work/extend" else {"outcome": "completed", "result": 1}
                return world.post(row.path, {"worker": "w", "claims": [named | said]}, **token)
            case "/tasks/list" | "/tasks/dead" | "/tasks/stats":
                return world.get(row.path, **token)
            case "/tasks/pause" | "/tasks/resume":
                return world.post(f"{row.path}?queue={row.queue}", **token)
        if not row.waits:
            return world.call(row.method, f"{row.path}?id={task_id}", **token)
        connection = world.connect()
        connection.request("GET", f"{row.path}?id={task_id}&wait=30", None, **token)
        if not connection.received:
            world.clock.advance(0.02)
        if not connection.received:
            world.queue.start_task(task_id)
            world.queue.finish_task(task_id, b'"%b"' % SECRET.encode())
        (reply,) = connection.replies()
        connection.transport.hang_up()
        return reply

    def _events(self, row: Row, role: str, token: dict[str, str]) -> str:
        stream = self.world.connect()
        stream.request("GET", row.path, None, **token)
        self.world.clock.advance(0.02)
        if b" 403 " in stream.received:
            stream.transport.hang_up()
            return "403"
        task_id = self.task(row, role)
        self.world.clock.advance(0.02)
        assert SECRET.encode() not in stream.received
        is_told = task_id.encode() in stream.received
        stream.transport.hang_up()
        return "whole" if is_told else "404"


def is_done(row: Row, reply: Reply) -> bool:
    if row.path == "/tasks/batch":
        return reply.status == 200 and reply.json["accepted"] == 1
    if row.path == "/work/claim":
        return reply.status == 200 and len(reply.json["claims"]) == 1
    if row.path.startswith("/work/"):
        return reply.status == 200 and "error" not in reply.json["results"][0]
    return reply.status in (200, 201)


def told(row: Row, reply: Reply) -> str:
    """The answer in a word of the table."""
    match row.path:
        case "/tasks/batch" if reply.status == 200 and reply.json["rejected"]:
            return str(reply.json["results"][0]["error"]["status"])
        case "/work/extend" | "/work/finish" if reply.status == 200 and "error" in reply.json["results"][0]:
            return str(reply.json["results"][0]["error"]["status"])
        case "/tasks/list" | "/tasks/dead" if reply.status == 200 and not reply.json["tasks"]:
            return "404"
        case "/tasks/stats" if reply.status == 200:
            return "whole" if reply.json["stats"]["total"] else "404"
    if reply.status not in (200, 201):
        assert SECRET.encode() not in reply.body
        return str(reply.status)
    if row.method == "POST":
        return "done"
    return "whole" if SECRET.encode() in reply.body else "redacted"


@pytest.fixture(params=[False, True], ids=["klein", "direct"])
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    asked = Asked(request.param)
    yield asked
    for _ in range(100):
        asked.world.clock.advance(0.02)
    asked.world.close()


def test_the_table_has_every_operation_and_no_other() -> None:
    assert sorted(operations()) == sorted(COVERED)


def wrong_cells(asked: Asked, rows: list[Row]) -> list[tuple[Row, str, str]]:
    found = [(row, role, asked.answer(row, role)) for row in rows for role in ROLES]
    return [(row, role, told) for row, role, told in found if told != row.expected[role]]


def test_every_cell(asked: Asked) -> None:
    wrong = wrong_cells(asked, ROWS)
    print(f"{len(ROWS) * len(ROLES)} cells")
    assert not wrong


@pytest.mark.parametrize(
    ("role", "access"),
    [
        (Role.VIEW, Access.READ),
        (Role.READ, Access.READ),
        (Role.SUBMIT, Access.LOOK),
        (Role.SUBMIT, Access.OPERATE),
        (Role.OPERATE, Access.READ),
        (Role.OPERATE, Access.LOOK),
        (Role.ADMIN, Access.READ),
        (Role.ADMIN, Access.LOOK),
    ],
)
def test_a_right_to_see_or_change_that_is_flipped_is_noticed(
    role: Role, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(product.ACCESS_OF, role, product.ACCESS_OF[role] ^ {access})
    asked = Asked(fast_path=True)
    found = wrong_cells(asked, [row for row in ROWS if row.path in ("/tasks/status", "/tasks/cancel")])
    assert {cell[1] for cell in found} == {str(role)}
