"""Puts the caller's name on what it submits, and keeps it to its queues."""

from __future__ import annotations

from tq_node.api.access.access import Caller
from tq_node.api.access.scope import must_be_its_queue
from tq_node.api.http.token_quotas import too_many_open
from tq_node.errors import TaskQueueError
from tq_node.facade import OpenOfMaker, Submission, TaskQueue
from tq_node.slices import Pace


class OpenTasksLeft:
    """What a caller's quotas of open tasks and of queues still allow; for one call of it."""

    def __init__(self, caller: Caller, queue: TaskQueue) -> None:
        self._caller = caller
        self._queue = queue
        self._found: OpenOfMaker | None = None
        self._tasks = 0
        """Taken by this call."""
        self._queues: set[str] = set()

    def take(self, submission: Submission) -> None:
        """Count one more.

        :raises OverQuota: it would be one too many."""
        name, quotas = self._caller.name, self._caller.quotas
        found = self._found
        if found is None:
            found = self._found = self._queue.open_of(name)
            self._queues.update(found.queues)
        if quotas.open_tasks is not None and found.tasks + self._tasks >= quotas.open_tasks:
            raise too_many_open("open_tasks", name, quotas.open_tasks, "tasks that have not ended")
        if quotas.queues is not None:
            used = submission.queue or self._queue.queue_of(submission.type)
            if used not in self._queues and len(self._queues) >= quotas.queues:
                raise too_many_open("queues", name, quotas.queues, "queues with tasks that have not ended")
            self._queues.add(used)
        self._tasks += 1


def sign(submission: Submission, caller: Caller, queue: TaskQueue, left: OpenTasksLeft | None = None) -> None:
    """Note who submits. A caller with queues of its own names one in the end: where it gives none
    this node's handlers decide, for those of the task's primary may say another.

    :param left: of the call; None: it submits nothing else.
    :raises Denied: the queue is none of the caller's.
    :raises NotReady: the node does not know what its handlers say yet.
    :raises OverQuota: it has as many open tasks, or queues with some, as it may have."""
    submission.made_by = caller.name
    submission.own_only = not caller.sees_others
    if caller.queues is not None:
        if submission.queue is None:
            submission.queue = queue.queue_of(submission.type)
        submission.queue_only = True
        must_be_its_queue(caller, submission.queue)
    quotas = caller.quotas
    if quotas.open_tasks is not None or quotas.queues is not None:
        (left or OpenTasksLeft(caller, queue)).take(submission)


async def sign_all(items: list[Submission | TaskQueueError], caller: Caller, queue: TaskQueue, pace: Pace) -> None:
    """Sign the items of a batch, in slices; one that is refused gives way to the refusal."""
    left = OpenTasksLeft(caller, queue)
    for place, item in enumerate(items):
        if pace.is_over():
            await pace.turn()
        if isinstance(item, Submission):
            try:
                sign(item, caller, queue, left)
            except TaskQueueError as refused:
                items[place] = refused
