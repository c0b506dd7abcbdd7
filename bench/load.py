"""Load over HTTP: one prebuilt request sent again and again over raw sockets, one at a time on each connection.

``offer`` is for the bench; ``python -m bench.load`` is the process that it starts, so that the clients share an interpreter
with nothing else.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import HOST, Failed, call, module

_SILENCE_S = 30.0
_RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True)
class Load:
    """What a load has shown. ``requests``: all good answers; ``rate``: good answers a second after the warm-up.

    ``client_cpu``: the share of one core that the clients took; near 1 they were the bound.
    """

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    client_cpu: float


def offer(
    port: int,
    path: str,
    body: object,
    *,
    connections: int,
    directory: Path,
    seconds: float = 0.0,
    requests: int = 0,
    status: int = 201,
    prefix: str = "{",
    method: str = "POST",
) -> Load:
    """Send ``body`` over ``connections`` for ``seconds`` (the first fifth of them is warm-up), or ``requests`` times.

    :param status, prefix: of every good answer, and how its body begins.
    :raises Failed: an answer was another one, or none came.
    """
    spec = {
        "port": port, "method": method, "path": path, "body": json.dumps(body, separators=(",", ":")) if body else "",
        "connections": connections, "seconds": seconds, "requests": requests, "status": status, "prefix": prefix,
    }  # fmt: skip
    answer = call(module("bench.load"), spec, directory=directory, log=directory / "load.log")
    if "wrong" in answer:
        raise Failed(f"{method} {path} was answered with: {answer['wrong']}")
    return Load(**answer)


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    begun: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytes = b""


class _Wrong(Exception):
    """Not the answer that was expected."""


class _Generator:
    """The loop over all connections."""

    def __init__(self, spec: dict[str, Any]) -> None:
        body = spec["body"].encode()
        head = f"{spec['method']} {spec['path']} HTTP/1.1\r\nHost: {HOST}:{spec['port']}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._request = memoryview(head.encode() + b"\r\n" + body)
        self._status = str(spec["status"]).encode()
        self._prefix = spec["prefix"].encode()
        self._seconds = spec["seconds"]
        self._requests = spec["requests"] or sys.maxsize
        self._sent = 0
        self._answered: list[tuple[float, float]] = []
        """(when, how long it took) of each good answer"""
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        for _ in range(spec["connections"]):
            connected = socket.create_connection((HOST, spec["port"]), 10)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setblocking(False)
            self._clients[connected.fileno()] = _Client(connected)
            self._epoll.register(connected.fileno(), select.EPOLLIN)

    def run(self) -> dict[str, float]:
        begun = time.perf_counter()
        warm = begun + self._seconds / 5
        self._end = begun + self._seconds if self._seconds else float("inf")
        for client in self._clients.values():
            self._send(client)
        cpu_warm: float | None = None
        while len(self._answered) < self._sent:
            events = self._epoll.poll(_SILENCE_S)
            if not events:
                raise _Wrong(f"nothing for {_SILENCE_S:g} s")
            if cpu_warm is None and time.perf_counter() >= warm:
                cpu_warm = _cpu_s()
            for number, event in events:
                client = self._clients[number]
                if event & select.EPOLLOUT:
                    self._push(client)
                if event & ~select.EPOLLOUT:
                    self._receive(client)
        # Answers after the end are good, but fewer and fewer connections were at work then.
        last = self._answered[-1][0] if self._answered else begun
        until = min(self._end, last)
        counted = sorted(took for when, took in self._answered if warm <= when <= until)
        over = max(until - warm, 1e-9)
        return {
            "requests": len(self._answered),
            "rate": len(counted) / over,
            "p50_ms": counted[len(counted) // 2] * 1000 if counted else 0.0,
            "p99_ms": counted[len(counted) * 99 // 100] * 1000 if counted else 0.0,
            "client_cpu": (_cpu_s() - (cpu_warm or 0.0)) / over,
        }

    def _send(self, client: _Client) -> None:
        client.begun = time.perf_counter()
        if client.begun >= self._end or self._sent >= self._requests:
            return
        self._sent += 1
        sent = client.socket.send(self._request)
        if sent < len(self._request):
            client.unsent = self._request[sent:]
            self._epoll.modify(client.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _push(self, client: _Client) -> None:
        client.unsent = client.unsent[client.socket.send(client.unsent) :]
        if not client.unsent:
            self._epoll.modify(client.socket.fileno(), select.EPOLLIN)

    def _receive(self, client: _Client) -> None:
        data = client.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise _Wrong("the connection was closed")
        if client.received:
            data = client.received + data
        split = data.find(b"\r\n\r\n")
        if split < 0 or len(data) < split + 4 + _content_length(data[:split]):
            client.received = data
            return
        now = time.perf_counter()
        if data[9:12] != self._status or not data.startswith(self._prefix, split + 4):
            raise _Wrong(data[:500].decode("utf-8", "replace"))
        client.received = b""
        self._answered.append((now, now - client.begun))
        self._send(client)


def _content_length(head: bytes) -> int:
    head = head.lower()
    found = head.find(b"\r\ncontent-length:")
    if found < 0:
        raise _Wrong("an answer without Content-Length")
    end = head.find(b"\r\n", found + 2)
    return int(head[found + 17 : end if end > 0 else None])


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Read a spec from stdin, write a ``Load`` to stdout."""
    try:
        answer: dict[str, Any] = _Generator(json.load(sys.stdin)).run()
    except (_Wrong, OSError) as why:
        answer = {"wrong": str(why)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
