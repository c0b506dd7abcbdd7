"""What a handler has started, found and killed, also where it has a session of its own or its
parent has ended.

A worker process is the subreaper of all that comes from it: whatever loses its parent becomes its
child, so the tree below it is whole for as long as it lives. Where it died by itself, what it left
is known by a variable in its environment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

MARK = "TASKQUEUE_WORKER"
"""Environment variable of a worker process and all it starts: names the process and its node."""
_PR_SET_CHILD_SUBREAPER = 36
_PASSES_MAX = 20
"""Most passes over the process table: what forks during one is found by the next."""
_PASS_S = 0.002


class _Seen(NamedTuple):
    parent: int
    is_alive: bool
    """False for a zombie."""


def become_subreaper() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def has_children() -> bool:
    """Whether this process has child processes; one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children() -> set[int]:
    """Ids of this process's children, zombies included."""
    me = os.getpid()
    return {pid for pid, seen in _table().items() if seen.parent == me}


def kill_below(spare: Collection[int] = (), *, within_s: float) -> bool:
    """Kill and reap all descendants of this process, except the children ``spare`` and their
    descendants.

    :param within_s: how long to wait for their end. Returns whether all have ended."""
    me = os.getpid()
    end_s = time.monotonic() + within_s
    while True:
        table = _table()
        left = _below({me}, table, spare)
        if not left:
            return True
        for pid in left:
            if table[pid].is_alive:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            elif table[pid].parent == me:
                with contextlib.suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)
        if time.monotonic() >= end_s:
            return False
        time.sleep(_PASS_S)


class TreeKiller:
    """Kills worker processes and all they started; looks in a thread: there may be thousands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trees: list[int] = []
        self._ends: list[Callable[[], None]] = []
        self._marks: set[bytes] = set()
        self._is_at_work = False

    def kill(self, pid: int) -> None:
        """Stop it now, so that it starts nothing more; then kill all below it, it and its group."""
        try:
            handle = os.pidfd_open(pid)
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        except OSError:
            # No handle (too many descriptors): its number has to do; nobody has waited for it.
            _kill_group(pid)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            return
        with self._lock:
            self._trees.append(pid)
            self._ends.append(lambda: _end(pid, handle))
        self._start()

    def kill_marked(self, mark: str) -> None:
        """Kill what a worker process left behind that died by itself, found by its ``MARK``."""
        with self._lock:
            self._marks.add(f"{MARK}={mark}".encode())
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._is_at_work:
                return
            self._is_at_work = True
        threading.Thread(target=self._work, name="taskqueue-killer", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                trees, self._trees = self._trees, []
                ends, self._ends = self._ends, []
                marks, self._marks = self._marks, set()
                if not ends and not marks:
                    self._is_at_work = False
                    return
            try:
                _kill_all(set(trees), marks)
            finally:
                for end in ends:
                    end()


def _kill_all(trees: set[int], marks: Collection[bytes]) -> None:
    killed: set[int] = set()
    for _ in range(_PASSES_MAX):
        table = _table()
        found = {pid for pid in _below(trees, table) if table[pid].is_alive}
        if marks:
            found |= {pid for pid, seen in table.items() if seen.is_alive and _has_mark(pid, marks)}
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if found <= killed:
            return
        killed |= found
        time.sleep(_PASS_S)


def _end(pid: int, handle: int) -> None:
    """Kill by a handle (pidfd), so that a process with a reused id is never hit."""
    try:
        signal.pidfd_send_signal(handle, 0)
        _kill_group(pid)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(handle)


def _kill_group(pid: int) -> None:
    # Before it has its own session there is no such group; afterwards it may be gone already.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _has_mark(pid: int, marks: Iterable[bytes]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return False
    return any(mark in variables for mark in marks)


def _table() -> dict[int, _Seen]:
    table = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split(None, 2)[:2]
        except (OSError, ValueError):
            continue
        table[int(name)] = _Seen(int(parent), state not in b"ZX")
    return table


def _below(roots: set[int], table: dict[int, _Seen], spare: Collection[int] = ()) -> set[int]:
    """Ids of all descendants of the roots, without ``spare`` and their descendants."""
    below: dict[int, list[int]] = {}
    for pid, seen in table.items():
        below.setdefault(seen.parent, []).append(pid)
    found: set[int] = set()
    heap = list(roots)
    while heap:
        for pid in below.get(heap.pop(), ()):
            if pid not in found and pid not in spare:
                found.add(pid)
                heap.append(pid)
    return found
