"""Registers this run with the cluster's leader, wherever it is, or ends it if refused for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.cluster import commands
from tq_node.cluster.commands import AnyCommand, RegisterNode, Registration
from tq_node.cluster.map import ClusterMap
from tq_node.cluster.refusals import Refusal, Refused
from tq_node.cluster.soundness import is_incarnation_near, is_registration_sound
from tq_node.errors import ClusterRefused, NoController, TaskQueueError
from tq_node.runtime.control.raft_driver import RaftDriver
from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire import commands as wire
from tq_node.wire.codec import VERSION, Codec
from tq_node.wire.errors import MalformedBox
from tq_node.wire.handshake import PeerIdentity
from tq_node.wire.pool import PeerPool

_log = Logger(namespace="taskqueue.membership")

REGISTER_AGAIN_S = 0.2
PROPOSE_S = 5.0


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """Result of a proposal: its place in the log, and the parts refused when it was applied."""

    log_index: int
    refused: tuple[Refused, ...] = ()


Addresses = tuple[tuple[str, str, str], ...]
"""(node id, name, peer address) of each member."""


class Welcomed(msgspec.Struct, frozen=True, array_like=True):
    """Answer to a registration: its outcome, and the members to dial until the cluster map has
    arrived.

    ``outcome`` is None if the node that was asked does not lead; ``leader``, one of the members,
    does. Nobody passes a registration on: only a node that is connected to the run can tell whether
    another run of it lives (F14)."""

    outcome: Outcome | None
    members: Addresses
    leader: str = ""

    @property
    def leader_address(self) -> str | None:
        return next((address for node, _, address in self.members if node == self.leader), None)


WELCOMES: Codec[Welcomed] = Codec(Welcomed)
OUTCOMES: Codec[Outcome] = Codec(Outcome)
COMMANDS: Codec[AnyCommand] = Codec(AnyCommand, bounds.ASK_BYTES_MAX)
"""Reads what ``commands.encode`` writes: an entry's format and a body's version are one byte."""
assert commands.FORMAT == VERSION


def check_registration(peer: PeerIdentity, command: RegisterNode, table: ClusterMap) -> None:
    """Check that a registration is of the run that sends it, under the name of its handshake.

    :raises MalformedBox: it is of another run, or of a node that can't exist."""
    node = command.node
    if (node.node_id, node.name, node.incarnation) != (peer.node_id, peer.name, peer.incarnation):
        raise MalformedBox("not the registration of the node that sends it")
    if not (is_registration_sound(node) and is_incarnation_near(node.node_id, node.incarnation, table)):
        raise MalformedBox("the registration of a node that can't be one")


class TableRefused(ClusterRefused):
    """The cluster map refused a command as a whole; ``refusal`` is the stable word for why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal).replace("_", " "))
        self.refusal = refusal


def check_whole(outcome: Outcome) -> None:
    """Check an entry's outcome; raises ``TableRefused`` if the whole entry was refused."""
    for refused in outcome.refused:
        if refused.partition is None:
            raise TableRefused(refused.code)


class Registrant(Protocol):
    """What registering needs of ``Membership``."""

    registration: Registration

    @property
    def map(self) -> ClusterMap: ...

    @property
    def is_registered(self) -> bool: ...

    def known(self) -> list[NodeId]: ...

    def addresses(self) -> Addresses: ...

    def seed(self, addresses: Addresses) -> None: ...

    def pause(self, seconds: float) -> Deferred[None]: ...

    async def propose(self, command: AnyCommand) -> Outcome: ...

    async def have_proposed(self, data: bytes) -> Outcome: ...


