"""From what a handler returned or raised to what is kept; the same in node and worker process."""

from __future__ import annotations

import json
import traceback
from typing import Any

import msgspec

from tq_node import encoding, limits
from tq_node.types import TaskError
from tq_node.work.handlers import Reject, Retry
from tq_node.work.progress_buffer import bounded

assert encoding.DEPTH_MAX == limits.JSON_DEPTH_MAX, "one rule for payloads and results"


class BadResult(Exception):
    """An attempt without result. ``error``: its failure; ``final``: a new one ends the same."""

    def __init__(self, error_type: str, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.error = make_error(error_type, message)
        self.final = final


def make_error(error_type: str, message: str, trace: str | None = None) -> TaskError:
    """A ``TaskError`` cut to the bounds: a traceback keeps its end, which says what happened."""
    return TaskError(
        bounded(error_type, limits.ERROR_TYPE_CHARS_MAX),
        bounded(message, limits.ERROR_MESSAGE_CHARS_MAX),
        None
        if trace is None
        else bounded(trace[-limits.ERROR_TRACEBACK_CHARS_MAX :], limits.ERROR_TRACEBACK_CHARS_MAX),
    )


def encode_result(value: Any) -> bytes:
    """Compact JSON, by the rule for payloads too (``encoding``).

    :raises BadResult: it has no form in JSON, is nested too deep, has too many values, or is over
        ``limits.RESULT_BYTES_MAX``."""
    try:
        encoded = encoding.encode(value, limits.RESULT_BYTES_MAX)
    except encoding.TooLong as why:
        raise BadResult("result_too_large", f"the result has {why}", final=True) from None
    except encoding.NotJson as why:
        name = type(value).__qualname__
        raise BadResult("result_not_json", f"the result of type {name} is not JSON: {why}", final=True) from None
    if len(encoded) > limits.RESULT_BYTES_MAX:
        raise BadResult(
            "result_too_large",
            f"the result has {len(encoded)} bytes, at most {limits.RESULT_BYTES_MAX} are kept",
            final=True,
        )
    return encoded


def decode_payload(payload: bytes) -> Any:
    """Decode a payload; raises ``ValueError`` if it is not JSON."""
    try:
        return msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The standard library takes a few things that msgspec refuses, lone surrogates among them.
        return json.loads(payload)


def describe(error: BaseException, *, own_frames: int = 1) -> tuple[TaskError, int | None, bool]:
    """What an exception of a handler means: the error, the delay it asked for in ms, and whether it
    is final. ``own_frames`` of the traceback are ours and left out. Never raises, whatever the
    exception does."""
    try:
        message = str(error)
    except BaseException:  # the handler's own class may do anything
        message = "(its message can't be shown)"
    if isinstance(error, Retry):
        return make_error("Retry", message), round(error.seconds * 1000), False
    if isinstance(error, Reject):
        return make_error("Reject", message), None, True
    if isinstance(error, BadResult):
        return error.error, None, error.final
    trace = error.__traceback__
    for _ in range(own_frames):
        trace = trace.tb_next if trace is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, trace, limit=-50))
    except BaseException:
        text = "(its traceback can't be shown)"
    if not isinstance(error, Exception):
        # SystemExit and its like ask the process to end; the attempt is over, the node is not.
        return make_error("worker_died", f"the handler raised {type(error).__qualname__}: {message}", text), None, False
    return make_error(type(error).__qualname__, message, text), None, False
