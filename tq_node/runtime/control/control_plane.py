"""The control plane of one node, assembled: consensus, cluster map, membership, and peers.

The rest of the node learns of changes through ``Outside``, and answers forwarded calls there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.cluster.commands import Registration
from tq_node.cluster.liveness import Health
from tq_node.cluster.map import Change, ClusterMap
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.soundness import is_incarnation_near
from tq_node.errors import NotReady, TaskQueueError
from tq_node.partition.effects import Step
from tq_node.raft.core import RaftCore
from tq_node.raft.messages import AnyMessage, Message, SoftState
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.map_machine import ClusterMachine
from tq_node.runtime.control.membership import MapLog, Membership
from tq_node.runtime.control.partition_records import commands_of
from tq_node.runtime.control.raft_driver import RaftDriver, RaftOutputs
from tq_node.runtime.control.registration import Addresses
from tq_node.runtime.rejection_log import RejectionLog
from tq_node.store.api import Batch, Store
from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.commands import Lane
from tq_node.wire.errors import MalformedBox, Removed, StaleSession, Starting, WrongCertificate, WrongNode
from tq_node.wire.handler import Answer, Greeting, Welcome
from tq_node.wire.handshake import LocalIdentity, PeerIdentity
from tq_node.wire.listener import PeerListener
from tq_node.wire.pool import PeerPool

_log = Logger(namespace="taskqueue.control")

MEMBERS = "cluster.members"
TOKENS_SEEN = "cluster.tokens_seen"
"""There once this node has seen a token in the map: it holds from a start's first moment on."""
_encode_addresses = msgspec.msgpack.Encoder().encode
_decode_addresses = msgspec.msgpack.Decoder(Addresses).decode


class Outside:
    """What the control plane asks of the rest of the node, and reports to it. Each method here
    answers for a node that keeps no partitions."""

    def health(self) -> Health:
        return Health()

    def has_tasks(self) -> bool:
        return False

    def greeted(self, greeting: Greeting) -> None:
        """A node, not authenticated, has sent a greeting (see ``BootstrapGuard``)."""

    def is_newborn(self) -> bool:
        return False

    def map_changed(self, changes: Sequence[Change]) -> None:
        """The map has changed; ``changes`` is empty after a snapshot, when all of it may have."""

    def handlers_heard(self) -> None:
        """A node has announced which handlers it has now."""

    def peer_connected(self, node: NodeId) -> None:
        """The bulk lane is open both ways, with a new connection in at least one of them."""

    def peer_lost(self, node: NodeId) -> None:
        """The bulk lane to the node is closed: nothing can be sent to it."""

    def refused(self, refusal: Refusal) -> None:
        """The cluster refuses this node for good."""

    def broken(self, why: BaseException) -> None:
        """A promise is broken: the process must end (R20)."""

    def forward(self, peer: PeerIdentity, calls: list[ForwardedCall], within_ms: int) -> Answer[list[ForwardedResult]]:
        return [ForwardedResult("not_ready", b"") for _ in calls]


class ReplicaPeer(Protocol):
    """The replicas of this node, as the wire sees them."""

    def received(self, source: NodeId, body: bytes) -> None:
        """Take messages of partitions; raises ``MalformedBox`` if they are none."""

    def asked(self, source: NodeId, body: bytes) -> None:
        """Take a ping, or the answer to one; raises ``MalformedBox`` if it is neither."""


class Transport(NamedTuple):
    """Makes both ends of the wire; the control plane handles what they receive."""

    pool_of: Callable[[ControlPlane], PeerPool]
    listener_of: Callable[[ControlPlane], PeerListener]
    has_certificates: bool
    own_certificate: Callable[[], bytes] = bytes
    """SHA-256 of the one that this node shows now."""


@dataclass(frozen=True, slots=True)
class ThisRun:
    """Which node this is, and which of its starts."""

    local: LocalIdentity
    registration: Registration
    seed: int
    """64 random bits of this start."""


