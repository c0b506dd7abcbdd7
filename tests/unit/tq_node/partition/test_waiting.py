"""Why a task does not run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.lifecycle import spec
from tests.unit.tq_node.partition.test_lifecycle import running
from tq_node import limits
from tq_node.partition import lifecycle
from tq_node.partition.waiting import Surroundings, matches, waiting_for
from tq_node.types import WAIT_KINDS, PauseEntry, TaskError, TaskRow, WaitsFor

LATE_US = 10 + limits.WAITS_FOR_SLOT_US


def around(
    now_us: int = 10,
    *,
    pauses: tuple[PauseEntry, ...] = (),
    without_us: int | None = None,
    held_back: str = "",
    is_free: bool = False,
) -> Surroundings:
    known = {one.place: one for one in pauses}
    pause_of: Callable[[str, str], PauseEntry | None] = lambda target, name: known.get((target, name))  # noqa: E731
    return Surroundings(
        lambda: now_us, pause_of, lambda task_type: without_us, lambda partition: held_back, lambda row: is_free
    )


def pending(due_us: int = 10) -> TaskRow:
    return lifecycle.born(spec("t", created_us=due_us), 0, due_us)


TYPE, QUEUE = pending().spec.type, pending().spec.queue


def test_a_task_that_nobody_can_run_says_so_from_when_it_could_have_begun() -> None:
    nobody = around(without_us=50)
    assert waiting_for(pending(), nobody) == (WaitsFor("no_handler", 50, TYPE),)
    assert waiting_for(pending(99), nobody) == (WaitsFor("no_handler", 99, TYPE),)
    assert waiting_for(pending(), around()) == ()


def test_one_that_is_not_due_waits_for_its_time_whatever_else_there_is() -> None:
    scheduled = lifecycle.born(spec("t", created_us=10), 0, 11)
    assert waiting_for(scheduled, around(without_us=5)) == (WaitsFor("time", 10, until_us=11),)


def test_one_that_failed_waits_from_then_on() -> None:
    before = running()
    assert before.token is not None
    error = TaskError("e", "m")
    again = lifecycle.transition(before, lifecycle.Fail(77, before.token, error, 5, False, 0.5))
    (reason,) = waiting_for(again, around())
    assert (reason.kind, reason.since_us, reason.until_us) == ("time", 77, again.run_at_us)


def test_one_that_runs_or_has_ended_waits_for_nothing() -> None:
    nobody = around(without_us=5, held_back="copies")
    assert waiting_for(running(), nobody) == ()
    assert waiting_for(lifecycle.transition(pending(), lifecycle.Cancel(20)), nobody) == ()


def test_pauses_say_of_what_and_until_when() -> None:
    pauses = (PauseEntry("queue", QUEUE, since_us=5, until_us=70), PauseEntry("type", TYPE, since_us=30))
    assert waiting_for(pending(), around(pauses=pauses)) == (
        WaitsFor("queue_paused", 10, QUEUE, 70),
        WaitsFor("type_paused", 30, TYPE),
    )
    assert waiting_for(pending(), around(pauses=(PauseEntry("queue", "other"),))) == ()


@pytest.mark.parametrize("kind", ["draining", "copies"])
def test_a_partition_of_which_nothing_starts(kind: str) -> None:
    assert waiting_for(pending(), around(LATE_US, held_back=kind)) == (WaitsFor(kind, 10),)


def test_slots_are_waited_for_where_nothing_else_holds_it_up_for_a_while() -> None:
    assert waiting_for(pending(), around(LATE_US)) == (WaitsFor("slots", 10),)
    assert waiting_for(pending(), around(LATE_US - 1)) == ()
    assert waiting_for(pending(), around(LATE_US, is_free=True)) == ()
    assert [one.kind for one in waiting_for(pending(), around(LATE_US, without_us=1))] == ["no_handler"]


def test_all_reasons_are_told_in_order() -> None:
    pauses = (PauseEntry("type", TYPE), PauseEntry("queue", QUEUE))
    kinds = [one.kind for one in waiting_for(pending(), around(pauses=pauses, without_us=1, held_back="copies"))]
    assert kinds == [kind for kind in WAIT_KINDS if kind not in ("time", "draining", "slots")]


def test_what_is_looked_for_by_kind_or_kind_and_name() -> None:
    reasons = (WaitsFor("queue_paused", 1, "mail"),)
    assert matches(reasons, "queue_paused", "")
    assert matches(reasons, "queue_paused", "mail")
    assert not matches(reasons, "queue_paused", "other")
    assert not matches(reasons, "slots", "")
