"""``/work/…``: remote workers claim tasks, extend their leases and end their attempts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from tq_node import attempt_token, errors, limits
from tq_node.api.access.access import Access, Caller
from tq_node.api.access.scope import must_be_its_queue
from tq_node.api.http.exchange import Exchange
from tq_node.api.http.media import JSON_TYPE, refuse_encoded, takes_lines
from tq_node.api.json_pointer import refusal
from tq_node.api.names import NAME_PATTERN, refuse_unshown
from tq_node.api.problems import ItemError, PeerUnreachable, item_error
from tq_node.api.query import NoParameters, read_query
from tq_node.api.requests import Payloads, QueueText, TypeText, Whole
from tq_node.api.responses import seconds, time_text
from tq_node.api.routes import Answer, Route
from tq_node.errors import InvalidField, MissingField, NoSuchTask, StaleAttempt, TaskQueueError
from tq_node.facade import (
    AttemptFailed,
    Claim,
    Completed,
    Extended,
    HeldAttempt,
    Notes,
    Outcome,
    Released,
    TaskQueue,
    WorkerAsk,
    WorkerGrant,
)
from tq_node.tokens import Asker
from tq_node.types import LogLine, Progress, TaskError

WorkerText = Annotated[
    str, Meta(min_length=1, max_length=limits.WORKER_CHARS_MAX, extra_json_schema={"pattern": NAME_PATTERN})
]
_IdText = Annotated[str, Meta(max_length=limits.TASK_ID_CHARS_MAX)]
_TokenText = Annotated[str, Meta(max_length=attempt_token.CHARS_MAX, description="as the claim has it; opaque")]
_WEIGHT_MAX = 100
_Weight = Annotated[Whole, Meta(ge=1, le=_WEIGHT_MAX)]
_LogText = Annotated[str, Meta(max_length=4 * limits.LOG_LINE_CHARS_MAX)]
_Fraction = Annotated[float, Meta(ge=0, le=1)]
Body = TypeVar("Body", bound=msgspec.Struct)


class ClaimRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker asks for. Times in seconds."""

    worker: WorkerText
    claim_id: (
        Annotated[
            str,
            Meta(min_length=1, max_length=limits.CLAIM_ID_CHARS_MAX, description="the same again: the same claims"),
        ]
        | None
    ) = None
    types: Annotated[list[TypeText], Meta(max_length=limits.HANDLED_TYPES_MAX, description="not given: any")] | None = (
        None
    )
    queues: (
        Annotated[list[QueueText], Meta(min_length=1, max_length=100, description="served in this order")]
        | Annotated[
            dict[QueueText, _Weight], Meta(min_length=1, max_length=100, description="served in turn by weight")
        ]
        | None
    ) = None
    limit: Annotated[Whole, Meta(ge=1, le=limits.WORKER_CLAIMS_MAX)] = 16
    wait: Annotated[float, Meta(ge=0, le=limits.WORKER_WAIT_S_MAX)] = 30
    lease: Annotated[float, Meta(ge=limits.WORKER_LEASE_MS_MIN / 1000, le=limits.WORKER_LEASE_MS_MAX / 1000)] = 15
    slots: Annotated[Whole, Meta(ge=0, le=10**6, description="how many it can run; shown to operators")] | None = None
    version: Annotated[str, Meta(max_length=100, description="of its code; shown to operators")] | None = None


class ClaimOut(msgspec.Struct, omit_defaults=True):
    """A claimed task. ``lease`` counts from when the request was sent, plus ``waited``."""

    task_id: str
    type: str
    queue: str
    payload: msgspec.Raw
    attempt: int
    max_attempts: int
    token: str
    lease: float
    created_at: str
    timeout: float | UnsetType = UNSET
    deadline: str | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET


class ClaimAnswer(msgspec.Struct):
    """``state``: what operators want of the worker. ``waited``: seconds that the node held it."""

    state: Literal["run", "quiet", "stop"]
    claims: list[ClaimOut]
    waited: float


class ProgressIn(msgspec.Struct, forbid_unknown_fields=True):
    fraction: _Fraction
    note: Annotated[str, Meta(max_length=limits.PROGRESS_NOTE_CHARS_MAX)] | None = None


class ExtendItem(msgspec.Struct, forbid_unknown_fields=True):
    """An attempt that goes on, and what its handler has said since the last time."""

    task_id: _IdText
    token: _TokenText
    progress: ProgressIn | _Fraction | None = None
    log: Annotated[list[_LogText], Meta(max_length=limits.LOG_LINES_MAX)] | None = None


