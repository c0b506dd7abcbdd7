"""The tasks of the partitions led here: rows, heaps, counts, and the one way to change a row.

Each change proposes a row effect to the log, with the transition to be published at its commit, and
updates row and heap. The rest of ``runtime`` decides *which* change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Protocol, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster.placement import partition_of
from tq_node.errors import NoSuchTask, NotActive, NotPrimary, TaskPurged, TaskQueueError
from tq_node.partition.entries import Put, decode_row, put_born, put_changed, put_size, tombstone_of
from tq_node.partition.lifecycle import Claim, Event, transition
from tq_node.partition.ready_queue import DueSet, ReadySet
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.replication.driver import ReplicaDriver
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.open_by_maker import Makers, OpenByMaker
from tq_node.runtime.tasks.recovery import Counts, load_ready
from tq_node.store.api import Store, StoredRow, Tombstone
from tq_node.tokens import Asker
from tq_node.types import Change, State, TaskRow, TaskSpec, Transition, WorkerLease

_STATES = len(State)
_transition = cast("Callable[[tuple[object, ...]], Transition]", partial(tuple.__new__, Transition))
"""Makes a ``Transition`` of its values: one is made for each change of state, and its constructor
would be a call of Python."""
_STALE_ENTRIES_MAX = 10_000
OTHER_QUEUES = ""
"""Name under which queues are counted whose own names are not kept; no queue has it."""
_ASKED_TYPES_MAX = 10_000
PURGED = -1
"""In place of the attempt in a ``Transition``: the row is purged."""
PURGED_DETAIL = "the task has ended and its retention is over"
_ROW_OVERHEAD_BYTES = 1_000


class Slot(msgspec.Struct, gc=False):
    """A task's newest row, proposed or older; None: being purged, only ``content_hash`` is kept.
    ``sequence``: the newest change's entry; 0: the row is as stored."""

    partition: int
    row: TaskRow | None
    sequence: int = 0
    content_hash: bytes = b""
    body_bytes: int = 0
    """Encoded size of what changes: attempts, tracebacks, log, result."""
    claimed: int = 0
    """The entry of the latest claim proposed since the row became resident."""


