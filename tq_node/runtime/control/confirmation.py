"""Has the cluster map confirmed by a majority, again and again, while somebody asks for that."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import TaskQueueError
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.raft_driver import RaftDriver

_log = Logger(namespace="taskqueue.control")


class Confirmation:
    """Knows until when this node's cluster map may count as the cluster's.

    Each confirmation is a read index: the map then has all that was committed when it was *asked*
    for, and it is from that moment on that it counts for ``limits.TOKENS_FRESH_MS``. So it ends by
    itself at a node that reaches no majority, that was stopped for a while, or whose leader was
    deposed without noticing, and it begins anew only with all that happened meanwhile."""

    def __init__(self, raft: RaftDriver, clock: Clock) -> None:
        self.until_ms = 0
        """Monotonic time; past it the map is not confirmed."""
        self._raft = raft
        self._clock = clock
        self._timer = clock.timer(self._ask)
        self._asked: dict[Deferred[int], int] = {}
        """Questions without an answer, and when they were asked."""
        self._is_running = False

    # --- life ---
    def start(self) -> None:
        """Begin, unless it has begun."""
        if not self._is_running:
            self._is_running = True
            self._ask()

    def stop(self) -> None:
        """Nothing is confirmed any more, and what was ends in its time."""
        self._is_running = False
        self._timer.cancel()
        self._give_up(asked_until_ms=self._clock.now_ms())

    def is_confirmed(self) -> bool:
        return self._clock.now_ms() < self.until_ms

    # --- asking ---
    def _ask(self) -> None:
        """Ask, whatever else is under way: a question may be lost, and an answer may be slow."""
        now_ms = self._clock.now_ms()
        self._give_up(asked_until_ms=now_ms - limits.TOKENS_FRESH_MS)
        asked = self._raft.read_index()
        self._asked[asked] = now_ms
        asked.addCallback(self._answered, now_ms)
        asked.addErrback(_refused)
        asked.addBoth(lambda _: self._asked.pop(asked, None))
        self._timer.restart(limits.TOKENS_CONFIRM_S if self.is_confirmed() else limits.TOKENS_CONFIRM_AGAIN_S)

    def _answered(self, _: int, asked_ms: int) -> None:
        self.until_ms = max(self.until_ms, asked_ms + limits.TOKENS_FRESH_MS)

    def _give_up(self, *, asked_until_ms: int) -> None:
        for asked, asked_ms in list(self._asked.items()):
            if asked_ms <= asked_until_ms:
                asked.cancel()


def _refused(why: Failure) -> None:
    if not why.check(TaskQueueError, CancelledError):  # no leader for now, or of no use any more
        _log.failure("the map could not be confirmed", failure=why, event="confirm_failed")
