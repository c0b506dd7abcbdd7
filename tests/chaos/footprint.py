"""Memory and file descriptors of the nodes, looked at all the time (``/proc``)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

LOOK_S = 0.25
MIB = 1024 * 1024
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Size(NamedTuple):
    rss_mib: float
    descriptors: int


def size_of(pid: int) -> Size | None:
    """None: there is no such process any more."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return Size(pages * PAGE_BYTES / MIB, len(os.listdir(f"/proc/{pid}/fd")))
    return None


class Footprint(threading.Thread):
    """:param pids: what runs now, by the nodes' names."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        super().__init__(name="footprint", daemon=True)
        self.peaks: dict[str, Size] = {}
        self._pids = pids
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            for name, pid in self._pids().items():
                found = size_of(pid)
                if found is not None:
                    before = self.peaks.get(name, found)
                    self.peaks[name] = Size(
                        max(before.rss_mib, found.rss_mib), max(before.descriptors, found.descriptors)
                    )

    def end(self) -> None:
        self._over.set()
        self.join(10)

    @property
    def peak(self) -> Size:
        """Of any node."""
        sizes = list(self.peaks.values()) or [Size(0, 0)]
        return Size(max(size.rss_mib for size in sizes), max(size.descriptors for size in sizes))
