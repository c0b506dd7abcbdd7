"""Drops rows that ended long ago, tombstones behind the horizon (replication.md, section 9)."""

from __future__ import annotations

from tq_node import limits
from tq_node.errors import NotFinal
from tq_node.partition.entries import DeleteTombstone, Horizon
from tq_node.runtime.clock import Clock
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.id_allocator import made_at_us
from tq_node.runtime.tasks.task_table import Slot, TaskTable
from tq_node.store.api import Store
from tq_node.types import TaskRow

_HORIZON_STEP_US = 60 * 1_000_000
"""The horizon moves in steps of a minute, so that an idle node doesn't write all the time."""


ROUNDS_MAX = 50
"""Purges in a row while they find something, a turn of the reactor apart; then the next round."""


class Retention:
    """One round at a time, bounded; ``PURGE_EVERY_S`` apart. The horizon only grows, and never
    faster than the monotonic clock: a wall clock that runs away can make the node refuse old ids
    too early, but never forget one too early (I17)."""

    def __init__(
        self, table: TaskTable, store: Store, clock: Clock, settings: QueueSettings, horizons: dict[int, int]
    ) -> None:
        self._table = table
        self._store = store
        self._clock = clock
        self._settings = settings
        self._horizons = horizons
        self._grown_ms = clock.now_ms()
        self._first_us = settings.born_us - settings.dedupe_window_ms * 1000

    async def round(self) -> None:
        """Purge what is due, move the horizon, forget tombstones behind it."""
        for _ in range(ROUNDS_MAX):
            if not await self._purge():
                break
            # Rows that are buried show up again until the store shows it.
            await self._table.driver.settle()
        self._grow()
        await self._forget()

    async def _purge(self) -> int:
        now_us = self._clock.wall_us()
        before_us = now_us - self._settings.retention_ms * 1000
        stored = await self._store.ended_before(before_us, limits.PURGE_ROWS_PER_ROUND, list(self._table.leading))
        # Decided on the resident rows: one may have been retried since the store was asked.
        found = await self._table.load([row.id for row in stored])
        buried = 0
        for slot in found.values():
            if not isinstance(slot, Slot) or slot.row is None or slot.row.ended_us is None:
                continue
            if slot.row.ended_us < before_us:
                self._bury(slot)
                buried += 1
        return buried

    def purge(self, slot: Slot) -> TaskRow:
        """Purge on request; returns the task as it was; raises ``NotFinal`` if it has not ended."""
        row = slot.row
        assert row is not None
        if not row.state.is_final:
            raise NotFinal("only a task that has ended can be purged", task_id=row.spec.id)
        self._bury(slot)
        return row

    def _bury(self, slot: Slot) -> None:
        """An ended task's row goes; its tombstone stays as long as its id may come again."""
        assert slot.row is not None
        # A made id is safe once its time is behind the horizon, others a whole window from now.
        at_us = made_at_us(slot.row.spec.id)
        self._table.bury(slot, self._clock.wall_us() if at_us is None else at_us)

    def _grow(self) -> None:
        now_ms = self._clock.now_ms()
        elapsed_us = (now_ms - self._grown_ms) * 1000
        if elapsed_us < _HORIZON_STEP_US:
            return
        self._grown_ms = now_ms
        sizes = self._store.sizes()
        wanted_us = self._clock.wall_us() - self._settings.dedupe_window_ms * 1000
        for partition in self._table.leading:
            at_us = min(wanted_us, self._horizons.get(partition, self._first_us) + elapsed_us)
            # Where nothing has happened no horizon is needed: there is no tombstone to forget.
            if partition in sizes and at_us > self._horizons.get(partition, self._first_us):
                self._horizons[partition] = at_us
                self._table.driver.propose(partition, Horizon(at_us), 8)

    async def _forget(self) -> None:
        if not self._horizons:
            return
        # Only behind a horizon that is in the partition's own log: else an id would be forgotten
        # and not refused either (I17).
        led = list(self._table.leading)
        before_us = max((self._horizons.get(partition, 0) for partition in led), default=0)
        for tombstone in await self._store.tombstones_before(before_us, limits.PURGE_ROWS_PER_ROUND, led):
            horizon_us = self._horizons.get(tombstone.partition, 0)
            if tombstone.partition in self._table.leading and tombstone.at_us < horizon_us:
                self._table.driver.propose(tombstone.partition, DeleteTombstone(tombstone.id), 32)
