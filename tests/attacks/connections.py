"""A10: connections that do nothing, and requests that come a byte at a time."""

from __future__ import annotations

import resource
import socket
import ssl
import time
from collections.abc import Sequence

from tests.attacks.harness import Stage, attack
from tq_node import limits

QUIET = limits.HTTP_CONNECTIONS_OF_ADDRESS_MAX + 200


def let_open(files: int) -> None:
    """So many files for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= files, f"the attack opens {files} files, and may open {hard}"
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def has_ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


@attack("A10 5,200 quiet connections, then requests of others")
def quiet(stage: Stage) -> None:
    let_open(QUIET + 500)
    connections = [stage.connect() for _ in range(QUIET)]
    for _ in range(50):
        assert stage.node.get("/health").status == 200
        stage.node.submit()
    assert has_ended(connections[0]), "the quietest made room"


@attack("A10 requests that come a byte at a time, both ways", is_long=True)
def drips(stage: Stage) -> None:
    begins: Sequence[bytes] = (
        b"POST /tasks/sub",
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n{",
        b"POST /tasks/batch HTTP/1.1\r\nHost: localhost\r\nX-Other: 1\r\nContent-Length: 60000\r\n\r\n{",
    )
    connections = [stage.connect() for _ in begins]
    for connection, begin in zip(connections, begins, strict=True):
        connection.sendall(begin)
    deadline_s = time.monotonic() + 40
    left = list(connections)
    while left and time.monotonic() < deadline_s:
        time.sleep(0.5)  # one byte a connection each time is the attack
        left = [connection for connection in left if not has_ended(connection)]
        for connection in left:
            connection.setblocking(True)
            try:
                connection.send(b" ")
            except OSError:
                left.remove(connection)
                break
    assert not left, f"{len(left)} of {len(connections)} still live"
