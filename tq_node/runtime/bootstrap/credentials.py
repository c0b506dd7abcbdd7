"""Reads the cluster secret and the peers' certificates, before anything is created on disk."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger

from tq_node.reread_files import RereadFiles
from tq_node.wire import bounds

if TYPE_CHECKING:  # it needs OpenSSL, which a node without certificates need not load
    from tq_node.wire.tls import PeerTLS

_log = Logger(namespace="taskqueue.node")

SECRETS_MAX = 2
"""In one file: the one that is shown, and the one that it replaces or that will replace it."""
SECRET_BYTES_MAX = 64 * 1024
"""Bound of ``--secret-file``: a longer one was named by mistake."""


class BadCredentials(ValueError):
    """A file that can't be used; ``str()`` is one line that names the option."""


def read_secrets(path: Path, *, insecure: bool = False) -> tuple[bytes, ...]:
    """What ``--secret-file`` holds; never stored elsewhere.

    Each line of a text is a secret: the first is shown, and a second accepted besides, while one
    replaces the other. Bytes that are no text are one secret, without the newline at its end.

    :param insecure: accept a file that others can read, with a warning, as in some containers.
    :raises BadCredentials: it can't be read, can be read by others, or has a wrong length."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as why:
        raise BadCredentials(f"--secret-file: {str(path)!r}: {why.strerror}") from None
    if len(content) > SECRET_BYTES_MAX:
        raise BadCredentials(f"--secret-file: {str(path)!r} has more than {SECRET_BYTES_MAX} bytes: not a secret")
    secrets = _lines(content) if _is_text(content) else (content.removesuffix(b"\n").removesuffix(b"\r"),)
    if len(secrets) > SECRETS_MAX:
        raise BadCredentials(
            f"--secret-file: {str(path)!r} holds {len(secrets)} lines; each is a secret, and there are at most {SECRETS_MAX}, "
            "while one replaces the other"
        )
    for secret in secrets or (b"",):
        if len(secret) < bounds.SECRET_BYTES_MIN:
            raise BadCredentials(
                f"--secret-file: {str(path)!r} holds {len(secret)} bytes; a secret has at least {bounds.SECRET_BYTES_MIN}"
            )
    refuse_exposed("--secret-file", path, mode, insecure=insecure)
    return tuple(dict.fromkeys(secrets))


def reread_secrets(path: Path, *, insecure: bool = False) -> RereadFiles[tuple[bytes, ...]]:
    """``read_secrets``, read again whenever the file has changed."""
    return RereadFiles("--secret-file", [path], partial(read_secrets, path, insecure=insecure))


def _is_text(content: bytes) -> bool:
    return all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in content)


def _lines(content: bytes) -> tuple[bytes, ...]:
    return tuple(line for line in content.replace(b"\r\n", b"\n").split(b"\n") if line)


def refuse_exposed(option: str, path: Path, mode: int, *, insecure: bool) -> None:
    """Refuse a file that others can read or the group write; 0640 (a service's group) is fine."""
    if not mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        return
    line = f"{option}: {path} can be read or changed by others than its owner (mode {mode:o}): chmod 600 {path}"
    if not insecure:
        raise BadCredentials(line)
    _log.warn("{line}", line=line, event="secret_exposed")


def reread_certificates(
    certificate: Path | None,
    key: Path | None,
    authority: Path | None,
    revoked: Path | None = None,
    *,
    insecure: bool = False,
) -> RereadFiles[PeerTLS] | None:
    """``peer_tls``, read again whenever a file has changed; None: no certificates were given."""
    if certificate is None or key is None or authority is None:
        return None
    read = partial(peer_tls, certificate, key, authority, revoked, insecure=insecure)
    paths = [certificate, key, authority, *([] if revoked is None else [revoked])]
    return RereadFiles("--peer-cert", paths, read)


def peer_tls(
    certificate: Path, key: Path, authority: Path, revoked: Path | None = None, *, insecure: bool = False
) -> PeerTLS:
    """Mutual TLS between nodes, from ``--peer-cert``, ``--peer-key``, ``--peer-ca`` and
    ``--peer-crl``; raises ``BadCredentials`` if a file is not what it should be."""
    from tq_node.wire.tls import PeerTLS

    try:
        refuse_exposed("--peer-key", key, stat.S_IMODE(key.stat().st_mode), insecure=insecure)
        return PeerTLS(certificate, key, authority, revoked)
    except OSError as why:
        raise BadCredentials(f"--peer-key: {str(key)!r}: {why.strerror}") from None
    except BadCredentials:
        raise
    except ValueError as why:
        raise BadCredentials(" ".join(f"{_option(str(why), certificate, authority, revoked)}: {why}".split())) from None


def _option(why: str, certificate: Path, authority: Path, revoked: Path | None) -> str:
    """The option whose file ``PeerTLS`` complains of; one file may be given for two options."""
    if "of revoked certificates" in why and why.startswith(f"{revoked}: "):
        return "--peer-crl"
    if "holds no private key" in why or "is not the key of" in why:
        return "--peer-key"
    return "--peer-ca" if certificate != authority and why.startswith(f"{authority}: ") else "--peer-cert"
