"""Serves peers' calls on this node's own partitions, none sent on; ``PeerClient`` calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import TaskQueueError
from tq_node.facade import LIST_SORTS, Accepted, EventBatch, ListQuery, Submission, TaskPage, WorkerSeen
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.peer_calls import KINDS, NOTHING, Nothing, refused
from tq_node.runtime.tasks.event_log import events_after
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.errors import Internal, MalformedBox, WireRefusal, declared_code

_log = Logger(namespace="taskqueue.forwarding")
Handlers = dict[str, Callable[[Any], Any]]
"""For each kind, by name, what does it: may raise, and may answer later."""


class Workers(Protocol):
    """The remote workers that speak to this node."""

    def ordered(self, order: calls.WorkerOrder) -> None:
        """Answer a worker that waits here, and tell it what operators want of it."""

    def claimed_here(self, worker: str, claim_id: str) -> Deferred[calls.ClaimsBefore]:
        """What the request of this id was granted; one that waits here is over."""

    def seen_here(self) -> Sequence[WorkerSeen]:
        """Those that this node knows."""


def handlers_of(
    local: Callable[[], LocalQueue],
    clock: Clock,
    on_offer: Callable[[calls.WorkOffer], None],
    on_shutdown: Callable[[], None],
    workers: Callable[[], Workers],
) -> Handlers:
    """:param local: the queue of this node; raises ``NotReady`` where there is none yet.

    An id that a peer says it has just made is looked for all the same: a second row of one id would
    break the store."""

    def submit(submission: Submission) -> Deferred[Accepted]:
        submission.made = False
        return local().submitter.submit(submission)

    def submit_many(submissions: list[Submission]) -> Deferred[list[calls.Item]]:
        for submission in submissions:
            submission.made = False
        done = local().submitter.submit_many(submissions)
        return done.addCallback(lambda results: [calls.item_of(result) for result in results])

    def finish(finish: calls.Finish) -> Deferred[Nothing]:
        return local().claims.finish(finish.claim, finish.outcome, finish.notes).addCallback(lambda _: NOTHING)

    def note(note: calls.Note) -> Deferred[Nothing]:
        return local().claims.note(note.claim, note.notes).addCallback(lambda _: NOTHING)

    def stop(stop: calls.Stop) -> Nothing:
        local().claims.stop_attempt(stop.task_id, stop.token)
        return NOTHING

    def offer(offer: calls.WorkOffer) -> Nothing:
        on_offer(offer)
        return NOTHING

    def claim(ask: calls.ClaimRequest) -> Deferred[calls.ClaimGrant]:
        types = None if ask.types is None else frozenset(ask.types)
        claimed = local().claims.lend(ask.limit, ask.node_name, types)
        return claimed.addCallback(lambda claims: calls.ClaimGrant(list(claims), local().claims.backlog(types)))

    def claim_for(asked: calls.ClaimFor) -> Deferred[calls.ClaimGrant]:
        types = None if asked.ask.types is None else frozenset(asked.ask.types)
        claimed = local().claims.claim_for(asked.ask, asked.limit)
        return claimed.addCallback(lambda claims: calls.ClaimGrant(list(claims), local().claims.backlog(types)))

    def worker_order(order: calls.WorkerOrder) -> Nothing:
        workers().ordered(order)
        return NOTHING

    def list_(query: ListQuery) -> Deferred[TaskPage]:
        if query.sort not in LIST_SORTS:
            raise MalformedBox(f"a list sorted by {query.sort[:50]!r}")
        return local().reads.list(query)

    def events(question: calls.EventsAfter) -> Deferred[EventBatch]:
        return events_after(local().events, clock, question)

    def shutdown(order: calls.Shutdown) -> Nothing:
        if order.by:
            _log.info("told to stop by token {by}", by=order.by, event="ordered")
        on_shutdown()
        return NOTHING

    return {
        calls.SUBMIT.name: submit,
        calls.SUBMIT_MANY.name: submit_many,
        calls.GET.name: lambda get: local().reads.get(get.task_id, wait_s=get.wait_s, asker=get.asker),
        calls.CANCEL.name: lambda task_id: local().cancel(task_id),
        calls.RETRY.name: lambda task_id: local().retry(task_id),
        calls.PURGE.name: lambda task_id: local().purge(task_id),
        calls.CANCEL_FOR.name: lambda change: local().cancel(change.task_id, change.asker),
        calls.RETRY_FOR.name: lambda change: local().retry(change.task_id, change.asker),
        calls.PURGE_FOR.name: lambda change: local().purge(change.task_id, change.asker),
        calls.FINISH.name: finish,
        calls.NOTE.name: note,
        calls.RENEW.name: lambda renew: local().renew(renew.partition, renew.attempts),
        calls.STOP.name: stop,
        calls.OFFER.name: offer,
        calls.CLAIM.name: claim,
        calls.CLAIM_FOR.name: claim_for,
        calls.CLAIMED_BEFORE.name: lambda asked: workers().claimed_here(asked.worker, asked.claim_id),
        calls.EXTEND.name: lambda asked: local().extend(asked.partition, asked.worker, asked.held),
        calls.WORKER_ORDER.name: worker_order,
        calls.REMOTE_WORKERS.name: lambda _: list(workers().seen_here()),
        calls.LIST.name: list_,
        calls.EVENTS.name: lambda question: events(question).addCallback(calls.earlier_events),
        calls.EVENTS_WITH_MAKERS.name: events,
        calls.STATS.name: lambda _: local().reads.stats(),
        calls.QUEUE_STATS.name: lambda asked: local().reads.stats_of(asked.queues),
        calls.OPEN_OF.name: lambda asked: [local().table.made.of(maker) for maker in asked.makers],
        calls.SHUTDOWN.name: shutdown,
    }


class PeerServer:
    """See the module's docstring."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    def serve(self, calls: Sequence[ForwardedCall]) -> Deferred[list[ForwardedResult]]:
        """One result for each call, in order; fires once all are there."""
        return gatherResults([self._one(call) for call in calls])

    def _one(self, call: ForwardedCall) -> Deferred[ForwardedResult]:
        kind = KINDS.get(call.kind)
        handler = self._handlers.get(call.kind)
        if kind is None or handler is None:
            return succeed(refused(WireRefusal(f"this version knows no call {call.kind[:50]!r}")))
        try:
            value = kind.call.decode(call.body)
        except MalformedBox as why:
            return succeed(refused(why))
        answer: Deferred[Any] = maybeDeferred(handler, value)
        return answer.addCallback(lambda result: ForwardedResult("", kind.result.encode(result))).addErrback(_refusal)


def _refusal(why: Failure) -> ForwardedResult:
    if isinstance(why.value, TaskQueueError) and declared_code(why.value) is not None:
        return refused(why.value)
    _log.failure("a forwarded call failed", failure=why, event="serve_failed")
    return refused(Internal("the node failed to answer"))
