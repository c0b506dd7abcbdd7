"""Keeping the write-ahead log short without making a commit wait for it.

A helper thread copies committed pages into the database file (a PASSIVE checkpoint) while the
writer goes on appending. What was appended meanwhile is little; the writer copies that itself
between two commits, and because nothing is left, its next commit begins the WAL from the front."""

from __future__ import annotations

import mmap
import os
import sqlite3
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from tq_node import limits

_PAGE_BYTES = 4_096
_REST_PAGES_MAX = 256
"""What the writer may be left with: 1 MiB, one sync of which takes about as long as a commit."""
_ROUNDS_MAX = 6
_AGAIN_BYTES = 4 * limits.MIB
_max_frame = struct.Struct("=I").unpack_from


class WalSize:
    """How much of the WAL is in use, from the index that SQLite shares between its connections.

    The WAL's file does not shrink when it begins again, so its length says nothing. ``mxFrame`` is
    at byte 16 of the ``-shm`` file (sqlite.org/walformat.html). The file is opened once and closed
    last: closing any descriptor of it would drop the process's POSIX locks on it, SQLite's own
    among them. Mapped, because a read would give up the GIL."""

    def __init__(self, database: Path) -> None:
        self._fd = os.open(f"{database}-shm", os.O_RDONLY | os.O_CLOEXEC)
        self._map = mmap.mmap(self._fd, mmap.PAGESIZE, access=mmap.ACCESS_READ)

    def bytes_used(self) -> int:
        (frames,) = _max_frame(self._map, 16)
        return int(frames) * (_PAGE_BYTES + 24)

    def close(self) -> None:
        """Only after every connection is closed."""
        self._map.close()
        os.close(self._fd)


class WalKeeper:
    """Keeps the WAL short. Decides in the writer thread; the helper thread runs ``copy_most``."""

    def __init__(self, size: WalSize, ask_helper: Callable[[], None], stop_backup: Callable[[], None]) -> None:
        self._size = size
        self._ask_helper = ask_helper
        self._stop_backup = stop_backup
        self._asked = False
        self._finish = threading.Event()
        self._last = 0
        self._next_at = limits.WAL_CHECKPOINT_BYTES

    def after_commit(self, connection: sqlite3.Connection) -> None:
        used = self._size.bytes_used()
        if used < self._last:  # SQLite has begun the WAL from the front
            self._next_at = limits.WAL_CHECKPOINT_BYTES
        self._last = used
        if used >= limits.WAL_BYTES_MAX:
            # Somebody has been reading the same snapshot for very long, or the disk can't follow:
            # now the writer waits.
            self._stop_backup()
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        elif self._finish.is_set():
            self._finish.clear()
            self._asked = False
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._next_at = used + _AGAIN_BYTES
        elif used >= self._next_at and not self._asked:
            self._asked = True
            self._ask_helper()

    def copy_most(self, connection: sqlite3.Connection) -> None:
        """In the helper thread: copy until the rest is small, then leave that to the writer."""
        for _ in range(_ROUNDS_MAX):
            _busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if frames - copied <= _REST_PAGES_MAX:
                break
        self._finish.set()
