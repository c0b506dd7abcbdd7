"""Decides how many claims to prefetch: for the node beyond its slots, and for each worker process
beyond the running task.

A claim costs a commit, which many claims share. Where tasks are shorter than a commit, a slot that
claims only once it is free is idle most of the time; so claims are held for about as long as the
next ones take. Where tasks are long nothing is gained, and a free slot of another node could run
them: nothing is held."""

from __future__ import annotations

from tq_node import limits

_WEIGHT = 1 / 8
"""Weight of the latest claim in the moving average of their durations."""
_WEIGHT_LONG = 1 / 32
_WEIGHT_SHORT = 1 / 64
"""Weights in the moving average of longer and shorter tasks; others wait behind long ones."""
_TASKS_MIN = 16
"""This many tasks are measured before anything is prefetched."""
_HORIZON_S = limits.CLAIMS_AHEAD_WAIT_MS / 1000 / 2
"""Longest holding of claims, however long a commit takes: half of their wait until released."""


class Prefetch:
    """Computes both depths from measured durations. Pure: no clock. ``slots``: worker processes."""

    def __init__(self, slots: int) -> None:
        self.claims = 0
        """How many claims may be held beyond the slots."""
        self.depth = 0
        """How many tasks may wait in one worker process behind the running one."""
        self._slots = slots
        self._tasks = 0
        self._task_s = 0.0
        self._commit_s = 0.0

    def task_took(self, seconds: float) -> None:
        """A task ran for so long, or is running for so long already."""
        self._tasks += 1
        weight = 1 if self._tasks == 1 else _WEIGHT_SHORT if seconds < self._task_s else _WEIGHT_LONG
        self._task_s += (seconds - self._task_s) * weight
        self._weigh()

    def claim_took(self, seconds: float) -> None:
        """A claim took so long from call to answer."""
        self._commit_s += (seconds - self._commit_s) * (_WEIGHT if self._commit_s else 1)

    def stop(self) -> None:
        """Prefetch nothing until enough tasks are measured again: what was held waited too long,
        or is not for processes."""
        self._tasks = 0
        self.claims = self.depth = 0

    def _weigh(self) -> None:
        horizon_s = min(self._commit_s, _HORIZON_S)
        task_s = max(self._task_s, 1e-6)
        if self._tasks < _TASKS_MIN or task_s >= horizon_s:
            self.claims = self.depth = 0
            return
        self.claims = min(limits.CLAIMS_AHEAD_MAX, int(self._slots * horizon_s / task_s))
        self.depth = min(limits.CHILD_AHEAD_MAX, int(limits.CHILD_AHEAD_MS / 1000 / task_s))
