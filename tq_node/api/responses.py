"""Bodies of answers: structs that ``openapi`` publishes, and how the queue's values become them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tq_node.api.problems import ItemError
from tq_node.types import (
    STATE_LABELS,
    AttemptRecord,
    Backoff,
    HandledType,
    PauseEntry,
    State,
    TaskError,
    TaskRow,
    Transition,
    WaitsFor,
)


class Submitted(msgspec.Struct):
    """``node`` is the task's primary."""

    success: bool
    task_id: str
    status: str
    node: str


class BatchItem(msgspec.Struct, omit_defaults=True):
    """``task_id`` and ``status`` of an accepted task, or the error of a refused one."""

    task_id: str | UnsetType = UNSET
    status: str | UnsetType = UNSET
    error: ItemError | UnsetType = UNSET


class BatchAnswer(msgspec.Struct):
    success: bool
    accepted: int
    rejected: int
    results: list[BatchItem]


class ErrorOut(msgspec.Struct):
    type: str
    message: str
    traceback: str | UnsetType = UNSET


class AttemptOut(msgspec.Struct):
    attempt: int
    node: str
    started_at: str
    ended_at: str
    outcome: str
    error: ErrorOut | UnsetType = UNSET


class BackoffOut(msgspec.Struct):
    kind: str
    base: float
    cap: float
    jitter: bool


class ProgressOut(msgspec.Struct):
    fraction: float
    note: str | UnsetType = UNSET


class LogLineOut(msgspec.Struct):
    at: str
    line: str


class WaitsForOut(msgspec.Struct, omit_defaults=True):
    """``kind``: ``time`` (its time has not come), ``queue_paused``, ``type_paused``, ``no_handler``
    (no worker has one for its type), ``draining`` (its partition is handed over), ``copies`` (too
    few are in sync to begin it), ``slots`` (all are busy). ``name``: of the queue or type.
    ``since`` is as the primary knows; ``until``: when that is over by itself."""

    kind: str
    since: str
    name: str | UnsetType = UNSET
    until: str | UnsetType = UNSET


class TaskOut(msgspec.Struct):
    """A task. Fields without a value yet are left out; times are RFC 3339 in UTC, durations
    seconds.

    ``version`` rises by one with each change. Only on a task that has not ended: ``waiting_for``,
    what holds it up. Only in a local read: ``age``, how old the copy may be. Only in lists:
    ``role``, whether this node's copy is the primary's. A caller that may look and not read (role
    ``view``) gets no ``payload``, ``result``, log and note, and errors without message."""

    id: str
    type: str
    status: str
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    created_at: str
    run_at: str
    node: str
    partition: int
    version: int
    tags: dict[str, str]
    backoff: BackoffOut
    log: list[LogLineOut]
    attempts: list[AttemptOut]
    payload: msgspec.Raw | UnsetType = UNSET
    started_at: str | UnsetType = UNSET
    completed_at: str | UnsetType = UNSET
    result: msgspec.Raw | UnsetType = UNSET
    error: ErrorOut | UnsetType = UNSET
    worker: str | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    progress: ProgressOut | UnsetType = UNSET
    log_dropped: int | UnsetType = UNSET
    waiting_for: list[WaitsForOut] | UnsetType = UNSET
    role: str | UnsetType = UNSET
    age: float | UnsetType = UNSET


class ListAnswer(msgspec.Struct):
    """One page; ``next`` is null on the last one. Only with ``scope=cluster``: ``missing``, nodes
    that did not answer, and ``partitions_missing``, partitions that no node answered for."""

    tasks: list[TaskOut]
    count: int
    node: str
    next: str | None
    missing: list[str] | UnsetType = UNSET
    partitions_missing: list[int] | UnsetType = UNSET


class StateCounts(msgspec.Struct):
    total: int
    pending: int
    processing: int
    completed: int
    failed: int
    scheduled: int
    cancelled: int


class StatsAnswer(msgspec.Struct):
    """Number of tasks by state; ``missing`` and ``partitions_missing`` as in ``ListAnswer``."""

    node: str
    stats: StateCounts
    primary: StateCounts
    replica: StateCounts
    missing: list[str] | UnsetType = UNSET
    partitions_missing: list[int] | UnsetType = UNSET


class TaskDone(msgspec.Struct):
    success: bool
    task_id: str
    status: str


class PauseDone(msgspec.Struct, omit_defaults=True):
    """``queue`` or ``type``, as asked. ``status`` is ``paused`` or ``active``."""

    success: bool
    status: str
    queue: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class PauseOut(msgspec.Struct, omit_defaults=True):
    """A queue or a type of which nothing starts. ``until``: when it goes on by itself."""

    queue: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    since: str | UnsetType = UNSET
    until: str | UnsetType = UNSET


def pause_out(entry: PauseEntry) -> PauseOut:
    out = PauseOut(queue=entry.name) if entry.target == "queue" else PauseOut(type=entry.name)
    if entry.reason:
        out.reason = entry.reason
    if entry.since_us:
        out.since = time_text(entry.since_us)
    if entry.until_us is not None:
        out.until = time_text(entry.until_us)
    return out


