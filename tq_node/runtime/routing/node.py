"""The node behind its queue: takes up the queue's part of the table, and answers what the control plane and peers ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster.liveness import Health
from tq_node.cluster.map import Change
from tq_node.cluster.records import ClusterSettings
from tq_node.cluster.refusals import Refusal
from tq_node.errors import NotReady
from tq_node.facade import Claim, NotReadyReason, ReadyNote, Worker
from tq_node.partition.effects import ProposeStepDown
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.control.control_plane import ControlPlane, Outside
from tq_node.runtime.control.partition_records import records_of
from tq_node.runtime.routing.admin import ClusterAdmin
from tq_node.runtime.routing.failover_retry import FailoverRetry
from tq_node.runtime.routing.lease_renewal import LeaseRenewer
from tq_node.runtime.routing.observer import Observer
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.routing.peer_server import PeerServer, handlers_of
from tq_node.runtime.routing.work_offers import WorkOffers
from tq_node.runtime.routing.work_stealing import WorkStealer
from tq_node.runtime.tasks.handler_map import HandlerMap
from tq_node.runtime.tasks.ids import IdMaker
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId, Token
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.handler import Answer, Greeting
from tq_node.wire.handshake import PeerIdentity

_log = Logger(namespace="taskqueue.cluster")
HAND_OVER_MS = 2_000
"""How long a node that stops waits for others to take over what it leads."""
HAND_OVER_LOOK_S = 0.05
GIVE_UP_LOOK_S = 1.0


class ClusterQueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """:param make_local: the queue of this node, once it is known how the cluster was born."""

    node_id: NodeId
    node_name: str
    make_local: Callable[[ClusterSettings], LocalQueue]
    workers_are_gone: Callable[[], bool]
    random_bytes: Callable[[int], bytes]
    no_handler_after_ms: int | None = None
    """How long a task may wait for a handler before it fails; None: for ever."""
    draw: Callable[[], float] = lambda: 0.5
    """Random numbers in [0, 1), for pauses."""
    secret_to_hand_over: Callable[[], bytes | None] = lambda: None
    """None where operators keep the cluster's secret in a file."""
    notes: tuple[ReadyNote, ...] = ()
    """What ``/ready`` says of this node as long as it runs, such as that it asks nobody for credentials."""


