"""Handshakes: many at once, half ones, and what is none."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

from tests.attacks.connections import has_ended, let_open
from tests.attacks.harness import Stage, attack
from tq_node import limits

AT_ONCE = 1_000


def hello(context: ssl.SSLContext) -> bytes:
    """What a client says first."""
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


def begun(stage: Stage, count: int) -> list[socket.socket]:
    """Connections that say hello all at once, and then nothing."""
    assert stage.tls is not None
    said = hello(stage.tls)
    connections = [stage.connect(by_tls=False) for _ in range(count)]
    for connection in connections:
        connection.sendall(said)
    return connections


@attack(f"{AT_ONCE:,} handshakes begun at once, and left", by_tls_only=True)
def half_handshakes(stage: Stage) -> None:
    let_open(AT_ONCE + 500)
    connections = begun(stage, AT_ONCE)
    for _ in range(20):
        stage.node.submit()
    time.sleep(limits.HTTP_HEAD_S + 3)  # the bound itself is what is looked at
    left = [connection for connection in connections if not _is_over(connection)]
    assert not left, f"{len(left)} are still open"


def _is_over(connection: socket.socket) -> bool:
    """Once what the node has answered is read."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError, OSError):
        connection.recv(65_536)
    return has_ended(connection)
