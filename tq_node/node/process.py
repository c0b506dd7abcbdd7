"""What a node asks of its process and system: files, the collector, ports that listen at once."""

from __future__ import annotations

import ctypes
import gc
import ipaddress
import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cli.config import NodeSettings
from tq_node.direct_sends import DirectReactor

EXIT_REFUSED = 1
EXIT_SOFTWARE = 70
EXIT_STORE_BROKEN = 74
EXIT_DISK_FULL = 75
MMAP_BYTES_MIN = 256 * 1024
_M_MMAP_THRESHOLD = -3
GC_THRESHOLD = 100_000
"""New objects that may form cycles before the youngest are looked at: saves 10 % CPU in a drain."""
SWITCH_INTERVAL_S = 0.00002
"""Shorter than a turn of the reactor: a busy one lets go of the interpreter at each system call
and takes it again at once, so a writer thread with a longer interval (Python's default: 5 ms)
never gets to demand it, and a commit took seconds."""


class TooFewFiles(Exception):
    """One line that says how many are needed."""


def give_memory_back() -> None:
    """Have the C library give freed large blocks back to the system. By default it raises the size
    from which it does so to that of the largest freed, and keeps what lies between small blocks."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES_MIN)


def set_up() -> None:
    """Allow as many open files as may be (one a client), shorter thread turns, private files."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    give_memory_back()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)


def check_files(processes: int) -> None:
    """Raises ``TooFewFiles`` if so many worker processes leave no files to serve anybody."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.FILES_MIN + limits.FILES_PER_PROCESS * processes
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        with_workers = f" for {processes} worker processes (--concurrency)" if processes else ""
        raise TooFewFiles(
            f"this process may open {allowed} files, and a node needs {needed}{with_workers}: raise the hard limit (ulimit -Hn)"
        )


def check_free(host: str | None, port: int | None) -> None:
    """Look whether a TCP address can be listened on, before anything is on disk; names: not tried.

    :raises CannotListenError: it is in use or not ours."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host or "").version == 6 else socket.AF_INET
    except ValueError:
        return
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as why:
            raise CannotListenError(host, port, why) from None


def calm_the_collector() -> None:
    """Keep what is here for good. What comes later forms no cycles (``gc=False``): look seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 1_000)


def end_at_once(code: int) -> NoReturn:
    """Nothing more is written or said (R18, R20)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody may be left who reads it
            stream.flush()
    os._exit(code)


def tcp_reactor(reactor: Any, settings: NodeSettings) -> Any:
    """What endpoints are given for the reactor: it decides how connections send."""
    return reactor if settings.buffered_sends else DirectReactor(reactor)


def listen_now(listening: Deferred[IListeningPort]) -> IListeningPort:
    """The port of an endpoint that answers at once, as TCP and UNIX ones do.

    :raises CannotListenError: the address is in use or not ours."""
    result: list[IListeningPort | Failure] = []
    listening.addBoth(result.append)
    if isinstance(result[0], Failure):
        result[0].raiseException()
    return result[0]


def with_backlog(endpoint: str) -> str:
    """The endpoint's description, with room for bursts of connections."""
    is_tcp = endpoint.startswith(("tcp:", "tcp6:"))
    return f"{endpoint}:backlog={limits.HTTP_BACKLOG}" if is_tcp and "backlog=" not in endpoint else endpoint
