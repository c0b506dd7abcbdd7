"""Which submits go out together, what each of them hears, and how many may wait."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from tests.client.scripted import Reply, Request, Scripted, accept, problem, run, scripted, until
from tq_node.client import (
    AsyncQueue,
    BatchRefused,
    Closed,
    InvalidTask,
    NewTask,
    NotUnderstood,
    OutcomeUnknown,
    TaskQueueError,
    TooManyWaiting,
    limits,
)
from tq_node.client import engine as engines
from tq_node.client.batching import BatchSettings
from tq_node.client.engine import Engine, make_settings
from tq_node.client.errors import error_in
from tq_node.encoding import encode_checked


class Gate:
    """Accepts, once it is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, request: Request) -> Reply | str:
        await self.open.wait()
        return await accept(request)


def alone(node: Scripted, **options: Any) -> AsyncQueue:
    return AsyncQueue(node.address, discover=False, **options)


async def submit(queue: AsyncQueue, count: int) -> list[Any]:
    return await asyncio.gather(*(queue.submit("email", n) for n in range(count)), return_exceptions=True)


class TestCompany:
    def test_a_single_one_goes_as_it_is(self) -> None:
        async def story() -> None:
            async with scripted() as node, alone(node) as queue:
                await queue.submit("email", {"a": 1}, priority=9, tags={"k": "v"})
                (request,) = node.requests
                assert request.path == "/tasks/submit"
                assert request.json.keys() == {"type", "payload", "priority", "tags", "id"}, (
                    "what was not said is not sent"
                )

        run(story())

    def test_what_is_submitted_in_one_turn_goes_together(self) -> None:
        async def story() -> None:
            async with scripted() as node, alone(node) as queue:
                await submit(queue, 100)
                (request,) = node.requests
                assert request.path == "/tasks/batch"
                assert [task["payload"] for task in request.tasks] == list(range(100))

        run(story())

    def test_the_first_goes_at_once_and_the_rest_gather(self) -> None:
        async def story() -> None:
            gate = Gate()
            async with scripted(gate) as node, alone(node) as queue:
                first = asyncio.create_task(queue.submit("email"))
                await until(lambda: node.requests)
                rest = asyncio.create_task(submit(queue, 50))
                # The first one never lands, so it is the 5 ms that send them off.
                await until(lambda: len(node.requests) == 2)
                assert [len(request.tasks) for request in node.requests] == [1, 50]
                gate.open.set()
                await asyncio.gather(first, rest)

        run(story())

    def test_a_landing_takes_along_what_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "GATHER_S", 3600.0)

        async def story() -> None:
            gate = Gate()
            async with scripted(gate) as node, alone(node) as queue:
                first = asyncio.create_task(queue.submit("email"))
                await until(lambda: node.requests)
                rest = asyncio.create_task(submit(queue, 50))
                await asyncio.sleep(0)
                gate.open.set()
                await asyncio.gather(first, rest)
                assert [len(request.tasks) for request in node.requests] == [1, 50]

        run(story())

    def test_without_batching_each_goes_alone(self) -> None:
        async def story() -> None:
            async with scripted() as node, alone(node, batching=False) as queue:
                await submit(queue, 200)
                assert [request.path for request in node.requests] == ["/tasks/submit"] * 200

        run(story())

    def test_many_go_in_batches_of_bounded_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "BATCH_BYTES_MAX", 10_000)

        async def story() -> None:
            async with scripted() as node, alone(node) as queue:
                tasks = await queue.submit_many(NewTask("email", "x" * 900) for _ in range(100))
                assert len({task.id for task in tasks}) == 100
                assert max(len(request.body) for request in node.requests) < 11_000
                assert len(node.submitted) == 100

        run(story())

    def test_many_of_nothing(self) -> None:
        async def story() -> None:
            async with scripted() as node, alone(node) as queue:
                assert await queue.submit_many([]) == []
                with pytest.raises(TypeError):
                    await queue.submit_many([{"type": "email"}])  # type: ignore[list-item]
                assert not node.requests

        run(story())


