"""Contract, section 2: lists, dead letters, stats."""

from __future__ import annotations

import re

import pytest

from tests.unit.tq_node.api.talk import World
from tq_node.types import TaskError

DONE = TaskError("ValueError", "no such address", "Traceback …")


def ids(tasks: list[dict[str, str]]) -> list[str]:
    return [task["id"] for task in tasks]


class TestList:
    def test_the_shape(self, world: World) -> None:
        task_id = world.submit()
        answer = world.get("/tasks/list").json
        assert answer.keys() == {"tasks", "count", "node", "next"}
        assert (answer["count"], answer["node"], answer["next"]) == (1, "node-1", None)
        assert (answer["tasks"][0]["id"], answer["tasks"][0]["role"]) == (task_id, "primary")

    def test_pages_by_id(self, world: World) -> None:
        names = [world.submit(id=f"t{number}") for number in range(5)]
        seen, cursor = [], ""
        while True:
            page = world.get(f"/tasks/list?limit=2{cursor}").json
            seen += ids(page["tasks"])
            if page["next"] is None:
                break
            assert re.fullmatch(r"[A-Za-z0-9_-]+", page["next"])
            cursor = f"&cursor={page['next']}"
        assert seen == names

    @pytest.mark.parametrize("sort", ["priority", "-priority", "created_at", "-run_at", "-id"])
    def test_pages_in_other_orders(self, world: World, sort: str) -> None:
        for number in range(5):
            world.submit(id=f"t{number}", priority=number % 3)
        whole = ids(world.get(f"/tasks/list?sort={sort}").json["tasks"])
        first = world.get(f"/tasks/list?sort={sort}&limit=3").json
        second = world.get(f"/tasks/list?sort={sort}&limit=3&cursor={first['next']}").json
        assert ids(first["tasks"]) + ids(second["tasks"]) == whole

    def test_filters(self, world: World) -> None:
        world.submit(id="a1", queue="mail")
        world.submit(id="b2", type="image")
        world.submit(id="c3", type="Report", delay=5)

        def found(query: str) -> list[str]:
            return ids(world.get(f"/tasks/list?{query}").json["tasks"])

        assert found("status=scheduled") == ["c3"]
        assert found("status=!scheduled,completed") == ["a1", "b2"]
        assert found("type=email,image") == ["a1", "b2"]
        assert found("type=%21email") == ["b2", "c3"]
        assert found("queue=mail") == ["a1"]
        assert found("node=node-1") == ["a1", "b2", "c3"]
        assert found("node=!node-1") == []
        assert found("q=REP") == ["c3"]
        assert found("q=null") == found("type=null") == []
        assert found("role=replica") == []
        assert found("status=&type=&q=&cursor=") == ["a1", "b2", "c3"]

    @pytest.mark.parametrize(
        ("query", "name"),
        [
            ("status=done", "status"),
            ("role=null", "role"),
            ("status=null", "status"),
            ("status=pending%0A", "status"),
            ("sort=colour", "sort"),
            ("limit=0", "limit"),
            ("limit=10001", "limit"),
            ("limit=1.5", "limit"),
            ("role=boss", "role"),
            ("scope=world", "scope"),
            ("cursor=%C3%A9", "cursor"),
            ("cursor=AAAA", "cursor"),
            ("cursor=WyJpZCIsOTk5OTk5OTk5OTk5OTk5OTk5OTksImEiXQ", "cursor"),
            ("colour=red", "colour"),
            ("status=pending&status=failed", "status"),
            ("q=%FF", "q"),
        ],
    )
    def test_a_bad_parameter_is_named(self, world: World, query: str, name: str) -> None:
        reply = world.get(f"/tasks/list?{query}")
        assert (reply.status, reply.code) == (400, "bad_parameter")
        assert reply.json["detail"].startswith(name)

    def test_a_cursor_belongs_to_its_order(self, world: World) -> None:
        for number in range(3):
            world.submit(id=f"t{number}")
        cursor = world.get("/tasks/list?limit=1").json["next"]
        assert world.get(f"/tasks/list?sort=-id&cursor={cursor}").code == "bad_parameter"

    def test_scope_cluster_names_the_missing(self, world: World) -> None:
        assert world.get("/tasks/list?scope=cluster").json["missing"] == []
        assert "missing" not in world.get("/tasks/list").json

    @pytest.mark.parametrize("path", ["/tasks/list", "/tasks/dead", "/tasks/stats"])
    def test_who_is_down_is_missing(self, three: World, path: str) -> None:
        three.queue.members.set_status("node-3", "down")
        assert three.get(f"{path}?scope=cluster").json["missing"] == ["node-3"]
        assert "missing" not in three.get(f"{path}?scope=node").json

    @pytest.mark.parametrize("path", ["/tasks/list", "/tasks/dead", "/tasks/stats"])
    def test_what_nobody_answered_for_is_named(self, three: World, path: str) -> None:
        assert three.get(f"{path}?scope=cluster").json["partitions_missing"] == []
        three.queue.unled = {7, 3}
        assert three.get(f"{path}?scope=cluster").json["partitions_missing"] == [3, 7]
        assert "partitions_missing" not in three.get(path).json

    def test_many_rows_are_rendered_in_several_turns(self, world: World) -> None:
        world.post("/tasks/batch", {"tasks": [{"type": "a", "id": f"t{number:04}"} for number in range(1_201)]})
        world.site.server.slices.slice_s = 0.0  # it is cut behind each task
        client = world.connect()
        client.request("GET", "/tasks/list?limit=2000")
        assert client.received == b""
        other = world.connect()
        other.request("GET", "/health")
        assert other.replies()[0].status == 200
        world.clock.advance(0)
        (reply,) = client.replies()
        assert reply.json["count"] == len(reply.json["tasks"]) == 1_201
        assert ids(reply.json["tasks"]) == sorted(world.queue.rows)

    def test_the_dead(self, world: World) -> None:
        for task_id in ("a", "b"):
            world.submit(id=task_id)
            world.queue.start_task(task_id)
            world.queue.fail_task(task_id, DONE)
        world.submit(id="c")
        assert ids(world.get("/tasks/dead?limit=1").json["tasks"]) == ["a"]
        assert ids(world.get("/tasks/dead?status=failed,pending").json["tasks"]) == ["a", "b"]
        assert ids(world.get("/tasks/dead?status=!failed").json["tasks"]) == []
        assert world.get("/tasks/dead?status=pending").json["next"] is None


class TestStats:
    def test_counts(self, world: World) -> None:
        world.submit()
        world.submit(delay=5)
        world.post(f"/tasks/cancel?id={world.submit()}")
        answer = world.get("/tasks/stats").json
        counts = {
            "total": 3,
            "pending": 1,
            "processing": 0,
            "completed": 0,
            "failed": 0,
            "scheduled": 1,
            "cancelled": 1,
        }
        assert answer == {"node": "node-1", "stats": counts, "primary": counts, "replica": dict.fromkeys(counts, 0)}

    def test_the_cluster_counts_each_task_once(self, world: World) -> None:
        world.submit()
        answer = world.get("/tasks/stats?scope=cluster").json
        assert (answer["stats"], answer["missing"]) == (answer["primary"], [])
