"""Faults that need the system's help: a disk that is full, slow or fails, and a wall clock that steps.

What a system can't do is said in words by ``lacks_…`` (empty: nothing is lacking), and the scenario is skipped with them.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.harness import until

MIB = 1024 * 1024
STRACE = shutil.which("strace")
SYNCS = "fdatasync,fsync"
FAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)
ATTACH_S = 30.0


# --- a small disk ---
@functools.cache
def lacks_mount() -> str:
    with tempfile.TemporaryDirectory() as directory:
        try:
            mount_disk(Path(directory), 1)
        except (OSError, subprocess.CalledProcessError) as why:
            return f"a tmpfs can't be mounted here ({type(why).__name__})"
        unmount(Path(directory))
    return ""


def mount_disk(directory: Path, mib: int) -> None:
    """:raises CalledProcessError: it may not be done here."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(directory)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def unmount(directory: Path) -> None:
    subprocess.run(["umount", "-l", str(directory)], check=True, capture_output=True, timeout=30)


class Ballast:
    """A file that takes up what is free on a disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ballast"

    def leave(self, free_bytes: int) -> None:
        """Fill the disk up to so many bytes; what the node writes meanwhile makes it fewer."""
        found = os.statvfs(self.path.parent)
        spare = found.f_bavail * found.f_frsize - free_bytes
        if spare > 0:
            with self.path.open("ab") as file, contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), spare)

    def take_away(self) -> None:
        self.path.unlink(missing_ok=True)


# --- a disk that is slow, or fails ---
def lacks_strace() -> str:
    return "" if STRACE else "strace is not installed"


@contextlib.contextmanager
def injected(pid: int, what: str, trace: Path) -> Iterator[Path]:
    """While it lasts, each sync of the process is done to as strace's ``inject`` says, such as ``error=EIO:when=1``.

    strace slows down every system call of what it is attached to; the rest is unharmed. Yields the trace of the syncs.
    """
    assert STRACE is not None
    command = [STRACE, "-f", "-ttt", "-o", str(trace), "-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:{what}"]
    # It says on standard error when it has attached.
    with (trace.parent / f"{trace.name}.said").open("w+") as said:
        tracer = subprocess.Popen([*command, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=said)
        try:
            until(lambda: "attached" in Path(said.name).read_text(), deadline_s=ATTACH_S, what="strace attaches")
            yield trace
        finally:
            tracer.terminate()
            tracer.wait(30)


def syncs_in(trace: Path) -> int:
    return trace.read_text().count("sync(")


# --- a wall clock that steps ---
def lacks_faketime() -> str:
    return "" if FAKETIME else "libfaketime is not installed"


class FakedClock:
    """The wall clock of the processes that get ``environment``; monotonic time stays as it is.

    ``FAKETIME_FORCE_MONOTONIC_FIX`` must be off: with it, the interpreter's own waits hang for seconds on a busy machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.step("+0")

    @property
    def environment(self) -> dict[str, str]:
        assert FAKETIME is not None
        return {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def step(self, offset: str) -> None:
        """:param offset: to the true time, such as ``+3600`` or ``-120``, in seconds."""
        following = self.path.with_suffix(f".{time.monotonic_ns()}")
        following.write_text(f"{offset}\n")
        os.replace(following, self.path)  # at once: it is read all the time, and must never be found empty
