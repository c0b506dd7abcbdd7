"""Submits tasks: admission, ids, deduplication, the first row of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred, fail, succeed

from tq_node import limits
from tq_node.errors import (
    Busy,
    DiskReserve,
    Draining,
    IdConflict,
    IdTooOld,
    InvalidField,
    NotPrimary,
    NotReady,
    TaskPurged,
    TaskQueueError,
)
from tq_node.facade import Accepted, Submission
from tq_node.partition.lifecycle import born
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.id_allocator import IdAllocator, IdMaker, made_at_us
from tq_node.runtime.tasks.task_table import Elsewhere, Found, Slot, TaskTable
from tq_node.store.api import Tombstone
from tq_node.types import Backoff, State, TaskId, TaskRow, TaskSpec

DEFAULT_QUEUE = "default"
_DEFAULT_BACKOFF = Backoff()
_OPEN_TASKS_FOR_ALL = limits.OPEN_TASKS_MAX - limits.QUEUES_MAX * limits.OPEN_TASKS_FEW


class NodeStatus(Protocol):
    """Whether this node takes new work at all."""

    is_active: bool
    is_stopping: bool
    is_disk_low: bool


class Submitter:
    """Accepts tasks led here. ``horizons``: by partition; ids made earlier are too old."""

    def __init__(
        self, table: TaskTable, clock: Clock, settings: QueueSettings, status: NodeStatus, horizons: dict[int, int]
    ) -> None:
        self._table = table
        self._clock = clock
        self._settings = settings
        self._status = status
        self._horizons = horizons
        partition_count = settings.partition_count
        ids = IdMaker(settings.random_bytes, seed=settings.seed, partition_count=partition_count)
        self._ids = IdAllocator(ids, table.leading, table.refusals, table.driver, partition_count)

    def submit_new(self, submission: Submission, now_ms: int) -> Deferred[Accepted] | None:
        """Name it and take it in. None: it has an id now, of a partition that another node leads.

        :param now_ms: monotonic."""
        now_us = self._clock.wall_us()
        submission.id, partition = self._ids.allocate(now_us)
        submission.made = True
        if partition is None:
            return None
        refusal = self._refusal(is_large=len(submission.payload) > limits.LARGE_BODY_BYTES)
        if refusal is not None:
            return fail(refusal)
        try:
            row = self._first_row(submission, submission.id, partition, now_us)
        except TaskQueueError as why:
            return fail(why)
        accepted = Accepted(submission.id, row.state, self._settings.node_name, True)
        return self._when_committed(accepted, self._table.create(row), now_ms)

    def name_many(self, submissions: Sequence[Submission]) -> bool:
        """Give ids to those that come together; returns whether all partitions are led here now."""
        made, are_local = self._ids.allocate_many(self._clock.wall_us(), len(submissions))
        for submission, task_id in zip(submissions, made, strict=True):
            submission.id = task_id
            submission.made = True
        return are_local

    def submit(self, submission: Submission) -> Deferred[Accepted]:
        """See ``facade.TaskQueue.submit``."""
        refusal = self._refusal(is_large=len(submission.payload) > limits.LARGE_BODY_BYTES)
        if refusal is not None:
            return fail(refusal)
        if submission.id is not None and not submission.made and self._table.find(submission.id) is None:
            return self._table.load([submission.id]).addCallback(self._submit_found, submission)
        return self._submit_found(None, submission)

    def _submit_found(self, found: dict[str, Found] | None, submission: Submission) -> Deferred[Accepted]:
        one = None if found is None or submission.id is None else found[submission.id]
        try:
            accepted, slot = self._accept(submission, one, self._clock.wall_us())
        except TaskQueueError as why:
            return fail(why)
        return self._when_committed(accepted, slot, self._clock.now_ms())

    def _when_committed(self, accepted: Accepted, slot: Slot, now_ms: int) -> Deferred[Accepted]:
        wait = Wait(accepted, now_ms, 1, accepted.task_id)
        committed: Deferred[Any] | None = self._table.committed_wait(slot, wait)
        return succeed(accepted) if committed is None else committed

    def submit_many(
        self, submissions: Sequence[Submission], *, has_more: bool = False
    ) -> Deferred[list[Accepted | TaskQueueError]]:
        """See ``facade.TaskQueue.submit_many``."""
        refusal = self._refusal(is_large=True)
        if refusal is not None:
            return fail(refusal)
        own = [s.id for s in submissions if s.id is not None and not s.made]
        if any(self._table.find(task_id) is None for task_id in own):
            # All of them: resident ones may be dropped from memory while others are read.
            return self._table.load(own).addCallback(self._many_found, submissions, has_more)
        return self._many_found({}, submissions, has_more)

    def _many_found(
        self, found: dict[str, Found], submissions: Sequence[Submission], has_more: bool
    ) -> Deferred[list[Accepted | TaskQueueError]]:
        results: list[Accepted | TaskQueueError] = []
        # One wait for each partition: its last sequence covers the ones before it.
        places: dict[int, int] = {}
        now_us = self._clock.wall_us()
        for index, submission in enumerate(submissions):
            if index % 1000 == 999 and self._table.driver.is_overloaded(is_large=True):
                refusal = Busy("the node takes in more than its disk can hold on to")
                results += [refusal] * (len(submissions) - index)
                break
            try:
                one = None if submission.id is None else found.get(submission.id)
                accepted, slot = self._accept(submission, one, now_us)
            except TaskQueueError as why:
                results.append(why)
                continue
            results.append(accepted)
            if slot.sequence > places.get(slot.partition, 0):
                places[slot.partition] = slot.sequence
        cores = self._table.driver.cores
        waiting = [(p, sequence) for p, sequence in places.items() if sequence > cores[p].committed]
        if not waiting:
            return succeed(results)
        wait = Wait(results, self._clock.now_ms(), len(waiting))
        committed = self._table.driver.when_committed(wait, waiting, has_more=has_more)
        return cast("Deferred[list[Accepted | TaskQueueError]]", committed)

    # --- one task ---
    def _accept(self, submission: Submission, found: Found, now_us: int) -> tuple[Accepted, Slot]:
        """Propose the task, or find the one that is there under the same id."""
        node = self._settings.node_name
        task_id = self._ids.allocate(now_us)[0] if submission.id is None else submission.id
        partition = self._table.partition_of(task_id)
        if submission.id is not None and not submission.made:
            self._table.must_lead(partition, task_id)
            if isinstance(found, Elsewhere):
                raise NotPrimary("this node does not lead the task's partition", task_id=task_id)
            slot = self._table.find(task_id)
            if slot is not None:
                found = slot
            if found is not None:
                return self._repeat(submission, task_id, found)
            made_us = made_at_us(task_id)
            if made_us is not None and made_us < self._horizons.get(partition, 0):
                raise IdTooOld("an id of this age can't be told from a purged one any more", task_id=task_id)
        self._table.must_accept(partition, task_id)
        row = self._first_row(submission, task_id, partition, now_us)
        return Accepted(task_id, row.state, node, True), self._table.create(row)

    def _first_row(self, submission: Submission, task_id: str, partition: int, now_us: int) -> TaskRow:
        defaults = self._settings.defaults_of(submission.type)
        queue = submission.queue or defaults.queue or DEFAULT_QUEUE  # as ``queue_of``
        table = self._table
        if queue not in table.open_queues and len(table.open_queues) >= limits.QUEUES_MAX:
            self._must_be_declared(queue, task_id)
        if table.open_tasks >= _OPEN_TASKS_FOR_ALL:
            self._must_be_few(queue, task_id)
        run_at_us = now_us
        if submission.delay_us is not None:
            run_at_us = now_us + submission.delay_us
        elif submission.run_at_us is not None:
            run_at_us = max(now_us, submission.run_at_us)
        spec = TaskSpec(
            TaskId(task_id),
            submission.type,
            submission.payload,
            queue,
            limits.PRIORITY_DEFAULT if submission.priority is None else submission.priority,
            submission.max_attempts or defaults.max_attempts or limits.MAX_ATTEMPTS_DEFAULT,
            submission.timeout_ms or defaults.timeout_ms,
            submission.backoff or defaults.backoff or _DEFAULT_BACKOFF,
            submission.tags,
            now_us,
            submission.content_hash,
            submission.made_by,
        )
        return born(spec, partition, run_at_us)

    def _repeat(self, submission: Submission, task_id: str, found: Slot | Tombstone) -> tuple[Accepted, Slot]:
        """The id is known: equal content is the same task, other content a conflict (section 9).
        So is a task that the caller may not know of."""
        if isinstance(found, Tombstone) or found.row is None:
            if found.content_hash != submission.content_hash:
                raise IdConflict("a task with this id and other content has been here", task_id=task_id)
            raise TaskPurged("the task has ended and its retention is over", task_id=task_id)
        if found.row.spec.content_hash != submission.content_hash:
            raise IdConflict("a task with this id and other content exists", task_id=task_id)
        spec = found.row.spec
        if (submission.own_only and spec.made_by != submission.made_by) or (
            submission.queue_only and spec.queue != submission.queue
        ):
            raise IdConflict("a task with this id exists that this token may not know of", task_id=task_id)
        return Accepted(task_id, State(found.row.state), self._settings.node_name, False), found

    def queue_of(self, task_type: str) -> str:
        """The queue of a task of this type that names none."""
        return self._settings.defaults_of(task_type).queue or DEFAULT_QUEUE

    # --- admission ---
    def uses(self, queue: str) -> bool:
        """Whether tasks of it are open here, or are taken however many other queues there are."""
        return queue in self._table.open_queues or self._is_declared(queue)

    def _is_declared(self, queue: str) -> bool:
        return queue == DEFAULT_QUEUE or queue in self._settings.declared_queues()

    def _must_be_declared(self, queue: str, task_id: str) -> None:
        """Check a queue's name; raises ``InvalidField`` for a new one when there are too many."""
        if not self._is_declared(queue):
            raise InvalidField(
                f"queue: {limits.QUEUES_MAX} queues have tasks that have not ended, and {queue!r} is none of them",
                field="/queue",
                task_id=task_id,
            )

    def _must_be_few(self, queue: str, task_id: str) -> None:
        """:raises Busy: so many tasks have not ended that only small queues get in, or none."""
        table = self._table
        few = table.open_queues.get(queue, 0) < limits.OPEN_TASKS_FEW
        if not few or table.open_tasks >= limits.OPEN_TASKS_MAX:
            raise Busy(
                f"{table.open_tasks} tasks have not ended, the most that this node holds",
                task_id=task_id,
                retry_after_s=limits.OPEN_TASKS_FULL_RETRY_S,
            )

    def _refusal(self, *, is_large: bool) -> TaskQueueError | None:
        status = self._status
        if status.is_stopping:
            return Draining()
        if not status.is_active:
            return NotReady("the node is starting")
        if status.is_disk_low:
            return DiskReserve("less disk space is free than --min-free-disk asks for")
        if self._table.driver.is_overloaded(is_large=is_large):
            return Busy("the node takes in more than its disk can hold on to")
        return None
