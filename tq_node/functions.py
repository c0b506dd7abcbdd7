"""The task as a function: what ``@task`` declares can be submitted by its name in Python.

    @task("email", queue="mail")
    def email(to: str, context: Context) -> None: ...

    email.submit("ann@example.com", delay=60)

The convention is one payload, the first parameter: its annotation is what ``submit`` takes. Named
fields are those of a dataclass or ``msgspec.Struct``; the handler is given such a one again.

Every worker process imports this module: the client is imported with the first submit only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, Unpack, cast

from tq_node.work import handlers
from tq_node.work.handlers import WILDCARD, Context

if TYPE_CHECKING:
    from tq_node.client.default import Submits
    from tq_node.client.models import Backoff, NewTask
    from tq_node.client.synchronous import Task

P_contra = TypeVar("P_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
P = TypeVar("P")
R = TypeVar("R")


class SubmitFields(TypedDict, total=False):
    """Fields of a submit besides type and payload, as the parameters of ``Queue.submit``."""

    queue: str
    priority: int
    delay: float
    run_at: datetime | float | str
    id: str
    max_attempts: int
    timeout: float
    backoff: Backoff | Mapping[str, Any] | float
    tags: dict[str, str]


class TaskFunction(Protocol[P_contra, R_co]):
    """A declared handler: still the function that it was, and more."""

    task_type: str

    def __call__(self, payload: P_contra, context: Context, /) -> R_co:
        """Call the handler itself, here and now."""

    def submit(self, payload: P_contra, /, *, deadline: float | None = None, **fields: Unpack[SubmitFields]) -> Task:
        """Submit a task to the default queue; blocks until it is accepted, as ``Queue.submit``."""

    async def submit_async(
        self, payload: P_contra, /, *, deadline: float | None = None, **fields: Unpack[SubmitFields]
    ) -> Task:
        """Submit a task from an asyncio loop, which goes on meanwhile."""

    def submit_many(
        self, payloads: Iterable[P_contra], /, *, deadline: float | None = None, **fields: Unpack[SubmitFields]
    ) -> Sequence[Task]:
        """Submit a task for each payload, in batches, as ``Queue.submit_many``."""


def task(
    task_type: str,
    *,
    timeout: float | None = None,
    max_attempts: int | None = None,
    backoff: float | Mapping[str, Any] | None = None,
    queue: str | None = None,
    run: str | None = None,
) -> Callable[[Callable[[P, Context], R]], TaskFunction[P, R]]:
    """Declare a ``def`` or ``async def`` of ``(payload, context)`` as the handler of a task type.

    A ``def`` runs alone in a worker process; an ``async def`` among many on the event loop of one.
    Both can be killed. What is returned is the function itself, with ``submit``, ``submit_async``
    and ``submit_many``. The options are defaults for tasks that don't say otherwise.

    :param task_type: 1 to 100 characters, or ``"*"`` for every type without a handler of its own.
    :param timeout: seconds for one attempt.
    :param backoff: seconds (constant), or ``{"kind": "exponential|linear|constant", "base": 1,
        "cap": 3600, "jitter": True}``.
    :param run: ``"reactor"`` for an ``async def`` that awaits Deferreds: it runs in the node itself
        and must not block. ``"process"`` and ``"asyncio"`` say what is so anyway.
    :raises HandlerError: an option or the function does not fit."""
    declare = handlers.task(
        task_type, timeout=timeout, max_attempts=max_attempts, backoff=backoff, queue=queue, run=run
    )

    def declared(function: Callable[[P, Context], R]) -> TaskFunction[P, R]:
        declare(function)
        submits = _Submitter(task_type)
        for name in ("submit", "submit_async", "submit_many"):
            _attach(function, name, getattr(submits, name))
        _attach(function, "task_type", task_type)
        return cast("TaskFunction[P, R]", function)

    return declared


def _attach(function: Any, name: str, value: object) -> None:
    try:
        setattr(function, name, value)
    except AttributeError:  # an object with slots, or a method: it can be a handler, and no more
        return


class _Submitter:
    """Submits tasks of one type to the process's default queue."""

    def __init__(self, task_type: str) -> None:
        self._type = task_type

    def submit(self, payload: Any, /, *, deadline: float | None = None, **fields: Unpack[SubmitFields]) -> Any:
        return self._queue().submit_new(self._new(payload, fields), deadline)

    async def submit_async(
        self, payload: Any, /, *, deadline: float | None = None, **fields: Unpack[SubmitFields]
    ) -> Any:
        return await self._queue().submit_new_async(self._new(payload, fields), deadline)

    def submit_many(
        self, payloads: Iterable[Any], /, *, deadline: float | None = None, **fields: Unpack[SubmitFields]
    ) -> Any:
        if "id" in fields:
            raise TypeError("submit_many makes a task of each payload: one id can't name them all")
        return self._queue().submit_many((self._new(payload, fields) for payload in payloads), deadline=deadline)

    def _queue(self) -> Submits:
        if self._type == WILDCARD:
            raise TypeError("the handler of '*' has no type of its own: say which one, queue.submit('type', …)")
        from tq_node.client.default import default_queue

        return default_queue()

    def _new(self, payload: Any, fields: SubmitFields) -> NewTask:
        from tq_node.client.models import NewTask

        return NewTask(self._type, payload, **fields)
