"""Fair shares of a concurrency limit: with N callers each gets 1/N of what is admitted.

``FairShares`` refuses nobody. Where the limit has no room it tells whether the caller is below its
share, to be admitted all the same. The share is ``limit / N`` in progress; the N have something in
progress or are *backlogged*: were refused lately. Room that the others leave is anybody's.

Requests can't be divided, and who comes again at once would take each place that is left. So what
is finished for backlogged callers is counted in *virtual time*, which rises by 1/N of it. Who is
ahead of it may have less in progress, who lags behind may have more: start-time fair queueing,
without a queue. Pure: no clock, no network."""

from __future__ import annotations

from tq_node import limits


class Share:
    """What one caller has of a limit."""

    __slots__ = ("finished", "held", "refused_s", "wanted")

    def __init__(self, finished: float) -> None:
        self.held = 0
        """Summed cost of its requests in progress."""
        self.finished = finished
        """Summed cost of its finished requests, on the scale of the virtual time."""
        self.refused_s: float | None = None
        """When it was refused last; None: it is not backlogged."""
        self.wanted = 0
        """Cost of the request that was refused last."""


class FairShares:
    """The shares of all callers of one limit. Whoever owns the limit keeps ``held`` and
    ``present``.

    :param unit: a caller not seen of late is below its share with so much, whatever ``N``."""

    __slots__ = ("_uncounted", "_unit", "backlogged", "of", "present", "virtual_time")

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self.of: dict[str, Share] = {}
        """By caller: of all that hold something or are backlogged, and of some others."""
        self.present = 0
        """Callers that hold something or are backlogged."""
        self.virtual_time = 0.0
        self.backlogged: dict[Share, None] = {}
        """Who was refused longest ago stands first. While there is any, what is finished has to be
        counted."""
        self._uncounted = 0
        """Requests finished since it was looked who lags too far behind."""

    def add(self, caller: str) -> Share:
        """The share of a caller that has none yet."""
        if len(self.of) >= limits.FAIR_CALLERS_MAX:
            self._forget_absent()
        share = self.of[caller] = Share(self.virtual_time - self._unit)
        return share

    def is_below(self, share: Share, cost: int, limit: int) -> bool:
        """Whether the caller is below its share, a request included that finds no room."""
        is_present = share.held or share.refused_s is not None
        callers = self.present if is_present else self.present + 1
        # Who is alone has the whole limit, and there is no room in it.
        return callers > 1 and self._lead(share, limit) + share.held + cost <= limit / callers

    def refused(self, share: Share, cost: int, now_s: float) -> None:
        """A request of the caller was refused: it is backlogged."""
        backlogged = self.backlogged
        if share.refused_s is not None:
            del backlogged[share]
        elif len(backlogged) >= limits.BACKLOGGED_CALLERS_MAX:
            return
        elif not share.held:
            self.present += 1
        backlogged[share] = None
        share.refused_s, share.wanted = now_s, cost
        self.expire(now_s)

    def count(self, share: Share, cost: int, limit: int) -> None:
        """A request is finished while somebody is backlogged; it is no longer ``held``."""
        share.finished = self.virtual_time + self._lead(share, limit) + cost
        if share.refused_s is None:
            return
        backlogged = self.backlogged
        self.virtual_time += cost / len(backlogged)
        self._uncounted += 1
        if self._uncounted > len(backlogged):
            self._uncounted = 0
            for one in list(backlogged):
                if self.virtual_time - one.finished >= max(limit, one.wanted):
                    # Whatever it asks is admitted: it does not compete, and others share its part.
                    self._end(one)

    def expire(self, now_s: float) -> None:
        """Who was not refused again for ``BACKLOGGED_S`` is backlogged no more."""
        backlogged = self.backlogged
        while backlogged:
            longest = next(iter(backlogged))
            assert longest.refused_s is not None
            if now_s - longest.refused_s < limits.BACKLOGGED_S:
                return
            self._end(longest)

    def _end(self, share: Share) -> None:
        del self.backlogged[share]
        share.refused_s = None
        if not share.held:
            self.present -= 1
        if not self.backlogged:
            self._forget_absent()

    def _lead(self, share: Share, limit: int) -> float:
        """How much more was finished for it than for the others, negative if less.

        Not more than a share, else who had luck once would have to wait for long; and not less than
        a whole limit, or what it takes to admit the request that was refused."""
        lead = share.finished - self.virtual_time
        lead_max, lag_max = max(self._unit, limit / max(1, self.present)), max(limit, share.wanted)
        return min(max(lead, -lag_max), lead_max)

    def _forget_absent(self) -> None:
        for caller, share in list(self.of.items()):
            if not share.held and share.refused_s is None:
                del self.of[caller]
