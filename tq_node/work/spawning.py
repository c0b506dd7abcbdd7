"""Starts worker processes: their program, environment and descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
from pathlib import Path

from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol

import tq_node
from tq_node.work import middleware, protocol
from tq_node.work.descendants import MARK, TreeKiller
from tq_node.work.process_environment import ProcessEnvironment, environment_for


class Spawner:
    """Starts the worker processes of one pool, and kills trees of them.

    :param program: the module that they run.
    :param modules: handler modules that each process loads."""

    def __init__(
        self, program: str, modules: tuple[str, ...], environment: ProcessEnvironment, reactor: IReactorProcess
    ) -> None:
        self.killer = TreeKiller()
        self.start = protocol.Start(
            modules, tuple(sys.path), os.environ.get("PYTHONPATH"), environment.umask, environment.bounds,
            middleware.found(),
        )  # fmt: skip
        """The first frame of each process."""
        self.started_total = 0
        variables = environment.variables
        self._variables = dict(environment_for(os.environ, ()) if variables is None else variables)
        self._lock_fd = environment.lock_fd
        self._arguments = [sys.executable, "-P", "-m", program, str(os.getpid())]
        self._reactor = reactor

    def mark(self) -> str:
        """Identifies what the next process starts, see ``descendants.MARK``."""
        return f"{os.getpid()}:{self._arguments[3]}:{self.started_total}"

    def spawn(self, process: ProcessProtocol, mark: str, task_fd: int | None = None) -> None:
        """Start a process; raises ``OSError`` if it can't be.

        :param task_fd: what it gets as ``protocol.TASK_FD``, if it takes tasks there."""
        root = str(Path(tq_node.__file__).resolve().parent.parent)
        environment = {**self._variables, MARK: mark}
        # For the process to find this package; it restores the variable before any handler.
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [self.start.pythonpath])])
        try:
            with open(os.devnull, "rb") as null:
                child_fds: dict[int, str | int] = {
                    0: null.fileno(), 1: "r", 2: "r",
                    protocol.RUN_FD: "w", protocol.REPORT_FD: "r", protocol.CONTROL_FD: "w",
                    protocol.LOCK_FD: null.fileno() if self._lock_fd is None else self._lock_fd,
                }  # fmt: skip
                if task_fd is not None:
                    child_fds[protocol.TASK_FD] = task_fd
                self._reactor.spawnProcess(
                    process, sys.executable, self._arguments, environment, None, childFDs=child_fds
                )
        except OSError as why:
            if why.errno == errno.EBADF:
                hide_high_descriptors()
            raise
        self.started_total += 1


def hide_high_descriptors() -> None:
    """Keep what is above RLIMIT_NOFILE (inherited, or opened before that was lowered) from worker
    processes. ``posix_spawn`` would be asked to close each descriptor that is inheritable, and
    refuses those."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        fds = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return
    for fd in fds:
        if fd >= most:
            with contextlib.suppress(OSError):
                os.set_inheritable(fd, False)