class TestOutcomes:
    def test_each_hears_its_own(self) -> None:
        async def story() -> None:
            later: set[str] = set()

            async def script(request: Request) -> Reply | str:
                if request.path != "/tasks/batch":
                    return await accept(request)
                results: list[dict[str, Any]] = []
                for number, task in enumerate(request.tasks):
                    if task["payload"] == 1:
                        wrong = {
                            "code": "invalid_field",
                            "status": 422,
                            "title": "t",
                            "detail": "d",
                            "field": f"/tasks/{number}/tags/a~1b",
                        }
                        results.append({"error": wrong})
                    elif task["payload"] == 2 and task["id"] not in later:
                        later.add(task["id"])
                        results.append({"error": {"code": "not_primary", "status": 503, "detail": "d"}})
                    else:
                        results.append({"task_id": task["id"], "status": "scheduled"})
                return Reply(200, {"success": True, "accepted": 1, "rejected": 2, "results": results})

            async with scripted(script) as node, alone(node) as queue:
                good, wrong, again = await submit(queue, 3)
                assert good.status == "scheduled"
                assert isinstance(wrong, InvalidTask)
                assert (wrong.field, wrong.code) == ("/tags/a~1b", "invalid_field")
                assert wrong.task_id in node.submitted
                assert again.id in later, "it was sent again, under the same id"
                assert node.submitted.count(again.id) == 2
                assert node.submitted.count(good.id) == 1

                with pytest.raises(BatchRefused) as caught:
                    await queue.submit_many([NewTask("email", n) for n in range(3)])
                fine, bad, late = caught.value.results
                assert isinstance(bad, InvalidTask)
                assert {type(fine).__name__, type(late).__name__} == {"AsyncTask"}

        run(story())

    def test_a_node_that_takes_less_at_once(self) -> None:
        async def story() -> None:
            async def script(request: Request) -> Reply | str:
                return problem(413, "body_too_large") if len(request.tasks) > 3 else await accept(request)

            async with scripted(script) as node, alone(node) as queue:
                tasks = await submit(queue, 20)
                assert len({task.id for task in tasks}) == 20

        run(story())

    def test_an_answer_of_another_length_is_none(self) -> None:
        async def story() -> None:
            async def script(request: Request) -> Reply:
                return Reply(200, {"results": [{"task_id": "x", "status": "pending"}]})

            async with scripted(script) as node, alone(node, deadline=1.5) as queue:
                outcomes = await submit(queue, 3)
                assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown}

        run(story())


class TestBounds:
    def test_no_more_wait_than_there_is_room_for(self) -> None:
        async def story() -> None:
            gate = Gate()
            async with scripted(gate) as node:
                settings = make_settings(
                    node.address, token=None, tls=False, deadline=30.0, batching=True, discover=False
                )
                settings = settings.__class__(
                    **{**settings.__dict__, "batch": BatchSettings(open_max=10, waiting_max=20)}
                )
                engine = Engine(settings)

                async def one(number: int) -> object:
                    task_id = f"t-{number}"
                    return await engine.submit(task_id, encode_checked(NewTask("email", id=task_id)), None)

                submits = [asyncio.create_task(one(number)) for number in range(40)]
                await until(lambda: len(node.submitted) == 10)
                refused = [submit for submit in submits if submit.done()]
                assert len(refused) == 10, "10 under way, 20 waiting: the rest hears at once"
                assert all(isinstance(submit.exception(), TooManyWaiting) for submit in refused)
                assert len(node.submitted) == 10, "those that wait for room were not sent"
                gate.open.set()
                await asyncio.gather(*submits, return_exceptions=True)
                assert len(set(node.submitted)) == 30
                assert engine.batcher.waiting == 0
                await engine.close()

        run(story())

    def test_what_waits_for_room_has_a_deadline_too(self) -> None:
        async def story() -> None:
            gate = Gate()
            async with scripted(gate) as node:
                settings = make_settings(
                    node.address, token=None, tls=False, deadline=30.0, batching=True, discover=False
                )
                settings = settings.__class__(**{**settings.__dict__, "batch": BatchSettings(open_max=1)})
                engine = Engine(settings)
                body = encode_checked(NewTask("email", id="a"))
                first = asyncio.create_task(engine.submit("a", body, None))
                await until(lambda: node.submitted)
                with pytest.raises(TaskQueueError) as caught:
                    await engine.submit("b", body, 0.05)
                assert caught.value.code == "not_sent"
                gate.open.set()
                await first
                await engine.close()
                assert node.submitted == ["a"]

        run(story())


