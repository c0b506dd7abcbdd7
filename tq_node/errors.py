"""Every error that crosses a room, with what its receiver may conclude.

``definite``: the call was not carried out and will not be. ``retryable``: the same call may succeed
later. ``status``, ``code`` and ``title`` are those of HTTP (docs/reference/http-api.md)."""

from __future__ import annotations

from typing import ClassVar

from tq_node import limits


class TaskQueueError(Exception):
    """Base of all. ``detail`` is one sentence for a person, never with a traceback or a secret."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    definite: ClassVar[bool] = True
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "", *, task_id: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.task_id = task_id
        self.retry_after_s = (
            retry_after_s if retry_after_s is not None else (limits.RETRY_AFTER_S if self.retryable else None)
        )


# --- refused: the request itself is wrong ---
class Malformed(TaskQueueError):
    status, code, title = 400, "malformed", "Malformed request"


class BadParameter(TaskQueueError):
    """A query parameter is missing or wrong."""

    status, code, title = 400, "bad_parameter", "Bad query parameter"


class FieldError(TaskQueueError):
    """One field of a JSON body is wrong. ``field`` is a JSON Pointer (RFC 6901)."""

    status, title = 422, "Invalid field"

    def __init__(self, detail: str, *, field: str, task_id: str | None = None) -> None:
        super().__init__(detail, task_id=task_id)
        self.field = field


class UnknownField(FieldError):
    code, title = "unknown_field", "Unknown field"


class MissingField(FieldError):
    code, title = "missing_field", "Missing field"


class InvalidField(FieldError):
    code, title = "invalid_field", "Invalid field"


class BodyTooLarge(TaskQueueError):
    status, code, title = 413, "body_too_large", "Body too large"


class PayloadTooLarge(TaskQueueError):
    status, code, title = 413, "payload_too_large", "Payload too large"


class NotJson(TaskQueueError):
    status, code, title = 415, "not_json", "Not JSON"


class CrossOrigin(TaskQueueError):
    """A page of another site makes its reader's browser ask for a change here."""

    status, code, title = 403, "cross_origin", "Request from another site"


class Misdirected(TaskQueueError):
    """The request names a host that is not this node's, as pages elsewhere do (DNS rebinding)."""

    status, code, title = 421, "misdirected", "Not a name of this node"


class NoSuchTask(TaskQueueError):
    status, code, title = 404, "not_found", "No such task"


class NoSuchNode(TaskQueueError):
    status, code, title = 404, "not_found", "No such node"


class NoSuchPartition(TaskQueueError):
    status, code, title = 404, "not_found", "No such partition"


class NoSuchToken(TaskQueueError):
    status, code, title = 404, "not_found", "No such token"


class NoSuchType(TaskQueueError):
    status, code, title = 404, "not_found", "Nothing is known of the type"


class TaskPurged(TaskQueueError):
    status, code, title = 410, "task_purged", "Task purged"


class IdConflict(TaskQueueError):
    status, code, title = 409, "id_conflict", "Same id, other content"


class IdTooOld(TaskQueueError):
    status, code, title = 409, "id_too_old", "Id too old"


class AlreadyFinal(TaskQueueError):
    status, code, title = 409, "already_final", "Task has already ended"


class NotFinal(TaskQueueError):
    """``purge`` of a task that has not ended."""

    status, code, title = 409, "not_final", "Task has not ended"


class NotRetryable(TaskQueueError):
    """``retry`` of a task that has neither failed nor been cancelled."""

    status, code, title = 409, "not_retryable", "Only a failed or cancelled task can be retried"


class LastNode(TaskQueueError):
    """A drain or a removal that would leave the cluster without a node."""

    status, code, title = 409, "last_node", "The cluster has no other node"


class ClusterRefused(TaskQueueError):
    """The cluster map does not allow the change; ``detail`` says why."""

    status, code, title = 409, "refused", "Refused by the cluster"


class Unauthorized(TaskQueueError):
    """The caller shows no token that is valid."""

    status, code, title = 401, "unauthorized", "A valid token is needed"

    def __init__(
        self,
        detail: str = "",
        *,
        reason: str = "unknown",
        task_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """:param reason: one of a few words for metrics; ``missing``: none was shown."""
        super().__init__(detail, task_id=task_id, retry_after_s=retry_after_s)
        self.reason = reason


class Denied(TaskQueueError):
    status, code, title = 403, "denied", "Not allowed"


class StaleAttempt(TaskQueueError):
    """Another claim holds the task, or it has ended: reports with this token count no more."""

    status, code, title = 409, "stale_attempt", "Attempt no longer holds the task"


class HandlersUnusable(TaskQueueError):
    """The node's handler modules could not be reloaded; the earlier handlers go on."""

    status, code, title = 409, "handlers_unusable", "Handlers could not be loaded"


# --- refused for now: nothing was done, the same call may succeed later ---
class Busy(TaskQueueError):
    status, code, title, retryable = 429, "busy", "Too busy", True


class NotPrimary(TaskQueueError):
    status, code, title, retryable = 503, "not_primary", "Not the primary", True


class NotActive(TaskQueueError):
    status, code, title, retryable = 503, "not_active", "Partition not active", True


class NotReady(TaskQueueError):
    status, code, title, retryable = 503, "not_ready", "Node not ready", True


class Draining(TaskQueueError):
    status, code, title, retryable = 503, "draining", "Node is stopping", True


class NotEnoughReplicas(TaskQueueError):
    status, code, title, retryable = 503, "not_enough_replicas", "Not enough in-sync copies", True


class NoController(TaskQueueError):
    status, code, title, retryable = 503, "no_controller", "No leader", True


class NotConfirmed(TaskQueueError):
    status, code, title, retryable = 503, "not_confirmed", "Read could not be proven fresh", True


class Upgrading(TaskQueueError):
    """Not every node knows the feature (``detail``): the cluster is being upgraded (F44)."""

    status, code, title, retryable = 503, "upgrading", "Not every node knows this yet", True


class DiskReserve(TaskQueueError):
    status, code, title, retryable = 503, "disk_full", "Disk nearly full", True


# --- unknown: it may have happened ---
class OutcomeUnknown(TaskQueueError):
    """Appended, not known to be committed in time: ask by the task's id, or send again with it."""

    status, code, title, definite = 504, "outcome_unknown", "Outcome unknown", False


# --- broken: the process must stop ---
class StoreBroken(Exception):
    """The store failed to write, sync or commit (R18) or is damaged; the process ends (code 74)."""


class Unsound(Exception):
    """A peer broke the protocol: its message was dropped, and this node goes on."""


class Divergence(Exception):
    """This copy is not what the log says: a wrong revision, or a log against what is committed."""
