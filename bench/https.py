"""``python -m bench.https``: what a submit by HTTPS costs a node beside one by HTTP, and what a handshake costs.

One node each, a few connections that are kept, each asking again once it is answered. What is compared is the CPU that the
node's process took, of which other programs on the machine take nothing.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from bench.node import Node
from bench.processes import HOST, ROOT, Failed, scratch

SECONDS = 5.0
CONNECTIONS = 8
HANDSHAKES = 300
BODY = b'{"type":"bench","queue":"bench","payload":"user@example.com"}'
REQUEST = (
    b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)


class Figures(NamedTuple):
    rate: float
    """Submits a second."""
    cpu_us: float
    """Of the node's process, a submit."""
    connect_ms: float
    """CPU of the node's process, a connection with one request."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.https", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each load takes [default: 5]")
    said = parser.parse_args(arguments)
    try:
        with scratch() as directory:
            plain = measured(directory / "plain", (), None, said.seconds)
            context, options = certified(directory)
            by_tls = measured(directory / "tls", options, context, said.seconds)
    except (Failed, OSError) as why:
        print(f"bench.https: {why}", file=sys.stderr)
        return 1
    for name, one in (("HTTP", plain), ("HTTPS", by_tls)):
        print(
            f"{name:5}  {one.rate:6.0f} submits a second  {one.cpu_us:5.0f} us of CPU a submit  "
            f"{one.connect_ms:.2f} ms of CPU a connection"
        )
    print(
        f"ratio  {by_tls.cpu_us / plain.cpu_us:.2f} a submit  {by_tls.connect_ms / plain.connect_ms:.1f} a connection"
    )
    return 0


def certified(directory: Path) -> tuple[ssl.SSLContext, tuple[str, ...]]:
    """What a client trusts, and the options of the node."""
    folder = directory / "ca"
    command = [sys.executable, str(ROOT / "deploy/make-cluster-ca"), str(folder), f"node-1={HOST},localhost"]
    subprocess.run(command, check=True, capture_output=True)
    options = ("--http-cert", str(folder / "node-1.crt"), "--http-key", str(folder / "node-1.key"))
    return ssl.create_default_context(cafile=str(folder / "ca.crt")), options


def measured(directory: Path, options: tuple[str, ...], tls: ssl.SSLContext | None, seconds: float) -> Figures:
    node = Node(directory, name="node-1", concurrency=1, extra=options, tls=tls)
    node.start()
    try:
        node.wait_ready(time.perf_counter())
        node.tell("POST", "/tasks/pause?queue=bench")
        load(node.port, tls, 1.0)  # to warm up
        before_s = node.cpu_s()
        count = load(node.port, tls, seconds)
        cpu_us = (node.cpu_s() - before_s) / count * 1e6
        before_s = node.cpu_s()
        for _ in range(HANDSHAKES):
            with connected(node.port, tls) as connection:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.recv(65_536)
        return Figures(count / seconds, cpu_us, (node.cpu_s() - before_s) / HANDSHAKES * 1e3)
    finally:
        node.crash()


def connected(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    plain = socket.create_connection((HOST, port), 30)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")


def load(port: int, tls: ssl.SSLContext | None, seconds: float) -> int:
    """How many submits were accepted. :raises Failed: one was not."""
    counts: list[int] = []
    wrong: list[str] = []
    end_s = time.monotonic() + seconds

    def ask() -> None:
        count = 0
        try:
            with connected(port, tls) as connection:
                while time.monotonic() < end_s:
                    connection.sendall(REQUEST)
                    answer = connection.recv(65_536)
                    if not answer.startswith(b"HTTP/1.1 201"):
                        raise Failed(f"a submit was answered {answer[:100]!r}")
                    count += 1
        except (OSError, Failed) as why:
            wrong.append(str(why))
        counts.append(count)

    threads = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise Failed(wrong[0])
    return sum(counts)


if __name__ == "__main__":
    sys.exit(main())