class ControlPlane:
    """Consensus, cluster map, membership and peers of one node, joined. Implements
    ``wire.handler.PeerHandler`` and ``LaneWatcher``, and replication's ``Surroundings``."""

    def __init__(self, clock: Clock, store: Store, run: ThisRun, transport: Transport, outside: Outside) -> None:
        self.local = run.local
        self.machine = ClusterMachine(self._map_changed)
        self.link = self.pool = transport.pool_of(self)
        self.replication: ReplicaPeer | None = None
        """Takes what peers send about partitions; None: no replicas yet, peers send it again."""
        self.consensus = RaftDriver(
            run.local.node_id,
            store,
            clock,
            self.machine,
            RaftOutputs(self._send, self._soft_state_changed, outside.broken),
            seed=run.seed,
        )
        self.membership = Membership(
            run.local, run.registration, MapLog(self.consensus, self.machine), self.pool, clock, outside
        )
        self.listener = transport.listener_of(self)
        self.has_certificates = transport.has_certificates
        self.membership.shown.own = transport.own_certificate
        self._is_started = False
        self._outside = outside
        self._clock = clock
        self._store = store
        self._known_members = b""
        self._tokens_seen = TOKENS_SEEN in store.meta()
        self._rejections = RejectionLog(clock)

    def successor(self) -> NodeId | None:
        """Who should lead after this node; None where this node does not lead, or nobody can."""
        core = self.core
        if not core.is_leader:
            return None
        voters = set(core.configuration.voters)
        caught_up = [
            node
            for node, status in sorted(self.consensus.followers().items())
            if node in voters and status.is_caught_up and self.pool.is_connected(node)
        ]
        return caught_up[0] if caught_up else None

    @property
    def core(self) -> RaftCore:
        """See ``RaftDriver.core``."""
        return self.consensus.core

    @property
    def map(self) -> ClusterMap:
        return self.machine.map

    # --- life ---
    def listen(self) -> Deferred[IListeningPort]:
        """Accept connections; before ``start``, all but greetings are answered with ``Starting``.
        For TCP and Unix sockets the port is there at once. Fails with ``CannotListenError``."""
        return self.listener.listen()

    async def start(self) -> None:
        """Read the Raft log, dial the members, register this run (its identity is durable)."""
        self._known_members = self._store.meta().get(MEMBERS, b"")
        if self._known_members:
            # The table's end is in entries that only a leader knows to be committed, and answering
            # it takes a lane to it.
            self.membership.seed(_decode_addresses(self._known_members))
        self.pool.startService()
        await self.consensus.start()
        self._is_started = True
        self.membership.start()

    async def stop(self) -> None:
        """Close everything. Raft leadership is not transferred: who wants that does it first."""
        await self.membership.stop()
        await self.consensus.stop()
        await self.pool.stopService()
        await self.listener.stop()

    def ask_controller(self, steps: Sequence[Step]) -> None:
        """Propose what partitions' cores want. Nobody waits for the outcome: they ask again."""
        membership = self.membership
        for command in commands_of(steps, self.local.node_id, membership.session_of(self.local.node_id)):
            Deferred.fromCoroutine(membership.propose(command)).addErrback(_ask_failed)

    # --- between the parts ---
    def _send(self, messages: Sequence[Message]) -> None:
        by_target: dict[NodeId, list[Message]] = {}
        for message in messages:
            by_target.setdefault(message.target, []).append(message)
        for target, batch in by_target.items():
            self.pool.send(target, batch)

    def _soft_state_changed(self, state: SoftState) -> None:
        self.membership.soft_state_changed(state)

    def _map_changed(self, changes: Sequence[Change]) -> None:
        self.membership.map_changed()
        self._remember_members()
        self._remember_tokens()
        self._outside.map_changed(changes)

    def _remember_members(self) -> None:
        """Store the members' addresses: after a restart no entry of the log is known committed."""
        members = _encode_addresses(self.membership.addresses())
        if members != self._known_members and self.membership.is_registered:
            self._known_members = members
            self._store.commit(Batch(meta={MEMBERS: members})).addErrback(
                lambda _: None
            )  # the store says so itself (R18)

    def _remember_tokens(self) -> None:
        if self.map.tokens_seen and not self._tokens_seen:
            self._tokens_seen = True
            self._store.commit(Batch(meta={TOKENS_SEEN: b"1"})).addErrback(lambda _: None)  # as above

    @property
    def tokens_seen(self) -> bool:
        """Whether the cluster has had an access token, as far as this node knows: by its map, or by
        the one of an earlier run. What no revocation turns off, no start does."""
        return self._tokens_seen

    # --- PeerHandler ---
    def greeted(self, greeting: Greeting) -> Welcome:
        self._outside.greeted(greeting)
        return Welcome(
            self.local.cluster, self.local.name, newborn=self._outside.is_newborn(), has_tasks=self._outside.has_tasks()
        )

    def admit(self, peer: PeerIdentity) -> None:
        """Admit a peer whose name is its id's in the map: with certificates, another name's key is
        not enough (F14). An unknown node is admitted to register, and for nothing else."""
        if not self._is_started:
            raise Starting(f"node {self.local.name} is starting")
        self._refuse_removed(peer)
        owner = self.map.removed_owner(peer.certificate) if peer.certificate else None
        if owner is not None:
            raise WrongCertificate(
                f"the certificate was that of node {owner.name}, which was removed: node {peer.name} needs one of its own"
            )
        entry = self.map.nodes.get(peer.node_id)
        if entry is not None and entry.name != peer.name:
            raise WrongNode(f"the node with id {peer.node_id} is {entry.name}, not {peer.name}")
        if not is_incarnation_near(peer.node_id, peer.incarnation, self.map):
            raise WrongNode(f"node {peer.name} says incarnation {peer.incarnation}: no node starts so often")

    def _is_member(self, node: NodeId) -> bool:
        """Whether a node is a member: by the map, else by the Raft log, which is ahead of it, else
        by what members told a new run."""
        entry = self.map.nodes.get(node)
        if entry is not None:
            return entry.is_member
        return node in self.core.configuration.members or self.membership.is_seed(node)

    def _refuse_nonmembers(self, peer: PeerIdentity, what: str) -> None:
        """Check that a peer is a member; raises ``NotReady``: it is none, or not yet known here."""
        if not self._is_member(peer.node_id):
            self._rejections.about(
                peer.name, "peer_unknown", f"{what} of a node that is no member (yet)", is_usual=True
            )
            raise NotReady(f"node {self.local.name} does not know node {peer.name} as a member (yet)")

    def _refuse_removed(self, peer: PeerIdentity) -> None:
        """Check that a peer was not removed; raises ``Removed``, which closes its connection."""
        entry = self.map.nodes.get(peer.node_id)
        if entry is not None and not entry.is_member:
            raise Removed(f"node {peer.name} was removed from this cluster; its id is never used again")

    def let_in(self, peer: PeerIdentity) -> None:
        if self._is_member(peer.node_id):
            self.membership.shown.seen(peer.node_id, peer.certificate)
        if peer.lane is Lane.BULK:
            # Open in the next turn. What came over an older one may be lost: streams begin anew.
            self._clock.call_later(0, self._bulk_open, peer.node_id)

    def _bulk_open(self, node: NodeId) -> None:
        if self.pool.is_connected(node, Lane.BULK):
            self._outside.peer_connected(node)

    def raft(self, peer: PeerIdentity, messages: list[AnyMessage]) -> None:
        """Step the Raft core. A run that is not registered takes messages of any peer: it learns
        from the log who is a member.

        :raises MalformedBox: a message was refused; the others have had their effect."""
        if self.membership.is_registered and not self._is_member(peer.node_id):
            self.membership.met_unknown_node()
            self._refuse_nonmembers(peer, "a message of consensus")
        refused = self.consensus.receive(messages)
        if refused is not None:
            self._rejections.about(peer.name, "peer_unsound", str(refused))
            raise MalformedBox(str(refused)[: bounds.DETAIL_CHARS_MAX])

    def data(self, peer: PeerIdentity, body: bytes) -> None:
        self._refuse_nonmembers(peer, "a message of partitions")
        if self.replication is None:
            return
        try:
            self.replication.received(peer.node_id, body)
        except MalformedBox as why:
            self._rejections.about(peer.name, "peer_unsound", why.detail)
            raise

    def confirm(self, peer: PeerIdentity, body: bytes) -> None:
        self._refuse_nonmembers(peer, "a ping of partitions")
        if self.replication is not None:
            self.replication.asked(peer.node_id, body)

    def forward(self, peer: PeerIdentity, calls: list[ForwardedCall], within_ms: int) -> Answer[list[ForwardedResult]]:
        self._refuse_nonmembers(peer, "a call")
        return self._outside.forward(peer, calls, within_ms)

    def register(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        return self.membership.registrar.registered_by(peer, body)

    def heartbeat(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        # The leader tells it nothing any more from the moment of its removal, so it may not have
        # heard of that: it hears it now.
        self._refuse_removed(peer)
        self._refuse_nonmembers(peer, "a heartbeat")
        return self.membership.heartbeat_of(peer, body)

    def evidence(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        self._refuse_nonmembers(peer, "evidence")
        return self.membership.evidence_of(peer, body)

    def propose(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]:
        self._refuse_nonmembers(peer, "a proposal")
        return self.membership.proposed_by(peer, body)

    def broken(self, what: str, failure: Failure) -> None:
        self._outside.broken(cast("BaseException", failure.value))

    # --- LaneWatcher ---
    def lane_up(self, peer: PeerIdentity, at_ms: int) -> None:
        self.membership.lane_up(peer)
        if peer.lane is Lane.BULK:
            self._outside.peer_connected(peer.node_id)

    def lane_lost(self, peer: PeerIdentity, at_ms: int, broke: bool, why: str) -> None:
        self.membership.lane_lost(peer, broke=broke)
        if peer.lane is Lane.BULK:
            self._outside.peer_lost(peer.node_id)

    def dial_failed(self, node_id: NodeId, lane: Lane, at_ms: int, why: Exception) -> None:
        """Take refusals by a peer; the pool dials again, ``FailureDetector`` judges the ports."""
        if isinstance(why, Removed):
            self.membership.registrar.refused(Refusal.REMOVED)
        elif isinstance(why, StaleSession):
            self.membership.registrar.called_stale_by(node_id)

    def lane_writable(self, node_id: NodeId, lane: Lane) -> None:
        """Nothing to do: Raft sends again by itself."""


def _ask_failed(why: Failure) -> None:
    if not why.check(TaskQueueError):  # only a bug is worth a line
        _log.failure("could not ask the controller", failure=why, event="ask_failed")
