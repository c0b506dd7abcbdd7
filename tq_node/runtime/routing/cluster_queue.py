"""``facade.TaskQueue`` of a node: each call goes to the partition's primary, at most one hop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure

from tq_node.cluster.records import ACCESS_LEVEL, WORKERS_LEVEL
from tq_node.errors import NotPrimary, TaskQueueError, Upgrading
from tq_node.facade import Accepted, EventBatch, ListQuery, Read, ReadyNote, Stats, Submission, Subscription, TaskPage
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.admin import ClusterAdmin
from tq_node.runtime.routing.cluster_events import ClusterEvents, LocalEvents
from tq_node.runtime.routing.failover_retry import FailoverRetry
from tq_node.runtime.routing.invitations import Invitations
from tq_node.runtime.routing.node_state import NodeState
from tq_node.runtime.routing.node_work import NodeWork
from tq_node.runtime.routing.scatter import Covered, Entry, all_pages, all_stats, submit_to_all
from tq_node.runtime.routing.type_orders import TypeOrders
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.tokens import Asker
from tq_node.types import NodeId, TaskRow

_UPGRADING = "what a token may know of can be judged once every node runs a release that does"


class _Change(NamedTuple):
    """A change of one task: as this node makes it, and as it asks another one for it."""

    here: Callable[[LocalQueue, str, Asker | None], Deferred[TaskRow]]
    there: calls.PeerCall
    there_for: calls.PeerCall


_CANCEL = _Change(LocalQueue.cancel, calls.CANCEL, calls.CANCEL_FOR)
_RETRY = _Change(LocalQueue.retry, calls.RETRY, calls.RETRY_FOR)
_PURGE = _Change(LocalQueue.purge, calls.PURGE, calls.PURGE_FOR)


class ClusterQueue:
    """See the module. ``ClusterAdmin`` answers about the cluster, ``NodeWork`` about the worker."""

    def __init__(self, state: NodeState, work: NodeWork, admin: ClusterAdmin, clock: Clock) -> None:
        self.node_name = state.node_name
        self._state = state
        self._work = work
        self._admin = admin
        self._clock = clock
        self._retry = FailoverRetry(clock, state.settings.draw, lambda: state.refuses_work)

        self.cluster = admin.cluster
        self.partition_views = admin.partition_views
        invitations = Invitations(state, clock, admin)
        self.invite, self.challenge, self.peers_for = invitations.invite, invitations.challenge, invitations.peers_for
        self.put_invitation, self.take_invitation = invitations.put_invitation, invitations.take_invitation
        self.drain, self.undrain, self.remove = admin.drain, admin.undrain, admin.remove
        self.rebalance, self.unsafe_recover = admin.rebalance, admin.unsafe_recover
        types = TypeOrders(state, clock, admin)
        self.pause, self.resume, self.paused_queues = types.pause, types.resume, types.paused_queues
        self.pauses = types.pauses
        self.type_table, self.announce_types = types.type_table, types.announce_types
        self.put_type, self.delete_type = types.put_type, types.delete_type
        self.token_table = state.tokens.table
        self.open_of = state.open_tasks.of
        self.put_token, self.revoke_token = admin.put_token, admin.revoke_token
        self.shutdown = admin.shutdown
        self.not_ready = admin.not_ready

        self.attach, self.handlers_changed = work.attach, work.handlers_changed
        self.handlers, self.reload_handlers = work.shown_handlers, work.reload_handlers
        self.claim, self.finish, self.note, self.lease_ms = work.claim, work.finish, work.note, work.lease_ms
        self.claim_for, self.extend = work.remote.claim_for, work.remote.extend
        self.remote_workers, self.order_worker = work.remote.workers, work.remote.order

    # --- submitting ---
    def submit(self, submission: Submission) -> Deferred[Accepted]:
        """As ``TaskQueue.submit``. The first node to take it makes its id for good (section 9)."""
        local, begun_ms = self._state.local, self._clock.now_ms()
        submitted: Deferred[Accepted] | None = None
        if submission.made_by:
            try:
                self._name_maker(submission)
            except TaskQueueError as why:
                return fail(why)
        if submission.id is None and local is not None and self._state.guard() is None:
            submitted = local.submitter.submit_new(submission, begun_ms)
        if submitted is None:
            submitted = self._submit(submission)
        return submitted.addErrback(self._not_accepted, submission, begun_ms)

    def _name_maker(self, submission: Submission) -> None:
        """Leave the maker out while some node may not know of makers.

        :raises Upgrading: and it could not see its own task."""
        if self._state.map.feature_level < ACCESS_LEVEL:
            if submission.own_only:
                raise Upgrading(_UPGRADING)
            submission.made_by = ""

    def _submit(self, submission: Submission) -> Deferred[Accepted]:
        try:
            if submission.id is None:
                self._state.must_serve()
            assert submission.id is not None, "who serves has named it"
            local, primary = self._state.route(submission.id)
        except TaskQueueError as why:
            return fail(why)
        if primary == self._state.node_id:
            return local.submitter.submit(submission)
        if submission.made_by:
            self._state.open_tasks.sent(submission.made_by, 1)
        return self._state.client.call(primary, calls.SUBMIT, submission, submission.id)

    def _not_accepted(self, why: Failure, submission: Submission, begun_ms: int) -> Any:
        first = partial(self._submit, submission)
        return self._retry.failed_write(why, first, partial(self._submit_again, submission), begun_ms)

    def _submit_again(self, submission: Submission) -> Deferred[Accepted]:
        """It may be there by now: an id made here is looked for this time, like a caller's."""
        if not submission.made:
            return self._submit(submission)
        again = self._submit(msgspec.structs.replace(submission, made=False))
        return again.addCallback(_as_new)

    def submit_many(
        self, submissions: Sequence[Submission], *, has_more: bool = False
    ) -> Deferred[list[Accepted | TaskQueueError]]:
        """See ``facade.TaskQueue.submit_many``."""
        try:
            local = self._state.must_serve()
            if submissions and submissions[0].made_by:  # of one caller, all of them
                for submission in submissions:
                    self._name_maker(submission)
        except TaskQueueError as why:
            return fail(why)
        unnamed = [submission for submission in submissions if submission.id is None]
        if local.submitter.name_many(unnamed) and len(unnamed) == len(submissions):
            return local.submitter.submit_many(submissions, has_more=has_more)
        groups: dict[NodeId, list[int]] = {}
        results: list[Accepted | TaskQueueError | None] = [None] * len(submissions)
        for index, submission in enumerate(submissions):
            assert submission.id is not None
            try:
                groups.setdefault(self._state.primary_of(submission.id), []).append(index)
            except NotPrimary as why:
                results[index] = why
        if len(groups.get(self._state.node_id, ())) == len(submissions):
            return local.submitter.submit_many(submissions, has_more=has_more)
        if submissions[0].made_by:
            away = len(submissions) - len(groups.get(self._state.node_id, ()))
            self._state.open_tasks.sent(submissions[0].made_by, away)
        return submit_to_all(local, self._state.client, submissions, groups, results)

    # --- one task ---
    def queue_of(self, task_type: str) -> str:
        """See ``facade.TaskQueue.queue_of``."""
        return self._state.must_serve().submitter.queue_of(task_type)

    def get(
        self, task_id: str, *, wait_s: float = 0.0, local: bool = False, asker: Asker | None = None
    ) -> Deferred[Read]:
        """See ``facade.TaskQueue.get``."""
        return self._retry.read(self._get, task_id, wait_s, local, asker)

    def _get(self, task_id: str, wait_s: float, local: bool, asker: Asker | None) -> Deferred[Read]:
        state = self._state
        try:
            here = state.must_serve()
            if asker is not None:
                self._must_be_judged(asker)
            if local and here.replication.is_held(state.partition_of(task_id)):
                return here.reads.get(task_id, local=True, asker=asker)
            primary = state.primary_of(task_id)
        except TaskQueueError as why:
            return fail(why)
        if primary == state.node_id:
            return here.reads.get(task_id, wait_s=wait_s, local=local, asker=asker)
        get = calls.Get(task_id, wait_s, asker)
        if wait_s > 0:
            within_s = wait_s + calls.CALL_S
            return cast("Deferred[Read]", state.client.call_alone(primary, calls.GET, get, within_s, task_id))
        return state.client.call(primary, calls.GET, get, task_id)

    def _must_be_judged(self, asker: Asker) -> None:
        """:raises Upgrading: some node may not heed that the asker may not know of every task."""
        if asker.is_restricted and self._state.map.feature_level < ACCESS_LEVEL:
            raise Upgrading(_UPGRADING)

    def cancel(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        """See ``facade.TaskQueue.cancel``."""
        return self._change(task_id, asker, _CANCEL)

    def retry(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        """See ``facade.TaskQueue.retry``."""
        return self._change(task_id, asker, _RETRY)

    def purge(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        """See ``facade.TaskQueue.purge``."""
        return self._change(task_id, asker, _PURGE)

    def _change(self, task_id: str, asker: Asker | None, change: _Change) -> Deferred[TaskRow]:
        return self._retry.read(self._change_once, task_id, asker, change)

    def _change_once(self, task_id: str, asker: Asker | None, change: _Change) -> Deferred[TaskRow]:
        try:
            local, primary = self._state.route(task_id)
            if asker is not None:
                self._must_be_judged(asker)
        except TaskQueueError as why:
            return fail(why)
        if primary == self._state.node_id:
            return change.here(local, task_id, asker)
        call = self._state.client.call
        if asker is None or self._state.map.feature_level < ACCESS_LEVEL:
            return call(primary, change.there, task_id, task_id)
        return call(primary, change.there_for, calls.ChangeFor(task_id, asker), task_id)

    # --- many tasks ---
    def list(self, query: ListQuery) -> Deferred[TaskPage]:
        """See ``facade.TaskQueue.list``."""
        if query.waiting is not None and self._state.map.feature_level < WORKERS_LEVEL:
            return fail(Upgrading("waiting_for: not every node of the cluster can look for that yet"))
        if not query.cluster:
            return maybeDeferred(lambda: self._state.must_serve().reads.list(query))
        # Each task once: what a node has as primary.
        asked = msgspec.structs.replace(query, role="primary", cluster=False)
        own = maybeDeferred(lambda: self._state.must_serve().reads.list(asked))
        if query.role == "replica":
            return succeed(TaskPage([], None))
        state, covered = self._state, Covered(self._entries)
        return Deferred.fromCoroutine(
            all_pages(asked, own, state.node_id, state.others(), state.client, covered, self._clock.slices)
        )

    def stats(self, *, cluster: bool = False, queues: Collection[str] | None = None) -> Deferred[Stats]:
        """See ``facade.TaskQueue.stats``."""

        def count() -> Stats:
            reads = self._state.must_serve().reads
            return reads.stats() if queues is None else reads.stats_of(queues)

        own = maybeDeferred(count)
        if not cluster:
            return own
        state, covered = self._state, Covered(self._entries)
        return Deferred.fromCoroutine(all_stats(own, state.node_id, state.others(), state.client, covered, queues))

    def _entries(self) -> Sequence[Entry]:
        return [(entry.primary, int(entry.epoch)) for entry in self._state.map.partitions]

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        """See ``facade.TaskQueue.oldest_pending_age_s``."""
        local = self._state.local
        return succeed({}) if local is None else local.oldest_pending_age_s()

    def watch(
        self, observer: Callable[[EventBatch], None], *, after_id: int | None = None, cluster: bool = False
    ) -> Subscription:
        """See ``facade.TaskQueue.watch``."""
        if not cluster:
            return LocalEvents(self._state, observer, after_id)
        self._state.must_serve()
        # Cluster streams are numbered apart; who comes back can't go on where it was.
        first_id = self._clock.wall_us()
        if after_id is not None:
            observer(EventBatch(first_id, [], reset=True))
        return ClusterEvents(self._state, observer, self._clock, first_id)

    # --- this node ---
    def backup(self) -> Deferred[Sequence[str]]:
        """See ``facade.TaskQueue.backup``."""
        return maybeDeferred(lambda: self._state.must_serve().snapshots.take())  # noqa: PLW0108 (may raise)

    def notes(self) -> Sequence[ReadyNote]:
        """See ``facade.TaskQueue.notes``."""
        return (*self._state.settings.notes(), *self._work.notes(), *self._admin.notes())


def _as_new(accepted: Accepted) -> Accepted:
    """Nobody else knows the id: the task that is there is the one that was just submitted."""
    return msgspec.structs.replace(accepted, created=True)
