"""As much of NATS's protocol and of JetStream's as the bench needs: publishes with acknowledgement, a pull consumer, a stream.

Messages of one and the same content, lines made once.
"""

from __future__ import annotations

import json
import secrets
import socket
from typing import Any

from bench.peers.raw import Wrong
from bench.processes import HOST

STREAM = "bench"
SUBJECT = "bench.tasks"
DURABLE = "work"
CONTENT = b'{"type":"noop","payload":"user@example.com"}'
_RECEIVE_BYTES = 1 << 16
_EXPIRES_NS = 60_000_000_000
_OPTIONS = {
    "verbose": False,
    "pedantic": False,
    "headers": True,
    "no_responders": True,
    "lang": "python",
    "version": "1",
}


class Connection:
    """A connection with an inbox. :raises Wrong: the server does not play along."""

    def __init__(self, port: int, wait_s: float = 60.0) -> None:
        self._socket = socket.create_connection((HOST, port), wait_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._inbox = inbox
        self._message = f"PUB {SUBJECT} {inbox} {len(CONTENT)}\r\n".encode() + CONTENT + b"\r\n"
        self._asked = 0
        self._prefetch = 0
        self._socket.sendall(f"CONNECT {json.dumps(_OPTIONS)}\r\nSUB {inbox} 1\r\n".encode())
        self.settle()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def wait(self, wait_s: float) -> None:
        """From now on for so long at most."""
        self._socket.settimeout(wait_s)

    # --- one answer each ---
    def request(self, subject: str, body: object = None) -> Any:
        """What the server answers, as JSON."""
        payload = b"" if body is None else json.dumps(body).encode()
        self._socket.sendall(f"PUB {subject} {self._inbox} {len(payload)}\r\n".encode() + payload + b"\r\n")
        while True:
            for message in self._messages():
                return json.loads(_good(message)[1])

    def declare(self, copies: int) -> None:
        """The stream on so many nodes, from which messages go when they are acknowledged, and its consumer."""
        stream = {
            "name": STREAM, "subjects": [SUBJECT], "retention": "workqueue", "storage": "file", "num_replicas": copies,
        }  # fmt: skip
        self._create(f"$JS.API.STREAM.CREATE.{STREAM}", stream)
        consumer = {"durable_name": DURABLE, "ack_policy": "explicit", "max_ack_pending": 1_500}
        self._create(f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{DURABLE}", {"stream_name": STREAM, "config": consumer})

    def _create(self, subject: str, body: object) -> None:
        answer = self.request(subject, body)
        if "error" in answer:
            raise Wrong(f"{subject} was answered with {answer['error']}")

    def stored(self) -> int:
        """Messages in the stream."""
        count: int = self._info()["state"]["messages"]
        return count

    def replicas(self) -> int:
        """How many servers have the stream as it is now: its leader, and who follows it without lag."""
        cluster = self._info()["cluster"]
        current: list[bool] = [one["current"] for one in cluster.get("replicas", ())]
        return bool(cluster.get("leader")) + sum(current)

    def _info(self) -> Any:
        answer = self.request(f"$JS.API.STREAM.INFO.{STREAM}")
        if "error" in answer:
            raise Wrong(f"the stream's state: {answer['error']}")
        return answer

    def confirm(self) -> None:
        """Publishes to a stream are always acknowledged."""

    def settle(self) -> None:
        """Until the server has taken what was sent before."""
        self._socket.sendall(b"PING\r\n")
        pong = False
        while not pong:
            pong = self._read(on_message=None)

    # --- messages ---
    def publish(self, count: int) -> None:
        self._socket.sendall(self._message * count)

    def confirmed(self) -> int:
        """See ``raw.Speaker``."""
        count = 0
        for message in self._messages():
            answer = _good(message)[1]
            if b'"seq"' not in answer:
                raise Wrong(f"a publish was answered with {answer[:200]!r}")
            count += 1
        return count

    def consume(self, prefetch: int) -> None:
        """Ask for so many messages; more are asked for when half of them have come."""
        self._prefetch = prefetch
        self._pull()

    def _pull(self) -> None:
        payload = json.dumps({"batch": self._prefetch, "expires": _EXPIRES_NS}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}"
        self._socket.sendall(f"PUB {subject} {self._inbox} {len(payload)}\r\n".encode() + payload + b"\r\n")
        self._asked += self._prefetch

    def delivered(self) -> tuple[int, list[bytes]]:
        """Wait for messages. (how many, whom to acknowledge them to)"""
        replies = [_good(message)[0] for message in self._messages()]
        self._asked -= len(replies)
        if self._asked <= self._prefetch // 2:
            self._pull()
        return len(replies), replies

    def acknowledge(self, replies: list[bytes]) -> None:
        self._socket.sendall(b"".join(b"PUB " + reply + b" 4\r\n+ACK\r\n" for reply in replies))

    # --- bytes ---
    def _messages(self) -> list[tuple[bytes, list[bytes], bytes]]:
        """(operation, words, payload) of each message, after one read."""
        messages: list[tuple[bytes, list[bytes], bytes]] = []
        self._read(messages)
        return messages

    def _read(self, on_message: list[tuple[bytes, list[bytes], bytes]] | None) -> bool:
        """Take in what has come; whether a PONG was in it."""
        read = self._socket.recv(_RECEIVE_BYTES)
        if not read:
            raise Wrong("the server has closed the connection")
        data = self._received + read
        at, pong = 0, False
        while (end := data.find(b"\r\n", at)) >= 0:
            operation, *words = data[at:end].split(b" ")
            after = end + 2
            if operation in (b"MSG", b"HMSG"):
                size = int(words[-1])
                if len(data) < after + size + 2:
                    break
                if on_message is not None:
                    on_message.append((operation, words, data[after : after + size]))
                after += size + 2
            elif operation == b"PING":
                self._socket.sendall(b"PONG\r\n")
            elif operation == b"-ERR":
                raise Wrong(f"the server says {data[at:end]!r}")
            pong = pong or operation == b"PONG"
            at = after
        self._received = data[at:]
        return pong


def _good(message: tuple[bytes, list[bytes], bytes]) -> tuple[bytes, bytes]:
    """(where to answer, payload). :raises Wrong: it is a status of the server's."""
    operation, words, payload = message
    if operation == b"HMSG":
        raise Wrong(f"the server says {payload[:200]!r}")
    return words[2] if len(words) == 4 else b"", payload
