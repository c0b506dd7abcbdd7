"""The facade's side for ``work``: what this node's worker claims and reports, wherever the
partitions of its tasks are led.

A worker claims from the partitions led here first, then from nodes that have more than they can
start (``work_stealing``). What it reports of an attempt goes to the primary of the task's
partition, which may have changed since the claim (section 8)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster.pauses import Paused, paused
from tq_node.cluster.records import HANDLERS_LEVEL, ClusterMap
from tq_node.errors import NotReady, StaleAttempt, TaskQueueError, Upgrading
from tq_node.facade import Claim, HandlersReloaded, NodeHandlers, Notes, Outcome, ReadyNote, Released, Worker
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.routing.lease_renewal import LeaseRenewer
from tq_node.runtime.routing.node_state import NodeState
from tq_node.runtime.routing.remote_workers import RemoteWorkers
from tq_node.runtime.routing.work_offers import WorkOffers
from tq_node.runtime.routing.work_stealing import WorkStealer
from tq_node.runtime.tasks.handler_map import HandlerMap
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.runtime.tasks.type_defaults import TypeDefaultsTable
from tq_node.runtime.tasks.wait_reasons import WaitReasons
from tq_node.types import Announced, HandlerKind, NodeId

GIVE_UP_LOOK_S = 1.0


class _Shared(msgspec.Struct):
    """What there is only once the queue of this node is open."""

    leases: LeaseRenewer
    offers: WorkOffers
    stealer: WorkStealer
    loops: list[Loop]


class NodeWork:
    """See the module's docstring. ``begin`` once the queue of this node is open."""

    def __init__(self, state: NodeState, clock: Clock) -> None:
        self.handlers = HandlerMap(state.node_id, clock)
        self.defaults = TypeDefaultsTable()
        self._state = state
        self._clock = clock
        self.worker: Worker | None = None
        self.remote = RemoteWorkers(state, clock, self.handlers_changed)
        self._shared: _Shared | None = None
        self.reasons: WaitReasons | None = None
        self._paused_seen: tuple[ClusterMap | None, Paused] = (None, Paused())

    # --- life ---
    def begin(self, local: LocalQueue) -> None:
        """The queue of this node is open: the worker may claim of it, and of other nodes'."""
        state, clock, client = self._state, self._clock, self._state.client
        leases = LeaseRenewer(local, client, clock, lambda partition: state.map.partitions[partition].primary)
        offers = WorkOffers(local, client, clock, self._able_peers, types_of=self.handlers.types_of)
        local.on_ready = offers.noticed
        stealer = WorkStealer(local, client, leases, clock, self)
        loops = []
        if (after_ms := state.settings.no_handler_after_ms) is not None:
            give_up = partial(local.give_up_unhandled, self.handlers, after_ms * 1000)
            loops.append(clock.every(GIVE_UP_LOOK_S, give_up, "looking for tasks without a handler"))
        loops.append(clock.every(limits.LEASE_RENEW_MS / 1000, leases.round, "renewing leases"))
        self._shared = _Shared(leases, offers, stealer, loops)
        self.remote.begin(local, stealer, self.give_back)
        self.reasons = WaitReasons(local, self.handlers, clock, self._paused, self._has_slot)
        local.reads.waits = self.reasons
        if self.worker is not None:
            local.claims.attach(self.worker)
        self._follow_takers(local)

    def refuse(self) -> None:
        """Nothing more is claimed of other nodes or offered to them."""
        if self._shared is not None:
            self._shared.offers.stop()
            self._shared.stealer.stop()
        self.remote.refuse()

    async def stop(self) -> None:
        """Leases of attempts that run here are renewed no more."""
        await self.remote.stop()
        if self._shared is not None:
            for loop in self._shared.loops:
                loop.stop()
                await loop.ended

    # --- handlers ---
    def attach(self, worker: Worker) -> None:
        """See ``facade.TaskQueue.attach``."""
        self.worker = worker
        self.handlers_changed()
        if self._state.local is not None:
            self._state.local.claims.attach(worker)

    def handlers_changed(self) -> None:
        """See ``facade.TaskQueue.handlers_changed``."""
        if self.worker is not None:
            self._state.plane.membership.announce(self.remote.announced_with(self.worker.announced))
        self.follow_handlers()

    def follow_handlers(self) -> None:
        """Who takes what may have changed: by the map, another node's word, or the worker here."""
        worker, state = self.worker, self._state
        if not state.map.is_founded:
            return
        announced = state.plane.membership.liveness.handlers
        self.defaults.follow(
            state.map.type_settings,
            state.settings.declared(),
            [announced[node].handled for node, _ in sorted(state.others(), key=_name) if node in announced],
            state.map.announced_types,
        )
        if worker is None:
            return
        worker.stand_in(self.handlers.may_stand_in(state.map, announced) and self.remote.types == frozenset())
        if state.plane.membership.is_registered:
            self.handlers.log(worker)
        if self.handlers.follow(state.map, announced, self._types_here(worker)) and state.local is not None:
            self._follow_takers(state.local)

    def _types_here(self, worker: Worker) -> Collection[str] | None:
        """What this node's worker and remote ones at this node take; None: any."""
        own, remote = worker.types, self.remote.types
        return None if own is None or remote is None else remote.union(own)

    def _follow_takers(self, local: LocalQueue) -> None:
        own = () if self.worker is None else self.worker.types
        local.follow_handlers(own, self.handlers.takers.named)

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        """See ``facade.TaskQueue.reload_handlers``."""
        if self.worker is None:
            return fail(NotReady("the node is starting"))
        return self.worker.reload_handlers()

    def shown_handlers(self) -> Sequence[NodeHandlers]:
        """See ``facade.TaskQueue.handlers``."""
        cluster_map = self._state.map
        if cluster_map.feature_level < HANDLERS_LEVEL:
            raise Upgrading("handlers: not every node of the cluster says yet which ones it has")
        own = Announced(HandlerKind.NONE) if self.worker is None else self.worker.announced
        own = self.remote.announced_with(own)
        return self.handlers.shown(cluster_map, self._state.plane.membership.liveness.handlers, own)

    def notes(self) -> Sequence[ReadyNote]:
        """Why this node's worker runs no tasks, or not all."""
        return () if self.worker is None else (*self.worker.notes, *self.handlers.notes(self.worker))

    # --- work for one another ---
    def offered(self, offer: calls.WorkOffer) -> None:
        """Another node has more ready tasks than it can start."""
        if self._shared is not None:
            self._shared.stealer.offered(offer)

    def peers_changed(self) -> None:
        """The nodes that may be asked for help may be others than before."""
        if self._shared is not None:
            self._shared.offers.noticed()

    def peer_connected(self, node: NodeId) -> None:
        """It may run another release than before."""
        if self._shared is not None:
            self._shared.offers.connected(node)
        self.remote.connected(node)

    def peer_lost(self, node: NodeId) -> None:
        """What it had offered is another node's by then."""
        if self._shared is not None:
            self._shared.stealer.forget(node)

    # --- why tasks wait ---
    def _paused(self) -> Paused:
        cluster_map, now_us = self._state.map, self._clock.wall_us()
        seen_map, now = self._paused_seen
        if seen_map is not cluster_map or (now.next_end_us is not None and now.next_end_us <= now_us):
            now = paused(cluster_map, now_us)
            self._paused_seen = cluster_map, now
        return now

    def _has_slot(self, queue: str, task_type: str) -> bool:
        """Whether a worker at this node could begin such a task now; of others it is not known."""
        worker = self.worker
        is_here = worker is not None and worker.slots_free > 0
        takes = is_here and worker is not None and (worker.types is None or task_type in worker.types)
        return takes or self.remote.is_waited_for(queue, task_type)

    def waiting(self) -> Mapping[str, int]:
        """About how many tasks led here wait for what; for metrics."""
        return {} if self.reasons is None else self.reasons.counts()

    def _able_peers(self) -> Sequence[NodeId]:
        return sorted(
            node.node_id
            for node in self._state.map.members()
            if node.is_up and not node.is_draining and node.node_id != self._state.node_id
        )

    @property
    def may_help(self) -> bool:
        """A node that is drained, or stops, begins nothing more."""
        me = self._state.map.nodes.get(self._state.node_id)
        return not self._state.is_stopping and me is not None and me.is_up and not me.is_draining

    def wake_waiting(self) -> None:
        """A peer has work: remote workers may wait for it here."""
        self.remote.wake()

    def give_back(self, claims: Sequence[Claim]) -> None:
        """Give claims back to their primary: they are not run here."""
        for claim in claims:
            # Where that is lost, the attempt's lease is over soon.
            self.finish(claim, Released()).addErrback(lambda _: None)

    # --- attempts ---
    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        """See ``facade.TaskQueue.claim``."""
        local = self._state.local
        if local is None or self._state.guard() is not None:
            return succeed([])
        claims = local.claims.claim(limit)
        return claims if self._shared is None else self._shared.stealer.fill(claims, limit)

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        """As ``TaskQueue.finish``, also at another node, if that is the primary now (section 8)."""
        try:
            local, primary = self._state.must_serve(), self._primary_of(claim)
        except TaskQueueError as why:
            return fail(why)
        if primary == self._state.node_id:
            return local.claims.finish(claim, outcome, notes)
        report = calls.Finish(_without_payload(claim), outcome, notes)

        def reported(result: Any) -> Any:
            if not isinstance(result, Failure):
                local.claims.let_go(claim)
                return None
            error = result.value
            if isinstance(error, TaskQueueError) and error.definite and not error.retryable:
                local.claims.let_go(claim)  # nobody reports it again
            return result

        return self._state.client.call(primary, calls.FINISH, report, claim.task_id).addBoth(reported)

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        """See ``facade.TaskQueue.note``."""
        try:
            local, primary = self._state.must_serve(), self._primary_of(claim)
        except TaskQueueError as why:
            return fail(why)
        if primary == self._state.node_id:
            return local.claims.note(claim, notes)
        report = calls.Note(_without_payload(claim), notes)
        return self._state.client.call(primary, calls.NOTE, report, claim.task_id).addCallback(lambda _: None)

    def _primary_of(self, claim: Claim) -> NodeId:
        """:raises StaleAttempt: the task lives elsewhere: a worker took another task's token."""
        if claim.partition != self._state.partition_of(claim.task_id):
            raise StaleAttempt("the token is of another task", task_id=claim.task_id)
        return self._state.primary_of(claim.task_id, claim.partition)

    def lease_ms(self, claim: Claim) -> int:
        """See ``facade.TaskQueue.lease_ms``."""
        return 0 if self._shared is None else self._shared.leases.lease_ms(claim)


def _name(node: tuple[NodeId, str]) -> str:
    return node[1]


def _without_payload(claim: Claim) -> Claim:
    """For its primary, which has the payload: the token says which attempt it is."""
    return msgspec.structs.replace(claim, payload=b"")
