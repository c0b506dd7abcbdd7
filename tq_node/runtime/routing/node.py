"""The life of a node: it opens its queue once its cluster is founded, follows the cluster map, and
stops in order.

``Node`` answers what the control plane and the peers ask of the data plane. Whether a call of a
client may be served, and where, the other parts read from its ``NodeState``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.cluster.liveness import Health
from tq_node.cluster.map import Change
from tq_node.cluster.pauses import paused
from tq_node.cluster.refusals import Refusal
from tq_node.facade import NotReadyReason
from tq_node.partition.effects import ProposeStepDown
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.control_plane import ControlPlane, Outside
from tq_node.runtime.control.partition_records import records_of
from tq_node.runtime.routing.node_state import ClusterQueueSettings, NodeState
from tq_node.runtime.routing.node_work import NodeWork
from tq_node.runtime.routing.peer_server import PeerServer, handlers_of
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId, Token
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.handler import Answer, Greeting
from tq_node.wire.handshake import PeerIdentity

_log = Logger(namespace="taskqueue.cluster")
TRANSFER_MS = 2_000
"""How long a node that stops waits for others to take over what it leads."""
TRANSFER_LOOK_S = 0.05
PAUSES_LOOK_S = 60.0
"""How often it is looked whether a pause is over: the wall clock may be set meanwhile."""


class NodeHooks(msgspec.Struct, frozen=True, kw_only=True):
    """What a node asks of its process."""

    guard: Callable[[], NotReadyReason | None]
    """Why a newborn cluster is not ready yet (see ``BootstrapGuard``); None once it is."""
    on_greeted: Callable[[Greeting], None]
    """Somebody, anybody, has greeted this node."""
    on_shutdown: Callable[[], None]
    """An operator wants this node to end, in order."""
    on_refused: Callable[[Refusal], None]
    """The cluster will not have this node."""
    on_broken: Callable[[BaseException], None]
    """A promise is broken: the process must end at once (R20)."""


class Node(Outside):
    """A node in its cluster. ``plane_of``: makes the control plane, which routes and calls back."""

    def __init__(
        self,
        clock: Clock,
        settings: ClusterQueueSettings,
        plane_of: Callable[[Outside], ControlPlane],
        hooks: NodeHooks,
    ) -> None:
        self.state = NodeState(clock, settings, plane_of(self), hooks.guard)
        self.work = NodeWork(self.state, clock)
        self._clock = clock
        self._hooks = hooks
        self._server = PeerServer(
            handlers_of(self.state.must_serve, clock, self.work.offered, hooks.on_shutdown, lambda: self.work.remote)
        )
        self._stopped = False
        self._connected: set[NodeId] = set()
        self._pauses_call: IDelayedCall | None = None
        self._opening: Deferred[None] | None = None
        """Fires once the queue is open, or has failed to open."""

    # --- life ---
    def start(self) -> None:
        """The control plane has begun; what it knows by now counts."""
        self.state.tokens.follow()
        self.map_changed(())

    def begin_to_stop(self) -> None:
        """Nothing new should come; what is led here is served until ``transfer_partitions``."""
        self.state.is_stopping = True

    def refuse_work(self) -> None:
        """No submit is accepted and no task is claimed from now on; what runs may still finish."""
        self.state.is_stopping = self.state.refuses_work = True
        if self.state.local is not None:
            self.state.local.refuse_work()
        self.work.refuse()

    async def stop(self) -> None:
        """Flush what was accepted; store and control plane stay open."""
        self.refuse_work()
        self._stopped = True
        if self._pauses_call is not None:
            self._pauses_call.cancel()
            self._pauses_call = None
        self.state.tokens.stop()
        self.state.open_tasks.stop()
        if self._opening is not None:
            await self._opening
        await self.work.stop()
        if self.state.local is not None:
            await self.state.local.stop()
            self.state.local = self.state.plane.replication = None
        self.state.client.stop()

    # --- the cluster map ---
    def map_changed(self, changes: Sequence[Change]) -> None:
        state = self.state
        if not state.map.is_founded or self._stopped:
            return
        state.tokens.follow()
        self.work.follow_handlers()
        if self._opening is None:
            self._opening = Deferred.fromCoroutine(self._open())
            self._opening.addErrback(self._not_opened)
        elif state.local is not None:
            self._follow(state.local)
            self.work.peers_changed()
            if state.refuses_work and (led := state.local.replication.led_with_others()):
                self._propose_step_down(led)  # somebody died, and this node was chosen though it stops

    async def _open(self) -> None:
        state = self.state
        state.local = local = await state.settings.open_local(state.map.settings)
        self.work.begin(local)
        for call in list(state.when_open):
            call(local)
        state.plane.replication = local.replication
        for node in sorted(self._connected):
            local.replication.connected(node)
        if state.is_stopping:
            local.refuse_work()
            self.work.refuse()
        self._follow(local)

    def _not_opened(self, why: Failure) -> None:
        _log.failure("the queue of this node could not start", failure=why, event="queue_failed")
        self._hooks.on_broken(cast("BaseException", why.value))

    def _follow(self, local: LocalQueue) -> None:
        cluster_map = self.state.map
        registered = self.state.plane.membership.is_registered
        names = {node.node_id: node.name for node in cluster_map.nodes.values()}
        local.follow(records_of(cluster_map, self.state.node_id, may_lead=registered), names)
        self._follow_pauses(local)

    def _follow_pauses(self, local: LocalQueue) -> None:
        """Hold what is paused now, and look again when the first of it is over."""
        if self._pauses_call is not None:
            self._pauses_call.cancel()
            self._pauses_call = None
        now_us = self._clock.wall_us()
        now = paused(self.state.map, now_us)
        local.set_paused(now.queues.keys(), now.types.keys())
        if now.next_end_us is not None:
            wait_s = min(PAUSES_LOOK_S, (now.next_end_us - now_us) / 1e6)
            self._pauses_call = self._clock.call_later(wait_s, self._pause_over)

    def _pause_over(self) -> None:
        self._pauses_call = None
        if self.state.local is not None and not self._stopped:
            self._follow_pauses(self.state.local)

    def handlers_heard(self) -> None:
        self.work.follow_handlers()

    async def transfer_partitions(self) -> None:
        """Another node of its set becomes primary of each partition that this one leads, if there
        is one (SIGTERM, section 6).

        Nobody is waited for where no other node is connected: a node that is gone takes over
        nothing, even where the cluster map does not know yet that it is gone."""
        local = self.state.local
        if local is None:
            return
        membership = self.state.plane.membership
        deadline_ms = self._clock.now_ms() + TRANSFER_MS
        while led := local.replication.led_with_others():
            if self._clock.now_ms() >= deadline_ms or not membership.is_connected:
                return
            self._propose_step_down(led)
            await membership.pause(TRANSFER_LOOK_S)

    def _propose_step_down(self, led: Sequence[tuple[int, int]]) -> None:
        self.state.plane.ask_controller([ProposeStepDown(partition, epoch) for partition, epoch in led])

    # --- Outside: what the control plane asks ---
    def health(self) -> Health:
        local = self.state.local
        if local is None:
            return Health()
        return Health(local.task_bytes(), may_lead=local.may_lead and not self.state.is_stopping)

    def has_tasks(self) -> bool:
        return self.state.local is not None and bool(self.state.local.task_bytes())

    def greeted(self, greeting: Greeting) -> None:
        self._hooks.on_greeted(greeting)

    def is_newborn(self) -> bool:
        return self.state.guard() is not None

    def refused(self, refusal: Refusal) -> None:
        self._hooks.on_refused(refusal)

    def broken(self, why: BaseException) -> None:
        self._hooks.on_broken(why)

    def peer_connected(self, node: NodeId) -> None:
        self._connected.add(node)
        self.work.peer_connected(node)
        if self.state.local is not None:
            self.state.local.replication.connected(node)

    def peer_lost(self, node: NodeId) -> None:
        self._connected.discard(node)
        self.work.peer_lost(node)
        if self.state.local is not None:
            self.state.local.replication.disconnected(node)

    def forward(
        self, peer: PeerIdentity, forwarded: list[ForwardedCall], within_ms: int
    ) -> Answer[list[ForwardedResult]]:
        return self._server.serve(forwarded)

    def tell_worker(self, worker: str) -> None:
        """Have a remote worker extend its leases now, wherever it waits."""
        self.work.remote.tell(worker)

    def stop_elsewhere(self, node_name: str, task_id: str, token: Token) -> None:
        node = self.state.map.node_named(node_name)
        if node is not None:
            stopped = self.state.client.call(node.node_id, calls.STOP, calls.Stop(task_id, token))
            # Where the call is lost, the attempt's lease is not renewed either.
            stopped.addErrback(lambda _: None)