class Node(ClusterAdmin, Outside):
    """See the module's docstring. ``start`` comes after ``plane`` is set.

    :param guard: why a newborn cluster is not ready yet (the birth guard); None once it is.
    :param on_refused: the cluster will not have this node. :param on_broken: a promise is broken (R20).
    """

    def __init__(
        self,
        clock: Clock,
        settings: ClusterQueueSettings,
        *,
        guard: Callable[[], NotReadyReason | None],
        on_greeted: Callable[[Greeting], None],
        on_shutdown: Callable[[], None],
        on_refused: Callable[[Refusal], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        super().__init__(clock, settings.node_id, settings.node_name, on_shutdown, settings.secret_to_hand_over)
        self._settings = settings
        self._guard = guard
        self._on_greeted = on_greeted
        self._on_refused = on_refused
        self._on_broken = on_broken
        self._ids = IdMaker(settings.random_bytes)
        self._patience = FailoverRetry(clock, settings.draw, lambda: self._refuses_work)
        self._refuses_work = self._is_over = False
        self._connected: set[NodeId] = set()
        self._renewing: LeaseRenewer | None = None
        self._renewals: Loop | None = None
        self._giving_up: Loop | None = None
        self._local_started: Deferred[None] | None = None
        self._worker: Worker | None = None
        self._observers: list[Observer] = []
        self._lending: WorkOffers | None = None
        self._helping: WorkStealer | None = None
        self._handling = HandlerMap(settings.node_id, clock)
        self._serving = PeerServer(handlers_of(self._must_serve, self._offered, on_shutdown))

    # --- life ---
    def joins(self, plane: ControlPlane) -> None:
        """The control plane that decides where calls go; before ``start``."""
        self.plane = plane
        self._forwarding = PeerClient(plane.pool, self._clock, self.name_of)

    def start(self) -> None:
        """The plane has begun; what it knows by now counts."""
        self.table_changed(())

    def begin_to_stop(self) -> None:
        """Nothing new should come here; what this node leads it serves until others do (``hand_over``)."""
        self.is_stopping = True

    def refuse_work(self) -> None:
        """No submit is accepted and no task is claimed from now on; what runs may still finish."""
        self.is_stopping = self._refuses_work = True
        if self._local is not None:
            self._local.refuse_work()
        self._stop_helping()

    async def stop(self) -> None:
        """Flush what was accepted; store and plane stay open."""
        self.refuse_work()
        self._is_over = True
        if self._local_started is not None:
            await self._local_started
        for loop in filter(None, (self._renewals, self._giving_up)):
            loop.stop()
            await loop.over
        if self._local is not None:
            await self._local.stop()
            self.plane.replication = None
        self._forwarding.stop()

    # --- the table ---
    def table_changed(self, changes: Sequence[Change]) -> None:
        if not self.map.is_founded or self._is_over:
            return
        self._look_at_handlers()
        if self._local is None:
            self._local = self._settings.make_local(self.map.settings)
            self._local_started = Deferred.fromCoroutine(self._start_local(self._local))
            self._local_started.addErrback(self._local_failed)
        elif self._local.is_active:
            self._follow(self._local)
            if self._lending is not None:
                self._lending.noticed()  # who may be asked for help may be others
            if self._refuses_work and (led := self._local.replication.led_with_others()):
                self._give_away(led)  # somebody died, and this node was chosen though it stops

    async def _start_local(self, local: LocalQueue) -> None:
        await local.start(workers_are_gone=self._settings.workers_are_gone)
        self._renewing = LeaseRenewer(
            local, self._forwarding, self._clock, lambda partition: self.map.partitions[partition].primary
        )
        self._lending = WorkOffers(
            local, self._forwarding, self._clock, self._may_be_asked, types_of=self._handling.types_of
        )
        local.on_ready = self._lending.noticed
        self._helping = WorkStealer(
            local,
            self._forwarding,
            self._renewing,
            self._clock,
            lambda: self._worker,
            may_help=self._may_help,
            give_back=self._give_back,
        )
        if (after_ms := self._settings.no_handler_after_ms) is not None:
            give_up = partial(local.give_up_unhandled, self._handling, after_ms * 1000)
            self._giving_up = self._clock.every(GIVE_UP_LOOK_S, give_up, "looking for tasks without a handler")
        self._renewals = self._clock.every(limits.LEASE_RENEW_MS / 1000, self._renewing.round, "renewing leases")
        if self._worker is not None:
            local.attach(self._worker)
        self._tell_takers(local)
        for observer in list(self._observers):
            observer.begin(local)
        self.plane.replication = local.replication
        for node in sorted(self._connected):
            local.replication.connected(node)
        if self.is_stopping:
            local.refuse_work()
            self._stop_helping()
        self._follow(local)

    def _local_failed(self, why: Failure) -> None:
        _log.failure("the queue of this node could not start", failure=why, event="queue_failed")
        self._on_broken(cast("BaseException", why.value))

    def _follow(self, local: LocalQueue) -> None:
        registered = self.plane.membership.is_registered
        names = {node.node_id: node.name for node in self.map.nodes.values()}
        local.follow(records_of(self.map, self.node_id, may_lead=registered), names)
        local.set_paused(self.map.paused_queues)

    # --- handlers ---
    def handlers_changed(self) -> None:
        """This node's worker runs others than before."""
        assert self._worker is not None, "who says so is attached"
        self.plane.membership.announce(self._worker.announced)
        self._look_at_handlers()

    def handlers_heard(self) -> None:
        self._look_at_handlers()

    def _look_at_handlers(self) -> None:
        """Who takes what may have changed: the table, what another node has said, or the worker here."""
        worker, told = self._worker, self.plane.membership.liveness.handlers
        if worker is None or not self.map.is_founded:
            return
        worker.stand_in(self._handling.may_stand_in(self.map, told))
        if self.plane.membership.is_registered:
            self._handling.say(worker.announced.kind)
        if self._handling.follow(self.map, told, worker.types) and self._local is not None and self._local.is_active:
            self._tell_takers(self._local)

    def _tell_takers(self, local: LocalQueue) -> None:
        own = () if self._worker is None else self._worker.types
        local.follow_handlers(own, self._handling.takers.named)

    # --- work for one another ---
    def _may_be_asked(self) -> Sequence[NodeId]:
        return sorted(
            node.node_id
            for node in self.map.members()
            if node.is_up and not node.is_draining and node.node_id != self.node_id
        )

    def _may_help(self) -> bool:
        """A node that is drained, or stops, begins nothing more."""
        me = self.map.nodes.get(self.node_id)
        return not self.is_stopping and me is not None and me.is_up and not me.is_draining

    def _stop_helping(self) -> None:
        if self._lending is not None:
            self._lending.stop()
        if self._helping is not None:
            self._helping.stop()

    def _offered(self, offer: calls.WorkOffer) -> None:
        if self._helping is not None:
            self._helping.offered(offer)

    def _give_back(self, claims: Sequence[Claim]) -> None:
        """They are not run here: their primary is told."""
        raise NotImplementedError

    def name_of(self, node: NodeId) -> str:
        entry = self.map.nodes.get(node)
        return node if entry is None else entry.name

    def _guarded(self) -> NotReadyReason | None:
        return self._guard()

    def _must_serve(self) -> LocalQueue:
        """:raises NotReady: this node is not, or not yet, a member with a queue of its own."""
        guarded = self._guard()
        if guarded is not None:
            raise NotReady(guarded.detail)
        if self._local is None or not self._local.is_active:
            is_joining = self._local is None and not self.map.is_founded
            raise NotReady("the node has not joined its cluster yet" if is_joining else "the node is starting")
        return self._local

    # --- Outside: what the control plane asks ---
    def health(self) -> Health:
        local = self._local
        if local is None or not local.is_active:
            return Health()
        return Health(local.task_bytes(), may_lead=local.may_lead and not self.is_stopping)

    def has_tasks(self) -> bool:
        return self._local is not None and self._local.is_active and bool(self._local.task_bytes())

    def greeted(self, greeting: Greeting) -> None:
        self._on_greeted(greeting)

    def is_newborn(self) -> bool:
        return self._guard() is not None

    def refused(self, refusal: Refusal) -> None:
        self._on_refused(refusal)

    def broken(self, why: BaseException) -> None:
        self._on_broken(why)

    def peer_connected(self, node: NodeId) -> None:
        self._connected.add(node)
        if self._lending is not None:
            self._lending.connected(node)
        if self._local is not None and self._local.is_active:
            self._local.replication.connected(node)

    def peer_lost(self, node: NodeId) -> None:
        self._connected.discard(node)
        if self._helping is not None:
            self._helping.forget(node)
        if self._local is not None and self._local.is_active:
            self._local.replication.disconnected(node)

    def stop_elsewhere(self, node_name: str, task_id: str, token: Token) -> None:
        node = self.map.node_named(node_name)
        if node is not None:
            told = self._forwarding.call(node.node_id, calls.STOP, calls.Stop(task_id, token))
            # If it does not hear, its lease is not renewed either.
            told.addErrback(lambda _: None)

    async def hand_over(self) -> None:
        """Another node of its set becomes primary of each partition that this one leads, if there is one (SIGTERM, section 6).

        Nobody is waited for where no other node is connected: who is gone takes nothing, though the table may not know it yet.
        """
        if self._local is None or not self._local.is_active:
            return
        deadline_ms = self._clock.now_ms() + HAND_OVER_MS
        while led := self._local.replication.led_with_others():
            if self._clock.now_ms() >= deadline_ms or not self.plane.membership.is_connected:
                return
            self._give_away(led)
            await self.plane.membership.pause(HAND_OVER_LOOK_S)

    def _give_away(self, led: Sequence[tuple[int, int]]) -> None:
        self.plane.ask_controller([ProposeStepDown(partition, epoch) for partition, epoch in led])

    def forward(
        self, peer: PeerIdentity, forwarded: list[ForwardedCall], within_ms: int
    ) -> Answer[list[ForwardedResult]]:
        return self._serving.serve(forwarded)
