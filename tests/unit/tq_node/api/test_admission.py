"""Admission: what a client meets when there is no room, over both ways in, in memory."""

from __future__ import annotations

from twisted.internet.address import IPv4Address

from tests.unit.tq_node.api.talk import Connection, World
from tq_node import limits
from tq_node.api.http.load_shedding import TICK_S
from tq_node.tokens import Role

BODY = b'{"type":"a"}'
BATCH = b'{"tasks":[{"type":"a"}]}'
PER_TICK = round(limits.REFUSALS_PER_S * TICK_S)
LONG = limits.LARGE_BODY_BYTES + 1


def fill(world: World) -> list[Connection]:
    """As many submits as are let in, and none of them is answered."""
    world.queue.hold()
    clients = [world.connect() for _ in range(limits.SUBMITS_AT_ONCE)]
    for client in clients:
        client.request("POST", "/tasks/submit", BODY)
    assert not any(client.received for client in clients)
    return clients


def test_one_more_submit_is_refused_before_it_is_read(world: World) -> None:
    clients = fill(world)
    calls = len(world.queue.calls)
    reply = world.post("/tasks/submit", b"this is not JSON")
    assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "busy", "1")
    assert len(world.queue.calls) == calls
    assert world.get("/health").status == 200
    world.queue.release()
    assert {client.replies()[0].status for client in clients} == {201}
    assert world.site.server.submit_limit.in_progress == 0
    assert world.post("/tasks/submit", BODY).status == 201
    world.clock.advance(TICK_S)


def test_reads_and_batches_are_let_in_where_submits_are_not(world: World) -> None:
    task_id = world.submit()
    fill(world)
    read, batch = world.connect(), world.connect()
    read.request("GET", f"/tasks/status?id={task_id}")
    batch.request("POST", "/tasks/batch", BATCH)
    world.queue.release()
    assert (read.replies()[0].status, batch.replies()[0].status) == (200, 200)


def test_the_same_connection_goes_on_after_a_refusal(world: World) -> None:
    fill(world)
    client = world.connect()
    client.request("POST", "/tasks/submit", BODY)
    client.request("GET", "/health")
    world.queue.release()
    client.request("POST", "/tasks/submit", BODY)
    assert [reply.status for reply in client.replies()] == [429, 200, 201]
    world.clock.advance(TICK_S)


