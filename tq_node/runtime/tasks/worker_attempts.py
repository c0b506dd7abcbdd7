"""Attempts that remote workers run, of partitions led here (replication.md, section 8).

A remote worker has no node that answers for it: its lease lies with the partition's primary. It is
granted with the claim, whose entry keeps it, and extended without an entry, once a round begun
after the request has confirmed that this node is the primary still. A later primary grants each
inherited attempt its whole lease anew when it takes up the partition: no earlier primary has
granted any for longer, for none was confirmed after the promise of the later one. The primary ends
an attempt whose lease or timeout is over; its worker stops it by itself a margin earlier."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import NotPrimary, StaleAttempt
from tq_node.facade import Claim, Extended, HeldAttempt
from tq_node.partition.lifecycle import Event, Fail, Lose
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.task_table import Elsewhere, Found, Slot, TaskTable
from tq_node.types import State, TaskError, TaskRow, Token

_log = Logger(namespace="taskqueue.running")


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
    times_out_us: int | None
    """Wall clock; None: it has no timeout."""


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
        """By task id."""
        self._of_worker: dict[str, dict[str, None]] = {}
        """Task ids by worker, in the order of their claims."""
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
        """Book a claim for a remote worker; it asked earlier, so its lease begins by now."""
        assert row.lease is not None
        assert row.token is not None
        epoch = self._table.leading[row.partition]
        times_out_us = None
        if row.spec.timeout_ms is not None:
            times_out_us = (row.started_us or self._clock.wall_us()) + row.spec.timeout_ms * 1000
        worker = row.worker or ""
        self._drop(row.id)
        self._held[row.id] = _Held(
            row.token,
            worker,
            row.lease.claim_id,
            row.lease.lease_ms,
            self._clock.now_ms() + row.lease.lease_ms,
            row.partition,
            epoch,
            times_out_us,
        )
        self._of_worker.setdefault(worker, {})[row.id] = None

    def adopt(self, task_ids: Iterable[str]) -> Deferred[None]:
        """Take over the attempts of remote workers among these, which an earlier primary granted or
        extended: each gets its whole lease anew."""
        return self._table.load(task_ids).addCallback(self._adopt_found)

    def _adopt_found(self, found: dict[str, Found]) -> None:
        for slot in found.values():
            row = slot.row if isinstance(slot, Slot) else None
            if row is None or row.state is not State.PROCESSING or row.lease is None:
                continue
            if row.id not in self._held and row.partition in self._table.leading:
                self.grant(row)

    def ended(self, task_id: str, token: Token) -> None:
        """Forget an attempt that holds its task no more."""
        held = self._held.get(task_id)
        if held is not None and held.token == token:
            self._drop(task_id)

    def holds(self, task_id: str, token: Token) -> bool:
        held = self._held.get(task_id)
        return held is not None and held.token == token

    def left_ms(self, task_id: str) -> int:
        """How long the attempt that holds this task may still run, in ms."""
        held = self._held.get(task_id)
        return 0 if held is None else max(0, held.until_ms - self._clock.now_ms())

    def counts(self) -> dict[str, int]:
        """Attempts by worker."""
        return {worker: len(task_ids) for worker, task_ids in self._of_worker.items()}

    def _drop(self, task_id: str) -> None:
        held = self._held.pop(task_id, None)
        if held is not None:
            of_worker = self._of_worker[held.worker]
            del of_worker[task_id]
            if not of_worker:
                del self._of_worker[held.worker]

    # --- asked again ---
    def claimed_before(self, worker: str, claim_id: str) -> Deferred[list[Claim]]:
        """The attempts that a worker was granted by the request of this id and that hold still."""
        wanted = [task_id for task_id in self._of_worker.get(worker, ()) if self._held[task_id].claim_id == claim_id]

        def claims(found: dict[str, Found]) -> list[Claim]:
            rows = [slot.row for slot in found.values() if isinstance(slot, Slot) and slot.row is not None]
            return [claim_of(row) for row in rows if row.id in self._held and row.token == self._held[row.id].token]

        return self._table.load(wanted).addCallback(claims)

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
            known = self._held.get(one.task_id)
            if row is not None and row.state is State.PROCESSING and row.token == one.token and known is not None:
                known.until_ms = now_ms + known.lease_ms
                results.append(Extended(known.lease_ms))
            else:
                results.append(Extended(0, row is not None and _was_cancelled(row, worker, one)))
        return results

    # --- over ---
    def _look(self) -> None:
        now_ms, now_us = self._clock.now_ms(), self._clock.wall_us()
        leading = self._table.leading
        over: dict[str, tuple[Token, bool]] = {}
        for task_id, held in list(self._held.items()):
            if leading.get(held.partition) != held.epoch:
                self._drop(task_id)  # whoever leads it now has adopted it
            elif now_ms >= held.until_ms:
                over[task_id] = held.token, False
            elif held.times_out_us is not None and now_us >= held.times_out_us:
                over[task_id] = held.token, True
        if over:
            self._table.load(over).addCallback(self._end_found, over).addErrback(_not_loaded)

    def _end_found(self, found: dict[str, Found], over: dict[str, tuple[Token, bool]]) -> None:
        now_us, lost = self._clock.wall_us(), 0
        for task_id, (token, has_timed_out) in over.items():
            slot, held = found[task_id], self._held.get(task_id)
            if held is None or held.token != token:
                continue
            if not has_timed_out and self._clock.now_ms() < held.until_ms:
                continue  # extended while the row was read
            left_ms = self.left_ms(task_id)
            if isinstance(slot, Slot) and slot.row is not None and slot.row.token == token:
                event: Event = Lose(now_us, token, self._settings.draw())
                if has_timed_out:
                    event = Fail(now_us, token, _timed_out(slot.row), None, final=False, draw=self._settings.draw())
                    self._end(task_id, token, left_ms)
                else:
                    lost += 1
                with contextlib.suppress(StaleAttempt):
                    self._table.change(slot, event, now_us)
            self.ended(task_id, token)
        if lost:
            _log.info("{count} attempts of remote workers are lost: not extended", count=lost, event="attempts_lost")


def _timed_out(row: TaskRow) -> TaskError:
    timeout_s = (row.spec.timeout_ms or 0) / 1000
    return TaskError("timeout", f"the attempt ran longer than its timeout of {timeout_s:g} s")


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
