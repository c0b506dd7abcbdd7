"""``GET /tasks/events``: format, resuming, and what becomes of slow clients."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.conftest import LoggedErrors
from tests.unit.tq_node.api.talk import Connection, World
from tq_node import limits
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


# --- how much is made in one turn of the reactor, for all streams ---
TURN_BYTES_MAX = limits.EVENT_TURN_BYTES + limits.EVENT_CHUNK_BYTES + 10_000
"""The last piece of a turn may go beyond; and heads, and sizes of chunks."""


def burst(count: int) -> list[Transition]:
    """Of one commit; some 450 bytes each."""
    return [
        Transition(TaskId(f"t-{n}"), "t" * 100, "q" * 150, None, State.PENDING, 0, 0, 1_700_000_000_000_000 + n)
        for n in range(count)
    ]


def ids_of(client: Connection) -> list[int]:
    return [int(block.split(b"\n")[0][4:]) for block in blocks(client) if block.startswith(b"id: ")]


def replaying(world: World, count: int, events: int = 900) -> list[Connection]:
    """Streams that each begin behind another event, so that no two ask for the same piece."""
    world.queue.tell_here(*burst(events))
    return [opened(world, Last_Event_ID=str(after)) for after in range(1, count + 1)]


def turn(world: World) -> None:
    """As the real reactor and unlike ``Clock.advance``, this leaves what is called for during a turn to the next one."""
    for call in [call for call in world.clock.calls if call.getTime() <= world.clock.seconds()]:
        if call.active():
            world.clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


def received_in_turns(world: World, clients: list[Connection], before: int = 0) -> list[int]:
    """Bytes that arrive at all of them: since ``before``, then in each turn of the reactor until no more comes."""
    each = []
    while (now := sum(len(client.received) for client in clients)) > before:
        each.append(now - before)
        before = now
        turn(world)
    return each


def test_streams_that_replay_share_what_is_made_in_one_turn(world: World) -> None:
    """A11: fifty streams that each made its next pieces were 150 pieces in one turn, 100 ms."""
    clients = replaying(world, 8)
    each = received_in_turns(world, clients)
    assert sum(each) > 4 * TURN_BYTES_MAX
    assert max(each) <= TURN_BYTES_MAX
    for after, client in enumerate(clients, 1):
        assert ids_of(client) == list(range(after + 1, 901))


def test_streams_that_become_writable_share_what_is_made_in_one_turn(world: World) -> None:
    """Their transports resume them all in one turn, as they do when their sockets take data again."""
    clients = replaying(world, 8)
    for client in clients:
        client.channel.pauseProducing()
    turn(world)
    before = sum(len(client.received) for client in clients)
    for client in clients:
        client.channel.resumeProducing()
    each = received_in_turns(world, clients, before)
    assert sum(each) > 3 * TURN_BYTES_MAX
    assert max(each) <= TURN_BYTES_MAX


def test_none_waits_behind_one_that_has_much_to_read(world: World) -> None:
    """They go on a piece each; the first ones had what was left of the turn that they came in."""
    clients = replaying(world, 30)
    for _ in range(10):
        turn(world)
    lengths = [len(client.received) for client in clients[2:]]
    assert max(lengths) - min(lengths) <= limits.EVENT_CHUNK_BYTES + 10_000
    assert min(lengths) > 2 * limits.EVENT_CHUNK_BYTES


def test_what_happens_meanwhile_comes_behind_what_waits(world: World) -> None:
    clients = replaying(world, 8)
    world.queue.start_task(world.submit())
    received_in_turns(world, clients)
    for after, client in enumerate(clients, 1):
        assert ids_of(client) == list(range(after + 1, 903))


def test_one_that_hangs_up_while_it_waits_leaves_its_place(world: World) -> None:
    first, *others = replaying(world, 8)
    for client in others:
        client.transport.hang_up()
    received_in_turns(world, [first])
    assert ids_of(first) == list(range(2, 901))


def test_one_that_a_pause_meets_while_it_waits_goes_on_later(world: World) -> None:
    first, second, *_ = replaying(world, 8)
    second.channel.pauseProducing()
    seen = len(second.received)
    received_in_turns(world, [first])
    assert len(second.received) == seen
    second.channel.resumeProducing()
    received_in_turns(world, [second])
    assert ids_of(second) == list(range(3, 901))


def test_nothing_is_left_on_the_reactor_where_all_hang_up(world: World) -> None:
    for client in replaying(world, 8):
        client.transport.hang_up()
    assert world.clock.getDelayedCalls() == []


def test_a_piece_that_many_streams_share_costs_less(world: World) -> None:
    """A burst that all of them watch is made once: more of it goes out in one turn."""
    clients = [opened(world) for _ in range(8)]
    before = sum(len(client.received) for client in clients)
    world.queue.tell_here(*burst(900))
    each = received_in_turns(world, clients, before)
    assert max(each) <= limits.EVENT_CACHED_SHARE * TURN_BYTES_MAX
    assert len(each) * limits.EVENT_TURN_BYTES < sum(each)
    for client in clients:
        assert ids_of(client) == list(range(1, 901))


def test_one_whose_turn_does_not_come_is_cut_off_as_one_that_does_not_read() -> None:
    """What is kept for a stream is bounded, whoever is too slow."""
    world = World(event_backlog_max=5_000)
    client = opened(world)
    for _ in range(2):
        world.queue.tell_here(*burst(3_000))
    assert not client.was_reset()
    world.queue.tell_here(*burst(3_000))
    assert client.was_reset()
    assert world.metrics.event_clients_dropped == 1
    world.close()
