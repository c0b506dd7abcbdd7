"""WorkerService: when it claims and how much, how it finishes, and how it stops."""

from __future__ import annotations

import os
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.unit.tq_node.work import sample_handlers
from tests.unit.tq_node.work.conftest import ClockRig, asynchronous, until, within
from tq_node import limits
from tq_node.errors import Busy, NoSuchTask, OutcomeUnknown, StaleAttempt
from tq_node.facade import Claim, Completed, Released
from tq_node.types import Announced, HandlerKind


def test_hints_within_a_turn_lead_to_one_claim(clock_rig: ClockRig) -> None:
    claimed = len(clock_rig.queue.claim_limits)
    for _ in range(100):
        clock_rig.worker.wake()
    clock_rig.turn()
    assert clock_rig.queue.claim_limits[claimed:] == [4]


def test_it_never_asks_for_more_than_it_has_free_slots(clock_rig: ClockRig) -> None:
    """Running and asked for together stay within the concurrency (4), with claims that take their time."""
    queue, worker = clock_rig.queue, clock_rig.worker
    queue.hold_claims = True
    for _ in range(20):
        queue.put("a_wait")
        clock_rig.turn()
        assert worker.running_count + worker._claiming <= 4
    queue.release_held()
    assert worker.running_count == 1
    clock_rig.turn()
    assert worker._claiming == 3
    queue.release_held()
    for _ in range(19):
        clock_rig.turn()
        assert worker.running_count + worker._claiming <= 4
        queue.release_held()
        for deferred in sample_handlers.waiting:
            if not deferred.called:
                deferred.callback(None)
        clock_rig.turn()
    queue.hold_claims = False
    assert len(queue.finished) == 20


def test_a_hint_that_comes_while_a_claim_is_under_way_is_not_lost(clock_rig: ClockRig) -> None:
    """F32: the claim was answered from the past; without a further look the task would wait for the safety net."""
    queue = clock_rig.queue
    queue.hold_claims = True
    clock_rig.worker.wake()
    clock_rig.turn()
    claim = queue.put("a_echo", 1)
    clock_rig.turn()
    queue.hold_claims = False
    queue.release_held()
    clock_rig.turn()
    assert queue.outcome_of(claim) == Completed(b"1")


def test_the_safety_net_finds_what_no_event_told(clock_rig: ClockRig) -> None:
    """F32: all notifications dropped, all tasks still end."""
    clock_rig.queue.wake_on_put = False
    claim = clock_rig.put("a_echo", 1)
    assert clock_rig.queue.outcome_of(claim) is None
    clock_rig.clock.advance(limits.SAFETY_NET_S)
    clock_rig.turn()
    assert clock_rig.queue.outcome_of(claim) == Completed(b"1")


def test_an_empty_queue_is_not_asked_again_and_again(clock_rig: ClockRig) -> None:
    clock_rig.worker.wake()
    clock_rig.turn()
    claimed = len(clock_rig.queue.claim_limits)
    for _ in range(100):
        clock_rig.turn()
    assert len(clock_rig.queue.claim_limits) == claimed


def test_a_claim_that_fails_is_made_again(clock_rig: ClockRig, logged_errors: Any) -> None:
    clock_rig.queue.claim_errors.extend([Busy(), RuntimeError("a bug"), RuntimeError("another")])
    claim = clock_rig.put("a_echo", 1)
    for _ in range(4):
        clock_rig.clock.advance(limits.SAFETY_NET_S)
        clock_rig.turn()
    assert clock_rig.queue.outcome_of(claim) == Completed(b"1")
    assert len(logged_errors.flush(RuntimeError)) == 2


