"""Errors as answers: ``application/problem+json`` (RFC 9457), never HTML and never a traceback."""

from __future__ import annotations

import math

import msgspec
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from tq_node import errors
from tq_node.api.http.concurrency_limit import TOO_MANY
from tq_node.api.http.exchange import Exchange, head_of, whole_head
from tq_node.api.http.server_state import ServerState
from tq_node.api.http.token_quotas import OverQuota
from tq_node.errors import TaskQueueError
from tq_node.facade import JOIN_SCHEME
from tq_node.observe.log import EventLog

_log = EventLog("taskqueue.api")

PROBLEM = b"application/problem+json"
DETAIL_CHARS_MAX = 1_000
_READS = (b"GET", b"HEAD")
_CHALLENGE = b'WWW-Authenticate: Bearer realm="taskqueue"\r\n'
_CHALLENGE_INVALID = b'WWW-Authenticate: Bearer realm="taskqueue", error="invalid_token"\r\n'
"""Where something was shown (RFC 6750, section 3)."""


class Problem(msgspec.Struct, omit_defaults=True):
    """Why a request failed; ``code`` is a stable word, ``field`` a JSON Pointer into the body."""

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
    """No route has this path."""

    status, code, title = 404, "not_found", "No such page"


class NoAuditLog(TaskQueueError):
    """The node was started without ``--audit-log``."""

    status, code, title = 404, "no_audit_log", "No audit log"


class WrongMethod(TaskQueueError):
    """The path has a route, but not for this method."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, detail: str, allowed: list[str]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class JoinDenied(errors.Denied):
    """``challenge``: over which the caller may prove the cluster's secret instead."""

    def __init__(self, detail: str, challenge: str) -> None:
        super().__init__(detail)
        self.challenge = challenge


class SubmitNotConfirmed(errors.NotConfirmed):
    """The outcome of a submit with the caller's id is unknown: it is safe to send it again."""

    title = "Submit not confirmed in time"


class PeerUnreachable(TaskQueueError):
    """Another node that the call needs is unreachable or refuses this node; nothing was done. Also
    stands for refusals between nodes that the HTTP API has no code for."""

    status, code, title, retryable = 503, "peer_unreachable", "Another node could not be asked", True


class Unexpected(TaskQueueError):
    """A bug: an error that no handler meant to raise. The log has it, with the request's id."""


PROBLEM_KINDS: tuple[type[TaskQueueError], ...] = (
    errors.Malformed,
    errors.BadParameter,
    errors.CrossOrigin,
    errors.Unauthorized,
    errors.Denied,
    errors.Misdirected,
    NoSuchRoute,
    errors.NoSuchTask,
    errors.NoSuchNode,
    errors.NoSuchPartition,
    errors.NoSuchToken,
    errors.NoSuchType,
    NoAuditLog,
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
    OverQuota,
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
"""Every kind of error in an answer; ``/problems/<code>`` explains each."""
_CODES = frozenset(kind.code for kind in PROBLEM_KINDS)

_encode = msgspec.json.Encoder().encode


def public_error(error: TaskQueueError, *, changes: bool) -> TaskQueueError:
    """The error as the HTTP API publishes it, one of ``PROBLEM_KINDS``.

    Errors of lower layers, and of other nodes, may have other kinds.

    :param changes: whether the call was to change something. If so, an error that is not definite
        becomes ``OutcomeUnknown``. A read has no outcome: it becomes ``NotConfirmed``."""
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
    """The error of one item of a batch, as the HTTP API publishes it."""
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
    """Answer the request with the error. Does nothing if the client is gone."""
    error = public_error(error, changes=request.method not in _READS)
    if isinstance(error, OverQuota):
        request.server.metrics.over_quota(error.quota)
    request.answer(
        error.status,
        _encode(problem_of(error, request.request_id.decode("ascii"))),
        content_type=PROBLEM,
        extra=headers_of(error),
    )


def refused_submit_answer(server: ServerState, request_id: bytes) -> bytes:
    """The bytes that refuse a submit for want of room (``TOO_MANY``); cheap to make."""
    # An id holds nothing that JSON would escape, and stands last.
    body = b'%b,"request_id":"%b"}' % (_TOO_MANY_BODY, request_id)
    extra = b"Connection: close\r\n" if server.closing else b""
    return whole_head(TOO_MANY.status, PROBLEM, server.date(), request_id, body, _TOO_MANY_EXTRA + extra) + body


def closing_answer(server: ServerState, error: TaskQueueError, request_id: bytes) -> bytes:
    """The bytes of a whole answer with ``Connection: close``, for what can't become a request."""
    body = _encode(problem_of(error, request_id.decode("ascii")))
    if isinstance(error, OverQuota):
        server.metrics.over_quota(error.quota)
    return b"%bDate: %b\r\nX-Request-Id: %b\r\nContent-Length: %d\r\n%bConnection: close\r\n\r\n%b" % (
        head_of(error.status, PROBLEM),
        server.date(),
        request_id,
        len(body),
        headers_of(error),
        body,
    )


def answer_failure(request: Exchange, failure: Failure) -> None:
    """Answer what a handler raised; an error that no handler meant to raise is logged, once."""
    if request.gone:
        # The client hung up, which cancelled the handler: an answer would reach nobody.
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
    """Header lines for the error (``Allow`` and the like), each with its line end."""
    if isinstance(error, errors.Unauthorized):
        return _CHALLENGE if error.reason == "missing" else _CHALLENGE_INVALID
    if isinstance(error, JoinDenied):
        return f'WWW-Authenticate: {JOIN_SCHEME} challenge="{error.challenge}"\r\n'.encode("ascii")
    if isinstance(error, WrongMethod):
        return b"Allow: %b\r\n" % ", ".join(error.allowed).encode("latin-1")
    quota = error.headers if isinstance(error, OverQuota) else b""
    if error.retry_after_s is not None:
        return b"%bRetry-After: %d\r\n" % (quota, max(1, math.ceil(error.retry_after_s)))
    return b""


def _shown(path: bytes) -> str:
    return path[:200].decode("latin-1")


_TOO_MANY_BODY = _encode(problem_of(TOO_MANY, None))[:-1]
_TOO_MANY_EXTRA = headers_of(TOO_MANY)
