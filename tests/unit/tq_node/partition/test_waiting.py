"""Why a task does not run."""

from __future__ import annotations

from tests.support.lifecycle import spec
from tests.unit.tq_node.partition.test_lifecycle import running
from tq_node.partition import lifecycle
from tq_node.partition.waiting import Surroundings, waiting_for
from tq_node.types import WaitsFor

NOBODY = Surroundings(lambda task_type: 50)
SOMEBODY = Surroundings(lambda task_type: None)


def test_a_task_that_nobody_can_run_says_so_from_when_it_could_have_begun() -> None:
    early, late = lifecycle.born(spec("t", created_us=10), 0, 10), lifecycle.born(spec("t", created_us=99), 0, 99)
    assert waiting_for(early, NOBODY) == (WaitsFor("no_handler", 50),)
    assert waiting_for(late, NOBODY) == (WaitsFor("no_handler", 99),)
    assert waiting_for(early, SOMEBODY) == ()


def test_one_that_runs_has_ended_or_is_not_due_waits_for_nothing_of_that_kind() -> None:
    assert waiting_for(running(), NOBODY) == ()
    assert waiting_for(lifecycle.born(spec("t", created_us=10), 0, 11), NOBODY) == ()
    cancelled = lifecycle.transition(lifecycle.born(spec("t", created_us=10), 0, 10), lifecycle.Cancel(20))
    assert waiting_for(cancelled, NOBODY) == ()
