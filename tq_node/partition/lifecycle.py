"""The task lifecycle: one table from (state, event) to what becomes of the row, at the primary.

    born ──> scheduled ──due──> pending ──claim──> processing ──complete──> completed
      └────────────────────────────^ ^ ^ │            │ │ │ └─fail, last─> failed ──retry──> pending
                                   │ │ │ └──unhandled──> failed
                                   │ │ └──release─────┘ │ │
                                   │ └──fail, lose──────┘ └──lose, third──> failed
                                   └── (over scheduled, after the back-off)
    scheduled, pending, processing ──cancel──> cancelled ──retry──> pending

Every event carries the time and, where one is needed, a random draw: nothing here reads a clock or
rolls dice. A transition returns the new row, or the same object where the news was known already
(nothing changes, answered ok). Sources: docs/reference/task-states.md;
docs/explanation/replication.md, sections 3 and 8, F30, F30a, F31."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from tq_node import limits
from tq_node.errors import AlreadyFinal, NotRetryable, StaleAttempt
from tq_node.partition.backoff import backoff_delay_ms
from tq_node.types import (
    AttemptRecord,
    Backoff,
    LogLine,
    Progress,
    State,
    TaskError,
    TaskRow,
    TaskSpec,
    Token,
    WorkerLease,
)

LOST_BACKOFF = Backoff()
"""Lost attempts wait whatever the task says: one that kills its node must not loop fast (F31)."""


class Due(msgspec.Struct, frozen=True, gc=False):
    """The task's time has come."""

    at_us: int


class Claim(msgspec.Struct, frozen=True, gc=False):
    """An attempt starts on ``node``. ``token`` is the place of the entry with this claim; ``lease``
    that of a remote worker, whose name ``node`` is then."""

    at_us: int
    token: Token
    node: str
    lease: WorkerLease | None = None


class Note(msgspec.Struct, frozen=True, gc=False):
    """Progress and log lines of a running attempt."""

    token: Token
    progress: Progress | None
    lines: tuple[LogLine, ...]
    dropped: int


class Complete(msgspec.Struct, frozen=True, gc=False):
    at_us: int
    token: Token
    result: bytes


class Fail(msgspec.Struct, frozen=True, gc=False):
    """``retry_in_ms`` overrides the back-off; ``final``: no further attempt; ``draw`` in [0, 1)."""

    at_us: int
    token: Token
    error: TaskError
    retry_in_ms: int | None
    final: bool
    draw: float


class Release(msgspec.Struct, frozen=True, gc=False):
    """The attempt is given back and does not count."""

    at_us: int
    token: Token


class Lose(msgspec.Struct, frozen=True, gc=False):
    """The attempt's node or lease is gone; ``draw`` in [0, 1)."""

    at_us: int
    token: Token
    draw: float


class Cancel(msgspec.Struct, frozen=True, gc=False):
    at_us: int


class Retry(msgspec.Struct, frozen=True, gc=False):
    """A person sends an ended task back: a new run, attempts from zero."""

    at_us: int


class Unhandled(msgspec.Struct, frozen=True, gc=False):
    """Nobody has had a handler for the task for too long."""

    at_us: int
    error: TaskError


Event = Due | Claim | Note | Complete | Fail | Release | Lose | Cancel | Retry | Unhandled


def born(spec: TaskSpec, partition: int, run_at_us: int) -> TaskRow:
    """The first row of a task: scheduled if its time is still to come, else pending."""
    state = State.SCHEDULED if run_at_us > spec.created_us else State.PENDING
    return TaskRow(spec, partition, 1, state, run_at_us)


def transition(row: TaskRow, event: Event) -> TaskRow:
    """What ``event`` makes of ``row``; the same object where it changes nothing.

    :raises StaleAttempt: the event's token does not hold the task.
    :raises AlreadyFinal: cancel of a task that has ended.
    :raises NotRetryable: retry of a task that is neither failed nor cancelled."""
    return TABLE[row.state, type(event)](row, event)


# --- what the events do ---
def _same(row: TaskRow, event: Any) -> TaskRow:
    return row


def _due(row: TaskRow, event: Due) -> TaskRow:
    if row.run_at_us > event.at_us:
        return row
    return replace(row, rev=row.rev + 1, state=State.PENDING)


def _claim(row: TaskRow, event: Claim) -> TaskRow:
    return replace(
        row,
        rev=row.rev + 1,
        state=State.PROCESSING,
        attempt=row.attempt + 1,
        token=event.token,
        worker=event.node,
        started_us=event.at_us,
        progress=None,
        error=None,
        lease=event.lease,
    )


