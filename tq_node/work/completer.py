"""Passes ends of attempts to the queue; repeats each until kept, or until it no longer counts."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import StaleAttempt, TaskQueueError
from tq_node.facade import Claim, Notes, Outcome, WorkQueue
from tq_node.types import Token

_log = Logger()
_RETRY_S = 0.1
_RETRY_S_MAX = 2.0


class Completer:
    """Finishes attempts in flight.

    :param in_flight_max: at so many in flight ``is_full`` becomes True: nothing should be claimed.
    :param on_finished: called as each is through."""

    def __init__(
        self, queue: WorkQueue, clock: IReactorTime, *, in_flight_max: int, on_finished: Callable[[], None]
    ) -> None:
        self.count = 0
        """Ends in flight."""
        self.in_flight_max = in_flight_max
        self._queue = queue
        self._clock = clock
        self._on_finished = on_finished
        self._retries: dict[tuple[str, Token], IDelayedCall] = {}

    @property
    def is_full(self) -> bool:
        return self.count >= self.in_flight_max

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None) -> None:
        self.count += 1
        self._send(claim, outcome, notes, _RETRY_S)

    def stop(self) -> None:
        """Cancel pending retries."""
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
        self._on_finished()

    def _failed(self, why: Failure, claim: Claim, outcome: Outcome, notes: Notes | None, retry_s: float) -> None:
        error = why.value
        if isinstance(error, TaskQueueError) and (error.retryable or not error.definite):
            # The queue answers a repeated end with ok: it is sent until the outcome is known.
            next_s = min(retry_s * 2, _RETRY_S_MAX)
            call = self._clock.callLater(retry_s, self._retry, claim, outcome, notes, next_s)
            self._retries[claim.task_id, claim.token] = call
            return
        if not isinstance(error, StaleAttempt):  # stale is normal after a cancel or a failover
            _log.failure(
                "the end of an attempt of {task_id} was refused",
                failure=why,
                task_id=claim.task_id,
                event="finish_lost",
            )
        self._finished()

    def _retry(self, claim: Claim, outcome: Outcome, notes: Notes | None, retry_s: float) -> None:
        del self._retries[(claim.task_id, claim.token)]
        self._send(claim, outcome, notes, retry_s)


def _unexpected(why: Failure) -> None:
    _log.failure("a bug in the worker service", failure=why, event="worker_bug")
