"""The lifecycle by example; ``tests/property/test_lifecycle.py`` walks it in any order."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.support.lifecycle import SECOND_US, spec
from tq_node import limits
from tq_node.errors import AlreadyFinal, NotRetryable, StaleAttempt
from tq_node.partition import lifecycle
from tq_node.partition.backoff import backoff_delay_ms
from tq_node.partition.entries import decode_row, decode_spec, encode_body, encode_spec, put_born
from tq_node.types import Backoff, LogLine, Progress, State, TaskError, TaskRow, Token

TOKEN = Token(1, 2)
ERROR = TaskError("ValueError", "no", "Traceback ...")


def pending(**changes: Any) -> TaskRow:
    return lifecycle.born(spec("t", **changes), 0, 0)


def running(**changes: Any) -> TaskRow:
    return lifecycle.transition(pending(**changes), lifecycle.Claim(5 * SECOND_US, TOKEN, "node-1"))


def fail(row: TaskRow, **how: Any) -> TaskRow:
    event = {
        "at_us": 9 * SECOND_US,
        "token": row.token,
        "error": ERROR,
        "retry_in_ms": None,
        "final": False,
        "draw": 0.0,
    }
    return lifecycle.transition(row, lifecycle.Fail(**{**event, **how}))


def test_the_table_says_something_for_every_state_and_event() -> None:
    events = [
        lifecycle.Due,
        lifecycle.Claim,
        lifecycle.Note,
        lifecycle.Complete,
        lifecycle.Fail,
        lifecycle.Release,
        lifecycle.Lose,
        lifecycle.Cancel,
    ]
    events += [lifecycle.Retry, lifecycle.Unhandled]
    assert set(lifecycle.TABLE) == set(itertools.product(State, events))


def test_what_nobody_has_a_handler_for_fails_without_an_attempt() -> None:
    row = lifecycle.born(spec("t", created_us=10), 0, 10)
    error = TaskError("no_handler", "nobody has one")
    failed = lifecycle.transition(row, lifecycle.Unhandled(99, error))
    assert (failed.state, failed.ended_us, failed.error, failed.attempts) == (State.FAILED, 99, error, ())
    assert lifecycle.transition(failed, lifecycle.Unhandled(100, error)) is failed
    again = lifecycle.transition(failed, lifecycle.Retry(200))
    assert (again.state, again.error, again.run_at_us) == (State.PENDING, None, 200)
    begun = running()
    assert lifecycle.transition(begun, lifecycle.Unhandled(100, error)) is begun, "somebody has claimed it meanwhile"


def test_born_scheduled_only_if_its_time_is_to_come() -> None:
    assert lifecycle.born(spec("t", created_us=10), 0, 11).state is State.SCHEDULED
    assert lifecycle.born(spec("t", created_us=10), 0, 10).state is State.PENDING


def test_claim_counts_the_attempt_and_says_who_and_when() -> None:
    row = running()
    assert (row.state, row.attempt, row.token, row.worker, row.started_us) == (
        State.PROCESSING, 1, TOKEN, "node-1", 5 * SECOND_US,
    )  # fmt: skip


def test_complete_keeps_result_and_attempt() -> None:
    row = lifecycle.transition(running(), lifecycle.Complete(7 * SECOND_US, TOKEN, b"42"))
    assert (row.state, row.result, row.ended_us) == (State.COMPLETED, b"42", 7 * SECOND_US)
    assert [(a.attempt, a.node, a.outcome) for a in row.attempts] == [(1, "node-1", "completed")]


def test_the_same_news_twice_is_answered_ok() -> None:
    done = lifecycle.transition(running(), lifecycle.Complete(7, TOKEN, b"1"))
    assert lifecycle.transition(done, lifecycle.Complete(8, TOKEN, b"2")) is done
    failed = fail(running())
    assert fail(replace(failed), token=TOKEN).rev == failed.rev


def test_f30_a_stale_token_is_refused() -> None:
    for event in (
        lifecycle.Complete(7, Token(1, 1), b"1"),
        lifecycle.Release(7, Token(1, 1)),
        lifecycle.Lose(7, Token(1, 1), 0.0),
    ):
        with pytest.raises(StaleAttempt):
            lifecycle.transition(running(), event)


def test_f30a_numbers_repeat_after_retry_tokens_do_not() -> None:
    first = running(max_attempts=1)
    again = lifecycle.transition(fail(first), lifecycle.Retry(20 * SECOND_US))
    second = lifecycle.transition(again, lifecycle.Claim(21 * SECOND_US, Token(1, 9), "node-1"))
    assert second.attempt == first.attempt == 1
    with pytest.raises(StaleAttempt):
        lifecycle.transition(second, lifecycle.Complete(22 * SECOND_US, TOKEN, b"zombie"))


def test_fail_waits_for_the_backoff_then_fails_for_good() -> None:
    row = fail(running(max_attempts=2, backoff=Backoff("constant", 3_000, 3_600_000, False)))
    assert (row.state, row.run_at_us, row.failures, row.error) == (State.SCHEDULED, 12 * SECOND_US, 1, ERROR)
    row = lifecycle.transition(row, lifecycle.Due(12 * SECOND_US))
    row = lifecycle.transition(row, lifecycle.Claim(13 * SECOND_US, Token(1, 5), "node-2"))
    row = fail(row)
    assert (row.state, row.error) == (State.FAILED, ERROR)
    assert [(a.attempt, a.node, a.error) for a in row.attempts] == [(1, "node-1", ERROR), (2, "node-2", ERROR)]


def test_a_handler_may_ask_for_a_delay_or_for_none() -> None:
    assert fail(running(), retry_in_ms=500).run_at_us == 9 * SECOND_US + 500_000
    assert fail(running(), retry_in_ms=0).state is State.PENDING
    assert fail(running(), final=True).state is State.FAILED


def test_release_spends_nothing_and_keeps_the_place_in_line() -> None:
    before = running(max_attempts=1)
    row = lifecycle.transition(before, lifecycle.Release(9 * SECOND_US, TOKEN))
    assert (row.state, row.failures, row.losses, row.run_at_us) == (State.PENDING, 0, 0, before.run_at_us)
    assert row.attempts[-1].outcome == "released"


def test_f31_three_lost_attempts_are_a_dead_letter() -> None:
    row = pending()
    for number in range(1, 4):
        row = lifecycle.transition(replace(row, state=State.PENDING), lifecycle.Claim(number, Token(1, number), "n"))
        row = lifecycle.transition(row, lifecycle.Lose(number, Token(1, number), 0.5))
    assert row.state is State.FAILED
    assert row.error is not None
    assert row.error.type == "attempts_lost"
    assert (row.losses, row.failures) == (limits.LOST_ATTEMPTS_MAX, 0)


def test_cancel_at_every_stage() -> None:
    scheduled = lifecycle.born(spec("t"), 0, 99)
    for row in (scheduled, pending(), running()):
        assert lifecycle.transition(row, lifecycle.Cancel(9)).state is State.CANCELLED
    cancelled = lifecycle.transition(running(), lifecycle.Cancel(9))
    assert cancelled.attempts[-1].outcome == "cancelled"
    with pytest.raises(AlreadyFinal, match="cancelled already"):
        lifecycle.transition(cancelled, lifecycle.Cancel(9))
    with pytest.raises(StaleAttempt):
        lifecycle.transition(cancelled, lifecycle.Complete(10, TOKEN, b"1"))


def test_retry_takes_what_has_failed_or_was_cancelled_and_keeps_the_story() -> None:
    failed = fail(running(max_attempts=1))
    again = lifecycle.transition(failed, lifecycle.Retry(30 * SECOND_US))
    assert (again.state, again.attempt, again.error, again.ended_us) == (State.PENDING, 0, None, None)
    assert again.attempts == failed.attempts
    for row in (pending(), running(), lifecycle.transition(running(), lifecycle.Complete(7, TOKEN, b"1"))):
        with pytest.raises(NotRetryable):
            lifecycle.transition(row, lifecycle.Retry(1))


def test_notes_are_kept_and_bounded() -> None:
    lines = tuple(LogLine(n, f"line {n}") for n in range(limits.LOG_LINES_MAX + 5))
    row = lifecycle.transition(running(), lifecycle.Note(TOKEN, Progress(0.5, "half"), lines, 2))
    assert row.progress == Progress(0.5, "half")
    assert row.log == lines[5:]
    assert row.log_dropped == 7
    assert lifecycle.transition(row, lifecycle.Note(TOKEN, None, (), 0)).progress == Progress(0.5, "half")


def test_only_the_latest_tracebacks_are_kept() -> None:
    row = pending(max_attempts=100)
    for number in range(1, 21):
        row = lifecycle.transition(replace(row, state=State.PENDING), lifecycle.Claim(number, Token(1, number), "n"))
        row = fail(row, retry_in_ms=0)
    kept = [a.error.traceback is not None for a in row.attempts if a.error is not None]
    assert kept == [False] * (20 - limits.TRACEBACKS_KEPT_MAX) + [True] * limits.TRACEBACKS_KEPT_MAX
    assert all(a.error is not None and a.error.message == "no" for a in row.attempts)


def test_a_row_reads_back_as_it_was_written() -> None:
    row = lifecycle.transition(running(), lifecycle.Note(TOKEN, Progress(0.5), (LogLine(1, "x"),), 0))
    row = fail(row)
    back = decode_row(0, row.rev, row.state, row.run_at_us, row.ended_us or 0, encode_spec(row.spec), encode_body(row))
    assert back == row


def test_what_no_token_submitted_has_the_bytes_of_before_there_were_tokens() -> None:
    spec = pending().spec
    assert encode_spec(spec) == msgspec.msgpack.encode(msgspec.structs.astuple(spec)[:-1])
    owned = replace(spec, made_by="ann")
    assert encode_spec(owned) == msgspec.msgpack.encode(owned)
    assert (decode_spec(encode_spec(spec)), decode_spec(encode_spec(owned))) == (spec, owned)
    for one in (spec, owned):
        row = lifecycle.born(one, 0, one.created_us)
        assert put_born(row).spec == encode_spec(one)


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Backoff("exponential", 1_000, 3_600_000, False), [1_000, 2_000, 4_000, 8_000]),
        (Backoff("linear", 1_000, 3_500, False), [1_000, 2_000, 3_000, 3_500]),
        (Backoff("constant", 700, 3_600_000, False), [700, 700, 700, 700]),
        (Backoff("exponential", 1_000, 3_000, False), [1_000, 2_000, 3_000, 3_000]),
    ],
)
def test_backoff(backoff: Backoff, delays: list[int]) -> None:
    assert [backoff_delay_ms(backoff, n, 0.7) for n in range(1, 5)] == delays
    assert backoff_delay_ms(backoff, 10_000, 0.7) <= backoff.cap_ms


def test_jitter_spreads_over_the_upper_half() -> None:
    assert backoff_delay_ms(Backoff(), 1, 0.0) == 500
    assert backoff_delay_ms(Backoff(), 1, 0.999) == 999
