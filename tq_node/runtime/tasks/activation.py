"""Activation: reads the rows of a partition that this node has come to lead, before it is served
(R7), and forgets them when this node is its primary no more (R12)."""

from __future__ import annotations

from typing import Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.runtime.clock import Clock
from tq_node.runtime.tasks.claims import Claims
from tq_node.runtime.tasks.recovery import recover_makers, recover_rows
from tq_node.runtime.tasks.task_table import TaskTable
from tq_node.store.api import Store

_log = Logger(namespace="taskqueue.leading")
LOSE_CHUNK = 1_000
LOOK_FOR_WORKERS_S = 0.1
LOOK_AGAIN_S = 1.0


class ActivationHost(Protocol):
    """The queue whose partitions are activated."""

    @property
    def node_name(self) -> str:
        """The name under which this node's workers hold tasks."""

    def workers_are_gone(self) -> bool:
        """Whether earlier starts' worker processes are gone; else they keep tasks for one lease."""

    def counts_makers(self) -> bool:
        """Whether to count what each token has open."""

    def serving(self, partition: int) -> None:
        """The partition is about to be served."""

    def served(self) -> None:
        """Some more partitions are served."""

    def broken(self, why: BaseException) -> None:
        """A promise is broken: the process must end (R20)."""


class Activation:
    """See the module's docstring."""

    def __init__(self, table: TaskTable, store: Store, clock: Clock, claims: Claims, host: ActivationHost) -> None:
        self._table = table
        self._replicas = table.driver
        self._store = store
        self._clock = clock
        self._claims = claims
        self._host = host
        self._fresh: dict[int, int] = {}
        """Active by their log, with the epoch; their rows are not read yet."""
        self._is_reading = False
        self._looks: set[IDelayedCall] = set()
        """Timers after which inherited attempts are looked at again."""
        self._stopped = False

    def stepped_down(self, partition: int) -> None:
        """Serve the partition no more: this node leads it no more."""
        if partition in self._table.leading:
            self._table.leave(partition)
            self._claims.of_workers.left(partition)
        self._fresh.pop(partition, None)

    def activated(self, partition: int, epoch: int) -> None:
        """Barrier committed in ``epoch``: read the partition's rows next turn, then serve it."""
        self.stepped_down(partition)
        self._fresh[partition] = epoch
        if not self._is_reading and not self._stopped:
            # Those that become active in the same moment are read together, and so are those that
            # do while others are read: each read passes all rows by, and one beside another would
            # read the other's partitions again.
            self._is_reading = True
            self._clock.call_later(0, self._begin)

    def waiting(self) -> list[int]:
        """The partitions that this node leads and does not serve yet."""
        leading = self._table.leading
        return [core.partition for core in self._replicas.cores if core.is_leading and core.partition not in leading]

    def stop(self) -> None:
        """Activate nothing more."""
        self._stopped = True
        for look in self._looks:
            look.cancel()
        self._looks.clear()

    # --- activating ---
    def _begin(self) -> None:
        Deferred.fromCoroutine(self._serve_all()).addErrback(self._failed)

    async def _serve_all(self) -> None:
        while self._fresh and not self._stopped:
            await self._serve(dict(self._fresh))
        self._is_reading = False

    async def _serve(self, fresh: dict[int, int]) -> None:
        await self._replicas.settle()
        found = await recover_rows(self._store, list(fresh), self._table.ready.like())
        makers = await recover_makers(self._store, list(fresh)) if self._host.counts_makers() else {}
        # From here on nothing is awaited: what was read is what is there.
        table = self._table
        for partition, epoch in fresh.items():
            if self._fresh.get(partition) != epoch or self._stopped:
                found.ready.drop_partition(partition)
                found.due.drop_partition(partition)
                continue
            del self._fresh[partition]
            self._host.serving(partition)
            table.lead(partition, epoch, found.counts[partition], makers.get(partition, {}))
        self._host.served()
        table.ready.absorb(found.ready)
        table.due.absorb(found.due)
        if not self._stopped:
            self._claims.of_workers.adopt(found.running).addErrback(self._not_lost)
            self._lose_inherited(found.running)
            self._claims.find_due()
            self._claims.wake()

    # --- attempts of earlier primaries (section 8) ---
    def _lose_inherited(self, task_ids: list[str]) -> None:
        """Lost are those that nothing can be running any more: this node's own, once its earlier
        workers are gone, and any others a lease after this primary's promise, unless they were
        renewed with it."""
        if not task_ids or self._stopped:
            return
        own_are_gone, now_ms = self._host.workers_are_gone(), self._clock.now_ms()
        lost: list[str] = []
        kept: list[str] = []
        for task_id in task_ids:
            partition = self._table.partition_of(task_id)
            if partition not in self._table.leading:
                continue  # whoever leads it now sees to it
            over_ms = self._replicas.cores[partition].requeue_at_ms
            (lost if over_ms is not None and now_ms >= over_ms else kept).append(task_id)
        self._lose(lost, None)
        if own_are_gone:
            self._lose(kept, self._host.node_name)
        if kept:
            self._look_later(LOOK_FOR_WORKERS_S, kept)

    def _look_later(self, seconds: float, task_ids: list[str]) -> None:
        def look() -> None:
            self._looks.discard(call)
            self._lose_inherited(task_ids)

        if not self._stopped:
            call = self._clock.call_later(seconds, look)
            self._looks.add(call)

    def _lose(self, task_ids: list[str], node: str | None) -> None:
        for first in range(0, len(task_ids), LOSE_CHUNK):
            losing = self._claims.remote.lose(task_ids[first : first + LOSE_CHUNK], node)
            losing.addCallbacks(self._look_again if node is None else lambda _: None, self._not_lost)

    def _look_again(self, kept: list[str]) -> None:
        """Renewed at a new primary, they run on at another node until they end or lapse."""
        if kept:
            self._look_later(LOOK_AGAIN_S, kept)

    def _not_lost(self, why: Failure) -> None:
        _log.error("could not book lost attempts: {why}", why=why.getErrorMessage(), event="lose_failed")

    def _failed(self, why: Failure) -> None:
        if not self._stopped:
            self._host.broken(cast("BaseException", why.value))
