"""Ends of attempts on their way to the queue: each is said again until it is known to be kept, or not to count."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import StaleAttempt, TaskQueueError
from tq_node.facade import AttemptFailed, Claim, Completed, Lost, Notes, Outcome, TaskQueue
from tq_node.types import Token

_log = Logger()
_RETRY_S = 0.1
_RETRY_S_MAX = 2.0


class WorkCounts(msgspec.Struct):
    """For metrics. ``stale``: ends of attempts that no longer held their task; normal after a cancel or a failover."""

    claimed: int = 0
    completed: int = 0
    failed: int = 0
    released: int = 0
    lost: int = 0
    stale: int = 0
    finish_retries: int = 0
    finish_lost: int = 0


class Completer:
    """:param most: ends under way at which nothing should be claimed. :param told: called as each is through."""

    def __init__(
        self, queue: TaskQueue, clock: IReactorTime, counts: WorkCounts, *, most: int, told: Callable[[], None]
    ) -> None:
        self.count = 0
        self.most = most
        self._queue = queue
        self._clock = clock
        self._counts = counts
        self._told = told
        self._retries: dict[tuple[str, Token], IDelayedCall] = {}

    @property
    def is_full(self) -> bool:
        return self.count >= self.most

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None) -> None:
        counts = self._counts
        kind = type(outcome)
        if kind is Completed:
            counts.completed += 1
        elif kind is AttemptFailed:
            counts.failed += 1
        elif kind is Lost:
            counts.lost += 1
        else:
            counts.released += 1
        self.count += 1
        self._send(claim, outcome, notes, _RETRY_S)

    def stop(self) -> None:
        """Say nothing again."""
        for call in self._retries.values():
            call.cancel()
        self._retries.clear()

    def _send(self, claim: Claim, outcome: Outcome, notes: Notes | None, retry_s: float) -> None:
        try:
            finished = self._queue.finish(claim, outcome, notes)
        except Exception:
            self._failed(Failure(), claim, outcome, notes, retry_s)
            return
        finished.addCallbacks(self._finished, self._failed, (), {}, (claim, outcome, notes, retry_s))
        finished.addErrback(_unexpected)

    def _finished(self, _: object = None) -> None:
        self.count -= 1
        self._told()

    def _failed(self, why: Failure, claim: Claim, outcome: Outcome, notes: Notes | None, retry_s: float) -> None:
        error = why.value
        if isinstance(error, TaskQueueError) and (error.retryable or not error.definite):
            # Said again until it is known to be kept or stale: the queue answers the same news twice with ok.
            self._counts.finish_retries += 1
            next_s = min(retry_s * 2, _RETRY_S_MAX)
            call = self._clock.callLater(retry_s, self._again, claim, outcome, notes, next_s)
            self._retries[claim.task_id, claim.token] = call
            return
        if isinstance(error, StaleAttempt):
            self._counts.stale += 1
        else:
            self._counts.finish_lost += 1
            _log.failure(
                "the end of an attempt of {task_id} was refused",
                failure=why,
                task_id=claim.task_id,
                event="finish_lost",
            )
        self._finished()

    def _again(self, claim: Claim, outcome: Outcome, notes: Notes | None, retry_s: float) -> None:
        del self._retries[(claim.task_id, claim.token)]
        self._send(claim, outcome, notes, retry_s)


def _unexpected(why: Failure) -> None:
    _log.failure("a bug in the worker service", failure=why, event="worker_bug")
