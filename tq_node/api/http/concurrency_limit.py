"""An adaptive limit of concurrent requests: as many as are answered in time (decision 0015).

The limit knows nothing of what is slow: the disk, a peer, the reactor, or another program. Admitted
requests share the same resources, so latency grows with concurrency. ``ConcurrencyLimit`` compares
the mean latency with a target: it admits fewer where the target is missed, and more where it is met
and requests were refused. It reads no clock: the caller reports the latency of each request.
"""

from __future__ import annotations

from tq_node import limits
from tq_node.errors import Busy

TOO_MANY = Busy("the node works on as many tasks as it can take in time")
TOO_LARGE = Busy("the node works on as many bytes of tasks as it can take in time")
TOO_MANY_READS = Busy("the node works on as many lists as it can make in time")
UNLOADED_MAX = 4
"""A request among at most this many others has the latency of an idle node."""
OVERLOAD = 4
"""Overload, and no burst: more than one request is refused for this many that are answered."""
_SHRINK = 0.75
_SHRINK_LEAST = 0.25
_GROW = 1.25
_UNLOADED_WEIGHT = 1 / 16


class ConcurrencyLimit:
    """Admits requests of one kind up to ``limit``, measured in requests or in bytes.

    A request that costs more than the whole limit is admitted while no other is in progress.

    :param limit: at first, and again after an overload.
    :param limit_min: admitted at any latency: with less, group commit has nothing to group.
    :param limit_overload: takes the place of ``limit_min`` in an overload (``OVERLOAD``).
    :param target_s: the mean latency that is still in time, in seconds.
    :param target_multiple: the target as a multiple of the unloaded latency, once that is measured,
        within ``target_s_min`` and ``target_s_max``; 0: ``target_s`` stays.
    """

    __slots__ = (
        "_answered",
        "_latency_sum_s",
        "_limit_first",
        "_refused",
        "_round_left",
        "_target_multiple",
        "_target_s_max",
        "_target_s_min",
        "_unloaded_s",
        "admitted",
        "in_progress",
        "limit",
        "limit_max",
        "limit_min",
        "limit_overload",
        "target_s",
    )

    def __init__(
        self,
        *,
        limit_min: int,
        limit_overload: int,
        limit: int,
        limit_max: int,
        target_s: float,
        target_multiple: int = 0,
        target_s_min: float = 0.0,
        target_s_max: float = 0.0,
    ) -> None:
        assert 0 < limit_overload <= limit_min <= limit <= limit_max
        self.limit_overload, self.limit_min = limit_overload, limit_min
        self.limit, self.limit_max = limit, limit_max
        self._limit_first = limit
        self.target_s = target_s
        self.in_progress = 0
        """Summed cost of the requests that are admitted and not answered."""
        self.admitted = 0
        """Number of requests admitted since the start."""
        self._target_multiple = target_multiple
        self._unloaded_s = 0.0
        """Moving average of the unloaded latency; 0: not measured yet."""
        self._target_s_min, self._target_s_max = target_s_min, target_s_max
        # One round of measurement answers a whole limit: each request of it began under that limit.
        self._round_left = limit
        self._answered = 0
        self._latency_sum_s = 0.0
        self._refused = 0

    def has_room(self, cost: int) -> bool:
        """Whether ``enter`` would admit a request of this cost now."""
        return self.in_progress + cost <= self.limit or not self.in_progress

    def enter(self, cost: int = 1) -> int | None:
        """Admit a request.

        :returns: its ticket for ``leave``; None: refused, and nothing is to be given back.
        """
        in_progress = self.in_progress + cost
        if in_progress > self.limit and self.in_progress:
            self._refused += 1
            return None
        is_loaded = self.in_progress > UNLOADED_MAX
        self.in_progress = in_progress
        self.admitted += 1
        # A ticket is the count of admissions from which on others count as company.
        return self.admitted - UNLOADED_MAX - 1 if is_loaded else self.admitted

    def leave(self, ticket: int, latency_s: float, cost: int = 1) -> None:
        """A request is answered: its cost is free again, and its latency may move the limit."""
        self.in_progress -= cost
        is_unloaded = self.admitted - ticket <= UNLOADED_MAX
        if is_unloaded and not self._refused and self.limit >= self.limit_min:
            self._measure_unloaded(latency_s)
        self._answered += 1
        self._latency_sum_s += latency_s
        self._round_left -= cost
        if self._round_left <= 0 or not self.in_progress:
            self._adjust()

    def abandon(self, cost: int = 1) -> None:
        """A request ends without the work: refused for its content, or its client is gone.

        Its latency says nothing of the node's speed, so only its cost is given back.
        """
        self.in_progress -= cost

    def _measure_unloaded(self, latency_s: float) -> None:
        if self._unloaded_s:
            self._unloaded_s += (latency_s - self._unloaded_s) * _UNLOADED_WEIGHT
        else:
            self._unloaded_s = latency_s
        if self._target_multiple:
            target_s = self._unloaded_s * self._target_multiple
            self.target_s = min(max(target_s, self._target_s_min), self._target_s_max)

    def _adjust(self) -> None:
        """Set the limit by the round that ends here, and begin the next round."""
        target_sum_s = self.target_s * self._answered
        if self._latency_sum_s > target_sum_s:
            floor = min(self.limit, self.limit_min)
            if self._refused * OVERLOAD > self._answered:
                floor = self.limit_overload
            # Twice the target latency halves the limit.
            shrink = min(max(target_sum_s / self._latency_sum_s, _SHRINK_LEAST), _SHRINK)
            self.limit = max(floor, int(self.limit * shrink))
        elif self._refused or self.limit < self._limit_first:
            # After an overload the first limit comes back by itself, ready for a burst.
            self.limit = min(self.limit_max, int(self.limit * _GROW) + 1)
        self._round_left = max(self.in_progress, self.limit_min)
        self._answered = self._refused = 0
        self._latency_sum_s = 0.0


