"""What is left of a task for a caller that may look and not read: pure.

Payload, result, log, notes of progress, messages and tracebacks of errors go; what the task is,
where and how often it ran, how it ended and with what type of error stays."""

from __future__ import annotations

import msgspec

from tq_node.api.access.access import Caller
from tq_node.types import TaskError, TaskRow

NO_PAYLOAD = b""
"""In place of a payload that is not shown; no payload is empty, for it is JSON."""
_replace = msgspec.structs.replace


def shown(row: TaskRow, caller: Caller) -> TaskRow:
    """The task as the caller may see it: its own ones whole."""
    if caller.sees_payloads or row.spec.made_by == caller.name:
        return row
    attempts = tuple(
        attempt if attempt.error is None else _replace(attempt, error=_type_alone(attempt.error))
        for attempt in row.attempts
    )
    return _replace(
        row,
        spec=_replace(row.spec, payload=NO_PAYLOAD),
        result=None,
        error=None if row.error is None else _type_alone(row.error),
        progress=None if row.progress is None else _replace(row.progress, note=None),
        log=(),
        attempts=attempts,
    )


def _type_alone(error: TaskError) -> TaskError:
    return TaskError(error.type, "")
