"""``GET /tasks/events``: format, resuming, and what becomes of slow clients."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.conftest import LoggedErrors
from tests.unit.tq_node.api.talk import Connection, World
from tq_node.errors import NotReady
from tq_node.types import State, TaskId, Transition


def opened(world: World, path: str = "/tasks/events", **headers: str) -> Connection:
    client = world.connect()
    client.request("GET", path, None, **headers)
    return client


def stream_of(client: Connection) -> bytes:
    """The body so far, the chunks put together."""
    _, _, rest = client.received.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


def blocks(client: Connection) -> list[bytes]:
    return stream_of(client).split(b"\n\n")[:-1]


def data(block: bytes) -> dict[str, Any]:
    number, event, line = block.split(b"\n")
    assert number.startswith(b"id: ")
    assert event == b"event: task"
    value: dict[str, Any] = msgspec.json.decode(line.removeprefix(b"data: "))
    return value


def test_the_head_comes_at_once(world: World) -> None:
    client = opened(world, X_Request_Id="abc")
    head = client.received.partition(b"\r\n\r\n")[0].decode().lower()
    assert head.startswith("http/1.1 200 ok")
    assert "content-type: text/event-stream" in head
    assert "cache-control: no-store" in head
    assert "x-request-id: abc" in head
    assert blocks(client) == [b"retry: 2000"]
    assert world.site.server.in_flight == 0


def test_every_transition_is_an_event(world: World) -> None:
    client = opened(world)
    task_id = world.submit(queue="mail")
    world.queue.start_task(task_id)
    _, born, started = blocks(client)
    assert born.startswith(b"id: 1\n")
    assert started.startswith(b"id: 2\n")
    assert data(born) == {
        "task_id": task_id,
        "type": "email",
        "queue": "mail",
        "from": None,
        "to": "pending",
        "attempt": 0,
        "node": "node-1",
        "partition": 0,
        "at": "2023-11-14T22:13:20.000000Z",
    }
    assert (data(started)["from"], data(started)["to"], data(started)["attempt"]) == ("pending", "processing", 1)


def test_a_comment_each_15_seconds(world: World) -> None:
    client = opened(world)
    world.clock.pump([15.0] * 2)
    comments = [block for block in blocks(client) if block.startswith(b": ")]
    assert len(comments) == 2
    assert b"\n" not in comments[0]


def test_it_goes_on_behind_the_last_event(world: World) -> None:
    for _ in range(3):
        world.submit()
    client = opened(world, Last_Event_ID="1")
    assert [block.split(b"\n")[0] for block in blocks(client)[1:]] == [b"id: 2", b"id: 3"]
    world.submit()
    assert blocks(client)[-1].startswith(b"id: 4\n")


@pytest.mark.parametrize("last", ["1", "999999", "nonsense", "-1", "9" * 40])
def test_reset_where_that_is_too_old_or_none_of_ours(world: World, last: str) -> None:
    world.post("/tasks/batch", {"tasks": [{"type": "a"}] * 1_010})
    client = opened(world, Last_Event_ID=last)
    assert blocks(client)[1:] == [b"event: reset\ndata: {}"]
    world.submit()
    assert blocks(client)[-1].startswith(b"id: 1011\n")


def test_a_client_that_hangs_up_is_forgotten(world: World) -> None:
    client = opened(world)
    assert world.queue.watchers == 1
    client.transport.hang_up()
    assert world.queue.watchers == 0
    world.submit()
    assert client.received.endswith(b"retry: 2000\n\n\r\n")


def test_a_slow_client_gets_what_was_kept_for_it(world: World) -> None:
    client = opened(world)
    client.channel.pauseProducing()
    seen = len(client.received)
    task_id = world.submit()
    world.queue.start_task(task_id)
    world.clock.advance(15)
    assert len(client.received) == seen
    client.channel.resumeProducing()
    assert [data(block)["to"] for block in blocks(client)[1:]] == ["pending", "processing"]


def test_one_that_does_not_read_at_all_is_cut_off() -> None:
    world = World(event_backlog_max=5)
    slow, quick = opened(world), opened(world)
    slow.channel.pauseProducing()
    for _ in range(5):
        world.submit()
    assert not slow.was_reset()
    world.submit()
    assert slow.was_reset()
    assert world.metrics.event_clients_dropped == 1
    assert world.queue.watchers == 1
    assert len(blocks(quick)) == 7
    world.close()


def test_clients_are_bounded() -> None:
    world = World(event_clients_max=1)
    client = opened(world)
    assert world.get("/tasks/events").code == "busy"
    client.transport.hang_up()
    opened(world)
    world.close()


def test_closing_the_site_ends_the_streams(world: World) -> None:
    client = opened(world)
    over: list[None] = []
    world.site.close(10).addCallback(over.append)
    assert client.received.endswith(b"0\r\n\r\n")
    assert client.has_ended()
    assert over == [None]


def test_head_has_no_stream(world: World) -> None:
    client = world.connect()
    client.request("HEAD", "/tasks/events")
    assert client.received.startswith(b"HTTP/1.1 200")
    assert client.received.endswith(b"\r\n\r\n")
    assert world.queue.watchers == 0


def test_the_scope_may_be_named(world: World) -> None:
    assert blocks(opened(world, "/tasks/events?scope=cluster")) == [b"retry: 2000"]
    assert blocks(opened(world, "/tasks/events?scope=node")) == [b"retry: 2000"]


@pytest.mark.parametrize("query", ["", "?scope=cluster"])
def test_a_stream_that_the_queue_refuses_never_begins(world: World, query: str, logged_errors: LoggedErrors) -> None:
    world.queue.fail_next("watch", NotReady("not yet in a cluster"), ZeroDivisionError("a bug"))
    reply = world.get(f"/tasks/events{query}")
    assert (reply.status, reply.code) == (503, "not_ready")
    assert world.get(f"/tasks/events{query}").code == "internal"
    assert len(logged_errors.flush(ZeroDivisionError)) == 1
    assert world.queue.watchers == 0
    assert blocks(opened(world)) == [b"retry: 2000"]


def elsewhere(partition: int) -> Transition:
    return Transition(TaskId("far"), "email", "default", None, State.PENDING, 0, partition, 1_700_000_000_000_000)


def test_the_cluster_s_events_name_each_task_s_primary(three: World) -> None:
    of_node, of_all = opened(three), opened(three, "/tasks/events?scope=cluster")
    near = three.submit()
    three.queue.tell_elsewhere(elsewhere(1))
    assert [data(block)["task_id"] for block in blocks(of_node)[1:]] == [near]
    _, first, second = blocks(of_all)
    assert (data(first)["task_id"], data(first)["node"]) == (near, "node-1")
    assert (data(second)["task_id"], data(second)["node"]) == ("far", "node-2")


def test_a_partition_may_have_no_primary_by_then(three: World) -> None:
    client = opened(three, "/tasks/events?scope=cluster")
    three.queue.members.set_partition(1, primary=None)
    three.queue.tell_elsewhere(elsewhere(1))
    assert data(blocks(client)[1])["node"] is None


def test_each_scope_is_resumed_by_its_own_numbers(three: World) -> None:
    three.queue.tell_elsewhere(elsewhere(1))
    near = three.submit()
    (_, event) = blocks(opened(three, Last_Event_ID="0"))
    assert (event.splitlines()[0], data(event)["task_id"]) == (b"id: 1", near)
    (_, event) = blocks(opened(three, "/tasks/events?scope=cluster", Last_Event_ID="1"))
    assert (event.splitlines()[0], data(event)["task_id"]) == (b"id: 2", near)
    assert b"event: reset" in stream_of(opened(three, "/tasks/events", Last_Event_ID="2"))


def test_http_1_0_gets_the_bare_stream(world: World) -> None:
    client = world.connect()
    client.send(b"GET /tasks/events HTTP/1.0\r\n\r\n")
    world.submit()
    assert client.received.partition(b"\r\n\r\n")[2].startswith(b"retry: 2000\n\nid: 1\nevent: task\n")