class ExtendRequest(msgspec.Struct, forbid_unknown_fields=True):
    worker: WorkerText
    claims: Annotated[list[ExtendItem], Meta(max_length=limits.WORKER_CLAIMS_MAX)]


class ExtendResult(msgspec.Struct, omit_defaults=True):
    """``lease``: seconds from when the request was sent. ``cancelled``: end the handler."""

    lease: float | UnsetType = UNSET
    cancelled: bool | UnsetType = UNSET
    error: ItemError | UnsetType = UNSET


class ExtendAnswer(msgspec.Struct):
    results: list[ExtendResult]


class ErrorIn(msgspec.Struct, forbid_unknown_fields=True):
    """Cut to the bounds that are kept."""

    type: Annotated[str, Meta(max_length=1_000)]
    message: Annotated[str, Meta(max_length=64 * limits.KIB)] = ""
    traceback: Annotated[str, Meta(max_length=256 * limits.KIB)] | None = None


class FinishItem(msgspec.Struct, forbid_unknown_fields=True):
    """How an attempt ended. ``retry_in``: seconds, in place of the task's backoff; ``final``: no
    further attempt. ``released``: given back, it counts for nothing."""

    task_id: _IdText
    token: _TokenText
    outcome: Literal["completed", "failed", "released"]
    result: Annotated[msgspec.Raw, Meta(description="any JSON value, of a completed one")] = None  # type: ignore[assignment]
    error: ErrorIn | None = None
    retry_in: Annotated[float, Meta(ge=0, le=limits.BACKOFF_S_MAX)] | None = None
    final: bool = False
    progress: ProgressIn | _Fraction | None = None
    log: Annotated[list[_LogText], Meta(max_length=limits.LOG_LINES_MAX)] | None = None


class FinishRequest(msgspec.Struct, forbid_unknown_fields=True):
    worker: WorkerText
    claims: Annotated[list[FinishItem], Meta(max_length=limits.WORKER_CLAIMS_MAX)]


class FinishResult(msgspec.Struct, omit_defaults=True):
    success: bool | UnsetType = UNSET
    error: ItemError | UnsetType = UNSET


class FinishAnswer(msgspec.Struct):
    results: list[FinishResult]


_encode = msgspec.json.Encoder().encode
_BODY_ERRORS = (errors.BodyTooLarge, errors.NotJson, errors.UnknownField, errors.MissingField, errors.InvalidField)
_WORK_ERRORS = (
    errors.Upgrading,
    errors.NotReady,
    errors.Draining,
    errors.Busy,
    PeerUnreachable,
)


