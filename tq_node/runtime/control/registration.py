"""How a run of a member becomes known: it registers with the leader, wherever that is, or ends
because it is refused for good."""

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
    """What became of a proposal: where it stands in the log, and what of it was refused when it was
    applied."""

    log_index: int
    refused: tuple[Refused, ...] = ()


Addresses = tuple[tuple[str, str, str], ...]
"""(node id, name, peer address) of each member."""


class Welcomed(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a registration: what became of it, and whom to dial until the table itself has
    come.

    ``outcome`` None: nothing, for whoever was asked does not lead; ``leader``, one of the members,
    does. Each run speaks for itself with the leader: nobody passes it on, for only who talks to it
    can tell whether another run of it lives (F14).
    """

    outcome: Outcome | None
    members: Addresses
    leader: str = ""

    @property
    def leader_address(self) -> str | None:
        return next((address for node, _, address in self.members if node == self.leader), None)


WELCOMES: Codec[Welcomed] = Codec(Welcomed)
OUTCOMES: Codec[Outcome] = Codec(Outcome)
COMMANDS: Codec[AnyCommand] = Codec(AnyCommand, bounds.ASK_BYTES_MAX)
"""As ``commands.encode`` writes them: the format of an entry and the version of a body are the same
byte."""
assert commands.FORMAT == VERSION


def check_registration(peer: PeerIdentity, command: RegisterNode, table: ClusterMap) -> None:
    """A node speaks for this very run of itself, under the name that its handshake has shown.

    :raises MalformedBox: it does not, or it says what no node can be.
    """
    node = command.node
    if (node.node_id, node.name, node.incarnation) != (peer.node_id, peer.name, peer.incarnation):
        raise MalformedBox("not the registration of the node that sends it")
    if not (is_registration_sound(node) and is_incarnation_near(node.node_id, node.incarnation, table)):
        raise MalformedBox("the registration of a node that can't be one")


class TableRefused(ClusterRefused):
    """``refusal`` is the stable word for why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal).replace("_", " "))
        self.refusal = refusal


def check_whole(outcome: Outcome) -> None:
    """:raises TableRefused: the whole of it was refused."""
    for refused in outcome.refused:
        if refused.partition is None:
            raise TableRefused(refused.code)


class Registrant(Protocol):
    """``Membership``, as far as registering goes."""

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
    """:param on_refused: the cluster will not have this node; called once."""

    def __init__(
        self, node: Registrant, raft: RaftDriver, pool: PeerPool, on_refused: Callable[[Refusal], None]
    ) -> None:
        self._node = node
        self._raft = raft
        self._pool = pool
        self._on_refused = on_refused
        self._is_over = False
        self._is_refused = False
        self._called_stale: set[NodeId] = set()
        self._asked_members = 0
        self._work: Deferred[None] | None = None

    # --- this node ---
    def start(self) -> None:
        """Make this run known, unless that is under way."""
        if self._work is None and not self._is_over:
            self._work = Deferred.fromCoroutine(self._register())
            self._work.addErrback(self._failed).addBoth(self._ended)

    async def stop(self) -> None:
        """Pauses must be ended by whoever gives them."""
        self._is_over = True
        if self._work is not None:
            await self._work

    def _ended(self, _: object) -> None:
        self._work = None

    def _failed(self, why: Failure) -> None:
        _log.failure("registration failed", failure=why, event="register_failed")

    async def _register(self) -> None:
        """Keeps trying while there is no leader. What refuses it for good goes to ``on_refused``."""
        node = self._node
        while not (self._is_over or self._is_refused or node.is_registered):
            if node.map.is_founded:  # a joiner's first registration is its own affair
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
        """One that dials an address that this node has left is not heard here; but whoever is
        connected knows who leads.

        :raises TableRefused: :raises NoController: this time nobody took it.
        """
        if self._raft.core.leader is not None:
            await self._node.propose(command)
            return
        body = commands.encode(command)
        to_ask, asked = self._node.known(), set[NodeId]()
        while to_ask and not self._is_over:
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
        """Somebody speaks whom this node's table does not have; it may be late. One of those that
        it has is asked, in turn."""
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
        """The cluster will not have this node; told once."""
        if not self._is_refused:
            self._is_refused = True
            self._on_refused(refusal)

    def called_stale_by(self, member: NodeId) -> None:
        """It says, with proof, that another run of this node began later, or lives (F14).

        To a run that the table has, one member says little: a copy may have got hold of just that
        one, while it was cut off from here. But if most of them say so, the table's word, that the
        copy has registered, may never come.
        """
        node = self._node
        self._called_stale.add(member)
        others = {entry.node_id for entry in node.map.members()} - {node.registration.node_id}
        if not node.is_registered or 2 * len(self._called_stale & others) > len(others):
            self.refused(Refusal.STORE_CLONED)

    def let_in_by(self, member: NodeId) -> None:
        self._called_stale.discard(member)

    # --- others ---
    async def registered_by(self, peer: PeerIdentity, data: bytes) -> bytes:
        """A node that joins, or that has moved, knows no leader.

        :raises NoController: nor does this one. :raises MalformedBox: it is not what the peer may
            say of itself.
        """
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
