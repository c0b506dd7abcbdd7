"""Which user holds the other end of a connection on this machine, as the kernel says (Linux).

A loopback address may be another user's process, or a proxy, ``ssh -L`` or browser that speaks for
somebody else. Whoever has the node's own user id can read its store anyway."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from twisted.internet.address import UNIXAddress

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"
"""The only state that counts: a socket closed on its own side may be shown as root's."""
_CREDENTIALS = struct.Struct("iII")
"""Process, user and group, as ``SO_PEERCRED`` gives them: of when the connection was dialled."""
_MAPPED = b"\x00" * 10 + b"\xff\xff"


def _places(host: str, port: int) -> set[str]:
    """The address as in ``_TABLES``, words in machine byte order; IPv4 also as mapped to IPv6."""
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        return set()
    forms = {packed}
    if len(packed) == 4:
        forms.add(_MAPPED + packed)
    elif packed.startswith(_MAPPED):
        forms.add(packed[12:])
    return {f"{_words(form)}:{port:04X}" for form in forms}


def _words(packed: bytes) -> str:
    return "".join(f"{int.from_bytes(packed[at : at + 4], sys.byteorder):08X}" for at in range(0, len(packed), 4))


def owner_of(theirs: tuple[str, int], ours: tuple[str, int]) -> int | None:
    """User id of the socket at ``theirs`` connected to ``ours``; None: the kernel doesn't say."""
    local, remote = _places(*theirs), _places(*ours)
    for table in _TABLES:
        try:
            with table.open() as lines:
                for line in lines:
                    fields = line.split(None, 8)
                    if len(fields) > 8 and fields[1] in local and fields[2] in remote and fields[3] == _ESTABLISHED:
                        return int(fields[7])
        except (OSError, ValueError):
            continue
    return None


def dialler_of(handle: socket.socket) -> int | None:
    """User id of the process that dialled a Unix socket; None: the kernel doesn't say."""
    try:
        said = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(said)[1])
    except (OSError, AttributeError, struct.error):
        return None


def is_own_users(transport: Any) -> bool | None:
    """Whether the other end is this process's user or root; None: unknown (not Linux)."""
    there, here = transport.getPeer(), transport.getHost()
    if isinstance(there, UNIXAddress):
        uid = dialler_of(transport.socket) if hasattr(transport, "socket") else None
        return None if uid is None else uid in _trusted()
    if not (hasattr(there, "port") and hasattr(here, "port") and _TABLES[0].exists()):
        return None
    return owner_of((there.host, there.port), (here.host, here.port)) in _trusted()


def _trusted() -> tuple[int, int]:
    return 0, os.geteuid()
