"""``/tasks/…``: parse, call the queue, render.

The most called handlers are plain functions that return the queue's Deferred: a coroutine would
cost each call several microseconds more."""

from __future__ import annotations

import time

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node import errors, limits
from tq_node.api.access.access import UNCHECKED, Access, Caller
from tq_node.api.access.field_rules import FieldRules
from tq_node.api.access.redaction import shown
from tq_node.api.access.scope import must_be_for_all_queues, must_be_its_queue
from tq_node.api.batches import TaskIds, answer_batch, has_own_id, hides_outcome, submit_parts
from tq_node.api.http.concurrency_limit import TOO_MANY_READS
from tq_node.api.http.exchange import Exchange
from tq_node.api.http.media import JSON_TYPE, NDJSON, refuse_encoded, takes_lines
from tq_node.api.problems import PeerUnreachable, SubmitNotConfirmed
from tq_node.api.query import (
    ListParameters,
    PauseParameters,
    ResumeParameters,
    ScopeParameters,
    StatusParameters,
    TaskParameters,
    only_dead,
    only_its_queues,
    read_query,
    to_list_query,
    write_cursor,
)
from tq_node.api.requests import IDEMPOTENCY_KEY_SCHEMA, BatchRequest, Bodies, SubmitRequest, idempotency_key
from tq_node.api.responses import (
    BatchAnswer,
    ListAnswer,
    PauseDone,
    StatsAnswer,
    Submitted,
    TaskDone,
    TaskOut,
    pause_done,
    state_counts,
    task_out,
)
from tq_node.api.routes import Answer, Route
from tq_node.api.settings import ApiSettings
from tq_node.api.signing import sign, sign_all
from tq_node.errors import NotJson, OutcomeUnknown
from tq_node.facade import Accepted, ListQuery, Read, Stats, Submission, TaskPage, TaskQueue
from tq_node.types import STATE_LABELS, PauseEntry, TaskRow

PURGED = "purged"
"""``status`` of a task that is purged and has no state any more."""

_encode = msgspec.json.Encoder().encode

_WRITE_ERRORS = (
    errors.Busy,
    errors.NotPrimary,
    errors.NotActive,
    errors.NotReady,
    errors.Draining,
    errors.NotEnoughReplicas,
    errors.NoController,
    errors.DiskReserve,
    PeerUnreachable,
    OutcomeUnknown,
)
_READ_ERRORS = (
    errors.Busy,
    errors.NotPrimary,
    errors.NotActive,
    errors.NotReady,
    errors.NotConfirmed,
    errors.Draining,
    errors.NoController,
    PeerUnreachable,
)
_BODY_ERRORS = (
    errors.BodyTooLarge,
    errors.PayloadTooLarge,
    NotJson,
    errors.UnknownField,
    errors.MissingField,
    errors.InvalidField,
)


