"""Both faces of the client against a real node: one suite, run through ``Queue`` and through ``AsyncQueue``."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.harness import NodeProcess
from tq_node.client import (
    AlreadyFinal,
    AsyncQueue,
    AsyncTask,
    Backoff,
    IdConflict,
    InvalidTask,
    NewTask,
    NotFinished,
    NotFound,
    NotRetryable,
    Queue,
    Refused,
    Stats,
    Task,
    TaskCancelled,
    TaskFailed,
    TaskInfo,
)

pytestmark = pytest.mark.cluster
WAIT_S = 60.0
OF_TASK_FUNCTIONS = {"submit_new", "submit_new_async"}
"""What these need of the queue of a process, which is a ``Queue``."""


class Blocking:
    """An ``AsyncQueue`` or ``AsyncTask`` whose methods block, so that one suite serves both faces."""

    def __init__(self, runner: asyncio.Runner, inner: Any) -> None:
        self._runner, self._inner = runner, inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            return self._blocking(self._runner.run(self._ended(found(*arguments, **options))))

        return call

    async def _ended(self, made: Any) -> Any:
        return [one async for one in made] if inspect.isasyncgen(made) else await made

    def _blocking(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._blocking(one) for one in result]
        return Blocking(self._runner, result) if isinstance(result, AsyncTask) else result


@pytest.fixture(params=["threads", "asyncio"])
def queue(request: pytest.FixtureRequest, node: NodeProcess) -> Iterator[Any]:
    address = f"localhost:{node.http_port}"
    if request.param == "threads":
        with Queue(address) as queue:
            yield queue
    else:
        with asyncio.Runner() as runner:
            inner = AsyncQueue(address)
            yield Blocking(runner, inner)
            runner.run(inner.close())


def test_the_faces_have_the_same_methods() -> None:
    for blocking, awaited in ((Queue, AsyncQueue), (Task, AsyncTask)):
        names = {name for name in dir(blocking) if not name.startswith("_")} - OF_TASK_FUNCTIONS
        assert names == {name for name in dir(awaited) if not name.startswith("_")}
        for name in names | {"__init__"}:
            one, other = getattr(blocking, name), getattr(awaited, name)
            if inspect.isfunction(one):
                assert inspect.signature(one).parameters.keys() == inspect.signature(other).parameters.keys(), name


def test_a_task_from_submit_to_result(queue: Any) -> None:
    payload = {"to": "ann@example.com", "list": [1, 2.5, None, True, "Grüße"]}
    task = queue.submit(
        "echo", payload, queue="mail", priority=8, max_attempts=5, timeout=60, backoff=Backoff(kind="constant", base=2),
        tags={"shop": "7"},
    )  # fmt: skip
    assert task.id.startswith("task-")
    assert task.status == "pending"
    assert task.result(WAIT_S) == payload
    info = task.get()
    assert isinstance(info, TaskInfo)
    assert (info.id, info.type, info.payload, info.queue, info.priority) == (task.id, "echo", payload, "mail", 8)
    assert (info.max_attempts, info.timeout, info.tags, info.status) == (5, 60, {"shop": "7"}, "completed")
    assert info.backoff == Backoff(kind="constant", base=2)
    assert info.is_final
    assert [attempt.outcome for attempt in info.attempts] == ["completed"]
    assert info.completed_at is not None
    assert info.completed_at >= info.created_at
    assert info.created_at.tzinfo is not None


def test_only_a_type_is_needed(queue: Any) -> None:
    assert queue.submit("echo").result(WAIT_S) is None


def test_the_same_id_is_the_same_task(queue: Any) -> None:
    name = f"order-{time.time_ns()}"
    first = queue.submit("echo", 1, id=name)
    first.wait(WAIT_S)
    again = queue.submit("echo", 1, id=name)
    assert (again.id, again.status) == (name, "completed")
    with pytest.raises(IdConflict):
        queue.submit("echo", 2, id=name)


def test_what_is_wrong_is_named(queue: Any) -> None:
    with pytest.raises(InvalidTask) as caught:
        queue.submit("echo", priority=10)
    assert (caught.value.field, caught.value.code) == ("/priority", "invalid_field")
    with pytest.raises(InvalidTask) as caught:
        queue.submit("echo", "x" * (1 << 21))
    assert caught.value.code == "payload_too_large"
    with pytest.raises(NotFound):
        queue.get("never-was")
    with pytest.raises(Refused, match="id"):
        queue.get("no id/?&=")


def test_a_failure_has_its_reason_and_can_be_sent_back(queue: Any) -> None:
    task = queue.submit("refuse", "now")
    with pytest.raises(TaskFailed, match="not now") as caught:
        task.result(WAIT_S)
    assert caught.value.task.error is not None
    assert caught.value.task.error.type == "Reject"
    assert task.id in {dead.id for dead in queue.list(dead=True)}
    assert task.retry() == "pending"
    assert task.wait(WAIT_S).status == "failed"
    with pytest.raises(NotRetryable):
        queue.submit("echo", delay=3600).retry()


def test_a_task_that_runs_is_cancelled(queue: Any) -> None:
    task = queue.submit("slow", 300)
    with pytest.raises(NotFinished):
        task.wait(0.1)
    assert task.cancel() == "cancelled"
    with pytest.raises(TaskCancelled):
        task.result(WAIT_S)
    with pytest.raises(AlreadyFinal):
        task.cancel()


def test_later(queue: Any) -> None:
    when = datetime.now(UTC) + timedelta(hours=1)
    for options in ({"delay": 3600}, {"run_at": when}, {"run_at": when.isoformat()}, {"run_at": when.timestamp()}):
        task = queue.submit("echo", **options)
        assert task.status == "scheduled"
        assert abs(task.get().run_at - when) < timedelta(minutes=5)
        task.cancel()


def test_a_paused_queue_waits(queue: Any) -> None:
    queue.pause("quiet")
    task = queue.submit("echo", 1, queue="quiet")
    with pytest.raises(NotFinished) as caught:
        task.wait(0.3)
    assert caught.value.task.status == "pending"
    assert isinstance(caught.value, TimeoutError)
    queue.resume("quiet")
    assert task.result(WAIT_S) == 1


def test_many_and_all_of_them_again_in_pages(queue: Any) -> None:
    kind = f"bulk-{time.time_ns()}"
    before = queue.stats()
    assert isinstance(before, Stats)
    tasks = queue.submit_many(NewTask("echo", number, queue=kind, delay=3600) for number in range(2_500))
    assert len({task.id for task in tasks}) == 2_500
    found = list(queue.list(queue=kind, page=999))
    assert [task.id for task in found] == sorted(task.id for task in tasks), "each once, by id: the ids sort by time"
    assert [task.payload for task in sorted(found, key=lambda task: str(task.id))].count(7) == 1
    assert list(queue.list(queue=[kind, "other"], status="!scheduled")) == []
    assert queue.stats().scheduled == before.scheduled + 2_500


def test_it_says_whom_it_knows(queue: Any, node: NodeProcess) -> None:
    queue.stats()
    assert list(queue.addresses) == [f"localhost:{node.http_port}"], (
        "the node itself, by its other name, is no other node"
    )
