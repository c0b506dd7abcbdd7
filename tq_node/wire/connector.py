"""From an address to an authenticated connection or the reason why not; and its dialling end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import deferLater

from tq_node.beats import until_beat
from tq_node.errors import Busy, TaskQueueError
from tq_node.wire import bounds, handshake
from tq_node.wire.authentication import Authentication
from tq_node.wire.commands import Greet, Hello, Lane, PeerCommand, Ping, Prove, Renew
from tq_node.wire.errors import (
    HandshakeRefused,
    NotAMember,
    PeerUnreachable,
    StaleSession,
    Stopped,
    Superseded,
    Unproven,
    WireRefusal,
    WrongNode,
    WrongSecret,
)
from tq_node.wire.handshake import INTRODUCTIONS, PeerIdentity
from tq_node.wire.peer import PeerConnection

EndpointOf = Callable[[str, float], IStreamClientEndpoint]
"""From an address and a time-out in seconds."""


class Target(msgspec.Struct, frozen=True):
    """The node to dial. A joiner knows only the address: ``node_id`` and ``name`` are empty."""

    address: str
    node_id: str = ""
    name: str = ""


class DialledPeer(PeerConnection):
    """The dialling end: makes calls, and serves none.

    :param on_gone: called once when the transport is gone, whatever stage the connection had
        reached."""

    def __init__(
        self,
        reactor: IReactorTime,
        authentication: Authentication,
        target: Target,
        lane: Lane,
        on_gone: Callable[[DialledPeer], None],
    ) -> None:
        bulk = lane is Lane.BULK
        super().__init__(
            reactor, bounds.BULK_SEND_BYTES_MAX if bulk else bounds.CONSENSUS_SEND_BYTES_MAX, True, authentication
        )
        self.target = target
        self.lane = lane
        self.cluster = ""
        """Id of the peer's cluster; set, and proven, by ``shake_hands``."""
        self.is_newborn = False
        """The peer says that it founds its cluster and is not ready, so joiners wait. Unproven."""
        # For whoever owns the connection once it is open: it is over; there is room again after
        # something was refused.
        self.on_lost: Callable[[DialledPeer], None] | None = None
        self.on_writable: Callable[[DialledPeer], None] | None = None
        self._on_gone = on_gone
        self._sessions = authentication.sessions
        self._ping_s = bounds.BULK_PING_S if bulk else bounds.PING_S
        self._calls_begun = 0
        """How many calls there had been at the last look whether to ping."""
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
        """Authenticate both ends. Called once, before any other call; it does not close the
        connection.

        :raises HandshakeRefused: by either side.
        :raises MalformedBox: the peer's box can't be read.
        :raises OutcomeUnknown: the connection is over."""
        local, target = self.local, self.target
        welcome = await self._say(
            Greet, cluster=local.cluster or "", name=target.name, address=target.address, dialler=local.name
        )
        cluster, self.is_newborn = welcome["cluster"], welcome["newborn"]
        if not cluster:
            raise NotAMember(f"node {welcome['name']} has not joined a cluster yet")
        handshake.check_cluster(local.cluster or cluster, cluster)
        key = self._authentication.key()
        mine = self._authentication.introduction(cluster, target.node_id, self.lane)
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
        self._key, self._hellos = key, (mine, answered)
        try:
            self._sessions.observe(peer)
        except (
            StaleSession
        ) as why:  # it is the listener that is stale; raised from here the error would be about this node
            raise Superseded(why.detail) from None
        self.cluster, self.peer = cluster, peer
        self.trust(self._budget)
        self._set_timer(until_beat(self._reactor, self._ping_s), self._ping_by_time)
        return peer

    async def _say(self, command: type[PeerCommand], **arguments: Any) -> dict[str, Any]:
        try:
            return await self._call_unauthenticated(command, **arguments)
        except HandshakeRefused as why:  # the listener has proven nothing yet
            raise self._unproven(why) if why.is_final else why from None

    async def _prove(self, key: bytes, mine: bytes, answered: bytes) -> None:
        """Send this side's proof and check the listener's, or its proven refusal."""
        said_session = self.local.session
        proof = handshake.proof(key, handshake.DIALLER, mine, answered)
        try:
            given: bytes = (await self._call_unauthenticated(Prove, proof=proof))["proof"]
        except HandshakeRefused as why:
            if why.is_final:
                self._check_refusal(why, key, mine, answered)
            if isinstance(why, StaleSession) and self.local.session != said_session:
                # It was registered meanwhile, and another connection has said so: this one was
                # late, and is no copy's.
                raise Superseded(why.detail) from None
            raise
        handshake.check_proof(key, handshake.LISTENER, mine, answered, given)

    def _check_refusal(self, why: HandshakeRefused, key: bytes, mine: bytes, answered: bytes) -> None:
        """Check a final refusal; raises ``Unproven`` if the listener did not prove it."""
        try:
            handshake.check_proof(key, handshake.refusing(why.code), mine, answered, why.proof)
        except WrongSecret:
            raise self._unproven(why) from None

    def _unproven(self, why: HandshakeRefused) -> Unproven:
        return Unproven(f"{self.address} says {why.code} and does not prove that it is a member: {why.detail}")

    def _call_unauthenticated(self, command: type[PeerCommand], **arguments: Any) -> Deferred[dict[str, Any]]:
        return self.call(command, bounds.HANDSHAKE_S_MAX, 0.0, **arguments)

    # --- open ---
    def _ping_by_time(self) -> None:
        Deferred.fromCoroutine(self._ping_round())

    async def _ping_round(self) -> None:
        if not self._authentication.is_shown(self._key):
            await self._renew()
        if not self._is_proven():
            await self.ping()
        self._calls_begun = self._calls.begun
        if self.is_open():
            self._set_timer(until_beat(self._reactor, self._ping_s), self._ping_by_time)

    async def _renew(self) -> None:
        """Prove the open connection by the secret that this node shows now. A peer that does not
        know it stays connected for as long as the earlier one is accepted here."""
        try:
            key = self._authentication.key()
            proof = handshake.proof(key, handshake.DIALLER_AGAIN, *self._hellos)
            answer = await self.call(Renew, self._ping_answer_s, 0.0, proof=proof)
            handshake.check_proof(key, handshake.LISTENER_AGAIN, *self._hellos, answer["proof"])
            self._key = key
        except WrongSecret as why:
            self.give_up(why)
        except TaskQueueError:  # it is tried again with the next ping
            if not self._authentication.is_accepted(self._key):
                self.give_up(WrongSecret(f"node {self.target.name} does not know the secret that replaced the last"))

    def _is_proven(self) -> bool:
        """Whether a ping would say nothing new: other calls were begun since the last look, which
        end the connection where they are not answered, and one was answered lately."""
        lately_s = self._reactor.seconds() - self._ping_s
        return self._calls.begun > self._calls_begun and self.heard_at_s > lately_s

    async def ping(self) -> bool:
        """Exchange session numbers. Never fails. False: no answer; the connection is closed."""
        try:
            answer = await self.call(Ping, self._ping_answer_s, 0.0, session=self.local.session)
            if self.peer is not None and answer["session"] > self.peer.session:
                self.peer = msgspec.structs.replace(self.peer, session=answer["session"])
                self._sessions.observe(self.peer)
            return True
        except Busy:
            pass  # the send buffer is full, a ping would come late; the next one tries again
        except WireRefusal as why:
            self.give_up(why)
        except TaskQueueError:
            pass  # the connection has ended, or the peer said so: dealt with either way
        return False


