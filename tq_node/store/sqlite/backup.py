"""An online copy of the database at one moment."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from pathlib import Path

from tq_node.store.lock import sync_directory
from tq_node.store.private import create

_PAGES_PER_STEP = 2_560
_SNAPSHOT = re.compile(r"snapshot-(\d{1,20})\.sqlite3(\.partial)?")


class BackupStopped(Exception):
    """Given up: the store is closing, or too much was written meanwhile. Nothing is left behind."""


def back_up(source: sqlite3.Connection, path: Path, stop: threading.Event) -> None:
    """Copy the database to ``path``, which appears whole and durable or not at all.

    One read transaction around all steps: without it each commit of the writer would start the
    copy over.

    :raises BackupStopped: ``stop`` was set.
    :raises OSError, sqlite3.Error: the copy can't be written."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.close(create(partial))
        target = sqlite3.connect(f"{partial.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
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


def keep_newest(made: Path, kept: int) -> list[str]:
    """Delete a node's older snapshots in the directory, and what was left of a broken-off one.

    :param made: the one just made, which stays whatever its time: the clock may have gone back.
    :returns: the paths of those that stay, that one first, then the newest.
    :raises OSError: one can't be deleted."""
    directory = made.parent
    found = {
        path: match
        for path in directory.iterdir()
        if (match := _SNAPSHOT.fullmatch(path.name)) and not path.is_symlink()
    }
    others = sorted((int(match[1]), path) for path, match in found.items() if match[2] is None and path != made)
    stays = [made, *(path for _, path in reversed(others))][:kept]
    for path in found.keys() - set(stays):
        path.unlink(missing_ok=True)
    return [str(path) for path in stays]
