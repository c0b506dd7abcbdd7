"""Structured log lines: each has ``event=``, a stable word, and its facts as fields."""

from __future__ import annotations

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure


class EventLog:
    """A ``twisted.logger``; each line names its event. What decides a thing logs it, once."""

    def __init__(self, namespace: str) -> None:
        self._logger = Logger(namespace)

    def debug(self, event: str, text: str, **fields: object) -> None:
        self._logger.debug(text, event=event, **fields)

    def info(self, event: str, text: str, **fields: object) -> None:
        self._logger.info(text, event=event, **fields)

    def warn(self, event: str, text: str, **fields: object) -> None:
        self._logger.warn(text, event=event, **fields)  # noqa: G010  # twisted.logger has no warning()

    def error(self, event: str, text: str, **fields: object) -> None:
        self._logger.error(text, event=event, **fields)

    def failure(self, event: str, text: str, failure: Failure, **fields: object) -> None:
        """Log a failure with its traceback, at level critical."""
        self._logger.failure(text, failure, LogLevel.critical, event=event, **fields)