def _note(row: TaskRow, event: Note) -> TaskRow:
    if row.token != event.token:
        raise StaleAttempt(task_id=row.id)
    lines = row.log + event.lines
    over = max(0, len(lines) - limits.LOG_LINES_MAX)
    return replace(
        row,
        rev=row.rev + 1,
        progress=event.progress if event.progress is not None else row.progress,
        log=lines[over:],
        log_dropped=row.log_dropped + event.dropped + over,
    )


def _complete(row: TaskRow, event: Complete) -> TaskRow:
    if row.token != event.token:
        raise StaleAttempt(task_id=row.id)
    return replace(
        row,
        rev=row.rev + 1,
        state=State.COMPLETED,
        ended_us=event.at_us,
        result=event.result,
        error=None,
        attempts=_recorded(row, event.at_us, "completed", None),
    )


def _fail(row: TaskRow, event: Fail) -> TaskRow:
    if row.token != event.token:
        raise StaleAttempt(task_id=row.id)
    failures = row.failures + 1
    attempts = _recorded(row, event.at_us, "failed", event.error)
    if event.final or failures >= row.spec.max_attempts:
        return replace(
            row,
            rev=row.rev + 1,
            state=State.FAILED,
            failures=failures,
            ended_us=event.at_us,
            error=event.error,
            attempts=attempts,
        )
    delay_ms = event.retry_in_ms
    if delay_ms is None:
        delay_ms = backoff_delay_ms(row.spec.backoff, failures, event.draw)
    return replace(
        row,
        rev=row.rev + 1,
        state=State.SCHEDULED if delay_ms > 0 else State.PENDING,
        failures=failures,
        run_at_us=event.at_us + delay_ms * 1000,
        error=event.error,
        attempts=attempts,
    )


def _release(row: TaskRow, event: Release) -> TaskRow:
    if row.token != event.token:
        raise StaleAttempt(task_id=row.id)
    # run_at stays, so the task keeps its place in line.
    return replace(
        row,
        rev=row.rev + 1,
        state=State.PENDING,
        token=None,
        progress=None,
        attempts=_recorded(row, event.at_us, "released", None),
    )


def _lose(row: TaskRow, event: Lose) -> TaskRow:
    if row.token != event.token:
        raise StaleAttempt(task_id=row.id)
    losses = row.losses + 1
    error = TaskError("attempt_lost", f"the node or the lease of attempt {row.attempt} on {row.worker} has gone")
    attempts = _recorded(row, event.at_us, "lost", error)
    if losses >= limits.LOST_ATTEMPTS_MAX:
        return replace(
            row,
            rev=row.rev + 1,
            state=State.FAILED,
            losses=losses,
            token=None,
            ended_us=event.at_us,
            error=TaskError("attempts_lost", f"{losses} attempts were lost with their node or lease"),
            attempts=attempts,
        )
    return replace(
        row,
        rev=row.rev + 1,
        state=State.SCHEDULED,
        losses=losses,
        token=None,
        run_at_us=event.at_us + backoff_delay_ms(LOST_BACKOFF, losses, event.draw) * 1000,
        error=error,
        attempts=attempts,
    )


def _cancel(row: TaskRow, event: Cancel) -> TaskRow:
    running = row.state is State.PROCESSING
    return replace(
        row,
        rev=row.rev + 1,
        state=State.CANCELLED,
        token=None,
        ended_us=event.at_us,
        attempts=_recorded(row, event.at_us, "cancelled", None) if running else row.attempts,
    )


def _retry(row: TaskRow, event: Retry) -> TaskRow:
    # The earlier run's history stays: who sends a task back wants to see what it did.
    return replace(
        row,
        rev=row.rev + 1,
        state=State.PENDING,
        run_at_us=event.at_us,
        attempt=0,
        failures=0,
        losses=0,
        token=None,
        worker=None,
        started_us=None,
        ended_us=None,
        result=None,
        error=None,
        progress=None,
    )


def _unhandled(row: TaskRow, event: Unhandled) -> TaskRow:
    # It was never begun, so it has no attempt that failed.
    return replace(row, rev=row.rev + 1, state=State.FAILED, ended_us=event.at_us, error=event.error)


def _same_news(row: TaskRow, event: Complete | Fail) -> TaskRow:
    """Whether an attempt reports its end again, by the token of the attempt that ended last."""
    if row.token != event.token:
        raise StaleAttempt(task_id=row.id)
    return row


