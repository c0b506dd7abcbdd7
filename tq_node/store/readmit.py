"""Setting a failed store aside, so that its node comes back as a new one (R18, ``--readmit``).

After the first failed write a store may look whole and lack what was acknowledged: the cache shows
what the disk never got. The node's next life is that of a new node; the old files are kept for
whoever wants to look at them.

``--readmit`` may be left on a command line by mistake. So a store that was begun by a readmission
is not set aside by the next start, unless it has failed in its turn: else three nodes that are
restarted would throw away three copies."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from tq_node.store.lock import DirectoryLock, sync_directory
from tq_node.store.private import replace
from tq_node.store.sqlite.open_database import DATABASE_NAME

FAILED_MARK = f"{DATABASE_NAME}.failed"
"""There while the store has failed and has not been set aside; holds why."""
READMITTED_MARK = f"{DATABASE_NAME}.readmitted"
"""There when the present store, or the next, was begun by a readmission."""
_WHY_CHARS_MAX = 500
_SIDECARS = ("-wal", "-shm", "")
"""The database goes last: without its write-ahead log it would be an older one (F14)."""


def mark_failed(directory: Path, why: str) -> None:
    """Say on disk that the store has failed, as far as the failed disk lets it. Never raises."""
    with contextlib.suppress(OSError):  # the exit code and the log say it too
        replace(directory / FAILED_MARK, " ".join(why.split()) + "\n")
        sync_directory(directory)


def why_failed(directory: Path) -> str | None:
    """What ``mark_failed`` said of the store that lies there; None where it has not failed. To be
    asked before it is opened. A mark without a store is what an interrupted ``set_store_aside``
    leaves at its end; it goes."""
    mark = directory / FAILED_MARK
    if not (directory / DATABASE_NAME).exists():
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
        return None
    try:
        return mark.read_text("utf-8", "replace").strip()[:_WHY_CHARS_MAX] or "not said"
    except FileNotFoundError:
        return None


def set_store_aside(directory: Path, now_s: float | None = None) -> Path | None:
    """Rename the store's files to ``….failed-<time>``; the next store there is a new node's.

    Interrupted at any point and called again, it does the rest. Holds the directory's lock
    meanwhile.

    :param now_s: wall clock, for the name only.
    :returns: the database under its new name, for ``sqlite3``; None where there was none, or
        one that a readmission began and that has not failed since.
    :raises DirectoryLocked: a node runs on it.
    :raises OSError: a file could not be renamed."""
    database = directory / DATABASE_NAME
    if not database.exists():
        return None
    lock = DirectoryLock(directory)
    try:
        if (directory / READMITTED_MARK).exists() and not (directory / FAILED_MARK).exists():
            return None
        if not (directory / FAILED_MARK).exists():
            mark_failed(directory, "set aside by --readmit")  # a start in between must not take up half a store
        aside = _free_name(directory, time.time() if now_s is None else now_s)
        for suffix in _SIDECARS:
            part = directory / (DATABASE_NAME + suffix)
            if part.exists():
                part.rename(f"{aside}{suffix}")
        sync_directory(directory)
        replace(directory / READMITTED_MARK, "")
        sync_directory(directory)
        (directory / FAILED_MARK).unlink(missing_ok=True)
        sync_directory(directory)
        return aside
    finally:
        lock.release()


def _free_name(directory: Path, now_s: float) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    name = directory / f"{DATABASE_NAME}.failed-{stamp}"
    count = 1
    while os.path.lexists(name):
        count += 1
        name = directory / f"{DATABASE_NAME}.failed-{stamp}-{count}"
    return name
