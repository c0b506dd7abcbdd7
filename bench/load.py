"""Load over HTTP: prebuilt requests over raw sockets, again and again, spread over all nodes, one at a time on each connection.

``offer`` is for the bench; ``python -m bench.load`` is a process that it starts, so that the clients share an interpreter
with nothing else. Several such processes begin and end at the same moment of the clock that all processes share.
"""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import HOST, Failed, conversation, module

_SILENCE_S = 30.0
_LONGEST_S = 1_800.0
"""For a million tasks on a slow disk; a load that hears nothing ends by itself."""
_RECEIVE_BYTES = 1 << 16
"""More would be a memory mapping of its own for each answer."""
_COUNTS = re.compile(rb'"accepted":([0-9]+),"rejected":([0-9]+),')
_REST_S = 0.02
"""Pause of a connection after a refusal."""
_WARM_UP = 5
"""Warm-up, as one part in so many of the load."""
_LEAD_S = 0.02
"""Lead time from the order to begin until all begin."""


@dataclass(frozen=True)
class Load:
    """What a load has shown. ``requests``: all good answers; ``rate``: good answers a second after the warm-up.

    ``client_cpu``: the share of one core that the clients took; near the number of their processes they were the bound.
    ``wire_bytes``: what one request and its answer are, with their heads, without those of TCP and IP.
    ``accepted``, ``accepted_rate``: tasks of batches, and how many a second; ``refused``: those that were refused for now.
    """

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    client_cpu: float
    wire_bytes: float
    accepted: int
    accepted_rate: float
    refused: int


def offer(
    ports: Sequence[int],
    path: str | Sequence[str],
    body: object,
    *,
    connections: int,
    directory: Path,
    in_flight: int | None = None,
    processes: int = 1,
    seconds: float = 0.0,
    requests: int = 0,
    status: int = 201,
    prefix: str = "{",
    method: str = "POST",
    batch: int = 0,
) -> Load:
    """Send ``body`` over ``connections`` for ``seconds`` (the first fifth of them is warm-up), or ``requests`` times.

    :param ports: of the nodes, each with its share of the connections.
    :param path: one, or several to be asked in turns.
    :param in_flight: at most so many requests; where that is less than the connections, they take turns.
    :param processes: each with its share of the connections.
    :param status, prefix: of every good answer, and how its body begins.
    :param batch: the tasks of a batch: of an answer those accepted count, and where some were refused as ``busy`` the
        connection rests a moment.
    :raises Failed: an answer was another one, or none came.
    """
    spec = {
        "method": method, "paths": [path] if isinstance(path, str) else list(path),
        "body": "" if body is None else json.dumps(body, separators=(",", ":")), "seconds": seconds, "status": status,
        "prefix": prefix, "batch": batch,
    }  # fmt: skip
    of_connection = [ports[number % len(ports)] for number in range(connections)]
    with ExitStack() as stack:
        started = []
        for number in range(processes):
            share = of_connection[number::processes]
            mine = {
                **spec, "ports": share, "in_flight": min(len(share), in_flight or len(share)),
                "requests": requests // processes + (number < requests % processes),
            }  # fmt: skip
            log = directory / "load.log"
            one = stack.enter_context(conversation(module("bench.load"), mine, directory=directory, log=log))
            started.append(one)
        for one in started:
            _heard(one.hear(), method, spec["paths"])
        begin = time.monotonic() + _LEAD_S
        for one in started:
            one.say(begin)
        answers = [_heard(one.hear(_LONGEST_S), method, spec["paths"]) for one in started]
    return _sum(answers, begin + seconds / _WARM_UP, begin + seconds if seconds else float("inf"))


def _heard(answer: Any, method: str, paths: Any) -> Any:
    if "wrong" in answer:
        raise Failed(f"{method} {paths[0]} was answered with: {answer['wrong']}")
    return answer