def submit_limit() -> ConcurrencyLimit:
    """Counts single submits."""
    return ConcurrencyLimit(
        limit_min=limits.SUBMITS_AT_ONCE_MIN,
        limit_overload=limits.SUBMITS_AT_ONCE_LEAST,
        limit=limits.SUBMITS_AT_ONCE,
        limit_max=limits.REQUESTS_IN_FLIGHT_MAX,
        target_s=limits.SUBMIT_WAIT_MS / 1000,
        target_multiple=limits.SUBMIT_WAIT_TIMES,
        target_s_min=limits.SUBMIT_WAIT_MS_MIN / 1000,
        target_s_max=limits.SUBMIT_WAIT_MS_MAX / 1000,
    )


def large_body_limit() -> ConcurrencyLimit:
    """Counts the bytes of bodies: of batches, and of single submits over ``LARGE_BODY_BYTES``."""
    return ConcurrencyLimit(
        limit_min=limits.LARGE_AT_ONCE_BYTES,
        limit_overload=limits.LARGE_AT_ONCE_BYTES_LEAST,
        limit=limits.LARGE_AT_ONCE_BYTES,
        limit_max=limits.LARGE_AT_ONCE_BYTES_MAX,
        target_s=limits.LARGE_WAIT_MS / 1000,
    )


def list_limit() -> ConcurrencyLimit:
    """Counts lists of up to ``LIST_LIMIT_DEFAULT`` tasks."""
    return ConcurrencyLimit(
        limit_min=limits.READS_AT_ONCE,
        limit_overload=limits.READS_AT_ONCE,
        limit=2 * limits.READS_AT_ONCE,
        limit_max=limits.REQUESTS_IN_FLIGHT_MAX,
        target_s=limits.READ_WAIT_MS / 1000,
    )


def long_list_limit() -> ConcurrencyLimit:
    """Counts the tasks that longer lists ask for."""
    return ConcurrencyLimit(
        limit_min=limits.LIST_LIMIT_MAX,
        limit_overload=limits.LIST_LIMIT_MAX,
        limit=limits.LONG_READ_ROWS_AT_ONCE,
        limit_max=4 * limits.LONG_READ_ROWS_AT_ONCE,
        target_s=limits.READ_WAIT_MS / 1000,
    )
