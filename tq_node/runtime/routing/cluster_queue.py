"""``facade.TaskQueue`` of a node in its cluster: each call goes to the partition's primary, here or over the wire, one hop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.cluster.placement import partition_of
from tq_node.cluster.records import HANDLERS_LEVEL
from tq_node.errors import NotPrimary, NotReady, TaskQueueError, Upgrading
from tq_node.facade import (
    Accepted,
    Claim,
    EventBatch,
    HandlersReloaded,
    ListQuery,
    NodeHandlers,
    Notes,
    Outcome,
    Read,
    ReadyNote,
    Released,
    Stats,
    Submission,
    Subscription,
    TaskPage,
    Worker,
)
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.routing.batch_scatter import submit_to_all
from tq_node.runtime.routing.cluster_events import ClusterEvents
from tq_node.runtime.routing.node import Node
from tq_node.runtime.routing.observer import Observer
from tq_node.runtime.routing.scatter import Covered, Entry, Others, all_pages, all_stats
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import Announced, HandlerKind, NodeId, TaskRow, WaitsFor

_log = Logger(namespace="taskqueue.cluster")
HAND_OVER_MS = 2_000
"""How long a node that stops waits for others to take over what it leads."""
HAND_OVER_LOOK_S = 0.05


class ClusterQueue(Node):
    """See the module's docstring."""

    # --- where a call goes ---
    def _partition_of(self, task_id: str) -> int:
        settings = self.map.settings
        return partition_of(task_id, seed=settings.seed, partition_count=settings.partition_count)

    def _primary(self, task_id: str) -> NodeId:
        """:raises NotReady: as ``_must_serve``. :raises NotPrimary: there is none for now."""
        self._must_serve()
        primary = self.map.partitions[self._partition_of(task_id)].primary
        if primary is None:
            raise NotPrimary("the task's partition has no primary for now", task_id=task_id)
        return primary

    # --- facade: submitting ---
    def submit(self, submission: Submission) -> Deferred[Accepted]:
        local, first = self._local, None
        if submission.id is None and self._name(submission) and local is not None and self._guard() is None:
            first = local.submit(submission)
        made = submission.made
        return self._patience.until_known(
            lambda: self._submit(submission), lambda: self._submit_again(submission, made=made), first
        )

    def _submit_again(self, submission: Submission, *, made: bool) -> Deferred[Accepted]:
        """It may be there by now: an id that was made here is looked for this time, like one of the caller's own."""
        submission.made = False
        again = self._submit(submission)
        return again.addCallback(_as_new) if made else again

    def _submit(self, submission: Submission) -> Deferred[Accepted]:
        try:
            local = self._must_serve()
            assert submission.id is not None
            primary = self._primary(submission.id)
        except TaskQueueError as why:
            return fail(why)
        if primary == self.node_id:
            return local.submit(submission)
        return self._forwarding.call(primary, calls.SUBMIT, submission, submission.id)

    def _name(self, submission: Submission) -> bool:
        """The first node that takes a submission makes its id, and keeps it (section 9). Returns whether it lives here now."""
        local = self._local
        if local is not None and local.is_active:
            return local.name(submission)
        submission.id = self._ids.make(self._clock.wall_us())
        submission.made = True
        return False

    def submit_many(self, submissions: Sequence[Submission]) -> Deferred[list[Accepted | TaskQueueError]]:
        try:
            local = self._must_serve()
        except TaskQueueError as why:
            return fail(why)
        unnamed = [submission for submission in submissions if submission.id is None]
        if local.name_all(unnamed) and len(unnamed) == len(submissions):
            return local.submit_many(submissions)
        groups: dict[NodeId, list[int]] = {}
        results: list[Accepted | TaskQueueError | None] = [None] * len(submissions)
        for index, submission in enumerate(submissions):
            assert submission.id is not None
            try:
                groups.setdefault(self._primary(submission.id), []).append(index)
            except NotPrimary as why:
                results[index] = why
        if len(groups.get(self.node_id, ())) == len(submissions):
            return local.submit_many(submissions)
        return submit_to_all(local, self.node_id, self._forwarding, submissions, groups, results)

    # --- facade: one task ---
    def get(self, task_id: str, *, wait_s: float = 0.0, local: bool = False) -> Deferred[Read]:
        return self._patience.until_served(lambda: self._get(task_id, wait_s, local))

    def _get(self, task_id: str, wait_s: float, local: bool) -> Deferred[Read]:
        try:
            here = self._must_serve()
            if local and here.replication.is_held(self._partition_of(task_id)):
                return here.get(task_id, local=True)
            primary = self._primary(task_id)
        except TaskQueueError as why:
            return fail(why)
        if primary == self.node_id:
            return here.get(task_id, wait_s=wait_s, local=local)
        get = calls.Get(task_id, wait_s)
        if wait_s > 0:
            return cast(
                "Deferred[Read]",
                self._forwarding.call_alone(primary, calls.GET, get, wait_s + calls.CALL_S, task_id),
            )
        return self._forwarding.call(primary, calls.GET, get, task_id)

    def cancel(self, task_id: str) -> Deferred[TaskRow]:
        return self._change(task_id, calls.CANCEL, lambda local: local.cancel(task_id))

    def retry(self, task_id: str) -> Deferred[TaskRow]:
        return self._change(task_id, calls.RETRY, lambda local: local.retry(task_id))

    def purge(self, task_id: str) -> Deferred[TaskRow]:
        return self._change(task_id, calls.PURGE, lambda local: local.purge(task_id))

    def _change(
        self, task_id: str, kind: calls.PeerCall, here: Callable[[LocalQueue], Deferred[TaskRow]]
    ) -> Deferred[TaskRow]:
        return self._patience.until_served(lambda: self._change_once(task_id, kind, here))

    def _change_once(
        self, task_id: str, kind: calls.PeerCall, here: Callable[[LocalQueue], Deferred[TaskRow]]
    ) -> Deferred[TaskRow]:
        try:
            primary = self._primary(task_id)
        except TaskQueueError as why:
            return fail(why)
        if primary == self.node_id:
            return here(self._must_serve())
        return self._forwarding.call(primary, kind, task_id, task_id)

    # --- facade: many tasks ---
    def list(self, query: ListQuery) -> Deferred[TaskPage]:
        if not query.cluster:
            return maybeDeferred(lambda: self._must_serve().list(query))
        # Each task once: what a node has as primary.
        asked = msgspec.structs.replace(query, role="primary", cluster=False)
        mine = maybeDeferred(lambda: self._must_serve().list(asked))
        if query.role == "replica":
            return succeed(TaskPage([], None))
        covered = Covered(self._entries)
        return Deferred.fromCoroutine(all_pages(asked, mine, self.node_id, self._others(), self._forwarding, covered))

    def stats(self, *, cluster: bool = False) -> Deferred[Stats]:
        mine = maybeDeferred(lambda: self._must_serve().stats())
        if not cluster:
            return mine
        covered = Covered(self._entries)
        return Deferred.fromCoroutine(all_stats(mine, self.node_id, self._others(), self._forwarding, covered))

    def _entries(self) -> Sequence[Entry]:
        return [(entry.primary, int(entry.epoch)) for entry in self.map.partitions]

    def _others(self) -> Others:
        return [(node.node_id, node.name) for node in self.map.members() if node.node_id != self.node_id]

    # --- facade: watching ---
    def watch(
        self, observer: Callable[[EventBatch], None], *, after_id: int | None = None, cluster: bool = False
    ) -> Subscription:
        if cluster:
            self._must_serve()
            if after_id is not None:
                observer(EventBatch(self._first_event_id(), [], reset=True))
            return ClusterEvents(
                observer,
                lambda own: Observer(own, None, self._observers).begun(self._local),
                self._forwarding,
                self._clock,
                self.node_name,
                self._others,
                self._first_event_id(),
            )
        return Observer(observer, after_id, self._observers).begun(self._local)

    def _first_event_id(self) -> int:
        """Streams over the cluster are numbered apart; whoever comes back to one can't go on where it was."""
        return self._clock.wall_us()

    def paused_queues(self) -> frozenset[str]:
        return frozenset(self.map.paused_queues)

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        return succeed({}) if self._local is None else self._local.oldest_pending_age_s()

    def backup(self) -> Deferred[Sequence[str]]:
        return maybeDeferred(lambda: self._must_serve().backup())

    def uncommitted_bytes(self) -> int:
        """Proposed and not yet durable; for metrics."""
        return 0 if self._local is None else self._local.uncommitted_bytes()

    # --- facade: work ---
    def notes(self) -> Sequence[ReadyNote]:
        of_worker = () if self._worker is None else (*self._worker.notes, *self._handling.notes(self._worker))
        return (*self._settings.notes, *of_worker, *super().notes())

    def handlers(self) -> Sequence[NodeHandlers]:
        if self.map.feature_level < HANDLERS_LEVEL:
            raise Upgrading("handlers: not every node of the cluster says yet which ones it has")
        own = Announced(HandlerKind.NONE) if self._worker is None else self._worker.announced
        return self._handling.shown(self.map, self.plane.membership.liveness.handlers, own)

    def waiting_for(self, row: TaskRow) -> Sequence[WaitsFor]:
        return self._handling.waiting_for(row)

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        if self._worker is None:
            return fail(NotReady("the node is starting"))
        return self._worker.reload_handlers()

    def attach(self, worker: Worker) -> None:
        self._worker = worker
        self.plane.membership.announce(worker.announced)
        self._look_at_handlers()
        if self._local is not None and self._local.is_active:
            self._local.attach(worker)

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        if self._local is None or self._guard() is not None:
            return succeed([])
        claims = self._local.claim(limit)
        return claims if self._helping is None else self._helping.fill(claims, limit)

    def _give_back(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            # If that is not heard, its lease is over soon.
            self.finish(claim, Released()).addErrback(lambda _: None)

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        """Also at another node that has become the partition's primary meanwhile (section 8)."""
        try:
            here, primary = self._must_serve(), self._primary(claim.task_id)
        except TaskQueueError as why:
            return fail(why)
        if primary == self.node_id:
            return here.finish(claim, outcome, notes)
        said = calls.Finish(_without_payload(claim), outcome, notes)
        told = self._forwarding.call(primary, calls.FINISH, said, claim.task_id)

        def over(result: Any) -> Any:
            if not isinstance(result, Failure):
                here.let_go(claim)
                return None
            error = result.value
            if isinstance(error, TaskQueueError) and error.definite and not error.retryable:
                here.let_go(claim)  # nobody says it again
            return result

        return told.addBoth(over)

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        try:
            primary = self._primary(claim.task_id)
        except TaskQueueError as why:
            return fail(why)
        if primary == self.node_id:
            return self._must_serve().note(claim, notes)
        told = self._forwarding.call(primary, calls.NOTE, calls.Note(_without_payload(claim), notes), claim.task_id)
        return told.addCallback(lambda _: None)

    def lease_ms(self, claim: Claim) -> int:
        assert self._renewing is not None, "nothing is claimed before there is a queue"
        return self._renewing.lease_ms(claim)


def _as_new(accepted: Accepted) -> Accepted:
    """Nobody else knows the id: the task that is there is the one that was just submitted."""
    return msgspec.structs.replace(accepted, created=True)


def _without_payload(claim: Claim) -> Claim:
    """For its primary, which has it: the token says all."""
    return msgspec.structs.replace(claim, payload=b"")