class TaskRoutes:
    """Routes below ``/tasks``, but ``/tasks/events``."""

    def __init__(self, queue: TaskQueue, settings: ApiSettings, *, is_audited: bool = False) -> None:
        self._queue = queue
        self._is_audited = is_audited
        self._answer_submit = _answer_audited_submit if is_audited else _answer_submit
        self._rules = FieldRules(settings.redact)
        self._bodies = Bodies(settings.payload_bytes_max)
        self._waiting_max = settings.waiting_requests_max

    # --- submit ---
    def submit(self, request: Exchange) -> Deferred[None]:
        body = request.body()
        key = None
        if not request.is_plain_json:
            content_type = request.getHeader(b"content-type")
            if content_type is not None and content_type != JSON_TYPE:
                takes_lines(content_type, body, ndjson=False)
            refuse_encoded(request.getHeader(b"content-encoding"))
            header = request.getHeader(b"idempotency-key")
            key = None if header is None else idempotency_key(header)
        if len(body) > limits.LARGE_BODY_BYTES:
            return Deferred.fromCoroutine(self._submit_large(request, body, key))
        submission = self._bodies.submission(body, key)
        if request.caller is not UNCHECKED:
            sign(submission, request.caller, self._queue)
        submitted = self._queue.submit(submission)
        if self._is_audited and submission.id is not None:
            request.changed = (submission.id,)  # should it come to no answer, or be refused
        return submitted.addCallbacks(
            self._answer_submit, _explain_submit, callbackArgs=(request,), errbackArgs=(submission,)
        )

    async def _submit_large(self, request: Exchange, body: bytes, key: str | None) -> None:
        submission = await self._bodies.large_submission(body, key, request.server.slices.pace(request.route))
        if request.caller is not UNCHECKED:
            sign(submission, request.caller, self._queue)
        submitted = self._queue.submit(submission)
        if submission.id is not None:
            request.changed = (submission.id,)
        await submitted.addCallbacks(
            self._answer_submit, _explain_submit, callbackArgs=(request,), errbackArgs=(submission,)
        )

    async def batch(self, request: Exchange) -> None:
        body = request.body()
        ndjson = takes_lines(request.getHeader(b"content-type") or JSON_TYPE, body, ndjson=True)
        refuse_encoded(request.getHeader(b"content-encoding"))
        if request.getHeader(b"idempotency-key") is not None:
            # One key can't name many tasks; ignored, a batch sent again would double them.
            raise errors.Malformed("Idempotency-Key is not taken by a batch; give each task an id instead")
        pace = request.server.slices.pace(request.route)
        items = await (self._bodies.lines(body, pace) if ndjson else self._bodies.batch(body, pace))
        del body
        if request.caller is not UNCHECKED:
            await sign_all(items, request.caller, self._queue, pace)
        good = [item for item in items if isinstance(item, Submission)]
        request.changed = TaskIds(good)  # should it come to no answer
        results = await submit_parts(self._queue, good, pace)
        await answer_batch(results, request, items, pace)

    # --- one task ---
    def status(self, request: Exchange) -> Deferred[None]:
        task_id = request.task_id
        if task_id is not None:
            return self._queue.get(task_id, asker=request.caller.to_see).addCallback(self._answer_task, request)
        sent = read_query(request, StatusParameters)
        if sent.wait > 0.0:
            return self._wait(request, sent)
        found = self._queue.get(sent.id, local=sent.consistency == "local", asker=request.caller.to_see)
        return found.addCallback(self._answer_task, request)

    def _wait(self, request: Exchange, sent: StatusParameters) -> Deferred[None]:
        server = request.server
        if server.waiting >= self._waiting_max:
            raise errors.Busy("too many requests wait for tasks")
        caller = request.caller
        over = server.quotas.hold("waits", caller)
        if over is not None:
            raise over
        # A waiting request holds next to nothing, so it takes no place of requests in flight.
        server.waiting += 1
        request.leave_flight()
        request.route = "/tasks/status?wait"

        def stop_waiting(result: Read | Failure) -> Read | Failure:
            server.waiting -= 1
            server.quotas.give_back("waits", caller)
            return result

        def still_may(read: Read) -> Read:
            refusal = request.refusal_now()
            if refusal is not None:  # the token has expired, or was revoked, meanwhile
                raise refusal
            asker, spec = request.caller.to_see, read.row.spec
            if asker is not None and not asker.may_know(spec.queue, spec.made_by):
                raise errors.NoSuchTask("no task has this id", task_id=spec.id)
            return read

        asker = request.caller.to_see
        waiting = self._queue.get(sent.id, wait_s=sent.wait, local=sent.consistency == "local", asker=asker)
        return waiting.addBoth(stop_waiting).addCallback(still_may).addCallback(self._answer_task, request)

    def _answer_task(self, read: Read, request: Exchange) -> Deferred[None] | None:
        """Answer with a long task in a slice of its own: its many askers are answered at once."""
        row = read.row
        if len(row.spec.payload) + (0 if row.result is None else len(row.result)) <= limits.LARGE_BODY_BYTES:
            self._send_task(read, request)
            return None
        return request.server.slices.turn(request.route).addCallback(lambda _: self._send_task(read, request))

    def _send_task(self, read: Read, request: Exchange) -> None:
        row = read.row
        if not request.caller.sees_payloads:
            row = shown(row, request.caller)
        out = task_out(row, read.node, read.waits)
        if read.age_s is not None:
            out.age = read.age_s
        request.answer(200, _encode(out))

    def cancel(self, request: Exchange) -> Deferred[None]:
        task_id = read_query(request, TaskParameters).id
        return self._queue.cancel(task_id, request.caller.to_change).addCallbacks(
            _answer_change, _name_task, callbackArgs=(request,), errbackArgs=(task_id,)
        )

    def retry(self, request: Exchange) -> Deferred[None]:
        task_id = read_query(request, TaskParameters).id
        return self._queue.retry(task_id, request.caller.to_change).addCallbacks(
            _answer_change, _name_task, callbackArgs=(request,), errbackArgs=(task_id,)
        )

    def purge(self, request: Exchange) -> Deferred[None]:
        task_id = read_query(request, TaskParameters).id
        return self._queue.purge(task_id, request.caller.to_change).addCallbacks(
            _answer_purge, _name_task, callbackArgs=(request,), errbackArgs=(task_id,)
        )

    # --- many tasks ---
    async def list_tasks(self, request: Exchange) -> None:
        asked = to_list_query(read_query(request, ListParameters))
        await self._list(request, asked, asked)

    async def dead(self, request: Exchange) -> None:
        asked = to_list_query(read_query(request, ListParameters))
        await self._list(request, asked, only_dead(asked))

    async def _list(self, request: Exchange, asked: ListQuery, query: ListQuery | None) -> None:
        """Answer with a page.

        :param query: finds the tasks; None: no task can match.
        :raises Busy: there is no room for another list."""
        query = None if query is None else only_its_queues(query, request.caller)
        server = request.server
        is_long = asked.limit > limits.LIST_LIMIT_DEFAULT
        limit, cost = (server.long_list_limit, asked.limit) if is_long else (server.list_limit, 1)
        ticket = limit.enter(request.who, cost)
        if ticket is None:
            raise TOO_MANY_READS
        began_s = time.perf_counter()
        try:
            page = TaskPage([], None) if query is None else await self._queue.list(query)
            await self._answer_list(request, asked, page)
        except BaseException:
            limit.abandon(request.who, cost)
            raise
        limit.leave(request.who, ticket, time.perf_counter() - began_s, cost)

    async def _answer_list(self, request: Exchange, query: ListQuery, page: TaskPage) -> None:
        pace = request.server.slices.pace(request.route)
        caller = request.caller
        pieces: list[bytes] = []
        for listed in page.tasks:
            if pace.is_over():
                await pace.turn()
            row = self._rules.shown(shown(listed.row, caller))
            out = task_out(row, listed.node, listed.waits)
            out.role = listed.role
            pieces.append(_encode(out))
        rest = _encode(
            ListAnswer(
                tasks=[],
                count=len(page.tasks),
                node=self._queue.node_name,
                next=write_cursor(page.next, query),
                missing=page.missing if query.cluster else msgspec.UNSET,
                partitions_missing=page.partitions_missing if query.cluster else msgspec.UNSET,
            )
        )
        request.answer(200, b'{"tasks":[' + b",".join(pieces) + rest[len(b'{"tasks":[') :])

    def stats(self, request: Exchange) -> Deferred[None]:
        cluster = read_query(request, ScopeParameters).scope == "cluster"
        counted = self._queue.stats(cluster=cluster, queues=request.caller.queues)
        return counted.addCallback(self._answer_stats, request, cluster)

    def _answer_stats(self, stats: Stats, request: Exchange, cluster: bool) -> None:
        every_copy = [mine + copied for mine, copied in zip(stats.primary, stats.replica, strict=True)]
        answer = StatsAnswer(
            node=self._queue.node_name,
            # With scope=cluster each task counts once, at its primary.
            stats=state_counts(stats.primary if cluster else every_copy),
            primary=state_counts(stats.primary),
            replica=state_counts(stats.replica),
            missing=stats.missing if cluster else msgspec.UNSET,
            partitions_missing=stats.partitions_missing if cluster else msgspec.UNSET,
        )
        request.answer(200, _encode(answer))

    # --- queues ---
    def pause(self, request: Exchange) -> Deferred[None]:
        sent, caller = read_query(request, PauseParameters), request.caller
        target, name = sent.place
        _must_be_its_own(caller, sent.place)
        entry = PauseEntry(target, name, sent.reason, until_us=sent.until_us(_now_us(request)), by=caller.name)
        return self._queue.pause(entry).addCallback(_answer_pause, request, pause_done(sent.place, "paused"))

    def resume(self, request: Exchange) -> Deferred[None]:
        sent, caller = read_query(request, ResumeParameters), request.caller
        _must_be_its_own(caller, sent.place)
        resumed = self._queue.resume(*sent.place, caller.name)
        return resumed.addCallback(_answer_pause, request, pause_done(sent.place, "active"))

    # --- the route table ---
    def routes(self) -> list[Route]:
        id_errors = (errors.NoSuchTask, errors.TaskPurged, *_READ_ERRORS)
        accepted = Answer("accepted and durable", Submitted, headers=("Location",))
        again = Answer(
            "the same id with the same content was here already", Submitted, headers=("Idempotency-Replayed",)
        )
        return [
            Route(
                "POST",
                "/tasks/submit",
                Access.SUBMIT,
                self.submit,
                "Submit a task",
                {201: accepted, 200: again},
                bodies={"application/json": SubmitRequest},
                errors=(*_BODY_ERRORS, errors.IdConflict, errors.IdTooOld, *_WRITE_ERRORS),
                headers={"Idempotency-Key": IDEMPOTENCY_KEY_SCHEMA},
                fast=True,
            ),
            Route(
                "POST",
                "/tasks/batch",
                Access.SUBMIT,
                self.batch,
                "Submit many tasks",
                {200: Answer("one result for each task, in order", BatchAnswer)},
                bodies={"application/json": BatchRequest, NDJSON: None},
                errors=(*_BODY_ERRORS, *_WRITE_ERRORS),
            ),
            Route(
                "GET",
                "/tasks/status",
                Access.READ_OWN,
                self.status,
                "One task as it is",
                {200: Answer("the task", TaskOut)},
                query=StatusParameters,
                errors=id_errors,
                fast=True,
            ),
            Route(
                "GET",
                "/tasks/list",
                Access.LOOK,
                self.list_tasks,
                "The tasks with a copy on this node",
                {200: Answer("a page", ListAnswer)},
                query=ListParameters,
                errors=_READ_ERRORS,
            ),
            Route(
                "GET",
                "/tasks/dead",
                Access.LOOK,
                self.dead,
                "The dead letters: tasks that failed for good",
                {200: Answer("a page", ListAnswer)},
                query=ListParameters,
                errors=_READ_ERRORS,
            ),
            Route(
                "GET",
                "/tasks/stats",
                Access.LOOK,
                self.stats,
                "Tasks by state",
                {200: Answer("counts", StatsAnswer)},
                query=ScopeParameters,
                errors=_READ_ERRORS,
            ),
            Route(
                "POST",
                "/tasks/cancel",
                Access.CHANGE_OWN,
                self.cancel,
                "Cancel a task; a running handler is stopped",
                {200: Answer("committed", TaskDone)},
                query=TaskParameters,
                errors=(errors.AlreadyFinal, *id_errors, *_WRITE_ERRORS),
            ),
            Route(
                "POST",
                "/tasks/retry",
                Access.OPERATE,
                self.retry,
                "Run a failed or cancelled task again, attempts counted from zero",
                {200: Answer("committed", TaskDone)},
                query=TaskParameters,
                errors=(errors.NotRetryable, *id_errors, *_WRITE_ERRORS),
            ),
            Route(
                "POST",
                "/tasks/purge",
                Access.OPERATE,
                self.purge,
                "Forget a task that has ended, now; its id is remembered as after its retention",
                {200: Answer("committed", TaskDone)},
                query=TaskParameters,
                errors=(errors.NotFinal, *id_errors, *_WRITE_ERRORS),
            ),
            Route(
                "POST",
                "/tasks/pause",
                Access.OPERATE,
                self.pause,
                "Start no more tasks of a queue or a type, on any node",
                {200: Answer("committed", PauseDone)},
                query=PauseParameters,
                errors=(errors.ClusterRefused, errors.Upgrading, *_WRITE_ERRORS),
            ),
            Route(
                "POST",
                "/tasks/resume",
                Access.OPERATE,
                self.resume,
                "Start tasks of a queue or a type again",
                {200: Answer("committed", PauseDone)},
                query=ResumeParameters,
                errors=(errors.Upgrading, *_WRITE_ERRORS),
            ),
        ]


