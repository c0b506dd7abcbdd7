"""Certificates and keys in PEM files, for peers and for clients.

Needs ``pyOpenSSL`` and ``cryptography`` (``pip install 'twisted[tls]'``); imported only where
certificates are given."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.ssl import KeyPair as TwistedKeyPair
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer


@implementer(IPolicyForHTTPS)
class AskingPolicy:
    """Whom a node believes where it is the client of another one's HTTPS, and what it shows.

    The files are read for each connection: what has changed counts.

    :param authority: whose certificates are believed; None: those of the system's authorities.
    :param shown: certificate and key; None: nothing is shown."""

    def __init__(self, authority: Path | None, shown: tuple[Path, Path] | None) -> None:
        self._authority = authority
        self._shown = shown

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """:raises ValueError: a file is unfit."""
        roots = None if self._authority is None else _trusting(read_certificates(self._authority))
        shown = None
        if self._shown is not None:
            pair = read_pair(*self._shown)
            shown = PrivateCertificate.fromCertificateAndKeyPair(
                Certificate(pair.certificate), TwistedKeyPair(pair.key)
            )
        return optionsForClientTLS(hostname.decode("ascii"), trustRoot=roots, clientCertificate=shown)


class KeyPair(NamedTuple):
    """What a server or client shows: its certificate and those that lead to the authority."""

    certificate: X509
    links: list[X509]
    key: PKey


def read_pair(certificate: Path, key: Path) -> KeyPair:
    """A certificate, or a chain that begins with it, and its key.

    :raises ValueError: one of the files is unfit, or the two don't belong together."""
    chain = read_certificates(certificate)
    private = _private_key(key)
    if _public_bytes(private.public_key()) != _public_bytes(chain[0].public_key()):
        raise ValueError(f"{key}: is not the key of {certificate}")
    own, *links = [X509.from_cryptography(link) for link in chain]
    return KeyPair(own, links, PKey.from_cryptography_key(private))


def read_certificates(path: Path) -> list[x509.Certificate]:
    """:raises ValueError: the file can't be read, or there is none in it."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as why:
        raise ValueError(f"{path}: holds no certificate (PEM): {why}") from None


Serial = tuple[bytes, int]
"""The issuer's name, in DER, and the number that it gave a certificate."""
_CRL = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


def serial_of(certificate: x509.Certificate) -> Serial:
    return certificate.issuer.public_bytes(), certificate.serial_number


def read_revoked(path: Path, authorities: list[x509.Certificate]) -> frozenset[Serial]:
    """What the lists in a file revoke, each signed by one of the authorities.

    :raises ValueError: there is none in the file, or one is nobody's."""
    try:
        lists = [x509.load_pem_x509_crl(pem) for pem in _CRL.findall(path.read_bytes())]
        for one in lists:
            if not any(one.issuer == root.subject and _has_signed(root, one) for root in authorities):
                raise ValueError(f"no authority of the peers has signed the list of {one.issuer.rfc4514_string()}")
    except (OSError, ValueError, UnsupportedAlgorithm) as why:
        raise ValueError(f"{path}: can't be used as a list of revoked certificates (PEM): {why}") from None
    if not lists:
        raise ValueError(f"{path}: holds no list of revoked certificates (PEM)")
    return frozenset((one.issuer.public_bytes(), revoked.serial_number) for one in lists for revoked in one)


def _has_signed(authority: x509.Certificate, revoked: x509.CertificateRevocationList) -> bool:
    try:
        return revoked.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except TypeError:  # a key that signs no lists
        return False


def make_context(pair: KeyPair | None, authorities: list[x509.Certificate] | None, minimum: TLSVersion) -> SSL.Context:
    """A context of OpenSSL, for either end.

    :param pair: None: a client that shows nothing.
    :param authorities: whose certificates the other end must show. None: it need not show any."""
    options = CertificateOptions(
        privateKey=None if pair is None else pair.key,
        certificate=None if pair is None else pair.certificate,
        extraCertChain=None if pair is None else pair.links,
        trustRoot=None if authorities is None else _trusting(authorities),
        raiseMinimumTo=minimum,
    )
    with warnings.catch_warnings():
        # Twisted 26.10 hands pyOpenSSL certificates in a form that it would rather not see.
        warnings.simplefilter("ignore", DeprecationWarning)
        context: SSL.Context = options.getContext()
    return context


def _trusting(authorities: list[x509.Certificate]) -> Any:
    return trustRootFromCertificates([Certificate(X509.from_cryptography(root)) for root in authorities])


def _private_key(path: Path) -> Any:
    """:raises ValueError: can't be read, is no key, or has a passphrase: nobody could enter it."""
    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as why:
        raise ValueError(f"{path}: holds no private key without a passphrase (PEM): {why}") from None


def _public_bytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
