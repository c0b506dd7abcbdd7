"""When the copies that this node leads are ticked: the busy ones each 50 ms, the others with each ping round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.interfaces import IDelayedCall

from tq_node import limits
from tq_node.partition.core import PartitionCore
from tq_node.partition.settings import Budget
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.admission import Admission
from tq_node.runtime.replication.commit_waiters import CommitWaiters
from tq_node.types import Change

TICK_S = 0.05
"""For copies that have anything to do."""


class TickSchedule:
    """:param enter: runs an event of cores that says which of them it has touched."""

    def __init__(
        self,
        clock: Clock,
        cores: Sequence[PartitionCore[Change]],
        waiters: Sequence[CommitWaiters],
        budget: Budget,
        admission: Admission,
        enter: Callable[[Callable[[], Iterable[int]]], None],
    ) -> None:
        self.members: set[int] = set()
        """Partitions that are led here, or are to be."""
        self.busy: set[int] = set()
        """Those that had anything to do since the last tick; the others rest."""
        self.timer: IDelayedCall | None = None
        self._clock = clock
        self._cores = cores
        self._waiters = waiters
        self._budget = budget
        self._admission = admission
        self._enter = enter

    def wake(self) -> None:
        """Somebody is busy, and there is no timer."""
        self.timer = self._clock.call_later(TICK_S, self._tick_busy)

    def tick_all(self) -> None:
        """For each ping round: whether those that rest still do. Silence alone may end that, after two seconds."""
        self._tick(self.members)

    def _tick_busy(self) -> None:
        self.timer = None
        self._tick(self.members & self.busy)

    def _tick(self, partitions: Iterable[int]) -> None:
        now_ms = self._clock.now_ms()
        self._budget.copying.refill(now_ms)
        is_much = self._budget.uncommitted_bytes > limits.UNCOMMITTED_BYTES_FREE
        since_ms = min(waiters.since_ms(now_ms) for waiters in self._waiters) if is_much else now_ms
        self._admission.waited(now_ms - since_ms)
        due = sorted(partitions)
        self.busy.clear()

        def tick() -> Iterable[int]:
            return [partition for partition in due if self._cores[partition].tick(now_ms)]

        self._enter(tick)
