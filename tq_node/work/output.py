"""Standard output and error of a worker process: counted, and cut into lines."""

from __future__ import annotations

from tq_node import limits

_LINE_BYTES_MAX = 4 * limits.LOG_LINE_CHARS_MAX


class Output:
    """Bytes in, lines out. Of an unfinished line only as much is kept as a log line shows."""

    __slots__ = ("_partial", "byte_count")

    def __init__(self) -> None:
        self.byte_count = 0
        self._partial = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now."""
        self.byte_count += len(data)
        *lines, rest = data.split(b"\n")
        shown = []
        for line in lines:
            shown.append(self._show(line))
            self._partial = b""
        self._partial += rest[: _LINE_BYTES_MAX - len(self._partial)]
        return shown

    def finish(self) -> list[str]:
        """The unfinished line, if any; counting starts again."""
        rest = [self._show(b"")] if self._partial else []
        self.byte_count, self._partial = 0, b""
        return rest

    def _show(self, line: bytes) -> str:
        return (self._partial + line[:_LINE_BYTES_MAX]).decode("utf-8", "replace").removesuffix("\r")