class WorkRoutes:
    """Routes below ``/work``."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._results = Payloads(limits.RESULT_BYTES_MAX, "result")

    # --- claim ---
    def claim(self, request: Exchange) -> Deferred[None]:
        request.changed = None  # until it has brought something
        sent = _sent(request, ClaimRequest)
        refuse_unshown("worker", sent.worker, "")
        for field, names in (("types", sent.types), ("queues", sent.queues)):
            for place, name in enumerate(names or ()):
                refuse_unshown(str(place) if isinstance(names, list) else name, name, f"/{field}")
        ask = WorkerAsk(
            sent.worker,
            round(sent.lease * 1000),
            sent.claim_id or "",
            None if sent.types is None else tuple(dict.fromkeys(sent.types)),
            _queues(sent, request.caller),
            isinstance(sent.queues, dict),
        )
        if sent.wait > 0:
            # It holds next to nothing and is bounded apart, so it takes no place of other requests.
            request.leave_flight()
            request.route = "/work/claim?wait"
        slots = 0 if sent.slots is None else int(sent.slots)
        granted = self._queue.claim_for(ask, int(sent.limit), sent.wait, slots=slots, version=sent.version or "")
        return granted.addCallback(self._answer_claims, request, ask.lease_ms)

    def _answer_claims(self, grant: WorkerGrant, request: Exchange, lease_ms: int) -> None:
        request.changed = [claim.task_id for claim in grant.claims] or None
        claims = [_claim_out(claim, lease_ms) for claim in grant.claims]
        request.answer(200, _encode(ClaimAnswer(_state(grant.state), claims, round(grant.waited_s, 3))))

    # --- extend ---
    async def extend(self, request: Exchange) -> None:
        request.changed = None  # a lease is no change
        sent = _sent(request, ExtendRequest)
        refuse_unshown("worker", sent.worker, "")
        pace = request.server.slices.pace(request.route)
        results: list[ExtendResult] = [ExtendResult() for _ in sent.claims]
        held: list[tuple[int, HeldAttempt]] = []
        for place, item in enumerate(sent.claims):
            try:
                held.append((place, _held(item.task_id, item.token, place)))
            except TaskQueueError as why:
                results[place].error = item_error(why)
        held = [one for one in held if one[0] not in await self._foreign(request.caller, held, results)]
        noting = [self._note(sent.claims[place], one) for place, one in held]
        extended = await self._queue.extend(sent.worker, [one for _, one in held])
        await gatherResults([noted for noted in noting if noted is not None])
        for (place, one), outcome in zip(held, extended, strict=True):
            if pace.is_over():
                await pace.turn()
            results[place] = _extend_result(outcome, one)
        request.answer(200, _encode(ExtendAnswer(results)))

    def _note(self, item: ExtendItem, held: HeldAttempt) -> Deferred[Any] | None:
        """Keep what a handler said; a failure shows with its lease, or with the next extend."""
        notes = _notes(item)
        return None if notes is None else self._queue.note(_claim_of(held), notes).addErrback(_is_refused)

    # --- finish ---
    async def finish(self, request: Exchange) -> None:
        sent = _sent(request, FinishRequest)
        refuse_unshown("worker", sent.worker, "")
        pace = request.server.slices.pace(request.route)
        results: list[FinishResult | ExtendResult] = [FinishResult() for _ in sent.claims]
        ready: list[tuple[int, HeldAttempt]] = []
        outcomes: dict[int, Outcome] = {}
        for place, item in enumerate(sent.claims):
            if pace.is_over():
                await pace.turn()
            try:
                outcomes[place] = self._outcome(item, place)
                ready.append((place, _held(item.task_id, item.token, place)))
            except TaskQueueError as why:
                results[place].error = item_error(why)
        ready = [one for one in ready if one[0] not in await self._foreign(request.caller, ready, results)]
        finished = []
        for place, held in ready:
            if pace.is_over():
                await pace.turn()
            ended = self._queue.finish(_claim_of(held), outcomes[place], _notes(sent.claims[place]))
            finished.append(ended.addCallbacks(lambda _: None, _as_error))
        for (place, _), refused in zip(ready, await gatherResults(finished), strict=True):
            done = FinishResult(success=True)
            results[place] = done if refused is None else FinishResult(error=item_error(refused))
        request.changed = [held.task_id for _, held in ready] or None
        request.answer(200, _encode({"results": results}))

    def _outcome(self, item: FinishItem, place: int) -> Outcome:
        at = f"/claims/{place}"
        if item.outcome == "released":
            return Released()
        if item.outcome == "completed":
            raw = msgspec.Raw(b"null") if item.result is None else item.result
            return Completed(self._results.parse(raw, at)[1])
        if item.error is None:
            raise MissingField("error: a failed attempt says why", field=f"{at}/error")
        retry_in_ms = None if item.retry_in is None else math.ceil(item.retry_in * 1000)
        return AttemptFailed(_error(item.error), retry_in_ms, item.final)

    async def _foreign(
        self,
        caller: Caller,
        held: Sequence[tuple[int, HeldAttempt]],
        results: Sequence[FinishResult | ExtendResult],
    ) -> set[int]:
        """Places of tasks that a narrowed token may not know of; each is answered as if there were
        none."""
        if caller.queues is None:
            return set()
        asker = Asker(caller.name, tuple(sorted(caller.queues)))
        reads = [self._queue.get(one.task_id, asker=asker).addCallbacks(lambda _: None, _as_error) for _, one in held]
        refused = set()
        for (place, _), why in zip(held, await gatherResults(reads), strict=True):
            if why is not None:
                results[place].error = item_error(StaleAttempt() if isinstance(why, NoSuchTask) else why)
                refused.add(place)
        return refused

    # --- the route table ---
    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/work/claim",
                Access.WORK,
                self.claim,
                "Claim tasks of the whole cluster for a worker; waits until there are some",
                {200: Answer("what it may run", ClaimAnswer)},
                bodies={"application/json": ClaimRequest},
                errors=(*_BODY_ERRORS, errors.Denied, *_WORK_ERRORS),
            ),
            Route(
                "POST",
                "/work/extend",
                Access.WORK,
                self.extend,
                "Extend the leases of attempts that go on; says which were cancelled",
                {200: Answer("one result for each, in order", ExtendAnswer)},
                bodies={"application/json": ExtendRequest},
                errors=(*_BODY_ERRORS, *_WORK_ERRORS),
            ),
            Route(
                "POST",
                "/work/finish",
                Access.WORK,
                self.finish,
                "End attempts; safe to send again",
                {200: Answer("one result for each, in order", FinishAnswer)},
                bodies={"application/json": FinishRequest},
                errors=(*_BODY_ERRORS, *_WORK_ERRORS),
            ),
        ]


# --- from bodies ---
def _sent(request: Exchange, kind: type[Body]) -> Body:
    read_query(request, NoParameters)
    body = request.body()
    takes_lines(request.getHeader(b"content-type") or JSON_TYPE, body, ndjson=False)
    refuse_encoded(request.getHeader(b"content-encoding"))
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as why:
        raise refusal(body, kind, why) from None


def _queues(sent: ClaimRequest, caller: Caller) -> tuple[tuple[str, int], ...] | None:
    """The queues of the request, each with its weight, and no others than the caller's.

    :raises Denied: it names one that is not the caller's."""
    if sent.queues is None:
        return None if caller.queues is None else tuple((queue, 1) for queue in sorted(caller.queues))
    for queue in sent.queues:
        must_be_its_queue(caller, queue)
    if isinstance(sent.queues, dict):
        return tuple((queue, int(weight)) for queue, weight in sent.queues.items())
    return tuple((queue, 1) for queue in dict.fromkeys(sent.queues))


