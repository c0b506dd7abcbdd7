"""The queue of one node: ``facade.TaskQueue`` made of the parts of ``runtime``. It joins them and holds no rule itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster.views import Progress
from tq_node.errors import (
    AlreadyFinal,
    Draining,
    NoSuchTask,
    NotFinal,
    NotReady,
    NotRetryable,
    TaskQueueError,
)
from tq_node.facade import (
    Accepted,
    Claim,
    EventBatch,
    ListQuery,
    Notes,
    NotReadyReason,
    Outcome,
    Read,
    Stats,
    Submission,
    Subscription,
    TaskPage,
    Worker,
)
from tq_node.observe.metrics import Metrics
from tq_node.partition.apply_queue import ApplyQueue
from tq_node.partition.lifecycle import Cancel, Retry
from tq_node.partition.record import Record
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.peer_calls import EventsAfter
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.replication.ports import Surroundings
from tq_node.runtime.replication.read_index import ROUND_S
from tq_node.runtime.replication.replicator import Replication
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.snapshot_taker import SnapshotTaker
from tq_node.runtime.tasks.activation import Activation
from tq_node.runtime.tasks.claims import Claims
from tq_node.runtime.tasks.event_log import EventLog, events_after
from tq_node.runtime.tasks.handler_map import HandlerMap
from tq_node.runtime.tasks.reads import TaskReads
from tq_node.runtime.tasks.recovery import recover_copies
from tq_node.runtime.tasks.retention import Retention
from tq_node.runtime.tasks.row_cache import Slot
from tq_node.runtime.tasks.submit import Submitter
from tq_node.runtime.tasks.task_table import PURGED, TaskTable, existing
from tq_node.store.api import Store
from tq_node.types import Change, NodeId, State, TaskRow, TaskSpec, Token

_log = Logger(namespace="taskqueue.queue")
_EVENT_ID_BITS = 40
"""Event ids of one start of the node lie below those of the next: a trillion each."""


class LocalQueue:
    """See the module's docstring.

    :param stop_elsewhere: tell the node (named) that its attempt (task id, token) holds the task no more; nobody waits for it.
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
        surroundings: Surroundings,
        stop_elsewhere: Callable[[str, str, Token], None],
        on_disk_floor: Callable[[], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self.is_active = False
        self.is_stopping = False
        self._snapshots = SnapshotTaker(store, clock, settings)
        self.is_disk_low = False
        self._store = store
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._surroundings = surroundings
        self._stop_elsewhere = stop_elsewhere
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
        self._submitting = Submitter(self._table, clock, settings, self, self._horizons)
        self._running = Claims(self._table, clock, settings, self)
        self._reading = TaskReads(self._table, store, clock, settings, self)
        self._retention = Retention(self._table, store, clock, settings, self._horizons)
        self.leading: Activation
        """From ``start`` on, and so is the next."""
        self.replication: Replication
        self.on_ready: Callable[[], None] = lambda: None
        """There may be something to claim. Called for each task, so it must be cheap."""
        self._unapplied: ApplyQueue
        self._loops: list[Loop] = []

    # --- life ---
    async def start(self, *, workers_are_gone: Callable[[], bool]) -> None:
        """Recover what is on disk; which partitions to lead, ``lead`` says.

        :param workers_are_gone: see ``Activation``.
        """
        settings = self._settings
        recovered = await recover_copies(
            self._store, settings.node_id, settings.partition_count, settings.copy_rate_bytes_s
        )
        self._unapplied = recovered.unapplied
        self.replication = Replication(self._store, self._clock, recovered, self._surroundings, events=self)
        self._table.driver = driver = self.replication.driver
        self._table.refusals = self.replication.refusals
        self._reading.replication = self.replication
        # Time goes on from where the store left it, whatever the system's clock says now (section 8, schedules).
        self._clock.wall_us.not_before(await self._store.newest_us())
        self._check_disk()
        self.leading = Activation(
            self._table,
            driver,
            self._store,
            self._clock,
            self._running,
            node_name=settings.node_name,
            workers_are_gone=workers_are_gone,
            on_serving=self._serving,
            on_served=self._events.skip,  # what was inherited was news at another node, or at none
            on_left=self._reading.left,
            on_broken=self._on_broken,
        )
        self.is_active = True
        self._every(limits.SAFETY_NET_S, self._running.safety_net, "the safety net")
        self._every(ROUND_S, self.replication.round, "ticks and a ping round")
        self._every(1.0, driver.give_up_overdue, "looking for overdue callers")
        self._every(limits.DISK_CHECK_S, self._check_disk, "the disk check")
        self._every(limits.PURGE_EVERY_S, self._retention.round, "the purge")

    def follow(self, records: Mapping[int, Record], names: Mapping[NodeId, str]) -> None:
        """:param records: of every partition, as the table has them now. :param names: of all nodes."""
        self.replication.follow(records, names)

    def _serving(self, partition: int) -> None:
        """What is refused as too old depends on what is committed, and may have been another primary's to say."""
        self._horizons.pop(partition, None)
        if partition in self._unapplied.horizons:
            self._horizons[partition] = self._unapplied.horizons[partition]

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
        for loop in self._loops:
            loop.stop()
            await loop.over
        self._loops.clear()
        if self.is_active:
            self.leading.stop()
            await self._table.driver.idle()
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
            self._on_disk_floor()
        health = self._table.driver.disk_health
        if health.look(self._clock.now_ms()):
            say = _log.warn if health.is_slow else _log.info
            say("commits are {what}", what="slow: others are to lead" if health.is_slow else "fast enough again",
                event="disk_slow" if health.is_slow else "disk_fast")  # fmt: skip

    @property
    def may_lead(self) -> bool:
        """As far as the disk goes: it has room (F11), and its commits don't hold up everybody (F12)."""
        return not (self.is_disk_low or self._table.driver.disk_health.is_slow)

    # --- what the parts tell one another ---
    def _wake(self) -> None:
        self._running.wake()
        self.on_ready()

    def _schedule_due(self) -> None:
        self._running.schedule_due()

    # --- ReplicaEvents ---
    def activated(self, partition: int, epoch: int) -> None:
        self.leading.activated(partition, epoch)

    def stepped_down(self, partition: int) -> None:
        self.leading.stepped_down(partition)

    def applied(self, rows: list[tuple[str, int]]) -> None:
        self._table.rows.applied(rows)

    def spec_of(self, task_id: str) -> TaskSpec | None:
        return self._table.spec_of(task_id)

    def broken(self, why: BaseException) -> None:
        self._on_broken(why)

    def committed(self, changes: list[Change]) -> None:
        count = self._table.count
        measure = self._metrics.transition
        shown = []
        for transition, row in changes:
            count(transition)
            if transition.attempt == PURGED:
                continue
            measure(transition, row)
            shown.append(transition)
        self._events.publish(shown)
        self._reading.tell_ended(shown)

    # --- facade: api ---
    @property
    def node_name(self) -> str:
        return self._settings.node_name

    @property
    def node_id(self) -> NodeId:
        return self._settings.node_id

    def name(self, submission: Submission) -> bool:
        """Give it an id; returns whether it lives here, in this turn. See ``landing``."""
        return self._submitting.name(submission)

    def name_all(self, submissions: Sequence[Submission]) -> bool:
        return self._submitting.name_all(submissions)

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

    def purge(self, task_id: str) -> Deferred[TaskRow]:
        return self._operate(task_id, self._retention.purge)

    def _operate(self, task_id: str, operation: Callable[[Slot], TaskRow]) -> Deferred[TaskRow]:
        if not self.is_active:
            return fail(NotReady("the node is starting"))
        if self.is_stopping:
            return fail(Draining())

        def found(slot: Slot) -> Deferred[TaskRow]:
            if self.is_stopping:
                raise Draining
            self._table.must_accept(slot.partition, task_id)
            try:
                row = operation(slot)
            except (AlreadyFinal, NotRetryable, NotFinal) as why:
                # What it says must be committed before it is said: the end that it tells of could still be lost.
                refusal = why
                told = self._table.committed_wait(slot, Wait(None, self._clock.now_ms(), 1, task_id))
                if told is None:
                    raise
                return told.addCallback(lambda _: fail(refusal))
            committed = self._table.committed_wait(slot, Wait(row, self._clock.now_ms(), 1, task_id))
            if committed is None:  # nothing had to be changed
                return self._if_still_led(slot.partition, lambda: succeed(row))
            return cast("Deferred[TaskRow]", committed)

        def refused(why: Failure) -> Any:
            if not why.check(NoSuchTask, AlreadyFinal, NotRetryable, NotFinal):
                return why
            return self._if_still_led(self._table.partition_of(task_id), lambda: fail(why))

        loaded = self._table.load([task_id])
        return loaded.addCallback(lambda rows: found(existing(rows[task_id], task_id))).addErrback(refused)

    def _if_still_led(self, partition: int, told: Callable[[], Deferred[TaskRow]]) -> Deferred[TaskRow]:
        """What is told of a task without changing it is a strong read: another node may lead by now (section 7)."""
        confirming = self.replication.read_index.when_confirmed(partition)
        return told() if confirming is None else cast("Deferred[TaskRow]", confirming.addCallback(lambda _: told()))

    def _cancel_slot(self, slot: Slot) -> TaskRow:
        before = slot.row
        assert before is not None
        now_us = self._clock.wall_us()
        self._table.change(slot, Cancel(now_us), now_us)
        if before.state is State.PROCESSING and before.token is not None:
            if before.worker in (None, self._settings.node_name):
                self._running.stop_attempt(before.spec.id, before.token)
            else:
                self._running.end_elsewhere(before.spec.id, before.token)
                self._stop_elsewhere(before.worker, before.spec.id, before.token)
        assert slot.row is not None
        return slot.row

    def _retry_slot(self, slot: Slot) -> TaskRow:
        now_us = self._clock.wall_us()
        self._table.change(slot, Retry(now_us), now_us)
        assert slot.row is not None
        return slot.row

    def set_paused(self, queues: Collection[str]) -> None:
        """These queues, and no others, are paused: nothing of them starts."""
        for queue in self._paused.difference(queues):
            self._paused.discard(queue)
            self._table.ready.resume(queue)
            self._wake()
        for queue in set(queues).difference(self._paused):
            self._paused.add(queue)
            self._table.ready.pause(queue)

    def uses(self, queue: str) -> bool:
        return self._submitting.uses(queue)

    def paused_queues(self) -> frozenset[str]:
        return frozenset(self._paused)

    def watch(self, observer: Callable[[EventBatch], None], *, after_id: int | None = None) -> Subscription:
        return self._events.watch(observer, after_id)

    def progress(self) -> dict[int, Progress]:
        """How far the partitions are that this node leads, or is about to."""
        if not self.is_active:
            return {}
        sizes = self._store.partition_bytes()
        return {
            core.partition: Progress(
                core.partition in self._table.leading,
                core.last_sequence,
                core.committed,
                core.lag(),
                core.copying(sizes.get(core.partition, 0)),
            )
            for core in self._table.driver.cores
            if core.is_leading or core.primary == core.me
        }

    def task_bytes(self) -> dict[int, int]:
        """Bytes of each partition that has tasks here, ended ones and the marks of purged ones too."""
        return self._store.partition_bytes()

    def events_after(self, question: EventsAfter) -> Deferred[EventBatch]:
        """For a node that watches the whole cluster."""
        return events_after(self._events, self._clock, question)

    def task_counts(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Tasks of the partitions led here, by queue and state, a partition after another; for metrics."""
        for counts in list(self._table.partition_counts.values()):
            yield from list(counts.items())

    def uncommitted_bytes(self) -> int:
        """Proposed and not yet durable; for metrics."""
        return self._table.driver.uncommitted_bytes if self.is_active else 0

    def copied_bytes(self) -> int:
        """Sent to copies that did not count; for metrics."""
        return self._table.driver.copied_bytes if self.is_active else 0

    def not_ready(self) -> Sequence[NotReadyReason]:
        reasons = []
        if not self.is_active:
            reasons.append(NotReadyReason("not_ready", "the node is reading its store"))
        elif waiting := self.leading.waiting():
            detail = f"{len(waiting)} partitions that this node leads are not active yet"
            reasons.append(NotReadyReason("not_active", detail))
        if self.is_stopping:
            reasons.append(NotReadyReason("draining", "the node is stopping"))
        if self.is_disk_low:
            reasons.append(NotReadyReason("disk_full", "less disk space is free than --min-free-disk asks for"))
        return reasons

    def backup(self) -> Deferred[Sequence[str]]:
        return self._snapshots.take()

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        if not self.is_active:
            return succeed({})

        def aged(oldest: dict[str, int]) -> dict[str, float]:
            now_us = self._clock.wall_us()
            ages = dict.fromkeys(self._table.open_queues, 0.0)
            for queue, run_at_us in oldest.items():
                ages[queue] = max(0.0, (now_us - run_at_us) / 1e6)
            return ages

        return self._table.driver.settle().addCallback(lambda _: self._store.oldest_pending()).addCallback(aged)

    # --- facade: work ---
    def attach(self, worker: Worker) -> None:
        self._running.attach(worker)

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        return self._running.claim(limit)

    def backlog(self, types: Collection[str] | None = None) -> int:
        """How many ready tasks of these types (None: any) there are beyond what the worker here could start now."""
        return self._running.backlog(types) if self.is_active and not self.is_stopping else 0

    def follow_handlers(self, own: Collection[str] | None, known: Collection[str]) -> None:
        """:param own: the types that the worker here takes, None: any. :param known: those that any worker names."""
        self._running.follow_handlers(own, known)
        self.on_ready()

    def lend(self, limit: int, node: str, types: Collection[str] | None) -> Deferred[Sequence[Claim]]:
        """Claim for another node's worker; see ``Claims.lend``."""
        return self._running.lend(limit, node, types)

    def give_up_unhandled(self, handling: HandlerMap, after_us: int) -> None:
        """Fail what has waited so long for a handler."""
        if self.is_active and not self.is_stopping:
            self._running.giving_up.round(handling, after_us)

    def hold(self, claims: Sequence[Claim]) -> None:
        """Claimed at another node for the worker here, which is about to run them."""
        self._running.hold(claims)

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        return self._running.finish(claim, outcome, notes)

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        return self._running.note(claim, notes)

    def leads(self, partition: int) -> bool:
        """Whether it is led here and served."""
        return partition in self._table.leading

    def held_claims(self) -> Sequence[Claim]:
        """The attempts that this node's worker runs, also those whose partition is led elsewhere by now."""
        return self._running.held_claims()

    def stop_attempt(self, task_id: str, token: Token) -> None:
        """An attempt that runs here holds its task no more: its handler is to be stopped."""
        self._running.stop_attempt(task_id, token)

    def let_go(self, claim: Claim) -> None:
        """Its end has been told at the node that leads its partition."""
        self._running.let_go(claim)

    def renew(self, partition: int, attempts: Sequence[tuple[str, Token]]) -> Deferred[Sequence[bool]]:
        """Whether these attempts, which run at another node, still hold their tasks; see ``Claims.renew``."""

        def renewed() -> Deferred[Sequence[bool]]:
            self._table.must_lead(partition)  # before a round is asked for that nobody would hear of
            confirmed = self.replication.read_index.when_confirmed(partition)
            return cast("Deferred[Sequence[bool]]", self._running.renew(partition, attempts, confirmed))

        return maybeDeferred(renewed)

    def lease_ms(self, partition: int) -> int:
        return self._running.lease_ms(partition)
