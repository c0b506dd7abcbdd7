"""What tells friends from strangers between peers, read from the files that the operator names.

Called before anything is created on disk; what is wrong is one line that names the option.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger

from tq_node.wire import bounds

if TYPE_CHECKING:  # it needs OpenSSL, which a node without certificates need not load
    from tq_node.wire.tls import PeerTLS

_log = Logger(namespace="taskqueue.node")

SECRET_BYTES_MAX = 64 * 1024
"""More is some other file, given by mistake."""


class BadCredentials(Exception):
    """``str()`` is one line that names the option, ready to print."""


def read_secret(path: Path, *, insecure: bool = False) -> bytes:
    """The content of ``--secret-file``, without the newline that editors put at the end. Never
    stored anywhere else.

    :param insecure: one that everybody can read is taken, and said in the log: in some containers
        there is no other.
    :raises BadCredentials: it can't be read, by others too, or is too short or too long to be a
        secret.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read(SECRET_BYTES_MAX + 1)
    except OSError as why:
        raise BadCredentials(f"--secret-file: {str(path)!r}: {why.strerror}") from None
    if len(secret) > SECRET_BYTES_MAX:
        raise BadCredentials(f"--secret-file: {str(path)!r} has more than {SECRET_BYTES_MAX} bytes: not a secret")
    secret = secret.removesuffix(b"\n").removesuffix(b"\r")
    if len(secret) < bounds.SECRET_BYTES_MIN:
        raise BadCredentials(
            f"--secret-file: {str(path)!r} holds {len(secret)} bytes; a secret has at least {bounds.SECRET_BYTES_MIN}"
        )
    _refuse_exposed("--secret-file", path, mode, insecure=insecure)
    return secret


def _refuse_exposed(option: str, path: Path, mode: int, *, insecure: bool) -> None:
    """The owner and its group may read it (0640, as for a service's own group), nobody else; a writer is a reader."""
    if not mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        return
    line = f"{option}: {path} can be read or changed by others than its owner (mode {mode:o}): chmod 600 {path}"
    if not insecure:
        raise BadCredentials(line)
    _log.warn("{line}", line=line, event="secret_exposed")


def peer_tls(
    certificate: Path | None, key: Path | None, authority: Path | None, *, insecure: bool = False
) -> PeerTLS | None:
    """Mutual TLS from ``--peer-cert``, ``--peer-key`` and ``--peer-ca``, which go together; None
    where they are not given.

    For ``PeerListener(tls=)`` and ``Connector(tls=)``, which put it on their plain endpoints.

    :raises BadCredentials: a file is not what it should be.
    """
    if certificate is None or key is None or authority is None:
        return None
    from tq_node.wire.tls import PeerTLS

    try:
        _refuse_exposed("--peer-key", key, stat.S_IMODE(key.stat().st_mode), insecure=insecure)
        return PeerTLS(certificate, key, authority)
    except OSError as why:
        raise BadCredentials(f"--peer-key: {str(key)!r}: {why.strerror}") from None
    except ValueError as why:
        raise BadCredentials(" ".join(f"{_option(str(why), certificate, authority)}: {why}".split())) from None


def _option(why: str, certificate: Path, authority: Path) -> str:
    """Whose file it is that ``PeerTLS`` complains of. One file may be given for two options."""
    if "holds no private key" in why or "is not the key of" in why:
        return "--peer-key"
    return "--peer-ca" if certificate != authority and why.startswith(f"{authority}: ") else "--peer-cert"
