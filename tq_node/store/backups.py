"""An online copy of the database at one moment."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

from tq_node.store.lock import sync_directory

_PAGES_PER_STEP = 2_560


class BackupStopped(Exception):
    """Given up before the end: the store is closing, or too much was written meanwhile. Nothing is left behind."""


def back_up(source: sqlite3.Connection, path: Path, stop: threading.Event) -> None:
    """Copy the database to ``path``, which appears whole and durable or not at all.

    One read transaction around all steps: without it each commit of the writer would start the copy over.

    :raises BackupStopped: ``stop`` was set. :raises OSError, sqlite3.Error: the copy can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        target = sqlite3.connect(partial, isolation_level=None)
        try:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")
            source.execute("BEGIN")
            try:
                source.execute("SELECT count(*) FROM meta").fetchone()

                def look(status: int, remaining: int, total: int) -> None:
                    if stop.is_set():
                        raise BackupStopped("the backup was given up")

                source.backup(target, pages=_PAGES_PER_STEP, progress=look)
            finally:
                source.execute("COMMIT")
        finally:
            target.close()
        fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.rename(path)
        sync_directory(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
