"""The files of one audit log: appended to, rotated by size, read in pages. Blocks; no thread of it.

``FILE`` is written to. When it is full it is renamed to ``FILE.000001``, the next one to
``FILE.000002`` and so on; beyond ``kept`` of them the oldest is deleted. The chain goes on from
file to file, and from start to start."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from tq_node import audit
from tq_node.audit import GENESIS, AuditRecord, Page
from tq_node.store.lock import sync_directory
from tq_node.store.private import PRIVATE_MODE

_AT = slice(len('{"at":"'), len('{"at":"2026-01-01T00:00:00.000000Z'))
"""Where the instant stands in a line."""
_TAIL_BYTES = audit.LINE_BYTES_MAX + 1


class AuditLocked(Exception):
    """Another process writes the log. The message is one line."""


class AuditFiles:
    """One log, open for appending, and locked against other processes.

    :ivar said: records that the log has to write of itself, of what the last call has done.
    :raises AuditLocked: another process has it open.
    :raises OSError: it can't be opened, or is no plain file."""

    def __init__(self, path: Path, node: str, *, bytes_max: int, kept: int) -> None:
        self._path = path
        self._node = node
        self._bytes_max = bytes_max
        self._kept = kept
        self.said: list[str] = []
        self._size = 0
        fd = _open(path)
        self._fd: int | None = fd
        try:
            self._head = self._recovered(fd)
        except BaseException:
            os.close(fd)
            raise

    # --- writing ---
    def append(self, records: Sequence[AuditRecord]) -> int:
        """Write a line for each of the first records, as many as have room in one file; how many.

        :raises OSError: none was written; the log is as it was, and the same may be tried again."""
        fd = self._begin()
        head, lines, size = self._head, [], self._size
        for record in records:
            line = audit.encode(record, self._node, head)
            size += len(line) + 1
            if size > self._bytes_max and size > len(line) + 1:
                break
            head = audit.hash_of(line)
            lines.append(line)
        if not lines:
            self._put_aside(fd)
            return self.append(records)  # into a new file, which has room for one at least
        data = b"\n".join([*lines, b""])
        if os.fstat(fd).st_size != self._size:
            os.ftruncate(fd, self._size)  # what is left of a line that was not written whole
        written = 0
        try:
            while written < len(data):
                written += os.write(fd, data[written:] if written else data)
        except OSError:
            os.ftruncate(fd, self._size)
            raise
        self._size += written
        self._head = head
        return len(lines)

    def sync(self) -> None:
        """Make all that was written durable.

        :raises OSError: the disk has failed."""
        if self._fd is not None:
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _begin(self) -> int:
        """The file to write to; a new one, where the last one was put aside."""
        if self._fd is None:
            self._fd = _open(self._path)
            self._size = os.fstat(self._fd).st_size
        return self._fd

    def _put_aside(self, fd: int) -> None:
        os.fdatasync(fd)
        numbers = rotated_numbers(self._path)
        self._path.rename(rotated(self._path, (numbers[-1] if numbers else 0) + 1))
        self.close()
        sync_directory(self._path.parent)
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        for number in rotated_numbers(self._path)[: -self._kept]:
            path = rotated(self._path, number)
            last = _last_hash(path)
            path.unlink()
            self.said.append(audit.forgotten(path.name, last))

    def _recovered(self, fd: int) -> str:
        """Go on from what is there; a line that was not written whole is cut off by the next one.
        Returns the hash of the last line."""
        size = os.fstat(fd).st_size
        tail = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        whole = tail.rfind(b"\n") + 1
        self._size = size - (len(tail) - whole)
        if self._size != size:
            if self._size and not whole:
                raise OSError(f"{self._path} ends with a line that is too long for an audit log")
            self.said.append(f"the last line had not been written whole: {size - self._size} bytes are cut off")
        if whole:
            return audit.hash_of(tail[:whole].rstrip(b"\n").rpartition(b"\n")[2])
        numbers = rotated_numbers(self._path)
        return _last_hash(rotated(self._path, numbers[-1])) if numbers else GENESIS

    # --- reading ---
    def page(self, since: str, place: tuple[int, int] | None, lines_max: int, bytes_max: int) -> Page:
        """The lines from an instant (as in ``audit.instant``) on, or from a place given before.

        :raises OSError: a file can't be read."""
        numbers = rotated_numbers(self._path)
        current = (numbers[-1] if numbers else 0) + 1
        numbers.append(current)
        number, offset = place or self._place_of(since, numbers)
        lines: list[bytes] = []
        unreadable, bytes_left = 0, bytes_max
        for later in [one for one in numbers if one >= number]:
            start = offset if later == number else 0
            with open(self._path if later == current else rotated(self._path, later), "rb") as file:
                file.seek(start)
                data = file.read(bytes_left)
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.splitlines():
                if len(lines) + unreadable >= lines_max:
                    return Page(lines, (later, start), unreadable)
                start += len(line) + 1
                if audit.decode(line) is None:
                    unreadable += 1
                elif line[_AT].decode() >= since:
                    lines.append(line)
            if not whole and len(data) == bytes_max:
                return Page(lines, (later, start + len(data)), unreadable + 1)  # no newline in all of it
            bytes_left -= len(whole)
            if len(data) > len(whole) or bytes_left <= 0:
                is_end = later == current and start >= self._size
                return Page(lines, None if is_end else (later, start), unreadable)
        return Page(lines, None, unreadable)

    def _place_of(self, since: str, numbers: Sequence[int]) -> tuple[int, int]:
        """Where the first line stands that is not older; a little before it at most."""
        begins = numbers[0]
        for number in numbers[1:]:
            path = self._path if number == numbers[-1] else rotated(self._path, number)
            with open(path, "rb") as file:
                first = file.read(_AT.stop)[_AT]
            if not first or first.decode("latin-1") >= since:
                break
            begins = number
        path = self._path if begins == numbers[-1] else rotated(self._path, begins)
        with open(path, "rb") as file:
            low, high = 0, os.fstat(file.fileno()).st_size
            while high - low > audit.LINE_BYTES_MAX:
                middle = (low + high) // 2
                file.seek(middle)
                skipped = file.readline(audit.LINE_BYTES_MAX)
                line = file.readline(audit.LINE_BYTES_MAX)
                if line and line[_AT].decode("latin-1") < since:
                    low = middle + len(skipped)
                else:
                    high = middle
        return begins, low


def rotated(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:06}")


def rotated_numbers(path: Path) -> list[int]:
    """Numbers of the files that were put aside, the oldest first."""
    is_one = re.compile(rf"{re.escape(path.name)}\.([0-9]{{6,}})").fullmatch
    return sorted(int(match[1]) for name in os.listdir(path.parent) if (match := is_one(name)) is not None)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(path, flags, PRIVATE_MODE)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no plain file")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditLocked(f"{path} is written by another process") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _last_hash(path: Path) -> str:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read().rstrip(b"\n")
    return audit.hash_of(tail.rpartition(b"\n")[2])
