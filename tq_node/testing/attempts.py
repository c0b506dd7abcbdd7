"""Runs one handler once, in this process: payload and result go through JSON, as between nodes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tq_node import encoding
from tq_node.types import TaskError
from tq_node.work import handlers
from tq_node.work.handlers import Context, Handler, HandlerError, RunIn
from tq_node.work.payloads import payload_of
from tq_node.work.results import describe, encode_result


@dataclass(frozen=True)
class Ran:
    """What came of one attempt."""

    result: Any
    """As a reader of the task gets it, from JSON; None where it failed, too."""
    error: TaskError | None
    """None: it succeeded."""
    retry_in: float | None
    """Seconds, as ``Retry`` asked; None: as the task's backoff says."""
    is_final: bool
    """It failed, and no attempt follows whatever is left."""
    context: Context = field(repr=False)
    """What the handler said: ``lines``, ``fraction``, ``note``."""
    exception: BaseException | None = field(default=None, repr=False)
    """What the handler raised."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What the handler logged."""
        return self.context.lines


def run(function: Callable[..., Any], payload: Any = None, **context: Any) -> Ran:
    """Run a handler's function with this payload as one attempt; an ``async def`` in a new loop.

    :param context: fields of the ``Context``, such as ``attempt=2`` or ``tags={…}``.
    :raises TypeError: the payload has no clear form in JSON, as with a submit.
    :raises HandlerError: it is no handler, or one that runs in the reactor."""
    handler = handler_of(function)
    encoding.check(payload)
    return attempt(handler, encoding.encode_checked(payload), Context(**{"type": handler.type} | context))


def handler_of(function: Callable[..., Any]) -> Handler:
    """What ``@task`` declared of this function; raises ``HandlerError``: nothing."""
    found = next((one for one in reversed(handlers.declared) if one.function is function), None)
    if found is None:
        raise HandlerError(f"{getattr(function, '__name__', function)!r} is not declared with @task")
    return found


def attempt(handler: Handler, payload: bytes, context: Context) -> Ran:
    """Run a handler once. What it raises is in the answer, but for KeyboardInterrupt."""
    if handler.run is RunIn.REACTOR:
        raise HandlerError(
            f"the handler of {handler.type!r} says run='reactor': await it in a test of Twisted's, with a Context"
        )
    try:
        returned = handler.function(payload_of(handler, payload), context)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
        result = msgspec.json.decode(encode_result(returned))
    except KeyboardInterrupt:
        raise
    except BaseException as why:  # as in a worker: whatever a handler raises costs its attempt only
        error, retry_in_ms, is_final = describe(why)
        retry_in = None if retry_in_ms is None else retry_in_ms / 1000
        return Ran(None, error, retry_in, is_final, context, why)
    return Ran(result, None, None, False, context)


async def _awaited(value: Any) -> Any:
    return await value
