"""The lock that proves that no worker process of an earlier run lives; the renewal of leases."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from twisted.logger import Logger

from tq_node.facade import Claim
from tq_node.work.attempt import Attempt

_log = Logger()


class WorkersLock:
    """``workers.lock`` in the data directory: held (shared) by the node and, by inheritance, by
    each worker process. The lock lives as long as any process holds the descriptor, so it outlives
    a node that was killed for exactly as long as one of its worker processes does."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """:raises OSError: the file can't be opened."""
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @property
    def fd(self) -> int:
        """The descriptor that worker processes inherit."""
        return self._fd

    def prove_alone(self) -> bool:
        """Whether no process of another incarnation holds the lock; it is held (shared) from here
        on either way. To be called again until True; raises ``OSError`` if the disk can't lock."""
        alone = self._lock(fcntl.LOCK_EX)
        # Down to shared is no proof for a second node: it asks for the exclusive one, and fails.
        self._lock(fcntl.LOCK_SH)
        return alone

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except OSError as why:
            if why.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True


def renew_leases(
    attempts: Iterable[Attempt], lease_ms: Callable[[Claim], int], monotonic: Callable[[], float] = time.monotonic
) -> None:
    """Extend each attempt's lease by what the queue grants now. One that is granted nothing keeps
    what it has, and ends once that is over. The time is read before the question, so that a lease
    is never counted from later than it was given."""
    for attempt in attempts:
        claim = attempt.claim
        now = monotonic()
        granted_ms = 0
        # One attempt without an answer must not cost the others their leases.
        with _log.failuresHandled("no lease for {task_id}", task_id=claim.task_id, event="lease_failed"):
            granted_ms = lease_ms(claim)
        if granted_ms > 0:
            attempt.renew(now + granted_ms / 1000)
        elif monotonic() >= attempt.lease_until:
            attempt.lease_expired()
