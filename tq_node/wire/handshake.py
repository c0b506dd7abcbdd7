"""Authentication of both ends of a connection: introductions, proofs, sessions. No IO.

The proof is an HMAC-SHA256, keyed with the cluster's secret, over both introductions byte for byte
as they were sent: cluster, both ids, both names, both nonces, lane, versions, features. So nothing
in them can be changed on the way, a proof fits one connection only, and the proofs of the two sides
differ. The dialler proves first: a listener sends nothing made with the secret to an
unauthenticated connection. A listener that refuses a proven dialler proves its refusal: a refusal
that ends a node for good is not believed of whoever happens to listen at a member's address.

The handshake authenticates the beginning of a connection; later bytes are protected by TLS, or by
nothing."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from tq_node.errors import TaskQueueError
from tq_node.types import NodeId, NodeName
from tq_node.wire import bounds
from tq_node.wire.codec import Codec
from tq_node.wire.commands import Lane
from tq_node.wire.errors import NoCommonProtocol, StaleSession, WrongCluster, WrongSecret

_Id = Annotated[str, Meta(min_length=1, max_length=bounds.ID_CHARS_MAX, pattern=r"^[\x21-\x7e]*$")]
_MaybeId = Annotated[str, Meta(max_length=bounds.ID_CHARS_MAX, pattern=r"^[\x21-\x7e]*$")]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Nonce = Annotated[bytes, Meta(min_length=bounds.NONCE_BYTES, max_length=bounds.NONCE_BYTES)]

DIALLER = b"dialler"
LISTENER = b"listener"
DIALLER_AGAIN = b"dialler again"
LISTENER_AGAIN = b"listener again"
"""The roles in which an open connection is proven anew, by a secret that has replaced another."""
_CONTEXT = b"taskqueue peer handshake 1"


class Introduction(msgspec.Struct, frozen=True, array_like=True):
    """``target``: the node id that is expected at the other end; empty where that is not known.
    ``session`` is 0 until the node is registered. New fields go to the end with a default; they are
    proven like the others."""

    cluster: _Id
    node_id: _Id
    name: _Id
    target: _MaybeId
    lane: Lane
    incarnation: _Count
    session: _Count
    protocol_min: _Count
    protocol_max: _Count
    features_min: _Count
    features_max: _Count
    nonce: _Nonce


INTRODUCTIONS: Codec[Introduction] = Codec(Introduction, bounds.HELLO_BYTES_MAX)


class PeerIdentity(msgspec.Struct, frozen=True):
    """Who an authenticated connection belongs to. ``address`` is for people."""

    node_id: NodeId
    name: NodeName
    lane: Lane
    incarnation: int
    session: int
    """0: not registered when this was said."""
    protocol: int
    features_min: int
    features_max: int
    address: str
    certificate: bytes = b""
    """SHA-256 of the one that it has shown to a listener; empty: none was asked for."""

    @property
    def order(self) -> tuple[int, int]:
        """Sorts runs and registrations of one node: a greater value is newer."""
        return self.incarnation, self.session


class LocalIdentity(msgspec.Struct, kw_only=True):
    """This node as it introduces itself. The composition changes it when the node joins (cluster,
    secret) or registers (session), and when the secret's file changes. ``secret``: what this node
    proves itself with; may be missing only where certificates prove who is there."""

    node_id: NodeId
    name: NodeName
    incarnation: int
    features_min: int = 1
    features_max: int = 1
    cluster: str | None = None
    secret: bytes | None = None
    session: int = 0
    other_secrets: tuple[bytes, ...] = ()
    """Accepted of peers besides ``secret``, while one replaces the other."""

    def __post_init__(self) -> None:
        """:raises ValueError: the secret is too short to be one."""
        if any(len(secret) < bounds.SECRET_BYTES_MIN for secret in self.secrets):
            raise ValueError(f"a secret has at least {bounds.SECRET_BYTES_MIN} bytes")

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Those accepted of peers, the one that is shown first."""
        return self.other_secrets if self.secret is None else (self.secret, *self.other_secrets)

    def join(self, cluster: str, secret: bytes | None) -> None:
        """:raises ValueError: the secret is too short to be one."""
        self.cluster, self.secret = cluster, secret
        self.__post_init__()

    def hold(self, secrets: Sequence[bytes]) -> None:
        """Show the first of these from now on, and accept them all."""
        self.secret, self.other_secrets = secrets[0], tuple(secrets[1:])
        self.__post_init__()

    def introduction(self, cluster: str, target: str, lane: Lane, nonce: bytes) -> Introduction:
        return Introduction(
            cluster=cluster,
            node_id=self.node_id,
            name=self.name,
            target=target,
            lane=lane,
            incarnation=self.incarnation,
            session=self.session,
            protocol_min=bounds.PROTOCOL_MIN,
            protocol_max=bounds.PROTOCOL_MAX,
            features_min=self.features_min,
            features_max=self.features_max,
            nonce=nonce,
        )


