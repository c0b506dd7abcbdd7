"""``tq_node.testing``, used as an application's tests use it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tq_node.testing import shop
from tq_node.client import NewTask, TaskFailed
from tq_node.client.default import default_queue
from tq_node.testing import EagerQueue, NoHandler, run
from tq_node.work.handlers import HandlerError


class TestRun:
    def test_it_returns_the_result_and_what_the_handler_said(self) -> None:
        ran = run(shop.email, "ann", queue="mail")
        assert (ran.result, ran.error) == ("sent to ann from mail", None)
        assert ran.lines == ("to ann",)
        assert (ran.context.fraction, ran.context.note, ran.context.type) == (0.5, "half", "shop.email")

    def test_an_async_handler_runs_too(self) -> None:
        assert run(shop.pictures, [{"path": "a", "sizes": [1, 2]}]).result == 2
        assert run(shop.pictures).result == 0

    def test_what_it_raises_is_what_a_worker_makes_of_it(self) -> None:
        retried = run(shop.flaky, 2)
        assert (retried.retry_in, retried.is_final) == (5.0, False)
        assert retried.error is not None
        assert retried.error.type == "Retry"
        final = run(shop.hopeless, "no")
        assert final.is_final
        assert run(shop.bad).error.type == "result_not_json"  # type: ignore[union-attr]

    def test_a_payload_of_another_shape_fails_for_good_and_says_where(self) -> None:
        ran = run(shop.mail, {"subject": "hello"})
        assert ran.is_final
        assert ran.error is not None
        assert ran.error.type == "invalid_payload"
        assert "missing required field `to`" in ran.error.message

    def test_what_can_not_be_sent_is_refused_as_by_a_submit(self) -> None:
        with pytest.raises(TypeError, match="a set has no order"):
            run(shop.email, {"ann"})

    def test_what_is_no_handler_and_one_of_the_reactor_are_refused(self) -> None:
        with pytest.raises(HandlerError, match="not declared with @task"):
            run(len, "x")
        with pytest.raises(HandlerError, match="run='reactor'"):
            run(shop.in_reactor, "x")


class TestPayloads:
    def test_a_dataclass_is_given_as_one(self) -> None:
        assert run(shop.mail, shop.Mail("ann", "hello")).result == "hello for ann"
        assert run(shop.mail, {"to": "ann"}).result == "no subject for ann"

    def test_a_typed_dict_stays_a_dict(self) -> None:
        assert run(shop.named, {"name": "ann"}).result == "dict ann"


class TestEagerQueue:
    def test_a_task_has_ended_when_it_is_submitted(self, eager_queue: EagerQueue) -> None:
        task = eager_queue.submit("shop.email", "ann", tags={"shop": "7"})
        assert task.result() == "sent to ann from mail"
        assert (task.status, task.lines, task.get().log[0].line) == ("completed", ("to ann",), "to ann")
        assert eager_queue.tasks == [task]

    def test_it_is_tried_as_often_as_the_task_says(self, eager_queue: EagerQueue) -> None:
        assert eager_queue.submit("shop.flaky", 3).lines == ("attempt 1", "attempt 2", "attempt 3")
        failed = eager_queue.submit("shop.flaky", 3, max_attempts=2)
        with pytest.raises(TaskFailed, match="Retry"):
            failed.result()
        assert len(eager_queue.submit("shop.hopeless", "no").attempts) == 1

    def test_the_same_id_is_the_same_task(self, eager_queue: EagerQueue) -> None:
        first = eager_queue.submit("shop.email", "ann", id="one")
        assert eager_queue.submit("shop.email", "ann", id="one") is first

    def test_what_nobody_handles_and_what_is_no_field_are_refused(self, eager_queue: EagerQueue) -> None:
        with pytest.raises(NoHandler, match="import its module"):
            eager_queue.submit("shop.unknown")
        with pytest.raises(TypeError, match="tgas"):
            eager_queue.submit("shop.email", "ann", tgas={})


class TestTaskFunctions:
    def test_they_submit_to_the_default_queue(self, eager_queue: EagerQueue) -> None:
        task = shop.email.submit("ann", queue="fast", priority=9)
        assert task.result() == "sent to ann from fast"
        assert eager_queue.tasks[0].task == NewTask("shop.email", "ann", queue="fast", priority=9)
        assert [one.result() for one in shop.email.submit_many(["a", "b"])] == [
            "sent to a from mail",
            "sent to b from mail",
        ]

    def test_from_asyncio(self, eager_queue: EagerQueue) -> None:
        async def submit() -> object:
            task = await shop.pictures.submit_async([shop.Picture("a", [1])])
            return task.result()

        assert asyncio.run(submit()) == 1

    def test_they_are_still_the_functions_that_they_were(self) -> None:
        assert shop.named({"name": "ann"}, run(shop.named, {"name": "x"}).context) == "dict ann"
        assert shop.email.task_type == "shop.email"
        assert asyncio.iscoroutinefunction(shop.pictures)

    def test_after_the_test_the_default_queue_is_another(self) -> None:
        with EagerQueue() as queue:
            assert default_queue() is queue
        assert default_queue() is not queue


def test_the_fixture_is_there_for_an_application_that_only_installs_us(tmp_path: Path) -> None:
    (tmp_path / "test_shop.py").write_text(
        "from tq_node import task\n"
        "@task('double')\n"
        "def double(payload: int, context): return 2 * payload\n"
        "def test_it(eager_queue):\n"
        "    assert double.submit(21).result() == 42\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