class RowCache:
    """Resident rows by task id. Dirty and pinned ones stay; past ``bytes_max`` the clean ones are
    dropped, the least recently used first."""

    def __init__(self, bytes_max: int = limits.ROW_CACHE_BYTES_MAX) -> None:
        self._slots: dict[str, Slot] = {}
        self._clean: OrderedDict[str, int] = OrderedDict()
        """Cost by id, least recently used first (a dict would be slow at that after deletions)."""
        self._clean_bytes = 0
        self._bytes_max = bytes_max
        self._pins: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, task_id: str) -> Slot | None:
        slot = self._slots.get(task_id)
        if slot is not None and task_id in self._clean:
            self._clean.move_to_end(task_id)
        return slot

    def spec_of(self, task_id: str) -> TaskSpec | None:
        """The submitted part of a resident row; None: not resident."""
        slot = self._slots.get(task_id)
        return slot.row.spec if slot is not None and slot.row is not None else None

    def proposed(self) -> Iterator[tuple[TaskRow, int]]:
        """Rows of changes that the store may not show yet, each with its newest change's entry."""
        for slot in self._slots.values():
            if slot.sequence and slot.row is not None:
                yield slot.row, slot.sequence

    def pin(self, task_id: str) -> None:
        """Keep the row until ``unpin``, while others are read that are needed with it."""
        self._pins[task_id] = self._pins.get(task_id, 0) + 1
        cost = self._clean.pop(task_id, None)
        if cost is not None:
            self._clean_bytes -= cost

    def unpin(self, task_id: str) -> None:
        """Take back one ``pin``."""
        pins = self._pins[task_id] - 1
        if pins:
            self._pins[task_id] = pins
            return
        del self._pins[task_id]
        slot = self._slots.get(task_id)
        if slot is not None and slot.sequence == 0:
            if slot.row is None:
                del self._slots[task_id]
            else:
                self._keep(task_id, slot)

    def drop_partition(self, partition: int) -> None:
        """Forget every row of a partition that this node no longer leads, pinned or not."""
        for task_id in [task_id for task_id, slot in self._slots.items() if slot.partition == partition]:
            del self._slots[task_id]
            cost = self._clean.pop(task_id, None)
            if cost is not None:
                self._clean_bytes -= cost

    def add_dirty(self, task_id: str, slot: Slot) -> None:
        """Add a row born with the entry ``slot.sequence``."""
        self._slots[task_id] = slot

    def must_be_resident(self, task_id: str, slot: Slot) -> None:
        """Assert that the slot is the task's: a decision on another row may have been overtaken."""
        assert self._slots.get(task_id) is slot, "a row changes only while it is resident"

    def touch(self, task_id: str, slot: Slot, row: TaskRow | None, sequence: int) -> None:
        """Make the row dirty: ``row`` is proposed with the entry ``sequence``."""
        assert self._slots.get(task_id) is slot, "a row changes only while it is resident"
        cost = self._clean.pop(task_id, None)
        if cost is not None:
            self._clean_bytes -= cost
        slot.row = row
        slot.sequence = sequence

    def add_pinned(self, task_id: str, row: TaskRow, body_bytes: int) -> Slot:
        """Add a row read from the store, pinned once; a resident one wins."""
        slot = self._slots.get(task_id)
        if slot is None:
            slot = self._slots[task_id] = Slot(row.partition, row, body_bytes=body_bytes)
        self.pin(task_id)
        return slot

    def applied(self, rows: Iterable[tuple[str, int]]) -> None:
        """Make rows clean: of these (task id, sequence) the store shows all up to ``sequence``."""
        slots, pins = self._slots, self._pins
        for task_id, sequence in rows:
            slot = slots.get(task_id)
            if slot is None or slot.sequence == 0 or slot.sequence > sequence:
                continue
            if task_id in pins:
                slot.sequence = 0  # one that is being purged goes with the last pin
            elif slot.row is None or slot.row.state is State.SCHEDULED:
                del slots[task_id]  # a scheduled task may not be needed for long
            else:
                slot.sequence = 0
                self._keep(task_id, slot)

    def _keep(self, task_id: str, slot: Slot) -> None:
        assert slot.row is not None
        # Decoded, many small parts take about twice their encoded size.
        cost = _ROW_OVERHEAD_BYTES + len(slot.row.spec.payload) + 2 * slot.body_bytes
        self._clean[task_id] = cost
        self._clean_bytes += cost
        while self._clean_bytes > self._bytes_max:
            oldest, its_cost = self._clean.popitem(last=False)
            self._clean_bytes -= its_cost
            del self._slots[oldest]


class Elsewhere:
    """In place of a row: its partition is not led here."""


ELSEWHERE = Elsewhere()
Found = Slot | Tombstone | Elsewhere | None
"""A load's result: the slot, a purged task's mark, ``ELSEWHERE``; None: there never was one."""


class TableHost(Protocol):
    """The queue whose tasks the table holds."""

    def wake(self) -> None:
        """There may be something to claim: look. Called for each task, so it must be cheap."""

    def schedule_due(self) -> None:
        """Set the timer anew: the earliest due time may have changed. Called for each task, too."""

    def paused_queues(self) -> Collection[str]:
        """The queues of which nothing may start."""

    def paused_types(self) -> Collection[str]:
        """The types of which nothing may start."""


