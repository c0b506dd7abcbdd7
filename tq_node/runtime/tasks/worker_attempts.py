"""Attempts that remote workers run, of partitions led here (replication.md, section 8).

A remote worker has no node that answers for it: its lease lies with the partition's primary. It is
granted with the claim, whose entry keeps it, and extended without an entry, once a round begun
after the request has confirmed that this node is the primary still. A later primary grants each
inherited attempt its whole lease anew when it takes up the partition: no earlier primary has
granted any for longer, for none was confirmed after the promise of the later one. The primary ends
an attempt whose lease or timeout is over; its worker stops it by itself a margin earlier."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import NotPrimary, StaleAttempt
from tq_node.facade import Claim, Extended, HeldAttempt
from tq_node.partition.lifecycle import Event, Fail, Lose
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.deadlines import Deadlines
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.task_table import Elsewhere, Found, Slot, TaskTable
from tq_node.types import State, TaskError, TaskRow, Token

_log = Logger(namespace="taskqueue.running")
K = TypeVar("K", int, str)
TIMEOUT = "timeout"
"""Type of the error of an attempt that outran its timeout."""
ADOPT_CHUNK = 1_000
"""Rows of running tasks that are read at a time."""


class _Held(msgspec.Struct, gc=False):
    """An attempt of a remote worker."""

    token: Token
    worker: str
    claim_id: str
    lease_ms: int
    until_ms: int
    """When its lease is over, monotonic."""
    partition: int
    epoch: int
    """In which this node leads its partition."""
    times_out_ms: int | None
    """Monotonic; None: it has no timeout."""

    @property
    def due_ms(self) -> int:
        """When it is to be looked at."""
        return self.until_ms if self.times_out_ms is None else min(self.until_ms, self.times_out_ms)


class WorkerAttempts:
    """See the module.

    :param end: called with (task id, token, ms) of an attempt whose handler may go on for that
        long though it holds its task no more: nothing starts beside it."""

    def __init__(
        self, table: TaskTable, clock: Clock, settings: QueueSettings, end: Callable[[str, Token, int], None]
    ) -> None:
        self._table = table
        self._clock = clock
        self._settings = settings
        self._end = end
        self._held: dict[str, _Held] = {}
        """By task id, of partitions led here in their present epochs."""
        self._of_worker: dict[str, dict[str, None]] = {}
        """Task ids by worker, in the order of their claims."""
        self._in: dict[int, dict[str, None]] = {}
        """Task ids by partition."""
        self._due: Deadlines[str] = Deadlines()
        self._adopting = 0
        """Reads of inherited attempts under way."""
        self._loop: Loop | None = None

    def begin(self) -> None:
        """Look at leases and timeouts from now on."""
        self._loop = self._clock.every(limits.WORKER_LOOK_S, self._look, "looking at remote workers' leases")

    async def stop(self) -> None:
        """Look no more."""
        if self._loop is not None:
            self._loop.stop()
            await self._loop.ended

    # --- what is held ---
    def grant(self, row: TaskRow) -> None:
        """Book a claim for a remote worker; it asked earlier, so its lease begins by now. Its
        timeout is told by the wall clock once, and from then on by time that passes."""
        assert row.lease is not None
        assert row.token is not None
        now_ms, times_out_ms = self._clock.now_ms(), None
        if row.spec.timeout_ms is not None:
            ran_ms = 0 if row.started_us is None else (self._clock.wall_us() - row.started_us) // 1000
            times_out_ms = now_ms + row.spec.timeout_ms - max(0, ran_ms)
        worker = row.worker or ""
        self._drop(row.id)
        held = self._held[row.id] = _Held(
            row.token,
            worker,
            row.lease.claim_id,
            row.lease.lease_ms,
            now_ms + row.lease.lease_ms,
            row.partition,
            self._table.leading[row.partition],
            times_out_ms,
        )
        self._of_worker.setdefault(worker, {})[row.id] = None
        self._in.setdefault(row.partition, {})[row.id] = None
        self._due.set(row.id, held.due_ms)

    def adopt(self, task_ids: Sequence[str]) -> Deferred[None]:
        """Take over the attempts of remote workers among these, which an earlier primary granted or
        extended: each gets its whole lease anew."""
        return Deferred.fromCoroutine(self._adopt(task_ids))

    async def _adopt(self, task_ids: Sequence[str]) -> None:
        self._adopting += 1
        try:
            for first in range(0, len(task_ids), ADOPT_CHUNK):
                found = await self._table.load(task_ids[first : first + ADOPT_CHUNK])
                for slot in found.values():
                    if isinstance(slot, Slot) and slot.row is not None:
                        self._known(slot.row)
        finally:
            self._adopting -= 1

    def _known(self, row: TaskRow) -> _Held | None:
        """The booking of the attempt that holds this task, of a partition led here; None: no remote
        worker's does. One that was inherited and not booked yet is booked now."""
        if row.state is not State.PROCESSING or row.lease is None:
            return None
        held = self._held.get(row.id)
        if held is None or held.token != row.token or held.epoch != self._table.leading[row.partition]:
            self.grant(row)
        return self._held[row.id]

    def left(self, partition: int) -> None:
        """Forget a partition that is not led here any more: whoever leads it next adopts its
        attempts, and if that is this node, too."""
        for task_id in list(self._in.get(partition, ())):
            self._drop(task_id)

    def ended(self, task_id: str, token: Token) -> None:
        """Forget an attempt that holds its task no more."""
        held = self._held.get(task_id)
        if held is not None and held.token == token:
            self._drop(task_id)

    def holds(self, task_id: str, token: Token) -> bool:
        held = self._held.get(task_id)
        return held is not None and held.token == token

    def counts(self) -> dict[str, int]:
        """Attempts by worker."""
        return {worker: len(task_ids) for worker, task_ids in self._of_worker.items()}

    @property
    def books(self) -> int:
        """Bookings of every kind, none of which outlives its attempt."""
        return len(self._held) + len(self._of_worker) + len(self._in) + len(self._due)

    def _drop(self, task_id: str) -> None:
        held = self._held.pop(task_id, None)
        if held is not None:
            self._due.discard(task_id)
            _take_out(self._of_worker, held.worker, task_id)
            _take_out(self._in, held.partition, task_id)

    # --- asked again ---
    def known_of(self) -> list[tuple[int, int]]:
        """(partition, epoch) of those whose attempts are all booked here."""
        return [] if self._adopting else list(self._table.leading.items())

    def claimed_before(self, worker: str, claim_id: str) -> Deferred[list[Claim]]:
        """The attempts that a worker was granted by the request of this id and that hold still:
        told once they are committed, for else they may never have been."""
        return Deferred.fromCoroutine(self._claimed_before(worker, claim_id))

    async def _claimed_before(self, worker: str, claim_id: str) -> list[Claim]:
        wanted = [task_id for task_id in self._of_worker.get(worker, ()) if self._held[task_id].claim_id == claim_id]
        if not wanted:
            return []
        slots = [slot for slot in (await self._table.load(wanted)).values() if isinstance(slot, Slot)]
        claims = [claim_of(slot.row) for slot in slots if slot.row is not None and self._is_claimed(slot.row, claim_id)]
        places = {slot.partition: slot.sequence for slot in sorted(slots, key=attrgetter("sequence"))}
        open_places = [
            (partition, sequence)
            for partition, sequence in places.items()
            if sequence > self._table.driver.cores[partition].log.committed
        ]
        if open_places:
            wait = Wait(None, self._clock.now_ms(), len(open_places))
            await self._table.driver.when_committed(wait, open_places)
        return [claim for claim in claims if self.holds(claim.task_id, claim.token)]

    def _is_claimed(self, row: TaskRow, claim_id: str) -> bool:
        return row.lease is not None and row.lease.claim_id == claim_id and row.state is State.PROCESSING

    # --- extended ---
    def extend(
        self, worker: str, held: Sequence[HeldAttempt], confirmed: Deferred[None] | None
    ) -> Deferred[list[Extended]]:
        """Extend leases of attempts of one partition.

        :param confirmed: a round begun after the request came, which must be over first.
        :raises NotPrimary, NotActive: the partition is led elsewhere, or not yet served."""

        def look(_: None = None) -> Deferred[list[Extended]]:
            loaded = self._table.load([one.task_id for one in held])
            return cast("Deferred[list[Extended]]", loaded.addCallback(self._extend_found, worker, held))

        return look() if confirmed is None else cast("Deferred[list[Extended]]", confirmed.addCallback(look))

    def _extend_found(self, found: dict[str, Found], worker: str, held: Sequence[HeldAttempt]) -> list[Extended]:
        now_ms = self._clock.now_ms()
        results = []
        for one in held:
            slot = found[one.task_id]
            if isinstance(slot, Elsewhere):
                raise NotPrimary("this node does not lead the task's partition", task_id=one.task_id)
            row = slot.row if isinstance(slot, Slot) else None
            known = None if row is None or row.token != one.token else self._known(row)
            if known is not None:
                known.until_ms = now_ms + known.lease_ms
                results.append(Extended(known.lease_ms))
            else:
                results.append(Extended(0, row is not None and _was_cancelled(row, worker, one)))
        return results

    # --- over ---
    def _look(self) -> None:
        now_ms = self._clock.now_ms()
        over: dict[str, Token] = {}
        for task_id in self._due.pop_due(now_ms):
            held = self._held[task_id]
            if now_ms < held.due_ms:
                self._due.set(task_id, held.due_ms)  # extended since
            else:
                over[task_id] = held.token
        if over:
            self._table.load(over).addCallback(self._end_found, over).addErrback(_not_loaded)

    def _end_found(self, found: dict[str, Found], over: dict[str, Token]) -> None:
        now_ms, now_us, lost = self._clock.now_ms(), self._clock.wall_us(), 0
        for task_id, token in over.items():
            slot, held = found[task_id], self._held.get(task_id)
            if held is None or held.token != token:
                continue
            if now_ms < held.due_ms:
                self._due.set(task_id, held.due_ms)  # extended while the row was read
                continue
            self._drop(task_id)
            if not isinstance(slot, Slot) or slot.row is None or slot.row.token != token:
                continue
            left_ms = held.until_ms - now_ms
            event: Event = Lose(now_us, token, self._settings.draw())
            if left_ms > 0:
                event = Fail(now_us, token, _timed_out(slot.row), None, final=False, draw=self._settings.draw())
                self._end(task_id, token, left_ms)
            else:
                lost += 1
            with contextlib.suppress(StaleAttempt):
                self._table.change(slot, event, now_us)
        if lost:
            _log.info("{count} attempts of remote workers are lost: not extended", count=lost, event="attempts_lost")