class TestLeaving:
    def test_who_leaves_before_it_was_sent_is_not_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "GATHER_S", 3600.0)

        async def story() -> None:
            gate = Gate()
            async with scripted(gate) as node, alone(node) as queue:
                first = asyncio.create_task(queue.submit("email", 0))
                await until(lambda: node.requests)
                stays, leaves = (asyncio.create_task(queue.submit("email", n)) for n in (1, 2))
                await asyncio.sleep(0)
                leaves.cancel()
                await asyncio.gather(leaves, return_exceptions=True)
                gate.open.set()
                await asyncio.gather(first, stays)
                assert [task["payload"] for request in node.requests for task in request.tasks] == [0, 1]

        run(story())

    def test_close_waits_for_what_is_under_way(self) -> None:
        async def story() -> None:
            gate = Gate()
            async with scripted(gate) as node:
                queue = alone(node)
                under_way = asyncio.create_task(submit(queue, 5))
                await until(lambda: node.requests)
                closing = asyncio.create_task(queue.close())
                await asyncio.sleep(0)
                gate.open.set()
                await closing
                assert len({task.id for task in await under_way}) == 5
                with pytest.raises(Closed):
                    await queue.submit("email")
                await queue.close()

        run(story())

    def test_and_then_says_what_it_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "CLOSE_S", 0.2)

        async def story() -> None:
            async with scripted(Gate()) as node:
                queue = alone(node)
                under_way = asyncio.create_task(submit(queue, 3))
                await until(lambda: node.requests)
                await queue.close()
                assert {type(outcome) for outcome in await under_way} == {OutcomeUnknown}

        run(story())

    def test_close_ends_calls_that_wait(self) -> None:
        async def story() -> None:
            async with scripted(Gate()) as node:
                queue = alone(node)
                reading = asyncio.create_task(queue.get("x"))
                changing = asyncio.create_task(queue.cancel("x"))
                await until(lambda: len(node.requests) == 2)
                await queue.close()
                with pytest.raises(Closed):
                    await reading
                with pytest.raises(OutcomeUnknown):  # it was sent
                    await changing

        run(story())

    def test_a_queue_belongs_to_one_loop(self) -> None:
        queue = AsyncQueue("127.0.0.1:1", deadline=0.05, discover=False)

        async def use() -> None:
            with pytest.raises(TaskQueueError):
                await queue.get("x")

        async def end() -> None:
            with pytest.raises(RuntimeError, match="event loop"):
                await queue.get("x")

        with asyncio.Runner() as runner:
            runner.run(use())
            with asyncio.Runner() as other:
                other.run(end())
            runner.run(queue.close())


def test_what_is_nested_too_deep_is_an_error_of_the_client() -> None:
    """Results of stores from before they had a bound."""
    deep = b"[" * 100_000 + b"]" * 100_000
    task = b'{"id":"a","result":%b}' % deep
    for decode in (engines._task, engines._page, engines._stats, engines._partitions):
        with pytest.raises(NotUnderstood, match="nested too deep") as refused:
            engines._read(decode, b'{"tasks":[%b],"more":%b}' % (task, deep), "a")
        assert (refused.value.code, refused.value.task_id) == ("not_understood", "a")
        with pytest.raises(NotUnderstood):
            engines._read(decode, b"<html>")
    with pytest.raises(OutcomeUnknown, match="can't be read"):
        engines._status_after(b'{"status":%b}' % deep, "a")
    assert error_in(503, deep).detail == "HTTP 503"


def test_what_is_no_json_is_said_by_the_call() -> None:
    async def story() -> None:
        async with AsyncQueue("127.0.0.1:1") as queue:
            with pytest.raises(TypeError):
                await queue.submit("email", object())
            with pytest.raises(TypeError, match="keys are text"):
                await queue.submit("email", {(1, 2): 3})
            with pytest.raises(TypeError, match="a set has no order"):
                await queue.submit("email", {"who": {"a", "b"}})
            with pytest.raises(TypeError, match="without a zone"):
                await queue.submit("email", [datetime(2026, 1, 1)])  # noqa: DTZ001

    run(story())
