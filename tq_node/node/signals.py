"""What signals do to a node, and how its process ends whatever a thread of it is busy with.

| signal | |
|---|---|
| TERM, INT | the node stops in order, exits with 0; a second one ends it at once, by that signal |
| HUP | what can be read again is; the node never ends by it, also where its terminal has gone |
| USR1, USR2, ALRM | nothing, but for a line in the log; USR1 rotates twistd's log file, if any |"""

from __future__ import annotations

import os
import signal
import termios
import time
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from errno import EIO
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from tq_node.limits import STOP_MARGIN_S, THREADS_GRACE_S

_log = Logger(namespace="taskqueue.node")

REPEAT_S = 0.2
"""A second signal to stop within this time does not count: ``timeout`` and shells send two."""
_LOOK_S = 0.1
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


class Ending:
    """The process's deadline, in a thread, as the reactor may hang. ``stop_s``: for handlers."""

    def __init__(self, stop_s: float) -> None:
        self._stop_s = stop_s
        self._is_bounded = False

    def begun(self, code: int) -> None:
        """The end has begun. One that is not in order after the handlers' time and
        ``STOP_MARGIN_S`` comes then, with ``code``. A second call does nothing. Safe in a signal
        handler."""
        if self._is_bounded:
            return
        self._is_bounded = True
        seconds = self._stop_s + STOP_MARGIN_S
        line = f"taskqueue: the node did not stop in order within {seconds:g} s, and is ended\n"
        _end_within(seconds, code, line.encode())

    def closed(self, code: int, last: Callable[[], None]) -> None:
        """All is closed: threads get ``THREADS_GRACE_S``; then ``last``, and the end."""
        _end_within(THREADS_GRACE_S, code, b"", last)


def _end_within(seconds: float, code: int, line: bytes, last: Callable[[], None] = lambda: None) -> None:
    """End the process after ``seconds``, by a thread that runs when this returns: one that began
    while the interpreter ends would abort the process."""
    is_starting = allocate_lock()
    is_starting.acquire()

    def end() -> None:
        is_starting.release()
        # Counted, not measured: a process that was stopped meanwhile did not have this time.
        for _ in range(round(seconds / _LOOK_S)):
            time.sleep(_LOOK_S)
        with suppress(OSError):
            os.write(2, line)
            last()
        os._exit(code)  # no flush: whoever holds the lock of a stream may be the one that is stuck

    start_new_thread(end, ())  # not of ``threading``, whose locks may be held by what a signal has interrupted
    is_starting.acquire(timeout=seconds)


class Signals:
    """Takes effect by ``outlive``, then ``end_in_order`` once the reactor runs. Main thread only.

    :param reload: called by SIGHUP, in the reactor."""

    def __init__(self, reactor: Any, ending: Ending, exit_code: int, reload: Callable[[], None]) -> None:
        self._reactor = reactor
        self._ending = ending
        self._exit_code = exit_code
        self._reload = reload
        self._asked_s: float | None = None

    def outlive(self) -> None:
        """From here on no signal but TERM, INT, QUIT and KILL ends the process."""
        signal.signal(signal.SIGHUP, self._hang_up)
        for number in _IGNORED:
            if signal.getsignal(number) in (signal.SIG_DFL, None):
                signal.signal(number, self._ignore)

    def end_in_order(self) -> None:
        """SIGTERM and SIGINT stop the node, which exits with 0; twistd would die by the signal."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    # These run between two instructions of the main thread, perhaps the log's: no logging.
    def _stop(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._asked_s is None:
            self._asked_s = now
            self._ending.begun(self._exit_code)
            self._reactor.callFromThread(stop_once, self._reactor)
        elif now - self._asked_s >= REPEAT_S:
            with suppress(OSError):
                os.write(2, f"taskqueue: a second {signal.Signals(number).name}: the node ends at once\n".encode())
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _hang_up(self, number: int, frame: object) -> None:
        leave_terminal()
        self._reactor.callFromThread(self._reload)

    def _ignore(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(
            _log.info, "{signal} does nothing here", signal=signal.Signals(number).name, event="signal_ignored"
        )


def stop_once(reactor: Any) -> None:
    if reactor.running:
        with suppress(ReactorNotRunning):
            reactor.stop()


def leave_terminal() -> None:
    """Discard output to a terminal that has gone, instead of failing at each line of the log."""
    for fd in (0, 1, 2):
        try:
            termios.tcgetattr(fd)
        except termios.error as why:
            if why.args[0] != EIO:
                continue
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, fd)
            os.close(nowhere)
