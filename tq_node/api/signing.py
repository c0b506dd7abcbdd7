"""Puts the caller's name on what it submits, and keeps it to its queues."""

from __future__ import annotations

from tq_node.api.access.access import Caller
from tq_node.api.access.scope import must_be_its_queue
from tq_node.errors import TaskQueueError
from tq_node.facade import Submission, TaskQueue
from tq_node.slices import Pace


def sign(submission: Submission, caller: Caller, queue: TaskQueue) -> None:
    """Note who submits. A caller with queues of its own names one in the end: where it gives none
    this node's handlers decide, for those of the task's primary may say another.

    :raises Denied: the queue is none of the caller's.
    :raises NotReady: the node does not know what its handlers say yet."""
    submission.made_by = caller.name
    submission.own_only = not caller.sees_others
    if caller.queues is not None:
        if submission.queue is None:
            submission.queue = queue.queue_of(submission.type)
        submission.queue_only = True
        must_be_its_queue(caller, submission.queue)


async def sign_all(items: list[Submission | TaskQueueError], caller: Caller, queue: TaskQueue, pace: Pace) -> None:
    """Sign the items of a batch, in slices; one that is refused gives way to the refusal."""
    for place, item in enumerate(items):
        if pace.is_over():
            await pace.turn()
        if isinstance(item, Submission):
            try:
                sign(item, caller, queue)
            except TaskQueueError as refused:
                items[place] = refused