class Connector:
    """Dials peers, and keeps track of all connections it has opened.

    :param endpoint_of: plain endpoints; TLS goes on top of them."""

    def __init__(self, reactor: IReactorTime, authentication: Authentication, endpoint_of: EndpointOf) -> None:
        self.reactor = reactor
        self.local, self.sessions = authentication.local, authentication.sessions
        self._authentication = authentication
        if authentication.tls is not None:
            authentication.tls.on_change.append(self._look_at_certificates)
        self._endpoint_of = endpoint_of
        self._open: dict[DialledPeer, None] = {}
        """In the order in which they were made, so that a run of the simulator can be repeated."""
        self._emptied: Deferred[None] | None = None

    def now_ms(self) -> int:
        return int(self.reactor.seconds() * 1000)

    async def open(self, target: Target, lane: Lane) -> DialledPeer:
        """Dial and shake hands. May be cancelled; whatever happens, no connection is left behind
        but the one returned.

        :raises ConnectError: Twisted's, ``ConnectionRefusedError`` among them.
        :raises WireRefusal: of either side.
        :raises ValueError: the address can't be parsed."""
        endpoint = self._endpoint_of(target.address, bounds.CONNECT_S_MAX)
        if self._authentication.tls is not None:
            endpoint = self._authentication.tls.client_endpoint(endpoint)
        connection = await endpoint.connect(_DiallingFactory(self, target, lane))
        assert isinstance(connection, DialledPeer)
        try:
            await connection.shake_hands()
        except Exception as why:
            ended = connection.ended
            connection.give_up(Stopped(f"handshake: {why}"))
            if ended is not None:  # the connection knows better than the call why it ended
                raise ended from why
            raise
        return connection

    async def refused_at(self, address: str) -> tuple[int, ...]:
        """Monotonic ms of two refused dials, ``bounds.PROBE_APART_S`` apart; else empty (R5a)."""
        refused: list[int] = []
        for _ in range(2):
            if refused:
                await deferLater(self.reactor, bounds.PROBE_APART_S)
            try:
                probe = await self._endpoint_of(address, bounds.PROBE_S_MAX).connect(_ProbingFactory())
            except PortRefused:
                refused.append(self.now_ms())
            except Exception:  # no route, a time-out, a name that does not resolve: none of it is evidence
                return ()
            else:
                assert isinstance(probe, _Probe)
                probe.close()
                return ()
        return tuple(refused)

    def build(self, target: Target, lane: Lane) -> DialledPeer:
        connection = DialledPeer(self.reactor, self._authentication, target, lane, self._gone)
        self._open[connection] = None
        return connection

    def _look_at_certificates(self) -> None:
        for connection in list(self._open):
            connection.look_at_certificate()

    async def close_all(self) -> None:
        """End every connection, and wait until each is gone."""
        for connection in list(self._open):
            connection.give_up(Stopped("the node stops"), flush=True)
            if connection.transport is None and connection.ended is None:
                self._open.pop(connection, None)  # built for a dial that failed
        if self._open:
            self._emptied = Deferred()
            await self._emptied

    def _gone(self, connection: DialledPeer) -> None:
        self._open.pop(connection, None)
        if self._emptied is not None and not self._open:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)


class _DiallingFactory(Factory):
    noisy = False

    def __init__(self, connector: Connector, target: Target, lane: Lane) -> None:
        self._connector = connector
        self._target = target
        self._lane = lane

    def buildProtocol(self, addr: IAddress | None) -> DialledPeer:
        return self._connector.build(self._target, self._lane)


class _ProbingFactory(Factory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> _Probe:
        return _Probe()


class _Probe(TwistedProtocol):
    def close(self) -> None:
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()


def unreachable(name: str) -> PeerUnreachable:
    return PeerUnreachable(f"node {name} is not connected")