def pause_done(place: tuple[str, str], status: str) -> PauseDone:
    """What is answered of a queue's or a type's pause or resumption."""
    target, name = place
    return PauseDone(True, status, **{target: name})


class EventData(msgspec.Struct, rename={"from_": "from"}):
    """One state transition, the ``data`` of an event; ``from`` is null when the task was created.
    ``node`` is the primary's name; null if the partition has no primary when the event is sent."""

    task_id: str
    type: str
    queue: str
    from_: str | None
    to: str
    attempt: int
    node: str | None
    partition: int
    at: str


_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # naive on purpose: it spares isoformat the offset, which is always Z


def time_text(us: int) -> str:
    """RFC 3339 in UTC, of a wall time in microseconds since 1970."""
    return (_EPOCH + timedelta(0, 0, us)).isoformat(timespec="microseconds") + "Z"


def seconds(ms: int) -> float | int:
    """Milliseconds as seconds; an int if they are whole seconds."""
    whole, rest = divmod(ms, 1_000)
    return ms / 1_000 if rest else whole


def _backoff_out(backoff: Backoff) -> BackoffOut:
    return BackoffOut(backoff.kind, seconds(backoff.base_ms), seconds(backoff.cap_ms), backoff.jitter)


_DEFAULT_BACKOFF = Backoff()
_DEFAULT_BACKOFF_OUT = _backoff_out(_DEFAULT_BACKOFF)


def task_out(row: TaskRow, node: str, waits: Sequence[WaitsFor]) -> TaskOut:
    """The body of a task. ``node``: its primary's name. ``waits``: why it doesn't run yet."""
    spec = row.spec
    backoff = spec.backoff
    created_at = time_text(spec.created_us)
    out = TaskOut(
        spec.id,
        spec.type,
        STATE_LABELS[row.state],
        spec.queue,
        spec.priority,
        row.attempt,
        spec.max_attempts,
        created_at,
        created_at if row.run_at_us == spec.created_us else time_text(row.run_at_us),
        node,
        row.partition,
        row.rev,
        spec.tags or {},
        _DEFAULT_BACKOFF_OUT if backoff == _DEFAULT_BACKOFF else _backoff_out(backoff),
        [LogLineOut(time_text(line.at_us), line.line) for line in row.log] if row.log else [],
        [_attempt_out(attempt) for attempt in row.attempts] if row.attempts else [],
        msgspec.Raw(spec.payload) if spec.payload else UNSET,
    )
    if row.started_us is not None:
        out.started_at = time_text(row.started_us)
    if row.ended_us is not None:
        out.completed_at = time_text(row.ended_us)
    if row.result is not None:
        out.result = msgspec.Raw(row.result)
    if row.error is not None:
        out.error = _error_out(row.error)
    if row.worker is not None:
        out.worker = row.worker
    if spec.timeout_ms is not None:
        out.timeout = seconds(spec.timeout_ms)
    if row.progress is not None:
        out.progress = ProgressOut(row.progress.fraction, UNSET if row.progress.note is None else row.progress.note)
    if row.log_dropped:
        out.log_dropped = row.log_dropped
    if waits:
        out.waiting_for = [_waits_out(reason) for reason in waits]
    return out


def _waits_out(reason: WaitsFor) -> WaitsForOut:
    out = WaitsForOut(reason.kind, time_text(reason.since_us))
    if reason.name:
        out.name = reason.name
    if reason.until_us is not None:
        out.until = time_text(reason.until_us)
    return out


def _error_out(error: TaskError) -> ErrorOut:
    return ErrorOut(error.type, error.message, UNSET if error.traceback is None else error.traceback)


def _attempt_out(attempt: AttemptRecord) -> AttemptOut:
    return AttemptOut(
        attempt.attempt,
        attempt.node,
        time_text(attempt.started_us),
        time_text(attempt.ended_us),
        attempt.outcome,
        UNSET if attempt.error is None else _error_out(attempt.error),
    )


def state_counts(counts: list[int]) -> StateCounts:
    """Counts by label, from counts by number of the state."""
    by_label = {label: counts[State(number)] for number, label in enumerate(STATE_LABELS)}
    return StateCounts(total=sum(counts), **by_label)


def event_data(change: Transition, node: str | None) -> EventData:
    return EventData(
        change.task_id,
        change.task_type,
        change.queue,
        None if change.from_state is None else STATE_LABELS[change.from_state],
        STATE_LABELS[change.to_state],
        change.attempt,
        node,
        change.partition,
        time_text(change.at_us),
    )


def defaults_of(handled: HandledType) -> dict[str, Any]:
    """Return the fields of an answer that give a type's defaults; what is not given is left out."""
    out: dict[str, Any] = {}
    if handled.queue is not None:
        out["queue"] = handled.queue
    if handled.max_attempts is not None:
        out["max_attempts"] = handled.max_attempts
    if handled.timeout_ms is not None:
        out["timeout"] = seconds(handled.timeout_ms)
    if (backoff := handled.backoff) is not None:
        out["backoff"] = BackoffOut(backoff.kind, seconds(backoff.base_ms), seconds(backoff.cap_ms), backoff.jitter)
    return out
