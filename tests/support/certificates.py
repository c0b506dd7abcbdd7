"""Certificates that ``deploy/make-cluster-ca`` makes, for tests of TLS."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

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
