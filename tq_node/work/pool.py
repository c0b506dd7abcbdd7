"""The worker processes of a node: how many there are, which one runs what, and when one is replaced."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger

import tq_node
from tq_node import limits
from tq_node.facade import Claim, Outcome
from tq_node.types import LogLine
from tq_node.work import frames
from tq_node.work.attempt import CANCEL_GRACE_S, CANCELLED, LEASE_EXPIRED, Attempt, Host, failed
from tq_node.work.handlers import Handler
from tq_node.work.notebook import bounded_line
from tq_node.work.process import Phase, WorkerProcess

_log = Logger()
_BACKOFF_S = 0.25
_BACKOFF_S_MAX = 5.0
_STARTING_MAX = 4
"""Processes that start at the same time: more would not be ready sooner, but hold up the reactor."""
_LEASE_SLACK_S = 1.0
"""So long after its lease a process must have died by its own timer."""


class ProcessAttempt(Attempt):
    """An attempt of a ``def`` handler: waits for a worker process, then runs in it."""

    __slots__ = ("_pool", "_process")

    def __init__(self, host: Host, claim: Claim, handler: Handler, lease_until: float, pool: ProcessPool) -> None:
        super().__init__(host, claim, handler, lease_until)
        self._pool = pool
        self._process: WorkerProcess | None = None

    @property
    def waits(self) -> bool:
        """Whether it has no process yet."""
        return self._process is None and not self.over

    def start(self) -> None:
        self._pool.submit(self)

    def assign(self, process: WorkerProcess) -> None:
        """Run it there; the attempt's time counts from here."""
        claim = self.claim
        self._process = process
        run = frames.Run(
            process.next_serial(),
            claim.task_id,
            claim.task_type,
            claim.payload,
            claim.attempt,
            claim.token.epoch,
            claim.token.sequence,
            self._begin_timeout(),
            self.lease_until,
        )
        process.run(self, run)

    def not_started(self, why: str) -> None:
        """No worker process could be had."""
        self._end(failed("worker_start_failed", why))

    def stop(self) -> None:
        if self.over or self._forced is not None:
            return
        if self._process is None:
            self.abort(CANCELLED)
        else:
            self._process.cancel()
            self._set_timer(self._host.clock.callLater(CANCEL_GRACE_S, self._grace_over))

    def abort(self, outcome: Outcome) -> None:
        self._expire(outcome)

    def renew(self, lease_until: float) -> None:
        super().renew(lease_until)
        if self._process is not None:
            self._process.renew(lease_until)

    def _grace_over(self) -> None:
        self._timer = None
        self._expire(CANCELLED)

    def _expire(self, outcome: Outcome) -> None:
        """Kill its process. The attempt ends once that is dead, so that no other attempt can overlap with it."""
        if self.over or self._forced is not None:
            return
        self._forced = outcome
        self._set_timer(None)
        if self._process is None:
            self._pool.withdraw(self)
            self._end(outcome)
        else:
            self._process.kill(outcome)

    # --- what its process tells ---
    def said(self, said: frames.Said) -> None:
        lines = [LogLine(line.at_us, bounded_line(line.line)) for line in said.lines]
        self.notebook.add(lines, progress=said.progress, dropped=said.dropped)

    def printed(self, lines: list[str]) -> None:
        for line in lines:
            self.notebook.add_line(line)

    def reported(self, outcome: Outcome) -> None:
        self._process = None
        self._end(outcome)

    def not_begun(self) -> None:
        self._process = None
        self._set_timer(None)
        self._pool.submit(self)

    def died(self, outcome: Outcome) -> None:
        self._process = None
        self._end(outcome)


