"""How a worker process begins and ends, whatever it runs: descriptors, signals, session, handlers
under its bounds."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn

from tq_node import limits
from tq_node.work import protocol
from tq_node.work.descendants import become_subreaper, has_children, kill_below
from tq_node.work.handler_modules import load_handlers
from tq_node.work.handlers import Handler, HandlerError
from tq_node.work.middleware import Middleware
from tq_node.work.process_environment import bind, loosen_memory

_PR_SET_PDEATHSIG = 1
_OUTLIVED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_own_fds: tuple[int, ...] = ()


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the node dies; exit at once if it has died already."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Had it died before the call, no signal would ever come.
    if os.getppid() != parent_pid:
        os._exit(1)


def set_up_process(own_fds: tuple[int, ...]) -> None:
    """Own session, so that a kill reaches what a handler starts; our descriptors stay ours."""
    global _own_fds  # noqa: PLW0603 (one process, one set of descriptors)
    _own_fds = own_fds
    os.setsid()
    for fd in _open_fds():
        if fd > 2 and fd not in own_fds:
            with contextlib.suppress(OSError):
                os.close(fd)
    for fd in own_fds:
        os.set_inheritable(fd, False)
    os.register_at_fork(after_in_child=_forget_node)
    become_subreaper()
    # One pipe for both keeps their order.
    os.dup2(1, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # The node decides when a worker process ends, also where a supervisor sends SIGTERM to the
    # whole control group. A function rather than SIG_IGN, which programs started by a handler would
    # inherit.
    for number in _OUTLIVED:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    # When memory runs out, a handler has to go rather than the node.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def _open_fds() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return range(4096)


def _forget_node() -> None:
    """In a handler's fork: close the node's descriptors, so that it neither reports nor locks."""
    for fd in _own_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    with contextlib.suppress(ValueError):  # it was not the main thread that forked
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in _OUTLIVED[1:]:
            signal.signal(number, signal.SIG_DFL)


class Loaded(NamedTuple):
    """What a worker process works with."""

    handlers: Mapping[str, Handler]
    middleware: Middleware


def load(start: protocol.Start) -> Loaded | protocol.Broken:
    """Load what the node asks for, under the bounds that it sets; ``Broken``: why that failed."""
    sys.path[:] = start.path
    if start.umask is not None:
        os.umask(start.umask)
    os.environ.pop("PYTHONPATH", None)
    if start.pythonpath is not None:
        os.environ["PYTHONPATH"] = start.pythonpath
    try:
        bind(start.bounds)
        handlers = load_handlers(start.modules)
        middleware = Middleware(start.middleware)
        _keep_logging()
        return Loaded(handlers, middleware)
    except HandlerError as why:
        loosen_memory()
        memory_bytes = start.bounds.memory_bytes
        under = "" if memory_bytes is None else f" (under --worker-memory, {memory_bytes} bytes)"
        return protocol.Broken(f"{why}{under}")
    except (MemoryError, OSError, ValueError) as why:
        return too_little(why)
    except Exception as why:
        notes = "".join(f" {note}" for note in getattr(why, "__notes__", ()))
        return protocol.Broken(f"{type(why).__name__}: {why}{notes}")


def too_little(why: Exception) -> protocol.Broken:
    """What to say where not even the process's own needs find memory."""
    loosen_memory()
    return protocol.Broken(f"--worker-memory can't be kept, or is too little: {type(why).__name__} {why}")


class _ToTask(logging.Handler):
    """Writes records where the handler's own prints go: to the log of its task."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


def _keep_logging() -> None:
    """Keep what is logged from INFO on, unless the modules have configured ``logging``."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_ToTask())
        if root.level == logging.WARNING:
            root.setLevel(logging.INFO)


def leave(code: int) -> NoReturn:
    """End the process, with all that its handlers' modules have started."""
    if has_children():
        kill_below(within_s=limits.CHILD_LEFTOVERS_S)
    # The interpreter's exit waits for threads that handlers left; nobody waits for them here.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
