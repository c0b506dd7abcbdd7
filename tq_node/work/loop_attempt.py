"""An attempt of an ``asyncio`` handler: it waits for a process with an event loop, then runs there
beside others."""

from __future__ import annotations

from typing import Protocol

from tq_node.facade import Claim, Outcome
from tq_node.types import LogLine
from tq_node.work import protocol
from tq_node.work.attempt import CANCEL_GRACE_S, CANCELLED, Host, SharedAttempt
from tq_node.work.handlers import Handler
from tq_node.work.loop_process import LoopProcess
from tq_node.work.progress_buffer import bounded_line


class Loops(Protocol):
    """The pool, as a ``LoopAttempt`` uses it."""

    def submit(self, attempt: LoopAttempt) -> None:
        """Queue the attempt for a process."""

    def withdraw(self, attempt: LoopAttempt) -> None:
        """Remove the attempt from the queue."""


class LoopAttempt(SharedAttempt):
    """Cancelled by CancelledError; a handler that does not end then costs its process."""

    __slots__ = ("_loops", "_process", "_serial")

    def __init__(self, host: Host, claim: Claim, handler: Handler, lease_until: float, loops: Loops) -> None:
        super().__init__(host, claim, handler, lease_until)
        self._loops = loops
        self._process: LoopProcess | None = None
        self._serial = 0

    def start(self) -> None:
        self._loops.submit(self)

    def assign(self, process: LoopProcess) -> None:
        """Begin in this process; the timeout counts from here."""
        claim = self.claim
        self._process, self._serial = process, process.next_serial()
        self._begin_timeout()
        process.send(
            self,
            protocol.Run(
                self._serial,
                claim.task_id,
                claim.task_type,
                claim.payload,
                claim.attempt,
                claim.token.epoch,
                claim.token.sequence,
                None if claim.timeout_ms is None else claim.timeout_ms / 1000,
                self.lease_until,
                0,
                claim.queue,
                claim.max_attempts,
                claim.failures,
                claim.created_us,
                claim.tags,
            ),
        )

    def stop(self) -> None:
        self._expire(CANCELLED)

    def abort(self, outcome: Outcome) -> None:
        """End the handler now. What runs beside it in its process is not to suffer, so it is
        cancelled like any other, and the process is killed only if it does not end then."""
        self._expire(outcome)

    def renew(self, lease_until: float) -> None:
        super().renew(lease_until)
        if self._process is not None and self._forced is None:
            self._process.renew(self._serial, lease_until)

    def _expire(self, outcome: Outcome) -> None:
        """Cancel the handler; it has ``limits.CANCEL_GRACE_MS`` to end."""
        if self.ended or self._forced is not None:
            return
        self._forced = outcome
        if self._process is None:
            self._loops.withdraw(self)
            self._end(outcome)
            return
        self._set_timer(self._host.clock.callLater(CANCEL_GRACE_S, self._grace_expired))
        self._process.cancel(self._serial)

    def _grace_expired(self) -> None:
        self._timer = None
        if self._process is not None:
            self._process.kill(f"the handler of {self.claim.task_id} did not end when cancelled", self, self._forced)

    # --- LoopedAttempt ---
    def notes_received(self, said: protocol.Said) -> None:
        lines = [LogLine(line.at_us, bounded_line(line.line)) for line in said.lines]
        self.progress_buffer.add(lines, progress=said.progress, dropped=said.dropped)

    def reported(self, outcome: Outcome) -> None:
        self._process = None
        self._end(outcome)

    def process_died(self, outcome: Outcome) -> None:
        self._process = None
        self._end(outcome)
