"""Errors of the client, of three kinds: ``Refused`` (nothing was done, and nothing would be),
``Unavailable`` (nothing was done; the same call may succeed later), ``OutcomeUnknown`` (it may have
been done; sending the same id again is safe). ``code`` is the stable word of the HTTP API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from tq_node.client.models import TaskInfo

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a decoder raises; the last for what is nested too deep, as are some old stores' results."""


class TaskQueueError(Exception):
    """Base of the client's errors. ``detail`` is one sentence for a person."""

    code: str = "unknown"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str = "",
        status: int = 0,
        field: str | None = None,
        task_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail or code or self.code)
        self.detail = detail or code or self.code
        if code:
            self.code = code
        self.status = status
        """HTTP status; 0 if the error is not from a node."""
        self.field = field
        """Which field of the task is wrong, as a JSON Pointer."""
        self.task_id = task_id
        self.request_id = request_id
        """The request's id in the node's log."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.detail,), self.__dict__


class Closed(TaskQueueError):
    """The queue was closed before the request was sent."""

    code = "closed"


class TooManyWaiting(TaskQueueError):
    """More submits wait in this client than it holds. Nothing was sent."""

    code = "too_many_waiting"


# --- refused ---
class Refused(TaskQueueError):
    """Nothing was done, and the same request would be refused again."""


class InvalidTask(Refused):
    """A field is unknown, missing or wrong, or something is too large; ``field`` says which."""


class NotUnderstood(Refused):
    """The answer can't be read: it is no node's, or a result of an old store is nested too deep."""

    code = "not_understood"


class NotFound(Refused):
    """There is no such task, and never was."""

    code = "not_found"


class TaskPurged(Refused):
    """The task ended, and was purged after its retention time."""

    code = "task_purged"


class Conflict(Refused):
    """The task is not in the state for this; ``code`` says which one it is."""


class IdConflict(Conflict):
    """There is a task of this id with other content."""

    code = "id_conflict"


class IdTooOld(Conflict):
    """The id is so old that it may be that of a purged task."""

    code = "id_too_old"


class AlreadyFinal(Conflict):
    """The task has ended: nothing is left to cancel."""

    code = "already_final"


class NotRetryable(Conflict):
    """The task has neither failed nor been cancelled."""

    code = "not_retryable"


class NotFinal(Conflict):
    """The task has not ended, so it is not purged."""

    code = "not_final"


class Denied(Refused):
    """The token does not allow this, or there is none."""

    code = "denied"


# --- refused for now ---
class Unavailable(TaskQueueError):
    """Nothing was done by the deadline; ``code``: the last error's. The call may succeed later."""


class Busy(Unavailable):
    """The nodes have too much to do, or their disks are nearly full."""

    code = "busy"


class Unreachable(Unavailable):
    """No node could be reached."""

    code = "unreachable"


class Incomplete(Unavailable):
    """A list or counts lack tasks: the nodes in ``missing`` did not answer, and none answered for
    ``partitions_missing``. ``partial=True`` takes what is there."""

    code = "incomplete"

    def __init__(
        self, detail: str = "", *, missing: tuple[str, ...] = (), partitions_missing: tuple[int, ...] = ()
    ) -> None:
        super().__init__(detail)
        self.missing = missing
        self.partitions_missing = partitions_missing


# --- unknown ---
class OutcomeUnknown(TaskQueueError):
    """The call may have taken effect: no node said in time. Ask for ``task_id``, or send again."""

    code = "outcome_unknown"


# --- what became of a task ---
class NotFinished(TaskQueueError, TimeoutError):
    """The task has not ended within the timeout; ``task`` is its present state."""

    code = "not_finished"

    def __init__(self, detail: str = "", *, task: TaskInfo | None = None) -> None:
        super().__init__(detail, task_id=task.id if task else None)
        self.task = cast("TaskInfo", task)  # None only for a moment, while it is unpickled


class NoResult(TaskQueueError):
    """The task has ended without a result to return; ``task`` is its final state."""

    def __init__(self, detail: str = "", *, task: TaskInfo | None = None) -> None:
        super().__init__(detail, task_id=task.id if task else None)
        self.task = cast("TaskInfo", task)  # None only for a moment, while it is unpickled


class TaskFailed(NoResult):
    """The task failed for good: ``task.error`` says why."""

    code = "task_failed"


class TaskCancelled(NoResult):
    """The task was cancelled."""

    code = "task_cancelled"


class NotDecoded(NoResult):
    """The task completed, and the codec can't decode its result."""

    code = "not_decoded"


class BatchRefused(TaskQueueError):
    """Some tasks of a batch were not accepted. ``results``: a task or error for each, in order."""

    code = "batch_refused"

    def __init__(self, detail: str = "", *, results: Sequence[object] = ()) -> None:
        super().__init__(detail)
        self.results = list(results)


class Problem(msgspec.Struct):
    code: str = ""
    title: str = ""
    detail: str = ""
    status: int = 0
    field: str | None = None
    task_id: str | None = None
    request_id: str | None = None


_INVALID = (
    "unknown_field", "missing_field", "invalid_field", "body_too_large", "payload_too_large", "malformed", "not_json",
)  # fmt: skip
_DENIED = ("denied", "cross_origin", "unauthorized", "forbidden")
_BUSY = ("busy", "disk_full")
_KINDS: dict[str, type[TaskQueueError]] = {
    **dict.fromkeys(_INVALID, InvalidTask),
    **dict.fromkeys(_DENIED, Denied),
    **dict.fromkeys(_BUSY, Busy),
    **{
        kind.code: kind
        for kind in (NotFound, TaskPurged, IdConflict, IdTooOld, AlreadyFinal, NotRetryable, NotFinal, OutcomeUnknown)
    },
}
_STATUSES = {401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 413: InvalidTask, 422: InvalidTask, 429: Busy}
OF_THE_NODE = frozenset({"busy", "draining", "not_ready"})
"""Codes about the node, which then is not asked for as long as it says; others: a partition's."""
UNPROVEN = frozenset({"not_confirmed"})
"""Codes of calls that are safe to send again, but may have been done."""


def error_of(problem: Problem) -> TaskQueueError:
    """The error of a problem: by its ``code``, else (a newer node, a proxy) by its HTTP status. A
    5xx other than 503 does not promise that nothing was done: ``OutcomeUnknown``."""
    status = problem.status
    kind = _KINDS.get(problem.code)
    if kind is None:
        if status in _STATUSES:
            kind = _STATUSES[status]
        elif status == 503:
            kind = Unavailable
        else:
            kind = OutcomeUnknown if status >= 500 else Refused
    return kind(
        problem.detail or problem.title or f"HTTP {status}",
        code=problem.code,
        status=status,
        field=problem.field,
        task_id=problem.task_id,
        request_id=problem.request_id,
    )


_decode = msgspec.json.Decoder(Problem).decode


def error_in(status: int, body: bytes) -> TaskQueueError:
    """The error in an answer whose status is no success."""
    try:
        problem = _decode(body)
    except UNREADABLE:
        problem = Problem(detail=f"HTTP {status}")
    problem.status = status
    return error_of(problem)
