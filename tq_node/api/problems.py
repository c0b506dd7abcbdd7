"""Errors as answers: ``application/problem+json`` (RFC 9457), from one table, never HTML and never a traceback."""

from __future__ import annotations

import math

import msgspec
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from tq_node import errors
from tq_node.api.http.exchange import Exchange
from tq_node.errors import TaskQueueError
from tq_node.observe.log import EventLog

_log = EventLog("taskqueue.api")

PROBLEM = b"application/problem+json"
DETAIL_CHARS_MAX = 1_000
_READS = (b"GET", b"HEAD")


class Problem(msgspec.Struct, omit_defaults=True):
    """Why a request was refused or failed; ``code`` is a stable word, ``field`` a JSON Pointer into the body."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    field: str | None = None
    task_id: str | None = None


class ItemError(msgspec.Struct, omit_defaults=True):
    """Why one item of a batch was refused."""

    code: str
    status: int
    title: str
    detail: str
    field: str | None = None
    task_id: str | None = None


class NoSuchRoute(TaskQueueError):
    status, code, title = 404, "not_found", "No such page"


class WrongMethod(TaskQueueError):
    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, detail: str, allowed: list[str]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class SubmitNotConfirmed(errors.NotConfirmed):
    """A submit under the caller's own id whose outcome is not known: unlike one without, it is safe to send again."""

    title = "Submit not confirmed in time"


class PeerUnreachable(TaskQueueError):
    """Another node that this had to go to was not there, or refused this node; nothing was done. Also stands for what nodes
    refuse one another and callers have no word for."""

    status, code, title, retryable = 503, "peer_unreachable", "Another node could not be asked", True


class Unexpected(TaskQueueError):
    """Stands for an error that nobody meant to let out. What it was is in the log, under the request's id."""


PROBLEM_KINDS: tuple[type[TaskQueueError], ...] = (
    errors.Malformed,
    errors.BadParameter,
    errors.CrossOrigin,
    errors.Denied,
    errors.Misdirected,
    NoSuchRoute,
    errors.NoSuchTask,
    errors.NoSuchNode,
    errors.NoSuchPartition,
    WrongMethod,
    errors.IdConflict,
    errors.IdTooOld,
    errors.AlreadyFinal,
    errors.NotRetryable,
    errors.NotFinal,
    errors.LastNode,
    errors.ClusterRefused,
    errors.StaleAttempt,
    errors.HandlersUnusable,
    errors.TaskPurged,
    errors.BodyTooLarge,
    errors.PayloadTooLarge,
    errors.NotJson,
    errors.UnknownField,
    errors.MissingField,
    errors.InvalidField,
    errors.Busy,
    Unexpected,
    errors.NotPrimary,
    errors.NotActive,
    errors.NotReady,
    errors.Draining,
    errors.NotEnoughReplicas,
    errors.NoController,
    errors.NotConfirmed,
    errors.DiskReserve,
    errors.Upgrading,
    PeerUnreachable,
    errors.OutcomeUnknown,
)
"""Every kind that a caller may meet; ``/problems/<code>`` explains each."""
_CODES = frozenset(kind.code for kind in PROBLEM_KINDS)

_encode = msgspec.json.Encoder().encode


def public_error(error: TaskQueueError, *, changes: bool) -> TaskQueueError:
    """The error as callers may know it. Errors of rooms below, and of other nodes, may have kinds that are not in the table.

    :param changes: whether the call was to change something. If so, what is not definite is an unknown outcome, whatever it was
        that hid it. What only reads has no outcome: it was not proven, and may be asked again.
    """
    if not error.definite:
        if changes:
            known = isinstance(error, errors.OutcomeUnknown)
            return error if known else errors.OutcomeUnknown(error.detail, task_id=error.task_id)
        if error.code != Unexpected.code:
            return errors.NotConfirmed(error.detail, task_id=error.task_id)
    if error.code not in _CODES and error.status >= 500:
        return PeerUnreachable(error.detail, task_id=error.task_id, retry_after_s=error.retry_after_s)
    return error


def problem_of(error: TaskQueueError, request_id: str | None) -> Problem:
    return Problem(
        type=f"/problems/{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail[:DETAIL_CHARS_MAX],
        code=error.code,
        request_id=request_id,
        field=getattr(error, "field", None),
        task_id=error.task_id,
    )


def item_error(error: TaskQueueError) -> ItemError:
    """The same for one item of a batch."""
    error = public_error(error, changes=True)
    return ItemError(
        code=error.code,
        status=error.status,
        title=error.title,
        detail=error.detail[:DETAIL_CHARS_MAX],
        field=getattr(error, "field", None),
        task_id=error.task_id,
    )


def answer_error(request: Exchange, error: TaskQueueError) -> None:
    """Answer the request with the error. Does nothing where the client has gone."""
    error = public_error(error, changes=request.method not in _READS)
    request.answer(
        error.status,
        _encode(problem_of(error, request.request_id.decode("ascii"))),
        content_type=PROBLEM,
        extra=headers_of(error),
    )


def answer_failure(request: Exchange, failure: Failure) -> None:
    """The last stop of every failed request: Klein's error handler. Logs what nobody expected, once."""
    if request.gone:
        # The client hung up, and its own call was cancelled for it. There is nobody to tell.
        if not failure.check(CancelledError, TaskQueueError, HTTPException):
            _log_unexpected(request, failure)
        return
    answer_error(request, _as_error(request, failure))


def _as_error(request: Exchange, failure: Failure) -> TaskQueueError:
    error = failure.value
    if isinstance(error, TaskQueueError):
        return error
    if isinstance(error, MethodNotAllowed):
        allowed = sorted(error.valid_methods or ())
        return WrongMethod(f"{_shown(request.path)} takes {', '.join(allowed)}", allowed)
    if isinstance(error, NotFound | RequestRedirect):
        return NoSuchRoute(f"there is no {_shown(request.path)}")
    if isinstance(error, HTTPException):
        return errors.Malformed("the request can't be routed")
    _log_unexpected(request, failure)
    return Unexpected("an error on the server; its log has the details under this request id")


def _log_unexpected(request: Exchange, failure: Failure) -> None:
    _log.failure(
        "request_failed",
        "request {request_id} {method} {path} failed",
        failure,
        request_id=request.request_id.decode("ascii"),
        method=request.method.decode("latin-1"),
        path=_shown(request.path),
    )


def headers_of(error: TaskQueueError) -> bytes:
    """Header lines that belong to the error, each with its line end."""
    if isinstance(error, WrongMethod):
        return b"Allow: %b\r\n" % ", ".join(error.allowed).encode("latin-1")
    if error.retry_after_s is not None:
        return b"Retry-After: %d\r\n" % max(1, math.ceil(error.retry_after_s))
    return b""


def _shown(path: bytes) -> str:
    return path[:200].decode("latin-1")
