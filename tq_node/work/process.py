"""One worker process, as the node sees it: its pipes, the tasks it was sent, and how each of them
ends.

Theory of operation. A worker process (``child``) runs one task at a time, in the order in which the
node sent them. While tasks are short the node sends a few ahead (``Prefetch.depth``): they lie
ready in the process, which then need not wait for the reactor between two of them.
``WorkerProcess._tasks`` holds all that it was sent and that have not ended; the first is the one
that runs.

Phases (``Phase``). ``STARTING`` until ``Hello`` says that its handlers are loaded; ``IDLE``, the
pool may choose it; ``BUSY``, it has tasks; ``LEAVING``, it was asked to end or is being killed and
gets no further task; ``DEAD``, it has exited. A task that ends takes it from ``BUSY`` to
``ProcessOwner.process_ready``, where the pool sends the next task, lets it become idle, or retires
it.

Who owns an attempt. The pool, while it waits. From ``send_task`` on the process, until exactly one
of these is called:

- ``AssignedAttempt.reported``: the handler returned or raised, and the process said so.
- ``AssignedAttempt.returned``: the handler never began. Either the node took the task back out of
  the socket (``TaskSocket``: whoever takes a message has it alone, so the answer is exact and
  immediate), or the process turned it back (``NotBegun``).
- ``AssignedAttempt.process_died``: the process exited. What it died of becomes the outcome, unless
``kill`` was given one.

``started`` is called when an attempt becomes the first. Its timeout counts from there, and from
there on leases are renewed through the process: each renewal sets the timer in the process
(SIGALRM), which kills it also where the handler holds the interpreter's lock or the node hangs.
``lease_until`` is what that timer is known to be set to.

Whose output it is. Standard output is one pipe for all tasks, so what is read belongs to the first
task. While others lie ready the pipe is not read as it comes: a report says whether its task has
printed, and only then the pipe is drained, before the report is passed on. The process begins
nothing more until it knows that the node received this; it turns back what was sent before
(``NotBegun``). After a task that printed, nothing is sent ahead for a while.

How it ends. ``retire`` closes the task socket: the process exits once it has taken all there is.
``kill`` kills the whole tree of processes below it. In both cases, and where it dies by itself,
``processExited`` drains the pipes first: a report that was written before the end counts. Then what
remains is killed, and each task left ends as above."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import signal
import termios
from collections import deque
from typing import Protocol, cast

from twisted.internet.error import ProcessTerminated
from twisted.internet.process import Process, ProcessReader, ProcessWriter
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.facade import AttemptFailed, Completed, Outcome
from tq_node.work import protocol
from tq_node.work.attempt import LEASE_EXPIRED, failed
from tq_node.work.descendants import TreeKiller
from tq_node.work.output import Output
from tq_node.work.protocol import CONTROL_FD, REPORT_FD, RUN_FD
from tq_node.work.results import make_error
from tq_node.work.task_socket import TaskSocket

_log = Logger()
_STDOUT, _STDERR = 1, 2
_DRAIN_READS_MAX = 256
"""Reads of 8 KiB each: more than a pipe holds, and more than a handler may print."""
_NO_QUEUE_TASKS = 64
"""After a task that printed, a process runs this many tasks before one is sent ahead again."""


class Phase(enum.Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    LEAVING = "leaving"
    """It gets no further task: it was asked to end, or is being killed."""
    DEAD = "dead"


class AssignedAttempt(Protocol):
    """An attempt sent to a worker process, until ``reported``, ``returned`` or ``process_died``."""

    def started(self) -> None:
        """All tasks sent before it have ended: it runs, or is about to."""

    def notes_received(self, said: protocol.Said) -> None:
        """Progress and log lines that the handler set."""

    def output_received(self, lines: list[str]) -> None:
        """Lines that the handler printed."""

    def reported(self, outcome: Outcome) -> None:
        """The handler has returned or raised."""

    def returned(self) -> None:
        """The handler never ran and will not: taken back, or the process died before."""

    def process_died(self, outcome: Outcome) -> None:
        """The process has exited, and the handler; ``outcome``: how, unless decided before."""


class ProcessOwner(Protocol):
    """The pool, as a worker process reports to it."""

    def process_ready(self, process: WorkerProcess) -> None:
        """The process has no task: it has loaded its handlers, or its last task has ended."""

    def process_has_room(self, process: WorkerProcess) -> None:
        """A task ended and others remain: further ones may be sent ahead."""

    def process_ran_task(self, process: WorkerProcess, seconds: float) -> None:
        """A handler ran for so long, measured in the process."""

    def process_leaving(self, process: WorkerProcess) -> None:
        """The process is being killed and can take no task."""

    def process_died(self, process: WorkerProcess, why: str, *, started: bool, idle: bool) -> None:
        """The process exited. ``started``: it had been ready; ``idle``: it ran no task."""

    def process_closed(self, process: WorkerProcess) -> None:
        """The pipes of the process are closed too: nothing is left of it."""


class _AssignedTask:
    """A task that was sent and has not ended: the process runs it, or can take it at any time."""

    __slots__ = ("attempt", "has_started", "lease_until", "serial")

    def __init__(self, serial: int, attempt: AssignedAttempt, lease_until: float) -> None:
        self.serial = serial
        self.attempt = attempt
        self.lease_until = lease_until
        self.has_started = False


class WorkerProcess(ProcessProtocol):
    """Twisted's protocol of one worker process; see the module for how it works."""

    def __init__(self, owner: ProcessOwner, start: protocol.Start, killer: TreeKiller, mark: str) -> None:
        """:param mark: identifies what the process starts, see ``descendants.MARK``."""
        self._killer = killer
        self._mark = mark
        self.phase = Phase.STARTING
        self.pid = 0
        self.tasks = 0
        """How many it was ever sent."""
        self.retired = False
        self.lease_until = 0.0
        """While it is busy: when its own timer is known to kill it, CLOCK_MONOTONIC."""
        self.changed_s = 0.0
        """When it became idle or was asked to end, by the owner's clock. Set by the owner."""
        self.task_socket = TaskSocket()
        self.last_printed_serial = 0
        """The latest task whose report said that it printed."""
        self._owner = owner
        self._start = start
        self._tasks: deque[_AssignedTask] = deque()
        self._serial = 0
        self._checked_serial = 0
        self._may_queue_from = 0
        self._is_output_paused = False
        self._is_draining = False
        self._had_task = False
        self._reader: protocol.FrameReader[protocol.FromWorker] = protocol.FrameReader(protocol.FromWorker)
        self._frames: deque[protocol.FromWorker] = deque()
        self._output = Output()
        self._is_loaded = False
        self._forced_outcome: Outcome | None = None
        self._is_killed = False
        self._is_unreadable = False
        self._why_broken = ""
        self._bytes_read = 0
        self._idle_lines: list[str] = []

    # --- what the pool and attempts ask ---
    @property
    def load(self) -> int:
        """How many tasks it was sent that have not ended."""
        return len(self._tasks)

    @property
    def may_queue(self) -> bool:
        """Whether tasks may be sent ahead: not soon after one that printed."""
        return self.tasks >= self._may_queue_from

    @property
    def is_output_paused(self) -> bool:
        """Standard output is not read as it comes, since tasks lie ready."""
        return self._is_output_paused

    def send_task(self, attempt: AssignedAttempt, run: protocol.Run) -> bool:
        """Send a task behind those it has; ``run.serial``: a ``next_serial``. False: can't now."""
        message = protocol.encode_message(run)
        is_long = len(message) > protocol.MESSAGE_BYTES_MAX
        if self._tasks:
            if is_long:
                return False
            self._read_output(False)
        else:
            # What was printed between tasks belongs to none.
            self._output.finish()
        if is_long:
            if not self._send(RUN_FD, protocol.framed(message)):
                return False
            message = protocol.encode_message(protocol.Follows(run.serial))
        if not self.task_socket.send(message):
            return False
        self.phase = Phase.BUSY
        self.tasks += 1
        self._tasks.append(_AssignedTask(run.serial, attempt, run.lease_until))
        self._start_first()
        return True

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def renew(self, lease_until: float) -> None:
        """Extend the lease of the running task."""
        self._send(CONTROL_FD, protocol.encode(protocol.Lease(self._tasks[0].serial, lease_until)))

    def cancel(self) -> None:
        """Ask the handler of the running task to stop."""
        self._send(CONTROL_FD, protocol.encode(protocol.Cancel(self._tasks[0].serial)))

    def take_back_queued(self) -> None:
        """Take back tasks not begun, read reports of ended ones: at most the running one stays."""
        taken = self._take_back()
        self._is_draining = True
        self._drain(REPORT_FD)
        self._is_draining = False
        if len(self._tasks) <= 1:
            self._read_output(True)
        _give_back(taken)

    def check_long_task(self) -> bool:
        """Take back what waits if the same task runs as at the last call; returns whether so."""
        first = self._tasks[0].serial if self._tasks else 0
        is_same, self._checked_serial = first == self._checked_serial, first
        if len(self._tasks) <= 1:
            self._read_output(True)
            return False
        if is_same:
            self.take_back_queued()
        return is_same

    def become_idle(self) -> None:
        """BUSY or STARTING to IDLE: the pool has no task for it."""
        self.phase = Phase.IDLE
        self._read_output(True)

    def retire(self) -> None:
        """IDLE to LEAVING: it exits by itself."""
        if self.phase is not Phase.DEAD:
            self.phase = Phase.LEAVING
            self.retired = True
            self._read_output(True)
            self.task_socket.end()

    def kill(self, outcome: Outcome | None = None, *, why: str = "") -> None:
        """Kill it now, with all that it has started. The running task ends with ``outcome``,
        whatever it still reports.

        :param why: why the process is of no use, for the pool's log."""
        if self.phase is Phase.DEAD:
            return
        self.phase = Phase.LEAVING
        self._why_broken = self._why_broken or why
        if self._forced_outcome is None:
            self._forced_outcome = outcome
        self._had_task = self._had_task or bool(self._tasks)
        taken = self._take_back()
        if not self._is_killed:
            self._is_killed = True
            self._killer.kill(self.pid)
        self._owner.process_leaving(self)
        _give_back(taken)

    # --- ProcessProtocol ---
    def connectionMade(self) -> None:
        self._process = cast("Process", self.transport)
        self.pid = cast("int", self._process.pid)
        # Twisted would close this pipe when it sees that nobody reads there, and with it what
        # `_is_long_task_unread` asks for.
        writer = cast("ProcessWriter", self._process.pipes[RUN_FD])
        writer.enableReadHack = False
        writer.stopReading()
        self._send(RUN_FD, protocol.encode(self._start))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._bytes_read += len(data)
        if childFD != REPORT_FD:
            self._output_received(data)
            return
        if self._is_unreadable:
            return
        try:
            # What a report leads to may lead back here: then the rest is handled first, in order.
            self._frames.extend(self._reader.feed(data))
            while self._frames:
                self._frame_received(self._frames.popleft())
        except protocol.BadFrame as why:
            self._is_unreadable = True
            self._frames.clear()
            self._kill_for_fault("bad_frame", str(why))
        else:
            if self._tasks and self.phase is Phase.BUSY and not self._is_draining:
                self._owner.process_has_room(self)

    def childConnectionLost(self, childFD: int) -> None:
        # A process that has closed its way to us while it lives can't be followed any more.
        if childFD == REPORT_FD and self.phase not in (Phase.DEAD, Phase.LEAVING):
            self.kill()

    def processExited(self, reason: Failure) -> None:
        # All that it wrote is in the pipes. A process it left may hold them open for ever.
        for fd in (REPORT_FD, _STDOUT, _STDERR):
            self._drain(fd)
        self.phase = Phase.DEAD
        taken = self._take_back()
        self.task_socket.close()
        is_unread = self._is_long_task_unread()
        self._read_output(True)
        for fd in list(self._process.pipes):
            self._process.closeChildFD(fd)
        self._kill_group()
        if self._tasks or self._had_task:
            # It may have died by itself: what its task started in own sessions is orphaned.
            self._killer.kill_marked(self._mark)
        why = describe_exit(self.pid, reason)
        remaining, self._tasks = self._tasks, deque()
        if remaining:
            remaining[0].attempt.output_received(self._output.finish())
        for one in remaining:
            if is_unread and not self._is_outcome_forced():
                one.attempt.returned()
            else:
                one.attempt.process_died(self._forced_outcome or outcome_of(why, reason))
        _give_back(taken)
        detail = self._why_broken or "; ".join([why, *self._idle_lines[-3:]])
        self._owner.process_died(self, detail, started=self._is_loaded, idle=not (remaining or taken or self._had_task))

    def processEnded(self, reason: Failure) -> None:
        self._owner.process_closed(self)

    # --- frames and output ---
    def _is_outcome_forced(self) -> bool:
        """It is killed with an outcome that counts, whatever it still reports."""
        return self._forced_outcome is not None

    def _start_first(self) -> None:
        first = self._tasks[0]
        if not first.has_started:
            first.has_started = True
            self.lease_until = first.lease_until
            first.attempt.started()

    def _take_back(self) -> list[_AssignedTask]:
        serials = set(self.task_socket.take_back())
        if not serials:
            return []
        taken = [one for one in self._tasks if one.serial in serials]
        self._tasks = deque(one for one in self._tasks if one.serial not in serials)
        return taken

    def _frame_received(self, frame: protocol.FromWorker) -> None:
        kind = type(frame)
        if kind is protocol.Done or kind is protocol.Failed:
            if not self._is_outcome_forced():
                self._task_reported(cast("protocol.Done | protocol.Failed", frame))
        elif isinstance(frame, protocol.NotBegun):
            for one in self._tasks:
                if one.serial == frame.serial:
                    self._tasks.remove(one)
                    one.attempt.returned()
                    break
            self._start_next()
        elif isinstance(frame, protocol.Said):
            if self._tasks and frame.serial == self._tasks[0].serial:
                self._tasks[0].attempt.notes_received(frame)
        elif isinstance(frame, protocol.Renewed):
            if self._tasks and frame.serial == self._tasks[0].serial:
                self.lease_until = frame.until
        elif isinstance(frame, protocol.Hello):
            self._is_loaded = True
            self._output.finish()
            if self.phase is Phase.STARTING:
                self._owner.process_ready(self)
        elif isinstance(frame, protocol.Broken):
            self._why_broken = frame.message

    def _task_reported(self, frame: protocol.Done | protocol.Failed) -> None:
        if not self._tasks or frame.serial != self._tasks[0].serial:
            raise protocol.BadFrame(f"a report for task {frame.serial} of the process, which runs none or another")
        if isinstance(frame, protocol.Done) and len(frame.result) > limits.RESULT_BYTES_MAX:
            raise protocol.BadFrame("a result over the bound")
        taken: list[_AssignedTask] = []
        if frame.printed:
            # What the handler printed before it returned belongs to its task.
            self._drain(_STDOUT)
            if self._is_outcome_forced():
                return
            # The process turns back (``NotBegun``) all that was sent before the node knew of this.
            self.last_printed_serial = frame.serial
            self._may_queue_from = self.tasks + _NO_QUEUE_TASKS
            taken = self._take_back()
        if frame.leaving and self.phase is Phase.BUSY:
            self.phase = Phase.LEAVING
        attempt = self._tasks.popleft().attempt
        if lines := self._output.finish():
            attempt.output_received(lines)
        self._owner.process_ran_task(self, frame.ran_us / 1e6)
        if isinstance(frame, protocol.Done):
            attempt.reported(Completed(frame.result))
        else:
            error = make_error(frame.error.type, frame.error.message, frame.error.traceback)
            attempt.reported(AttemptFailed(error, frame.retry_in_ms, frame.final))
        _give_back(taken)
        self._start_next()

    def _start_next(self) -> None:
        """After a task has ended: the next one is first, or the process has none."""
        if self._tasks:
            self._start_first()
        elif self.phase is Phase.BUSY:
            self._owner.process_ready(self)

    def _read_output(self, listen: bool) -> None:
        if listen is not self._is_output_paused:
            return
        self._is_output_paused = not listen
        reader: ProcessReader | None = self._process.pipes.get(_STDOUT)
        if reader is not None:
            if listen:
                reader.startReading()
            else:
                reader.stopReading()

    def _output_received(self, data: bytes) -> None:
        lines = self._output.feed(data)
        if self._output.byte_count > limits.CHILD_OUTPUT_BYTES_PER_ATTEMPT_MAX:
            self._kill_for_fault(
                "output_flood", f"the handler printed more than {limits.CHILD_OUTPUT_BYTES_PER_ATTEMPT_MAX} bytes"
            )
        elif self._tasks:
            if lines:
                self._tasks[0].attempt.output_received(lines)
        elif lines:
            self._idle_lines = (self._idle_lines + lines)[-10:]
            _log.debug(
                "worker process {pid} printed between tasks: {lines}",
                pid=self.pid, lines=lines[:10], event="worker_printed",
            )  # fmt: skip

    def _kill_for_fault(self, error_type: str, message: str) -> None:
        if self._forced_outcome is None:
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
            before = self._bytes_read
            if reader.doRead() is not None or self._bytes_read == before:
                return

    def _is_long_task_unread(self) -> bool:
        """Whether a long task lies unread in its pipe: the process died before taking it."""
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
        # Written at once: the round over the reactor's writers would cost more than the call. Each
        # of these pipes is empty when a frame is sent, but for a process that does not read; it is
        # held by its lease.
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


def _give_back(taken: list[_AssignedTask]) -> None:
    # In reverse: each is put in front of the attempts that wait.
    for one in reversed(taken):
        one.attempt.returned()


def describe_exit(pid: int, reason: Failure) -> str:
    """How the process ended, for people."""
    error = reason.value
    if isinstance(error, ProcessTerminated) and error.signal is not None:
        try:
            name = signal.Signals(error.signal).name
        except ValueError:
            name = f"signal {error.signal}"
        return f"worker process {pid} was killed by {name}"
    return f"worker process {pid} exited with code {getattr(error, 'exitCode', 0) or 0}"


def outcome_of(why: str, reason: Failure) -> Outcome:
    """The outcome of the attempt that ran in it: SIGALRM is its lease timer, else a failure."""
    if getattr(reason.value, "signal", None) == signal.SIGALRM:
        return LEASE_EXPIRED
    return failed("worker_died", why)
