"""Reads: one task, with waiting; pages of tasks; counts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import Busy, NoSuchTask, NotConfirmed, NotPrimary, NotReady, TaskPurged
from tq_node.facade import ListedTask, ListQuery, Read, Stats, TaskPage
from tq_node.partition.waiting import matches
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.replication.replicator import Replication
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.submit import NodeStatus
from tq_node.runtime.tasks.task_table import PURGED_DETAIL, Found, Slot, TaskTable, existing, must_know, purged, row_of
from tq_node.store.api import RowPage, RowQuery, Store, StoredRow, Tombstone
from tq_node.tokens import Asker
from tq_node.types import State, TaskRow, Transition, WaitsFor


class _Watch:
    """A caller that waits for a task's end."""

    __slots__ = ("asker", "call", "deferred")

    def __init__(self, deferred: Deferred[Read], call: IDelayedCall, asker: Asker | None) -> None:
        self.deferred = deferred
        self.call = call
        self.asker = asker


class Waits(Protocol):
    """Why tasks wait (``wait_reasons``)."""

    def of(self, row: TaskRow) -> tuple[WaitsFor, ...]: ...

    def narrowed(self, query: ListQuery) -> ListQuery | None: ...


class TaskReads:
    """Answers from the rows in memory and in the store; never with what is not committed (P5)."""

    def __init__(
        self,
        table: TaskTable,
        store: Store,
        clock: Clock,
        settings: QueueSettings,
        status: NodeStatus,
        replication: Replication,
    ) -> None:
        self._table = table
        self._store = store
        self._clock = clock
        self._settings = settings
        self._status = status
        self._replication = replication
        self.waits: Waits | None = None
        """None before the node knows who has handlers."""
        self.watches: dict[str, list[_Watch]] = {}
        self._watch_count = 0

    # --- one task ---
    def get(
        self, task_id: str, *, wait_s: float = 0.0, local: bool = False, asker: Asker | None = None
    ) -> Deferred[Read]:
        """See ``facade.TaskQueue.get``."""
        return maybeDeferred(self._look_up, task_id, wait_s, local, asker)

    def _look_up(self, task_id: str, wait_s: float, local: bool, asker: Asker | None) -> Deferred[Read]:
        if not self._status.is_active:
            raise NotReady("the node is starting")
        partition = self._table.partition_of(task_id)
        if local and not (wait_s > 0 and partition in self._table.leading):
            return self._get_copy(partition, task_id, asker)
        self._table.must_lead(partition, task_id)
        confirming = None if local else self._replication.read_index.when_confirmed(partition)
        if confirming is None:
            return self._get(partition, task_id, wait_s, 0.0 if local else None, asker)
        return confirming.addCallbacks(
            lambda _: self._get(partition, task_id, wait_s, None, asker), lambda why: self._not_confirmed(why, task_id)
        )

    def _not_confirmed(self, why: Failure, task_id: str) -> Failure:
        if isinstance(why.value, NotConfirmed):
            return Failure(NotConfirmed(why.value.detail, task_id=task_id))
        return why

    def _get(
        self, partition: int, task_id: str, wait_s: float, age_s: float | None, asker: Asker | None
    ) -> Deferred[Read]:
        slot = self._table.find(task_id)
        if slot is None:
            self._table.must_lead(partition, task_id)
            return self._table.load([task_id]).addCallback(self._found, task_id, wait_s, age_s, asker)
        return self._read(slot, task_id, wait_s, age_s, asker)

    def _found(
        self, found: dict[str, Found], task_id: str, wait_s: float, age_s: float | None, asker: Asker | None
    ) -> Deferred[Read]:
        return self._read(existing(found[task_id], task_id, asker), task_id, wait_s, age_s, asker)

    def _get_copy(self, partition: int, task_id: str, asker: Asker | None) -> Deferred[Read]:
        """What is applied here of a partition that another node leads: perhaps old, never
        uncommitted (P5).

        :raises NotPrimary: there is no copy here."""
        if not self._replication.is_held(partition):
            raise NotPrimary("this node has no copy of the task's partition", task_id=task_id)
        node, age_s = self._replication.primary_name(partition), self._replication.age_s(partition)

        def found(stored: dict[str, StoredRow | Tombstone]) -> Read:
            one = stored.get(task_id)
            row = None if one is None or isinstance(one, Tombstone) else row_of(one)
            if row is not None and (asker is None or asker.may_know(row.spec.queue, row.spec.made_by)):
                return Read(row, node, age_s, self._waits_of(row))
            if isinstance(one, Tombstone) and (asker is None or not asker.is_restricted):
                raise TaskPurged(PURGED_DETAIL, task_id=task_id)
            raise NoSuchTask("this copy knows no task with this id", task_id=task_id)

        return self._table.driver.settle().addCallback(lambda _: self._store.lookup([task_id])).addCallback(found)

    def _read(
        self, slot: Slot, task_id: str, wait_s: float, age_s: float | None, asker: Asker | None
    ) -> Deferred[Read]:
        row = slot.row
        if row is None:
            raise purged(task_id, asker)
        if asker is not None:
            must_know(asker, row, task_id)
        if wait_s > 0 and not row.state.is_final and not self._status.is_stopping:
            return self._watch(task_id, wait_s, age_s, asker)
        read = Read(row, self._settings.node_name, age_s, self._waits_of(row))
        # Proposed, uncommitted changes are waited for: what is read is never uncommitted (P5).
        committed = self._table.committed_wait(slot, Wait(read, self._clock.now_ms(), 1, task_id, late=NotConfirmed))
        return succeed(read) if committed is None else cast("Deferred[Read]", committed)

    def _watch(self, task_id: str, wait_s: float, age_s: float | None, asker: Asker | None) -> Deferred[Read]:
        if self._watch_count >= limits.STATUS_WAITERS_MAX:
            raise Busy(f"{limits.STATUS_WAITERS_MAX} callers wait for tasks already", task_id=task_id)
        deferred: Deferred[Read] = Deferred(lambda _: self._forget(task_id, watch))

        def timed_out() -> None:
            self._forget(task_id, watch)
            self.get(task_id, local=age_s is not None, asker=asker).chainDeferred(deferred)

        watch = _Watch(deferred, self._clock.call_later(wait_s, timed_out), asker)
        self.watches.setdefault(task_id, []).append(watch)
        self._watch_count += 1
        return deferred

    def _forget(self, task_id: str, watch: _Watch) -> None:
        watching = self.watches.get(task_id, [])
        if watch in watching:
            watching.remove(watch)
            self._watch_count -= 1
            if not watching:
                del self.watches[task_id]
        if watch.call.active():
            watch.call.cancel()

    def tell_ended(self, transitions: list[Transition]) -> None:
        """Answer those who wait for tasks that have just ended. Called with each commit."""
        for transition in transitions:
            if not transition.to_state.is_final:
                continue
            for watch in self.watches.pop(transition.task_id, ()):
                self._watch_count -= 1
                watch.call.cancel()
                if not watch.deferred.called:
                    # Every other copy has just acknowledged the end: that is what a ping round
                    # would ask for (section 7).
                    partition = transition.partition
                    ended = maybeDeferred(self._get, partition, transition.task_id, 0.0, None, watch.asker)
                    ended.chainDeferred(watch.deferred)

    def stepped_down(self, partition: int) -> None:
        """Fail the waits for a partition not led here any more; callers may go to its primary."""
        self._end([task_id for task_id in self.watches if self._table.partition_of(task_id) == partition])

    def stop(self) -> None:
        """Answer all who wait: with the task as it is now, or why not."""
        self._end(list(self.watches))

    def _end(self, task_ids: Sequence[str]) -> None:
        for task_id in task_ids:
            for watch in list(self.watches[task_id]):
                self._forget(task_id, watch)
                if not watch.deferred.called:
                    self.get(task_id, asker=watch.asker).chainDeferred(watch.deferred)

    # --- many tasks ---
    def list(self, query: ListQuery) -> Deferred[TaskPage]:
        """See ``facade.TaskQueue.list``: of the copies at this node."""
        return Deferred.fromCoroutine(self._list(query))

    async def _list(self, query: ListQuery) -> TaskPage:
        if not self._status.is_active:
            raise NotReady("the node is starting")
        await self._table.driver.settle()
        partitions, led = self._wanted(query), list(self._table.leading.items())
        narrowed = query if query.waiting is None or self.waits is None else self.waits.narrowed(query)
        if not partitions or narrowed is None:
            return TaskPage([], None, led=led)
        query = narrowed
        page: RowPage = await self._store.page(
            RowQuery(
                states=query.states,
                states_not=query.states_not,
                types=query.types,
                types_not=query.types_not,
                queues=query.queues,
                queues_not=query.queues_not,
                partitions=None if len(partitions) == self._settings.partition_count else partitions,
                text=query.text,
                sort=query.sort,
                descending=query.descending,
                after=query.cursor,
                limit=query.limit,
                scan_rows_max=limits.LIST_SCAN_ROWS_MAX,
                bytes_max=limits.LIST_BYTES_MAX,
            )
        )
        pace = self._clock.slices.pace("a page of tasks")
        listed = []
        for stored in page.rows:
            if pace.is_over():
                await pace.turn()
            role = "primary" if stored.partition in self._table.leading else "replica"
            row = row_of(stored)
            waits = self._waits_of(row)
            if query.waiting is None or matches(waits, *query.waiting):
                listed.append(ListedTask(row, role, self._replication.primary_name(stored.partition), waits))
        return TaskPage(listed, page.next, led=led)

    def _waits_of(self, row: TaskRow) -> tuple[WaitsFor, ...]:
        return () if self.waits is None or row.state >= State.PROCESSING else self.waits.of(row)

    def _wanted(self, query: ListQuery) -> frozenset[int]:
        """The partitions whose copy here the query is about."""
        leading, primary_name = self._table.leading, self._replication.primary_name
        found = []
        for partition in self._replication.held():
            if query.role is not None and (query.role == "primary") is not (partition in leading):
                continue
            if query.nodes is not None and (primary_name(partition) in query.nodes) is query.nodes_not:
                continue
            found.append(partition)
        return frozenset(found)

    def stats(self) -> Stats:
        """Every copy on this node counts, with the role that it has now."""
        primary, replica = [0] * len(State), [0] * len(State)
        leading, is_held = self._table.leading, self._replication.is_held
        for partition, states in self._table.driver.states().items():
            if is_held(partition):
                counts = primary if partition in leading else replica
                for state, rows in enumerate(states):
                    counts[state] += rows
        return Stats(primary, replica, led=list(leading.items()))

    def stats_of(self, queues: Collection[str]) -> Stats:
        """Tasks of these queues in the partitions led here: by queue only those are counted."""
        primary, wanted = [0] * len(State), frozenset(queues)
        for counts in self._table.partition_counts.values():
            for queue in counts.keys() & wanted:
                for state, rows in enumerate(counts[queue]):
                    primary[state] += rows
        return Stats(primary, [0] * len(State), led=list(self._table.leading.items()))
