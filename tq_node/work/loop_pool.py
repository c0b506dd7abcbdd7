"""The worker processes with event loops of a node: how many there are, who gets an attempt."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from tq_node import limits
from tq_node.facade import ReadyNote
from tq_node.work.loop_attempt import LoopAttempt
from tq_node.work.loop_process import LoopProcess
from tq_node.work.process import Phase
from tq_node.work.process_environment import ProcessEnvironment
from tq_node.work.spawning import Spawner, hide_high_descriptors
from tq_node.work.start_failures import StartFailures

_log = Logger()


class LoopPool:
    """Starts one process when the first attempt comes, or at the start of the node, and another
    while each runs ``limits.LOOP_ATTEMPTS`` attempts, up to one for each core. An attempt goes to
    the process with the fewest. Where processes can't be started, starts are spaced out and, after
    ``limits.CHILD_START_FAILURES_MAX`` in a row, the attempts that wait are given back."""

    def __init__(self, modules: tuple[str, ...], environment: ProcessEnvironment, *, size: int, reactor: Any) -> None:
        """:param size: most attempts at once, so most processes, too."""
        self._spawner = Spawner("tq_node.work.loop_child", modules, environment, reactor)
        self._clock: IReactorTime = reactor
        self._most = max(1, min(size, len(os.sched_getaffinity(0))))
        self._all: set[LoopProcess] = set()
        """All whose pipes are open, the dying included."""
        self._waiting: deque[LoopAttempt] = deque()
        self._timers: dict[LoopProcess, IDelayedCall] = {}
        """While a process starts."""
        self._failures = StartFailures(self._clock, self._balance)
        self._running = False
        self._stopped: Deferred[None] | None = None

    @property
    def processes(self) -> int:
        return len(self._all)

    @property
    def notes(self) -> tuple[ReadyNote, ...]:
        """For ``/ready``."""
        if not self._failures.are_too_many or self._ready():
            return ()
        return (self._failures.note,)

    def start(self) -> None:
        """Start the first process; a second call does nothing."""
        if not self._running:
            self._running = True
            hide_high_descriptors()
            self._balance()

    def renew(self) -> None:
        """The handlers have changed: what comes runs in new processes."""
        for process in list(self._all):
            process.retire()
        self._balance()

    def close(self) -> None:
        """Start nothing more; release what waits."""
        self._running = False
        for attempt in list(self._waiting):
            attempt.release()

    def stop(self) -> Deferred[None]:
        """Kill all processes; fires when they are gone. The attempts must have ended before."""
        self._running = False
        self._failures.stop()
        for process in list(self._all):
            process.kill("")
        if not self._all:
            return succeed(None)
        self._stopped = Deferred()
        return self._stopped

    # --- for attempts ---
    def submit(self, attempt: LoopAttempt) -> None:
        if not self._running or (self._failures.are_too_many and not self._ready()):
            attempt.release()
            return
        self._waiting.append(attempt)
        self._send()
        self._balance()

    def withdraw(self, attempt: LoopAttempt) -> None:
        if attempt in self._waiting:
            self._waiting.remove(attempt)

    # --- LoopOwner ---
    def loop_ready(self, process: LoopProcess) -> None:
        timer = self._timers.pop(process, None)
        if timer is not None:
            timer.cancel()
        self._failures.forget()
        self._send()
        self._balance()

    def loop_died(self, process: LoopProcess, why: str, *, started: bool, attempts: int) -> None:
        timer = self._timers.pop(process, None)
        if timer is not None:
            timer.cancel()
        if self._running and not started:
            self._start_failed(why)
        elif self._running and attempts:
            _log.warn("a worker process is gone: {why}", why=why, event="worker_lost")
        self._balance()

    def loop_closed(self, process: LoopProcess) -> None:
        self._all.discard(process)
        if self._stopped is not None and not self._all:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    # --- processes ---
    def _ready(self) -> list[LoopProcess]:
        return [process for process in self._all if process.phase is Phase.BUSY]

    def _send(self) -> None:
        ready = self._ready()
        while self._waiting and ready:
            self._waiting.popleft().assign(min(ready, key=lambda process: process.load))

    def _balance(self) -> None:
        """Start a process if there is none, or if all that there are have enough to do."""
        if not self._running or self._failures.is_waiting:
            return
        usable = [process for process in self._all if process.phase in (Phase.BUSY, Phase.STARTING)]
        attempts = len(self._waiting) + sum(process.load for process in usable)
        if len(usable) < self._most and attempts >= limits.LOOP_ATTEMPTS * len(usable):
            self._spawn()

    def _spawn(self) -> None:
        mark = self._spawner.mark()
        process = LoopProcess(self, self._spawner, mark)
        # Known before it is started: it may be dead before spawnProcess returns.
        self._all.add(process)
        self._timers[process] = self._clock.callLater(limits.CHILD_START_MS_MAX / 1000, self._start_timed_out, process)
        try:
            self._spawner.spawn(process, mark)
        except OSError as why:
            self._all.discard(process)
            self._timers.pop(process).cancel()
            self._start_failed(f"a worker process can't be started: {why}")

    def _start_timed_out(self, process: LoopProcess) -> None:
        del self._timers[process]
        process.kill(f"worker process {process.pid} was not ready after {limits.CHILD_START_MS_MAX / 1000:g} s")

    def _start_failed(self, why: str) -> None:
        """Log it, space out the next start, give back what waits once it has happened too often."""
        self._failures.add(why)
        if self._failures.are_too_many:
            for attempt in list(self._waiting):
                attempt.release()