class ProcessPool:
    """Keeps ``limits.CHILD_SPARES`` processes idle and warm, grows to ``size`` with the work, shrinks when it is gone.

    At most ``size`` attempts may be here at once; each waits until there is a process for it. Where processes can't be
    started, starts are spaced out, and the attempts that waited for one fail instead of hanging.
    """

    def __init__(
        self,
        modules: tuple[str, ...],
        *,
        size: int,
        processes: IReactorProcess,
        clock: IReactorTime,
        lock_fd: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        :param modules: what each process loads.
        :param lock_fd: inherited by each process, see ``lease.WorkersLock``.
        """
        self._start = frames.Start(modules, tuple(sys.path), os.environ.get("PYTHONPATH"))
        self._size = size
        self._spares = min(limits.CHILD_SPARES, size)
        self._reactor = processes
        self._clock = clock
        self._lock_fd = lock_fd
        self._monotonic = monotonic
        self._waiting: deque[ProcessAttempt] = deque()
        self._idle: list[WorkerProcess] = []
        """The one used last is at the end and used first, so that the others grow old and go."""
        self._all: set[WorkerProcess] = set()
        """Those whose pipes are open, also the dying."""
        self._timers: dict[WorkerProcess, IDelayedCall] = {}
        self._failures = 0
        self._backoff: IDelayedCall | None = None
        self._running = False
        self._stopped: Deferred[None] | None = None
        self.started_total = 0

    @property
    def processes(self) -> int:
        """How many there are, the dying among them."""
        return len(self._all)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def start(self) -> None:
        """Start the first ones."""
        self._running = True
        self._balance()

    def close(self) -> None:
        """Start no further process, and let those go that end their task."""
        self._running = False

    def stop(self) -> Deferred[None]:
        """Kill all; fires when nothing is left of them. The attempts must have ended before."""
        self._running = False
        if self._backoff is not None:
            self._backoff.cancel()
            self._backoff = None
        for process in list(self._all):
            process.kill()
        if not self._all:
            return succeed(None)
        self._stopped = Deferred()
        return self._stopped

    def submit(self, attempt: ProcessAttempt) -> None:
        if not self._running:
            attempt.release()
            return
        if self._idle:
            attempt.assign(self._idle.pop())
        else:
            self._waiting.append(attempt)
        self._balance()

    def withdraw(self, attempt: ProcessAttempt) -> None:
        """It no longer waits for a process."""
        if attempt in self._waiting:
            self._waiting.remove(attempt)

    def sweep(self) -> None:
        """To be called every few seconds: let go what is idle for long, kill what should be gone and is not."""
        now = self._clock.seconds()
        now_monotonic = self._monotonic()
        while len(self._idle) > self._spares and now - self._idle[0].changed_s > limits.CHILD_IDLE_S_MAX:
            self._retire(self._idle.pop(0))
        for process in list(self._all):
            if process.phase is Phase.LEAVING and now - process.changed_s > CANCEL_GRACE_S:
                process.kill()
            elif process.phase is Phase.BUSY and now_monotonic > process.lease_until + _LEASE_SLACK_S:
                # Its timer has gone off, and it has not died of that: it is stopped (SIGSTOP, a debugger).
                process.kill(LEASE_EXPIRED)
        self._balance()

    # --- what the processes tell ---
    def process_ready(self, process: WorkerProcess) -> None:
        timer = self._timers.pop(process, None)
        if timer is not None:
            timer.cancel()
        elif process.tasks:
            # It has been of use, which says more than that it could start.
            self._failures = 0
        if not self._running:
            process.kill()
        elif process.tasks >= limits.CHILD_TASKS_MAX:
            self._retire(process)
        elif self._waiting:
            self._waiting.popleft().assign(process)
        else:
            process.phase = Phase.IDLE
            process.changed_s = self._clock.seconds()
            self._idle.append(process)
        if timer is not None or process.phase is Phase.LEAVING:
            self._balance()

    def process_leaving(self, process: WorkerProcess) -> None:
        if process in self._idle:
            self._idle.remove(process)

    def process_dead(self, process: WorkerProcess, why: str, *, started: bool, idle: bool) -> None:
        if (timer := self._timers.pop(process, None)) is not None:
            timer.cancel()
        self.process_leaving(process)
        if self._running:
            if not started or not (process.tasks or process.retired):
                # One that dies before it has ever been of use would be replaced by the next such one, without end.
                self._start_failed(why, lost_attempt=not started)
            elif idle and not process.retired:
                _log.warn("an idle worker process is gone: {why}", why=why, event="worker_lost")
            self._balance()

    def process_closed(self, process: WorkerProcess) -> None:
        self._all.discard(process)
        if self._stopped is not None and not self._all:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    # --- within ---
    def _balance(self) -> None:
        """Start what is missing: one for each attempt, and the spares."""
        if not self._running or self._backoff is not None:
            return
        # An idle process needs no look at the others: the spares are there, and nobody waits.
        if not self._waiting and len(self._idle) >= self._spares:
            return
        starting = busy = 0
        for process in self._all:
            if process.phase is Phase.STARTING:
                starting += 1
            elif process.phase is Phase.BUSY:
                busy += 1
        wanted = min(self._size, busy + len(self._waiting) + self._spares)
        missing = wanted - starting - busy - len(self._idle)
        for _ in range(min(missing, _STARTING_MAX - starting)):
            if self._backoff is not None or not self._spawn():
                break

    def _spawn(self) -> bool:
        root = str(Path(tq_node.__file__).resolve().parent.parent)
        environment = dict(os.environ)
        # Only for the process to find this package; it puts the variable back before it loads a handler.
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [self._start.pythonpath])])
        process = WorkerProcess(self, self._start)
        # Known before it is started: it may be dead before spawnProcess returns.
        self._all.add(process)
        self._timers[process] = self._clock.callLater(limits.CHILD_START_MS_MAX / 1000, self._start_timed_out, process)
        arguments = [sys.executable, "-P", "-m", "tq_node.work.child", str(os.getpid())]
        try:
            with open(os.devnull, "rb") as null:
                child_fds: dict[int, str | int] = {
                    0: null.fileno(), 1: "r", 2: "r",
                    frames.RUN_FD: "w", frames.REPORT_FD: "r", frames.CONTROL_FD: "w",
                    frames.LOCK_FD: null.fileno() if self._lock_fd is None else self._lock_fd,
                }  # fmt: skip
                self._reactor.spawnProcess(process, sys.executable, arguments, environment, None, childFDs=child_fds)
        except OSError as why:
            self._all.discard(process)
            self._timers.pop(process).cancel()
            self._start_failed(f"a worker process can't be started: {why}")
            return False
        self.started_total += 1
        return True

    def _start_timed_out(self, process: WorkerProcess) -> None:
        del self._timers[process]
        process.kill(why=f"worker process {process.pid} was not ready after {limits.CHILD_START_MS_MAX / 1000:g} s")

    def _start_failed(self, why: str, *, lost_attempt: bool = True) -> None:
        """Tell it, space out the next start, and fail the attempt that waited for this one, or all where none is left."""
        self._failures += 1
        delay_s = min(_BACKOFF_S * 2 ** min(self._failures - 1, 10), _BACKOFF_S_MAX)
        _log.error(
            "worker process could not start: {why}; next try in {delay_s} s",
            why=why, delay_s=delay_s, failures=self._failures, event="worker_start_failed",
        )  # fmt: skip
        if self._backoff is None:
            self._backoff = self._clock.callLater(delay_s, self._try_again)
        if not lost_attempt:
            return
        alive = any(process.phase in (Phase.STARTING, Phase.IDLE, Phase.BUSY) for process in self._all)
        for _ in range(min(1, len(self._waiting)) if alive else len(self._waiting)):
            self._waiting.popleft().not_started(why)

    def _try_again(self) -> None:
        self._backoff = None
        self._balance()

    def _retire(self, process: WorkerProcess) -> None:
        process.retire()
        process.changed_s = self._clock.seconds()