def _stale(row: TaskRow, event: Any) -> TaskRow:
    raise StaleAttempt(task_id=row.id)


def _already_final(row: TaskRow, event: Any) -> TaskRow:
    raise AlreadyFinal(f"the task is {row.state.label} already", task_id=row.id)


def _not_retryable(row: TaskRow, event: Any) -> TaskRow:
    raise NotRetryable(f"the task is {row.state.label}", task_id=row.id)


def _recorded(row: TaskRow, at_us: int, outcome: str, error: TaskError | None) -> tuple[AttemptRecord, ...]:
    """The attempts with the one that ends now; bounded in number and in tracebacks."""
    started = row.started_us if row.started_us is not None else at_us
    ended = AttemptRecord(row.attempt, row.worker or "", started, at_us, outcome, error)
    if not row.attempts:
        return (ended,)
    kept = (*row.attempts, ended)[-limits.ATTEMPTS_KEPT_MAX :]
    return tuple(map(_without_traceback, kept[: -limits.TRACEBACKS_KEPT_MAX])) + kept[-limits.TRACEBACKS_KEPT_MAX :]


def _without_traceback(record: AttemptRecord) -> AttemptRecord:
    if record.error is None or record.error.traceback is None:
        return record
    return replace(record, error=replace(record.error, traceback=None))


TABLE: dict[tuple[State, type[Any]], Callable[[TaskRow, Any], TaskRow]] = {
    (State.SCHEDULED, Due): _due,
    (State.SCHEDULED, Claim): _stale,
    (State.SCHEDULED, Note): _stale,
    (State.SCHEDULED, Complete): _stale,
    (State.SCHEDULED, Fail): _same_news,
    (State.SCHEDULED, Release): _stale,
    (State.SCHEDULED, Lose): _stale,
    (State.SCHEDULED, Cancel): _cancel,
    (State.SCHEDULED, Retry): _not_retryable,
    (State.SCHEDULED, Unhandled): _same,
    (State.PENDING, Due): _same,
    (State.PENDING, Claim): _claim,
    (State.PENDING, Note): _stale,
    (State.PENDING, Complete): _stale,
    (State.PENDING, Fail): _same_news,
    (State.PENDING, Release): _stale,
    (State.PENDING, Lose): _stale,
    (State.PENDING, Cancel): _cancel,
    (State.PENDING, Retry): _not_retryable,
    (State.PENDING, Unhandled): _unhandled,
    (State.PROCESSING, Due): _same,
    (State.PROCESSING, Claim): _stale,
    (State.PROCESSING, Note): _note,
    (State.PROCESSING, Complete): _complete,
    (State.PROCESSING, Fail): _fail,
    (State.PROCESSING, Release): _release,
    (State.PROCESSING, Lose): _lose,
    (State.PROCESSING, Cancel): _cancel,
    (State.PROCESSING, Retry): _not_retryable,
    (State.PROCESSING, Unhandled): _same,
    (State.COMPLETED, Due): _same,
    (State.COMPLETED, Claim): _stale,
    (State.COMPLETED, Note): _stale,
    (State.COMPLETED, Complete): _same_news,
    (State.COMPLETED, Fail): _stale,
    (State.COMPLETED, Release): _stale,
    (State.COMPLETED, Lose): _stale,
    (State.COMPLETED, Cancel): _already_final,
    (State.COMPLETED, Retry): _not_retryable,
    (State.COMPLETED, Unhandled): _same,
    (State.FAILED, Due): _same,
    (State.FAILED, Claim): _stale,
    (State.FAILED, Note): _stale,
    (State.FAILED, Complete): _stale,
    (State.FAILED, Fail): _same_news,
    (State.FAILED, Release): _stale,
    (State.FAILED, Lose): _stale,
    (State.FAILED, Cancel): _already_final,
    (State.FAILED, Retry): _retry,
    (State.FAILED, Unhandled): _same,
    (State.CANCELLED, Due): _same,
    (State.CANCELLED, Claim): _stale,
    (State.CANCELLED, Note): _stale,
    (State.CANCELLED, Complete): _stale,
    (State.CANCELLED, Fail): _stale,
    (State.CANCELLED, Release): _stale,
    (State.CANCELLED, Lose): _stale,
    (State.CANCELLED, Cancel): _already_final,
    (State.CANCELLED, Retry): _retry,
    (State.CANCELLED, Unhandled): _same,
}
