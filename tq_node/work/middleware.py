"""Hooks of other packages around each attempt in a worker process, for error trackers and tracing.

A package offers them by an entry point of the group ``taskqueue.middleware``: an object or a class
with any of ``before(context)``, ``after(context, result)`` and ``error(context, error)``. They run
in the process of the handler, in its context (``contextvars``), around it. A hook that raises is
told about in the task's log; the attempt goes on as if it were not there."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tq_node.work.handlers import Context

GROUP = "taskqueue.middleware"


def found() -> tuple[str, ...]:
    """What is installed, as ``module:object``, in order of names. Takes some ten milliseconds."""
    return tuple(one.value for one in sorted(entry_points(group=GROUP), key=lambda one: one.name))


class Middleware:
    """The hooks of a worker process, called in the order of their names, ``after`` and ``error`` in
    the reverse one.

    :param names: what ``found`` returned in the node.
    :raises Exception: whatever the import of one raises; the message names it."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._before: list[Callable[[Context], object]] = []
        self._after: list[Callable[[Context, Any], object]] = []
        self._error: list[Callable[[Context, BaseException], object]] = []
        for name in names:
            try:
                hooks = EntryPoint(name, name, GROUP).load()
                hooks = hooks() if isinstance(hooks, type) else hooks
            except Exception as why:
                why.add_note(f"in the middleware {name}")
                raise
            if (before := getattr(hooks, "before", None)) is not None:
                self._before.append(before)
            if (after := getattr(hooks, "after", None)) is not None:
                self._after.insert(0, after)
            if (error := getattr(hooks, "error", None)) is not None:
                self._error.insert(0, error)

    def before(self, context: Context) -> None:
        """The handler is about to be called."""
        for hook in self._before:
            _call(hook, context)

    def after(self, context: Context, result: Any) -> None:
        """The handler has returned."""
        for hook in self._after:
            _call(hook, context, result)

    def error(self, context: Context, error: BaseException) -> None:
        """The handler has raised, also ``Retry`` or ``Reject``."""
        for hook in self._error:
            _call(hook, context, error)


def _call(hook: Callable[..., object], *arguments: Any) -> None:
    try:
        hook(*arguments)
    except Exception:
        sys.stderr.write(f"the middleware {getattr(hook, '__qualname__', hook)} failed:\n")
        traceback.print_exc()
