"""Turns what ``async def`` handlers print into lines of their task's log, as with ``def`` handlers.

The node's standard streams are wrapped; a context variable, set in each attempt's context, says
which attempt prints. ``logging`` without a configuration writes to ``sys.stderr`` as it is at that
time, so it comes along; with one made while handler modules are imported too, for the streams are
wrapped by then."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from tq_node import limits
from tq_node.work.progress_buffer import ProgressBuffer

_current_output: ContextVar[HandlerOutput | None] = ContextVar("taskqueue_speaker", default=None)


class HandlerOutput:
    """Adds printed text to a progress buffer by lines; bounds an unfinished one as a log line."""

    __slots__ = ("_partial_line", "_progress_buffer")

    def __init__(self, progress_buffer: ProgressBuffer) -> None:
        self._progress_buffer = progress_buffer
        self._partial_line = ""

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function``; what is printed in this context from now on is written here."""
        _current_output.set(self)
        return function(*arguments)

    def write(self, text: str) -> None:
        *lines, rest = (self._partial_line + text).split("\n")
        self._partial_line = rest[: limits.LOG_LINE_CHARS_MAX + 1]
        for line in lines[-limits.LOG_LINES_MAX :]:
            self._progress_buffer.add_line(line)

    def finish(self) -> None:
        if self._partial_line:
            self._progress_buffer.add_line(self._partial_line)
            self._partial_line = ""


class Wrapped:
    """A standard stream of the node; passes what a handler prints to its ``HandlerOutput``."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        output = _current_output.get()
        if output is None:
            written: int = self.inner.write(text)
            return written
        output.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.inner.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def wrap_streams() -> None:
    """Called before handler modules are imported, and after others may have set the streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Wrapped):
            setattr(sys, name, Wrapped(stream))


def unwrap_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Wrapped):
            setattr(sys, name, stream.inner)
