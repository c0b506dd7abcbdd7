"""Who waits for a commit: one fresh Deferred for each caller, fired in the order of the log."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred

from tq_node.errors import OutcomeUnknown, TaskQueueError


class Wait:
    """One caller, waiting for one entry in each of ``left`` partitions; hears ``value``.

    Its caller may cancel the Deferred (a client hung up): that harms nobody else, and the work is done all the same. A *patient*
    one never hears that the outcome is not known in time: what it waits for is of no use to anybody else.
    """

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
        self.left -= 1
        if self.left == 0 and not self.deferred.called:
            # An error in a caller's chain stays in that chain: the ones behind hear theirs.
            self.deferred.callback(self.value)

    def give_up(self) -> None:
        if not self.deferred.called:
            self.deferred.errback(self.late("not known to be committed in time", task_id=self.task_id))


class CommitWaiters:
    """The waiters of one partition."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Wait]] = deque()

    def add(self, sequence: int, wait: Wait) -> None:
        """Callers are told in the order of the calls; one that waits for an older entry hears with the caller before it."""
        self._waiting.append((sequence, wait))

    def since_ms(self, now_ms: int) -> int:
        """When the oldest of them came; now, where nobody waits. One that looks for an older entry may have come later."""
        return self._waiting[0][1].since_ms if self._waiting else now_ms

    def committed(self, upto: int) -> list[Wait]:
        """Remove and return those whose entry is committed, in order. The caller fires them."""
        ready = []
        waiting = self._waiting
        while waiting and waiting[0][0] <= upto:
            ready.append(waiting.popleft()[1])
        return ready

    def overdue(self, before_ms: int) -> list[Wait]:
        """Those that have waited since before ``before_ms``; they stay queued, so that order is kept."""
        late = []
        for _, wait in self._waiting:
            if wait.since_ms >= before_ms:
                break
            if not wait.patient:
                late.append(wait)
        return late

    def abandon(self) -> list[Wait]:
        """Remove and return all: the primary steps down or the store is broken."""
        left = [wait for _, wait in self._waiting]
        self._waiting.clear()
        return left