class TaskTable:
    """Rows, heaps and counts of partitions led here. ``refusals``: why one takes no work now."""

    def __init__(
        self,
        store: Store,
        driver: ReplicaDriver,
        rows: RowCache,
        refusals: Mapping[int, TaskQueueError],
        settings: QueueSettings,
        host: TableHost,
    ) -> None:
        self.driver = driver
        self.rows = rows
        self.find = rows.get
        """The resident slot of a task, without going to the store."""
        self.refusals = refusals
        self.ready = ReadySet()
        self.due = DueSet()
        self.leading: dict[int, int] = {}
        """Epoch by partition led and active here. Only their rows are ever resident."""
        self.partition_counts: dict[int, Counts] = {}
        """Committed rows by partition, queue and state."""
        self.open_tasks = 0
        """Number of tasks proposed and not ended, committed or not, which admission bounds."""
        self.open_queues: dict[str, int] = {}
        """``open_tasks`` by queue, never 0."""
        self._open_in: dict[int, dict[str, int]] = {}
        """``open_tasks`` by partition and queue, never 0."""
        self.made = OpenByMaker()
        self._store = store
        self.partition_of: Callable[[str], int] = partial(
            partition_of, seed=settings.seed, partition_count=settings.partition_count
        )
        self._on_ready = host.wake
        self._on_due = host.schedule_due
        self._paused_queues = host.paused_queues
        self._paused_types = host.paused_types
        self._named: frozenset[str] = frozenset()
        self._asked: frozenset[str] = frozenset()
        """Types with own lanes: ``_named`` by nodes' announcements, ``_asked`` by claims alone."""
        self._enqueued_since: list[TaskRow] | None = None
        """Rows enqueued while the heaps are built anew; None: they are not."""
        self._loads: dict[tuple[str, int | None], list[Deferred[Found]]] = {}
        """Waiters by id and epoch of the read's begin: an earlier epoch's rows may be outdated."""

    # --- leading ---
    def lead(self, partition: int, epoch: int, counts: Counts, makers: Makers | None = None) -> None:
        """Take up a partition that is active here; its stored rows show all that is committed.

        :param makers: of the open tasks among them; None: nobody needs a token."""
        self.made.lead(partition, makers or {})
        self.leading[partition] = epoch
        self.partition_counts[partition] = counts
        self._open_in[partition] = {}
        for queue, states in counts.items():
            open_tasks = sum(rows for state, rows in enumerate(states) if not State(state).is_final)
            if open_tasks:
                self._open(partition, queue, open_tasks)
        self._fold_queues(partition)

    def leave(self, partition: int) -> Counts:
        """Forget a partition that is not led here any more (R12); returns its counts."""
        del self.leading[partition]
        self.made.leave(partition)
        self.rows.drop_partition(partition)
        self.ready.drop_partition(partition)
        self.due.drop_partition(partition)
        for queue, open_tasks in list(self._open_in[partition].items()):
            self._open(partition, queue, -open_tasks)
        del self._open_in[partition]
        return self.partition_counts.pop(partition)

    def must_lead(self, partition: int, task_id: str | None = None) -> None:
        """Check that the partition is active here.

        :raises NotPrimary: it is not led here.
        :raises NotActive: not yet active (R7)."""
        if partition not in self.leading:
            cores = self.driver.cores
            if partition < len(cores) and cores[partition].is_leading:  # peers name partitions too
                raise NotActive("the partition is about to become active here", task_id=task_id)
            raise NotPrimary("this node does not lead the task's partition", task_id=task_id)

    def must_accept(self, partition: int, task_id: str) -> None:
        """Check that the partition accepts new work.

        :raises NotPrimary, NotActive: as ``must_lead``.
        :raises Draining, NotEnoughReplicas: it could not be committed, or should go elsewhere."""
        self.must_lead(partition, task_id)
        refusal = self.refusals.get(partition)
        if refusal is not None:
            raise type(refusal)(refusal.detail, task_id=task_id)

    # --- changing ---
    def create(self, row: TaskRow) -> Slot:
        """Propose a new row; its slot has the entry's sequence."""
        spec = row.spec
        # Before the proposal: dispatch runs before flush, so that a submit that finds a free slot
        # has its claim in the same append.
        self.enqueue(row)
        self._open(row.partition, spec.queue, 1)
        if spec.made_by:
            self.made.add(row.partition, spec.made_by, spec.queue, 1)
        put = put_born(row)
        news = _transition(
            (spec.id, spec.type, spec.queue, None, row.state, 0, row.partition, spec.created_us, spec.made_by)
        )
        sequence = self.driver.propose(row.partition, put, put_size(put), (news, row))
        slot = Slot(row.partition, row, sequence, body_bytes=len(put.body))
        self.rows.add_dirty(spec.id, slot)
        return slot

    def change(self, slot: Slot, event: Event, at_us: int) -> int:
        """Propose what ``event`` makes of the row; raises as ``transition``. Returns the sequence
        to wait for, of the last change if there is none: the answer needs that committed."""
        before = slot.row
        assert before is not None
        after = transition(before, event)
        if after is before:
            return slot.sequence
        put = put_changed(before, after)
        return self._propose(slot, before, after, put, put_size(put), at_us)

    def claim(self, slot: Slot, node: str, at_us: int, lease: WorkerLease | None = None) -> TaskRow | None:
        """Propose a claim of a pending task, its token the entry's place; None: not pending.

        :param lease: that of the remote worker ``node``; None: it is a node's own."""
        before = slot.row
        if before is None or before.state is not State.PENDING:
            return None
        log = self.driver.cores[slot.partition]
        after = transition(before, Claim(at_us, log.claim_token(slot.claimed), node, lease))
        put = put_changed(before, after)
        size = put_size(put)
        if not log.will_share_entry(size):
            log.close_open()
            after = transition(before, Claim(at_us, log.claim_token(slot.claimed), node, lease))
            put = put_changed(before, after)
            size = put_size(put)
        sequence = self._propose(slot, before, after, put, size, at_us)
        slot.claimed = sequence
        assert after.token == (log.epoch, sequence), "a token is its entry's place"
        return after

    def _propose(self, slot: Slot, before: TaskRow, after: TaskRow, put: Put, size: int, at_us: int) -> int:
        spec = after.spec
        news = None
        if before.state is not after.state:
            news = (
                _transition(
                    (
                        spec.id,
                        spec.type,
                        spec.queue,
                        before.state,
                        after.state,
                        after.attempt,
                        after.partition,
                        at_us,
                        spec.made_by,
                    )
                ),
                after,
            )
            more = before.state.is_final - after.state.is_final
            if more:
                self._open(after.partition, spec.queue, more)
                if spec.made_by:
                    self.made.add(after.partition, spec.made_by, spec.queue, more)
            if after.state < State.PROCESSING:
                self.enqueue(after)
        self.rows.must_be_resident(spec.id, slot)
        sequence = self.driver.propose(after.partition, put, size, news)
        self.rows.touch(spec.id, slot, after, sequence)
        slot.body_bytes = len(put.body)
        return sequence

    def _open(self, partition: int, queue: str, more: int) -> None:
        self.open_tasks += more
        for counts in (self.open_queues, self._open_in[partition]):
            left = counts.get(queue, 0) + more
            if left:
                counts[queue] = left
            else:
                del counts[queue]

    def bury(self, slot: Slot, at_us: int) -> int:
        """Propose a tombstone in place of the row."""
        row = slot.row
        assert row is not None
        news = Transition(
            row.spec.id, row.spec.type, row.spec.queue, row.state, row.state, PURGED, row.partition, at_us
        )
        sequence = self.driver.propose(row.partition, tombstone_of(row, at_us), 64, (news, row))
        slot.content_hash = row.spec.content_hash
        self.rows.touch(row.spec.id, slot, None, sequence)
        return sequence

    @property
    def has_stale_entries(self) -> bool:
        """Whether to build the heaps anew: entries of cancelled and re-scheduled tasks outnumber
        the tasks, or some lie in a lane that nobody reads."""
        return self.ready.is_misplaced or len(self.ready) + len(self.due) > 2 * self.open_tasks + _STALE_ENTRIES_MAX

    def follow_handlers(self, own: Collection[str] | None, known: Collection[str]) -> None:
        """Set the types of this node's worker (None: any) and those known in the cluster."""
        self.ready.set_own(own)
        self._named = frozenset(known)
        self._set_known()

    def pause_types(self) -> bool:
        """Hold the types that the host says. Returns whether ``rebuild_heaps`` is due, as in
        ``know``: until then what waits among the unknown types may start."""
        self._set_known()
        self.ready.pause_types(self._paused_types())
        return self.ready.is_misplaced

    def _set_known(self) -> None:
        self.ready.set_known(self._named.union(self._asked, self._paused_types()))

    def know(self, types: Collection[str]) -> bool:
        """Give types lanes that a worker asks for before its node announces them. Returns whether
        ``rebuild_heaps`` is due: tasks of such a type lie in a lane that nobody reads."""
        new = frozenset(types) - self._named - self._asked
        if new and len(self._asked) + len(new) <= _ASKED_TYPES_MAX:
            self._asked |= new
            self._set_known()
        return self.ready.is_misplaced

    async def rebuild_heaps(self) -> None:
        """Build the heaps anew from the rows; what is enqueued meanwhile goes into both, so does
        what was proposed before and is not committed yet: the store will show the rest."""
        if self._enqueued_since is not None:
            return
        cores = self.driver.cores
        self._enqueued_since = [
            row
            for row, sequence in self.rows.proposed()
            if row.partition in self.leading and sequence > cores[row.partition].log.committed
        ]
        try:
            while True:
                led = dict(self.leading)
                await self.driver.settle()
                ready, due = self.ready.like(), DueSet()
                await load_ready(self._store, ready, due, led)
                # Else tasks of a partition taken up meanwhile may be missing, or in a wrong lane.
                if led == self.leading and ready.has_lanes_of(self.ready):
                    break
            for queue in self._paused_queues():
                ready.pause(queue)
            ready.pause_types(self._paused_types())
            since = self._enqueued_since
        finally:
            self._enqueued_since = None
        self.ready, self.due = ready, due
        for row in since:
            if row.partition in self.leading:
                self.enqueue(row)
        self._on_ready()

    def enqueue(self, row: TaskRow) -> None:
        """Put a pending task into the ready heap, a scheduled one into the due heap."""
        if self._enqueued_since is not None:
            self._enqueued_since.append(row)
        spec = row.spec
        if row.state is State.PENDING:
            self.ready.push(spec.id, row.partition, spec.queue, spec.priority, row.run_at_us, spec.type)
            self._on_ready()
        elif row.state is State.SCHEDULED and self.due.push(spec.id, row.partition, row.run_at_us):
            self._on_due()

    def count(self, changes: Iterable[Change]) -> None:
        """Count committed changes."""
        for change, _ in changes:
            mine = self.partition_counts.get(change.partition)
            if mine is None:
                continue  # committed with the barrier of a later epoch: counted from the rows once that is active
            row = mine.get(change.queue)
            if row is None:
                row = mine[change.queue] = [0] * _STATES
                if len(mine) > limits.QUEUE_NAMES_MAX:
                    self._fold_queues(change.partition)
            gone = change.from_state
            if change.attempt == PURGED:
                gone = change.to_state
            else:
                row[change.to_state] += 1
            if gone is not None:
                if row[gone] == 0 and OTHER_QUEUES in mine:
                    row = mine[OTHER_QUEUES]  # counted there since its queue's name was folded
                row[gone] -= 1

    def _fold_queues(self, partition: int) -> None:
        """Bound the names, which submitters choose: past ``QUEUE_NAMES_MAX`` a partition's queues
        without open tasks are counted as ``OTHER_QUEUES``."""
        counts, is_open = self.partition_counts[partition], self._open_in[partition]
        if len(counts) <= limits.QUEUE_NAMES_MAX:
            return
        others = counts.setdefault(OTHER_QUEUES, [0] * _STATES)
        for queue in [queue for queue in counts if queue not in is_open and queue != OTHER_QUEUES]:
            for state, rows in enumerate(counts.pop(queue)):
                others[state] += rows

    # --- finding ---
    def load(self, task_ids: Iterable[str]) -> Deferred[dict[str, Found]]:
        """What there is of each id, its row made resident; to be used in the turn in which it
        fires. A row changes only while it is resident, and all stay so until the last is read: none
        has been overtaken. Overlapping loads of one id share one read."""
        done: Deferred[dict[str, Found]] = Deferred()
        self._gather(list(dict.fromkeys(task_ids)), {}, done)
        return done

    def _gather(self, wanted: list[str], found: dict[str, Found], done: Deferred[dict[str, Found]]) -> None:
        missing = []
        pending = 1
        epochs = {task_id: self.leading.get(self.partition_of(task_id)) for task_id in wanted}

        def arrived(value: Found, task_id: str) -> None:
            nonlocal pending
            found[task_id] = value
            if not isinstance(value, Slot):
                self.rows.pin(task_id)  # should the task be born meanwhile, its row stays
            pending -= 1
            if pending == 0:
                self._gathered(found, epochs, done)

        def failed(why: Failure) -> None:
            if not done.called:
                done.errback(why)

        for task_id in wanted:
            slot = self.rows.get(task_id)
            if slot is not None:
                self.rows.pin(task_id)
                found[task_id] = slot
                continue
            pending += 1
            key = task_id, epochs[task_id]
            waiting = self._loads.get(key)
            if waiting is None:
                waiting = self._loads[key] = []
                missing.append(key)
            one: Deferred[Found] = Deferred()
            one.addCallbacks(arrived, failed, callbackArgs=(task_id,))
            waiting.append(one)
        pending -= 1
        if pending == 0:
            self._gathered(found, epochs, done)
        elif missing:
            self._store.lookup([task_id for task_id, _ in missing]).addCallbacks(
                self._loaded, self._not_loaded, callbackArgs=(missing,), errbackArgs=(missing,)
            )

    def _gathered(
        self, found: dict[str, Found], epochs: dict[str, int | None], done: Deferred[dict[str, Found]]
    ) -> None:
        """Fire the load: all are read. An absent task may exist by now, its row then resident."""
        for task_id in found:
            epoch = epochs[task_id]
            if epoch is None or self.leading.get(self.partition_of(task_id)) != epoch:
                found[task_id] = ELSEWHERE
            else:
                slot = self.rows.get(task_id)
                if slot is not None:
                    found[task_id] = slot
        if not done.called:
            done.callback(found)
        for task_id in found:
            self.rows.unpin(task_id)

    def _loaded(self, stored: dict[str, StoredRow | Tombstone], looks: list[tuple[str, int | None]]) -> None:
        for task_id, epoch in looks:
            for waiting in self._loads.pop((task_id, epoch)):
                # Anew for each waiter: the one before may have created the task.
                waiting.callback(self._make_resident(task_id, stored.get(task_id), epoch))

    def _make_resident(self, task_id: str, stored: StoredRow | Tombstone | None, epoch: int | None) -> Found:
        if epoch is None or self.leading.get(self.partition_of(task_id)) != epoch:
            return ELSEWHERE
        slot = self.rows.get(task_id)
        if slot is not None:
            self.rows.pin(task_id)
            return slot
        if isinstance(stored, StoredRow):
            return self.rows.add_pinned(task_id, row_of(stored), len(stored.body))
        return stored

    def _not_loaded(self, why: Failure, looks: list[tuple[str, int | None]]) -> None:
        for look in looks:
            for waiting in self._loads.pop(look):
                waiting.errback(why)

    def committed_wait(self, slot: Slot, wait: Wait) -> Deferred[object] | None:
        """Fire ``wait`` once the slot's newest change is committed; None where it is."""
        if slot.sequence <= self.driver.cores[slot.partition].log.committed:
            return None
        return self.driver.when_committed(wait, ((slot.partition, slot.sequence),))


