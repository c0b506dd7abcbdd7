"""Submits a batch to the queue in parts, and answers with one result for each item, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeGuard, overload

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.api.http.exchange import Exchange
from tq_node.api.http.token_quotas import OverQuota
from tq_node.api.problems import SubmitNotConfirmed, item_error
from tq_node.errors import Denied, OutcomeUnknown, TaskQueueError
from tq_node.facade import Accepted, Submission, TaskQueue
from tq_node.slices import Pace
from tq_node.types import STATE_LABELS

_encode = msgspec.json.Encoder().encode


class TaskIds(Sequence[str]):
    """Ids of tasks as they are when somebody looks: most get one only when they are submitted."""

    def __init__(self, submissions: Sequence[Submission]) -> None:
        self._submissions = submissions

    def __len__(self) -> int:
        return len(self._submissions)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...

    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return TaskIds(self._submissions[place])
        return self._submissions[place].id or "-"


async def submit_parts(queue: TaskQueue, good: list[Submission], pace: Pace) -> list[Accepted | TaskQueueError]:
    """Submit in parts, one behind the other without waiting, so that all become durable together.

    :raises TaskQueueError: the whole batch is refused, and no task was accepted."""
    parts = list(_parts(good))
    in_flight: list[Deferred[list[Accepted | TaskQueueError]]] = []
    try:
        for number, part in enumerate(parts, 1):
            if in_flight and pace.is_over():
                await pace.turn()
            submitted = queue.submit_many(part, has_more=number < len(parts))
            in_flight.append(submitted.addErrback(_explain_batch, part))
            if len(in_flight) == 1 and in_flight[0].called:
                await in_flight[0]  # raises if the whole batch is refused: nothing was accepted
        results: list[Accepted | TaskQueueError] = []
        failed: TaskQueueError | None = None
        for part, call in zip(parts, in_flight, strict=True):
            try:
                results += await call
            except TaskQueueError as why:
                failed = why
                results += [_of_item(why, submission) for submission in part]
    except BaseException:
        for call in in_flight:
            call.addErrback(lambda _: None).cancel()
        raise
    if failed is not None and not any(isinstance(result, Accepted) for result in results):
        raise failed
    return results


def _parts(submissions: list[Submission]) -> Iterator[list[Submission]]:
    """Parts that the queue takes within a slice each."""
    part: list[Submission] = []
    size = 0
    for submission in submissions:
        part.append(submission)
        size += len(submission.payload)
        if len(part) >= limits.BATCH_SUBMITS_PER_TURN or size >= limits.BATCH_BYTES_PER_TURN:
            yield part
            part, size = [], 0
    if part or not submissions:
        yield part  # an empty batch may be refused, too


def _of_item(why: TaskQueueError, submission: Submission) -> TaskQueueError:
    """The error of a part of a batch, for one task of that part."""
    if not hides_outcome(why):
        return why
    return OutcomeUnknown(why.detail, task_id=submission.id)


async def answer_batch(
    results: list[Accepted | TaskQueueError], request: Exchange, items: list[Submission | TaskQueueError], pace: Pace
) -> None:
    """Answer a batch.

    :param items: as sent: a submission, or why it was refused before.
    :param results: of the submissions among ``items``, in order."""
    pieces: list[bytes] = []
    accepted_ids: list[str] = []
    denied_count = 0
    next_result = iter(results)
    for place, item in enumerate(items):
        if pace.is_over():
            await pace.turn()
        outcome = next(next_result) if isinstance(item, Submission) else item
        if isinstance(outcome, Accepted):
            accepted_ids.append(outcome.task_id)
            pieces.append(f'{{"task_id":"{outcome.task_id}","status":"{STATE_LABELS[outcome.state]}"}}'.encode("ascii"))
            continue
        if hides_outcome(outcome) and isinstance(item, Submission) and has_own_id(item):
            outcome = SubmitNotConfirmed(outcome.detail, task_id=item.id)
        denied_count += isinstance(outcome, Denied)
        if isinstance(outcome, OverQuota):
            request.server.metrics.over_quota(outcome.quota)
        error = item_error(outcome)
        if error.field is not None and isinstance(item, Submission):
            error.field = f"/tasks/{place}{error.field}"  # the queue knows the task, not its place
        pieces.append(b'{"error":%b}' % _encode(error))
    accepted_count, refused_count = len(accepted_ids), len(items) - len(accepted_ids)
    request.changed = accepted_ids
    if refused_count:
        denied = f", {denied_count} of them denied" if denied_count else ""
        request.changed = [*accepted_ids, f"({refused_count} refused{denied})"]
    request.answer(
        200,
        b'{"success":true,"accepted":%d,"rejected":%d,"results":[%b]}'
        % (accepted_count, refused_count, b",".join(pieces)),
    )


def _explain_batch(failure: Failure, good: list[Submission]) -> Failure:
    """Turn an unknown outcome into ``SubmitNotConfirmed`` if each task has the caller's id."""
    why = failure.value
    if hides_outcome(why) and all(map(has_own_id, good)):
        raise SubmitNotConfirmed(why.detail)
    return failure


def hides_outcome(why: object) -> TypeGuard[TaskQueueError]:
    """Whether the error leaves open what was done: ``OutcomeUnknown``, or a node's failure."""
    return isinstance(why, TaskQueueError) and not why.definite


def has_own_id(submission: Submission) -> bool:
    """Whether the caller chose the task's id, so that the submit can be sent again."""
    return submission.id is not None and not submission.made
