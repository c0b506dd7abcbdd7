"""The end of a connection that dialled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tq_node.beats import until_beat
from tq_node.errors import Busy, TaskQueueError
from tq_node.wire import bounds, handshake
from tq_node.wire.commands import Greet, Hello, Lane, PeerCommand, Ping, Prove
from tq_node.wire.errors import (
    HandshakeRefused,
    NotAMember,
    StaleSession,
    Superseded,
    Unproven,
    WireRefusal,
    WrongNode,
    WrongSecret,
)
from tq_node.wire.handshake import INTRODUCTIONS, LocalIdentity, PeerIdentity, Sessions
from tq_node.wire.peer import Names, PeerConnection


class Target(msgspec.Struct, frozen=True):
    """Whom a dialler expects, and where. ``node_id`` and ``name`` are empty where only the address is known (a joiner)."""

    address: str
    node_id: str = ""
    name: str = ""


class DialledPeer(PeerConnection):
    """It asks, and serves nothing.

    :param on_gone: called once when the transport is gone, whatever stage the connection had reached.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        local: LocalIdentity,
        target: Target,
        lane: Lane,
        sessions: Sessions,
        entropy: Callable[[int], bytes],
        names: Names | None,
        on_gone: Callable[[DialledPeer], None],
    ) -> None:
        bulk = lane is Lane.BULK
        super().__init__(
            reactor, bounds.BULK_SEND_BYTES_MAX if bulk else bounds.CONSENSUS_SEND_BYTES_MAX, True, local, names
        )
        self.target = target
        self.lane = lane
        self.cluster = ""
        """Whose member the other end is; known, and proven, once hands are shaken."""
        self.is_newborn = False
        """The other end said that it founds its cluster and is not ready yet: a joiner waits. Not proven."""
        self.round_trip_s: float | None = None
        """Of the last ping."""
        # For whoever owns the connection once it is open: it is over; there is room again after something was refused.
        self.on_lost: Callable[[DialledPeer], None] | None = None
        self.on_writable: Callable[[DialledPeer], None] | None = None
        self._on_gone = on_gone
        self._sessions = sessions
        self._entropy = entropy
        self._ping_s = bounds.BULK_PING_S if bulk else bounds.PING_S
        self._ping_answer_s = bounds.BULK_PING_ANSWER_S_MAX if bulk else bounds.PING_ANSWER_S_MAX

    def lost(self) -> None:
        super().lost()
        self._on_gone(self)
        if self.on_lost is not None:
            self.on_lost(self)

    def writable(self) -> None:
        if self.on_writable is not None:
            self.on_writable(self)

    async def shake_hands(self) -> PeerIdentity:
        """Find out who is there and prove who is here. To be called once, first; closes nothing by itself.

        :raises HandshakeRefused: by either side. :raises MalformedBox: :raises OutcomeUnknown: the connection is over.
        """
        local, target = self.local, self.target
        welcome = await self._say(
            Greet, cluster=local.cluster or "", name=target.name, address=target.address, dialler=local.name
        )
        cluster, self.is_newborn = welcome["cluster"], welcome["newborn"]
        if not cluster:
            raise NotAMember(f"node {welcome['name']} has not joined a cluster yet")
        handshake.check_cluster(local.cluster or cluster, cluster)
        key = self._key()
        mine = INTRODUCTIONS.encode(
            local.introduction(cluster, target.node_id, self.lane, self._entropy(bounds.NONCE_BYTES))
        )
        answered: bytes = (await self._say(Hello, hello=mine))["hello"]
        theirs = INTRODUCTIONS.decode(answered)
        handshake.check_cluster(cluster, theirs.cluster)
        self._check_not_me(theirs)
        is_expected = target.node_id in ("", theirs.node_id) and target.name in ("", theirs.name)
        if not is_expected or theirs.target != local.node_id or theirs.lane != self.lane:
            raise WrongNode(f"node {theirs.name} with id {theirs.node_id} answers for {target.name or target.address}")
        peer = handshake.identity(theirs, self.address)
        self._check_name(peer.name)
        await self._prove(key, mine, answered)
        try:
            self._sessions.observe(peer)
        except StaleSession as why:  # the listener's; raised from here, that word would be about this node
            raise Superseded(why.detail) from None
        self.cluster, self.peer = cluster, peer
        self.trust(self._budget)
        self._wait(until_beat(self._reactor, self._ping_s), self._ping_by_time)
        return peer

    async def _say(self, command: type[PeerCommand], **arguments: Any) -> dict[str, Any]:
        try:
            return await self._call_stranger(command, **arguments)
        except HandshakeRefused as why:  # nobody has proven anything yet
            raise self._unproven(why) if why.is_final else why from None

    async def _prove(self, key: bytes, mine: bytes, answered: bytes) -> None:
        """This side, then the other, which either lets this one in or refuses it."""
        said_session = self.local.session
        proof = handshake.proof(key, handshake.DIALLER, mine, answered)
        try:
            given: bytes = (await self._call_stranger(Prove, proof=proof))["proof"]
        except HandshakeRefused as why:
            if why.is_final:
                self._check_refusal(why, key, mine, answered)
            if isinstance(why, StaleSession) and self.local.session != said_session:
                # It was registered meanwhile, and another connection has said so: this one was late, and is no copy's.
                raise Superseded(why.detail) from None
            raise
        handshake.check_proof(key, handshake.LISTENER, mine, answered, given)

    def _check_refusal(self, why: HandshakeRefused, key: bytes, mine: bytes, answered: bytes) -> None:
        """:raises Unproven:"""
        try:
            handshake.check_proof(key, handshake.refusing(why.code), mine, answered, why.proof)
        except WrongSecret:
            raise self._unproven(why) from None

    def _unproven(self, why: HandshakeRefused) -> Unproven:
        return Unproven(f"{self.address} says {why.code} and does not prove that it is a member: {why.detail}")

    def _call_stranger(self, command: type[PeerCommand], **arguments: Any) -> Deferred[dict[str, Any]]:
        return self.call(command, bounds.STRANGER_S_MAX, 0.0, **arguments)

    # --- open ---
    def _ping_by_time(self) -> None:
        Deferred.fromCoroutine(self._ping_round())

    async def _ping_round(self) -> None:
        await self.ping()
        if self.is_open():
            self._wait(until_beat(self._reactor, self._ping_s), self._ping_by_time)

    async def ping(self) -> bool:
        """Tell and learn sessions; measure. True: answered. Never fails: a connection that does not answer is closed instead."""
        sent_s = self._reactor.seconds()
        try:
            answer = await self.call(Ping, self._ping_answer_s, 0.0, session=self.local.session)
            self.round_trip_s = self._reactor.seconds() - sent_s
            if self.peer is not None and answer["session"] > self.peer.session:
                self.peer = msgspec.structs.replace(self.peer, session=answer["session"])
                self._sessions.observe(self.peer)
            return True
        except Busy:
            pass  # so much waits to be sent that a ping would come late anyhow; the next one tries again
        except WireRefusal as why:
            self.give_up(why)
        except TaskQueueError:
            pass  # the connection is over, or the peer said so: either way it has been dealt with
        return False
