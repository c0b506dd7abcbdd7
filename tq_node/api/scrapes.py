"""Pages of metrics: made in slices, one at a time, for all who ask meanwhile or shortly after."""

from __future__ import annotations

from twisted.internet.defer import Deferred, TimeoutError, succeed  # noqa: A004
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from tq_node.errors import TaskQueueError
from tq_node.facade import TaskQueue
from tq_node.limits import METRICS_AGES_S, METRICS_PAGE_S
from tq_node.observe.exposition import Exposition
from tq_node.slices import Slices

ROUTE = "/metrics"


class _Flight:
    """A page that is being made, and who waits for it."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[bytes]] = []
        self.making: Deferred[bytes] | None = None

    def join(self) -> Deferred[bytes]:
        mine: Deferred[bytes] = Deferred(self._left)
        self.waiting.append(mine)
        return mine

    def _left(self, one: Deferred[bytes]) -> None:
        self.waiting.remove(one)
        if not self.waiting and self.making is not None:
            self.making.cancel()


class Scrapes:
    """Hands out pages of ``exposition``, by content type."""

    def __init__(self, queue: TaskQueue, exposition: Exposition) -> None:
        self._queue = queue
        self._exposition = exposition
        self._made: dict[str, tuple[float, bytes]] = {}
        """Each format's last page, with the second in which it was finished."""
        self._flights: dict[str, _Flight] = {}

    def page(self, content_type: str, slices: Slices, clock: IReactorTime) -> Deferred[bytes]:
        """The page of now, or of up to ``limits.METRICS_PAGE_S`` ago.

        Cancelled, it goes on for the others who wait for it; when the last one is, it is not made to the end.
        """
        made = self._made.get(content_type)
        if made is not None and 0 <= clock.seconds() - made[0] < METRICS_PAGE_S:
            return succeed(made[1])
        flight = self._flights.get(content_type)
        if flight is None:
            flight = self._flights[content_type] = _Flight()

            mine = flight.join()
            flight.making = Deferred.fromCoroutine(self._make(content_type, slices, clock))
            flight.making.addBoth(self._landed, content_type, clock)
            return mine
        return flight.join()

    def _landed(self, page: bytes | Failure, content_type: str, clock: IReactorTime) -> None:
        if isinstance(page, bytes):
            self._made[content_type] = (clock.seconds(), page)
        for one in self._flights.pop(content_type).waiting:
            if isinstance(page, bytes):
                one.callback(page)
            else:
                one.errback(page)

    async def _make(self, content_type: str, slices: Slices, clock: IReactorTime) -> bytes:
        try:
            ages_s = await self._queue.oldest_pending_age_s().addTimeout(METRICS_AGES_S, clock)
        except (TaskQueueError, TimeoutError):
            # Numbers without the ages are better than none: a node in trouble is when they are wanted most.
            ages_s = {}
        pace = slices.pace(ROUTE)
        return "".join(await pace.each(self._exposition.blocks(content_type, ages_s), str)).encode()
