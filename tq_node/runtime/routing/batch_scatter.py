"""A batch of submissions over several primaries: each gets its share, and a share that fails is the failure of its own only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import OutcomeUnknown, TaskQueueError
from tq_node.facade import Accepted, Submission
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId

_log = Logger(namespace="taskqueue.forwarding")
Results = list[Accepted | TaskQueueError]


def submit_to_all(
    local: LocalQueue,
    me: NodeId,
    forwarding: PeerClient,
    submissions: Sequence[Submission],
    groups: dict[NodeId, list[int]],
    results: list[Accepted | TaskQueueError | None],
) -> Deferred[Results]:
    """:param groups: for each primary the places of its submissions. :param results: those that have none are filled in."""
    done: Deferred[Results] = Deferred()
    left = len(groups)

    def arrived(found: Results | Failure, indexes: list[int]) -> None:
        nonlocal left
        if isinstance(found, Failure):
            found = [_of(found, submissions[index].id) for index in indexes]
        for index, result in zip(indexes, found, strict=True):
            results[index] = result
        left -= 1
        if left == 0 and not done.called:
            done.callback(cast("Results", results))

    for node, indexes in groups.items():
        mine = [submissions[index] for index in indexes]
        share = local.submit_many(mine) if node == me else _forward(forwarding, node, mine)
        share.addBoth(arrived, indexes)
    if not groups:
        done.callback(cast("Results", results))
    return done


def _forward(forwarding: PeerClient, node: NodeId, submissions: list[Submission]) -> Deferred[Results]:
    """In as many calls as boxes want."""
    parts = list(calls.parts_of(submissions))
    results: list[Results] = [[]] * len(parts)
    done: Deferred[Results] = Deferred()
    left = len(parts)

    def arrived(items: list[calls.Item] | Failure, number: int) -> None:
        nonlocal left
        part = parts[number]
        if isinstance(items, Failure):
            results[number] = [_of(items, submission.id) for submission in part]
        else:
            results[number] = [
                calls.result_of(item, submission.id) for item, submission in zip(items, part, strict=True)
            ]
        left -= 1
        if left == 0:
            done.callback([result for found in results for result in found])

    for number, part in enumerate(parts):
        forwarding.call(node, calls.SUBMIT_MANY, part).addBoth(arrived, number)
    return done


def _of(why: Failure, task_id: str | None) -> TaskQueueError:
    """The failure of a whole call as that of one of its submissions."""
    error = why.value
    if not isinstance(error, TaskQueueError):
        _log.failure("a batch failed", failure=why, event="batch_failed")
        return OutcomeUnknown("the batch failed", task_id=task_id)
    return calls.for_task(error, task_id)
