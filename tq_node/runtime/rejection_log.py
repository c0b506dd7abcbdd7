"""What peers said that was not taken: one line of the log for each kind in a while, however often
it comes."""

from __future__ import annotations

from twisted.logger import Logger

from tq_node.runtime.clock import Clock
from tq_node.types import NodeName

_log = Logger(namespace="taskqueue.peers")

LOGGED_EVERY_MS = 10_000
KINDS_MAX = 256
"""(node, event) pairs remembered; past it the oldest is forgotten, and may be logged again too
soon."""


class RejectionLog:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[int, int]] = {}
        """When a kind was last logged, and how many were not since."""

    def about(self, name: NodeName, event: str, why: str, *, is_usual: bool = False) -> None:
        """Log that something ``name`` said was not taken.

        :param event: a stable word.
        :param is_usual: it happens while nodes come and go, so it is no trouble of this node:
            information, no warning.
        """
        key, now_ms = (name, event), self._clock.now_ms()
        said = self._said.pop(key, None)
        if said is not None and now_ms - said[0] < LOGGED_EVERY_MS:
            self._said[key] = said[0], said[1] + 1
            return
        self._said[key] = now_ms, 0
        if len(self._said) > KINDS_MAX:
            del self._said[next(iter(self._said))]
        more = f" (and {said[1]} more like it)" if said is not None and said[1] else ""
        log = _log.info if is_usual else _log.warn
        log("what node {node} says is not taken: {why}{more}", node=name, why=why, more=more, event=event)
