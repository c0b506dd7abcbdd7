"""AMP boxes: bytes in, boxes out, with every bound held while the bytes arrive (F33). No IO.

A box is a run of (2-byte length, key, 2-byte length, value), ended by a zero length where a key
would begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tq_node.wire import bounds
from tq_node.wire.bounds import WireLimits
from tq_node.wire.errors import BoxTooLarge, MalformedBox, SpeaksHttp

Box = dict[bytes, bytes]
"""A plain dict: ``amp.AmpBox`` re-validates every key."""
END = b"\0\0"
_HTTP = (b"GET ", b"POST", b"HEAD")


class BoxParser:
    """Parses the received bytes of one connection. Holds at most one incomplete box within
    ``caps``, and one chunk of the transport. ``caps`` may be changed between two boxes."""

    def __init__(self, caps: WireLimits) -> None:
        self.caps = caps
        self._rest = bytearray()
        self._wanted = 2
        """Length of ``_rest`` below which no box can be complete; a value that comes byte by byte
        is not copied each time."""
        self._box: Box = {}
        self._box_bytes = 0
        self._key: bytes | None = None
        self._stream_bytes = 0

    def feed(self, data: bytes) -> Iterator[tuple[Box, int]]:
        """Yield each complete box with its size. Must be read to the end, unless the
        connection is given up.

        :raises BoxTooLarge: a bound is passed; for a value, before its bytes have come.
        :raises MalformedBox: not AMP."""
        caps = self.caps
        if caps.stream_bytes_max is not None:
            self._stream_bytes += len(data)
            if self._stream_bytes > caps.stream_bytes_max:
                raise BoxTooLarge(f"more than {caps.stream_bytes_max} bytes before authentication")
        rest = self._rest
        if len(rest) + len(data) < self._wanted:
            rest += data
            return
        if rest:
            rest += data
            data = bytes(rest)
            rest.clear()
        position, end = 0, len(data)
        while True:
            wanted = position + 2
            if wanted > end:
                break
            length = data[position] << 8 | data[position + 1]
            if self._key is None:
                if length == 0:
                    position += 2
                    if not self._box:
                        raise MalformedBox("an empty box")
                    box, size = self._box, self._box_bytes + 2
                    self._box, self._box_bytes = {}, 0
                    yield box, size
                    continue
                if length > bounds.KEY_BYTES_MAX:
                    if data[position : position + 4] in _HTTP and not self._box:
                        raise SpeaksHttp("an HTTP request came to the peer port")
                    raise MalformedBox(f"a key of {length} bytes")
                if len(self._box) >= self.caps.box_keys_max:
                    raise BoxTooLarge(f"more than {self.caps.box_keys_max} keys")
            wanted += length
            if self._box_bytes + 4 + length > self.caps.box_bytes_max:
                raise BoxTooLarge(f"more than {self.caps.box_bytes_max} bytes")
            if wanted > end:
                break
            part = data[position + 2 : wanted]
            if self._key is not None:
                self._box[self._key] = part
                self._key = None
            elif part in self._box:
                raise MalformedBox("a key comes twice")
            else:
                self._key = part
            self._box_bytes += 2 + length
            position = wanted
        self._wanted = wanted - position
        rest += data[position:]


def serialize(box: Mapping[bytes, bytes]) -> bytes:
    """The bytes of a box, keys in the given order (AMP sorts); raises ``BoxTooLarge``."""
    parts: list[bytes] = []
    for key, value in box.items():
        if len(value) > 0xFFFF or not 0 < len(key) <= bounds.KEY_BYTES_MAX:
            raise BoxTooLarge(f"{len(value)} bytes under {key!r}")
        parts += (len(key).to_bytes(2, "big"), key, len(value).to_bytes(2, "big"), value)
    parts.append(END)
    data = b"".join(parts)
    if len(data) > bounds.BOX_BYTES_MAX or len(box) > bounds.BOX_KEYS_MAX:
        raise BoxTooLarge(f"{len(data)} bytes and {len(box)} keys")
    return data


def cut(box: Mapping[bytes, bytes], head: Mapping[bytes, bytes], more: bytes) -> list[bytes]:
    """A long answer in boxes: ``head`` in all, ``more`` not in the last; raises ``BoxTooLarge``."""
    size = sum(map(len, box.values()))
    if size > bounds.ANSWER_BYTES_MAX:
        raise BoxTooLarge(f"an answer of {size} bytes")
    parts: list[dict[bytes, bytes]] = [dict(head)]
    filled = 0
    for key, value in box.items():
        if filled + len(value) > bounds.ANSWER_PART_BYTES:
            parts[-1][more] = b""
            parts.append(dict(head))
            filled = 0
        parts[-1][key] = value
        filled += len(value)
    return [serialize(part) for part in parts]
