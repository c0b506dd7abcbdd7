"""File permissions of the data directory: no other user reads its files or writes in it, and no
links are followed.

A store holds every payload, and the cluster's secret where operators gave no file for it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

PRIVATE_MODE = 0o600
_OVERFLOW_UID = 65534
"""The uid that the kernel shows for an owner without a number here, as in a container."""
_OURS = ("taskqueue.sqlite3", "snapshot-", "twistd.pid", "lock", "workers.lock")


class NotOurs(PermissionError):
    """The directory belongs to another user. The message is one line."""


def secure_directory(directory: Path) -> list[str]:
    """Make the files of a data directory private before it is opened; none yet: does nothing.

    :returns: a warning for each thing about it that its owner should mend.
    :raises NotOurs: it is another user's, who may change whatever is in it.
    :raises OSError: it can't be looked at."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        return []
    warnings = []
    me = os.geteuid()
    if found.st_uid not in (me, 0):
        line = f"{directory} belongs to user {found.st_uid}, not to user {me}, as whom the node runs"
        if me != 0 and found.st_uid != _OVERFLOW_UID:
            raise NotOurs(f"{line}: that user could replace the store")
        warnings.append(line)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        warnings.append(
            f"{directory} can be written by others (mode {stat.S_IMODE(found.st_mode):o}), who could replace the store: "
            f"chmod 700 {directory}"
        )
    for entry in os.scandir(directory):
        if entry.name.startswith(_OURS) and entry.is_file(follow_symlinks=False):
            with suppress(OSError):  # of another owner: then it is not ours to hide
                _hide(entry.path)
    return warnings


def _hide(path: str) -> None:
    """Remove others' mode bits. By an O_PATH descriptor: closing others drops SQLite's locks."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & 0o077:
            os.chmod(f"/proc/self/fd/{fd}", mode & 0o700)
    finally:
        os.close(fd)


def refuse_link(path: Path) -> None:
    """Raises ``OSError`` if the path is a link or no plain file; a missing file is fine."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
        raise OSError(f"{path} is {kind}, and the node opens none")


def create(path: Path) -> int:
    """A new file that only its owner reads, as a descriptor; ``FileExistsError`` for a link too."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, PRIVATE_MODE)
    os.fchmod(fd, PRIVATE_MODE)  # the umask may have taken from the owner too
    return fd


def replace(path: Path, text: str) -> None:
    """Write a private file; replaces whatever had that name, a link too."""
    path.unlink(missing_ok=True)
    fd = create(path)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
