"""A queue for tests: what is submitted runs at once, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from tq_node import encoding, limits
from tq_node.client.default import using
from tq_node.client.engine import named
from tq_node.client.errors import TaskFailed
from tq_node.client.models import Failure, LogLine, NewTask, TaskInfo
from tq_node.testing.attempts import Ran, attempt
from tq_node.work import handlers
from tq_node.work.handlers import WILDCARD, Context, Handler


class NoHandler(LookupError):
    """No handler of this process takes the type: import the module that declares it."""


class EagerTask:
    """A task that has ended; the methods of ``Task`` that need no node."""

    def __init__(self, task: NewTask, task_id: str, attempts: Sequence[Ran]) -> None:
        self.id = task_id
        self.task = task
        """As it was submitted."""
        self.attempts = attempts
        last = attempts[-1]
        now = datetime.now(UTC)
        self._info = TaskInfo(
            id=task_id, type=task.type, status="completed" if last.error is None else "failed",
            queue=last.context.queue, priority=limits.PRIORITY_DEFAULT if task.priority is None else task.priority,
            attempt=len(attempts), max_attempts=last.context.max_attempts, created_at=now, run_at=now, version=1,
            payload=task.payload, tags=task.tags or {}, completed_at=now, result=last.result,
            error=None if last.error is None else Failure(last.error.type, last.error.message, last.error.traceback),
            log=[LogLine(now, line) for line in self.lines],
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<EagerTask {self.id} {self.status}>"

    @property
    def lines(self) -> tuple[str, ...]:
        """What the handler logged in all its attempts."""
        return tuple(line for ran in self.attempts for line in ran.lines)

    @property
    def status(self) -> str:
        """``completed`` or ``failed``."""
        return self._info.status

    def get(self, *, deadline: float | None = None) -> TaskInfo:
        """The task as a node would show it."""
        return self._info

    def wait(self, timeout: float | None = None) -> TaskInfo:
        """As ``get``: it has ended."""
        return self._info

    def result(self, timeout: float | None = None) -> Any:
        """The result; raises ``TaskFailed``, from what the handler raised."""
        last = self.attempts[-1]
        if last.error is None:
            return last.result
        raise TaskFailed(f"{last.error.type}: {last.error.message}", task=self._info) from last.exception


class EagerQueue:
    """Runs tasks as they are submitted, all their attempts without pauses. ``delay`` and ``run_at``
    are kept with the task and not waited for. With ``with``, task functions submit to it."""

    def __init__(self) -> None:
        self.tasks: list[EagerTask] = []
        """All that were submitted, in the order in which they ended."""
        self._using: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        self._using = using(self)
        self._using.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        if self._using is not None:
            self._using.__exit__(kind, why, at)
            self._using = None

    def submit(self, type: str, payload: Any = None, **fields: Any) -> EagerTask:  # noqa: A002 (named as Queue's)
        """As ``Queue.submit``; when this returns, the task has ended.

        :raises NoHandler: no module that declares one is imported.
        :raises TypeError: the payload has no clear form in JSON, or there is no such field."""
        fields.pop("deadline", None)
        return self.submit_new(NewTask(type, payload, **fields))

    def submit_new(self, task: NewTask, deadline: float | None = None) -> EagerTask:
        """As ``Queue.submit_new``."""
        task_id, _ = named(task)
        known = next((done for done in self.tasks if done.id == task_id), None)
        if known is not None:
            return known
        handler = _handler_for(task.type)
        most = task.max_attempts or handler.max_attempts or limits.MAX_ATTEMPTS_DEFAULT
        payload = encoding.encode_checked(task.payload)
        attempts: list[Ran] = []
        while not attempts or (attempts[-1].error is not None and not attempts[-1].is_final and len(attempts) < most):
            context = Context(
                task_id, len(attempts) + 1, type=task.type, queue=task.queue or handler.queue or "default",
                tags=task.tags, max_attempts=most,
            )  # fmt: skip
            attempts.append(attempt(handler, payload, context))
        ended = EagerTask(task, task_id, attempts)
        self.tasks.append(ended)
        return ended

    async def submit_new_async(self, task: NewTask, deadline: float | None = None) -> EagerTask:
        """As ``Queue.submit_new_async``; the handler runs in a thread, for a loop runs here."""
        return await asyncio.to_thread(self.submit_new, task)

    def submit_many(self, tasks: Iterable[NewTask], *, deadline: float | None = None) -> Sequence[EagerTask]:
        """As ``Queue.submit_many``."""
        return [self.submit_new(task) for task in tasks]


def _handler_for(task_type: str) -> Handler:
    for wanted in (task_type, WILDCARD):
        for handler in reversed(handlers.declared):
            if handler.type == wanted and not handler.function.__module__.startswith("tq_node."):
                return handler
    raise NoHandler(f"no handler of type {task_type!r} is declared in this process: import its module")
