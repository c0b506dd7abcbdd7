"""Parses HTTP/1.1 answers from the bytes of one connection. No I/O."""

from __future__ import annotations

from typing import NamedTuple

from tq_node.client import limits

_END_OF_HEAD = b"\r\n\r\n"


class NotHttp(Exception):
    """The bytes are no HTTP answer. The message is for a person."""


class Answer(NamedTuple):
    status: int
    head: bytes
    """Status line and headers, names in lower case."""
    body: bytes
    keeps: bool
    """The connection may be used again."""

    def header(self, name: bytes) -> bytes | None:
        """:param name: in lower case."""
        return _header(self.head, name)


class AnswerReader:
    """Reads one answer after the other from the bytes fed to it."""

    __slots__ = ("_chunk", "_chunked", "_head", "_parts", "_remaining", "_size", "_unread")

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._head: bytes | None = None
        self._unread = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._remaining: int | None = None
        """Bytes of the body that are still to come. None: until the connection ends."""
        self._chunked = False
        self._chunk = 0
        """Bytes of this chunk, with its line end, that are still to come."""

    @property
    def has_begun(self) -> bool:
        return self._head is not None or bool(self._unread)

    def feed(self, data: bytes) -> Answer | None:
        """The answer, if these bytes complete it; raises ``NotHttp``: malformed, or too large."""
        if self._head is None:
            data = self._unread + data if self._unread else data
            end = data.find(_END_OF_HEAD)
            if end < 0:
                if len(data) > limits.HEAD_BYTES_MAX:
                    raise NotHttp("the head of the answer does not end")
                self._unread = data
                return None
            self._unread = b""
            head = data[:end].lower()
            if not head.startswith(b"http/1.") or not head[9:12].isdigit():
                raise NotHttp(f"this is not HTTP: {data[:40]!r}")
            if head[9:10] == b"1":  # 100 Continue and its kin: the answer is behind it
                return self.feed(data[end + 4 :]) if len(data) > end + 4 else None
            data = self._begin(head, data[end + 4 :])
        return self._chunks(data) if self._chunked else self._plain(data)

    def _begin(self, head: bytes, data: bytes) -> bytes:
        self._head = head
        length = _header(head, b"content-length")
        if head[9:12] in (b"204", b"304"):
            self._remaining = 0
        elif (_header(head, b"transfer-encoding") or b"").endswith(b"chunked"):
            self._chunked = True
        elif length is not None:
            if not length.isdigit() or int(length) > limits.ANSWER_BYTES_MAX:
                raise NotHttp(f"Content-Length {length[:40]!r}")
            self._remaining = int(length)
        return data

    def _plain(self, data: bytes) -> Answer | None:
        self._add(data)
        if self._remaining is None:
            return None
        if self._size < self._remaining:
            return None
        if self._size > self._remaining:
            raise NotHttp("more came than was asked for")
        return self._whole(keeps=True)

    def _chunks(self, data: bytes) -> Answer | None:
        data = self._unread + data if self._unread else data
        self._unread = b""
        while data:
            if self._chunk:
                piece, data = data[: self._chunk], data[self._chunk :]
                body = max(0, self._chunk - 2)  # its line end is no part of the body
                self._add(piece[:body])
                self._chunk -= len(piece)
                continue
            line, found, rest = data.partition(b"\r\n")
            if not found:
                if len(data) > limits.HEAD_BYTES_MAX:
                    raise NotHttp("a chunk without a size")
                self._unread = data
                return None
            size = _chunk_size(line)
            if size:
                self._chunk, data = size + 2, rest
                continue
            # The end: trailers, if any, and an empty line.
            if not rest.startswith(b"\r\n") and _END_OF_HEAD not in rest:
                self._unread = data
                return None
            return self._whole(keeps=True)
        return None

    def end(self) -> Answer | None:
        """The connection has ended: the answer, if it was to last till then; else None: cut off."""
        if self._head is None or self._chunked or self._remaining is not None:
            return None
        return self._whole(keeps=False)

    def _add(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
            self._size += len(data)
            if self._size > limits.ANSWER_BYTES_MAX:
                raise NotHttp("the answer is too large")

    def _whole(self, *, keeps: bool) -> Answer:
        head, parts = self._head, self._parts
        assert head is not None
        self._reset()
        connection = _header(head, b"connection")
        keeps = keeps and connection != b"close" and (head.startswith(b"http/1.1") or connection == b"keep-alive")
        return Answer(int(head[9:12]), head, parts[0] if len(parts) == 1 else b"".join(parts), keeps)


def _header(head: bytes, name: bytes) -> bytes | None:
    found = head.find(b"\r\n" + name + b":")
    if found < 0:
        return None
    end = head.find(b"\r\n", found + 2)
    return head[found + 3 + len(name) : end if end > 0 else None].strip()


def _chunk_size(line: bytes) -> int:
    try:
        size = int(line.partition(b";")[0], 16)
    except ValueError:
        raise NotHttp(f"a chunk of size {line[:40]!r}") from None
    if not 0 <= size <= limits.ANSWER_BYTES_MAX:
        raise NotHttp(f"a chunk of size {line[:40]!r}")
    return size
