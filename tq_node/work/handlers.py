"""What people write tasks with: the ``@task`` decorator, the Context, ``Retry`` and ``Reject``.

Every worker process imports this module: it needs only the standard library and msgspec."""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from tq_node import limits
from tq_node.types import Backoff, Token
from tq_node.work.progress_buffer import ProgressBuffer

WILDCARD = "*"
"""The type of the handler that takes every type without a handler of its own."""

_NO_TOKEN = Token(0, 0)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Function = TypeVar("Function", bound=Callable[..., Any])


class RunIn(enum.StrEnum):
    """Where a handler runs, as ``@task(run=…)`` says it."""

    PROCESS = "process"
    """A ``def``, alone in a worker process, which can be killed."""
    ASYNCIO = "asyncio"
    """An ``async def``, among many on the event loop of a worker process."""
    REACTOR = "reactor"
    """An ``async def`` that awaits Deferreds, in the node's own reactor; it must not block."""


class HandlerError(ValueError):
    """A handler is declared wrongly. The message is one line and says where."""


class Retry(Exception):
    """Raised by a handler: this attempt failed, try again in ``seconds``. Spends an attempt.

    :raises ValueError: ``seconds`` is negative, not finite or over ``limits.BACKOFF_S_MAX``."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        if not math.isfinite(seconds) or not 0 <= seconds <= limits.BACKOFF_S_MAX:
            raise ValueError(f"Retry takes 0 to {limits.BACKOFF_S_MAX} seconds, not {seconds!r}")
        super().__init__(reason or f"asked to be tried again in {seconds:g} s")
        self.seconds = float(seconds)

    def __reduce__(self) -> tuple[type[Retry], tuple[float, str]]:
        return Retry, (self.seconds, str(self))


class Reject(Exception):
    """Raised by a handler: this task can never succeed. It fails for good, attempts left or not."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "rejected by its handler")


