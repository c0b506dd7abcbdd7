"""Starts of worker processes that fail: counted, logged, and spaced out."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from tq_node import limits
from tq_node.facade import ReadyNote

_log = Logger()
_BACKOFF_S = 0.25
_BACKOFF_S_MAX = 5.0


class StartFailures:
    """Failed starts in a row. ``again`` is called when the next try may be made."""

    def __init__(self, clock: IReactorTime, again: Callable[[], None]) -> None:
        self._clock = clock
        self._again = again
        self._backoff: IDelayedCall | None = None
        self._why = ""
        self.count = 0

    @property
    def is_waiting(self) -> bool:
        """Whether no start may be tried just now."""
        return self._backoff is not None

    @property
    def are_too_many(self) -> bool:
        return self.count >= limits.CHILD_START_FAILURES_MAX

    @property
    def note(self) -> ReadyNote:
        """For ``/ready``, where no process is left."""
        return ReadyNote("no_workers", f"worker processes don't start, so nothing is claimed: {self._why}")

    def add(self, why: str) -> None:
        """Count and log a failed start, and put off the next."""
        self.count += 1
        self._why = why
        delay_s = min(_BACKOFF_S * 2 ** min(self.count - 1, 10), _BACKOFF_S_MAX)
        _log.error(
            "worker process could not start: {why}; next try in {delay_s} s",
            why=why, delay_s=delay_s, failures=self.count, event="worker_start_failed",
        )  # fmt: skip
        if self._backoff is None:
            self._backoff = self._clock.callLater(delay_s, self._end_backoff)

    def forget(self) -> None:
        """A start has succeeded: the next failure is the first."""
        self.count = 0

    def stop(self) -> None:
        """Try no more."""
        if self._backoff is not None:
            self._backoff.cancel()
            self._backoff = None

    def _end_backoff(self) -> None:
        self._backoff = None
        self._again()
