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


class Account:
    """What was finished and refused of one caller."""

    __slots__ = ("finished", "refused_s", "wanted")

    def __init__(self, finished: float) -> None:
        self.finished = finished
        """Summed cost of its finished requests, on the scale of the virtual time."""
        self.refused_s = 0.0
        """When it was refused last, if it is backlogged."""
        self.wanted = 0
        """Cost of the request that was refused last."""


class FairShares:
    """The shares of all callers of one limit. Whoever owns the limit keeps ``held``, and calls
    ``entered`` and ``left`` while anybody is backlogged.

    :param unit: a caller not seen of late is below its share with so much, whatever ``N``."""

    __slots__ = ("_accounts", "_idle", "_uncounted", "_unit", "_virtual_time", "backlogged", "held")

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self.held: dict[str, int] = {}
        """Summed cost of the requests in progress, by caller; of nobody who has none."""
        self.backlogged: dict[str, Account] = {}
        """Who was refused longest ago stands first."""
        self._idle = 0
        """Backlogged callers with nothing in progress."""
        self._accounts: dict[str, Account] = {}
        """Of the backlogged, and of others for whom something was finished since somebody is."""
        self._virtual_time = 0.0
        self._uncounted = 0
        """Requests finished since it was looked who lags too far behind."""

    def is_below(self, caller: str, cost: int, limit: int) -> bool:
        """Whether a caller is below its share, a request included that finds no room."""
        held = self.held.get(caller, 0)
        callers = self._present() + (not held and caller not in self.backlogged)
        account = self._accounts.get(caller)
        lead = -self._unit if account is None else self._lead(account, limit)
        # Who is alone has the whole limit, and there is no room in it.
        return callers > 1 and lead + held + cost <= limit / callers

    def refused(self, caller: str, cost: int, now_s: float) -> None:
        """A request of a caller was refused: it is backlogged."""
        backlogged = self.backlogged
        account = backlogged.pop(caller, None)
        if account is None:
            if len(backlogged) >= limits.BACKLOGGED_CALLERS_MAX:
                return
            account = self._accounts.get(caller) or self._open(caller)
            self._idle += caller not in self.held
        backlogged[caller] = account
        account.refused_s, account.wanted = now_s, cost
        self.expire(now_s)

    def entered(self, caller: str, cost: int) -> None:
        """A request was admitted; ``held`` counts it."""
        if self.held[caller] == cost and caller in self.backlogged:
            self._idle -= 1

    def left(self, caller: str) -> None:
        """A request has ended; ``held`` no longer counts it."""
        if caller not in self.held and caller in self.backlogged:
            self._idle += 1

    def count(self, caller: str, cost: int, limit: int) -> None:
        """The request that has just left was finished."""
        account = self._accounts.get(caller) or self._open(caller)
        account.finished = self._virtual_time + self._lead(account, limit) + cost
        backlogged = self.backlogged
        if caller not in backlogged:
            return
        self._virtual_time += cost / len(backlogged)
        self._uncounted += 1
        if self._uncounted > len(backlogged):
            self._uncounted = 0
            for name, one in list(backlogged.items()):
                if self._virtual_time - one.finished >= max(limit, one.wanted):
                    # Whatever it asks is admitted: it does not compete, and others share its part.
                    self._end(name)

    def expire(self, now_s: float) -> None:
        """Who was not refused again for ``BACKLOGGED_S`` is backlogged no more."""
        backlogged = self.backlogged
        while backlogged:
            longest = next(iter(backlogged))
            if now_s - backlogged[longest].refused_s < limits.BACKLOGGED_S:
                return
            self._end(longest)

    def _end(self, caller: str) -> None:
        del self.backlogged[caller]
        self._idle -= caller not in self.held
        if not self.backlogged:
            self._accounts.clear()

    def _present(self) -> int:
        """Callers that hold something or are backlogged."""
        return len(self.held) + self._idle

    def _lead(self, account: Account, limit: int) -> float:
        """How much more was finished for it than for the others, negative if less.

        Not more than a share, else who had luck once would have to wait for long; and not less than
        a whole limit, or what it takes to admit the request that was refused."""
        lead = account.finished - self._virtual_time
        lead_max, lag_max = max(self._unit, limit / max(1, self._present())), max(limit, account.wanted)
        return min(max(lead, -lag_max), lead_max)

    def _open(self, caller: str) -> Account:
        if len(self._accounts) >= limits.FAIR_CALLERS_MAX:
            self._accounts = dict(self.backlogged)
        account = self._accounts[caller] = Account(self._virtual_time - self._unit)
        return account
