"""The partitions' messages on their way to peers: one box for each peer and turn, whatever partitions they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from tq_node.partition.messages import Addressed, AnyMessage, encode
from tq_node.types import NodeId

BOX_BYTES_AIM = 1024 * 1024
_decode = msgspec.msgpack.Decoder(list[AnyMessage]).decode


class PeerBox:
    """:param send: one body to one peer; False if it could not be sent.

    :param on_lost: what was for this peer did not leave: its streams must begin anew. Called in a later turn.
    """

    def __init__(
        self,
        send: Callable[[NodeId, bytes], bool],
        on_lost: Callable[[NodeId], None],
    ) -> None:
        self._send = send
        self._on_lost = on_lost
        self._gathered: dict[NodeId, list[bytes]] = {}

    def gather(self, messages: Iterable[Addressed]) -> None:
        for node, message in messages:
            box = self._gathered.get(node)
            if box is None:
                box = self._gathered[node] = []
            box.append(encode(message))

    def send(self) -> None:
        """Everything that was gathered, in order."""
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, {}
        for node, box in gathered.items():
            # What follows one that was lost must not arrive either.
            if not all(self._send(node, body) for body in _bodies(box)):
                self._on_lost(node)


def _bodies(box: list[bytes]) -> Iterable[bytes]:
    if sum(map(len, box)) <= BOX_BYTES_AIM:  # nearly always
        return (_joined(box),)
    return _cut(box)


def _cut(box: list[bytes]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for data in box:
        if part and size + len(data) > BOX_BYTES_AIM:
            yield _joined(part)
            part, size = [], 0
        part.append(data)
        size += len(data)
    yield _joined(part)


def _joined(part: list[bytes]) -> bytes:
    """The bytes of a list whose items are encoded already (msgpack's array of 32-bit length)."""
    return b"".join((b"\xdd", len(part).to_bytes(4, "big"), *part))


def messages_in(body: bytes) -> list[AnyMessage]:
    """:raises msgspec.DecodeError: it is no such list."""
    return _decode(body)