class Context:
    """What a handler may know about the attempt it runs, and say about it.

    ``attempts_left`` is how often it is tried again should this attempt fail. ``token`` orders the
    claims of a task, also over ``retry``: a later claim has the greater token, which makes it fit
    for fencing writes to other systems. ``deadline`` is the POSIX time (compare with
    ``time.time()``) at which the attempt is cut off by its timeout, or None.

    A plain ``Context()`` is good for testing a handler by a direct call: each field can be given by
    name, and what the handler says is in ``lines``, ``fraction`` and ``note``."""

    __slots__ = (
        "_cancelled", "_created_at", "_notebook", "attempt", "attempts_left", "deadline", "max_attempts", "queue",
        "tags", "task_id", "token", "type",
    )  # fmt: skip

    def __init__(
        self,
        task_id: str = "task",
        attempt: int = 1,
        token: Token = _NO_TOKEN,
        deadline: float | None = None,
        notebook: ProgressBuffer | None = None,
        *,
        type: str = "",  # noqa: A002 - a field's name
        queue: str = "default",
        tags: Mapping[str, str] | None = None,
        created_at: datetime | int | None = None,
        max_attempts: int = limits.MAX_ATTEMPTS_DEFAULT,
        attempts_left: int | None = None,
        cancelled: bool = False,
    ) -> None:
        """
        :param created_at: a datetime, or POSIX microseconds; now, where nothing is said.
        :param attempts_left: what ``max_attempts`` leaves, where nothing is said."""
        self.task_id = task_id
        self.type = type
        self.queue = queue
        self.tags = dict(tags) if tags else {}
        self._created_at = datetime.now(UTC) if created_at is None else created_at
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.attempts_left = max(0, max_attempts - attempt) if attempts_left is None else attempts_left
        self.token = token
        self.deadline = deadline
        self._cancelled = cancelled
        self._notebook = ProgressBuffer() if notebook is None else notebook

    def __repr__(self) -> str:
        return f"<Context of {self.task_id} ({self.type}), attempt {self.attempt} of {self.max_attempts}>"

    @property
    def created_at(self) -> datetime:
        """When the task was submitted, in UTC."""
        found = self._created_at
        return found if isinstance(found, datetime) else _EPOCH + timedelta(microseconds=found)

    @property
    def cancelled(self) -> bool:
        """True once the attempt must end; ``limits.CANCEL_GRACE_MS`` later it is killed."""
        return self._cancelled

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Say how far the work is, 0 to 1 (cut to that). Cheap; only the latest is kept."""
        self._notebook.set_progress(fraction, note)

    def log(self, line: str) -> None:
        """Keep a line with the task. Cheap; the newest ``limits.LOG_LINES_MAX`` lines are kept,
        others are counted."""
        self._notebook.add_line(str(line))

    # --- what was said and nobody has passed on: all of it, in a test ---
    @property
    def lines(self) -> tuple[str, ...]:
        return self._notebook.lines

    @property
    def fraction(self) -> float | None:
        """Of the latest ``progress``; None: nothing was said. ``note`` likewise."""
        latest = self._notebook.latest
        return None if latest is None else latest.fraction

    @property
    def note(self) -> str | None:
        latest = self._notebook.latest
        return None if latest is None else latest.note


class Claimed(Protocol):
    """What a claim says, in the node or on its way to a worker process."""

    @property
    def task_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def queue(self) -> str: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def created_us(self) -> int: ...
    @property
    def tags(self) -> dict[str, str] | None: ...


def context_of(
    claimed: Claimed, task_type: str, token: Token, deadline: float | None, notebook: ProgressBuffer
) -> Context:
    """For a handler that is about to run."""
    most = claimed.max_attempts or limits.MAX_ATTEMPTS_DEFAULT
    return Context(
        claimed.task_id, claimed.attempt, token, deadline, notebook,
        type=task_type, queue=claimed.queue or "default", tags=claimed.tags,
        created_at=claimed.created_us,
        max_attempts=most, attempts_left=max(0, most - claimed.failures - 1),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Handler:
    """A declared handler. None: the decorator was silent. ``where``: ``file:line`` for messages."""

    type: str
    function: Callable[[Any, Context], Any]
    run: RunIn
    where: str
    queue: str | None = None
    max_attempts: int | None = None
    timeout_ms: int | None = None
    backoff: Backoff | None = None


declared: list[Handler] = []
"""Every handler declared in this process, in order; ``handler_modules`` picks those asked for."""


def task(
    task_type: str,
    *,
    timeout: float | None = None,
    max_attempts: int | None = None,
    backoff: float | Mapping[str, Any] | None = None,
    queue: str | None = None,
    run: str | None = None,
) -> Callable[[Function], Function]:
    """Declare a ``def`` or ``async def`` of ``(payload, context)`` as the handler of a task type.

    A ``def`` runs alone in a worker process; an ``async def`` among many on the event loop of one.
    Both can be killed. The function itself is returned unchanged. The options are defaults for
    tasks that don't say otherwise when they are submitted.

    :param task_type: 1 to 100 characters, or ``"*"`` for every type without a handler of its own.
    :param run: ``"reactor"`` for an ``async def`` that awaits Deferreds: it runs in the node itself
        and must not block. ``"process"`` and ``"asyncio"`` say what is so anyway.
    :param timeout: seconds for one attempt.
    :param backoff: seconds (constant), or ``{"kind": "exponential|linear|constant", "base": 1,
        "cap": 3600, "jitter": True}``.
    :raises HandlerError: an option or the function does not fit."""

    def declare(function: Function) -> Function:
        where = _where(function)
        try:
            _check_signature(function)
            handler = Handler(
                type=_task_type(task_type),
                function=function,
                run=_run_in(run, _is_async(function)),
                where=where,
                queue=_queue(queue),
                max_attempts=_max_attempts(max_attempts),
                timeout_ms=None if timeout is None else _ms("timeout", timeout, limits.TIMEOUT_S_MAX, 1),
                backoff=None if backoff is None else _backoff(backoff),
            )
        except (TypeError, ValueError) as why:
            name = getattr(function, "__qualname__", repr(function))
            raise HandlerError(f"{where}: handler {name} of {task_type!r}: {why}") from None
        declared.append(handler)
        return function

    return declare


def _where(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether it is ``async def``; raises ``TypeError`` if it wraps one, which none awaits."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return True
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise TypeError(
            "a decorator makes a `def` of this `async def`: it must make an `async def` too "
            "(one that runs the coroutine by itself has no __wrapped__)"
        )
    return False


def _run_in(asked: str | None, is_async: bool) -> RunIn:
    """Where the handler runs; raises ``ValueError``: it can't run there."""
    if asked is None:
        return RunIn.ASYNCIO if is_async else RunIn.PROCESS
    if asked == "thread":
        raise ValueError("run='thread' is not offered: a thread can't be ended when its time is up; say run='process'")
    if asked not in list(RunIn):
        raise ValueError(f"run is 'process', 'asyncio' or 'reactor', not {asked!r}")
    found = RunIn(asked)
    if is_async is (found is RunIn.PROCESS):
        raise ValueError(
            "an `async def` runs in 'asyncio' or 'reactor', not 'process'" if is_async
            else f"a `def` would block all others in {asked!r}: it runs in 'process', or becomes an `async def`"
        )  # fmt: skip
    return found


