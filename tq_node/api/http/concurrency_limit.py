"""An adaptive limit of concurrent requests: as many as are answered in time (decision 0015).

The limit knows nothing of what is slow: the disk, a peer, the reactor, or another program. Admitted
requests share the same resources, so latency grows with concurrency. ``ConcurrencyLimit`` compares
the mean latency with a target: it admits fewer where the target is missed, and more where it is met
and requests were refused. It reads the clock where it refuses; latencies are reported to it.

Callers share a limit fairly (``FairShares``): who is below its share is admitted beyond the limit,
up to twice as much."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from tq_node import limits
from tq_node.api.http.fair_shares import FairShares
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


class LimitRange(msgspec.Struct, frozen=True, kw_only=True):
    """Between what a ``ConcurrencyLimit`` moves, in requests or in bytes."""

    overload: int
    """Takes the place of ``least`` in an overload (``OVERLOAD``)."""
    least: int
    """Admitted at any latency: with less, group commit has nothing to group."""
    first: int
    """At first, and again after an overload."""
    most: int
    unit: int = 1
    """As for ``FairShares``."""

    def __post_init__(self) -> None:
        assert 0 < self.overload <= self.least <= self.first <= self.most


class LatencyTarget(msgspec.Struct, frozen=True):
    """The mean latency that is still in time, in seconds."""

    first_s: float
    multiple: int = 0
    """Of the unloaded latency, once that is measured, within both bounds; 0: ``first_s`` stays."""
    least_s: float = 0.0
    most_s: float = 0.0


class ConcurrencyLimit:
    """Admits requests of one kind up to ``limit``, measured in requests or in bytes. A request that
    costs more than the whole limit is admitted while no other is in progress. ``caller`` is the
    name of a token, or an address where there is none."""

    __slots__ = (
        "_answered",
        "_backlogged",
        "_held",
        "_latency_sum_s",
        "_most_in_progress",
        "_now_s",
        "_only",
        "_refused",
        "_round_left",
        "_shares",
        "_target",
        "_unloaded_s",
        "admitted",
        "in_progress",
        "limit",
        "range",
        "target_s",
    )

    def __init__(
        self, limit_range: LimitRange, target: LatencyTarget, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.range = limit_range
        self.limit = limit_range.first
        self._target = target
        self.target_s = target.first_s
        self.in_progress = 0
        """Summed cost of the requests that are admitted and not answered."""
        self.admitted = 0
        """Number of requests admitted since the start."""
        self._unloaded_s = 0.0
        """Moving average of the unloaded latency; 0: not measured yet."""
        # One round of measurement answers a whole limit: each request of it began under that limit.
        self._round_left = limit_range.first
        self._answered = 0
        self._latency_sum_s = 0.0
        self._refused = 0
        self._shares = FairShares(limit_range.unit)
        self._most_in_progress = 2 * limit_range.first
        """With those that are below their shares."""
        self._held, self._backlogged = self._shares.held, self._shares.backlogged
        self._only: str | None = ""
        """Whose all in progress is, where nobody else has any and nobody is backlogged: it counts
        in ``in_progress`` alone. None: it counts by caller, in ``_held``."""
        self._now_s = now_s

    def has_room(self, caller: str, cost: int) -> bool:
        """Whether ``enter`` would admit a request of this cost now."""
        return self.in_progress + cost <= self.limit or not self.in_progress or self._may_exceed(caller, cost)

    def note_refused(self, caller: str, cost: int) -> None:
        """A request was refused because ``has_room`` was False."""
        self._count_by_caller()
        self._shares.refused(caller, cost, self._now_s())

    def enter(self, caller: str, cost: int = 1) -> int | None:
        """Admit a request; the ticket for ``leave``. None: it is refused, nothing to give back."""
        in_progress = self.in_progress + cost
        if in_progress > self.limit and self.in_progress and not self._may_exceed(caller, cost):
            self._refused += 1
            self._shares.refused(caller, cost, self._now_s())
            return None
        if caller != self._only:
            self._enter_beside(caller, cost)
        is_loaded = self.in_progress > UNLOADED_MAX
        self.in_progress = in_progress
        self.admitted += 1
        # A ticket is the count of admissions from which on others count as company.
        return self.admitted - UNLOADED_MAX - 1 if is_loaded else self.admitted

    def held(self) -> dict[str, int]:
        """Summed cost of the requests in progress, by caller."""
        if self._only is None:
            return dict(self._held)
        return {self._only: self.in_progress} if self.in_progress else {}

    def _enter_beside(self, caller: str, cost: int) -> None:
        """Note who enters, where it is not the only one."""
        if self._only is not None:
            if not self.in_progress:
                self._only = caller
                return
            self._count_by_caller()
        held = self._held
        held[caller] = held[caller] + cost if caller in held else cost
        if self._backlogged:
            self._shares.entered(caller, cost)

    def _count_by_caller(self) -> None:
        """From now on ``_held`` is kept."""
        if self._only is not None:
            if self.in_progress:
                self._held[self._only] = self.in_progress
            self._only = None

    def _leave_others(self, caller: str, cost: int) -> None:
        """Note who leaves, where ``_held`` is kept; ``in_progress`` no longer counts it."""
        held = self._held
        left = held[caller] - cost
        if left:
            held[caller] = left
        else:
            del held[caller]
        if self._backlogged:
            self._shares.left(caller)
        elif not held:
            self._only = caller

    def _may_exceed(self, caller: str, cost: int) -> bool:
        """Whether a caller below its share is admitted without room."""
        self._count_by_caller()
        limit, in_progress = self.limit, self.in_progress
        # Callers that all come for the first time share nothing yet, so this has a bound, too.
        is_bounded = in_progress <= limit or in_progress + cost <= self._most_in_progress
        return is_bounded and self._shares.is_below(caller, cost, limit)

    def leave(self, caller: str, ticket: int, latency_s: float, cost: int = 1) -> None:
        """A request is answered: its cost is free again, and its latency may move the limit."""
        self.in_progress -= cost
        if self._only is None:
            self._leave_others(caller, cost)
            if self._backlogged:
                self._shares.count(caller, cost, self.limit)
        is_unloaded = self.admitted - ticket <= UNLOADED_MAX
        if is_unloaded and not self._refused and self.limit >= self.range.least:
            self._measure_unloaded(latency_s)
        self._answered += 1
        self._latency_sum_s += latency_s
        self._round_left -= cost
        if self._round_left <= 0 or not self.in_progress:
            self._adjust()

    def abandon(self, caller: str, cost: int = 1) -> None:
        """A request ends without the work: refused for its content, or its client is gone. Its
        latency says nothing of the node's speed, so only its cost is given back."""
        self.in_progress -= cost
        if self._only is None:
            self._leave_others(caller, cost)

    def _measure_unloaded(self, latency_s: float) -> None:
        unloaded_s = self._unloaded_s
        unloaded_s = unloaded_s + (latency_s - unloaded_s) * _UNLOADED_WEIGHT if unloaded_s else latency_s
        self._unloaded_s = unloaded_s
        target = self._target
        if target.multiple:
            # Without min and max, of which each takes as long as the rest.
            wanted_s, least_s, most_s = unloaded_s * target.multiple, target.least_s, target.most_s
            self.target_s = least_s if wanted_s < least_s else most_s if wanted_s > most_s else wanted_s  # noqa: FURB136

    def _adjust(self) -> None:
        """Set the limit by the round that ends here, and begin the next round."""
        target_sum_s = self.target_s * self._answered
        if self._latency_sum_s > target_sum_s:
            floor = min(self.limit, self.range.least)
            if self._refused * OVERLOAD > self._answered:
                floor = self.range.overload
            # Twice the target latency halves the limit.
            shrink = min(max(target_sum_s / self._latency_sum_s, _SHRINK_LEAST), _SHRINK)
            self.limit = max(floor, int(self.limit * shrink))
        elif self._refused or self.limit < self.range.first:
            # After an overload the first limit comes back by itself, ready for a burst.
            self.limit = min(self.range.most, int(self.limit * _GROW) + 1)
        in_progress, least = self.in_progress, self.range.least
        most = 2 * self.limit
        if self._most_in_progress != most:
            # A limit that falls far at once leaves room above what is still in progress.
            falling = min(self._most_in_progress, in_progress + self.limit)
            self._most_in_progress = max(most, least, falling)
        # As above: with one in flight, a round is one request.
        self._round_left = in_progress if in_progress > least else least  # noqa: FURB136
        self._answered = self._refused = 0
        self._latency_sum_s = 0.0
        if self._only is None:
            self._look_who_is_there()

    def _look_who_is_there(self) -> None:
        """Stop counting by caller where only one is left."""
        if self._backlogged:
            self._shares.expire(self._now_s())
        if not self._backlogged and len(self._held) == 1:
            (self._only,) = self._held
            self._held.clear()


