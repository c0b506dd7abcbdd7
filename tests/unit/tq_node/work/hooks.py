"""Middleware of a package beside the application's, as an entry point names it."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from tq_node import Context

seen: ContextVar[str] = ContextVar("seen_by_hooks", default="")


class Hooks:
    """Says in the task's log what it was called with."""

    def before(self, context: Context) -> None:
        seen.set(context.task_id)
        logging.getLogger("hooks").info("before %s", context.type)

    def after(self, context: Context, result: Any) -> None:
        logging.getLogger("hooks").info("after %s: %r", context.type, result)

    def error(self, context: Context, error: BaseException) -> None:
        logging.getLogger("hooks").info("error %s: %r", seen.get() == context.task_id, error)


class Broken:
    def before(self, context: Context) -> None:
        raise RuntimeError("it was to count attempts")
