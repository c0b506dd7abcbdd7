"""Requests to living nodes: the next is asked what one did not do; what may be done is said so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tq_tui.client.api import ClientError, ClusterClient, NodeClient, Refused, Unreachable
from tq_tui.state.cluster_view import ClusterView

T = TypeVar("T")
AT_ONCE = 16
"""Requests for a marked set of tasks that are in flight together."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request among many; ``error`` is empty where it succeeded."""

    key: str
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


class Requests:
    """Sends a request to living nodes in turn until one answers; ``view``: returns the latest."""

    def __init__(self, client: ClusterClient, view: Callable[[], ClusterView]) -> None:
        self._client, self._view = client, view

    def addresses(self) -> list[str]:
        """Addresses to ask, of ready and fast nodes first; where no node is up, all known ones."""
        view = self._view()

        def worth(address_and_ready: tuple[str, bool, float]) -> tuple[bool, float]:
            _, ready, latency_s = address_and_ready
            return (not ready, latency_s)

        known = [
            (node.address, node.readiness is None or node.readiness.ready, node.latency_s)
            for node in view.living or view.nodes
        ]
        return [address for address, _, _ in sorted(known, key=worth)]

    async def ask(self, question: Callable[[NodeClient], Awaitable[T]], *, repeatable: bool = True) -> T:
        """The first answer. ``repeatable``: twice does no harm; if lost it is asked for elsewhere.

        :raises ClientError: the refusal, or the last reason why nobody answered."""
        last: ClientError = Unreachable("no node is known")
        for address in self.addresses():
            try:
                return await question(self._client.at(address))
            except Unreachable as why:
                if why.sent and not repeatable:
                    raise Unreachable(f"{address}: {why}; it may have been done", sent=True) from why
                last = Unreachable(f"{address}: {why}", sent=why.sent)
            except Refused as why:
                if not why.try_elsewhere:
                    raise
                last = why
        raise last

    async def each(
        self,
        keys: Sequence[str],
        question: Callable[[NodeClient, str], Awaitable[object]],
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Outcome]:
        """Ask ``question`` for each key, ``AT_ONCE`` at a time; a failure does not stop the rest.

        :param on_progress: called after each with how many are done, and of how many."""
        limit = asyncio.Semaphore(AT_ONCE)
        done = 0

        async def one(key: str) -> Outcome:
            nonlocal done
            async with limit:
                try:
                    await self.ask(lambda client: question(client, key))
                    outcome = Outcome(key)
                except ClientError as why:
                    outcome = Outcome(key, str(why))
            done += 1
            on_progress(done, len(keys))
            return outcome

        return list(await asyncio.gather(*map(one, keys)))


def reported(verb: str, outcomes: Iterable[Outcome]) -> tuple[str, bool]:
    """A sentence on the outcomes with the three most frequent errors; and whether all succeeded."""
    outcomes = list(outcomes)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    done = len(outcomes) - len(failed)
    if not failed:
        return f"{verb} {done}", True
    reasons: dict[str, int] = {}
    for outcome in failed:
        reasons[outcome.error] = reasons.get(outcome.error, 0) + 1
    worst = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    why = "; ".join(f"{number} x {reason}" if number > 1 else reason for reason, number in worst)
    return f"{verb} {done}, {len(failed)} not: {why}", False
