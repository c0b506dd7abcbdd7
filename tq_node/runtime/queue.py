"""The queue of one node: ``facade.TaskQueue`` made of the parts of ``runtime``. It joins them and holds no rule itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import AlreadyFinal, Busy, Draining, NotReady, NotRetryable, TaskQueueError
from tq_node.facade import (
    Accepted,
    Claim,
    ClusterNode,
    ClusterView,
    EventBatch,
    ListQuery,
    Notes,
    NotReadyReason,
    Outcome,
    PartitionView,
    Read,
    Stats,
    Submission,
    Subscription,
    TaskPage,
    Worker,
)
from tq_node.observe.metrics import Metrics
from tq_node.partition.tasks import Cancel, Retry
from tq_node.runtime.clock import Clock
from tq_node.runtime.events import Change, EventLog
from tq_node.runtime.log_driver import LogDriver
from tq_node.runtime.reading import Reading
from tq_node.runtime.recovery import recover_logs, recover_rows
from tq_node.runtime.retention import Retention
from tq_node.runtime.rows import Slot
from tq_node.runtime.running import Running
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.submitting import Submitting
from tq_node.runtime.table import PURGED, TaskTable, existing
from tq_node.runtime.waiters import Wait
from tq_node.store.api import Batch, Store
from tq_node.types import State, TaskRow

_log = Logger(namespace="taskqueue.queue")
_PAUSED = "paused_queues"
_EVENT_ID_BITS = 40
"""Event ids of one start of the node lie below those of the next: a trillion each."""


class NodeQueue:
    """See the module's docstring.

    :param on_disk_floor: called once when so little disk is left that the node must stop in order.
    :param on_broken: a promise is broken; the process must end at once (R20).
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: QueueSettings,
        metrics: Metrics,
        *,
        on_disk_floor: Callable[[], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self.is_active = False
        self.is_stopping = False
        self.is_disk_low = False
        self._store = store
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._on_disk_floor = on_disk_floor
        self._on_broken = on_broken
        self._horizons: dict[int, int] = {}
        self._paused: set[str] = set()
        self._events = EventLog(settings.incarnation << _EVENT_ID_BITS)
        self._table = TaskTable(
            store,
            seed=settings.seed,
            partition_count=settings.partition_count,
            on_ready=self._wake,
            on_due=self._schedule_due,
            paused=self.paused_queues,
        )
        self._submitting = Submitting(self._table, clock, settings, self, self._horizons)
        self._running = Running(self._table, clock, settings, self)
        self._reading = Reading(self._table, store, clock, settings, self)
        self._retention = Retention(self._table, store, clock, settings, self._horizons)
        self._loops: list[tuple[LoopingCall, Deferred[object]]] = []

    # --- life ---
    async def start(self, *, first: dict[str, bytes | None], workers_are_gone: Callable[[], bool]) -> None:
        """Recover, lead every partition in a new epoch, then serve.

        :param first: named values that must be durable before anything else happens: identity and incarnation.
        :param workers_are_gone: whether no worker process of an earlier start of this node lives; until it says so, what it ran
            keeps its tasks for one lease.
        """
        settings = self._settings
        await self._store.commit(Batch(meta=first))
        recovered = await recover_logs(self._store, settings.node_id, settings.partition_count)
        self._horizons.update(recovered.horizons)
        self._table.driver = driver = LogDriver(
            self._store,
            self._clock,
            recovered.logs,
            settings.node_id,
            on_committed=self._committed,
            on_applied=self._table.rows.applied,
            on_broken=self._on_broken,
            spec_of=self._table.spec_of,
        )
        await driver.begin_epochs({log.partition: log.promised + 1 for log in recovered.logs})
        await driver.settle()
        # Time goes on from where the store left it, whatever the system's clock says now (section 8, schedules).
        self._clock.wall_us.not_before(await self._store.newest_us())
        inherited = await recover_rows(self._store, self._table)
        for queue, counts in self._table.counts.items():
            for state, count in enumerate(counts):
                self._metrics.adjust_tasks(queue, State(state), count)
        for queue in msgspec.json.decode(self._store.meta().get(_PAUSED, b"[]"), type=list[str]):
            self._paused.add(queue)
            self._table.ready.pause(queue)
        self._check_disk()
        self.is_active = True
        self._lose_inherited(inherited, workers_are_gone, self._clock.now_ms() + limits.LEASE_MS)
        self._every(limits.SAFETY_NET_S, self._running.safety_net, "the safety net")
        self._every(1.0, driver.give_up_overdue, "looking for overdue callers")
        self._every(limits.DISK_CHECK_S, self._check_disk, "the disk check")
        self._every(limits.PURGE_EVERY_S, self._retention.round, "the purge")
        self._running.find_due()
        self._running.wake()

    def _every(self, seconds: float, call: Callable[[], object], what: str) -> None:
        self._loops.append(self._clock.every(seconds, cast("Callable[[], None]", call), what))

    def refuse_work(self) -> None:
        """From now on no submit is accepted and no task is claimed; what runs may still finish."""
        self.is_stopping = True

    async def stop(self) -> None:
        """Flush everything that was accepted; the store stays open."""
        self.refuse_work()
        self._running.stop()
        self._reading.stop()
        for loop, over in self._loops:
            if loop.running:
                loop.stop()
            await over
        self._loops.clear()
        if self.is_active:
            await self._table.driver.idle()
            self.is_active = False
            self._table.driver.stop()

    def _lose_inherited(self, task_ids: list[str], workers_are_gone: Callable[[], bool], lease_over_ms: int) -> None:
        """Attempts of an earlier start of this node are lost once nothing can be running them any more (section 8)."""
        if not task_ids or self.is_stopping:
            return
        if workers_are_gone() or self._clock.now_ms() >= lease_over_ms:
            _log.info("{count} attempts of the last start are lost", count=len(task_ids), event="attempts_lost")
            for first in range(0, len(task_ids), 1_000):
                self._running.lose(task_ids[first : first + 1_000]).addErrback(self._log_failure)
            return
        self._clock.call_later(0.1, self._lose_inherited, task_ids, workers_are_gone, lease_over_ms)

    def _log_failure(self, why: Failure) -> None:
        _log.error("could not book lost attempts: {why}", why=why.getErrorMessage(), event="lose_failed")

    def _check_disk(self) -> None:
        free = self._store.disk_free_bytes()
        low = free < self._settings.disk_free_bytes_min
        if low is not self.is_disk_low:
            self.is_disk_low = low
            say = _log.warn if low else _log.info
            say("{free} bytes of disk are free; new work is {what}", free=free, what="refused" if low else "taken",
                event="disk_low" if low else "disk_ok")  # fmt: skip
        if free < limits.DISK_FLOOR_BYTES:
            self._on_disk_floor()

    # --- what the parts tell one another ---
    def _wake(self) -> None:
        self._running.wake()

    def _schedule_due(self) -> None:
        self._running.schedule_due()

    def _committed(self, changes: list[Change]) -> None:
        count = self._table.count
        measure = self._metrics.transition
        shown = []
        for transition, row in changes:
            count(transition)
            if transition.attempt == PURGED:
                self._metrics.adjust_tasks(transition.queue, transition.to_state, -1)
                continue
            measure(transition, row)
            shown.append(transition)
        self._events.publish(shown)
        self._reading.tell_ended(shown)

    # --- facade: api ---
    @property
    def node_name(self) -> str:
        return self._settings.node_name

    def submit(self, submission: Submission) -> Deferred[Accepted]:
        return self._submitting.submit(submission)

    def submit_many(self, submissions: Sequence[Submission]) -> Deferred[list[Accepted | TaskQueueError]]:
        return self._submitting.submit_many(submissions)

    def get(self, task_id: str, *, wait_s: float = 0.0, local: bool = False) -> Deferred[Read]:
        return maybeDeferred(self._reading.get, task_id, wait_s, local)

    def list(self, query: ListQuery) -> Deferred[TaskPage]:
        return Deferred.fromCoroutine(self._reading.list(query))

    def stats(self, *, cluster: bool = False) -> Deferred[Stats]:
        if not self.is_active:
            return fail(NotReady("the node is starting"))
        return succeed(self._reading.stats())

    def cancel(self, task_id: str) -> Deferred[TaskRow]:
        return self._operate(task_id, self._cancel_slot)

    def retry(self, task_id: str) -> Deferred[TaskRow]:
        return self._operate(task_id, self._retry_slot)

    def _operate(self, task_id: str, operation: Callable[[Slot], TaskRow]) -> Deferred[TaskRow]:
        if not self.is_active:
            return fail(NotReady("the node is starting"))
        if self.is_stopping:
            return fail(Draining())

        def found(slot: Slot) -> Deferred[TaskRow]:
            if self.is_stopping:
                raise Draining
            try:
                row = operation(slot)
            except (AlreadyFinal, NotRetryable) as why:
                # What it says must be committed before it is said: the end that it tells of could still be lost.
                refusal = why
                told = self._table.committed_wait(slot, Wait(None, self._clock.now_ms(), 1, task_id))
                if told is None:
                    raise
                return told.addCallback(lambda _: fail(refusal))
            committed = self._table.committed_wait(slot, Wait(row, self._clock.now_ms(), 1, task_id))
            return succeed(row) if committed is None else cast("Deferred[TaskRow]", committed)

        return self._table.load([task_id]).addCallback(lambda rows: found(existing(rows[task_id], task_id)))

    def _cancel_slot(self, slot: Slot) -> TaskRow:
        before = slot.row
        assert before is not None
        now_us = self._clock.wall_us()
        self._table.change(slot, Cancel(now_us), now_us)
        if before.state is State.PROCESSING and before.token is not None:
            self._running.stop_attempt(before.spec.id, before.token)
        assert slot.row is not None
        return slot.row

    def _retry_slot(self, slot: Slot) -> TaskRow:
        now_us = self._clock.wall_us()
        self._table.change(slot, Retry(now_us), now_us)
        assert slot.row is not None
        return slot.row

    def pause(self, queue: str) -> Deferred[None]:
        if not self.is_active:
            return fail(NotReady("the node is starting"))
        if queue not in self._paused and len(self._paused) >= limits.QUEUES_MAX:
            return fail(Busy(f"{limits.QUEUES_MAX} queues are paused already"))
        self._paused.add(queue)
        self._table.ready.pause(queue)
        return self._keep_paused()

    def resume(self, queue: str) -> Deferred[None]:
        if not self.is_active:
            return fail(NotReady("the node is starting"))
        self._paused.discard(queue)
        self._table.ready.resume(queue)
        self._wake()
        return self._keep_paused()

    def _keep_paused(self) -> Deferred[None]:
        return self._table.driver.write_meta({_PAUSED: msgspec.json.encode(sorted(self._paused))})

    def paused_queues(self) -> frozenset[str]:
        return frozenset(self._paused)

    def watch(self, observer: Callable[[EventBatch], None], *, after_id: int | None = None) -> Subscription:
        return self._events.watch(observer, after_id)

    def cluster(self) -> ClusterView:
        s = self._settings
        status = "draining" if self.is_stopping else "active" if self.is_active else "joining"
        me = ClusterNode(s.node_id, s.node_name, s.http, s.peer, status, voter=True)
        return ClusterView(
            s.cluster_id,
            "taskqueue",
            [me],
            s.node_name if self.is_active else None,
            # Alone in its cluster a node elects itself once at each start.
            s.incarnation,
            s.partition_count,
            s.replication_factor,
        )

    def partition_views(self) -> Sequence[PartitionView]:
        name = self._settings.node_name
        if not self.is_active:
            return [
                PartitionView(p, None, [], [], 0, 0, None, None, {}, [], [], "starting")
                for p in range(self._settings.partition_count)
            ]
        return [
            PartitionView(
                log.partition, name, [], [name], log.epoch, log.epoch, log.last_sequence, log.committed, {}, [], [],
                "active" if log.is_active else "starting",
            )
            for log in self._table.driver.logs
        ]  # fmt: skip

    def uncommitted_bytes(self) -> int:
        """Proposed and not yet durable; for metrics."""
        return self._table.driver.uncommitted_bytes if self.is_active else 0

    def not_ready(self) -> Sequence[NotReadyReason]:
        reasons = []
        if not self.is_active:
            reasons.append(NotReadyReason("not_ready", "the node is reading its store"))
        if self.is_stopping:
            reasons.append(NotReadyReason("draining", "the node is stopping"))
        if self.is_disk_low:
            reasons.append(NotReadyReason("disk_full", "less disk space is free than --min-free-disk asks for"))
        return reasons

    def backup(self) -> Deferred[str]:
        name = f"snapshot-{self._clock.wall_us()}.sqlite3"
        path = os.path.join(self._settings.backup_dir, name)
        return self._store.backup(path).addCallback(lambda _: path)

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        if not self.is_active:
            return succeed({})

        def aged(oldest: dict[str, int]) -> dict[str, float]:
            now_us = self._clock.wall_us()
            ages = dict.fromkeys(self._table.counts, 0.0)
            for queue, run_at_us in oldest.items():
                ages[queue] = max(0.0, (now_us - run_at_us) / 1e6)
            return ages

        return self._table.driver.settle().addCallback(lambda _: self._store.oldest_pending()).addCallback(aged)

    # --- facade: work ---
    def attach(self, worker: Worker) -> None:
        self._running.attach(worker)

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        return self._running.claim(limit)

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        return self._running.finish(claim, outcome, notes)

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        return self._running.note(claim, notes)

    def lease_ms(self, partition: int) -> int:
        return self._running.lease_ms(partition)
