"""Group commit: joins the partition logs to the store.

All that is proposed while the last sync runs goes into the next one; a batch never waits for company. One batch is in flight at
a time, and the next leaves before the callers of the last one hear their answers. Committed effects are folded and
written to the rows behind the log, a slice with each commit (``partition.unapplied``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import StoreBroken
from tq_node.partition.codec import decode_spec
from tq_node.partition.entries import Effect
from tq_node.partition.replica import Committed, PrimaryLog
from tq_node.partition.unapplied import Slice, Unapplied
from tq_node.runtime.clock import Clock
from tq_node.runtime.events import Change
from tq_node.runtime.waiters import CommitWaiters, Wait
from tq_node.store.api import Batch, RowDelete, RowWrite, Store, Tombstone
from tq_node.types import TaskSpec

_log = Logger(namespace="taskqueue.log")
_APPLY_SHARE = 8
"""A commit carries at least this fraction of the backlog of rows, so that the backlog can't outrun it."""
_APPLY_BYTES = limits.UNAPPLIED_BYTES_MAX // 8
"""Rows are written with the next commit once they come to this many bytes, however few they are."""
_HURRY = 4
"""How many times the usual slice a commit carries while somebody waits for the rows."""


class LogDriver:
    """The logs of all partitions that this node leads, one store, one group commit.

    :param on_committed: called with the news of each commit, in order, before any caller hears its answer.
    :param on_applied: called with (task id, sequence) once the task's row shows the entry.
    :param on_broken: a promise is broken (a divergence, a failed assertion, a bug in here): the process must end (R20).
    :param spec_of: what was submitted, of a task in memory; it spares decoding it.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        logs: list[PrimaryLog[Change]],
        me: str,
        *,
        on_committed: Callable[[list[Change]], None],
        on_applied: Callable[[str, int], None],
        on_broken: Callable[[BaseException], None],
        spec_of: Callable[[str], TaskSpec | None],
    ) -> None:
        self.logs = logs
        self._store = store
        self._clock = clock
        self._me = me
        self._on_committed = on_committed
        self._on_applied = on_applied
        self._on_broken = on_broken
        self._spec_of = spec_of
        self._waiters = [CommitWaiters() for _ in logs]
        self._unapplied = Unapplied()
        self._dirty: set[int] = set()
        self._meta: dict[str, bytes | None] = {}
        self._meta_waits: list[Wait] = []
        self._settles: list[tuple[set[int], Wait]] = []
        self._promises: dict[int, int] = {}
        self._in_flight = False
        self._flying_applied: set[int] = set()
        self._flying_meta: list[Wait] = []
        self._flush_call: IDelayedCall | None = None
        self._apply_call: IDelayedCall | None = None
        self._idle_waits: list[Deferred[None]] = []
        self._broken = False
        self._stopped = False
        self._proposed_bytes = 0
        self._flying_bytes = 0

    # --- proposing ---
    def propose(self, partition: int, effect: Effect, size: int, news: Change | None = None) -> int:
        """Append ``effect`` to the partition's open entry; it leaves with the next commit. Returns its sequence."""
        self._dirty.add(partition)
        self._proposed_bytes += size + 100
        self._schedule_flush()
        return self.logs[partition].propose(effect, size, news)

    def begin_epochs(self, epochs: dict[int, int]) -> Deferred[None]:
        """Become primary of these partitions in these epochs; fires when every barrier is committed (R6, R7)."""
        wait = Wait(None, self._clock.now_ms(), len(epochs))
        for partition, epoch in epochs.items():
            log = self.logs[partition]
            log.begin_epoch(epoch)
            self._promises[partition] = epoch
            self._dirty.add(partition)
            self._waiters[partition].add(log.barrier, wait)
        self._schedule_flush()
        return wait.deferred

    def when_committed(self, wait: Wait, places: Iterable[tuple[int, int]]) -> Deferred[object]:
        """Fire ``wait`` once each (partition, sequence) is committed; ``wait.left`` must be their number.

        Some may be committed already: a claim that had to read rows in between waits for entries of earlier turns.
        """
        for partition, sequence in places:
            if sequence <= self.logs[partition].committed:
                wait.step()
            else:
                self._waiters[partition].add(sequence, wait)
        return wait.deferred

    def write_meta(self, values: dict[str, bytes | None]) -> Deferred[None]:
        """Make small named values of the node durable."""
        if self._broken:
            return fail(StoreBroken("the store is broken"))
        wait = Wait(None, self._clock.now_ms())
        self._meta.update(values)
        self._meta_waits.append(wait)
        self._schedule_flush()
        return wait.deferred

    def settle(self) -> Deferred[None]:
        """Fire once the rows in the store show everything that is committed now."""
        if self._broken:
            return fail(StoreBroken("the store is broken"))
        behind = set(self._unapplied.partitions()) | self._flying_applied
        if not behind:
            return succeed(None)
        wait = Wait(None, self._clock.now_ms())
        self._settles.append((behind, wait))
        self._schedule_flush()
        return wait.deferred

    def idle(self) -> Deferred[None]:
        """Fire once nothing is proposed, in flight or unapplied any more: for an orderly stop."""
        if self._broken or not (self._in_flight or self._dirty or self._meta_waits or self._unapplied.has_any):
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._idle_waits.append(done)
        self._schedule_flush()
        return done

    @property
    def is_overloaded(self) -> bool:
        """Whether more waits for the disk than may wait: new work is to be refused (F46, I15)."""
        return (
            self.uncommitted_bytes > limits.UNCOMMITTED_BYTES_MAX
            or self._unapplied.rows > limits.UNAPPLIED_ROWS_MAX
            or self._unapplied.bytes > limits.UNAPPLIED_BYTES_MAX
        )

    @property
    def uncommitted_bytes(self) -> int:
        return self._proposed_bytes + self._flying_bytes

    # --- the loop ---
    def _schedule_flush(self) -> None:
        if self._flush_call is None and not self._in_flight and not self._broken and not self._stopped:
            self._flush_call = self._clock.call_later(0, self._flush_now)

    def _flush_now(self) -> None:
        self._flush_call = None
        self._flush_or_break()

    def _flush_or_break(self) -> None:
        try:
            self._flush()
        except Exception:
            self._broke(Failure())

    def _flush(self) -> None:
        if self._in_flight or self._broken:
            return
        batch = Batch()
        places: list[tuple[int, int]] = []
        for partition in sorted(self._dirty):
            log = self.logs[partition]
            batch.entries += log.seal()
            places.append((partition, log.last_sequence))
        if self._promises:
            batch.promises = self._promises
            batch.epochs = [(p, self.logs[p].epoch, self.logs[p].barrier) for p in self._promises]
            self._promises = {}
        batch.meta, self._meta = self._meta, {}
        meta_waits, self._meta_waits = self._meta_waits, []
        self._flying_meta = list(meta_waits)
        taken = self._take_slice(bool(places) or bool(meta_waits))
        if not (places or batch.meta or taken.applied):
            self._tell_idle()
            return
        self._dirty.clear()
        _fill(batch, taken, self._spec_of)
        self._flying_bytes, self._proposed_bytes = self._proposed_bytes, 0
        self._in_flight = True
        self._flying_applied = set(taken.applied)
        self._store.commit(batch).addCallbacks(
            self._durable, self._failed, callbackArgs=(places, taken, meta_waits)
        ).addErrback(self._broke)

    def _take_slice(self, has_entries: bool) -> Slice:
        backlog = self._unapplied.rows
        in_a_hurry = bool(self._settles or self._idle_waits)
        is_small = backlog < limits.APPLY_ROWS_PER_COMMIT and self._unapplied.bytes < _APPLY_BYTES
        if has_entries and not in_a_hurry and is_small:
            # Small commits stay small; the lag timer writes what gathers.
            return Slice()
        aim = limits.APPLY_ROWS_PER_COMMIT * (_HURRY if in_a_hurry else 1)
        return self._unapplied.take(max(aim, backlog // _APPLY_SHARE))

    def _durable(self, _: None, places: list[tuple[int, int]], taken: Slice, waits: list[Wait]) -> None:
        self._in_flight = False
        self._flying_bytes = 0
        ready: list[Wait] = []
        changes: list[Change] = []
        for partition, sequence in places:
            committed = self.logs[partition].durable(self._me, sequence)
            if committed:
                self._commit(partition, committed, changes)
                ready += self._waiters[partition].committed(self.logs[partition].committed)
        self._flying_applied = set()
        self._flying_meta = []
        self._tell_applied(taken)
        waits += self._settled(taken)
        if changes:
            self._on_committed(changes)
        # The disk is free: the next batch leaves before anybody hears, and what the hearers propose goes into the one after.
        if self._dirty or self._meta_waits or self._settles or self._idle_waits:
            self._flush()
        elif self._unapplied.has_any and self._apply_call is None:
            self._apply_call = self._clock.call_later(limits.APPLY_LAG_MS / 1000, self._apply_lag)
        for wait in waits:
            wait.step()
        for wait in ready:
            wait.step()

    def _commit(self, partition: int, committed: list[Committed[Change]], changes: list[Change]) -> None:
        for entry in committed:
            self._unapplied.add(partition, entry.sequence, entry.effects)
            changes += entry.news

    def _tell_applied(self, taken: Slice) -> None:
        for partition, fold in taken.rows:
            assert fold.put is not None
            self._on_applied(fold.put.id, taken.applied[partition])
        for partition, tombstone in taken.tombstones:
            self._on_applied(tombstone.id, taken.applied[partition])

    def _settled(self, taken: Slice) -> list[Wait]:
        done = []
        for behind, wait in self._settles:
            behind.difference_update(taken.applied)
            if not behind:
                done.append(wait)
        if done:
            self._settles = [(behind, wait) for behind, wait in self._settles if behind]
        return done

    def _apply_lag(self) -> None:
        self._apply_call = None
        self._flush_or_break()

    def _tell_idle(self) -> None:
        waits, self._idle_waits = self._idle_waits, []
        for done in waits:
            done.callback(None)

    # --- trouble ---
    def _broke(self, why: Failure) -> None:
        """Effects may be lost on the way to the rows: going on would make that durable."""
        if not self._broken:
            self._failed(why)
            self._on_broken(cast("BaseException", why.value))

    def _failed(self, why: Failure) -> None:
        """The store is broken: no further message (R18). The composition root ends the process."""
        self._broken = True
        self._in_flight = False
        _log.critical("the store failed: {why}", why=why.getErrorMessage(), event="store_broken")
        for waiters in self._waiters:
            for wait in waiters.abandon():
                wait.give_up()
        for wait in self._flying_meta + self._meta_waits + [wait for _, wait in self._settles]:
            wait.give_up()
        self._flying_meta, self._meta_waits, self._settles = [], [], []
        self._tell_idle()

    def give_up_overdue(self) -> None:
        """Callers that have waited for ``COMMIT_WAIT_S`` hear that the outcome is not known. Called each second."""
        before_ms = self._clock.now_ms() - int(limits.COMMIT_WAIT_S * 1000)
        for waiters in self._waiters:
            for wait in waiters.overdue(before_ms):
                wait.give_up()

    def stop(self) -> None:
        """Nothing leaves any more; ``idle`` comes before."""
        self._stopped = True
        for call in (self._flush_call, self._apply_call):
            if call is not None and call.active():
                call.cancel()
        self._flush_call = self._apply_call = None


def _fill(batch: Batch, taken: Slice, spec_of: Callable[[str], TaskSpec | None]) -> None:
    """The slice in the store's words; the log is dropped behind it, since no other copy needs it yet."""
    for partition, fold in taken.rows:
        put = fold.put
        assert put is not None
        row = RowWrite(put.id, partition, fold.stored_rev, put.rev, put.state, put.run_at_us, put.ended_us, put.body)
        if fold.spec is not None:
            spec = spec_of(put.id) or decode_spec(fold.spec)
            row.spec = fold.spec
            row.type, row.queue, row.priority, row.created_us = spec.type, spec.queue, spec.priority, spec.created_us
        batch.rows.append(row)
    batch.deletes = [RowDelete(task_id, rev) for task_id, rev in taken.deletes]
    batch.tombstones = [Tombstone(t.id, p, t.content_hash, t.at_us) for p, t in taken.tombstones]
    batch.forgets = taken.forgets
    batch.horizons = taken.horizons
    batch.applied = taken.applied
    batch.trim = dict(taken.applied)
