"""Quotas of a token over HTTP, both ways in: what is too much is refused like all errors, and says how much would do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tq_node.api.talk import Connection, Reply, World
from tq_node import limits
from tq_node.api.access.access import UNCHECKED, Caller
from tq_node.api.http.token_quotas import OverQuota, TokenQuotas
from tq_node.tokens import Quotas, Role

BODY = b'{"type":"a"}'


def caller(name: str = "one", **quotas: float) -> Caller:
    return Caller(name, frozenset(), frozenset(), quotas=Quotas(**quotas))  # type: ignore[arg-type]


def ask(client: Connection, token: str, path: str = "/tasks/status?id=a", *, is_plain: bool = True) -> Reply:
    """The last answer on this connection.

    :param is_plain: False: not by the fast path."""
    more = {} if is_plain else {"X_Other": "1"}
    client.request("GET", path, None, Authorization=f"Bearer {token}", **more)
    return client.replies()[-1]


@pytest.fixture
def token(world: World) -> str:
    """Of somebody without quotas."""
    token = world.tokens.make(Role.ADMIN, name="free")
    world.clock.advance(1)
    return token


def limited(world: World, name: str = "limited", **quotas: float) -> str:
    token = world.tokens.make(Role.READ, Role.SUBMIT, name=name, quotas=Quotas(**quotas))  # type: ignore[arg-type]
    world.clock.advance(1)
    return token


class TestRequests:
    def test_so_many_in_a_second_and_then_as_many_as_the_time_brings(self, world: World) -> None:
        token = limited(world, requests=5)
        client = world.connect()
        assert [ask(client, token).status for _ in range(7)] == [404] * 5 + [429] * 2
        refused = client.replies()[-1]
        assert refused.code == "busy"
        assert refused.json["title"] == "Over the quota of the token"
        assert "limited may send 5 requests a second" in refused.json["detail"]
        assert refused.headers["ratelimit-policy"] == '"requests";q=5;w=1'
        assert refused.headers["ratelimit"] == '"requests";r=0;t=1'
        assert refused.headers["retry-after"] == "1"
        assert world.metrics.over_quotas == {"requests": 2}
        assert b'taskqueue_over_quota_total{quota="requests"} 2' in ask(world.connect(), token, "/metrics").body
        world.clock.advance(0.41)
        assert [ask(client, token).status for _ in range(3)] == [404, 404, 429]

    def test_both_ways_in_take_from_the_same(self, world: World) -> None:
        token = limited(world, requests=4)
        client, other = world.connect(), world.connect()
        found = [ask(one, token, is_plain=number % 2 == 0).status for number, one in enumerate([client, other] * 3)]
        assert found == [404] * 4 + [429] * 2

    def test_a_body_that_comes_in_pieces_is_one_request(self, world: World) -> None:
        token = limited(world, requests=1)
        client = world.connect()
        head = f"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 12\r\n\r\n"
        for piece in (head.encode(), BODY[:3], BODY[3:6], BODY[6:]):
            client.send(piece)
        assert [reply.status for reply in client.replies()] == [201]
        client.send(head.encode() + BODY)
        assert [reply.status for reply in client.replies()] == [201, 429]
        assert len(world.queue.rows) == 1

    def test_others_and_probes_are_not_touched(self, world: World, token: str) -> None:
        few = limited(world, requests=0)
        client = world.connect()
        assert ask(client, few).status == 429
        assert ask(client, few).headers["retry-after"] == str(int(limits.QUOTA_RETRY_AFTER_S_MAX))
        assert ask(client, few, "/health").status == 200
        assert ask(client, token).status == 404
        assert world.get("/health").status == 200

    def test_a_new_table_begins_nothing_anew(self, world: World) -> None:
        token = limited(world, requests=0.001)
        client = world.connect()
        assert ask(client, token).status == 404
        world.tokens.make(Role.READ)
        world.clock.advance(1)
        assert ask(client, token).status == 429
        assert client.replies()[-1].headers["ratelimit-policy"] == '"requests";q=1;w=1000'


class TestConnections:
    def test_one_too_many_is_refused_and_closed(self, world: World, token: str) -> None:
        few = limited(world, connections=2)
        first, second, third = (world.connect() for _ in range(3))
        assert [ask(one, few).status for one in (first, second, first, third)] == [404, 404, 404, 429]
        refused = third.replies()[-1]
        assert refused.headers["connection"] == "close"
        assert refused.headers["ratelimit-policy"] == '"connections";q=2;qu="concurrent-requests"'
        assert third.has_ended()
        assert ask(world.connect(), token).status == 404, "others may"
        first.transport.hang_up()
        assert ask(world.connect(), few).status == 404

    def test_a_connection_counts_for_whoever_used_it_last(self, world: World, token: str) -> None:
        few = limited(world, connections=1)
        shared, own = world.connect(), world.connect()
        quotas = world.site.server.quotas
        assert ask(shared, few).status == 404
        assert ask(shared, token).status == 404
        assert (quotas.held("connections", "limited"), quotas.held("connections", "free")) == (0, 1)
        assert ask(own, few).status == 404
        assert ask(shared, few).status == 429
        assert (quotas.held("connections", "limited"), quotas.held("connections", "free")) == (1, 0)

    def test_a_new_table_counts_none_twice(self, world: World) -> None:
        few = limited(world, connections=1)
        client = world.connect()
        for _ in range(3):
            assert ask(client, few).status == 404
            world.tokens.make(Role.READ)
            world.clock.advance(1)
        assert world.site.server.quotas.held("connections", "limited") == 1


def test_streams_at_once(world: World) -> None:
    token = limited(world, streams=1)
    first, second = world.connect(), world.connect()
    first.request("GET", "/tasks/events", Authorization=f"Bearer {token}")
    assert b"200 OK" in first.received
    assert ask(second, token, "/tasks/events").status == 429
    assert second.replies()[-1].headers["ratelimit"] == '"streams";r=0'
    assert ask(second, token).status == 404, "the connection goes on"
    first.transport.hang_up()
    second.request("GET", "/tasks/events", Authorization=f"Bearer {token}")
    assert b"200 OK" in second.received
    second.transport.hang_up()
    assert world.site.server.quotas.held("streams", "limited") == 0


def test_waits_at_once(world: World) -> None:
    token, task_id = limited(world, waits=1), ""
    submitted = world.post("/tasks/submit", BODY, Authorization=f"Bearer {token}")
    task_id = submitted.json["task_id"]
    waits = f"/tasks/status?id={task_id}&wait=30"
    first, second = world.connect(), world.connect()
    first.request("GET", waits, Authorization=f"Bearer {token}")
    assert not first.received
    assert ask(second, token, waits).status == 429
    assert ask(second, token, f"/tasks/status?id={task_id}").status == 200
    first.transport.hang_up()
    second.request("GET", waits, Authorization=f"Bearer {token}")
    assert [reply.status for reply in second.replies()] == [429, 200]
    world.clock.advance(31)
    assert [reply.status for reply in second.replies()] == [429, 200, 200]
    assert world.site.server.quotas.held("waits", "limited") == 0


def test_who_has_no_token_is_not_counted() -> None:
    quotas = TokenQuotas(lambda: 0.0)
    for _ in range(5):
        assert quotas.hold("waits", UNCHECKED) is quotas.take_request(UNCHECKED) is None
    quotas.give_back("waits", UNCHECKED)
    assert quotas.held("waits", "") == 0


def test_how_many_are_counted_at_once_has_a_bound() -> None:
    quotas = TokenQuotas(lambda: 0.0)
    for number in range(3 * limits.QUOTA_BUCKETS_MAX):
        assert quotas.take_request(caller(f"t{number}", requests=1)) is None
    assert len(quotas._buckets) <= limits.QUOTA_BUCKETS_MAX


@given(rate=st.floats(0.01, 1_000), gaps=st.lists(st.floats(0, 3), max_size=100))
def test_never_more_than_the_rate_and_a_second_s_worth_besides(rate: float, gaps: list[float]) -> None:
    now_s = 0.0
    quotas, one = TokenQuotas(lambda: now_s), caller(requests=rate)
    taken = 0
    for gap in gaps:
        now_s += gap
        refusal = quotas.take_request(one)
        if refusal is None:
            taken += 1
        else:
            wait_s = refusal.retry_after_s
            assert wait_s is not None
            assert 0 < wait_s <= min(limits.QUOTA_RETRY_AFTER_S_MAX, 1 / rate) * 1.001
        assert taken <= max(1.0, rate) + now_s * rate + 1e-6


@given(rate=st.floats(0.02, 1_000))
def test_who_comes_again_when_told_is_served(rate: float) -> None:
    now_s = 0.0
    quotas, one = TokenQuotas(lambda: now_s), caller(requests=rate)
    refusal: OverQuota | None = None
    while refusal is None:
        refusal = quotas.take_request(one)
    assert refusal.retry_after_s is not None
    now_s += refusal.retry_after_s * 1.000001
    assert quotas.take_request(one) is None


class TestOpenTasks:
    def submit(self, world: World, token: str, **fields: Any) -> Reply:
        return world.post("/tasks/submit", {"type": "a", **fields}, Authorization=f"Bearer {token}")

    def test_so_many_that_have_not_ended(self, world: World, token: str) -> None:
        few = limited(world, open_tasks=2)
        made = [self.submit(world, few).json["task_id"] for _ in range(2)]
        refused = self.submit(world, few)
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "busy", "1")
        assert (refused.headers["ratelimit-policy"], refused.headers["ratelimit"]) == (
            '"open_tasks";q=2',
            '"open_tasks";r=0',
        )
        assert world.metrics.over_quotas == {"open_tasks": 1}
        assert self.submit(world, token).status == 201, "others may"
        world.queue.start_task(made[0])
        assert self.submit(world, few).status == 429
        world.queue.finish_task(made[0])
        assert self.submit(world, few).status == 201

    def test_a_batch_item_by_item(self, world: World, token: str) -> None:
        few = limited(world, open_tasks=2)
        reply = world.post("/tasks/batch", {"tasks": [{"type": "a"}] * 4}, Authorization=f"Bearer {few}")
        assert reply.status == 200
        assert [item.get("error", {}).get("code") for item in reply.json["results"]] == [None, None, "busy", "busy"]
        assert world.metrics.over_quotas == {"open_tasks": 2}

    def test_a_long_submit_too(self, world: World, token: str) -> None:
        few = limited(world, open_tasks=0)
        assert self.submit(world, few, payload="x" * (limits.LARGE_BODY_BYTES + 1)).status == 429

    def test_queues_that_have_some(self, world: World, token: str) -> None:
        few = limited(world, queues=2)
        assert [self.submit(world, few, queue=queue).status for queue in ("a", "b", "a", "c")] == [201, 201, 201, 429]
        items = [{"type": "a", "queue": queue} for queue in ("b", "c", "a", "d")]
        reply = world.post("/tasks/batch", {"tasks": items}, Authorization=f"Bearer {few}")
        assert ["error" in item for item in reply.json["results"]] == [False, True, False, True]
        assert self.submit(world, token, queue="c").status == 201