def _check_signature(function: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("a handler returns its result, it does not yield")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise TypeError("a handler is called with (payload, context)") from None


def _task_type(name: str) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= limits.TASK_TYPE_CHARS_MAX:
        raise ValueError(f"a task type has 1 to {limits.TASK_TYPE_CHARS_MAX} characters")
    return name


def _ms(name: str, seconds: float, seconds_max: float, ms_min: int) -> int:
    """:raises TypeError, ValueError: not a number, or out of range."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {seconds!r}")
    if not math.isfinite(seconds) or not 0 <= seconds <= seconds_max or round(seconds * 1000) < ms_min:
        raise ValueError(f"{name} of {seconds!r} s is out of range (at most {seconds_max:g} s)")
    return round(seconds * 1000)


def _max_attempts(value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limits.MAX_ATTEMPTS_MAX:
        raise ValueError(f"max_attempts is 1 to {limits.MAX_ATTEMPTS_MAX}, not {value!r}")
    return value


def _queue(name: str | None) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not 1 <= len(name) <= limits.QUEUE_CHARS_MAX:
        raise ValueError(f"queue is a name of 1 to {limits.QUEUE_CHARS_MAX} characters, not {name!r}")
    return name


def _backoff(value: float | Mapping[str, Any]) -> Backoff:
    if not isinstance(value, Mapping):
        ms = _ms("backoff", value, limits.BACKOFF_S_MAX, 0)
        return Backoff(kind="constant", base_ms=ms, cap_ms=ms, jitter=False)
    if unknown := set(value) - {"kind", "base", "cap", "jitter"}:
        raise ValueError(f"backoff has no {min(map(str, unknown))!r}")
    default = Backoff()
    kind, jitter = value.get("kind", default.kind), value.get("jitter", default.jitter)
    if kind not in ("exponential", "linear", "constant"):
        raise ValueError(f"backoff kind {kind!r} is not exponential, linear or constant")
    if not isinstance(jitter, bool):
        raise TypeError("backoff jitter is True or False")
    base_ms = _ms("backoff base", value.get("base", default.base_ms / 1000), limits.BACKOFF_S_MAX, 0)
    cap_ms = _ms("backoff cap", value.get("cap", default.cap_ms / 1000), limits.BACKOFF_S_MAX, 0)
    return Backoff(
        kind=kind, base_ms=base_ms, cap_ms=max(base_ms, cap_ms) if "cap" not in value else cap_ms, jitter=jitter
    )
