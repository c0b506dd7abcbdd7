"""Reads: one task, with waiting; pages of tasks; counts."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall

from tq_node import limits
from tq_node.errors import Busy, NotConfirmed, NotReady, TaskPurged
from tq_node.facade import ListedTask, ListQuery, Read, Stats, TaskPage
from tq_node.runtime.clock import Clock
from tq_node.runtime.rows import Slot
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.submitting import NodeStatus
from tq_node.runtime.table import Found, TaskTable, existing, row_of
from tq_node.runtime.waiters import Wait
from tq_node.store.api import RowPage, RowQuery, Store
from tq_node.types import State, Transition


class _Watch:
    """Somebody waits for a task's end."""

    __slots__ = ("call", "deferred")

    def __init__(self, deferred: Deferred[Read], call: IDelayedCall) -> None:
        self.deferred = deferred
        self.call = call


class Reading:
    """See the module's docstring."""

    def __init__(
        self, table: TaskTable, store: Store, clock: Clock, settings: QueueSettings, status: NodeStatus
    ) -> None:
        self._table = table
        self._store = store
        self._clock = clock
        self._settings = settings
        self._status = status
        self._watches: dict[str, list[_Watch]] = {}
        self._watch_count = 0

    # --- one task ---
    def get(self, task_id: str, wait_s: float, local: bool) -> Deferred[Read]:
        """See ``facade.TaskQueue.get``. The only copy is the primary's, so a local read is a strong one."""
        if not self._status.is_active:
            raise NotReady("the node is starting")
        age_s = 0.0 if local else None
        slot = self._table.find(task_id)
        if slot is None:
            return self._table.load([task_id]).addCallback(self._found, task_id, wait_s, age_s)
        return self._read(slot, task_id, wait_s, age_s)

    def _found(self, found: dict[str, Found], task_id: str, wait_s: float, age_s: float | None) -> Deferred[Read]:
        return self._read(existing(found[task_id], task_id), task_id, wait_s, age_s)

    def _read(self, slot: Slot, task_id: str, wait_s: float, age_s: float | None) -> Deferred[Read]:
        row = slot.row
        if row is None:
            raise TaskPurged("the task has ended and its retention is over", task_id=task_id)
        if wait_s > 0 and not row.state.is_final and not self._status.is_stopping:
            return self._watch(task_id, wait_s, age_s)
        read = Read(row, self._settings.node_name, age_s)
        # A change that is proposed but not committed is waited for: what is read is never uncommitted (P5).
        committed = self._table.committed_wait(slot, Wait(read, self._clock.now_ms(), 1, task_id, late=NotConfirmed))
        return succeed(read) if committed is None else cast("Deferred[Read]", committed)

    def _watch(self, task_id: str, wait_s: float, age_s: float | None) -> Deferred[Read]:
        if self._watch_count >= limits.STATUS_WAITERS_MAX:
            raise Busy(f"{limits.STATUS_WAITERS_MAX} callers wait for tasks already", task_id=task_id)
        deferred: Deferred[Read] = Deferred(lambda _: self._forget(task_id, watch))

        def over() -> None:
            self._forget(task_id, watch)
            maybeDeferred(self.get, task_id, 0.0, age_s is not None).chainDeferred(deferred)

        watch = _Watch(deferred, self._clock.call_later(wait_s, over))
        self._watches.setdefault(task_id, []).append(watch)
        self._watch_count += 1
        return deferred

    def _forget(self, task_id: str, watch: _Watch) -> None:
        watching = self._watches.get(task_id, [])
        if watch in watching:
            watching.remove(watch)
            self._watch_count -= 1
            if not watching:
                del self._watches[task_id]
        if watch.call.active():
            watch.call.cancel()

    def tell_ended(self, transitions: list[Transition]) -> None:
        """Answer those who wait for tasks that have just ended. Called with each commit."""
        if not self._watches:
            return
        for transition in transitions:
            if not transition.to_state.is_final:
                continue
            for watch in self._watches.pop(transition.task_id, ()):
                self._watch_count -= 1
                watch.call.cancel()
                if not watch.deferred.called:
                    maybeDeferred(self.get, transition.task_id, 0.0, False).chainDeferred(watch.deferred)

    def stop(self) -> None:
        """Nobody is left waiting: each hears the task as it is now, or why not."""
        for task_id, watching in list(self._watches.items()):
            for watch in list(watching):
                self._forget(task_id, watch)
                if not watch.deferred.called:
                    maybeDeferred(self.get, task_id, 0.0, False).chainDeferred(watch.deferred)

    # --- many tasks ---
    async def list(self, query: ListQuery) -> TaskPage:
        """See ``facade.TaskQueue.list``. Every copy here is a primary's, so another role or node has none."""
        if not self._status.is_active:
            raise NotReady("the node is starting")
        name = self._settings.node_name
        if query.role == "replica" or (query.nodes is not None and (name in query.nodes) is query.nodes_not):
            return TaskPage([], None)
        await self._table.driver.settle()
        page: RowPage = await self._store.page(
            RowQuery(
                states=query.states,
                states_not=query.states_not,
                types=query.types,
                types_not=query.types_not,
                queues=query.queues,
                queues_not=query.queues_not,
                text=query.text,
                sort=query.sort,
                descending=query.descending,
                after=query.cursor,
                limit=query.limit,
                scan_rows_max=limits.LIST_SCAN_ROWS_MAX,
                bytes_max=limits.LIST_BYTES_MAX,
            )
        )
        return TaskPage([ListedTask(row_of(stored), "primary", name) for stored in page.rows], page.next)

    def stats(self) -> Stats:
        primary = [0] * len(State)
        for row in self._table.counts.values():
            for state, count in enumerate(row):
                primary[state] += count
        return Stats(primary, [0] * len(State))
