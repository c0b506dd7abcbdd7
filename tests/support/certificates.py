"""Certificates that ``deploy/make-cluster-ca`` makes, for tests of TLS."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tests.support.harness import PROJECT

HOSTS = "localhost,127.0.0.1"


def make_ca(folder: Path, *nodes: str) -> Path:
    """``nodes``: ``NODE`` or ``NODE=HOST,...``."""
    command = [sys.executable, str(PROJECT / "deploy/make-cluster-ca"), str(folder), *nodes]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


def put(folder: Path, name: str, place: Path) -> None:
    """Have ``place`` hold ``name``'s files as ``tls.crt`` and ``tls.key``, replaced as a careful operator does."""
    for kind in ("crt", "key"):
        new = place / f"new.{kind}"
        new.write_bytes((folder / f"{name}.{kind}").read_bytes())
        new.chmod(0o600)
        os.replace(new, place / f"tls.{kind}")


def trusting(folder: Path, name: str | None = None) -> ssl.SSLContext:
    """What a client uses who trusts the folder's authority, and shows ``name``'s certificate."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return context


def revoke(folder: Path, into: Path, *names: str, signed_in: Path | None = None) -> Path:
    """A list that revokes these nodes' certificates, out of date since yesterday."""
    signer = signed_in or folder
    key: Any = load_pem_private_key((signer / "ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()).subject
    now = datetime.now(UTC)
    made = x509.CertificateRevocationListBuilder(issuer, now - timedelta(2), now - timedelta(1))
    for name in names:
        number = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes()).serial_number
        made = made.add_revoked_certificate(x509.RevokedCertificateBuilder(number, now - timedelta(2)).build())
    into.write_bytes(made.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return into
