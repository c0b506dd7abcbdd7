"""One worker process with an event loop, as the node sees it: its pipes, and the attempts that run
in it side by side.

Phases. ``STARTING`` until ``Hello`` says that its handlers are loaded; ``BUSY``, it takes attempts;
``LEAVING``, it gets no further one and exits once those that it has have ended, or is being killed;
``DEAD``.

An attempt is the process's from ``send`` until exactly one of ``reported`` and ``process_died`` is
called. A process that dies takes all its attempts along. Where it was killed for the sake of one
that did not end when it had to, only that one gets the outcome: the others are released, for
nothing of theirs has failed."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Protocol, cast

from twisted.internet.process import Process, ProcessWriter
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.facade import AttemptFailed, Completed, Outcome, Released
from tq_node.work import protocol
from tq_node.work.attempt import LEASE_EXPIRED
from tq_node.work.output import Output
from tq_node.work.process import Phase, describe_exit, outcome_of
from tq_node.work.protocol import REPORT_FD, RUN_FD
from tq_node.work.results import make_error
from tq_node.work.spawning import Spawner

_log = Logger()
_LINES_KEPT = 3
"""Of what the process printed outside of any handler, for the line about its end."""


class LoopedAttempt(Protocol):
    """An attempt in a process with an event loop, until ``reported`` or ``process_died``."""

    def notes_received(self, said: protocol.Said) -> None:
        """Progress and log lines that the handler set or printed."""

    def reported(self, outcome: Outcome) -> None:
        """The handler has returned or raised."""

    def process_died(self, outcome: Outcome) -> None:
        """The process has exited, and the handler; ``outcome``: how."""


class LoopOwner(Protocol):
    """The pool, as a process reports to it."""

    def loop_ready(self, process: LoopProcess) -> None:
        """The process has loaded its handlers, or has room again."""

    def loop_died(self, process: LoopProcess, why: str, *, started: bool, attempts: int) -> None:
        """The process exited. ``started``: it had been ready; ``attempts``: how many ran in it."""

    def loop_closed(self, process: LoopProcess) -> None:
        """Nothing is left of the process, its pipes neither."""


class LoopProcess(ProcessProtocol):
    """Twisted's protocol of one such process. ``mark``: identifies what it starts."""

    def __init__(self, owner: LoopOwner, spawner: Spawner, mark: str) -> None:
        self.phase = Phase.STARTING
        self.pid = 0
        self._owner = owner
        self._spawner = spawner
        self._mark = mark
        self._attempts: dict[int, LoopedAttempt] = {}
        self._serial = 0
        self._reader: protocol.FrameReader[protocol.FromWorker] = protocol.FrameReader(protocol.FromWorker)
        self._output = Output()
        self._lines: list[str] = []
        self._why = ""
        self._was_started = False
        self._killed_for: LoopedAttempt | None = None
        self._forced: Outcome | None = None
        """What the attempt gets for whose sake it was killed."""

    @property
    def load(self) -> int:
        """How many attempts run in it."""
        return len(self._attempts)

    # --- what the pool and attempts ask ---
    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def send(self, attempt: LoopedAttempt, run: protocol.Run) -> None:
        """Begin an attempt; ``run.serial``: a ``next_serial``."""
        assert self.phase is Phase.BUSY
        self._attempts[run.serial] = attempt
        self._write(protocol.encode(run, protocol.RUN_BYTES_MAX))

    def renew(self, serial: int, lease_until: float) -> None:
        self._write(protocol.encode(protocol.Lease(serial, lease_until)))

    def cancel(self, serial: int) -> None:
        """Cancel a handler: CancelledError is raised in it."""
        self._write(protocol.encode(protocol.Cancel(serial)))

    def retire(self) -> None:
        """Take no further attempt, and exit once those that run have ended."""
        if self.phase in (Phase.BUSY, Phase.STARTING):
            self.phase = Phase.LEAVING
            self._process.closeChildFD(RUN_FD)

    def kill(self, why: str, attempt: LoopedAttempt | None = None, outcome: Outcome | None = None) -> None:
        """Kill it with all that it has started.

        :param attempt: for whose sake; it ends with ``outcome``, the others are released."""
        if self.phase is Phase.DEAD:
            return
        self.phase = Phase.LEAVING
        self._why = self._why or why
        if self._killed_for is None:
            self._killed_for, self._forced = attempt, outcome
        self._spawner.killer.kill(self.pid)

    # --- ProcessProtocol ---
    def connectionMade(self) -> None:
        self._process = cast("Process", self.transport)
        self.pid = cast("int", self._process.pid)
        writer = cast("ProcessWriter", self._process.pipes[RUN_FD])
        # Twisted would close this pipe when it sees that nobody reads there.
        writer.enableReadHack = False
        writer.stopReading()
        self._write(protocol.encode(self._spawner.start, protocol.RUN_BYTES_MAX))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD != REPORT_FD:
            self._lines = (self._lines + self._output.feed(data))[-_LINES_KEPT:]
            return
        try:
            for frame in self._reader.feed(data):
                self._frame_received(frame)
        except protocol.BadFrame as why:
            _log.warn(
                "worker process {pid} is killed: bad_frame: {why}", pid=self.pid, why=str(why), event="worker_fault"
            )
            self.kill(str(why))

    def processExited(self, reason: Failure) -> None:
        # A report that was written before the end counts: it is in the pipe.
        reader = self._process.pipes.get(REPORT_FD)
        if reader is not None:
            reader.doRead()
        self.phase = Phase.DEAD
        for fd in list(self._process.pipes):
            self._process.closeChildFD(fd)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._spawner.killer.kill_marked(self._mark)
        why = describe_exit(self.pid, reason)
        attempts, self._attempts = list(self._attempts.values()), {}
        for attempt in attempts:
            if self._forced is None:
                attempt.process_died(outcome_of(why, reason))
            else:
                attempt.process_died(self._forced if attempt is self._killed_for else Released())
        detail = self._why or "; ".join([why, *self._lines])
        self._owner.loop_died(self, detail, started=self._was_started, attempts=len(attempts))

    def processEnded(self, reason: Failure) -> None:
        self._owner.loop_closed(self)

    # --- frames ---
    def _frame_received(self, frame: protocol.FromWorker) -> None:
        if isinstance(frame, protocol.Hello):
            self._was_started = True
            if self.phase is Phase.STARTING:
                self.phase = Phase.BUSY
                self._owner.loop_ready(self)
        elif isinstance(frame, protocol.Broken):
            self._why = frame.message
        elif isinstance(frame, protocol.NotBegun):
            raise protocol.BadFrame("an attempt was turned back")
        elif not isinstance(frame, protocol.Renewed):
            attempt = self._attempts.get(frame.serial)
            if attempt is None:
                raise protocol.BadFrame(f"a report for attempt {frame.serial}, which does not run there")
            if isinstance(frame, protocol.Said):
                attempt.notes_received(frame)
            else:
                self._reported(attempt, frame)

    def _reported(self, attempt: LoopedAttempt, frame: protocol.Done | protocol.Failed | protocol.Lapsed) -> None:
        if isinstance(frame, protocol.Done) and len(frame.result) > limits.RESULT_BYTES_MAX:
            raise protocol.BadFrame("a result over the bound")
        del self._attempts[frame.serial]
        if isinstance(frame, protocol.Failed):
            if frame.leaving:
                self.retire()
            error = make_error(frame.error.type, frame.error.message, frame.error.traceback)
            attempt.reported(AttemptFailed(error, frame.retry_in_ms, frame.final))
        else:
            attempt.reported(Completed(frame.result) if isinstance(frame, protocol.Done) else LEASE_EXPIRED)

    def _write(self, data: bytes) -> None:
        writer = self._process.pipes.get(RUN_FD)
        if writer is not None:
            writer.write(data)