def _take_out(book: dict[K, dict[str, None]], key: K, task_id: str) -> None:
    task_ids = book[key]
    del task_ids[task_id]
    if not task_ids:
        del book[key]


def _timed_out(row: TaskRow) -> TaskError:
    timeout_s = (row.spec.timeout_ms or 0) / 1000
    return TaskError(TIMEOUT, f"the attempt ran longer than its timeout of {timeout_s:g} s")


def _was_cancelled(row: TaskRow, worker: str, held: HeldAttempt) -> bool:
    """Whether the task was cancelled while this attempt ran."""
    last = row.attempts[-1] if row.attempts else None
    return (
        row.state is State.CANCELLED
        and last is not None
        and (last.outcome, last.node, last.attempt) == ("cancelled", worker, held.attempt)
    )


def claim_of(row: TaskRow) -> Claim:
    """The claim that the row's present attempt was granted by."""
    spec = row.spec
    assert row.token is not None
    return Claim(
        spec.id, spec.type, spec.payload, row.partition, row.attempt, row.token, spec.timeout_ms, spec.queue,
        spec.max_attempts, row.failures, spec.created_us, spec.tags,
    )  # fmt: skip


def _not_loaded(why: Failure) -> None:
    # The store is broken and the process about to end (R18); who waits hears it from the driver.
    _log.error("could not load rows: {why}", why=why.getErrorMessage(), event="load_failed")
