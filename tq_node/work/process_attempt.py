"""An attempt of a ``def`` handler: it waits for a worker process, then runs in it."""

from __future__ import annotations

from typing import Protocol

from tq_node.facade import Claim, Outcome
from tq_node.types import LogLine
from tq_node.work import protocol
from tq_node.work.attempt import CANCEL_GRACE_S, CANCELLED, Attempt, Host
from tq_node.work.handlers import Handler
from tq_node.work.process import WorkerProcess
from tq_node.work.progress_buffer import bounded_line


class Pool(Protocol):
    """What a ``ProcessAttempt`` asks of the pool."""

    def submit(self, attempt: ProcessAttempt) -> None:
        """Queue the attempt for a process."""

    def put_back(self, attempt: ProcessAttempt) -> None:
        """Queue the attempt again, in front of all others."""

    def withdraw(self, attempt: ProcessAttempt) -> None:
        """Remove the attempt from the queue."""


class ProcessAttempt(Attempt):
    """Waits in the pool without a process; with one it runs there, or lies ready behind another."""

    __slots__ = ("_has_started", "_lease_sent", "_pool", "_process")

    def __init__(self, host: Host, claim: Claim, handler: Handler, lease_until: float, pool: Pool) -> None:
        super().__init__(host, claim, handler, lease_until)
        self._pool = pool
        self._process: WorkerProcess | None = None
        self._has_started = False
        self._lease_sent = 0.0

    @property
    def waits(self) -> bool:
        """Not known to run. What lies ready in a process may have begun already."""
        return not self._has_started and not self.ended

    def start(self) -> None:
        self._pool.submit(self)

    def assign(self, process: WorkerProcess) -> bool:
        """Send it to ``process``, to run next or behind others. False: that can't take it now."""
        claim = self.claim
        run = protocol.Run(
            process.next_serial(),
            claim.task_id,
            claim.task_type,
            claim.payload,
            claim.attempt,
            claim.token.epoch,
            claim.token.sequence,
            None if claim.timeout_ms is None else claim.timeout_ms / 1000,
            self.lease_until,
            process.last_printed_serial,
            claim.queue,
            claim.max_attempts,
            claim.failures,
            claim.created_us,
            claim.tags,
        )
        self._process = process
        self._lease_sent = self.lease_until
        if process.send_task(self, run):
            return True
        self._process = None
        return False

    def stop(self) -> None:
        if self.ended or self._forced is not None:
            return
        if self._ended_meanwhile():
            return
        if self._process is None:
            self.abort(CANCELLED)
        else:
            self._process.cancel()
            self._set_timer(self._host.clock.callLater(CANCEL_GRACE_S, self._grace_expired))

    def abort(self, outcome: Outcome) -> None:
        self._expire(outcome)

    def renew(self, lease_until: float) -> None:
        super().renew(lease_until)
        # An attempt that lies ready is renewed when it begins.
        if self._process is not None and self._has_started:
            self._lease_sent = lease_until
            self._process.renew(lease_until)

    def _grace_expired(self) -> None:
        self._timer = None
        self._expire(CANCELLED)

    def _ended_meanwhile(self) -> bool:
        """Whether it has ended; unknown behind other tasks until the queued are taken back."""
        if self._process is not None and self._process.load > 1:
            self._process.take_back_queued()
        return self.ended

    def _expire(self, outcome: Outcome) -> None:
        """Kill its process. It ends once that is dead, so that no other attempt overlaps it."""
        if self.ended or self._forced is not None:
            return
        if self._ended_meanwhile():
            return
        self._forced = outcome
        self._set_timer(None)
        if self._process is None:
            self._pool.withdraw(self)
            self._end(outcome)
        else:
            self._process.kill(outcome)

    # --- AssignedAttempt ---
    def started(self) -> None:
        """It runs now, or is about to: the timeout counts from here."""
        self._has_started = True
        self._begin_timeout()
        if self._process is not None and self._lease_sent < self.lease_until:
            self.renew(self.lease_until)

    def notes_received(self, said: protocol.Said) -> None:
        lines = [LogLine(line.at_us, bounded_line(line.line)) for line in said.lines]
        self.progress_buffer.add(lines, progress=said.progress, dropped=said.dropped)

    def output_received(self, lines: list[str]) -> None:
        for line in lines:
            self.progress_buffer.add_line(line)

    def reported(self, outcome: Outcome) -> None:
        self._process = None
        self._end(outcome)

    def returned(self) -> None:
        self._process = None
        self._has_started = False
        self._set_timer(None)
        if self._forced is not None:
            self._end(self._forced)
        else:
            self._pool.put_back(self)

    def process_died(self, outcome: Outcome) -> None:
        self._process = None
        self._end(outcome)
