"""Mutual TLS between peers: both ends show a certificate of the cluster's authority, with the
node's name in subjectAltName.

Needs ``pyOpenSSL`` and ``cryptography`` (``pip install 'twisted[tls]'``); imported only where
certificates are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName
from OpenSSL import SSL
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

from tq_node.certificates import make_context, read_certificates, read_pair


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class _Connections:
    """Makes OpenSSL's connections, with one context for both ends.

    Dialling: the name in the certificate is the node's, not its host's, so Twisted's check of the
    host name is not the one to make: ``PeerTLS.names_of`` serves the handshake, which checks it
    against the name that the node gives itself."""

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.context, None)


class PeerTLS:
    """What this node shows, and whom it believes; raises ``ValueError`` for an unfit file."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        pair = read_pair(certificate, key)
        self._connections = _Connections(make_context(pair, read_certificates(authority), TLSVersion.TLSv1_3))

    def follow(self, other: PeerTLS) -> None:
        """Show and believe what ``other`` does, on connections made from now on."""
        self._connections.context = other._connections.context

    def server_factory(self, factory: IProtocolFactory, clock: Any) -> IProtocolFactory:
        """:param factory: of what speaks inside."""
        wrapped: IProtocolFactory = TLSMemoryBIOFactory(self._connections, False, factory, clock)
        return wrapped

    def client_endpoint(self, endpoint: IStreamClientEndpoint) -> IStreamClientEndpoint:
        return wrapClientTLS(self._connections, endpoint)

    @staticmethod
    def names_of(transport: Any) -> frozenset[str]:
        """DNS names in the certificate that the other end of a connection has shown."""
        shown = transport.getPeerCertificate()
        if shown is None:
            return frozenset()
        try:
            names = shown.to_cryptography().extensions.get_extension_for_class(SubjectAlternativeName).value
        except (ExtensionNotFound, ValueError):
            return frozenset()
        return frozenset(names.get_values_for_type(DNSName))