def identity(theirs: Introduction, address: str) -> PeerIdentity:
    """The peer that an introduction describes; raises ``NoCommonProtocol`` if versions differ."""
    protocol = min(theirs.protocol_max, bounds.PROTOCOL_MAX)
    if protocol < max(theirs.protocol_min, bounds.PROTOCOL_MIN):
        raise NoCommonProtocol(
            f"node {theirs.name} speaks protocols {theirs.protocol_min} to {theirs.protocol_max}, "
            f"this one {bounds.PROTOCOL_MIN} to {bounds.PROTOCOL_MAX}"
        )
    return PeerIdentity(
        node_id=NodeId(theirs.node_id),
        name=NodeName(theirs.name),
        lane=theirs.lane,
        incarnation=theirs.incarnation,
        session=theirs.session,
        protocol=protocol,
        features_min=theirs.features_min,
        features_max=theirs.features_max,
        address=address,
    )


def check_cluster(mine: str, theirs: str) -> None:
    """Check the peer's cluster; raises ``WrongCluster`` if the two ids differ."""
    if mine != theirs:
        raise WrongCluster(f"this node belongs to cluster {mine}, the other to {theirs}")


def proof(secret: bytes, role: bytes, dialler: bytes, listener: bytes) -> bytes:
    """The proof of one side, over both introductions, byte for byte as they were sent."""
    parts = (_CONTEXT, role, dialler, listener)
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(secret, text, "sha256")


def refusing(code: str) -> bytes:
    """The role to prove a refusal with ``code`` in."""
    return b"listener refuses: " + code.encode()


def check_proof(secret: bytes, role: bytes, dialler: bytes, listener: bytes, given: bytes) -> None:
    """Compare in constant time; raises ``WrongSecret`` for another secret, connection or role."""
    if not hmac.compare_digest(proof(secret, role, dialler, listener), given):
        raise WrongSecret("the cluster secret of the two nodes differs")


def proven_key(secrets: Sequence[bytes], role: bytes, dialler: bytes, listener: bytes, given: bytes) -> bytes:
    """The secret that a proof was made with; compares all, each in constant time; raises
    ``WrongSecret`` if it is none of them."""
    matching = [key for key in secrets if hmac.compare_digest(proof(key, role, dialler, listener), given)]
    if not matching:
        raise WrongSecret("the cluster secret of the two nodes differs")
    return matching[0]


class Dialled(Protocol):
    """An open connection that this node dialled."""

    peer: PeerIdentity | None
    ended: TaskQueueError | None
    heard_at_s: float

    async def ping(self) -> bool: ...


class Sessions:
    """The newest (incarnation, session) known of each node, from either direction (F14, F42).
    ``on_newer`` is called for each that is newer than what was known. ``dialled``: this node's open
    connections to another."""

    def __init__(self) -> None:
        self.on_newer: Callable[[PeerIdentity], None] = lambda _: None
        self.dialled: Callable[[NodeId], Sequence[Dialled]] = lambda _: ()
        self._newest: dict[NodeId, tuple[int, int]] = {}

    def observe(self, peer: PeerIdentity) -> None:
        """:raises StaleSession: a newer one is known."""
        known = self._newest.pop(peer.node_id, (-1, -1))
        newest = self._newest[peer.node_id] = max(
            known, peer.order
        )  # at the end: the node not seen for longest goes first
        if peer.order < newest:
            raise StaleSession(
                f"node {peer.name} said incarnation {peer.incarnation} and session {peer.session}, "
                f"but incarnation {newest[0]} and session {newest[1]} are known: a late connection, or a copied data directory"
            )
        if len(self._newest) > bounds.KNOWN_SESSIONS_MAX:
            del self._newest[next(iter(self._newest))]
        if newest > known:
            self.on_newer(peer)
