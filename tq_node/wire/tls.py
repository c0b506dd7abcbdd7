"""Mutual TLS between peers: both ends show a certificate of the cluster's authority, with the
node's name in subjectAltName.

Needs ``pyOpenSSL`` and ``cryptography`` (``pip install 'twisted[tls]'``); imported only where
certificates are given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import Certificate, CertificateOptions, TLSVersion, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer


@implementer(IOpenSSLClientConnectionCreator)
class _Dialling:
    """The name in the certificate is the node's, not its host's, so Twisted's check of the host
    name is not the one to make: ``PeerTLS.names_of`` serves the handshake, which checks it against
    the name that the node gives itself."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._context, None)


class PeerTLS:
    """What this node shows, and whom it believes; raises ``ValueError`` for an unfit file."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        chain, authorities = _certificates(certificate), _certificates(authority)
        private = _private_key(key)
        if _public_bytes(private.public_key()) != _public_bytes(chain[0].public_key()):
            raise ValueError(f"{key}: is not the key of {certificate}")
        own, *links = [X509.from_cryptography(link) for link in chain]
        self._options = CertificateOptions(
            privateKey=PKey.from_cryptography_key(private),
            certificate=own,
            extraCertChain=links,
            trustRoot=trustRootFromCertificates([Certificate(X509.from_cryptography(root)) for root in authorities]),
            raiseMinimumTo=TLSVersion.TLSv1_3,
        )
        with warnings.catch_warnings():
            # Twisted 26.10 hands pyOpenSSL certificates in a form that it would rather not see. The
            # context is made once.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._context = self._options.getContext()

    def server_factory(self, factory: IProtocolFactory, clock: Any) -> IProtocolFactory:
        """:param factory: of what speaks inside."""
        wrapped: IProtocolFactory = TLSMemoryBIOFactory(self._options, False, factory, clock)
        return wrapped

    def client_endpoint(self, endpoint: IStreamClientEndpoint) -> IStreamClientEndpoint:
        return wrapClientTLS(_Dialling(self._context), endpoint)

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


def _certificates(path: Path) -> list[x509.Certificate]:
    """:raises ValueError: the file can't be read, or there is none in it."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as why:
        raise ValueError(f"{path}: holds no certificate (PEM): {why}") from None


def _private_key(path: Path) -> Any:
    """:raises ValueError: can't be read, is no key, or has a passphrase: nobody could enter it."""
    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as why:
        raise ValueError(f"{path}: holds no private key without a passphrase (PEM): {why}") from None


def _public_bytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