class Registrar:
    """Registers this run, answers other registrations. ``on_refused``: called once, if refused."""

    def __init__(
        self, node: Registrant, raft: RaftDriver, pool: PeerPool, on_refused: Callable[[Refusal], None]
    ) -> None:
        self._node = node
        self._raft = raft
        self._pool = pool
        self._on_refused = on_refused
        self._stopped = False
        self._is_refused = False
        self._called_stale: set[NodeId] = set()
        self._asked_members = 0
        self._work: Deferred[None] | None = None

    # --- this node ---
    def start(self) -> None:
        """Begin to register, unless that is in progress."""
        if self._work is None and not self._stopped:
            self._work = Deferred.fromCoroutine(self._register())
            self._work.addErrback(self._failed).addBoth(self._ended)

    async def stop(self) -> None:
        """Wait until nothing is in progress; the caller must end the pauses that it has given."""
        self._stopped = True
        if self._work is not None:
            await self._work

    def _ended(self, _: object) -> None:
        self._work = None

    def _failed(self, why: Failure) -> None:
        _log.failure("registration failed", failure=why, event="register_failed")

    async def _register(self) -> None:
        """Try until this run is registered or refused for good."""
        node = self._node
        while not (self._stopped or self._is_refused or node.is_registered):
            if node.map.is_founded:  # else a ``Joiner`` registers it
                try:
                    await self._with_the_leader(RegisterNode(node.map.cluster_id, node.registration))
                except TableRefused as why:
                    self.refused(why.refusal)
                    return
                except TaskQueueError:
                    pass
            if not node.is_registered:
                await node.pause(REGISTER_AGAIN_S)

    async def _with_the_leader(self, command: RegisterNode) -> None:
        """Register with the leader, asking connected members where it is.

        A leader that dials an address that this node has left can't reach it, but other members can
        name the leader.

        :raises TableRefused:
        :raises NoController: no leader was found this time."""
        if self._raft.core.leader is not None:
            await self._node.propose(command)
            return
        body = commands.encode(command)
        to_ask, asked = self._node.known(), set[NodeId]()
        while to_ask and not self._stopped:
            node = to_ask.pop(0)
            if node in asked or not self._pool.is_connected(node):
                continue
            asked.add(node)
            try:
                welcome = WELCOMES.decode(await self._pool.ask(node, wire.Register, body, PROPOSE_S))
            except TaskQueueError:
                continue  # it knows no leader either, or did not answer
            if welcome.outcome is not None:
                check_whole(welcome.outcome)
                return
            self._node.seed(welcome.members)  # the leader may have moved, too
            to_ask.insert(0, NodeId(welcome.leader))
        raise NoController("there is no leader")

    async def ask_who_is_a_member(self) -> None:
        """Ask another member each time who is one: an unknown node speaks, this map may be late."""
        known = [node for node in self._node.known() if self._pool.is_connected(node)]
        if not known:
            return
        self._asked_members += 1
        body = commands.encode(RegisterNode(self._node.map.cluster_id, self._node.registration))
        try:
            answer = await self._pool.ask(known[self._asked_members % len(known)], wire.Register, body, PROPOSE_S)
            self._node.seed(WELCOMES.decode(answer).members)
        except TaskQueueError:
            return  # another is asked the next time

    # --- refusals ---
    def refused(self, refusal: Refusal) -> None:
        """Report that the cluster refuses this node; only the first time."""
        if not self._is_refused:
            self._is_refused = True
            self._on_refused(refusal)

    def called_stale_by(self, member: NodeId) -> None:
        """A member has proof that another run of this node began later, or lives (F14).

        For a registered run one member's word is not enough: a copy may have reached just that one
        while it was cut off from here. If most members say so, this run is refused, as the map with
        the copy's registration may never arrive."""
        node = self._node
        self._called_stale.add(member)
        others = {entry.node_id for entry in node.map.members()} - {node.registration.node_id}
        if not node.is_registered or 2 * len(self._called_stale & others) > len(others):
            self.refused(Refusal.STORE_CLONED)

    def let_in_by(self, member: NodeId) -> None:
        self._called_stale.discard(member)

    # --- others ---
    async def registered_by(self, peer: PeerIdentity, data: bytes) -> bytes:
        """Take a registration of a node that joins or has moved; propose it if this node leads.

        :raises NoController: no leader is known.
        :raises MalformedBox: not the peer's own registration."""
        command, node = COMMANDS.decode(data), self._node
        if not isinstance(command, RegisterNode):
            raise MalformedBox("not a registration")
        check_registration(peer, command, node.map)
        core = self._raft.core
        leader = core.leader
        if leader is None:
            raise NoController("there is no leader")
        outcome = await node.have_proposed(data) if core.is_leader else None
        return WELCOMES.encode(Welcomed(outcome, node.addresses(), leader))
