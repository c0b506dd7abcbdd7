"""The control plane of one node, assembled: consensus, table, membership, and the peers it talks to.

The data plane hears of the table through ``on_changed`` and answers forwarded calls through ``forward``; neither is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.cluster.commands import Registration
from tq_node.cluster.liveness import Health
from tq_node.cluster.map import Change, ClusterMap
from tq_node.cluster.refusals import Refusal
from tq_node.raft.messages import AnyMessage, Message, SoftState
from tq_node.runtime.clock import Clock
from tq_node.runtime.cluster_machine import ClusterMachine
from tq_node.runtime.membership import Addresses, Membership
from tq_node.runtime.raft_driver import RaftDriver
from tq_node.store.api import Batch, Store
from tq_node.types import NodeId
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.commands import Lane
from tq_node.wire.dialling import Dialling
from tq_node.wire.failures import Removed
from tq_node.wire.handler import Answer, Greeting, Welcome
from tq_node.wire.handshake import LocalIdentity, PeerIdentity, Sessions
from tq_node.wire.listener import PeerListener
from tq_node.wire.pool import PeerPool

_log = Logger(namespace="taskqueue.control")

MEMBERS = "cluster.members"
_encode_addresses = msgspec.msgpack.Encoder().encode
_decode_addresses = msgspec.msgpack.Decoder(Addresses).decode


class Outside:
    """What the control plane asks of the rest of the node; each method has an answer that fits a node without a data plane."""

    def health(self) -> Health:
        return Health()

    def has_tasks(self) -> bool:
        return False

    def is_newborn(self) -> bool:
        return False

    def table_changed(self, changes: Sequence[Change]) -> None:
        """The table is another; ``changes`` is empty after a snapshot, when all of it may be."""

    def refused(self, refusal: Refusal) -> None:
        """The cluster will not have this node."""

    def broken(self, why: BaseException) -> None:
        """A promise is broken: the process must end (R20)."""

    def forward(self, peer: PeerIdentity, calls: list[ForwardedCall], within_ms: int) -> Answer[list[ForwardedResult]]:
        return [ForwardedResult("not_ready", b"") for _ in calls]


class ControlPlane:
    """Implements ``wire.handler.PeerHandler`` and ``LaneWatcher``.

    :param dialling: shares ``sessions`` with the listener. :param seed: 64 random bits of this start.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        clock: Clock,
        store: Store,
        local: LocalIdentity,
        registration: Registration,
        endpoint: IStreamServerEndpoint,
        dialling: Dialling,
        sessions: Sessions,
        pool_of: Callable[[ControlPlane], PeerPool],
        outside: Outside,
        *,
        seed: int,
    ) -> None:
        self.local = local
        self.machine = ClusterMachine(self._table_changed)
        self.pool = pool_of(self)
        self.consensus = RaftDriver(
            local.node_id,
            store,
            clock,
            self.machine,
            seed=seed,
            send=self._send,
            on_soft_state=self._soft_state_changed,
            on_broken=outside.broken,
        )
        self.membership = Membership(
            local,
            registration,
            self.machine,
            self.consensus,
            self.pool,
            clock,
            health=outside.health,
            on_refused=outside.refused,
        )
        self.listener = PeerListener(reactor, endpoint, local, self, sessions)
        self._outside = outside
        self._registering: Deferred[None] | None = None
        self._store = store
        self._known_members = b""

    @property
    def map(self) -> ClusterMap:
        return self.machine.map

    # --- life ---
    async def start(self) -> None:
        """Listen, take up the log, dial the members, register this run."""
        self._known_members = self._store.meta().get(MEMBERS, b"")
        if self._known_members:
            # The table's end is in entries that only a leader knows to be committed, and answering it takes a lane to it.
            self.membership.seed(_decode_addresses(self._known_members))
        await self.listener.listen()
        self.pool.startService()
        await self.consensus.start()
        self.membership.start()
        self._registering = Deferred.fromCoroutine(self.membership.register())
        self._registering.addErrback(self._could_not_register)

    async def stop(self) -> None:
        """Nothing is left open. Leadership is not handed over here: whoever stops a leader in order transfers it first."""
        await self.membership.stop()
        await self.consensus.stop()
        await self.pool.stopService()
        await self.listener.stop()

    def _could_not_register(self, why: Failure) -> None:
        _log.failure("registration failed", failure=why, event="register_failed")

    # --- between the parts ---
    def _send(self, messages: Sequence[Message]) -> None:
        by_target: dict[NodeId, list[Message]] = {}
        for message in messages:
            by_target.setdefault(message.target, []).append(message)
        for target, batch in by_target.items():
            self.pool.send(target, batch)

    def _soft_state_changed(self, state: SoftState) -> None:
        self.membership.soft_state_changed(state)

    def _table_changed(self, changes: Sequence[Change]) -> None:
        self.membership.map_changed()
        self._remember_members()
        self._outside.table_changed(changes)

    def _remember_members(self) -> None:
        """Where to find the others after a restart, before anything of the log is known to be committed."""
        members = _encode_addresses(self.membership.addresses())
        if members != self._known_members and self.membership.is_registered:
            self._known_members = members
            self._store.commit(Batch(meta={MEMBERS: members})).addErrback(
                lambda _: None
            )  # the store says so itself (R18)

    # --- PeerHandler ---
    def greeted(self, greeting: Greeting) -> Welcome:
        return Welcome(
            self.local.cluster, self.local.name, newborn=self._outside.is_newborn(), has_tasks=self._outside.has_tasks()
        )

    def admit(self, peer: PeerIdentity) -> None:
        entry = self.map.nodes.get(peer.node_id)
        if entry is not None and not entry.is_member:
            raise Removed(f"node {peer.name} was removed from this cluster; its id is never used again")

    def raft(self, peer: PeerIdentity, messages: list[AnyMessage]) -> None:
        self.consensus.receive(messages)

    def data(self, peer: PeerIdentity, body: bytes) -> None:
        """Nobody sends these yet."""

    def forward(self, peer: PeerIdentity, calls: list[ForwardedCall], within_ms: int) -> Answer[list[ForwardedResult]]:
        return self._outside.forward(peer, calls, within_ms)

    def register(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        return self.membership.registered_by(peer, body)

    def heartbeat(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        return self.membership.heartbeat_of(peer, body)

    def evidence(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        return self.membership.evidence_of(peer, body)

    def propose(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        return self.membership.proposed_by(peer, body)

    def broken(self, what: str, failure: Failure) -> None:
        self._outside.broken(cast("BaseException", failure.value))

    # --- LaneWatcher ---
    def lane_up(self, peer: PeerIdentity, at_ms: int) -> None:
        self.membership.lane_up(peer)

    def lane_lost(self, peer: PeerIdentity, at_ms: int, broke: bool, why: str) -> None:
        self.membership.lane_lost(peer, broke=broke)

    def dial_failed(self, node_id: NodeId, lane: Lane, at_ms: int, why: Exception) -> None:
        """The pool dials again by itself; what a refused port means is the evidence collector's to find out."""

    def lane_writable(self, node_id: NodeId, lane: Lane) -> None:
        """Consensus sends again by itself."""
