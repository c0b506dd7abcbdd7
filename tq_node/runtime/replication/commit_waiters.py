"""Callers that wait for commits: a Deferred each, fired in the order of the log."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred

from tq_node.errors import OutcomeUnknown, TaskQueueError


class Wait:
    """One caller that waits for ``left`` entries, each of another partition; fires with ``value``.

    The caller may cancel the Deferred (a client hung up): the work is done all the same.

    :param since_ms: when it began to wait, monotonic.
    :param patient: it is never failed for having waited too long.
    :param late: the error for one that has."""

    __slots__ = ("deferred", "late", "left", "patient", "since_ms", "task_id", "value")

    def __init__(
        self,
        value: Any,
        since_ms: int,
        left: int = 1,
        task_id: str | None = None,
        *,
        patient: bool = False,
        late: type[TaskQueueError] = OutcomeUnknown,
    ) -> None:
        self.deferred: Deferred[Any] = Deferred()
        self.value = value
        self.left = left
        self.since_ms = since_ms
        self.task_id = task_id
        self.patient = patient
        self.late = late

    def step(self) -> None:
        """One of the entries is committed; fire if it was the last."""
        self.left -= 1
        if self.left == 0 and not self.deferred.called:
            # An error in this caller's chain stays there: the callers behind it are fired too.
            self.deferred.callback(self.value)

    def give_up(self) -> None:
        """Fail with ``late``: whether the entries will be committed is not known."""
        if not self.deferred.called:
            self.deferred.errback(self.late("not known to be committed in time", task_id=self.task_id))


class CommitWaiters:
    """The waiters of one partition."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Wait]] = deque()

    def add(self, sequence: int, wait: Wait) -> None:
        """Queue a caller; fired in order of ``add``, one for an older entry with the one before."""
        self._waiting.append((sequence, wait))

    def since_ms(self, now_ms: int) -> int:
        """When the caller at the head began to wait; ``now_ms`` if none waits."""
        return self._waiting[0][1].since_ms if self._waiting else now_ms

    def committed(self, upto: int) -> list[Wait]:
        """Remove and return, in order, those whose entry is committed. The caller fires them."""
        ready = []
        waiting = self._waiting
        while waiting and waiting[0][0] <= upto:
            ready.append(waiting.popleft()[1])
        return ready

    def overdue(self, before_ms: int) -> list[Wait]:
        """Impatient ones waiting since before ``before_ms``; still queued, to keep the order."""
        late = []
        for _, wait in self._waiting:
            if wait.since_ms >= before_ms:
                break
            if not wait.patient:
                late.append(wait)
        return late

    def abandon(self) -> list[Wait]:
        """Remove and return all: this node steps down, stops, or its store is broken."""
        abandoned = [wait for _, wait in self._waiting]
        self._waiting.clear()
        return abandoned
