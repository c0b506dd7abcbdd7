"""F12: is this node's disk so slow that others should lead?

Its replicas may be fast, and all acknowledge in time; only the primary's own sync holds up everything that it leads. Nobody
else can see that, so each node measures itself, and says so with its heartbeat (``Health.may_lead``).
"""

from __future__ import annotations

from tq_node import limits


class DiskHealth:
    """Told of the store's commits, one at a time, and looked at once a second. All times are monotonic ms.

    Slow is a disk whose every commit takes ``COMMIT_SLOW_MS`` or longer, for ``DISK_SLOW_MS``; it is well again after none did
    for ``DISK_WELL_MS``. A disk that nobody writes to stays what it was.
    """

    def __init__(self) -> None:
        self.is_slow = False
        self._began_ms: int | None = None
        self._worst_ms: int | None = None
        """Of the commits that ended since the last look."""
        self._since_ms: int | None = None
        """Since when each look has spoken against ``is_slow``."""

    def began(self, now_ms: int) -> None:
        self._began_ms = now_ms

    def ended(self, now_ms: int) -> None:
        if self._began_ms is not None:
            self._worst_ms = max(self._worst_ms or 0, now_ms - self._began_ms)
            self._began_ms = None

    def look(self, now_ms: int) -> bool:
        """Whether ``is_slow`` has changed."""
        took_ms = self._took_ms(now_ms)
        self._worst_ms = None
        if took_ms is None:
            return False
        if (took_ms >= limits.COMMIT_SLOW_MS) is self.is_slow:
            self._since_ms = None
            return False
        if self._since_ms is None:
            self._since_ms = now_ms
        if now_ms - self._since_ms < (limits.DISK_WELL_MS if self.is_slow else limits.DISK_SLOW_MS):
            return False
        self.is_slow = not self.is_slow
        self._since_ms = None
        return True

    def _took_ms(self, now_ms: int) -> int | None:
        """None: a commit that has only just begun says nothing yet."""
        if self._began_ms is not None and now_ms - self._began_ms >= limits.COMMIT_SLOW_MS:
            return now_ms - self._began_ms
        return self._worst_ms
