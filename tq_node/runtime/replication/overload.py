"""Whether a node should take less: new work is refused (``Admission``, F46), or others lead
(``DiskHealth``, F12).

No clock and no IO: both are told what happens and when."""

from __future__ import annotations

from tq_node import limits


class Admission:
    """Decides whether a primary takes more work, by the bytes that wait for disks and peers and how
    long they have. The HTTP server limits what each node admits; this is for what all nodes forward
    to one primary at once."""

    __slots__ = ("is_late",)

    def __init__(self) -> None:
        self.is_late = False

    def waited(self, ms: int) -> None:
        """Note how long the oldest caller has waited for a commit, each tick; 0: nobody waits."""
        self.is_late = ms > limits.UNCOMMITTED_MS_MAX

    def is_full(self, uncommitted_bytes: int, *, is_large: bool) -> bool:
        """Return whether to refuse new work.

        :param uncommitted_bytes: of entries that are proposed and not durable on all replicas.
        :param is_large: a batch, or a long payload. One small task is taken although others wait
            for long: it adds next to nothing, and is not what they wait for."""
        if is_large and self.is_late and uncommitted_bytes > limits.UNCOMMITTED_BYTES_FREE:
            return True
        return uncommitted_bytes > limits.UNCOMMITTED_BYTES_MAX


class DiskHealth:
    """Judges whether this node's disk is so slow that others should lead (F12). All times are
    monotonic ms.

    Replicas may be fast and acknowledge in time: only the primary's own sync holds up everything
    that it leads, and no other node can see that. So each node measures itself, and says so with
    its heartbeat.

    A disk is slow once every commit has taken ``COMMIT_SLOW_MS`` or longer for ``DISK_SLOW_MS``; it
    is well again after none did for ``DISK_WELL_MS``. A disk that nobody writes to stays what it
    was."""

    def __init__(self) -> None:
        self.is_slow = False
        self._began_ms: int | None = None
        self._worst_ms: int | None = None
        """The longest of the commits that ended since the last look; None: there was none."""
        self._since_ms: int | None = None
        """Since when each look has contradicted ``is_slow``."""

    def began(self, now_ms: int) -> None:
        self._began_ms = now_ms

    def ended(self, now_ms: int) -> None:
        if self._began_ms is not None:
            self._worst_ms = max(self._worst_ms or 0, now_ms - self._began_ms)
            self._began_ms = None

    def look(self, now_ms: int) -> bool:
        """Judge anew; called once a second. Returns whether ``is_slow`` has changed."""
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
        """Return how long commits took since the last look; None: nothing can be said."""
        if self._began_ms is not None and now_ms - self._began_ms >= limits.COMMIT_SLOW_MS:
            return now_ms - self._began_ms
        return self._worst_ms
