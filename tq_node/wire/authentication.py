"""What a node proves itself with, and checks its peers by, at both ends of its connections."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint

from tq_node.wire import bounds
from tq_node.wire.commands import Lane
from tq_node.wire.errors import NotAMember
from tq_node.wire.handshake import INTRODUCTIONS, LocalIdentity, Sessions


class Shown(NamedTuple):
    """The certificate that a peer has shown: the names in it, its SHA-256, its issuer's name and
    number. All empty: none."""

    names: frozenset[str] = frozenset()
    digest: bytes = b""
    serial: tuple[bytes, int] = (b"", 0)


class TLS(Protocol):
    """``tls.PeerTLS``, whose module needs OpenSSL; a node without certificates does not."""

    on_change: list[Callable[[], None]]
    """Called when ``is_revoked`` may say something else."""

    def shown_by(self, transport: Any) -> Shown: ...

    def is_revoked(self, shown: Shown) -> bool: ...

    def server_factory(self, factory: IProtocolFactory, clock: Any) -> IProtocolFactory: ...

    def client_endpoint(self, endpoint: IStreamClientEndpoint) -> IStreamClientEndpoint: ...


@dataclass(frozen=True, slots=True)
class Authentication:
    """Shared by all connections of a node."""

    local: LocalIdentity
    sessions: Sessions
    tls: TLS | None = None
    """None: the secret alone proves who is there."""

    def key(self) -> bytes:
        """The key of this node's own proofs; raises ``NotAMember`` if there is neither secret nor
        certificate."""
        if self.local.secret is None and self.tls is None:
            raise NotAMember(f"node {self.local.name} has not been given the cluster secret yet")
        return self.local.secret or b""

    def keys(self) -> tuple[bytes, ...]:
        """The keys that peers may use, this node's own first; raises ``NotAMember`` as ``key``."""
        return (self.key(), *self.local.other_secrets)

    def is_shown(self, key: bytes) -> bool:
        """Whether this node proves itself with ``key`` now."""
        return key == (self.local.secret or b"")

    def is_accepted(self, key: bytes) -> bool:
        """Whether a connection that was proven by ``key`` may stay open."""
        return self.is_shown(key) or key in self.local.other_secrets

    def introduction(self, cluster: str, target: str, lane: Lane) -> bytes:
        """This node's ``Introduction`` of one connection."""
        nonce = os.urandom(bounds.NONCE_BYTES)
        return INTRODUCTIONS.encode(self.local.introduction(cluster, target, lane, nonce))
