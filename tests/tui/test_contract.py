"""What a ``ClusterClient`` promises: the scripted one and the one over HTTP, which asks the real API in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.fake_cluster import FakeCluster
from tq_tui.client.api import Call, ClusterClient, NodeClient, Refused, Unreachable
from tq_tui.client.http import HttpCluster
from tq_tui.client.models import Event, Submission
from tq_tui.filters import TaskQuery, parse

PROJECT = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)


class Subject(NamedTuple):
    client: ClusterClient
    node: NodeClient
    nobody: str
    """An address where nobody listens."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of the real API over a queue in memory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.tq_node.api.serve_memory"],
        cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=["fake", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@asynccontextmanager
async def subject(kind: str, port: int) -> AsyncIterator[Subject]:
    client: ClusterClient = FakeCluster() if kind == "fake" else HttpCluster()
    address = "127.0.0.1:8080" if kind == "fake" else f"127.0.0.1:{port}"
    try:
        yield Subject(client, client.at(address), "127.0.0.1:1")
    finally:
        await client.close()


def new(**fields: object) -> Submission:
    """One that was never submitted before."""
    return Submission(**({"type": "email", "id": f"c-{os.getpid()}-{next(_numbers)}", "payload": {"a": "ü"}} | fields))  # type: ignore[arg-type]


async def test_a_submit_is_there_at_once(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        before = (await node.stats()).primary
        submission = new(priority=7, queue="bulk", tags={"a": "b"}, max_attempts=5)
        done = await node.submit(submission)
        assert (done.success, done.task_id, done.status) == (True, submission.id, "pending")
        assert done.node
        task = await node.task(submission.id)
        assert (task.id, task.type, task.payload, task.status) == (submission.id, "email", {"a": "ü"}, "pending")
        assert (task.priority, task.queue, task.tags, task.max_attempts, task.attempt) == (7, "bulk", {"a": "b"}, 5, 0)
        assert task.created_at is not None
        assert not task.is_final
        if kind == "http":  # the scripted cluster counts at the task's node
            assert (await node.stats()).primary.pending == before.pending + 1


async def test_a_delayed_one_is_scheduled(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        done = await node.submit(new(delay=3600))
        assert done.status == "scheduled"
        task = await node.task(done.task_id)
        assert task.run_at is not None
        assert task.created_at is not None
        assert 3590 < (task.run_at - task.created_at).total_seconds() < 3610


async def test_the_same_again_is_the_same_task(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        submission = new()
        first = await node.submit(submission)
        assert (await node.submit(submission)).task_id == first.task_id
        with pytest.raises(Refused) as refused:
            await node.submit(new(id=submission.id, payload="other"))
        assert (refused.value.status, refused.value.code) == (409, "id_conflict")


async def test_what_is_not_there_is_refused(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        for call in (
            node.task("never-was"),
            node.cancel("never-was"),
            node.retry("never-was"),
            node.drain("node-9"),
            node.undrain("node-9"),
        ):
            with pytest.raises(Refused) as refused:
                await call
            assert (refused.value.status, refused.value.code) == (404, "not_found")
            assert not refused.value.try_elsewhere


async def test_cancel_and_retry(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        task_id = (await node.submit(new())).task_id
        with pytest.raises(Refused, match=r".") as refused:
            await node.retry(task_id)
        assert refused.value.code == "not_retryable"
        assert (await node.cancel(task_id)).status == "cancelled"
        assert (await node.task(task_id)).is_final
        with pytest.raises(Refused) as refused:
            await node.cancel(task_id)
        assert (refused.value.status, refused.value.code) == (409, "already_final")
        assert (await node.retry(task_id)).status == "pending"
        assert (await node.task(task_id)).status == "pending"


async def test_pages_have_each_task_once(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        kept = f"list{next(_numbers)}"
        ids = [(await node.submit(new(type=kept, priority=number % 10))).task_id for number in range(23)]
        found: list[str] = []
        query = parse(f"type:{kept}", TaskQuery(limit=5, sort="created_at"))
        cursor: str | None = None
        for _ in range(10):
            page = await node.tasks(query.page(cursor))
            found += [task.id for task in page.tasks]
            cursor = page.next
            if cursor is None:
                break
        assert found == ids
        newest = await node.tasks(parse(f"type:{kept}", TaskQuery(limit=3)))
        assert [task.id for task in newest.tasks] == ids[::-1][:3]
        by_priority = await node.tasks(parse(f"type:{kept}", TaskQuery(sort="-priority")))
        assert [task.priority for task in by_priority.tasks] == sorted((n % 10 for n in range(23)), reverse=True)


async def test_filters(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        kept = f"filter{next(_numbers)}"
        one = (await node.submit(new(type=kept, queue="one"))).task_id
        two = (await node.submit(new(type=kept, queue="two"))).task_id
        three = (await node.submit(new(type=kept, queue="two", delay=60))).task_id
        await node.cancel(two)

        async def ids(typed: str, **base: object) -> list[str]:
            page = await node.tasks(parse(typed, TaskQuery(sort="created_at", **base)))  # type: ignore[arg-type]
            return [task.id for task in page.tasks]

        assert await ids(f"type:{kept}") == [one, two, three]
        assert await ids(f"type:{kept} status:cancelled") == [two]
        assert await ids(f"type:{kept} !status:cancelled") == [one, three]
        assert await ids(f"type:{kept} queue:two") == [two, three]
        assert await ids(f"type:{kept} status:pend,sched") == [one, three]
        assert await ids(kept.upper()) == [one, two, three]
        assert await ids(three) == [three]
        assert await ids(f"type:{kept}", dead=True) == []


async def test_queues_are_paused_and_go_on(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        assert (await node.pause("slow")).status == "paused"
        assert (await node.resume("slow")).status == "active"


async def test_the_cluster(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        cluster = await node.cluster()
        assert [member.id for member in cluster.nodes] == ["node-1", "node-2", "node-3"]
        assert all(member.http for member in cluster.nodes)
        assert cluster.leader == "node-1"
        assert cluster.config.partition_count
        partitions = await node.partitions()
        assert [entry.partition for entry in partitions] == list(range(len(partitions)))
        assert {entry.primary for entry in partitions} <= {"node-1", "node-2", "node-3"}
        assert (await node.readiness()).ready
        assert (await node.stats()).node == "node-1"
        assert (await node.metrics()).version


async def test_events_come_as_they_happen(kind: str, port: int) -> None:
    async with subject(kind, port) as (_, node, _):
        heard: list[Event] = []

        async def listen() -> None:
            async for heap in node.events():
                heard.extend(heap)

        listening = asyncio.create_task(listen())
        try:
            async with asyncio.timeout(30):
                while not heard:  # the stream is open some time after it was asked for
                    await node.submit(new())
                    await asyncio.sleep(0.05)
                here = (await node.stats()).node
                submission = new(type="told")
                while (await node.submit(submission)).node != here:
                    submission = new(type="told")
                await node.cancel(submission.id)
                while not any(event.task_id == submission.id and event.to == "cancelled" for event in heard):
                    await asyncio.sleep(0.01)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        mine = [(event.before, event.to, event.type) for event in heard if event.task_id == submission.id]
        assert mine == [(None, "pending", "told"), ("pending", "cancelled", "told")]


async def test_nobody_is_there(kind: str, port: int) -> None:
    async with subject(kind, port) as (client, _, nobody):
        for call in (client.at(nobody).stats(), client.at(nobody).task("x"), client.at(nobody).cancel("x")):
            with pytest.raises(Unreachable, match="refused") as unreachable:
                await call
            assert not unreachable.value.sent, "it is safe to ask another node"
        with pytest.raises(Unreachable):
            await anext(aiter(client.at(nobody).events()))


async def test_calls_are_reported_but_not_those_that_watch(kind: str, port: int) -> None:
    calls: list[Call] = []
    async with subject(kind, port) as (client, node, nobody):
        client.on_call = calls.append
        await asyncio.gather(node.stats(), node.cluster(), node.partitions(), node.metrics(), node.readiness())
        assert calls == []
        submission = new(payload="it's")
        await node.submit(submission)
        await node.tasks(parse("status:failed type:email !queue:bulk"))
        with pytest.raises(Refused):
            await node.cancel("never-was")
        with pytest.raises(Unreachable):
            await client.at(nobody).retry("x")
    assert [(call.method, call.status and call.status // 100) for call in calls] == [
        ("POST", 2), ("GET", 2), ("POST", 4), ("POST", None),
    ]  # fmt: skip
    assert calls[0].curl.startswith('curl -H \'Content-Type: application/json\' -d \'{"type":"email"')
    assert "it'\\''s" in calls[0].curl
    assert "status=failed&type=email&queue=!bulk" in calls[1].url
    assert calls[2].curl.startswith("curl -X POST 'http://127.0.0.1:")
    assert calls[2].error
    assert calls[3].error == "connection refused"
