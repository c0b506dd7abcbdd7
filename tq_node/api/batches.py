"""A batch on its way into the queue and out again: some tasks at a time, one result for each, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.api.http.exchange import Exchange
from tq_node.api.problems import SubmitNotConfirmed, item_error
from tq_node.errors import OutcomeUnknown, TaskQueueError
from tq_node.facade import Accepted, Submission, TaskQueue
from tq_node.slices import Pace
from tq_node.types import STATE_LABELS

_encode = msgspec.json.Encoder().encode


async def submit_parts(queue: TaskQueue, good: list[Submission], pace: Pace) -> list[Accepted | TaskQueueError]:
    """Some at a time, without waiting for them in between: they become durable together.

    :raises TaskQueueError: none was taken, for a reason that is no item's own.
    """
    parts: list[list[Submission]] = []
    under_way: list[Deferred[list[Accepted | TaskQueueError]]] = []
    try:
        for part in _parts(good):
            if under_way and pace.is_over():
                await pace.turn()
            parts.append(part)
            under_way.append(queue.submit_many(part).addErrback(_explain_batch, part))
            if len(under_way) == 1 and under_way[0].called:
                await under_way[0]  # a refusal: it is the whole batch's, and nothing has been taken
        results: list[Accepted | TaskQueueError] = []
        failed: TaskQueueError | None = None
        for part, call in zip(parts, under_way, strict=True):
            try:
                results += await call
            except TaskQueueError as why:
                failed = why
                results += [_of_item(why, submission) for submission in part]
    except BaseException:
        for call in under_way:
            call.addErrback(lambda _: None).cancel()
        raise
    if failed is not None and not any(isinstance(result, Accepted) for result in results):
        raise failed
    return results


def _parts(submissions: list[Submission]) -> Iterator[list[Submission]]:
    """As many at a time as are taken in within a slice."""
    part: list[Submission] = []
    size = 0
    for submission in submissions:
        part.append(submission)
        size += len(submission.payload)
        if len(part) >= limits.BATCH_SUBMITS_PER_TURN or size >= limits.BATCH_BYTES_PER_TURN:
            yield part
            part, size = [], 0
    if part or not submissions:
        yield part  # a batch of none is judged, too


def _of_item(why: TaskQueueError, submission: Submission) -> TaskQueueError:
    """The failure of a part of a batch as that of one of its tasks."""
    if not hides_outcome(why):
        return why
    return OutcomeUnknown(why.detail, task_id=submission.id)


async def answer_batch(
    results: list[Accepted | TaskQueueError],
    request: Exchange,
    items: list[Submission | TaskQueueError],
    pace: Pace,
) -> None:
    pieces: list[bytes] = []
    accepted_count = 0
    next_result = iter(results)
    for place, item in enumerate(items):
        if pace.is_over():
            await pace.turn()
        outcome = next(next_result) if isinstance(item, Submission) else item
        if isinstance(outcome, Accepted):
            accepted_count += 1
            pieces.append(f'{{"task_id":"{outcome.task_id}","status":"{STATE_LABELS[outcome.state]}"}}'.encode("ascii"))
            continue
        if hides_outcome(outcome) and isinstance(item, Submission) and has_own_id(item):
            outcome = SubmitNotConfirmed(outcome.detail, task_id=item.id)
        error = item_error(outcome)
        if error.field is not None and isinstance(item, Submission):
            error.field = f"/tasks/{place}{error.field}"  # the queue knows the task, not its place
        pieces.append(b'{"error":%b}' % _encode(error))
    request.answer(
        200,
        b'{"success":true,"accepted":%d,"rejected":%d,"results":[%b]}'
        % (accepted_count, len(items) - accepted_count, b",".join(pieces)),
    )


def _explain_batch(failure: Failure, good: list[Submission]) -> Failure:
    """The same for a whole batch, where each task that could be in has an id of its own."""
    why = failure.value
    if hides_outcome(why) and all(map(has_own_id, good)):
        raise SubmitNotConfirmed(why.detail)
    return failure


def hides_outcome(why: object) -> TypeGuard[TaskQueueError]:
    """Also what another node failed with while it was at it, not ``OutcomeUnknown`` alone."""
    return isinstance(why, TaskQueueError) and not why.definite


def has_own_id(submission: Submission) -> bool:
    return submission.id is not None and not submission.made
