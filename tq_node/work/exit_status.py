"""What the end of a worker process says."""

from __future__ import annotations

import signal

from twisted.internet.error import ProcessTerminated
from twisted.python.failure import Failure

from tq_node.facade import Outcome
from tq_node.work.attempt import LEASE_EXPIRED, failed


def ending(pid: int, reason: Failure) -> str:
    """How a worker process ended, in words."""
    error = reason.value
    if isinstance(error, ProcessTerminated) and error.signal is not None:
        try:
            name = signal.Signals(error.signal).name
        except ValueError:
            name = f"signal {error.signal}"
        return f"worker process {pid} was killed by {name}"
    return f"worker process {pid} exited with code {getattr(error, 'exitCode', 0) or 0}"


def outcome_of(why: str, reason: Failure) -> Outcome:
    """What that means for the attempt which ran in it."""
    if getattr(reason.value, "signal", None) == signal.SIGALRM:
        return LEASE_EXPIRED
    return failed("worker_died", why)
