"""A connection between peers: what both ends share, and the accepted end (``connector`` has the
dialling one).

Responders pass calls to the ``PeerHandler`` and send back what it returns; all that is decided here
is who may call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from tq_node.socket_owner import is_own_users
from tq_node.wire import bounds, handshake
from tq_node.wire.acceptor import Acceptor
from tq_node.wire.amp import BoundedAMP, Responder
from tq_node.wire.authentication import Authentication, Shown
from tq_node.wire.codec import CALLS, RESULTS, ForwardedResult, decode_messages
from tq_node.wire.commands import (
    Confirm,
    Data,
    Evidence,
    Forward,
    Greet,
    Heartbeat,
    Hello,
    Lane,
    PeerCommand,
    Ping,
    Propose,
    Prove,
    Raft,
    Register,
    Renew,
)
from tq_node.wire.errors import (
    AnswerTooLarge,
    BoxTooLarge,
    HandshakeRefused,
    MalformedBox,
    NotAMember,
    TooSlow,
    UnknownSecret,
    WrongCertificate,
    WrongNode,
    WrongSecret,
)
from tq_node.wire.handler import Answer, Greeting, PeerHandler, then
from tq_node.wire.handshake import INTRODUCTIONS, Introduction, PeerIdentity


class PeerConnection(BoundedAMP):
    """What both ends of a connection share. ``peer`` None: the other end is not authenticated."""

    def __init__(
        self, reactor: IReactorTime, send_bytes_max: int, is_dialler: bool, authentication: Authentication
    ) -> None:
        super().__init__(reactor, send_bytes_max, is_dialler)
        self.local = authentication.local
        self.peer: PeerIdentity | None = None
        self.address = ""
        self._authentication = authentication
        self._tls = authentication.tls
        self._shown = Shown()
        """The certificate of the other end, once its name was checked."""
        self._hellos = (b"", b"")
        """Both introductions as they were sent, the dialler's first."""
        self._key = b""
        """The secret that proved the connection last."""
        self._timer: IDelayedCall | None = None

    def opened(self) -> None:
        with contextlib.suppress(AttributeError):  # a Unix socket has neither
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        there = self.transport.getPeer()
        host = getattr(there, "host", None)
        self.address = f"{host}:{there.port}" if host else type(there).__name__
        self._set_timer(bounds.HANDSHAKE_S_MAX, self._too_slow)

    def lost(self) -> None:
        self._cancel_timer()

    def _too_slow(self) -> None:
        self.give_up(TooSlow(f"not authenticated within {bounds.HANDSHAKE_S_MAX:g} s"))

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._reactor.callLater(seconds, action)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _check_name(self, name: str) -> None:
        """:raises WrongCertificate: TLS is on, and the certificate names somebody else."""
        if self._tls is None:
            return
        self._shown = shown = self._tls.shown_by(self.transport)
        if name not in shown.names:
            raise WrongCertificate(
                f"the certificate is for {', '.join(sorted(shown.names)) or 'nobody'}, not for {name}"
            )
        if self._tls.is_revoked(shown):
            raise WrongCertificate(f"the certificate of {name} was revoked")

    def look_at_certificate(self) -> None:
        """End the connection if the other end's certificate was revoked."""
        if self._tls is not None and self._tls.is_revoked(self._shown):
            self.give_up(WrongCertificate("the certificate was revoked"))

    def _check_not_me(self, theirs: Introduction) -> None:
        if theirs.node_id == self.local.node_id:
            raise WrongNode(f"node {self.local.name} reached itself")


