"""The queue of one node: the tasks of the partitions that it leads, over this node's copies of all
partitions.

``open_local_queue`` recovers what is on disk and puts the parts together. Who submits, reads,
claims or watches calls the parts themselves: ``submitter``, ``reads``, ``claims``, ``events``.
``LocalQueue`` tells them what happens to the partitions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster.views import Progress
from tq_node.errors import AlreadyFinal, Draining, NoSuchTask, NotFinal, NotRetryable
from tq_node.facade import Extended, HeldAttempt, NotReadyReason
from tq_node.observe.metrics import Metrics
from tq_node.partition.lifecycle import Cancel, Retry
from tq_node.partition.record import Record
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.replication.ports import Replicas, Surroundings
from tq_node.runtime.replication.read_index import LOOK_S, ROUND_S
from tq_node.runtime.replication.replicator import Replication
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.snapshot_taker import SnapshotTaker
from tq_node.runtime.tasks.activation import Activation
from tq_node.runtime.tasks.claims import Claims
from tq_node.runtime.tasks.event_log import EventLog
from tq_node.runtime.tasks.handler_map import HandlerMap
from tq_node.runtime.tasks.reads import TaskReads
from tq_node.runtime.tasks.recovery import recover_copies
from tq_node.runtime.tasks.retention import Retention
from tq_node.runtime.tasks.submit import Submitter
from tq_node.runtime.tasks.task_table import PURGED, RowCache, Slot, TaskTable, existing
from tq_node.store.api import Store
from tq_node.tokens import Asker
from tq_node.types import Change, NodeId, State, TaskRow, Token

_log = Logger(namespace="taskqueue.queue")
_EVENT_ID_BITS = 40
"""Event ids of one start of the node lie below those of the next: a trillion each."""


class QueueHooks(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue of a node needs of the rest of its process."""

    surroundings: Surroundings
    """The link to peers, and the controller."""
    on_disk_floor: Callable[[], None]
    """So little disk is left that the node must stop in order."""
    on_broken: Callable[[BaseException], None]
    """A promise is broken: the process must end at once (R20)."""
    stop_elsewhere: Callable[[str, str, Token], None]
    """Tell the named node that its attempt (task id, token) lost the task; nobody waits for it."""
    tell_worker: Callable[[str], None]
    """Have the remote worker of this name extend its leases now: it has lost one."""
    workers_are_gone: Callable[[], bool]
    """Whether no worker process of an earlier start of this node lives (see ``Activation``)."""


async def open_local_queue(
    store: Store, clock: Clock, settings: QueueSettings, metrics: Metrics, hooks: QueueHooks
) -> LocalQueue:
    """Recover what is on disk. The queue that comes back leads no partition before ``follow`` names
    one.

    :raises StoreBroken: an entry of a log is missing, or can't be decoded."""
    recovered = await recover_copies(store, settings.node_id, settings.partition_count, settings.copy_rate_bytes_s)
    # Time goes on from where the store left it, whatever the system's clock says (section 8).
    clock.wall_us.not_before(await store.newest_us())
    queue = LocalQueue(store, clock, settings, metrics, recovered, hooks)
    queue.start()
    return queue


