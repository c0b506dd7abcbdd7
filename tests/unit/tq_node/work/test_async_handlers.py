"""``async def`` handlers: in the reactor, step by step, on a clock in hand."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.unit.tq_node.work import sample_handlers
from tests.unit.tq_node.work.conftest import ClockRig
from tq_node import Context, Retry, limits
from tq_node.facade import AttemptFailed, Claim, Completed, Lost, Notes, Outcome
from tq_node.types import Token
from tq_node.work.handlers import Handler, RunIn
from tq_node.work.reactor_attempt import ReactorAttempt


def failure(rig: ClockRig, claim: Claim) -> AttemptFailed:
    outcome = rig.queue.outcome_of(claim)
    assert isinstance(outcome, AttemptFailed)
    return outcome


def test_one_that_never_waits_is_over_in_the_turn_of_its_claim(clock_rig: ClockRig) -> None:
    claim = clock_rig.put("a_echo", {"a": [1, None]})
    assert clock_rig.queue.outcome_of(claim) == Completed(b'{"a":[1,null]}')
    assert clock_rig.worker.running_count == 0


def test_one_that_waits_goes_on_when_its_deferred_fires(clock_rig: ClockRig) -> None:
    claim = clock_rig.put("a_wait")
    assert clock_rig.worker.running_count == 1
    sample_handlers.waiting[0].callback("done")
    assert clock_rig.queue.outcome_of(claim) == Completed(b'"done"')
    assert clock_rig.queue.lines_of(claim) == ["before", "after"]
    # It was short: what it said came along with its end.
    assert clock_rig.queue.noted == []


def test_a_failure_of_what_it_waits_for_is_raised_in_it(clock_rig: ClockRig) -> None:
    claim = clock_rig.put("a_wait")
    sample_handlers.waiting[0].errback(OSError("gone"))
    outcome = failure(clock_rig, claim)
    assert (outcome.error.type, outcome.error.message) == ("OSError", "gone")


def test_exceptions_retry_reject_and_exit(clock_rig: ClockRig) -> None:
    outcome = failure(clock_rig, clock_rig.put("a_raise", 1))
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "no good: 1")
    assert outcome.error.traceback is not None
    assert "in a_raise" in outcome.error.traceback
    outcome = failure(clock_rig, clock_rig.put("a_retry", 3))
    assert (outcome.error.type, outcome.retry_in_ms) == ("Retry", 3000)
    outcome = failure(clock_rig, clock_rig.put("a_reject"))
    assert (outcome.error.type, outcome.final) == ("Reject", True)
    outcome = failure(clock_rig, clock_rig.put("a_exit", 4))
    assert (outcome.error.type, outcome.error.message) == ("worker_died", "the handler raised SystemExit: 4")


def test_bad_results(clock_rig: ClockRig) -> None:
    assert failure(clock_rig, clock_rig.put("a_not_json")).error.type == "result_not_json"
    assert failure(clock_rig, clock_rig.put("a_big_result", 2**20)).error.type == "result_too_large"
    claim = clock_rig.put("a_big_result", 2**20 - 2)
    assert isinstance(clock_rig.queue.outcome_of(claim), Completed)


def test_awaiting_what_is_no_deferred_fails_the_attempt(clock_rig: ClockRig) -> None:
    # asyncio.sleep(0) yields None, with which a Twisted reactor can do nothing.
    outcome = failure(clock_rig, clock_rig.put("a_asyncio"))
    assert outcome.error.type == "TypeError"
    assert "awaits Deferreds" in outcome.error.message


def test_the_timeout_cancels_what_it_waits_for(clock_rig: ClockRig) -> None:
    claim = clock_rig.put("a_wait", timeout_ms=1500)
    clock_rig.clock.advance(1.4)
    assert clock_rig.queue.outcome_of(claim) is None
    clock_rig.clock.advance(0.1)
    assert failure(clock_rig, claim).error.type == "timeout"
    assert clock_rig.worker.running_count == 0


def test_one_that_ignores_being_cancelled_is_closed_after_the_grace(clock_rig: ClockRig) -> None:
    claim = clock_rig.put("a_stubborn", timeout_ms=1000)
    clock_rig.clock.advance(1.0)
    assert clock_rig.queue.outcome_of(claim) is None
    clock_rig.clock.advance(limits.CANCEL_GRACE_MS / 1000 - 0.1)
    assert clock_rig.worker.running_count == 1
    clock_rig.clock.advance(0.2)
    assert failure(clock_rig, claim).error.type == "timeout"
    assert clock_rig.worker.running_count == 0
    # What it waited for fires long after: nobody is there any more.
    sample_handlers.waiting[-1].callback(None)
    assert len(clock_rig.queue.finished) == 1


def test_cancel(clock_rig: ClockRig) -> None:
    listening, stubborn = clock_rig.put("a_listen"), clock_rig.put("a_stubborn")
    for claim in (listening, stubborn, stubborn):
        clock_rig.worker.stop_attempt(claim.task_id, claim.token)
    assert failure(clock_rig, listening).error.type == "cancelled"
    assert clock_rig.queue.outcome_of(stubborn) is None
    clock_rig.clock.advance(limits.CANCEL_GRACE_MS / 1000)
    assert failure(clock_rig, stubborn).error.type == "cancelled"
    # One that is over, or never was, is no error.
    clock_rig.worker.stop_attempt(listening.task_id, listening.token)
    clock_rig.worker.stop_attempt("never", Token(9, 9))


def test_only_the_attempt_with_that_token_is_stopped(clock_rig: ClockRig) -> None:
    """F30a: attempt numbers repeat, tokens don't."""
    claim = clock_rig.put("a_wait", task_id="same")
    clock_rig.worker.stop_attempt("same", Token(claim.token.epoch, claim.token.sequence + 1))
    assert clock_rig.worker.running_count == 1