def submit_limit(now_s: Callable[[], float] = time.monotonic) -> ConcurrencyLimit:
    """Counts single submits."""
    return ConcurrencyLimit(
        LimitRange(
            overload=limits.SUBMITS_AT_ONCE_LEAST,
            least=limits.SUBMITS_AT_ONCE_MIN,
            first=limits.SUBMITS_AT_ONCE,
            most=limits.REQUESTS_IN_FLIGHT_MAX,
        ),
        LatencyTarget(
            limits.SUBMIT_WAIT_MS / 1000,
            limits.SUBMIT_WAIT_TIMES,
            limits.SUBMIT_WAIT_MS_MIN / 1000,
            limits.SUBMIT_WAIT_MS_MAX / 1000,
        ),
        now_s,
    )


def large_body_limit(now_s: Callable[[], float] = time.monotonic) -> ConcurrencyLimit:
    """Counts the bytes of bodies: of batches, and of single submits over ``LARGE_BODY_BYTES``."""
    return ConcurrencyLimit(
        LimitRange(
            overload=limits.LARGE_AT_ONCE_BYTES_LEAST,
            least=limits.LARGE_AT_ONCE_BYTES,
            first=limits.LARGE_AT_ONCE_BYTES,
            most=limits.LARGE_AT_ONCE_BYTES_MAX,
            unit=limits.LARGE_BODY_BYTES,
        ),
        LatencyTarget(limits.LARGE_WAIT_MS / 1000),
        now_s,
    )


def list_limit(now_s: Callable[[], float] = time.monotonic) -> ConcurrencyLimit:
    """Counts lists of up to ``LIST_LIMIT_DEFAULT`` tasks."""
    least = limits.READS_AT_ONCE
    return ConcurrencyLimit(
        LimitRange(overload=least, least=least, first=2 * least, most=limits.REQUESTS_IN_FLIGHT_MAX),
        LatencyTarget(limits.READ_WAIT_MS / 1000),
        now_s,
    )


def long_list_limit(now_s: Callable[[], float] = time.monotonic) -> ConcurrencyLimit:
    """Counts the tasks that longer lists ask for."""
    least, first = limits.LIST_LIMIT_MAX, limits.LONG_READ_ROWS_AT_ONCE
    return ConcurrencyLimit(
        LimitRange(overload=least, least=least, first=first, most=4 * first, unit=limits.LIST_LIMIT_MAX),
        LatencyTarget(limits.READ_WAIT_MS / 1000),
        now_s,
    )
