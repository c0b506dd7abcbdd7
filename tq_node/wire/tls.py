"""Mutual TLS between peers: both ends show a certificate of the cluster's authority, with the
node's name in subjectAltName.

Needs ``pyOpenSSL`` and ``cryptography`` (``pip install 'twisted[tls]'``); imported only where
certificates are given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.ssl import TLSVersion
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from tq_node.certificates import Serial, make_context, read_certificates, read_pair, read_revoked, serial_of
from tq_node.wire.authentication import Shown

_MUTUAL = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT | SSL.VERIFY_CLIENT_ONCE


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class _Connections:
    """Makes OpenSSL's connections, with one context for both ends.

    Dialling: the name in the certificate is the node's, not its host's, so Twisted's check of the
    host name is not the one to make: ``PeerTLS.shown_by`` serves the handshake, which checks it
    against the name that the node gives itself."""

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)


class PeerTLS:
    """What this node shows, and whom it believes; raises ``ValueError`` for an unfit file.

    :param revoked: lists of revoked certificates, by authorities in ``authority``. One that is out
        of date counts on: it revokes what it did."""

    def __init__(self, certificate: Path, key: Path, authority: Path, revoked: Path | None = None) -> None:
        pair, authorities = read_pair(certificate, key), read_certificates(authority)
        self._revoked = frozenset[Serial]() if revoked is None else read_revoked(revoked, authorities)
        self.own_digest = _digest(pair.certificate.to_cryptography())
        context = make_context(pair, authorities, TLSVersion.TLSv1_3)
        context.set_verify(_MUTUAL, self._verify)
        self._connections = _Connections(context)
        self.on_change: list[Callable[[], None]] = []
        """Called when ``is_revoked`` may say something else."""

    def follow(self, other: PeerTLS) -> None:
        """Show and believe what ``other`` does, on connections made from now on."""
        self._connections.context = other._connections.context
        self._revoked, self.own_digest = other._revoked, other.own_digest
        for call in self.on_change:
            call()

    def _verify(self, _: SSL.Connection, certificate: X509, why: int, depth: int, is_good: int) -> bool:
        return bool(is_good) and serial_of(certificate.to_cryptography()) not in self._revoked

    def server_factory(self, factory: IProtocolFactory, clock: Any) -> IProtocolFactory:
        """:param factory: of what speaks inside."""
        wrapped: IProtocolFactory = TLSMemoryBIOFactory(self._connections, False, factory, clock)
        return wrapped

    def client_endpoint(self, endpoint: IStreamClientEndpoint) -> IStreamClientEndpoint:
        return wrapClientTLS(self._connections, endpoint)

    def is_revoked(self, shown: Shown) -> bool:
        return shown.serial in self._revoked

    @staticmethod
    def shown_by(transport: Any) -> Shown:
        """The certificate that the other end of a connection has shown."""
        found = transport.getPeerCertificate()
        if found is None:
            return Shown()
        certificate = found.to_cryptography()
        return Shown(_names_in(certificate), _digest(certificate), serial_of(certificate))


def _names_in(certificate: x509.Certificate) -> frozenset[str]:
    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except (ExtensionNotFound, ValueError):
        return frozenset()
    return frozenset(names.get_values_for_type(DNSName))


def _digest(certificate: x509.Certificate) -> bytes:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
