"""What peers say to one another, written down between them: a proxy for each directed link that keeps the bytes.

It reads AMP by itself, so that a transcript says what was on the line and not what some release made of it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

LOOPBACK = "127.0.0.1"
_MORE = "_more"


class Said(NamedTuple):
    """One box. ``what``: command, answer or error; of an answer in parts, all of them together."""

    connection: int
    dialler: str
    listener: str
    who: str
    """``dialler`` or ``listener``."""
    what: str
    command: str
    box: dict[str, bytes]
    calls: list[str] = []
    """Of an answer to ``Forward``: the kinds that were asked, in order."""


class _Carried(NamedTuple):
    dialler: str
    listener: str
    ways: tuple[bytearray, bytearray]
    """From the dialler, and back."""


class _Tap:
    def __init__(self, taps: Taps, dialler: str, listener: str, target: int) -> None:
        self._taps = taps
        self._names = dialler, listener
        self._target = target
        self.port = 0
        self.listen()

    def listen(self) -> None:
        """At the first call on a port of its own, later at that port again."""
        self._listener = socket.create_server((LOOPBACK, self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(30)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((LOOPBACK, self._target), 5)
            except OSError:  # the dialler sees a reset; a port that refuses is what ``Taps.refuse`` is for
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                near.close()
                continue
            for end in (near, far):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            carried = _Carried(*self._names, (bytearray(), bytearray()))
            self._taps.carried.append(carried)
            thread = threading.Thread(target=_carry_both, args=(near, far, carried.ways), daemon=True)
            self._taps.threads.append(thread)
            thread.start()


def _carry_both(near: socket.socket, far: socket.socket, kept: tuple[bytearray, bytearray]) -> None:
    with near, far:
        back = threading.Thread(target=_carry, args=(far, near, kept[1]), daemon=True)
        back.start()
        _carry(near, far, kept[0])
        back.join()


def _carry(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            kept += data
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Taps:
    """:param ports: of each node's name, the port on loopback where it listens for peers."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.carried: list[_Carried] = []
        self.threads: list[threading.Thread] = []
        self._taps = {
            (dialler, listener): _Tap(self, dialler, listener, ports[listener])
            for dialler in ports
            for listener in ports
            if dialler != listener
        }

    def port(self, dialler: str, listener: str) -> int:
        """Where ``dialler`` must dial to reach ``listener``."""
        return self._taps[dialler, listener].port

    def close(self) -> None:
        """Once the nodes have ended, and so their connections."""
        for tap in self._taps.values():
            tap.close()
        for thread in self.threads:
            thread.join(30)

    def refuse(self, listener: str) -> None:
        """Its port refuses, as that of a node that is gone (R5a); what was connected is up to the node."""
        for (_, name), tap in self._taps.items():
            if name == listener:
                tap.close()

    def listen(self, listener: str) -> None:
        """Again, after ``refuse``."""
        for (_, name), tap in self._taps.items():
            if name == listener:
                tap.listen()

    def said(self) -> Iterator[Said]:
        """Each connection's boxes, what the dialler said first. To be asked once everything is over."""
        for number, carried in enumerate(list(self.carried)):
            yield from _conversation(number, carried)


def boxes(data: bytes) -> Iterator[dict[str, bytes]]:
    """AMP: (2-byte length, key, 2-byte length, value) again and again, two zero bytes. A last one that is cut off is left out."""
    box: dict[str, bytes] = {}
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        if size == 0:
            yield box
            box, at = {}, at + 2
            continue
        key, at = data[at + 2 : at + 2 + size].decode("latin-1"), at + 2 + size
        size = int.from_bytes(data[at : at + 2], "big")
        if at + 2 + size > len(data):
            return
        box[key], at = data[at + 2 : at + 2 + size], at + 2 + size


def _conversation(number: int, carried: _Carried) -> Iterator[Said]:
    asked: dict[tuple[str, bytes], tuple[str, list[str]]] = {}
    sides = [(who, list(boxes(bytes(way)))) for who, way in zip(("dialler", "listener"), carried.ways, strict=True)]

    def said(who: str, what: str, command: str, box: dict[str, bytes], calls: list[str]) -> Said:
        return Said(number, carried.dialler, carried.listener, who, what, command, box, calls)

    for who, found in sides:
        for box in found:
            if "_command" in box:
                command = box["_command"].decode()
                asked[who, box.get("_ask", b"")] = command, _kinds(box) if command == "Forward" else []
                yield said(who, "command", command, box, [])
    parts: dict[bytes, dict[str, bytes]] = {}
    for who, found in sides:
        asker = "listener" if who == "dialler" else "dialler"
        for box in found:
            if "_error" in box:
                yield said(who, "error", asked[asker, box["_error"]][0], box, [])
            elif "_answer" in box:
                whole = parts.setdefault(box["_answer"], {})
                whole.update({key: value for key, value in box.items() if key != _MORE})
                if _MORE not in box:
                    command, calls = asked[asker, box["_answer"]]
                    yield said(who, "answer", command, parts.pop(box["_answer"]), calls)


def _kinds(box: Mapping[str, bytes]) -> list[str]:
    """Of a ``Forward``. In protocol 1: a version byte, then pairs of a kind and a body."""
    pieces = [box["calls"]]
    while (piece := box.get(f"calls.{len(pieces)}")) is not None:
        pieces.append(piece)
    return [call[0] for call in msgspec.msgpack.decode(b"".join(pieces)[1:])]