def test_a_lease_that_is_not_renewed_ends_it(clock_rig: ClockRig) -> None:
    claim = clock_rig.put("a_listen")
    clock_rig.clock.pump([1.0] * 30)
    assert clock_rig.queue.outcome_of(claim) is None
    clock_rig.queue.granted_ms = 0
    clock_rig.clock.pump([1.0] * 17)
    assert isinstance(clock_rig.queue.outcome_of(claim), Lost)


def test_notes_are_bounded_in_time_and_number(clock_rig: ClockRig) -> None:
    claim = clock_rig.put("a_wait")
    attempt = next(iter(clock_rig.worker._attempts.values()))
    for number in range(1000):
        attempt.progress_buffer.add_line(f"line {number}")
        clock_rig.clock.advance(0.005)
    assert 4 <= len(clock_rig.queue.noted) <= 5
    first = clock_rig.queue.noted[0][1]
    assert first.progress is not None
    assert (first.progress.fraction, first.progress.note) == (0.25, "waiting")
    sample_handlers.waiting[0].callback(None)
    lines = clock_rig.queue.lines_of(claim)
    assert len(lines) + sum(notes.dropped for notes in clock_rig.queue.notes_of(claim)) == 1002
    assert lines[-1] == "after"


class Host:
    """An attempt's host that only remembers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.outcomes: list[Outcome] = []

    def note(self, attempt: Any, notes: Notes) -> None:
        raise AssertionError("nothing is said")

    def ended(self, attempt: Any, outcome: Outcome, notes: Notes | None) -> None:
        self.outcomes.append(outcome)


def start(function: Any, payload: object = None) -> tuple[ReactorAttempt, Host]:
    host = Host()
    claim = Claim("t", "x", msgspec.json.encode(payload), 0, 1, Token(1, 1), None)
    attempt = ReactorAttempt(host, claim, Handler("x", function, run=RunIn.REACTOR, where="here"), 0.0)
    attempt.start()
    return attempt, host


def test_many_deferreds_that_have_fired_do_not_recurse() -> None:
    async def handler(payload: Any, context: Context) -> int:
        for _ in range(10_000):
            await succeed(1)
        return 7

    assert start(handler)[1].outcomes == [Completed(b"7")]


def test_context_variables_are_the_handlers_own() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outside")
    deferred: Deferred[None] = Deferred()

    async def handler(payload: Any, context: Context) -> str:
        token = variable.set("inside")
        await deferred
        seen = variable.get()
        variable.reset(token)
        return seen

    _, host = start(handler)
    assert variable.get() == "outside"
    deferred.callback(None)
    assert host.outcomes == [Completed(b'"inside"')]
    assert variable.get() == "outside"


def test_retry_refuses_what_is_no_delay() -> None:
    for seconds in (-1, float("nan"), float("inf"), limits.BACKOFF_S_MAX + 1):
        with pytest.raises(ValueError, match="Retry takes"):
            Retry(seconds)


def test_a_payload_that_is_no_json_fails_the_attempt() -> None:
    host = Host()
    claim = Claim("t", "x", b"{", 0, 1, Token(1, 1), None)
    handler = Handler("x", sample_handlers.a_echo, run=RunIn.REACTOR, where="here")
    ReactorAttempt(host, claim, handler, 0.0).start()
    (outcome,) = host.outcomes
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "JSONDecodeError"
