"""``python -m tests.chaos.rush``: an open load from a process of its own. Requests are due at a fixed rate, whatever became of
those before: a queue that would grow without end is seen, as it is not where each client waits for its answer.

A request that is due takes a connection that is free. Where all are taken it is not sent, and counted; so the rate goes on
however slow the answers are. Sockets and bytes made beforehand: most of what two cores have is for the nodes.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tests.chaos.flood import Beside
from tests.support.history import Call, History

CONNECTIONS_MAX = 1_500
"""Of all processes of a rush together."""
LAST_ANSWER_S = 15.0
"""After the last request so long is waited for answers; a node itself answers within 10 s."""
_DUE_AT_ONCE = 64
"""So many that are due are sent before answers are read again."""


class Heard(msgspec.Struct):
    """What a process has counted. ``done``: (id, began, ended) of each acknowledged task; ``unknown``: (id, began)."""

    sent: int = 0
    unsent: int = 0
    statuses: dict[int, int] = msgspec.field(default_factory=dict)
    without_retry_after: int = 0
    refused_s: list[float] = msgspec.field(default_factory=list)
    """How long each refusal took."""
    done: list[tuple[str, float, float]] = msgspec.field(default_factory=list)
    unknown: list[tuple[str, float]] = msgspec.field(default_factory=list)

    @property
    def refused(self) -> int:
        return self.statuses.get(429, 0) + self.statuses.get(503, 0)

    @property
    def strange(self) -> bool:
        """Anything but: done; 429 or 503 with ``Retry-After``."""
        return bool(self.without_retry_after or self.statuses.keys() - {200, 201, 429, 503})

    def count(self, status: int, times: int = 1) -> None:
        """An answer; 0: there was none."""
        self.statuses[status] = self.statuses.get(status, 0) + times


class _Line:
    """One connection, with one request on its way at most."""

    __slots__ = ("answer", "began_s", "port", "sock", "task_id")

    def __init__(self, port: int) -> None:
        self.port = port
        self.answer = b""
        self.task_id = ""
        self.began_s = 0.0
        self.sock = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock

    def again(self) -> None:
        self.sock.close()
        self.sock = self._connect()
        self.answer = b""
        self.task_id = ""


class Rush:
    """:param rate: requests a second."""

    def __init__(self, prefix: str, ports: list[int], connections: int, rate: float, seconds: float) -> None:
        self.heard = Heard()
        self._prefix = prefix
        self._rate, self._seconds = rate, seconds
        self._poll = select.epoll()
        self._lines: dict[int, _Line] = {}
        for number in range(connections):
            self._watch(_Line(ports[number % len(ports)]))
        self._free = deque(self._lines.values())
        self._serial = 0

    def _watch(self, line: _Line) -> None:
        self._lines[line.sock.fileno()] = line
        self._poll.register(line.sock, select.EPOLLIN)

    def run(self) -> Heard:
        heard = self.heard
        began_s = time.monotonic()
        due = 0
        while (now_s := time.monotonic()) - began_s < self._seconds:
            late = int((now_s - began_s) * self._rate) - due
            for _ in range(min(late, _DUE_AT_ONCE, len(self._free))):
                due += 1
                late -= 1
                self._send(self._free.popleft())
            if not self._free:
                due += late
                heard.unsent += late
                late = 0
            self._read(0.0 if late else 0.002)
        end_s = time.monotonic() + LAST_ANSWER_S
        while len(self._free) < len(self._lines) and time.monotonic() < end_s:
            self._read(0.05)
        for line in self._lines.values():
            if line.task_id:
                heard.unknown.append((line.task_id, line.began_s))
        return heard

    def _send(self, line: _Line) -> None:
        line.task_id = f"{self._prefix}-{self._serial:08d}"
        self._serial += 1
        content = b'{"id":"%b","type":"noop","payload":"%b"}' % (line.task_id.encode(), b"x" * 100)
        line.began_s = time.monotonic()
        self.heard.sent += 1
        request = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        try:
            line.sock.send(request % (len(content), content))
        except OSError:
            self._lost(line)

    def _read(self, wait_s: float) -> None:
        for number, _ in self._poll.poll(wait_s):
            line = self._lines[number]
            try:
                data = line.sock.recv(65_536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._lost(line)
                continue
            line.answer += data
            head, found, body = line.answer.partition(b"\r\n\r\n")
            if not found:
                continue
            fields = head.lower()
            length = int(fields.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
            if len(body) >= length:
                self._answered(line, int(head[9:12]), b"\r\nretry-after:" in fields)
                if b"\r\nconnection: close" in fields:
                    self._renew(line)

    def _answered(self, line: _Line, status: int, has_retry_after: bool) -> None:
        heard, now_s = self.heard, time.monotonic()
        heard.count(status)
        if status in (200, 201):
            heard.done.append((line.task_id, line.began_s, now_s))
        elif status in (429, 503):
            heard.without_retry_after += not has_retry_after
            heard.refused_s.append(now_s - line.began_s)
            if status == 503:  # under one's own id it may also say that nobody knows
                heard.unknown.append((line.task_id, line.began_s))
        else:
            heard.unknown.append((line.task_id, line.began_s))
        line.answer, line.task_id = b"", ""
        self._free.append(line)

    def _lost(self, line: _Line) -> None:
        if line.task_id:
            self.heard.count(0)
            self.heard.unknown.append((line.task_id, line.began_s))
            self._free.append(line)
        self._renew(line)

    def _renew(self, line: _Line) -> None:
        del self._lines[line.sock.fileno()]
        line.again()
        self._watch(line)


# --- for the scenario ---
class Rushing(Beside):
    """Processes that rush. :param rate: requests a second, :param connections: of all of them together."""

    def __init__(
        self,
        directory: Path,
        name: str,
        ports: Mapping[str, int],
        *,
        rate: float,
        seconds: float,
        connections: int,
        processes: int = 1,
    ) -> None:
        assert connections <= CONNECTIONS_MAX
        self.seconds = seconds
        said = ["--ports", ",".join(map(str, ports.values())), "--seconds", str(seconds)]
        said += ["--rate", str(rate / processes), "--connections", str(connections // processes)]
        super().__init__("tests.chaos.rush", directory, name, processes, said)

    def end(self, history: History) -> Heard:
        """Wait for it. What it heard; what was done, or may have been, is in the history then."""
        told = Heard()
        for out in self.heard(self.seconds + LAST_ANSWER_S + 60):
            one = msgspec.json.decode(out.read_bytes(), type=Heard)
            told.sent += one.sent
            told.unsent += one.unsent
            for status, count in one.statuses.items():
                told.count(status, count)
            told.without_retry_after += one.without_retry_after
            told.refused_s += one.refused_s
            told.done += one.done
            told.unknown += one.unknown
        for task_id, began_s, ended_s in told.done:
            history.add(Call("submit", task_id, began_s, "rush", ended_s=ended_s, outcome="ok", http=201))
        for task_id, began_s in told.unknown:
            history.add(Call("submit", task_id, began_s, "rush", code="no answer"))
        return told


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("ports", str), ("prefix", str), ("connections", int), ("seconds", float), ("rate", float),
                       ("out", Path)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    options = parser.parse_args()
    ports = [int(port) for port in options.ports.split(",")]
    rush = Rush(options.prefix, ports, options.connections, options.rate, options.seconds)
    options.out.write_bytes(msgspec.json.encode(rush.run()))


if __name__ == "__main__":
    main()
