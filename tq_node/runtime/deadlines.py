"""Keys with a deadline each, looked at in steps: many cost no more than those that come due."""

from __future__ import annotations

from typing import Generic, TypeVar

from tq_node import limits

K = TypeVar("K")
_STEP_MS = int(limits.WORKER_LOOK_S * 1000)


class Deadlines(Generic[K]):
    """Times are monotonic milliseconds. A key comes due up to one step late, and never early."""

    def __init__(self) -> None:
        self._step_of: dict[K, int] = {}
        self._steps: dict[int, dict[K, None]] = {}
        """Keys by step; as many steps as the longest deadline has."""

    def __len__(self) -> int:
        return len(self._step_of)

    def set(self, key: K, at_ms: int) -> None:
        """Let the key come due at this time, and at no other."""
        self.discard(key)
        step = self._step_of[key] = -(-at_ms // _STEP_MS)
        self._steps.setdefault(step, {})[key] = None

    def discard(self, key: K) -> None:
        """Let the key not come due."""
        step = self._step_of.pop(key, None)
        if step is not None:
            keys = self._steps[step]
            del keys[key]
            if not keys:
                del self._steps[step]

    def pop_due(self, now_ms: int) -> list[K]:
        """Remove the keys whose time has come, the earliest first."""
        now = now_ms // _STEP_MS
        due = [key for step in sorted(step for step in self._steps if step <= now) for key in self._steps.pop(step)]
        for key in due:
            del self._step_of[key]
        return due
