"""Bodies as their routes read them, without a reactor: in one slice, or in slices as short as can be."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tq_node.slices import Pace, Slices

T = TypeVar("T")


def one_slice() -> Pace:
    return Slices(Clock(), now_s=lambda: 0.0).pace("a test")


class Cut:
    """Slices that end whenever the clock is looked at, and how many there were."""

    def __init__(self) -> None:
        self.reactor = Clock()
        self.turns = 0
        self.pace = Slices(self.reactor, on_slice=self._count, slice_s=0.0, now_s=lambda: 0.0).pace("a test")

    def _count(self, what: str) -> None:
        self.turns += 1

    def result(self, job: Coroutine[Any, Any, T]) -> T:
        """:raises: what the job raises."""
        done: list[Any] = []
        Deferred.fromCoroutine(job).addBoth(done.append)
        while not done:
            assert self.reactor.getDelayedCalls(), "it waits for something else"
            self.reactor.advance(0)
        if isinstance(done[0], Failure):
            done[0].raiseException()
        result: T = done[0]
        return result


def at_once(job: Coroutine[Any, Any, T]) -> T:
    """Of a job that waits for nothing."""
    return Cut().result(job)