def row_of(stored: StoredRow) -> TaskRow:
    return decode_row(
        stored.partition, stored.rev, stored.state, stored.run_at_us, stored.ended_us, stored.spec, stored.body
    )


def existing(found: Found, task_id: str, asker: Asker | None = None) -> Slot:
    """The slot of a task that exists.

    :param asker: may it know of the task?
    :raises TaskPurged: it did exist.
    :raises NoSuchTask: it never did, or the asker may not know of it.
    :raises NotPrimary: this node does not know."""
    if isinstance(found, Elsewhere):
        raise NotPrimary("this node does not lead the task's partition", task_id=task_id)
    if isinstance(found, Slot) and found.row is not None:
        must_know(asker, found.row, task_id)
        return found
    if isinstance(found, Slot | Tombstone):
        raise purged(task_id, asker)
    raise no_such_task(task_id)


def must_know(asker: Asker | None, row: TaskRow, task_id: str) -> None:
    """Check that the asker may know of the task.

    :raises NoSuchTask: it may not, and hears what it would hear if there were none."""
    if asker is not None and not asker.may_know(row.spec.queue, row.spec.made_by):
        raise no_such_task(task_id)


def purged(task_id: str, asker: Asker | None) -> TaskQueueError:
    """What is said of a purged task. Nobody knows any more whose it was, or of which queue: who may
    not know of every task is told what it hears of one that never was."""
    if asker is not None and asker.is_restricted:
        return no_such_task(task_id)
    return TaskPurged(PURGED_DETAIL, task_id=task_id)


def no_such_task(task_id: str) -> NoSuchTask:
    return NoSuchTask("no task has this id", task_id=task_id)
