"""What all nodes do or answer together: batches of submissions, pages of tasks, sums. Each task
once, by its primary.

Who did not answer is named, and so is each partition that nobody has answered for: one that changes
hands while the nodes are asked is led by none of them, or by one that has been deposed by then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from heapq import merge
from operator import itemgetter
from typing import NamedTuple, TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import OutcomeUnknown, TaskQueueError
from tq_node.facade import Accepted, ListedTask, ListQuery, Stats, Submission, TaskPage
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.slices import Pace, Slices
from tq_node.types import NodeId
from tq_node.wire.errors import MalformedBox

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
_BETWEEN_LOOKS = 10
"""How many tasks are decoded between two looks at the clock."""
_key = itemgetter(0)


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


async def all_stats(
    own: Deferred[Stats],
    me: NodeId,
    others: Others,
    client: PeerClient,
    covered: Covered,
    queues: Collection[str] | None = None,
) -> Stats:
    """The sum over primaries; of these queues, where some are given. A node of a release that can't
    count by queue is missing, for it refuses the call."""
    kind, what = (
        (calls.STATS, calls.NOTHING) if queues is None else (calls.QUEUE_STATS, calls.QueueStats(tuple(queues)))
    )
    asked = [(node, name, _or_none(client.call(node, kind, what))) for node, name in others]
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
    query: ListQuery,
    own: Deferred[TaskPage],
    me: NodeId,
    others: Others,
    client: PeerClient,
    covered: Covered,
    slices: Slices,
) -> TaskPage:
    """One page over all nodes. ``query`` asks each for its own; ``own`` is this node's answer."""
    alone = msgspec.structs.replace(query, cluster=False)
    asked = [(node, name, _or_none(client.call_alone(node, calls.LIST, alone, GATHER_S))) for node, name in others]
    page, missing = await own, []
    covered.add(page.led, me)
    merger = _Merger(query, slices.pace("a page of all nodes"))
    await merger.add(page)
    for node, name, answer in asked:
        encoded: calls.EncodedPage | None = await answer
        if encoded is None or not await merger.add_encoded(encoded, name):
            missing.append(name)
        else:
            covered.add(encoded.led, node)
    shown, cursor = await merger.first()
    return TaskPage(shown, cursor, missing, covered.missing())


def _or_none(answer: Deferred[T]) -> Deferred[T | None]:
    """None without an answer, at once: if this node can't answer, nobody hears of the others."""

    def missing(why: Failure) -> None:
        why.trap(TaskQueueError)

    return cast("Deferred[T | None]", answer.addErrback(missing))


class _Candidate(NamedTuple):
    """A task of some page. ``task`` stays encoded until it is shown: to free all the others at once
    would take long, too."""

    key: Key
    rev: int
    task: ListedTask | msgspec.Raw


class _Merger:
    """Merges pages in the order of the query, as far as every node has looked: one that stopped
    early may have more in between. A partition that changes hands while the nodes are asked may be
    shown by two of them, which is seen here, or by none: see ``Covered``."""

    def __init__(self, query: ListQuery, pace: Pace) -> None:
        self._sort, self._descending, self._limit = query.sort, query.descending, query.limit
        self._pace = pace
        self._pages: list[list[_Candidate]] = []
        self._newest: dict[str, _Candidate] = {}
        """Of each task, by id."""
        self._stops: list[Key] = []
        """Behind which a node has not looked."""

    async def add(self, page: TaskPage) -> None:
        """Add a page of this node's own."""
        found = await self._pace.each(page.tasks, lambda listed: self._candidate(listed, listed), every=_BETWEEN_LOOKS)
        self._added(found, page.next)

    async def add_encoded(self, page: calls.EncodedPage, name: str) -> bool:
        """Add what another node has answered. False: it can't be read."""
        decode = calls.LISTED.decode_part
        try:
            found = await self._pace.each(
                page.tasks, lambda task: self._candidate(decode(task), task), every=_BETWEEN_LOOKS
            )
        except MalformedBox as why:
            _log.warn("{node} lists what can't be read: {why}", node=name, why=why.detail, event="list_unreadable")
            return False
        self._added(found, page.next)
        return True

    def _candidate(self, listed: ListedTask, task: ListedTask | msgspec.Raw) -> _Candidate:
        return _Candidate(key_of(listed, self._sort), listed.row.rev, task)

    def _added(self, found: list[_Candidate], stop: tuple[int, str] | None) -> None:
        for candidate in found:
            known = self._newest.get(candidate.key[1])
            if known is None or known.rev < candidate.rev:
                self._newest[candidate.key[1]] = candidate
        found.sort(key=_key, reverse=self._descending)  # as its node had them, mostly
        self._pages.append(found)
        if stop is not None:
            self._stops.append(stop if self._sort != "id" else ("", stop[1]))

    async def first(self) -> tuple[list[ListedTask], tuple[int, str] | None]:
        """The first tasks, as many as the query allows, and the cursor behind them."""
        descending, pace = self._descending, self._pace
        end: Key | None = None
        if self._stops:
            end = max(self._stops) if descending else min(self._stops)
        shown: list[ListedTask] = []
        last: Key | None = None
        for candidate in merge(*self._pages, key=_key, reverse=descending):
            if pace.is_over():
                await pace.turn()
            if end is not None and _is_behind(candidate.key, end, descending):
                break
            if self._newest[candidate.key[1]] is not candidate:
                continue
            if len(shown) == self._limit:
                end = last
                break
            last, task = candidate.key, candidate.task
            shown.append(calls.LISTED.decode_part(task) if isinstance(task, msgspec.Raw) else task)
        return shown, None if end is None else (end[0] if isinstance(end[0], int) else 0, end[1])


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