def _sum(answers: list[Any], warm: float, end: float) -> Load:
    # Answers after the end are good, but fewer and fewer connections were at work then.
    last = max(answer["last"] for answer in answers)
    over = max(min(end, last) - warm, 1e-9)
    taken = sorted(took for answer in answers for took in answer["taken_ms"])
    requests = sum(answer["requests"] for answer in answers)
    accepted_warm = sum(answer["accepted_warm"] for answer in answers)
    return Load(
        requests=requests,
        rate=len(taken) / over,
        p50_ms=taken[len(taken) // 2] if taken else 0.0,
        p99_ms=taken[len(taken) * 99 // 100] if taken else 0.0,
        client_cpu=sum(answer["cpu_s"] for answer in answers) / over,
        wire_bytes=sum(answer["wire_bytes"] for answer in answers) / max(requests, 1),
        accepted=sum(answer["accepted"] for answer in answers),
        accepted_rate=accepted_warm / over,
        refused=sum(answer["refused"] for answer in answers),
    )


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    requests: list[bytes]
    begun: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytes = b""


class _Wrong(Exception):
    """An answer is not the one expected."""


class _Generator:
    """The loop over all connections of one process."""

    def __init__(self, spec: dict[str, Any]) -> None:
        built = {port: [_request(spec, port, path) for path in spec["paths"]] for port in set(spec["ports"])}
        self._status = str(spec["status"]).encode()
        self._prefix = spec["prefix"].encode()
        self._seconds = spec["seconds"]
        self._requests = spec["requests"] or sys.maxsize
        self._in_flight = spec["in_flight"]
        self._sent = 0
        self._wire_bytes = 0
        self._answered: list[tuple[float, float]] = []
        """(when, how long it took) of each good answer"""
        self._batch = spec["batch"]
        self._accepted: list[tuple[float, int]] = []
        self._refused = 0
        self._heard = 0.0
        """Time of the last answer."""
        self._resting: deque[tuple[float, _Client]] = deque()
        self._end = float("inf")
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._idle: deque[_Client] = deque()
        for port in spec["ports"]:
            connected = socket.create_connection((HOST, port), 10)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setblocking(False)
            client = _Client(connected, built[port])
            self._clients[connected.fileno()] = client
            self._idle.append(client)
            self._epoll.register(connected.fileno(), select.EPOLLIN)

    def run(self, begin: float) -> dict[str, Any]:
        """:param begin: on CLOCK_MONOTONIC."""
        warm = begin + self._seconds / _WARM_UP
        self._end = begin + self._seconds if self._seconds else float("inf")
        time.sleep(max(0.0, begin - time.monotonic()))  # all processes begin together
        self._heard = begin
        for _ in range(self._in_flight):
            self._send()
        cpu_warm: float | None = None
        while len(self._answered) < self._sent or (self._resting and self._may_send()):
            events = self._epoll.poll(_REST_S if self._resting else _SILENCE_S)
            while self._resting and self._resting[0][0] <= time.monotonic():
                self._idle.append(self._resting.popleft()[1])
                self._send()
            if not events and len(self._answered) < self._sent and time.monotonic() - self._heard > _SILENCE_S:
                raise _Wrong(f"nothing for {_SILENCE_S:g} s")
            if cpu_warm is None and time.monotonic() >= warm:
                cpu_warm = _cpu_s()
            for number, event in events:
                client = self._clients[number]
                if event & select.EPOLLOUT:
                    self._push(client)
                if event & ~select.EPOLLOUT:
                    self._receive(client)
        last = self._answered[-1][0] if self._answered else begin
        until = min(self._end, last)
        return {
            "requests": len(self._answered),
            "taken_ms": [round(took * 1000, 3) for when, took in self._answered if warm <= when <= until],
            "last": last,
            "cpu_s": _cpu_s() - (cpu_warm or 0.0),
            "wire_bytes": self._wire_bytes,
            "accepted": sum(count for _, count in self._accepted),
            "accepted_warm": sum(count for when, count in self._accepted if warm <= when <= until),
            "refused": self._refused,
        }

    def _may_send(self) -> bool:
        return time.monotonic() < self._end and self._sent < self._requests

    def _send(self) -> None:
        client = self._idle.popleft()
        client.begun = time.monotonic()
        if client.begun >= self._end or self._sent >= self._requests:
            return
        request = client.requests[self._sent % len(client.requests)]
        self._sent += 1
        self._wire_bytes += len(request)
        sent = client.socket.send(request)
        if sent < len(request):
            client.unsent = memoryview(request)[sent:]
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
        now = time.monotonic()
        if data[9:12] != self._status or not data.startswith(self._prefix, split + 4):
            raise _Wrong(data[:500].decode("utf-8", "replace"))
        client.received = b""
        self._wire_bytes += len(data)
        self._heard = now
        self._answered.append((now, now - client.begun))
        if self._batch and (accepted := self._accept(data, split + 4)) < self._batch:
            self._refused += self._batch - accepted
            self._resting.append((now + _REST_S, client))
            return
        self._idle.append(client)
        self._send()

    def _accept(self, data: bytes, begin: int) -> int:
        """Number of tasks of a batch that were accepted. :raises _Wrong: one was refused for another reason than ``busy``."""
        counts = _COUNTS.match(data, begin + len(self._prefix))
        accepted, rejected = (int(counts[1]), int(counts[2])) if counts else (0, 0)
        if accepted + rejected != self._batch or rejected != data.count(b'"code":"busy"', begin):
            raise _Wrong(data[:300].decode("utf-8", "replace") + " … " + data[-500:].decode("utf-8", "replace"))
        self._accepted.append((self._answered[-1][0], accepted))
        return accepted


def _request(spec: dict[str, Any], port: int, path: str) -> bytes:
    body: bytes = spec["body"].encode()
    head = f"{spec['method']} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


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
    """A line with the spec comes in, one goes out when all is connected; then the moment to begin, and what was seen."""
    try:
        generator = _Generator(json.loads(sys.stdin.readline()))
        print("{}", flush=True)
        answer: dict[str, Any] = generator.run(json.loads(sys.stdin.readline()))
    except (_Wrong, OSError) as why:
        answer = {"wrong": str(why)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
