"""Progress and log lines of a running attempt that have not been passed on yet, bounded."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from tq_node import limits
from tq_node.types import LogLine, Progress


class Noted(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What ``ProgressBuffer.take`` returns. ``dropped`` counts the lines beyond the bound."""

    progress: Progress | None = None
    lines: tuple[LogLine, ...] = ()
    dropped: int = 0


def bounded(text: str, chars_max: int) -> str:
    """The text cut to ``chars_max``, without lone surrogates (of file names), which UTF-8 lacks."""
    if len(text) > chars_max:
        text = text[: chars_max - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def bounded_line(text: str) -> str:
    return bounded(text, limits.LOG_LINE_CHARS_MAX)


class ProgressBuffer:
    """Collects notes until they are taken. Keeps the newest ``limits.LOG_LINES_MAX`` lines: the end
    of a log says why it ended.

    ``on_change`` is called at each addition, outside the lock; it must be cheap. Safe to use from
    several threads, since a handler in a worker process may have threads of its own."""

    __slots__ = ("_dropped", "_lines", "_lock", "_on_change", "_progress")

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._lines: deque[LogLine] | None = None
        self._dropped = 0

    def set_progress(self, fraction: float, note: str | None) -> None:
        """Replace the progress; raises ``TypeError``, ``ValueError``: ``fraction`` is no number."""
        number = float(fraction)
        if math.isnan(number):
            raise ValueError("progress must be a number, not NaN")
        if note is not None:
            note = bounded(str(note), limits.PROGRESS_NOTE_CHARS_MAX)
        self._progress = Progress(min(1.0, max(0.0, number)), note)
        if self._on_change is not None:
            self._on_change()

    def add_line(self, text: str) -> None:
        """Add ``text``, as several lines where it has several. Cut to the bounds, never refused."""
        now_us = time.time_ns() // 1000
        # Megabytes are cut before they are split: what is over all lines' bound can't be kept.
        kept = text[-(limits.LOG_LINES_MAX * limits.LOG_LINE_CHARS_MAX) :]
        self.add([LogLine(now_us, bounded_line(line)) for line in kept.splitlines() or [""]])

    def add(self, lines: Iterable[LogLine], *, progress: Progress | None = None, dropped: int = 0) -> None:
        """Add what another buffer returned from ``take``; the lines are already bounded."""
        with self._lock:
            if progress is not None:
                self._progress = progress
            self._dropped += dropped
            for line in lines:
                if self._lines is None:
                    self._lines = deque()
                elif len(self._lines) >= limits.LOG_LINES_MAX:
                    self._lines.popleft()
                    self._dropped += 1
                self._lines.append(line)
        if self._on_change is not None:
            self._on_change()

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines not taken yet."""
        with self._lock:
            return tuple(line.line for line in self._lines or ())

    @property
    def latest(self) -> Progress | None:
        """Progress not taken yet."""
        return self._progress

    def take(self) -> Noted | None:
        """Return all notes since the last call and empty the buffer; None if there are none."""
        if self._progress is None and self._lines is None and not self._dropped:
            return None
        with self._lock:
            noted = Noted(self._progress, tuple(self._lines or ()), self._dropped)
            self._progress, self._lines, self._dropped = None, None, 0
        return noted

    def detach(self) -> None:
        """The attempt has ended: call ``on_change`` no more, should an abandoned handler go on."""
        self._on_change = None
