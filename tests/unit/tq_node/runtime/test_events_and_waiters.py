from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from tests.conftest import LoggedErrors
from tq_node import limits
from tq_node.errors import OutcomeUnknown
from tq_node.facade import EventBatch
from tq_node.runtime.replication.commit_waiters import CommitWaiters, Wait
from tq_node.runtime.tasks.event_log import EventLog
from tq_node.types import State, TaskId, Transition


def change(number: int) -> Transition:
    return Transition(TaskId(f"t{number}"), "email", "default", None, State.PENDING, 0, 0, number)


def test_a_watcher_gets_what_it_missed_then_what_comes() -> None:
    log, seen = EventLog(100), list[EventBatch]()
    log.publish([change(n) for n in range(5)])
    watcher = log.watch(seen.append, after_id=102)
    log.publish([change(5)])
    assert [(batch.first_id, len(batch.transitions), batch.reset) for batch in seen] == [
        (103, 2, False),
        (105, 1, False),
    ]
    watcher.close()
    watcher.close()
    log.publish([change(6)])
    assert len(seen) == 2


@pytest.mark.parametrize(("after_id", "reset"), [(104, None), (103, False), (99, False), (98, True), (105, True)])
def test_too_old_or_never_given_out_is_a_reset(after_id: int, reset: bool | None) -> None:
    log, seen = EventLog(100), list[EventBatch]()
    log.publish([change(n) for n in range(5)])
    log.watch(seen.append, after_id=after_id)
    assert [batch.reset for batch in seen] == ([] if reset is None else [reset])


def test_only_so_many_are_kept() -> None:
    log, seen = EventLog(0), list[EventBatch]()
    log.publish([change(n) for n in range(limits.EVENTS_KEPT_MAX + 10)])
    log.watch(seen.append, after_id=5)
    assert seen[0].reset


def test_one_watchers_fault_is_not_anothers(logged_errors: LoggedErrors) -> None:
    log, seen = EventLog(0), list[EventBatch]()

    def broken(batch: EventBatch) -> None:
        raise ValueError("no")

    log.watch(broken, None)
    log.watch(seen.append, None)
    log.publish([change(1)])
    assert len(seen) == 1
    assert len(logged_errors.flush(ValueError)) == 1


def test_waiters_fire_in_order_each_its_own() -> None:
    waiters, heard = CommitWaiters(), list[str]()
    waits = [Wait(name, 0) for name in "abc"]
    for sequence, wait in enumerate(waits, 1):
        wait.deferred.addCallback(heard.append)
        waiters.add(sequence, wait)
    waits[1].deferred.addErrback(lambda why: why.trap(CancelledError))
    waits[1].deferred.cancel()
    for wait in waiters.committed(2):
        wait.step()
    assert heard == ["a"]
    failures: list[object] = []

    def failed(why: Failure) -> None:
        failures.append(type(why.value))

    waits[2].deferred.addErrback(failed)
    for wait in waiters.abandon():
        wait.give_up()
    assert heard == ["a"]
    assert failures == [OutcomeUnknown]


def test_overdue_callers_are_answered_patient_ones_are_not() -> None:
    waiters = CommitWaiters()
    waits = [Wait(None, 10), Wait(None, 20, patient=True), Wait(None, 90)]
    for wait in waits:
        waiters.add(1, wait)
    assert waiters.overdue(50) == [waits[0]]


def test_a_callers_own_error_is_its_own(logged_errors: LoggedErrors) -> None:
    wait = Wait(None, 0, 2)
    wait.step()
    assert not wait.deferred.called
    wait.step()
    assert wait.deferred.called
