"""Renders the metrics in slices; requests during a rendering, or just after it, share the page."""

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


class _Rendering:
    """A page that is being made, and the requests that wait for it."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[bytes]] = []
        self.task: Deferred[bytes] | None = None

    def join(self) -> Deferred[bytes]:
        waiter: Deferred[bytes] = Deferred(self._cancelled)
        self.waiting.append(waiter)
        return waiter

    def _cancelled(self, one: Deferred[bytes]) -> None:
        self.waiting.remove(one)
        if not self.waiting and self.task is not None:
            self.task.cancel()


class Scrapes:
    """Pages of ``exposition`` by content type; ``queue`` adds the ages of the oldest tasks."""

    def __init__(self, queue: TaskQueue, exposition: Exposition) -> None:
        self._queue = queue
        self._exposition = exposition
        self._made: dict[str, tuple[float, bytes]] = {}
        """Content type -> when the last page was finished, in seconds, and the page."""
        self._renderings: dict[str, _Rendering] = {}

    def page(self, content_type: str, slices: Slices, clock: IReactorTime) -> Deferred[bytes]:
        """The page, at most ``METRICS_PAGE_S`` old; cancelled with the last request that waits."""
        made = self._made.get(content_type)
        if made is not None and 0 <= clock.seconds() - made[0] < METRICS_PAGE_S:
            return succeed(made[1])
        rendering = self._renderings.get(content_type)
        if rendering is None:
            rendering = self._renderings[content_type] = _Rendering()

            mine = rendering.join()
            rendering.task = Deferred.fromCoroutine(self._render(content_type, slices, clock))
            rendering.task.addBoth(self._finish, content_type, clock)
            return mine
        return rendering.join()

    def _finish(self, page: bytes | Failure, content_type: str, clock: IReactorTime) -> None:
        if isinstance(page, bytes):
            self._made[content_type] = (clock.seconds(), page)
        for one in self._renderings.pop(content_type).waiting:
            if isinstance(page, bytes):
                one.callback(page)
            else:
                one.errback(page)

    async def _render(self, content_type: str, slices: Slices, clock: IReactorTime) -> bytes:
        try:
            ages_s = await self._queue.oldest_pending_age_s().addTimeout(METRICS_AGES_S, clock)
        except (TaskQueueError, TimeoutError):
            # A page without ages beats none: metrics matter most when a node is in trouble.
            ages_s = {}
        pace = slices.pace(ROUTE)
        return "".join(await pace.each(self._exposition.blocks(content_type, ages_s), str)).encode()
