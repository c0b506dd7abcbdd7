"""Writes committed effects behind the log: folded by task, a slice a commit, in bounded lag."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from twisted.internet.defer import Deferred, succeed

from tq_node import limits
from tq_node.partition.apply_queue import ApplyQueue, Slice
from tq_node.partition.entries import decode_spec
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.replication.ports import ReplicaEvents
from tq_node.store.api import Batch, RowDelete, RowWrite, Tombstone

_APPLY_SHARE = 8
"""A commit carries at least this share of the backlog, by rows or bytes, so it can't outrun it."""
_APPLY_BYTES = limits.UNAPPLIED_BYTES_MAX // 8
"""From this many unapplied bytes on, a slice goes with the next commit, however few rows it has."""
_HURRY = 4
"""How many times the usual slice a commit carries while somebody waits for the rows."""


class Applier:
    """Folds committed effects by task and hands them to commits in slices.

    :param events: notified of the rows that show an entry; asked what was submitted."""

    def __init__(self, clock: Clock, unapplied: ApplyQueue, events: ReplicaEvents) -> None:
        self.unapplied = unapplied
        self._clock = clock
        self._on_applied = events.applied
        self._spec_of = events.spec_of
        self._flying: dict[int, int] = {}
        self._settles: list[tuple[dict[int, int], Wait]] = []

    @property
    def has_any(self) -> bool:
        """Whether anything is committed that no commit of the store carries yet."""
        return self.unapplied.has_any

    @property
    def is_waited_for(self) -> bool:
        return bool(self._settles)

    @property
    def is_overloaded(self) -> bool:
        return self.unapplied.rows > limits.UNAPPLIED_ROWS_MAX or self.unapplied.bytes > limits.UNAPPLIED_BYTES_MAX

    def settle(self) -> Deferred[None]:
        """Fire once the rows in the store show everything that is committed now."""
        # A commit in flight carries only what a partition had when it began.
        behind = self._flying | self.unapplied.sequences()
        if not behind:
            return succeed(None)
        wait = Wait(None, self._clock.now_ms())
        self._settles.append((behind, wait))
        return wait.deferred

    def take(self, has_entries: bool, is_stopping: bool) -> Slice:
        """Take the slice that the next commit carries; empty while it is better to gather more.

        :param has_entries: the commit is needed for entries anyway.
        :param is_stopping: the node wants to be idle."""
        backlog = self.unapplied.rows
        in_a_hurry = bool(self._settles) or is_stopping
        is_small = backlog < limits.APPLY_ROWS_PER_COMMIT and self.unapplied.bytes < _APPLY_BYTES
        if has_entries and not in_a_hurry and is_small:
            # A small commit stays small; the lag timer writes what gathers.
            return Slice()
        aim = limits.APPLY_ROWS_PER_COMMIT * (_HURRY if in_a_hurry else 1)
        bytes_aim = limits.APPLY_BYTES_PER_COMMIT * (_HURRY if in_a_hurry else 1)
        taken = self.unapplied.take(
            max(aim, backlog // _APPLY_SHARE), max(bytes_aim, self.unapplied.bytes // _APPLY_SHARE)
        )
        self._flying = dict(taken.applied)
        return taken

    def add_to(self, batch: Batch, taken: Slice) -> None:
        """Add a slice's rows to the commit that carries it."""
        append = batch.rows.append
        for partition, fold in taken.rows:
            put, born = fold.put, fold.spec
            assert put is not None
            row = RowWrite(
                put.id, partition, fold.stored_rev, put.rev, put.state, put.run_at_us, put.ended_us, put.body, born
            )
            if born is not None:
                spec = self._spec_of(put.id) or decode_spec(born)
                row.type, row.queue = spec.type, spec.queue
                row.priority, row.created_us = spec.priority, spec.created_us
            append(row)
        batch.deletes = [RowDelete(task_id, rev) for task_id, rev in taken.deletes]
        batch.tombstones = [Tombstone(t.id, p, t.content_hash, t.at_us) for p, t in taken.tombstones]
        batch.forgets = taken.forgets
        batch.horizons = taken.horizons
        batch.applied = taken.applied

    def durable(self, taken: Slice) -> list[Wait]:
        """The slice is in the rows: report it; returns the ``settle`` callers that waited."""
        self._flying = {}
        sequences = taken.applied
        shown = []
        for partition, fold in taken.rows:
            assert fold.put is not None
            shown.append((fold.put.id, sequences[partition]))
        for partition, tombstone in taken.tombstones:
            shown.append((tombstone.id, sequences[partition]))
        self._on_applied(shown)
        return self._settled(sequences)

    def forget(self, partition: int) -> list[Wait]:
        """Drop a partition's unapplied effects: its rows are replaced. Returns its waiters."""
        self.unapplied.forget(partition)
        return self._settled({partition: sys.maxsize})

    def _settled(self, applied: Mapping[int, int]) -> list[Wait]:
        done = []
        for behind, wait in self._settles:
            for partition in [one for one, sequence in behind.items() if applied.get(one, -1) >= sequence]:
                del behind[partition]
            if not behind:
                done.append(wait)
        if done:
            self._settles = [(behind, wait) for behind, wait in self._settles if behind]
        return done

    def give_up(self) -> None:
        """Fail every ``settle`` caller: the store is broken."""
        for _, wait in self._settles:
            wait.give_up()
        self._settles = []
