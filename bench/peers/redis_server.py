"""A redis-server that syncs each write before it answers: ``appendonly yes``, ``appendfsync always``, no RDB, no rewrite."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from bench.processes import HOST, Failed, free_port, running, tail

ABOUT = "redis-server with appendonly yes, appendfsync always, over TCP; one copy"
_START_S = 20.0


class Redis:
    """One that runs."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.pid = 0

    def ask(self, command: str) -> int:
        """A command that is answered with a number."""
        with socket.create_connection((HOST, self.port), 10) as connection, connection.makefile("rb") as answers:
            connection.sendall(f"{command}\r\n".encode())
            line = answers.readline()
        if not line.startswith(b":"):
            raise OSError(f"redis-server says {line!r}")
        return int(line[1:])


@contextlib.contextmanager
def redis(directory: Path, prefix: tuple[str, ...] = ()) -> Iterator[Redis]:
    """:param prefix: a tracer before its command."""
    server = Redis(directory, free_port())
    log = directory / "redis.log"
    command = [
        *prefix, "redis-server", "--bind", HOST, "--port", str(server.port), "--dir", str(directory), "--save", "",
        "--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0",
        "--pidfile", str(directory / "redis.pid"),
    ]  # fmt: skip
    with running(command, directory=directory, log=log) as process:
        server.pid = process.pid
        end = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError):
                server.ask("DBSIZE")
                break
            if time.monotonic() > end:
                raise Failed(f"redis-server does not answer; it said:\n{tail(log)}")
            time.sleep(0.02)  # polls until the server answers
        yield server
