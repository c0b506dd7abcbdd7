"""The lock on a data directory: two processes in one would each believe in their own log (F15)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK_NAME = "lock"


class DirectoryLocked(Exception):
    """Another process has the data directory open. The message is one line for a person."""


class DirectoryLock:
    """Held from construction until ``release`` or the process's end; raises ``DirectoryLocked``."""

    def __init__(self, directory: Path) -> None:
        self._fd: int | None = os.open(
            directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            self._fd = None
            who = f"process {holder}" if holder else "another process"
            raise DirectoryLocked(f"data directory {directory} is in use by {who}") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock, if held. The file stays: removing it would race with another start."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def sync_directory(directory: Path) -> None:
    """Make a created, renamed or removed name in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
