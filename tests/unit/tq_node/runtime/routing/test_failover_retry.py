"""Who waits while a partition changes hands, for how long, and what is tried again (replication.md section 9, P4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock as Timers
from twisted.python.failure import Failure

from tq_node import errors
from tq_node.errors import TaskQueueError
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.failover_retry import RETRY_MS, UNKNOWN_MS, WAITING_MAX, FailoverRetry

Attempt = Callable[[], Deferred[str]]


class Tried:
    """Answers in turn, the last one again and again; counts how often it was asked."""

    def __init__(self, *answers: str | TaskQueueError | Deferred[str]) -> None:
        self.asked = 0
        self._answers = answers

    def __call__(self) -> Deferred[str]:
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, TaskQueueError) else succeed(answer)


class World:
    def __init__(self) -> None:
        self.timers = Timers()
        self.is_over = False
        self.retry = FailoverRetry(Clock(self.timers), lambda: 0.5, lambda: self.is_over)

    def write(self, attempt: Tried, repeat: Tried) -> Deferred[str]:
        """As ``ClusterQueue.submit``."""
        begun_ms = round(self.timers.seconds() * 1000)
        written: Deferred[str] = attempt().addErrback(self.retry.failed_write, attempt, repeat, begun_ms)
        return written

    def go(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.005)):
            self.timers.advance(0.005)


@pytest.fixture
def world() -> World:
    return World()


def result_of(deferred: Deferred[str]) -> list[object]:
    found: list[object] = []

    def keep(result: object) -> None:
        found.append(result.value if isinstance(result, Failure) else result)

    deferred.addBoth(keep)
    return found


class TestRead:
    @pytest.mark.parametrize("kind", [errors.NotPrimary, errors.NotActive, errors.Draining])
    def test_who_is_refused_for_now_is_tried_again(self, world: World, kind: type[TaskQueueError]) -> None:
        """Draining too: a primary that stops gives its partitions to others first."""
        tried = Tried(kind("for now"), kind("for now"), "done")
        found = result_of(world.retry.read(tried))
        assert (found, world.retry.waiting) == ([], 1)
        world.go(0.2)
        assert (found, tried.asked, world.retry.waiting) == (["done"], 3, 0)

    def test_not_for_ever(self, world: World) -> None:
        refused = errors.NotPrimary("for good")
        found = result_of(world.retry.read(Tried(refused)))
        world.go(RETRY_MS / 1000 - 0.05)
        assert found == []
        world.go(0.15)
        assert found == [refused]
        assert world.timers.getDelayedCalls() == []

    def test_other_refusals_are_told_at_once(self, world: World) -> None:
        for error in (errors.Busy("full"), errors.NotEnoughReplicas("two are down"), errors.OutcomeUnknown("late")):
            tried = Tried(error, "done")
            assert result_of(world.retry.read(tried)) == [error]
            assert tried.asked == 1

    def test_a_node_that_stops_lets_nobody_wait(self, world: World) -> None:
        world.is_over = True
        refused = errors.Draining()
        assert result_of(world.retry.read(Tried(refused))) == [refused]

    def test_so_many_wait_and_no_more(self, world: World) -> None:
        refused = errors.NotPrimary("for now")
        for _ in range(WAITING_MAX):
            world.retry.read(Tried(refused, "done"))
        assert result_of(world.retry.read(Tried(refused, "done"))) == [refused]
        world.go(0.1)
        assert world.retry.waiting == 0


class TestWrite:
    def test_what_may_have_happened_is_repeated(self, world: World) -> None:
        first, repeat = Tried(errors.OutcomeUnknown("the primary died")), Tried(errors.NotPrimary("for now"), "there")
        found = result_of(world.write(first, repeat))
        world.go(0.1)
        assert (found, first.asked, repeat.asked) == (["there"], 1, 2)

    def test_what_is_known_is_not_repeated(self, world: World) -> None:
        repeat = Tried("twice")
        assert result_of(world.write(Tried("once"), repeat)) == ["once"]
        refused = errors.Busy("full")
        assert result_of(world.write(Tried(refused), repeat)) == [refused]
        assert repeat.asked == 0

    @pytest.mark.parametrize("kind", [errors.NotPrimary, errors.Busy, errors.NotEnoughReplicas, errors.OutcomeUnknown])
    def test_p4_a_later_refusal_does_not_say_that_nothing_happened(
        self, world: World, kind: type[TaskQueueError]
    ) -> None:
        unknown = errors.OutcomeUnknown("the primary died")
        found = result_of(world.write(Tried(unknown), Tried(kind("no"))))
        world.go(2.0)
        assert found == [unknown]

    def test_but_another_task_with_that_id_does(self, world: World) -> None:
        conflict = errors.IdConflict("other content")
        unknown = errors.OutcomeUnknown("the primary died")
        assert result_of(world.write(Tried(unknown), Tried(conflict))) == [conflict]

    def test_who_has_waited_long_is_not_made_to_wait_again(self, world: World) -> None:
        answer: Deferred[str] = Deferred()
        repeat = Tried("there")
        found = result_of(world.write(Tried(answer), repeat))
        world.go(UNKNOWN_MS / 1000 + 0.1)
        unknown = errors.OutcomeUnknown("no commit in time")
        answer.errback(unknown)
        assert (found, repeat.asked) == ([unknown], 0)

    def test_a_node_that_stops_repeats_nothing(self, world: World) -> None:
        world.is_over = True
        unknown = errors.OutcomeUnknown("the primary died")
        assert result_of(world.write(Tried(unknown), Tried("there"))) == [unknown]
