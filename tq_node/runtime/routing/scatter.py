"""What all nodes do or answer together: batches of submissions, pages of tasks, sums. Each task
once, by its primary.

Who did not answer is named, and so is each partition that nobody has answered for: one that changes
hands while the nodes are asked is led by none of them, or by one that has been deposed by then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import OutcomeUnknown, TaskQueueError
from tq_node.facade import Accepted, ListedTask, ListQuery, Stats, Submission, TaskPage
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId

_log = Logger(namespace="taskqueue.forwarding")
T = TypeVar("T")
GATHER_S = 5.0
"""A node that has not answered by then is missing."""
Others = Sequence[tuple[NodeId, str]]
"""Id and name of each other member."""
Results = list[Accepted | TaskQueueError]
Key = tuple[int | str, str]
Entry = tuple[NodeId | None, int]
"""Of one partition: its primary, and the epoch."""


class Covered:
    """Which partitions have been answered for, by whoever leads them.

    :param entries: what the cluster map says of each partition now: its primary and epoch."""

    def __init__(self, entries: Callable[[], Sequence[Entry]]) -> None:
        self._entries = entries
        self._before = entries()
        self._epochs: dict[int, int] = {}

    def add(self, led: Sequence[tuple[int, int]] | None, node: NodeId) -> None:
        """Note what a node answered for; None: an old release, taken to lead what the map said."""
        if led is None:
            led = [(p, epoch) for p, (primary, epoch) in enumerate(self._before) if primary == node]
        for partition, epoch in led:
            self._epochs[partition] = max(epoch, self._epochs.get(partition, 0))

    def missing(self) -> list[int]:
        """Partitions that nobody answered for, or only one deposed by the time all had answered."""
        return [p for p, (_, epoch) in enumerate(self._entries()) if self._epochs.get(p, -1) < epoch]


def submit_to_all(
    local: LocalQueue,
    client: PeerClient,
    submissions: Sequence[Submission],
    groups: dict[NodeId, list[int]],
    results: list[Accepted | TaskQueueError | None],
) -> Deferred[Results]:
    """A batch over several primaries: each gets its share; a failed share fails only its own
    submissions.

    :param groups: for each primary the places of its submissions.
    :param results: those that have none are filled in."""

    def arrived(found: Results | Failure, indexes: list[int]) -> None:
        if isinstance(found, Failure):
            found = [_error_of(found, submissions[index].id) for index in indexes]
        for index, result in zip(indexes, found, strict=True):
            results[index] = result

    shares = []
    for node, indexes in groups.items():
        mine = [submissions[index] for index in indexes]
        is_here = node == local.node_id
        share = local.submitter.submit_many(mine) if is_here else _forward(client, node, mine)
        shares.append(share.addBoth(arrived, indexes))
    # A caller that goes away cancels ``done`` and nothing of the shares: what becomes of them is no
    # failure of the batch.
    done: Deferred[Results] = Deferred()
    gatherResults(shares).addCallback(lambda _: done.callback(cast("Results", results)))
    return done


def _forward(client: PeerClient, node: NodeId, submissions: list[Submission]) -> Deferred[Results]:
    """In as many calls as boxes want."""

    def arrived(items: list[calls.Item] | Failure, part: list[Submission]) -> Results:
        if isinstance(items, Failure):
            return [_error_of(items, submission.id) for submission in part]
        return [calls.result_of(item, submission.id) for item, submission in zip(items, part, strict=True)]

    parts = [client.call(node, calls.SUBMIT_MANY, part).addBoth(arrived, part) for part in calls.parts_of(submissions)]
    return gatherResults(parts).addCallback(lambda found: [result for part in found for result in part])


def _error_of(why: Failure, task_id: str | None) -> TaskQueueError:
    """The failure of a whole call as that of one of its submissions."""
    error = why.value
    if not isinstance(error, TaskQueueError):
        _log.failure("a batch failed", failure=why, event="batch_failed")
        return OutcomeUnknown("the batch failed", task_id=task_id)
    return calls.for_task(error, task_id)


async def all_stats(own: Deferred[Stats], me: NodeId, others: Others, client: PeerClient, covered: Covered) -> Stats:
    """The sum over primaries."""
    asked = [(node, name, _or_none(client.call(node, calls.STATS, calls.NOTHING))) for node, name in others]
    own_stats = await own
    covered.add(own_stats.led, me)
    primary, missing = list(own_stats.primary), []
    for node, name, answer in asked:
        stats: Stats | None = await answer
        if stats is None:
            missing.append(name)
            continue
        covered.add(stats.led, node)
        primary = [a + b for a, b in zip(primary, stats.primary, strict=True)]
    return Stats(primary, [0] * len(primary), missing, covered.missing())


async def all_pages(
    query: ListQuery, own: Deferred[TaskPage], me: NodeId, others: Others, client: PeerClient, covered: Covered
) -> TaskPage:
    """One page over all nodes. ``query`` asks each for its own; ``own`` is this node's answer."""
    alone = msgspec.structs.replace(query, cluster=False)
    asked = [(node, name, _or_none(client.call_alone(node, calls.LIST, alone, GATHER_S))) for node, name in others]
    pages, missing = [await own], []
    covered.add(pages[0].led, me)
    for node, name, answer in asked:
        page: TaskPage | None = await answer
        if page is None:
            missing.append(name)
        else:
            covered.add(page.led, node)
            pages.append(page)
    return msgspec.structs.replace(merged(query, pages, missing), partitions_missing=covered.missing())


def _or_none(answer: Deferred[T]) -> Deferred[T | None]:
    """None without an answer, at once: if this node can't answer, nobody hears of the others."""

    def missing(why: Failure) -> None:
        why.trap(TaskQueueError)

    return cast("Deferred[T | None]", answer.addErrback(missing))


def merged(query: ListQuery, pages: Sequence[TaskPage], missing: Sequence[str]) -> TaskPage:
    """In the order of the query, as far as every node has looked: one that stopped early may have
    more in between. A partition that changes hands while the nodes are asked may be shown by two of
    them, which is seen here, or by none: see ``Covered``."""
    rows: dict[str, ListedTask] = {}
    for page in pages:
        for listed in page.tasks:
            known = rows.get(listed.row.id)
            if known is None or known.row.rev < listed.row.rev:
                rows[listed.row.id] = listed
    ordered = sorted(rows.values(), key=lambda listed: key_of(listed, query.sort), reverse=query.descending)
    stops: list[Key] = [
        page.next if query.sort != "id" else ("", page.next[1]) for page in pages if page.next is not None
    ]
    end: Key | None = None
    if stops:
        end = max(stops) if query.descending else min(stops)
        ordered = [listed for listed in ordered if not _is_behind(key_of(listed, query.sort), end, query.descending)]
    shown = ordered[: query.limit]
    if len(ordered) > query.limit:
        end = key_of(shown[-1], query.sort)
    cursor = None if end is None else (end[0] if isinstance(end[0], int) else 0, end[1])
    return TaskPage(shown, cursor, list(missing))


def key_of(listed: ListedTask, sort: str) -> Key:
    """What a page is ordered by."""
    row = listed.row
    if sort == "created_at":
        return row.spec.created_us, row.id
    if sort == "run_at":
        return row.run_at_us, row.id
    if sort == "priority":
        return row.spec.priority, row.id
    return "", row.id


def _is_behind(key: Key, end: Key, descending: bool) -> bool:
    return key < end if descending else key > end
