"""Logs rejected messages of peers: one line for each kind in ``LOGGED_EVERY_MS`` at most."""

from __future__ import annotations

from twisted.logger import Logger

from tq_node.runtime.clock import Clock
from tq_node.types import NodeName

_log = Logger(namespace="taskqueue.peers")

LOGGED_EVERY_MS = 10_000
KINDS_MAX = 256
"""(node, event) pairs remembered; past it the oldest goes, and may be logged again too soon."""


class RejectionLog:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._logged: dict[tuple[str, str], tuple[int, int]] = {}
        """By (node, event): when it was last logged, monotonic ms, and how many were left out."""

    def about(self, name: NodeName, event: str, why: str, *, is_usual: bool = False) -> None:
        """Log that a message of node ``name`` was rejected.

        :param event: a stable word.
        :param is_usual: it happens while nodes come and go: logged as information, not as a
            warning."""
        key, now_ms = (name, event), self._clock.now_ms()
        logged = self._logged.pop(key, None)
        if logged is not None and now_ms - logged[0] < LOGGED_EVERY_MS:
            self._logged[key] = logged[0], logged[1] + 1
            return
        self._logged[key] = now_ms, 0
        if len(self._logged) > KINDS_MAX:
            del self._logged[next(iter(self._logged))]
        more = f" (and {logged[1]} more like it)" if logged is not None and logged[1] else ""
        log = _log.info if is_usual else _log.warn
        log("what node {node} says is not taken: {why}{more}", node=name, why=why, more=more, event=event)
