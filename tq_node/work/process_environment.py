"""What a handler finds in its worker process: environment, umask, bounds; the next one the same."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from tq_node import limits

ALWAYS_GIVEN = (
    "HOME", "LANG", "LANGUAGE", "LC_*", "LOGNAME", "PATH", "PYTHON*", "SHELL", "TMPDIR", "TZ", "USER",
)  # fmt: skip
"""What a program needs to run at all, whatever ``--worker-env`` names."""
_WATCHED_LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}") for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
)


class Bounds(msgspec.Struct, frozen=True, array_like=True):
    """Resource bounds of a worker process. ``memory_bytes`` None: unbounded."""

    memory_bytes: int | None = None


class ProcessEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """What each worker process is started with."""

    variables: Mapping[str, str] | None = None
    """None: those of the node, without its own."""
    umask: int | None = None
    """What handlers make files with; None: as the node."""
    bounds: Bounds = Bounds()
    lock_fd: int | None = None
    """Inherited, see ``lease.WorkersLock``; its owner closes it."""


def environment_for(environment: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """The variables of worker processes: all but the node's own, or those that ``names`` match."""
    wanted = (*ALWAYS_GIVEN, *names) if names else ("*",)
    return {
        name: value
        for name, value in environment.items()
        if _fits(name, wanted) and not _fits(name, limits.NODE_VARIABLES)
    }  # fmt: skip


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def bind(bounds: Bounds) -> None:
    """Apply the bounds to this process.

    Memory is bounded by RLIMIT_DATA: it counts what the process can write to, its heap, anonymous
    maps and stacks of threads, and not, as RLIMIT_AS would, address space that libraries reserve
    and files that they map. An allocation over it fails at once, and Python raises MemoryError in
    the handler that asked. Some is kept back for the report."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if bounds.memory_bytes is not None:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = bounds.memory_bytes + limits.WORKER_MEMORY_RESERVE_BYTES
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_DATA, (min(bounds.memory_bytes, most), most))


def loosen_memory() -> None:
    """Free the memory kept in reserve, so that a process out of memory can report and exit."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


class Surroundings:
    """As they were before the first task; ``restore``, after each, costs some microseconds."""

    def __init__(self) -> None:
        self._directory = _directory()
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._environment = dict(_raw_environment())
        self._path = sys.path
        self._path_items = list(sys.path)
        self._arguments = list(sys.argv)
        self._recursion = sys.getrecursionlimit()
        self._streams: tuple[Any, ...] = (sys.stdin, sys.stdout, sys.stderr)
        self._signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
        self._limits = _limits()

    def restore(self) -> bool:
        """Put back what a handler has changed. False: not all of it can be, and the process should
        be replaced.

        Restored: working directory, umask, environment, ``sys.path``, ``sys.argv``, recursion
        limit, standard streams, actions of SIGINT, SIGTERM and SIGCHLD. Not to be had back: a
        stream that was closed, a resource limit."""
        os.umask(self._umask)
        if _directory() != self._directory:
            try:
                os.chdir(self._directory)
            except OSError:
                return False
        if _raw_environment() != self._environment:
            os.environ.clear()
            os.environb.update(self._environment)
        if sys.path is not self._path or self._path != self._path_items:
            sys.path = self._path
            self._path[:] = self._path_items
        if sys.argv != self._arguments:
            sys.argv = list(self._arguments)
        if sys.getrecursionlimit() != self._recursion:
            sys.setrecursionlimit(self._recursion)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        for number, action in self._signals.items():
            if signal.getsignal(number) is not action:
                signal.signal(number, action)
        return not any(stream.closed for stream in self._streams) and _limits() == self._limits


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _raw_environment() -> dict[bytes, bytes]:
    # What lies below the mapping: to compare it decoded takes ten times as long.
    return os.environ._data  # type: ignore[attr-defined, no-any-return]


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(kind) for kind in _WATCHED_LIMITS]
