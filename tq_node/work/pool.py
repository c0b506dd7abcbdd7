"""The worker processes of a node: how many there are, who gets which task, when one is replaced."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from tq_node import limits
from tq_node.facade import ReadyNote
from tq_node.work.attempt import CANCEL_GRACE_S, LEASE_EXPIRED
from tq_node.work.prefetch import Prefetch
from tq_node.work.process import Phase, WorkerProcess
from tq_node.work.process_attempt import ProcessAttempt
from tq_node.work.process_environment import ProcessEnvironment
from tq_node.work.spawning import Spawner, hide_high_descriptors
from tq_node.work.start_failures import StartFailures

_log = Logger()
_STARTING_MAX = 4
"""The most processes that start at once: more would not be ready sooner, but block the reactor."""
_STEADY_S = 5.0
"""A process that was idle for so long has started well: earlier failures are forgotten."""
_LEASE_SLACK_S = 1.0
"""So long after its lease a process must have been killed by its own timer."""


class ProcessPool:
    """Keeps ``limits.CHILD_SPARES`` processes idle and warm, grows to ``size`` with the work,
    shrinks when it is gone.

    An attempt waits until there is a process for it. Where processes can't be started, starts are
    spaced out; after ``limits.CHILD_START_FAILURES_MAX`` in a row the attempts that wait are given
    back, and ``slots`` is what is there. While tasks are very short (``Prefetch.depth``), a process
    that runs one has some more lying ready in it, so that it need not wait for the reactor, nor the
    reactor wake it, between two of them."""

    def __init__(
        self,
        modules: tuple[str, ...],
        environment: ProcessEnvironment,
        prefetch: Prefetch,
        *,
        size: int,
        reactor: Any,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param modules: handler modules that each process loads.
        :param reactor: for timers and processes."""
        self._spawner = Spawner("tq_node.work.child", modules, environment, reactor)
        self._size = size
        self.limit = size
        """How many processes may run tasks; lowered while ``async def`` handlers take slots."""
        self._prefetch = prefetch
        self._spares = min(limits.CHILD_SPARES, size)
        self._clock: IReactorTime = reactor
        self._monotonic = monotonic
        self._waiting: deque[ProcessAttempt] = deque()
        self._send_call: IDelayedCall | None = None
        self._idle: list[WorkerProcess] = []
        """A stack: the process used last is used first; others get idle for long and retire."""
        self._all: set[WorkerProcess] = set()
        """All whose pipes are open, the dying included."""
        self._outdated: set[WorkerProcess] = set()
        """Those started before ``renew``: they finish their tasks and are retired."""
        self._timers: dict[WorkerProcess, IDelayedCall] = {}
        self._failures = StartFailures(self._clock, self._balance)
        """Failed starts since a process last ran a task."""
        self._running = False
        self._stopped: Deferred[None] | None = None

    @property
    def started_total(self) -> int:
        """How many were ever started."""
        return self._spawner.started_total

    @property
    def processes(self) -> int:
        """How many processes there are, the dying included."""
        return len(self._all)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        """How many run a task."""
        return sum(process.phase is Phase.BUSY for process in self._all)

    @property
    def waiting(self) -> Collection[ProcessAttempt]:
        """Attempts that were sent to no process, in order."""
        return self._waiting

    @property
    def slots(self) -> int:
        """How many attempts can run: ``size``; if starts fail, as many as there are processes."""
        if not self._failures.are_too_many:
            return self._size
        return sum(process.phase in (Phase.IDLE, Phase.BUSY) for process in self._all)

    @property
    def notes(self) -> tuple[ReadyNote, ...]:
        """For ``/ready``."""
        if not self._failures.are_too_many or self.slots > 0:
            return ()
        return (self._failures.note,)

    @property
    def is_deep(self) -> bool:
        """Whether a process may have tasks lying ready, so that ``check_long_tasks`` is needed."""
        return any(process.is_output_paused for process in self._all)

    def start(self) -> None:
        """Start the first processes; a second call does nothing."""
        if self._running:
            return
        self._running = True
        hide_high_descriptors()
        self._balance()

    def renew(self) -> None:
        """The handlers have changed: replace every process once it is idle."""
        self._outdated |= self._all
        while self._idle:
            self._retire(self._idle.pop())
        self._balance()

    def close(self) -> None:
        """Start no process; kill each once its task has ended; release attempts not begun."""
        self._running = False
        for process in list(self._all):
            if process.load > 1:
                process.take_back_queued()
        for attempt in list(self._waiting):
            attempt.release()

    def stop(self) -> Deferred[None]:
        """Kill all processes; fires when they are gone. The attempts must have ended before."""
        self._running = False
        self._failures.stop()
        if self._send_call is not None:
            self._send_call.cancel()
            self._send_call = None
        for process in list(self._all):
            process.kill()
        if not self._all:
            return succeed(None)
        self._stopped = Deferred()
        return self._stopped

    def submit(self, attempt: ProcessAttempt) -> None:
        if not self._running or (self._failures.count and self.slots == 0):
            attempt.release()
            return
        self._waiting.append(attempt)
        self._send_waiting()
        if len(self._all) < self._size:
            self._balance()

    def put_back(self, attempt: ProcessAttempt) -> None:
        """Queue an attempt that a process returned, in front of all others."""
        if not self._running:
            attempt.release()
            return
        self._waiting.appendleft(attempt)
        # In the next turn: whoever had it taken back may end it in this one.
        if self._send_call is None:
            self._send_call = self._clock.callLater(0, self._send_put_back)

    def withdraw(self, attempt: ProcessAttempt) -> None:
        """Remove an attempt from the queue."""
        if attempt in self._waiting:
            self._waiting.remove(attempt)

    def sweep(self) -> None:
        """Every few seconds: retire processes idle for long, kill those overdue to end."""
        now = self._clock.seconds()
        now_monotonic = self._monotonic()
        if (
            self._failures.count
            and not self._failures.is_waiting
            and self._idle
            and now - self._idle[-1].changed_s > _STEADY_S
        ):
            self._failures.forget()
        while len(self._idle) > self._spares and now - self._idle[0].changed_s > limits.CHILD_IDLE_S_MAX:
            self._retire(self._idle.pop(0))
        for process in list(self._all):
            if process.phase is Phase.LEAVING and now - process.changed_s > CANCEL_GRACE_S:
                process.kill()
            elif process.phase is Phase.BUSY and now_monotonic > process.lease_until + _LEASE_SLACK_S:
                # Its lease timer fired and did not kill it: it is stopped (SIGSTOP, a debugger).
                process.take_back_queued()
                if process.phase is Phase.BUSY and now_monotonic > process.lease_until + _LEASE_SLACK_S:
                    process.kill(LEASE_EXPIRED)
        self._balance()

    def check_long_tasks(self, interval_s: float) -> None:
        """Every ``interval_s`` while tasks lie ready: take them back from behind long ones."""
        for process in list(self._all):
            if process.phase is Phase.BUSY and process.check_long_task():
                self._prefetch.task_took(interval_s)

    def feed(self) -> None:
        """``limit`` was raised: send waiting attempts to idle processes."""
        if self._waiting and self._idle:
            self._send_waiting()

    # --- ProcessOwner ---
    def process_ready(self, process: WorkerProcess) -> None:
        timer = self._timers.pop(process, None)
        if timer is not None:
            timer.cancel()
        elif process.tasks:
            # It has run a task, which says more than that it could start.
            self._failures.forget()
        if not self._running:
            process.kill()
        elif process.tasks >= limits.CHILD_TASKS_MAX or process in self._outdated:
            self._retire(process)
        elif self._waiting and self._may_run(process):
            if not self._send_first(process):
                process.kill()
        else:
            process.become_idle()
            process.changed_s = self._clock.seconds()
            self._idle.append(process)
        if timer is not None or process.phase is Phase.LEAVING:
            self._balance()

    def process_has_room(self, process: WorkerProcess) -> None:
        if self._waiting and process not in self._outdated and process.load <= max(1, self._prefetch.depth // 2):
            self._send_ahead(process)

    def process_ran_task(self, process: WorkerProcess, seconds: float) -> None:
        self._prefetch.task_took(seconds)

    def process_leaving(self, process: WorkerProcess) -> None:
        if process in self._idle:
            self._idle.remove(process)

    def process_died(self, process: WorkerProcess, why: str, *, started: bool, idle: bool) -> None:
        if (timer := self._timers.pop(process, None)) is not None:
            timer.cancel()
        self.process_leaving(process)
        if self._running:
            if not started or not (process.tasks or process.retired):
                # A process that dies before a task would be replaced by the next such, without end.
                self._start_failed(why)
            elif idle and not process.retired:
                _log.warn("an idle worker process is gone: {why}", why=why, event="worker_lost")
            self._balance()

    def process_closed(self, process: WorkerProcess) -> None:
        self._all.discard(process)
        self._outdated.discard(process)
        if self._stopped is not None and not self._all:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    # --- sending tasks and starting processes ---
    def _send_waiting(self) -> None:
        while self._waiting and self._idle and self._may_run(None):
            process = self._idle.pop()
            if not self._send_first(process):
                process.kill()

    def _send_put_back(self) -> None:
        self._send_call = None
        self._send_waiting()
        self._balance()

    def _may_run(self, process: WorkerProcess | None) -> bool:
        """Whether ``limit`` lets ``process`` (None: an idle one) run one more task."""
        return (
            self.limit >= self._size or self.busy - (process is not None and process.phase is Phase.BUSY) < self.limit
        )

    def _send_first(self, process: WorkerProcess) -> bool:
        """Send the first waiting attempt to an idle process. False: it could not be sent."""
        attempt = self._waiting.popleft()
        if not attempt.assign(process):
            self._waiting.appendleft(attempt)
            return False
        if self._waiting and self._prefetch.depth:
            self._send_ahead(process)
        return True

    def _send_ahead(self, process: WorkerProcess) -> None:
        """Send attempts ahead, up to ``Prefetch.depth`` and the process's share of the waiting."""
        if not process.may_queue or self.limit < self._size or not self._running:
            return
        count = min(self._prefetch.depth + 1 - process.load, -(-len(self._waiting) // self._size))
        for _ in range(min(count, limits.CHILD_TASKS_MAX - process.tasks)):
            attempt = self._waiting.popleft()
            if not attempt.assign(process):
                self._waiting.appendleft(attempt)
                break

    def _balance(self) -> None:
        """Start missing processes: one for each waiting attempt, and the spares."""
        if not self._running or self._failures.is_waiting:
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
            if self._failures.is_waiting or not self._spawn():
                break

    def _spawn(self) -> bool:
        spawner = self._spawner
        mark = spawner.mark()
        try:
            process = WorkerProcess(self, spawner.start, spawner.killer, mark)
        except OSError as why:
            self._start_failed(f"a worker process can't be started: {why}")
            return False
        # Known before it is started: it may be dead before spawnProcess returns.
        self._all.add(process)
        self._timers[process] = self._clock.callLater(limits.CHILD_START_MS_MAX / 1000, self._start_timed_out, process)
        try:
            spawner.spawn(process, mark, process.task_socket.fileno())
        except OSError as why:
            self._all.discard(process)
            process.task_socket.close()
            self._timers.pop(process).cancel()
            self._start_failed(f"a worker process can't be started: {why}")
            return False
        return True

    def _start_timed_out(self, process: WorkerProcess) -> None:
        del self._timers[process]
        process.kill(why=f"worker process {process.pid} was not ready after {limits.CHILD_START_MS_MAX / 1000:g} s")

    def _start_failed(self, why: str) -> None:
        """Log it, space out the next start, and give back what waits once that has happened too
        often in a row. Nothing is wrong with the tasks, so it costs them no attempt."""
        self._failures.add(why)
        if self._failures.are_too_many:
            for attempt in list(self._waiting):
                attempt.release()

    def _retire(self, process: WorkerProcess) -> None:
        process.retire()
        process.changed_s = self._clock.seconds()