def _held(task_id: str, token: str, place: int) -> HeldAttempt:
    """The attempt that a token of ours means; raises ``InvalidField``: it is none."""
    try:
        read = attempt_token.read(token)
    except ValueError:  # msgspec's are such
        raise InvalidField("token: no token of a claim", field=f"/claims/{place}/token") from None
    return HeldAttempt(task_id, read.partition, read.attempt, read.token)


def _claim_of(held: HeldAttempt) -> Claim:
    """What the queue needs of a claim to book news of its attempt."""
    return Claim(held.task_id, "", b"", held.partition, held.attempt, held.token, None)


def _notes(item: ExtendItem | FinishItem) -> Notes | None:
    progress = None
    if isinstance(item.progress, ProgressIn):
        progress = Progress(item.progress.fraction, item.progress.note)
    elif item.progress is not None:
        progress = Progress(item.progress)
    if progress is None and not item.log:
        return None
    now_us = int(time.time() * 1e6)
    lines = tuple(LogLine(now_us, _bounded(line, limits.LOG_LINE_CHARS_MAX)) for line in item.log or ())
    return Notes(progress, lines)


def _error(sent: ErrorIn) -> TaskError:
    return TaskError(
        _bounded(sent.type, limits.ERROR_TYPE_CHARS_MAX),
        _bounded(sent.message, limits.ERROR_MESSAGE_CHARS_MAX),
        None if sent.traceback is None else sent.traceback[-limits.ERROR_TRACEBACK_CHARS_MAX :],
    )


def _bounded(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


# --- to answers ---
def _state(state: str) -> Literal["run", "quiet", "stop"]:
    return state if state in ("quiet", "stop") else "run"  # type: ignore[return-value]  # as was just looked at


def _claim_out(claim: Claim, lease_ms: int) -> ClaimOut:
    out = ClaimOut(
        claim.task_id,
        claim.task_type,
        claim.queue,
        msgspec.Raw(claim.payload),
        claim.attempt,
        claim.max_attempts,
        attempt_token.text_of(claim.partition, claim.attempt, claim.token),
        seconds(lease_ms),
        time_text(claim.created_us),
    )
    if claim.timeout_ms is not None:
        out.timeout = seconds(claim.timeout_ms)
        out.deadline = time_text(int(time.time() * 1e6) + claim.timeout_ms * 1000)
    if claim.tags:
        out.tags = claim.tags
    return out


def _extend_result(outcome: Extended | TaskQueueError, held: HeldAttempt) -> ExtendResult:
    if isinstance(outcome, TaskQueueError):
        return ExtendResult(error=item_error(outcome))
    if outcome.lease_ms > 0:
        return ExtendResult(lease=seconds(outcome.lease_ms))
    if outcome.is_cancelled:
        return ExtendResult(cancelled=True)
    return ExtendResult(error=item_error(StaleAttempt(task_id=held.task_id)))


def _as_error(why: Failure) -> TaskQueueError:
    why.trap(TaskQueueError)
    assert isinstance(why.value, TaskQueueError)
    return why.value


def _is_refused(why: Failure) -> None:
    why.trap(TaskQueueError)
