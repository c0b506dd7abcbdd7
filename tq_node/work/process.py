"""One worker process, as the node sees it: its pipes, the task it runs, and how it ends."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import signal
import termios
from typing import Protocol, cast

from twisted.internet.error import ProcessTerminated
from twisted.internet.process import Process, ProcessWriter
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.facade import AttemptFailed, Completed, Outcome
from tq_node.work import frames
from tq_node.work.attempt import LEASE_EXPIRED, failed
from tq_node.work.frames import CONTROL_FD, REPORT_FD, RUN_FD
from tq_node.work.output import Output
from tq_node.work.results import make_error

_log = Logger()
_STDOUT, _STDERR = 1, 2
_DRAIN_READS_MAX = 256
"""Of 8 KiB each: more than a pipe holds, and more than a handler may print."""


class Phase(enum.Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    LEAVING = "leaving"
    """It gets no further task: it was asked to end, or killed."""
    DEAD = "dead"


class Running(Protocol):
    """The attempt in a worker process."""

    def said(self, said: frames.Said) -> None: ...

    def printed(self, lines: list[str]) -> None: ...

    def reported(self, outcome: Outcome) -> None: ...

    def not_begun(self) -> None:
        """The process died before it had read its task: the handler has not run."""

    def died(self, outcome: Outcome) -> None:
        """The process is gone; ``outcome`` says how, unless it was decided before."""


class Owner(Protocol):
    """The pool."""

    def process_ready(self, process: WorkerProcess) -> None:
        """It can take a task, for the first time or again."""

    def process_leaving(self, process: WorkerProcess) -> None:
        """It is being killed and can take no task."""

    def process_dead(self, process: WorkerProcess, why: str, *, started: bool, idle: bool) -> None:
        """It is gone. ``started``: it had said that it was ready; ``idle``: it ran no task."""

    def process_closed(self, process: WorkerProcess) -> None:
        """Its pipes are closed too: nothing is left of it."""


class WorkerProcess(ProcessProtocol):
    """Runs one task at a time. Whatever goes wrong ends in ``Running.died`` and ``Owner.process_dead``."""

    def __init__(self, owner: Owner, start: frames.Start) -> None:
        self.phase = Phase.STARTING
        self.pid = 0
        self.tasks = 0
        self.retired = False
        self.lease_until = 0.0
        """What the timer of the process is known to be set to, CLOCK_MONOTONIC; while it is busy."""
        self.changed_s = 0.0
        """When it became idle or was told to leave, by the owner's clock; kept by the owner."""
        self._owner = owner
        self._start = start
        self._running: Running | None = None
        self._serial = 0
        self._reader: frames.FrameReader[frames.FromWorker] = frames.FrameReader(frames.FromWorker)
        self._output = Output()
        self._started = False
        self._killed_for: Outcome | None = None
        self._sent = False
        self._garbled = False
        self._broken = ""
        self._bytes_seen = 0
        self._last_lines: list[str] = []

    # --- orders ---
    def run(self, running: Running, run: frames.Run) -> None:
        """Run a task; the process is idle. ``run.serial`` is the one that ``next_serial`` gave."""
        self.phase = Phase.BUSY
        self._running = running
        # What was printed between tasks belongs to none.
        self._output.finish()
        self.lease_until = run.lease_until
        self.tasks += 1
        self._sent = self._send(RUN_FD, frames.encode(run, frames.RUN_BYTES_MAX))
        if not self._sent:
            self.kill()

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def renew(self, lease_until: float) -> None:
        self._send(CONTROL_FD, frames.encode(frames.Lease(self._serial, lease_until)))

    def cancel(self) -> None:
        self._send(CONTROL_FD, frames.encode(frames.Cancel(self._serial)))

    def retire(self) -> None:
        """Let it end by itself once it is idle."""
        if self.phase is not Phase.DEAD:
            self.phase = Phase.LEAVING
            self.retired = True
            self._process.closeChildFD(RUN_FD)

    def kill(self, outcome: Outcome | None = None, *, why: str = "") -> None:
        """End it now, with all that it has started; what runs in it dies with ``outcome``."""
        if self.phase is Phase.DEAD:
            return
        self.phase = Phase.LEAVING
        self._broken = self._broken or why
        if self._killed_for is None:
            self._killed_for = outcome
        self._kill_group()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._owner.process_leaving(self)

    # --- news ---
    def connectionMade(self) -> None:
        self._process = cast("Process", self.transport)
        self.pid = cast("int", self._process.pid)
        # Twisted would close this pipe when it sees that nobody reads there, and with it what `_unread` asks for.
        writer = cast("ProcessWriter", self._process.pipes[RUN_FD])
        writer.enableReadHack = False
        writer.stopReading()
        self._send(RUN_FD, frames.encode(self._start))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._bytes_seen += len(data)
        if childFD != REPORT_FD:
            self._printed(data)
            return
        if self._garbled:
            return
        try:
            for frame in self._reader.feed(data):
                self._received(frame)
        except frames.BadFrame as why:
            self._garbled = True
            self._fault("bad_frame", str(why))

    def childConnectionLost(self, childFD: int) -> None:
        # A process that has closed its way to us while it lives can't be followed any more.
        if childFD == REPORT_FD and self.phase not in (Phase.DEAD, Phase.LEAVING):
            self.kill()

    def processExited(self, reason: Failure) -> None:
        # All that it wrote is in the pipes now. A process that it has left behind may hold them open for ever.
        for fd in (REPORT_FD, _STDOUT, _STDERR):
            self._drain(fd)
        self.phase = Phase.DEAD
        begun = self._sent and not self._unread()
        for fd in list(self._process.pipes):
            self._process.closeChildFD(fd)
        self._kill_group()
        why = _ending(self.pid, reason)
        running, self._running = self._running, None
        if running is not None:
            running.printed(self._output.finish())
            if begun or self._doomed():
                running.died(self._killed_for or _outcome(why, reason))
            else:
                running.not_begun()
        detail = self._broken or "; ".join([why, *self._last_lines[-3:]])
        self._owner.process_dead(self, detail, started=self._started, idle=running is None)

    def processEnded(self, reason: Failure) -> None:
        self._owner.process_closed(self)

    # --- within ---
    def _doomed(self) -> bool:
        """Killed for a reason that counts, whatever it still says."""
        return self._killed_for is not None

    def _received(self, frame: frames.FromWorker) -> None:
        running = self._running
        if isinstance(frame, frames.Done | frames.Failed):
            if self._doomed():
                return
            if running is None or frame.serial != self._serial:
                raise frames.BadFrame(f"a report for task {frame.serial} of the process, which runs none or another")
            # What the handler printed before it returned belongs to it.
            self._drain(_STDOUT)
            if self._doomed():
                return
            if isinstance(frame, frames.Done) and len(frame.result) > limits.RESULT_BYTES_MAX:
                raise frames.BadFrame("a result over the bound")
            if isinstance(frame, frames.Failed) and frame.leaving and self.phase is Phase.BUSY:
                self.phase = Phase.LEAVING
            self._running = None
            if lines := self._output.finish():
                running.printed(lines)
            if isinstance(frame, frames.Done):
                running.reported(Completed(frame.result))
            else:
                error = make_error(frame.error.type, frame.error.message, frame.error.traceback)
                running.reported(AttemptFailed(error, frame.retry_in_ms, frame.final))
            if self.phase is Phase.BUSY:
                self._owner.process_ready(self)
        elif isinstance(frame, frames.Said):
            if running is not None and frame.serial == self._serial:
                running.said(frame)
        elif isinstance(frame, frames.Renewed):
            if frame.serial == self._serial:
                self.lease_until = frame.until
        elif isinstance(frame, frames.Hello):
            self._started = True
            self._output.finish()
            if self.phase is Phase.STARTING:
                self._owner.process_ready(self)
        else:
            self._broken = frame.message

    def _printed(self, data: bytes) -> None:
        lines = self._output.feed(data)
        if self._output.byte_count > limits.CHILD_OUTPUT_BYTES_PER_ATTEMPT_MAX:
            self._fault(
                "output_flood", f"the handler printed more than {limits.CHILD_OUTPUT_BYTES_PER_ATTEMPT_MAX} bytes"
            )
        elif self._running is not None:
            if lines:
                self._running.printed(lines)
        elif lines:
            self._last_lines = (self._last_lines + lines)[-10:]
            _log.debug(
                "worker process {pid} printed between tasks: {lines}",
                pid=self.pid, lines=lines[:10], event="worker_printed",
            )  # fmt: skip

    def _fault(self, error_type: str, message: str) -> None:
        if self._killed_for is None:
            _log.warn(
                "worker process {pid} is killed: {error_type}: {why}",
                pid=self.pid, error_type=error_type, why=message, event="worker_fault",
            )  # fmt: skip
        self.kill(failed(error_type, message))

    def _drain(self, fd: int) -> None:
        """Read what is there now; bounded, for a process left behind may write without end."""
        reader = self._process.pipes.get(fd)
        if reader is None:
            return
        for _ in range(_DRAIN_READS_MAX):
            before = self._bytes_seen
            if reader.doRead() is not None or self._bytes_seen == before:
                return

    def _unread(self) -> bool:
        """Whether something that was sent lies in the pipe for tasks; that is the last one, or the end of it."""
        writer = self._process.pipes.get(RUN_FD)
        if writer is None:
            return False
        answer: bytes = fcntl.ioctl(writer.fileno(), termios.FIONREAD, bytes(4))
        return any(answer)

    def _send(self, fd: int, data: bytes) -> bool:
        """False: nobody reads there any more."""
        writer = self._process.pipes.get(fd)
        if writer is None:
            return False
        # Written at once: the round over the reactor's writers would cost more than the call. Each of these pipes is
        # empty when a frame is sent, but for a process that does not read; it is held by its lease.
        try:
            sent = os.write(writer.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent < len(data) and fd == RUN_FD:
            writer.write(data[sent:])
        return True

    def _kill_group(self) -> None:
        # Before it has its own session there is no such group; afterwards it may be gone already.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _ending(pid: int, reason: Failure) -> str:
    error = reason.value
    if isinstance(error, ProcessTerminated) and error.signal is not None:
        try:
            name = signal.Signals(error.signal).name
        except ValueError:
            name = f"signal {error.signal}"
        return f"worker process {pid} was killed by {name}"
    return f"worker process {pid} exited with code {getattr(error, 'exitCode', 0) or 0}"


def _outcome(why: str, reason: Failure) -> Outcome:
    if getattr(reason.value, "signal", None) == signal.SIGALRM:
        return LEASE_EXPIRED
    return failed("worker_died", why)