class AcceptedPeer(PeerConnection):
    """The listener's end. Serves one command after the other until the dialler is authenticated,
    then those of its lane.

    :param on_gone: called once when the transport is gone."""

    def __init__(
        self,
        reactor: IReactorTime,
        authentication: Authentication,
        handler: PeerHandler,
        acceptor: Acceptor,
        on_gone: Callable[[AcceptedPeer], None],
    ) -> None:
        super().__init__(reactor, bounds.BULK_SEND_BYTES_MAX, False, authentication)
        self._on_gone = on_gone
        self._handler = handler
        self._acceptor = acceptor
        self._candidate: PeerIdentity | None = None
        self._is_outdated = False
        """The last look found that the secret which proved the connection is accepted no more."""
        self.serve(Responder(Greet, self._greet))

    def opened(self) -> None:
        super().opened()
        self._acceptor.arrived(self)

    def lost(self) -> None:
        super().lost()
        self._acceptor.gone(self)
        self._on_gone(self)

    def bug(self, what: str, failure: Failure) -> None:
        self._handler.broken(what, failure)

    # --- handshake ---
    def _greet(self, cluster: str, name: str, address: str, dialler: str) -> dict[str, Any]:
        is_certified = self._tls is not None and dialler in self._tls.shown_by(self.transport).names
        greeting = Greeting(
            cluster, name, address, dialler, self.address, is_certified, lambda: is_own_users(self.transport)
        )
        welcome = self._handler.greeted(greeting)
        self.serve(Responder(Hello, self._hello))
        return {
            "cluster": welcome.cluster or "",
            "name": welcome.name,
            "newborn": welcome.newborn,
            "has_tasks": welcome.has_tasks,
        }

    def _hello(self, hello: bytes) -> dict[str, Any]:
        theirs = INTRODUCTIONS.decode(hello)
        if self.local.cluster is None:
            raise NotAMember(f"node {self.local.name} has not joined a cluster yet")
        self._authentication.key()
        handshake.check_cluster(self.local.cluster, theirs.cluster)
        if theirs.target not in ("", self.local.node_id):
            raise WrongNode(f"this is node {self.local.name} with id {self.local.node_id}, not {theirs.target}")
        self._check_not_me(theirs)
        self._candidate = handshake.identity(theirs, self.address)
        mine = self._authentication.introduction(theirs.cluster, theirs.node_id, theirs.lane)
        self._hellos = (hello, mine)
        self.serve(Responder(Prove, self._prove))
        return {"hello": mine}

    def _prove(self, proof: bytes) -> Any:
        peer = self._candidate
        assert peer is not None
        self._key = handshake.proven_key(self._authentication.keys(), handshake.DIALLER, *self._hellos, proof)
        self._check_name(peer.name)
        self.serve()  # nothing until this is answered
        return self._let_in(self._key, msgspec.structs.replace(peer, certificate=self._shown.digest))

    async def _let_in(self, key: bytes, peer: PeerIdentity) -> dict[str, Any]:
        try:
            self._handler.admit(peer)
            await self._acceptor.admit(self, peer)
        except HandshakeRefused as why:  # by now the dialler may know that a member says it
            why.proof = handshake.proof(key, handshake.refusing(why.code), *self._hellos)
            raise
        self.peer = peer
        self.trust(self._acceptor.budgets[peer.lane])
        self.serve(*(row for row in self._served_when_open() if peer.lane in _lanes(row)))
        self._set_timer(bounds.IDLE_S_MAX, self._look_for_life)
        self._handler.let_in(peer)
        return {"proof": handshake.proof(key, handshake.LISTENER, *self._hellos)}

    # --- open ---
    def _served_when_open(self) -> tuple[Responder, ...]:
        handler = self._handler
        return (
            Responder(Ping, self._ping, is_counted=False),
            Responder(Renew, self._renew, is_counted=False),
            Responder(Raft, self._raft, is_counted=False),
            Responder(Register, self._asks(handler.register)),
            Responder(Heartbeat, self._asks(handler.heartbeat)),
            Responder(Evidence, self._asks(handler.evidence)),
            Responder(Propose, self._asks(handler.propose)),
            Responder(Forward, self._forward),
            Responder(Data, self._data, is_counted=False),
            Responder(Confirm, self._confirm, is_counted=False),
        )

    def _look_for_life(self) -> None:
        silent_s = self._reactor.seconds() - self.heard_at_s
        if silent_s >= bounds.IDLE_S_MAX:
            self.give_up(TooSlow(f"nothing heard for {silent_s:.0f} s"))
        elif self._authentication.is_accepted(self._key):
            self._is_outdated = False
            self._set_timer(bounds.IDLE_S_MAX - silent_s, self._look_for_life)
        elif self._is_outdated:
            self.give_up(WrongSecret("proven by a secret that this node accepts no more"))
        else:
            self._is_outdated = True
            self._set_timer(bounds.RENEW_S_MAX, self._look_for_life)

    def _who(self) -> PeerIdentity:
        peer = self.peer
        assert peer is not None, "nothing is served before that"
        return peer

    def _ping(self, session: int) -> dict[str, Any]:
        peer = self._who()
        if session > peer.session:  # a lower one was overtaken on another connection, and means nothing
            self.peer = msgspec.structs.replace(peer, session=session)
            self._acceptor.sessions.observe(self.peer)
        return {"session": self.local.session}

    def _renew(self, proof: bytes) -> dict[str, Any]:
        try:
            key = handshake.proven_key(self._authentication.keys(), handshake.DIALLER_AGAIN, *self._hellos, proof)
        except WrongSecret:
            raise UnknownSecret("this node has not been given the secret of that proof") from None
        self._key = key
        return {"proof": handshake.proof(key, handshake.LISTENER_AGAIN, *self._hellos)}

    def _raft(self, messages: bytes) -> None:
        peer = self._who()
        self._handler.raft(peer, decode_messages(messages, peer.node_id, self.local.node_id))

    def _data(self, body: bytes) -> None:
        self._handler.data(self._who(), body)

    def _confirm(self, body: bytes) -> None:
        self._handler.confirm(self._who(), body)

    def _asks(self, method: Callable[[PeerIdentity, bytes], Answer[bytes]]) -> Callable[..., Any]:
        def respond(body: bytes, within_ms: int) -> Any:
            return then(method(self._who(), body), lambda answer: {"body": answer})

        return respond

    def _forward(self, calls: bytes, within_ms: int) -> Any:
        asked = CALLS.decode(calls)
        if len(asked) > bounds.FORWARD_CALLS_MAX:
            raise MalformedBox(f"{len(asked)} calls in one box")

        def packed(results: list[ForwardedResult]) -> dict[str, Any]:
            assert len(results) == len(asked), "one result for each call"
            try:
                return {"results": RESULTS.encode(results)}
            except BoxTooLarge as why:
                raise AnswerTooLarge(why.detail) from None

        return then(self._handler.forward(self._who(), asked, within_ms), packed)


def _lanes(responder: Responder) -> frozenset[Lane]:
    assert issubclass(responder.command, PeerCommand)
    return responder.command.lanes
