"""Logs failed attempts with their tracebacks, as many as one can read; not as warnings: the node is
well."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tq_node.facade import Claim
from tq_node.types import TaskError

_log = Logger(namespace="taskqueue.work")
_BURST = 20
_RATE_S = 2.0
"""Lines a second, over longer times."""
_MESSAGE_CHARS_MAX = 300
_TRACEBACK_LINES_MAX = 20
"""Of a failure's traceback, its end."""


class FailureLog:
    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._allowed = float(_BURST)
        self._looked_s = clock.seconds()
        self._left_out = 0

    def failed(self, claim: Claim, error: TaskError) -> None:
        if not self._may_write():
            self._left_out += 1
            return
        _log.info(
            "attempt {attempt} of task {task_id} ({task_type}) failed: {error_type}: {message}",
            attempt=claim.attempt, task_id=claim.task_id, task_type=printable(claim.task_type),
            error_type=printable(error.type), message=printable(error.message[:_MESSAGE_CHARS_MAX]),
            event="attempt_failed",
        )  # fmt: skip
        # Without its first line, by which logs are searched for failures of the node itself.
        for line in (error.traceback or "").splitlines()[1:-1][-_TRACEBACK_LINES_MAX:]:
            _log.info("{task_id} | {line}", task_id=claim.task_id, line=printable(line), event="attempt_traceback")

    def look(self) -> None:
        """To be called now and then: say how many lines were left out."""
        if self._left_out and self._may_write():
            _log.info(
                "{count} more attempts failed and are not in the log", count=self._left_out, event="attempts_failed"
            )
            self._left_out = 0

    def _may_write(self) -> bool:
        now_s = self._clock.seconds()
        self._allowed = min(_BURST, self._allowed + max(0.0, now_s - self._looked_s) * _RATE_S)
        self._looked_s = now_s
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


def printable(text: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