def test_another_address_is_let_in_where_one_took_all_the_room(world: World) -> None:
    """At both ways in, up to its share."""
    fill(world)
    world.peer = IPv4Address("TCP", "10.0.0.9", 50_000)
    others = [world.connect() for _ in range(limits.SUBMITS_AT_ONCE // 2 + 1)]
    for client in others:
        client.request("POST", "/tasks/submit", BODY)
    batch = world.connect()
    batch.request("POST", "/tasks/batch", BATCH)
    assert not any(client.received for client in others)
    assert world.post("/tasks/submit", BODY).status == 429
    world.queue.release()
    assert {client.replies()[0].status for client in (*others, batch)} <= {200, 201}
    assert world.site.server.submit_limit.in_progress == 0
    world.clock.advance(TICK_S)


def test_one_token_at_many_addresses_is_one_caller(world: World) -> None:
    token = world.tokens.make(Role.SUBMIT, name="loud")
    other = world.tokens.make(Role.SUBMIT, name="quiet")
    world.queue.hold()
    for number in range(limits.SUBMITS_AT_ONCE):
        world.peer = IPv4Address("TCP", f"10.0.{number // 250}.{number % 250}", 50_000)
        world.connect().request("POST", "/tasks/submit", BODY, Authorization=f"Bearer {token}")
    loud, quiet = world.connect(), world.connect()
    loud.request("POST", "/tasks/submit", BODY, Authorization=f"Bearer {token}")
    assert loud.replies()[0].status == 429
    quiet.request("POST", "/tasks/submit", BODY, Authorization=f"Bearer {other}")
    assert not quiet.received
    world.queue.release()
    assert quiet.replies()[0].status == 201
    world.clock.advance(TICK_S)


def test_who_comes_again_at_once_waits_for_the_refusal(world: World) -> None:
    fill(world)
    clients = [world.connect() for _ in range(PER_TICK * 2)]
    for client in clients:
        client.request("POST", "/tasks/submit", BODY)
    told, waiting = clients[:PER_TICK], clients[PER_TICK:]
    assert all(client.received for client in told)
    assert not any(client.received for client in waiting)
    waiting[0].request("GET", "/health")
    assert not waiting[0].received, "answers come in order"
    world.clock.advance(TICK_S)
    assert [reply.status for reply in waiting[0].replies()] == [429, 200]
    assert {client.replies()[0].status for client in waiting} == {429}
    world.clock.pump([TICK_S] * 2)
    world.queue.release()


def test_who_hangs_up_waits_no_more_and_leaves_its_place(world: World) -> None:
    clients = fill(world)
    late = [world.connect() for _ in range(PER_TICK + 1)]
    for client in late:
        client.request("POST", "/tasks/submit", BODY)
    late[-1].transport.hang_up()
    world.clock.pump([TICK_S] * 2)
    assert not late[-1].received
    clients[0].transport.hang_up()
    assert world.site.server.submit_limit.in_progress == limits.SUBMITS_AT_ONCE - 1
    world.queue.release()
    assert world.site.server.submit_limit.in_progress == 0


def test_the_site_closes_while_somebody_waits_for_a_refusal(world: World) -> None:
    fill(world)
    late = [world.connect() for _ in range(PER_TICK + 1)]
    for client in late:
        client.request("POST", "/tasks/submit", BODY)
    world.site.close(1.0)
    assert late[-1].replies()[0].headers["connection"] == "close"
    world.queue.release()
    assert not world.site.server.connections.open
    assert world.clock.getDelayedCalls() == []


def long_batch(tasks: int, payload_bytes: int) -> bytes:
    return b'{"tasks":[%b]}' % b",".join([b'{"type":"a","payload":"%b"}' % (b"x" * payload_bytes)] * tasks)


class TestLarge:
    """Batches, and single tasks with a long body, are let in by bytes."""

    def test_a_batch_that_finds_no_room_is_read_to_its_end_and_kept_nowhere(self, world: World) -> None:
        world.queue.hold()
        first, second = world.connect(), world.connect()
        first.request("POST", "/tasks/batch", long_batch(1_000, 8_500))
        assert world.site.server.large_body_limit.in_progress > limits.LARGE_AT_ONCE_BYTES
        held = world.site.server.bodies_held_bytes
        body = long_batch(1, LONG)
        second.request("POST", "/tasks/batch", body[:1_000], Content_Length=str(len(body)))
        second.send(body[1_000:-1])
        assert world.site.server.bodies_held_bytes == held
        assert not second.received
        second.send(body[-1:])
        (reply,) = second.replies()
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "busy", "1")
        assert not second.has_ended(), "and the connection is good for more"
        world.queue.release()
        assert first.replies()[0].json["accepted"] == 1_000
        assert world.site.server.large_body_limit.in_progress == 0
        world.clock.pump([TICK_S] * 3)

    def test_a_batch_that_is_too_large_for_the_room_is_let_in_alone(self, world: World) -> None:
        reply = world.post("/tasks/batch", long_batch(10, limits.PAYLOAD_BYTES_MAX - 2))
        assert reply.json["accepted"] == 10
        assert world.site.server.large_body_limit.in_progress == 0

    def test_many_small_tasks_count_for_more_than_their_bytes(self, world: World) -> None:
        world.queue.hold()
        client = world.connect()
        body = long_batch(1_000, 1)
        client.request("POST", "/tasks/batch", body)
        assert world.site.server.large_body_limit.in_progress == len(body) + 1_000 * limits.LARGE_TASK_BYTES
        world.queue.release()

    def test_a_long_submit_counts_by_its_bytes(self, world: World) -> None:
        world.queue.hold()
        client = world.connect()
        client.request("POST", "/tasks/submit", b'{"type":"a","payload":"%b"}' % (b"x" * LONG))
        assert (world.site.server.submit_limit.in_progress, world.site.server.large_body_limit.in_progress > LONG) == (
            0,
            True,
        )
        client.transport.hang_up()
        assert world.site.server.large_body_limit.in_progress == 0

    def test_single_submits_are_let_in_beside_batches(self, world: World) -> None:
        world.queue.hold()
        batch, single = world.connect(), world.connect()
        batch.request("POST", "/tasks/batch", long_batch(1_000, 8_500))
        single.request("POST", "/tasks/submit", BODY)
        world.queue.release()
        assert single.replies()[0].status == 201


def test_what_is_refused_for_its_content_says_nothing_about_time(world: World) -> None:
    for _ in range(limits.SUBMITS_AT_ONCE * 3):
        assert world.post("/tasks/submit", b'{"type":1}').status == 422
    assert (world.site.server.submit_limit.in_progress, world.site.server.submit_limit.limit) == (
        0,
        limits.SUBMITS_AT_ONCE,
    )


def test_refusals_are_counted_like_other_answers(world: World) -> None:
    fill(world)
    world.post("/tasks/submit", BODY)
    assert sum(world.metrics.http_s["/tasks/submit", 429].counts) == 1
    world.queue.release()
    world.clock.advance(TICK_S)