def test_a_bad_round_of_the_safety_net_does_not_end_it(
    clock_rig: ClockRig, logged_errors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []

    def sweep() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise RuntimeError("once")

    monkeypatch.setattr(clock_rig.worker.pool, "sweep", sweep)
    clock_rig.clock.pump([limits.SAFETY_NET_S] * 3)
    assert len(rounds) == 3
    assert len(logged_errors.flush(RuntimeError)) == 1


def test_a_slot_is_free_before_the_end_is_committed_but_not_without_bound(clock_rig: ClockRig) -> None:
    queue, worker = clock_rig.queue, clock_rig.worker
    queue.hold_finishes = True
    for _ in range(1000):
        queue.put("a_echo")
    for _ in range(1000):
        clock_rig.turn()
    assert worker.completer.in_flight_max <= len(queue.finished) < worker.completer.in_flight_max + 4
    queue.hold_finishes = False
    queue.release_held()
    for _ in range(1000):
        clock_rig.turn()
    assert len(queue.finished) == 1000


def test_an_end_is_said_again_until_it_is_known(clock_rig: ClockRig) -> None:
    clock_rig.queue.finish_errors.extend([Busy(), OutcomeUnknown(), Busy()])
    claim = clock_rig.put("a_echo", 1)
    assert clock_rig.worker.running_count == 0
    clock_rig.clock.pump([0.1] * 20)
    assert clock_rig.queue.outcome_of(claim) == Completed(b"1")
    assert not clock_rig.queue.finish_errors, "each was met, and followed by another try"
    assert clock_rig.worker.completer.count == 0


def test_a_stale_end_is_normal_and_other_refusals_are_told(clock_rig: ClockRig, logged_errors: Any) -> None:
    clock_rig.queue.finish_errors.extend([StaleAttempt(), NoSuchTask(), RuntimeError("a bug")])
    for _ in range(3):
        clock_rig.put("a_echo")
    assert not clock_rig.queue.finish_errors
    assert clock_rig.worker.completer.count == 0
    assert len(logged_errors.flush(NoSuchTask, RuntimeError)) == 2


def test_an_attempt_whose_notes_are_stale_is_stopped(clock_rig: ClockRig) -> None:
    clock_rig.queue.note_errors.append(StaleAttempt())
    claim = clock_rig.put("a_wait")
    clock_rig.clock.advance(limits.NOTE_INTERVAL_MS / 1000)
    assert clock_rig.queue.outcome_of(claim) is not None


def test_notes_that_fail_otherwise_are_no_harm(clock_rig: ClockRig, logged_errors: Any) -> None:
    clock_rig.queue.note_errors.extend([Busy()])
    claim = clock_rig.put("a_wait")
    clock_rig.clock.advance(limits.NOTE_INTERVAL_MS / 1000)
    assert clock_rig.queue.outcome_of(claim) is None


def test_one_attempt_without_an_answer_costs_no_other_its_lease(
    clock_rig: ClockRig, logged_errors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = [clock_rig.put("a_wait") for _ in range(3)]
    granted = clock_rig.queue.lease_ms

    def lease_ms(claim: Claim) -> int:
        if claim is claims[0]:
            raise RuntimeError("no answer")
        return granted(claim)

    monkeypatch.setattr(clock_rig.queue, "lease_ms", lease_ms)
    clock_rig.clock.pump([limits.LEASE_RENEW_MS / 1000] * 10)
    assert [clock_rig.queue.outcome_of(claim) is None for claim in claims] == [False, True, True]
    assert logged_errors.flush(RuntimeError)


# --- stopping ---
def test_stop_waits_for_handlers_then_releases_their_attempts(clock_rig: ClockRig) -> None:
    worker, queue = clock_rig.worker, clock_rig.queue
    worker._stop_timeout_s = 10.0
    quick, slow, stubborn = clock_rig.put("a_wait"), clock_rig.put("a_wait"), clock_rig.put("a_stubborn")
    stopped: Deferred[None] = worker.stopService()
    late = clock_rig.put("a_echo")
    clock_rig.clock.advance(5)
    sample_handlers.waiting[0].callback("in time")
    assert queue.outcome_of(quick) == Completed(b'"in time"')
    # The leases of those that still run are kept until the end.
    assert queue.lease_questions[-1] in (slow.partition, stubborn.partition)
    clock_rig.clock.advance(4.9)
    assert queue.outcome_of(slow) is None
    clock_rig.clock.advance(0.1)
    assert queue.outcome_of(slow) == Released()
    assert queue.outcome_of(stubborn) == Released()
    assert stopped.called
    assert queue.outcome_of(late) is None
    assert clock_rig.clock.getDelayedCalls() == []


def test_a_claim_that_comes_while_stopping_is_released(clock_rig: ClockRig) -> None:
    clock_rig.queue.hold_claims = True
    claim = clock_rig.put("a_echo")
    stopped = clock_rig.worker.stopService()
    assert not stopped.called
    clock_rig.queue.release_held()
    assert clock_rig.queue.outcome_of(claim) == Released()
    assert stopped.called


def test_stop_does_not_wait_for_ever_for_the_queue(clock_rig: ClockRig) -> None:
    clock_rig.queue.finish_errors.extend([Busy()] * 1000)
    clock_rig.put("a_echo")
    stopped = clock_rig.worker.stopService()
    clock_rig.clock.pump([0.5] * 20)
    assert stopped.called
    assert clock_rig.clock.getDelayedCalls() == []


@asynchronous
async def test_stop_kills_worker_processes_and_leaves_nothing(rigs: Any) -> None:
    rig = rigs(stop_timeout_s=0.3)
    fds = len(os.listdir("/proc/self/fd"))
    claims = [rig.queue.put(*task) for task in [("sleep", 60), ("spin",), ("a_wait",), ("listen",), ("sleep", 0.2)]]
    await rig.running(claims[0])
    await rig.running(claims[1])
    pids = [process.pid for process in rig.worker.pool._all]
    await within(rig.worker.stopService())
    assert [rig.queue.outcome_of(claim) for claim in claims[:4]] == [Released()] * 4
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []
    await until(lambda: len(os.listdir("/proc/self/fd")) <= fds, "all pipes are closed")


@asynchronous
async def test_stop_lets_a_handler_end_in_time(rigs: Any) -> None:
    rig = rigs(stop_timeout_s=10.0)
    claim = rig.queue.put("sleep", 0.3)
    await rig.running(claim)
    await within(rig.worker.stopService())
    assert rig.queue.outcome_of(claim) == Completed(b'"slept"')


@asynchronous
async def test_start_and_stop_at_once(rigs: Any) -> None:
    rig = rigs()
    await within(rig.worker.stopService())
    assert rig.worker.pool.processes == 0
    rig.worker.startService()
    assert (await rig.run("echo", 1))[1] == Completed(b"1")


def test_with_no_slots_it_starts_claims_and_announces_nothing(rigs: Any) -> None:
    rig = rigs(concurrency=0)
    worker = rig.worker
    rig.queue.put("a_echo", 1)
    worker.wake()
    worker._schedule()
    assert (worker.types, worker.announced, worker.slots_free) == ((), Announced(HandlerKind.NONE), 0)
    assert [note.code for note in worker.notes] == ["no_workers"]
    assert (rig.queue.claim_limits, worker.pool.processes, worker.loops.processes) == ([], 0, 0)
