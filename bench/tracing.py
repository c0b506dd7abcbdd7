"""How often a program asks the disk to sync: counted by strace where it is installed and allowed.

With a seccomp filter strace stops the program at those calls only, so group commit works as it does without.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

_CALLS = ("fdatasync(", "fsync(")


@functools.cache
def can_trace() -> bool:
    """Whether strace is installed and may trace here."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-e", "trace=fsync", "-o", "/dev/null", "true"],
        capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    return tried.returncode == 0


class SyncCounter:
    """Put ``prefix`` before a command, then ask ``count`` at any time."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "syncs.strace"

    @property
    def prefix(self) -> list[str]:
        return ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=fdatasync,fsync", "-e", "signal=none",
                "-o", str(self._file)]  # fmt: skip

    def count(self) -> int:
        """Number of calls so far, of all processes and threads."""
        try:
            text = self._file.read_text("ascii", "replace")
        except FileNotFoundError:
            return 0
        # A call that another thread interrupts has a second line, "<... fdatasync resumed>".
        return sum(any(call in line for call in _CALLS) for line in text.splitlines())
