"""Contract, section 4: what operators order, and what the cluster says to it."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.api.talk import World
from tq_node import errors
from tq_node.errors import TaskQueueError
from tq_node.wire.errors import PeerUnreachable

ORDERS = [
    ("drain", "/cluster/drain?node=node-2", "node-2"),
    ("undrain", "/cluster/undrain?node=node-2", "node-2"),
    ("remove", "/cluster/remove?node=node-2", "node-2"),
    ("rebalance", "/cluster/rebalance", "node-1"),
    ("unsafe_recover", "/cluster/unsafe-recover?partition=1&node=node-2", "node-2"),
    ("shutdown", "/cluster/shutdown?node=node-2", "node-2"),
]
REFUSALS: list[tuple[TaskQueueError, int, str]] = [
    (errors.NoSuchNode("gone"), 404, "not_found"),
    (errors.LastNode("the last"), 409, "last_node"),
    (errors.ClusterRefused("move under way"), 409, "refused"),
    (errors.NoController("no leader"), 503, "no_controller"),
    (errors.NotReady("joining"), 503, "not_ready"),
    (errors.Draining("stopping"), 503, "draining"),
    (PeerUnreachable("node node-2 is not connected"), 503, "peer_unreachable"),
    (errors.OutcomeUnknown("not in time"), 504, "outcome_unknown"),
]


def statuses(world: World) -> list[str]:
    return [node["status"] for node in world.get("/cluster").json["cluster"]["nodes"]]


@pytest.mark.parametrize(("method", "path", "node"), ORDERS, ids=[order[0] for order in ORDERS])
class TestAnOrder:
    def test_it_is_answered_once_the_cluster_has_decided(self, three: World, method: str, path: str, node: str) -> None:
        three.queue.members.set_partition(1, state="offline", primary=None)
        three.queue.hold()
        client = three.connect()
        client.request("POST", path)
        assert client.received == b""
        three.queue.release()
        (reply,) = client.replies()
        assert reply.status == 202
        assert reply.body == b'{"success":true,"node":"%b"}' % node.encode()
        assert list(three.queue.calls) == [method]
        assert three.shutdowns == []

    @pytest.mark.parametrize(("why", "status", "code"), REFUSALS, ids=lambda value: getattr(value, "code", ""))
    def test_it_may_be_refused(
        self, three: World, method: str, path: str, node: str, why: TaskQueueError, status: int, code: str
    ) -> None:
        three.queue.fail_next(method, why)
        reply = three.post(path)
        assert (reply.status, reply.code, reply.json["detail"]) == (status, code, why.detail)
        assert ("retry-after" in reply.headers) is (status == 503)
        assert "task_id" not in reply.json

    def test_it_takes_no_other_parameters_and_no_get(self, three: World, method: str, path: str, node: str) -> None:
        assert three.post(f"{path}{'&' if '?' in path else '?'}force=1").code == "bad_parameter"
        assert three.get(path).status == 405
        assert not three.queue.calls


class TestDrainAndRemove:
    def test_a_drained_node_stays_in_the_cluster(self, three: World) -> None:
        assert three.post("/cluster/drain?node=node-2").status == 202
        assert statuses(three) == ["active", "draining", "active"]
        assert three.get("/cluster/partitions").json["partitions"][1]["removing"] == ["node-2"]
        three.queue.members.settle()
        assert three.get("/cluster/partitions").json["partitions"][1]["primary"] == "node-3"
        assert statuses(three) == ["active", "draining", "active"]

    @pytest.mark.parametrize("order", ["drain", "remove"])
    def test_it_can_be_taken_back(self, three: World, order: str) -> None:
        assert three.post(f"/cluster/{order}?node=node-2").status == 202
        assert three.post("/cluster/undrain?node=node-2").status == 202
        assert statuses(three) == ["active", "active", "active"]
        three.queue.members.settle()
        assert statuses(three) == ["active", "active", "active"]
        assert three.get("/cluster/partitions").json["partitions"][1]["removing"] == []

    def test_a_removed_one_leaves_it_when_it_is_empty(self, three: World) -> None:
        assert three.post("/cluster/remove?node=node-2").status == 202
        assert statuses(three) == ["active", "draining", "active"]
        three.queue.members.settle()
        assert statuses(three) == ["active", "active"]
        assert three.post("/cluster/remove?node=node-2").code == "not_found"

    def test_a_dead_one_is_given_up_at_once(self, three: World) -> None:
        three.queue.members.set_status("node-2", "down")
        assert three.post("/cluster/remove?node=node-2").status == 202
        assert statuses(three) == ["active", "active"]
        assert three.get("/cluster/partitions").json["partitions"][1]["state"] == "offline"

    @pytest.mark.parametrize("call", ["drain", "remove"])
    def test_the_last_node_stays(self, world: World, three: World, call: str) -> None:
        reply = world.post(f"/cluster/{call}?node=node-1")
        assert (reply.status, reply.code) == (409, "last_node")
        three.queue.members.set_status("node-3", "down")
        assert three.post("/cluster/drain?node=node-2").status == 202
        assert three.post(f"/cluster/{call}?node=node-1").code == "last_node"

    @pytest.mark.parametrize("call", ["drain", "undrain", "remove", "rebalance", "unsafe-recover"])
    def test_without_a_leader_nothing_is_decided(self, three: World, call: str) -> None:
        three.queue.members.leader = None
        query = {"rebalance": "", "unsafe-recover": "?partition=0&node=node-2"}.get(call, "?node=node-2")
        reply = three.post(f"/cluster/{call}{query}")
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "no_controller", "1")
        assert statuses(three) == ["active"] * 3


class TestUnknownNames:
    @pytest.mark.parametrize("call", ["drain?", "undrain?", "remove?", "shutdown?", "unsafe-recover?partition=0&"])
    def test_a_node(self, world: World, call: str) -> None:
        reply = world.post(f"/cluster/{call}node=node-9")
        assert (reply.status, reply.code) == (404, "not_found")
        assert world.post(f"/cluster/{call}").code == "bad_parameter"

    @pytest.mark.parametrize(
        ("partition", "code"),
        [
            ("2", "not_found"),
            ("-1", "bad_parameter"),
            ("x", "bad_parameter"),
            ("", "bad_parameter"),
            ("9" * 20, "bad_parameter"),
        ],
    )
    def test_a_partition(self, world: World, partition: str, code: str) -> None:
        assert world.post(f"/cluster/unsafe-recover?node=node-1&partition={partition}").code == code


class TestUnsafeRecover:
    def test_what_is_in_service_is_not_touched(self, three: World) -> None:
        reply = three.post("/cluster/unsafe-recover?partition=0&node=node-2")
        assert (reply.status, reply.code) == (409, "refused")

    def test_a_copy_becomes_the_partition(self, three: World) -> None:
        three.queue.members.set_partition(0, primary=None, state="offline")
        assert three.post("/cluster/unsafe-recover?partition=0&node=node-2").json["node"] == "node-2"
        partition = three.get("/cluster/partitions").json["partitions"][0]
        assert (partition["primary"], partition["epoch"], partition["in_sync"]) == ("node-2", 2, ["node-2"])


class TestShutdown:
    def test_of_this_node_comes_after_the_answer(self, three: World) -> None:
        client = three.connect()
        client.request("POST", "/cluster/shutdown?node=node-1")
        assert client.replies()[0].status == 202
        assert client.replies()[0].body == b'{"success":true,"node":"node-1"}'
        assert three.shutdowns == []
        three.clock.advance(0)
        assert len(three.shutdowns) == 1
        assert not three.queue.calls

    def test_of_another_node_ends_only_that_one(self, three: World) -> None:
        assert three.post("/cluster/shutdown?node=node-3").status == 202
        three.clock.advance(1)
        assert three.queue.members.told_to_stop == ["node-3"]
        assert three.shutdowns == []

    def test_of_one_that_is_down(self, three: World) -> None:
        three.queue.members.set_status("node-3", "down")
        reply = three.post("/cluster/shutdown?node=node-3")
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "peer_unreachable", "1")
