"""As much of AMQP 0-9-1 as the bench needs: publishes with confirms, a consumer that acknowledges, a durable quorum queue.

One channel, messages of one and the same content, frames made once.
"""

from __future__ import annotations

import socket
import struct

from bench.peers.raw import Wrong
from bench.processes import HOST

QUEUE = "bench"
CONTENT = b'{"type":"noop","payload":"user@example.com"}'
_METHOD, _HEADER, _BODY = 1, 2, 3
_END = b"\xce"
_FRAME = struct.Struct("!BHI")
_IDS = struct.Struct("!HH")
_ACK = (60, 80)
_DELIVER = (60, 60)
_PERSISTENT = struct.pack("!HHQHB", 60, 0, len(CONTENT), 0x1000, 2)
"""Class basic, weight, size of the body, only delivery-mode given, and that is 2."""
_RECEIVE_BYTES = 1 << 16


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, channel, len(payload)) + payload + _END


def _method(channel: int, ids: tuple[int, int], arguments: bytes = b"") -> bytes:
    return _frame(_METHOD, channel, _IDS.pack(*ids) + arguments)


def _quorum_arguments(copies: int) -> bytes:
    """A table: quorum queue, with so many members from the start."""
    fields = _short("x-queue-type") + b"S" + struct.pack("!I", 6) + b"quorum"
    fields += _short("x-quorum-initial-group-size") + b"I" + struct.pack("!i", copies)
    return struct.pack("!I", len(fields)) + fields


_NO_TABLE = bytes(4)
_MESSAGE = (
    _method(1, (60, 40), bytes(2) + _short("") + _short(QUEUE) + b"\x00")
    + _frame(_HEADER, 1, _PERSISTENT)
    + _frame(_BODY, 1, CONTENT)
)


class Channel:
    """A connection with channel 1 open on it. :raises Wrong: the broker does not play along."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._coming = 0
        """The tag of the message whose content has not come yet."""
        self._upto = 0
        self._beyond: set[int] = set()
        """Confirmed: all up to that tag, and these."""
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect((10, 10))
        login = struct.pack("!I", 12) + b"\x00guest\x00guest"
        self._socket.sendall(_method(0, (10, 11), _NO_TABLE + _short("PLAIN") + login + _short("en_US")))
        channels, frame_max, _ = struct.unpack("!HIH", self._expect((10, 30))[:8])
        self._socket.sendall(_method(0, (10, 31), struct.pack("!HIH", channels, frame_max, 0)))
        self._ask(0, (10, 40), _short("/") + bytes(2))
        self._ask(1, (20, 10), bytes(1))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    # --- one answer each ---
    def declare(self, name: str = QUEUE, *, copies: int = 0, passive: bool = False) -> int:
        """A durable queue, on so many nodes, or a transient one; how many messages are ready in it."""
        flags = (
            (1 if passive else 0) | (2 if copies else 0) | (0 if copies or passive else 8)
        )  # passive, durable, auto-delete
        arguments = _quorum_arguments(copies) if copies and not passive else _NO_TABLE
        answer = self._ask(1, (50, 10), bytes(2) + _short(name) + bytes([flags]) + arguments)
        ready: int = struct.unpack_from("!I", answer, 1 + answer[0])[0]
        return ready

    def confirm(self) -> None:
        """From now on each publish is confirmed."""
        self._ask(1, (85, 10), b"\x00")

    def consume(self, prefetch: int) -> None:
        self._ask(1, (60, 10), struct.pack("!IHB", 0, prefetch, 0))
        # Without an answer of its own: deliveries may follow at once.
        self._socket.sendall(_method(1, (60, 20), bytes(2) + _short(QUEUE) + _short("bench") + b"\x08" + _NO_TABLE))

    # --- messages ---
    def publish(self, count: int) -> None:
        self._socket.sendall(_MESSAGE * count)

    def confirmed(self) -> int:
        """See ``raw.Speaker``."""
        before = self._upto + len(self._beyond)
        for kind, ids, arguments in self._frames():
            if kind != _METHOD or ids != _ACK:
                raise Wrong(f"the broker says {ids} {arguments[:200]!r}")
            tag, multiple = struct.unpack("!QB", arguments)
            if multiple:
                self._upto = max(self._upto, tag)
                self._beyond = {one for one in self._beyond if one > self._upto}
            elif tag > self._upto:
                self._beyond.add(tag)  # confirmations may overtake one another
        return self._upto + len(self._beyond) - before

    def delivered(self) -> tuple[int, list[int]]:
        """Wait for messages. (how many have come whole, their tags)"""
        tags = []
        for kind, ids, arguments in self._frames():
            if kind == _METHOD:
                if ids != _DELIVER:
                    raise Wrong(f"the broker says {ids} {arguments[:200]!r}")
                self._coming = struct.unpack_from("!Q", arguments, 1 + arguments[0])[0]
            elif kind == _BODY:
                tags.append(self._coming)
        return len(tags), tags

    def settle(self) -> None:
        """Until the broker has taken what was sent before."""
        self.declare(passive=True)

    def acknowledge(self, tags: list[int]) -> None:
        """Each by itself, as workers do that have run one task."""
        self._socket.sendall(b"".join(_method(1, (60, 80), struct.pack("!QB", tag, 0)) for tag in tags))

    # --- bytes ---
    def _ask(self, channel: int, ids: tuple[int, int], arguments: bytes) -> bytes:
        self._socket.sendall(_method(channel, ids, arguments))
        return self._expect((ids[0], ids[1] + 1))

    def _expect(self, wanted: tuple[int, int]) -> bytes:
        """The arguments of this method, which must be the next one but for deliveries."""
        while True:
            for kind, ids, arguments in self._frames():
                if kind == _METHOD and ids == wanted:
                    return arguments
                if kind == _METHOD and ids != _DELIVER:
                    raise Wrong(f"the broker says {ids} {arguments[:200]!r} instead of {wanted}")

    def _frames(self) -> list[tuple[int, tuple[int, int], bytes]]:
        """(kind, class and method, arguments or content) of whole frames, after one read from the socket."""
        read = self._socket.recv(_RECEIVE_BYTES)
        if not read:
            raise Wrong("the broker has closed the connection")
        data = self._received + read
        frames = []
        at = 0
        while len(data) >= at + _FRAME.size:
            kind, _, length = _FRAME.unpack_from(data, at)
            begin = at + _FRAME.size
            if len(data) < begin + length + 1:
                break
            if kind == _METHOD:
                frames.append((kind, _IDS.unpack_from(data, begin), data[begin + _IDS.size : begin + length]))
            else:
                frames.append((kind, (0, 0), data[begin : begin + length]))
            at = begin + length + 1
        self._received = data[at:]
        return frames
