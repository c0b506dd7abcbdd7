"""An attempt: one claim being run. What attempts in processes and in the node share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tq_node import limits
from tq_node.facade import AttemptFailed, Claim, Lost, Notes, Outcome, Released
from tq_node.work.handlers import Handler
from tq_node.work.progress_buffer import ProgressBuffer
from tq_node.work.results import make_error

CANCEL_GRACE_S = limits.CANCEL_GRACE_MS / 1000
NOTE_INTERVAL_S = limits.NOTE_INTERVAL_MS / 1000


def failed(error_type: str, message: str, *, final: bool = False) -> AttemptFailed:
    return AttemptFailed(make_error(error_type, message), final=final)


CANCELLED = failed("cancelled", "the attempt was stopped: it no longer holds its task")
LEASE_EXPIRED = Lost()
"""The lease could not be extended in time."""


class Host(Protocol):
    """What an attempt needs of the service that runs it."""

    @property
    def clock(self) -> IReactorTime: ...

    def note(self, attempt: Attempt, notes: Notes) -> None:
        """Send the notes to the queue; the host clears ``note_in_flight`` once they arrived."""

    def ended(self, attempt: Attempt, outcome: Outcome, notes: Notes | None) -> None:
        """The handler has stopped running. Called exactly once for each attempt."""


class Attempt(ABC):
    """Runs one claim; ends once, by ``_end``. ``_forced``: outcome decided against the handler."""

    __slots__ = (
        "_forced",
        "_host",
        "_note_timer",
        "_timer",
        "claim",
        "claimed_at",
        "ended",
        "handler",
        "lease_until",
        "note_in_flight",
        "progress_buffer",
    )  # fmt: skip

    def __init__(self, host: Host, claim: Claim, handler: Handler, lease_until: float) -> None:
        self.claim = claim
        self.handler = handler
        self.lease_until = lease_until
        """CLOCK_MONOTONIC, as is ``claimed_at``."""
        self.claimed_at = 0.0
        self.progress_buffer = ProgressBuffer(self._noted)
        self.note_in_flight = False
        self.ended = False
        self._host = host
        self._forced: Outcome | None = None
        self._timer: IDelayedCall | None = None
        """The attempt's timeout; after ``stop``, the end of the grace period."""
        self._note_timer: IDelayedCall | None = None

    @abstractmethod
    def start(self) -> None:
        """Begin to run. The attempt may end before this returns."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the handler to stop; it is killed ``limits.CANCEL_GRACE_MS`` later."""

    @abstractmethod
    def abort(self, outcome: Outcome) -> None:
        """Kill the handler now; ``outcome`` counts, whatever it still reports."""

    def release(self) -> None:
        """Give the task back without a failed attempt: the node stops, or others may run it."""
        self.abort(Released())

    def renew(self, lease_until: float) -> None:
        """The lease was extended to this CLOCK_MONOTONIC time."""
        self.lease_until = lease_until

    def lease_expired(self) -> None:
        """The lease was not extended in time: kill the handler."""
        self._expire(LEASE_EXPIRED)

    def _begin_timeout(self) -> float | None:
        """Start the timeout. Returns the handler's deadline in POSIX time, None without one."""
        timeout_ms = self.claim.timeout_ms
        if timeout_ms is None:
            return None
        self._timer = self._host.clock.callLater(timeout_ms / 1000, self._timed_out)
        return time.time() + timeout_ms / 1000

    def _timed_out(self) -> None:
        self._timer = None
        timeout_s = (self.claim.timeout_ms or 0) / 1000
        self._expire(failed("timeout", f"the attempt ran longer than its timeout of {timeout_s:g} s"))

    @abstractmethod
    def _expire(self, outcome: Outcome) -> None:
        """End the handler with ``outcome``: timeout, lost lease or cancel."""

    def _set_timer(self, timer: IDelayedCall | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _noted(self) -> None:
        # The first note waits too: a task that ends within the interval costs no extra commit.
        if self._note_timer is None and not self.ended:
            self._note_timer = self._host.clock.callLater(NOTE_INTERVAL_S, self._flush)

    def _flush(self) -> None:
        self._note_timer = None
        if self.note_in_flight:
            self._noted()
            return
        notes = self._take_notes()
        if notes is not None:
            self.note_in_flight = True
            self._host.note(self, notes)

    def _take_notes(self) -> Notes | None:
        noted = self.progress_buffer.take()
        return None if noted is None else Notes(noted.progress, noted.lines, noted.dropped)

    def _end(self, outcome: Outcome) -> None:
        if self.ended:
            return
        self.ended = True
        self.progress_buffer.detach()
        if self._timer is not None:
            self._set_timer(None)
        if self._note_timer is not None:
            self._note_timer.cancel()
            self._note_timer = None
        self._host.ended(self, outcome if self._forced is None else self._forced, self._take_notes())


class SharedAttempt(Attempt):
    """An attempt among many in one process: its slot is counted, for no process stands for it."""

    __slots__ = ("has_slot",)

    def __init__(self, host: Host, claim: Claim, handler: Handler, lease_until: float) -> None:
        super().__init__(host, claim, handler, lease_until)
        self.has_slot = False
        """Whether it occupies a slot; set by the host."""
