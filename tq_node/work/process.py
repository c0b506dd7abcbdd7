"""One worker process, as the node sees it: its pipes, the tasks it was given, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import termios
from collections import deque
from typing import cast

from twisted.internet.process import Process, ProcessReader, ProcessWriter
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.facade import AttemptFailed, Completed, Outcome
from tq_node.work import protocol
from tq_node.work.attempt import failed
from tq_node.work.descendants import TreeKiller
from tq_node.work.exit_status import ending, outcome_of
from tq_node.work.output import Output
from tq_node.work.protocol import CONTROL_FD, REPORT_FD, RUN_FD
from tq_node.work.results import make_error
from tq_node.work.roles import Owner, Phase, Running
from tq_node.work.task_socket import TaskSocket

_log = Logger()
_STDOUT, _STDERR = 1, 2
_DRAIN_READS_MAX = 256
"""Of 8 KiB each: more than a pipe holds, and more than a handler may print."""
_QUIET_TASKS = 64
"""After a task that printed, a process has no task lying ready for so many."""


class _Given:
    """A task that the process has, or can take at any time."""

    __slots__ = ("has_begun", "lease_until", "running", "serial")

    def __init__(self, serial: int, running: Running, lease_until: float) -> None:
        self.serial = serial
        self.running = running
        self.lease_until = lease_until
        self.has_begun = False


class WorkerProcess(ProcessProtocol):
    """Runs one task at a time, in the order in which they were given; others may lie ready behind it.

    The reports come in that order too, so the first that has not been reported is the one that runs, or is about to. Whatever
    goes wrong ends in ``Running.died``, for what has not begun in ``Running.not_begun``, and in ``Owner.process_dead``.

    What is printed belongs to the first. While others lie ready the pipe is read only when the process says that there
    is something; it then begins nothing more until it knows that this was heard.
    """

    def __init__(self, owner: Owner, start: protocol.Start, killer: TreeKiller, mark: str) -> None:
        """:param mark: of what comes from it, see ``descendants.MARK``."""
        self._killer = killer
        self._mark = mark
        self.phase = Phase.STARTING
        self.pid = 0
        self.tasks = 0
        self.retired = False
        self.lease_until = 0.0
        """What the timer of the process is known to be set to, CLOCK_MONOTONIC; while it is busy."""
        self.changed_s = 0.0
        """When it became idle or was told to leave, by the owner's clock; kept by the owner."""
        self.channel = TaskSocket()
        self.printed_serial = 0
        """The last task of which it has said that it printed."""
        self._owner = owner
        self._start = start
        self._given: deque[_Given] = deque()
        self._serial = 0
        self._looked_at = 0
        self._quiet_from = 0
        self._is_deaf = False
        """Its output is not read as it comes."""
        self._is_settling = False
        self._had_task = False
        self._reader: protocol.FrameReader[protocol.FromWorker] = protocol.FrameReader(protocol.FromWorker)
        self._frames: deque[protocol.FromWorker] = deque()
        self._output = Output()
        self._started = False
        self._killed_for: Outcome | None = None
        self._is_killed = False
        self._garbled = False
        self._broken = ""
        self._bytes_seen = 0
        self._last_lines: list[str] = []

    # --- orders ---
    @property
    def load(self) -> int:
        """How many tasks it was given that have not ended."""
        return len(self._given)

    @property
    def is_quiet(self) -> bool:
        """Whether something may lie ready in it: not where handlers print."""
        return self.tasks >= self._quiet_from

    @property
    def is_deaf(self) -> bool:
        return self._is_deaf

    def give(self, running: Running, run: protocol.Run) -> bool:
        """Run a task, next or behind what it has. ``run.serial`` is the one that ``next_serial`` gave. False: not now."""
        message = protocol.encode_message(run)
        is_long = len(message) > protocol.MESSAGE_BYTES_MAX
        if self._given:
            if is_long:
                return False
            self._listen(False)
        else:
            # What was printed between tasks belongs to none.
            self._output.finish()
        if is_long:
            if not self._send(RUN_FD, protocol.framed(message)):
                return False
            message = protocol.encode_message(protocol.Follows(run.serial))
        if not self.channel.send(message):
            return False
        self.phase = Phase.BUSY
        self.tasks += 1
        self._given.append(_Given(run.serial, running, run.lease_until))
        self._begin()
        return True

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def renew(self, lease_until: float) -> None:
        """Of the first."""
        self._send(CONTROL_FD, protocol.encode(protocol.Lease(self._given[0].serial, lease_until)))

    def cancel(self) -> None:
        """The first."""
        self._send(CONTROL_FD, protocol.encode(protocol.Cancel(self._given[0].serial)))

    def settle(self) -> None:
        """Take back what has not begun, and hear what has ended: at most one is left, and that one runs."""
        taken = self._take_back()
        self._is_settling = True
        self._drain(REPORT_FD)
        self._is_settling = False
        if len(self._given) <= 1:
            self._listen(True)
        _return(taken)

    def look(self) -> bool:
        """To be called now and then. Whether the first has run for all the time since the last look; what lay ready behind it
        is taken back then."""
        first = self._given[0].serial if self._given else 0
        is_same, self._looked_at = first == self._looked_at, first
        if len(self._given) <= 1:
            self._listen(True)
            return False
        if is_same:
            self.settle()
        return is_same

    def rest(self) -> None:
        """There is nothing for it to do."""
        self.phase = Phase.IDLE
        self._listen(True)

    def retire(self) -> None:
        """Let it end by itself; it is idle."""
        if self.phase is not Phase.DEAD:
            self.phase = Phase.LEAVING
            self.retired = True
            self._listen(True)
            self.channel.end()

    def kill(self, outcome: Outcome | None = None, *, why: str = "") -> None:
        """End it now, with all that it has started; what runs in it dies with ``outcome``."""
        if self.phase is Phase.DEAD:
            return
        self.phase = Phase.LEAVING
        self._broken = self._broken or why
        if self._killed_for is None:
            self._killed_for = outcome
        self._had_task = self._had_task or bool(self._given)
        taken = self._take_back()
        if not self._is_killed:
            self._is_killed = True
            self._killer.kill(self.pid)
        self._owner.process_leaving(self)
        _return(taken)

    # --- news ---
    def connectionMade(self) -> None:
        self._process = cast("Process", self.transport)
        self.pid = cast("int", self._process.pid)
        # Twisted would close this pipe when it sees that nobody reads there, and with it what `_unread` asks for.
        writer = cast("ProcessWriter", self._process.pipes[RUN_FD])
        writer.enableReadHack = False
        writer.stopReading()
        self._send(RUN_FD, protocol.encode(self._start))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._bytes_seen += len(data)
        if childFD != REPORT_FD:
            self._printed(data)
            return
        if self._garbled:
            return
        try:
            # What a report leads to may lead back here: then the rest comes first, and in its order.
            self._frames.extend(self._reader.feed(data))
            while self._frames:
                self._received(self._frames.popleft())
        except protocol.BadFrame as why:
            self._garbled = True
            self._frames.clear()
            self._fault("bad_frame", str(why))
        else:
            if self._given and self.phase is Phase.BUSY and not self._is_settling:
                self._owner.process_goes_on(self)

    def childConnectionLost(self, childFD: int) -> None:
        # A process that has closed its way to us while it lives can't be followed any more.
        if childFD == REPORT_FD and self.phase not in (Phase.DEAD, Phase.LEAVING):
            self.kill()

    def processExited(self, reason: Failure) -> None:
        # All that it wrote is in the pipes now. A process that it has left behind may hold them open for ever.
        for fd in (REPORT_FD, _STDOUT, _STDERR):
            self._drain(fd)
        self.phase = Phase.DEAD
        taken = self._take_back()
        self.channel.close()
        is_unread = self._unread()
        self._listen(True)
        for fd in list(self._process.pipes):
            self._process.closeChildFD(fd)
        self._kill_group()
        if self._given or self._had_task:
            # It may have died by itself: what its task had started in sessions of its own is nobody's child now.
            self._killer.kill_marked(self._mark)
        why = ending(self.pid, reason)
        left, self._given = self._given, deque()
        if left:
            left[0].running.printed(self._output.finish())
        for one in left:
            if is_unread and not self._doomed():
                one.running.not_begun()
            else:
                one.running.died(self._killed_for or outcome_of(why, reason))
        _return(taken)
        detail = self._broken or "; ".join([why, *self._last_lines[-3:]])
        self._owner.process_dead(self, detail, started=self._started, idle=not (left or taken or self._had_task))

    def processEnded(self, reason: Failure) -> None:
        self._owner.process_closed(self)

    # --- within ---
    def _doomed(self) -> bool:
        """Killed for a reason that counts, whatever it still says."""
        return self._killed_for is not None

    def _begin(self) -> None:
        first = self._given[0]
        if not first.has_begun:
            first.has_begun = True
            self.lease_until = first.lease_until
            first.running.begun()

    def _take_back(self) -> list[_Given]:
        serials = set(self.channel.take_back())
        if not serials:
            return []
        taken = [one for one in self._given if one.serial in serials]
        self._given = deque(one for one in self._given if one.serial not in serials)
        return taken

    def _received(self, frame: protocol.FromWorker) -> None:
        kind = type(frame)
        if kind is protocol.Done or kind is protocol.Failed:
            # One that was killed for a reason that counts has said all that it had to say.
            if not self._doomed():
                self._reported(cast("protocol.Done | protocol.Failed", frame))
        elif isinstance(frame, protocol.NotBegun):
            for one in self._given:
                if one.serial == frame.serial:
                    self._given.remove(one)
                    one.running.not_begun()
                    break
            self._next()
        elif isinstance(frame, protocol.Said):
            if self._given and frame.serial == self._given[0].serial:
                self._given[0].running.said(frame)
        elif isinstance(frame, protocol.Renewed):
            if self._given and frame.serial == self._given[0].serial:
                self.lease_until = frame.until
        elif isinstance(frame, protocol.Hello):
            self._started = True
            self._output.finish()
            if self.phase is Phase.STARTING:
                self._owner.process_ready(self)
        elif isinstance(frame, protocol.Broken):
            self._broken = frame.message

    def _reported(self, frame: protocol.Done | protocol.Failed) -> None:
        if not self._given or frame.serial != self._given[0].serial:
            raise protocol.BadFrame(f"a report for task {frame.serial} of the process, which runs none or another")
        if isinstance(frame, protocol.Done) and len(frame.result) > limits.RESULT_BYTES_MAX:
            raise protocol.BadFrame("a result over the bound")
        taken: list[_Given] = []
        if frame.printed:
            # What the handler printed before it returned belongs to it.
            self._drain(_STDOUT)
            if self._doomed():
                return
            # And the process turns back what it takes of all that was sent before this.
            self.printed_serial = frame.serial
            self._quiet_from = self.tasks + _QUIET_TASKS
            taken = self._take_back()
        if frame.leaving and self.phase is Phase.BUSY:
            self.phase = Phase.LEAVING
        running = self._given.popleft().running
        if lines := self._output.finish():
            running.printed(lines)
        self._owner.process_ran(self, frame.ran_us / 1e6)
        if isinstance(frame, protocol.Done):
            running.reported(Completed(frame.result))
        else:
            error = make_error(frame.error.type, frame.error.message, frame.error.traceback)
            running.reported(AttemptFailed(error, frame.retry_in_ms, frame.final))
        _return(taken)
        self._next()

    def _next(self) -> None:
        """Something has ended."""
        if self._given:
            self._begin()
        elif self.phase is Phase.BUSY:
            self._owner.process_ready(self)

    def _listen(self, listen: bool) -> None:
        if listen is not self._is_deaf:
            return
        self._is_deaf = not listen
        reader: ProcessReader | None = self._process.pipes.get(_STDOUT)
        if reader is not None:
            if listen:
                reader.startReading()
            else:
                reader.stopReading()

    def _printed(self, data: bytes) -> None:
        lines = self._output.feed(data)
        if self._output.byte_count > limits.CHILD_OUTPUT_BYTES_PER_ATTEMPT_MAX:
            self._fault(
                "output_flood", f"the handler printed more than {limits.CHILD_OUTPUT_BYTES_PER_ATTEMPT_MAX} bytes"
            )
        elif self._given:
            if lines:
                self._given[0].running.printed(lines)
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
        """Whether something that was sent lies in the pipe for long tasks; that is the last one."""
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


def _return(taken: list[_Given]) -> None:
    # The last one first: each is put before those that wait.
    for one in reversed(taken):
        one.running.not_begun()