def _answer_submit(accepted: Accepted, request: Exchange) -> None:
    # Ids and names hold nothing that JSON or a URL would escape; the state is one of six words.
    task_id = accepted.task_id
    status = STATE_LABELS[accepted.state]
    body = f'{{"success":true,"task_id":"{task_id}","status":"{status}","node":"{accepted.node}"}}'.encode()
    if accepted.created:
        request.answer(201, body, extra=f"Location: /tasks/status?id={task_id}\r\n".encode())
    else:
        request.answer(200, body, extra=b"Idempotency-Replayed: true\r\n")


def _answer_audited_submit(accepted: Accepted, request: Exchange) -> None:
    request.changed = (accepted.task_id,)
    _answer_submit(accepted, request)


def _explain_submit(failure: Failure, submission: Submission) -> Failure:
    """Turn an unknown outcome into ``SubmitNotConfirmed`` if the task has the caller's id."""
    why = failure.value
    if hides_outcome(why) and has_own_id(submission):
        raise SubmitNotConfirmed(why.detail, task_id=submission.id)
    return failure


def _name_task(failure: Failure, task_id: str) -> Failure:
    """Add the task's id to an unknown outcome, so that the caller can ask for the task."""
    why = failure.value
    if hides_outcome(why) and why.task_id is None:
        raise OutcomeUnknown(why.detail, task_id=task_id)
    return failure


def _answer_change(row: TaskRow, request: Exchange) -> None:
    request.answer(200, _encode(TaskDone(True, row.id, STATE_LABELS[row.state])))


def _answer_purge(row: TaskRow, request: Exchange) -> None:
    request.answer(200, _encode(TaskDone(True, row.id, PURGED)))


def _answer_pause(_: None, request: Exchange, done: PauseDone) -> None:
    request.answer(200, _encode(done))


def _must_be_its_own(caller: Caller, place: tuple[str, str]) -> None:
    """Check that the caller may pause it; raises ``Denied``: a type has tasks in all queues."""
    target, name = place
    if target == "queue":
        must_be_its_queue(caller, name)
    else:
        must_be_for_all_queues(caller, "the pause of a type")


def _now_us(request: Exchange) -> int:
    return int(request.server.now_s() * 1e6)
