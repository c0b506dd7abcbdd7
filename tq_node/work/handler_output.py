"""What ``async def`` handlers print: lines of their task's log, as those of ``def`` handlers.

The node's standard streams are wrapped; a context variable, which each attempt has set in its own context, says whose words
they are. ``logging`` without a configuration writes to ``sys.stderr`` as it is at that time, so it comes along; with one
made while handler modules are imported too, for the streams are wrapped by then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from tq_node import limits
from tq_node.work.progress_buffer import ProgressBuffer

_speaker: ContextVar[HandlerOutput | None] = ContextVar("taskqueue_speaker", default=None)


class HandlerOutput:
    """Text in, lines of a notebook out. Holds one unfinished line, of which no more is kept than a log line can show."""

    __slots__ = ("_notebook", "_rest")

    def __init__(self, notebook: ProgressBuffer) -> None:
        self._notebook = notebook
        self._rest = ""

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function``; from here on what is printed in this context is said here."""
        _speaker.set(self)
        return function(*arguments)

    def write(self, text: str) -> None:
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[: limits.LOG_LINE_CHARS_MAX + 1]
        for line in lines[-limits.LOG_LINES_MAX :]:
            self._notebook.add_line(line)

    def finish(self) -> None:
        if self._rest:
            self._notebook.add_line(self._rest)
            self._rest = ""


class Wrapped:
    """A standard stream of the node."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        speaker = _speaker.get()
        if speaker is None:
            written: int = self.inner.write(text)
            return written
        speaker.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.inner.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def wrap_streams() -> None:
    """To be called before handler modules are imported, and again when others may have put other streams there."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Wrapped):
            setattr(sys, name, Wrapped(stream))


def unwrap_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Wrapped):
            setattr(sys, name, stream.inner)