class LocalQueue:
    """See the module. ``is_active`` until it is stopped; ``is_stopping``: it takes no new work."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: QueueSettings,
        metrics: Metrics,
        recovered: Replicas,
        hooks: QueueHooks,
    ) -> None:
        self.is_active = True
        self.is_stopping = False
        self.is_disk_low = False
        self.on_ready: Callable[[], None] = lambda: None
        """There may be something to claim. Called for each task, so it must be cheap."""
        self.snapshots = SnapshotTaker(store, clock, settings)
        self.events = EventLog(settings.incarnation << _EVENT_ID_BITS)
        self._store = store
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._hooks = hooks
        self._paused: set[str] = set()
        self._paused_types: frozenset[str] = frozenset()
        self._committed_horizons = recovered.unapplied.horizons
        self._horizons: dict[int, int] = {}
        """By partition led here: ids made before this time are refused as too old."""
        self._rows = rows = RowCache()
        self.spec_of = rows.spec_of
        self.replication = Replication(store, clock, recovered, hooks.surroundings, events=self)
        self.table = TaskTable(store, self.replication.driver, rows, self.replication.refusals, settings, self)
        self.submitter = Submitter(self.table, clock, settings, self, self._horizons)
        self.claims = Claims(self.table, clock, settings, self)
        self.reads = TaskReads(self.table, store, clock, settings, self, self.replication)
        self._retention = Retention(self.table, store, clock, settings, self._horizons)
        self.activation = Activation(self.table, store, clock, self.claims, self)
        self._loops: list[Loop] = []

    # --- life ---
    def start(self) -> None:
        """Begin what goes on by itself: ticks, pings, purges, looks at the disk."""
        self._check_disk()
        self._every(limits.SAFETY_NET_S, self.claims.safety_net, "the safety net")
        self._every(LOOK_S, self.replication.look, "the look at all partitions")
        self._every(ROUND_S, self.replication.read_index.begin, "a ping round")
        self._every(1.0, self.table.driver.give_up_overdue, "looking for overdue callers")
        self.claims.of_workers.begin()
        self._every(limits.DISK_CHECK_S, self._check_disk, "the disk check")
        self._every(limits.PURGE_EVERY_S, self._retention.round, "the purge")

    def follow(self, records: Mapping[int, Record], names: Mapping[NodeId, str]) -> None:
        """Take up the cluster map's records of all partitions, and the names of all nodes."""
        self.replication.follow(records, names)

    def _every(self, seconds: float, call: Callable[[], object], what: str) -> None:
        self._loops.append(self._clock.every(seconds, cast("Callable[[], None]", call), what))

    def refuse_work(self) -> None:
        """From now on no submit is accepted and no task is claimed; what runs may still finish."""
        self.is_stopping = True

    async def stop(self) -> None:
        """Flush all that was accepted; the store stays open. The second time does nothing."""
        self.refuse_work()
        self.claims.stop()
        await self.claims.of_workers.stop()
        self.reads.stop()
        for loop in self._loops:
            loop.stop()
            await loop.ended
        self._loops.clear()
        if not self.is_active:
            return
        self.activation.stop()
        await self.table.driver.idle()
        self.is_active = False
        self.replication.stop()

    def _check_disk(self) -> None:
        free = self._store.disk_free_bytes()
        low = free < self._settings.disk_free_bytes_min
        if low is not self.is_disk_low:
            self.is_disk_low = low
            say = _log.warn if low else _log.info
            say("{free} bytes of disk are free; new work is {what}", free=free, what="refused" if low else "taken",
                event="disk_low" if low else "disk_ok")  # fmt: skip
        if free < limits.DISK_FLOOR_BYTES:
            self._hooks.on_disk_floor()
        health = self.table.driver.disk_health
        if health.look(self._clock.now_ms()):
            say = _log.warn if health.is_slow else _log.info
            say("commits are {what}", what="slow: others are to lead" if health.is_slow else "fast enough again",
                event="disk_slow" if health.is_slow else "disk_fast")  # fmt: skip

    @property
    def may_lead(self) -> bool:
        """Whether the disk allows it: it has room (F11) and doesn't hold up everybody (F12)."""
        return not (self.is_disk_low or self.table.driver.disk_health.is_slow)

    # --- TableHost ---
    def wake(self) -> None:
        self.claims.wake()
        self.on_ready()

    def schedule_due(self) -> None:
        self.claims.schedule_due()

    # --- ActivationHost ---
    def workers_are_gone(self) -> bool:
        return self._hooks.workers_are_gone()

    def counts_makers(self) -> bool:
        return self._settings.counts_makers()

    def serving(self, partition: int) -> None:
        # What is refused as too old depends on the committed horizon, maybe another primary's.
        self._horizons.pop(partition, None)
        if partition in self._committed_horizons:
            self._horizons[partition] = self._committed_horizons[partition]

    def served(self) -> None:
        self.events.skip()  # what was inherited was news at another node, or at none

    # --- ReplicaEvents ---
    def activated(self, partition: int, epoch: int) -> None:
        self.activation.activated(partition, epoch)

    def stepped_down(self, partition: int) -> None:
        self.activation.stepped_down(partition)
        self.reads.stepped_down(partition)

    def applied(self, rows: list[tuple[str, int]]) -> None:
        self._rows.applied(rows)

    def broken(self, why: BaseException) -> None:
        self._hooks.on_broken(why)

    def committed(self, changes: list[Change]) -> None:
        self.table.count(changes)
        # A purge is no change of state: nobody is shown it.
        self._metrics.transitions(changes := [change for change in changes if change[0].attempt != PURGED])
        shown = [transition for transition, _ in changes]
        self.events.publish(shown)
        if self.reads.watches:
            self.reads.tell_ended(shown)

    # --- what callers ask ---
    @property
    def node_name(self) -> str:
        return self._settings.node_name

    @property
    def node_id(self) -> NodeId:
        return self._settings.node_id

    def cancel(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        return self._operate(task_id, asker, self._cancel_slot)

    def retry(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        return self._operate(task_id, asker, self._retry_slot)

    def purge(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        return self._operate(task_id, asker, self._retention.purge)

    def _operate(self, task_id: str, asker: Asker | None, operation: Callable[[Slot], TaskRow]) -> Deferred[TaskRow]:
        if self.is_stopping:
            return fail(Draining())

        def found(slot: Slot) -> Deferred[TaskRow]:
            if self.is_stopping:
                raise Draining
            self.table.must_accept(slot.partition, task_id)
            try:
                row = operation(slot)
            except (AlreadyFinal, NotRetryable, NotFinal) as why:
                # What it says must be committed first: the end it tells of could still be lost.
                refusal = why
                committed = self.table.committed_wait(slot, Wait(None, self._clock.now_ms(), 1, task_id))
                if committed is None:
                    raise
                return committed.addCallback(lambda _: fail(refusal))
            committed = self.table.committed_wait(slot, Wait(row, self._clock.now_ms(), 1, task_id))
            if committed is None:  # nothing had to be changed
                return self._if_still_led(slot.partition, lambda: succeed(row))
            return cast("Deferred[TaskRow]", committed)

        def refused(why: Failure) -> Any:
            # It is led here, so a task that the asker may not know of is as one that never was.
            if not why.check(NoSuchTask, AlreadyFinal, NotRetryable, NotFinal):
                return why
            return self._if_still_led(self.table.partition_of(task_id), lambda: fail(why))

        loaded = self.table.load([task_id])
        return loaded.addCallback(lambda rows: found(existing(rows[task_id], task_id, asker))).addErrback(refused)

    def _if_still_led(self, partition: int, answer: Callable[[], Deferred[TaskRow]]) -> Deferred[TaskRow]:
        """An answer that changes nothing is a strong read: another node may lead (section 7)."""
        confirming = self.replication.read_index.when_confirmed(partition)
        return answer() if confirming is None else cast("Deferred[TaskRow]", confirming.addCallback(lambda _: answer()))

    def _cancel_slot(self, slot: Slot) -> TaskRow:
        before = slot.row
        assert before is not None
        now_us = self._clock.wall_us()
        self.table.change(slot, Cancel(now_us), now_us)
        if before.state is State.PROCESSING and before.token is not None:
            if before.lease is not None:
                self.claims.end_elsewhere(before.spec.id, before.token, before.lease.lease_ms)
                self._hooks.tell_worker(before.worker or "")
            elif before.worker in (None, self._settings.node_name):
                self.claims.stop_attempt(before.spec.id, before.token)
            else:
                self.claims.end_elsewhere(before.spec.id, before.token)
                self._hooks.stop_elsewhere(before.worker, before.spec.id, before.token)
        assert slot.row is not None
        return slot.row

    def _retry_slot(self, slot: Slot) -> TaskRow:
        now_us = self._clock.wall_us()
        self.table.change(slot, Retry(now_us), now_us)
        assert slot.row is not None
        return slot.row

    def set_paused(self, queues: Collection[str], types: Collection[str] = ()) -> None:
        """These queues and types, and no others, are paused: nothing of them starts."""
        if self._paused_types != frozenset(types):
            self._paused_types = frozenset(types)
            self.claims.pause_types()
        for queue in self._paused.difference(queues):
            self._paused.discard(queue)
            self.table.ready.resume(queue)
            self.wake()
        for queue in set(queues).difference(self._paused):
            self._paused.add(queue)
            self.table.ready.pause(queue)

    def paused_queues(self) -> frozenset[str]:
        return frozenset(self._paused)

    def paused_types(self) -> frozenset[str]:
        return self._paused_types

    def progress(self) -> dict[int, Progress]:
        """How far the partitions are that this node leads, or is about to."""
        sizes = self._store.partition_bytes()
        return {
            core.partition: Progress(
                core.partition in self.table.leading,
                core.last_sequence,
                core.committed,
                core.lag(),
                core.copying(sizes.get(core.partition, 0)),
            )
            for core in self.table.driver.cores
            if core.is_leading or core.primary == core.me
        }

    def task_bytes(self) -> dict[int, int]:
        """Bytes of each partition with tasks here, ended ones and marks of purged ones too."""
        return self._store.partition_bytes()

    def task_counts(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Tasks of partitions led here, by queue and state, partition by partition; for metrics."""
        for counts in list(self.table.partition_counts.values()):
            yield from list(counts.items())

    def uncommitted_bytes(self) -> int:
        """Proposed and not yet durable; for metrics."""
        return self.table.driver.uncommitted_bytes

    def copied_bytes(self) -> int:
        """Sent to copies that did not count; for metrics."""
        return self.table.driver.copied_bytes

    def not_ready(self) -> Sequence[NotReadyReason]:
        reasons = []
        if waiting := self.activation.waiting():
            detail = f"{len(waiting)} partitions that this node leads are not active yet"
            reasons.append(NotReadyReason("not_active", detail))
        if self.is_stopping:
            reasons.append(NotReadyReason("draining", "the node is stopping"))
        if self.is_disk_low:
            reasons.append(NotReadyReason("disk_full", "less disk space is free than --min-free-disk asks for"))
        return reasons

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        def aged(oldest: dict[str, int]) -> dict[str, float]:
            now_us = self._clock.wall_us()
            ages = dict.fromkeys(self.table.open_queues, 0.0)
            for queue, run_at_us in oldest.items():
                ages[queue] = max(0.0, (now_us - run_at_us) / 1e6)
            return ages

        return self.table.driver.settle().addCallback(lambda _: self._store.oldest_pending()).addCallback(aged)

    # --- attempts ---
    def follow_handlers(self, own: Collection[str] | None, known: Collection[str]) -> None:
        """:param own: the types that the worker here takes, None: any.
        :param known: those that any worker names."""
        self.claims.follow_handlers(own, known)
        self.on_ready()

    def give_up_unhandled(self, handling: HandlerMap, after_us: int) -> None:
        """Fail what has waited so long for a handler."""
        if not self.is_stopping:
            self.claims.giving_up.round(handling, after_us)

    def extend(self, partition: int, worker: str, held: Sequence[HeldAttempt]) -> Deferred[list[Extended]]:
        """Extend leases of a remote worker's attempts (``WorkerAttempts``)."""

        def extended() -> Deferred[list[Extended]]:
            self.table.must_lead(partition)
            confirmed = self.replication.read_index.when_confirmed(partition)
            return self.claims.of_workers.extend(worker, held, confirmed)

        return maybeDeferred(extended)

    def leads(self, partition: int) -> bool:
        """Whether it is led here and served."""
        return partition in self.table.leading

    def renew(self, partition: int, attempts: Sequence[tuple[str, Token]]) -> Deferred[Sequence[bool]]:
        """Whether these attempts at another node still hold their tasks (``RemoteAttempts``)."""

        def renewed() -> Deferred[Sequence[bool]]:
            self.table.must_lead(partition)  # before a round is asked for that nobody would hear of
            confirmed = self.replication.read_index.when_confirmed(partition)
            return cast("Deferred[Sequence[bool]]", self.claims.remote.renew(partition, attempts, confirmed))

        return maybeDeferred(renewed)
