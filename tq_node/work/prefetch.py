"""How many claims a node may hold beyond its slots, and how many tasks a worker process.

A claim costs a commit, which many claims share. Where a task is done in less than that, a slot that asks only once it is free
stands idle for most of the time; so claims are held ready for about as long as the next ones take. Where tasks are long nothing
is gained, and another node with a free slot could run what waits here: nothing is held.
"""

from __future__ import annotations

from tq_node import limits

_WEIGHT = 1 / 8
"""Of the latest commit in their mean."""
_WEIGHT_LONG = 1 / 32
_WEIGHT_SHORT = 1 / 64
"""Of a task that is longer, or shorter, than their mean: where some are long less is held, for it waits behind those."""
_TASKS_MIN = 16
"""So many tasks are seen before anything is taken ahead."""
_HORIZON_S = limits.CLAIMS_AHEAD_WAIT_MS / 1000 / 2
"""Held for at most so long, however long a commit takes: half of what a claim may wait before it is given back."""


class Prefetch:
    """Pure: is told what was measured, has no clock.

    :param slots: worker processes at most.
    """

    def __init__(self, slots: int) -> None:
        self.claims = 0
        """How many may be held beyond the slots."""
        self.depth = 0
        """How many may wait in one worker process behind the one that runs."""
        self._slots = slots
        self._tasks = 0
        self._task_s = 0.0
        self._commit_s = 0.0

    def took(self, seconds: float) -> None:
        """A task took so long in its process, or has taken so long already."""
        self._tasks += 1
        weight = 1 if self._tasks == 1 else _WEIGHT_SHORT if seconds < self._task_s else _WEIGHT_LONG
        self._task_s += (seconds - self._task_s) * weight
        self._weigh()

    def committed(self, seconds: float) -> None:
        """So much later than they were asked for there were claims."""
        self._commit_s += (seconds - self._commit_s) * (_WEIGHT if self._commit_s else 1)

    def stop(self) -> None:
        """What was held had to wait for too long, or is not for worker processes: begin again."""
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
