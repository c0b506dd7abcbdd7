"""Committed effects that the rows do not show yet, folded by task.

Rows are written behind the log, in bounded lag: a task that is submitted, claimed and completed
within that lag costs one row written instead of three. The log is the truth meanwhile; a crash
replays it from ``applied`` on. A slice takes everything of a partition or nothing of it, so that
``applied`` stays one number for each partition and rows at equal ``applied`` are byte-equal on
every copy (I11)."""

from __future__ import annotations

import sys

import msgspec

from tq_node.errors import Divergence
from tq_node.partition.entries import DeleteTombstone, Effect, Horizon, Put, PutTombstone
from tq_node.types import State


class Fold(msgspec.Struct, gc=False):
    """The net effect of several effects on one task. ``stored_rev``: in the store; 0: none."""

    stored_rev: int
    rev: int
    put: Put | None
    spec: bytes | None
    tombstone: PutTombstone | None = None


class Slice(msgspec.Struct):
    """What one transaction shall write to the rows; rows as (partition, fold)."""

    rows: list[tuple[int, Fold]] = []
    deletes: list[tuple[str, int]] = []
    tombstones: list[tuple[int, PutTombstone]] = []
    forgets: list[str] = []
    horizons: dict[int, int] = {}
    applied: dict[int, int] = {}


class _Pending:
    """One partition's share."""

    __slots__ = ("folds", "forgets", "horizon_us", "sequence")

    def __init__(self) -> None:
        self.folds: dict[str, Fold] = {}
        self.forgets: list[str] = []
        self.horizon_us = 0
        self.sequence = 0


class ApplyQueue:
    """Everything committed and not yet written to the rows, over all partitions of the node."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Pending] = {}
        self.rows = 0
        self.bytes = 0
        self.horizons: dict[int, int] = {}
        """Of each partition, in force from its commit on."""
        self.states: dict[int, list[int]] = {}
        """Committed rows of each partition by state."""
        self._held: set[int] = set()

    def hold(self, partition: int) -> None:
        """Let ``take`` take nothing of ``partition`` until ``release``: its rows are counted."""
        self._held.add(partition)

    def release(self, partition: int, states: list[int]) -> None:
        """Let ``take`` take ``partition`` again.

        :param states: rows by state when it was held; what was added since is counted already."""
        self._held.discard(partition)
        mine = self.states_of(partition)
        for state, rows in enumerate(states):
            mine[state] += rows

    def states_of(self, partition: int) -> list[int]:
        states = self.states.get(partition)
        if states is None:
            states = self.states[partition] = [0] * len(State)
        return states

    def __len__(self) -> int:
        return self.rows

    @property
    def has_any(self) -> bool:
        return bool(self._partitions)

    def sequences(self) -> dict[int, int]:
        """The last entry of each partition with something to write, the longest waiting first."""
        return {partition: pending.sequence for partition, pending in self._partitions.items()}

    def add(self, partition: int, sequence: int, effects: list[Effect]) -> None:
        """Fold one committed entry in; raises ``Divergence`` if an effect skips a revision."""
        pending = self._partitions.get(partition)
        if pending is None:
            pending = self._partitions[partition] = _Pending()
        pending.sequence = sequence
        states = self.states_of(partition)
        folds = pending.folds
        for effect in effects:
            if isinstance(effect, Put):
                states[effect.state] += 1
                if effect.was >= 0:
                    states[effect.was] -= 1
                task_id, body, spec = effect.id, effect.body, effect.spec
                fold = folds.get(task_id)
                if fold is None:
                    folds[task_id] = Fold(effect.expected_rev, effect.rev, effect, spec)
                    self.rows += 1
                    self.bytes += len(body) if spec is None else len(body) + len(spec)
                    continue
                if fold.tombstone is not None:
                    # Its horizon would have to pass within the rows' lag: minutes in milliseconds.
                    raise Divergence(f"task {task_id}: buried and born again before the rows show it")
                if fold.rev != effect.expected_rev:
                    raise Divergence(f"task {task_id}: rev {effect.rev} expects {effect.expected_rev}, not {fold.rev}")
                self.bytes += len(body) - (len(fold.put.body) if fold.put is not None else 0)
                fold.rev = effect.rev
                fold.put = effect
            elif isinstance(effect, PutTombstone):
                states[effect.was] -= 1
                self._bury(folds, effect)
            elif isinstance(effect, DeleteTombstone):
                pending.forgets.append(effect.id)
            elif isinstance(effect, Horizon):
                pending.horizon_us = max(pending.horizon_us, effect.at_us)
                self.horizons[partition] = max(self.horizons.get(partition, 0), effect.at_us)
            # EpochStart changes no row; the store learned of the epoch when the entry was appended.

    def forget(self, partition: int) -> None:
        """Drop what ``partition`` has pending: a snapshot or a drop replaces its rows."""
        self.states.pop(partition, None)
        self.horizons.pop(partition, None)
        pending = self._partitions.pop(partition, None)
        if pending is None:
            return
        self.rows -= len(pending.folds)
        for fold in pending.folds.values():
            if fold.put is not None:
                self.bytes -= len(fold.put.body) + (len(fold.spec) if fold.spec is not None else 0)

    def _bury(self, folds: dict[str, Fold], effect: PutTombstone) -> None:
        fold = folds.get(effect.id)
        if fold is None:
            folds[effect.id] = Fold(effect.expected_rev, 0, None, None, effect)
            self.rows += 1
            return
        if fold.rev != effect.expected_rev:
            raise Divergence(f"task {effect.id}: its tombstone expects rev {effect.expected_rev}, not {fold.rev}")
        if fold.put is not None:
            self.bytes -= len(fold.put.body) + (len(fold.spec) if fold.spec is not None else 0)
        fold.rev, fold.put, fold.spec, fold.tombstone = 0, None, None, effect

    def take(self, rows_aim: int, bytes_aim: int = sys.maxsize) -> Slice:
        """Remove whole partitions, the one that waits longest first, until at least ``rows_aim``
        rows are taken, or ``bytes_aim`` bytes."""
        taken = Slice()
        count = 0
        bytes_floor = self.bytes - bytes_aim
        for partition in list(self._partitions):
            if count and (count >= rows_aim or self.bytes <= bytes_floor):
                break
            if partition in self._held:
                continue
            pending = self._partitions.pop(partition)
            count += len(pending.folds) + len(pending.forgets)
            self.rows -= len(pending.folds)
            self._emit(partition, pending, taken)
        return taken

    def _emit(self, partition: int, pending: _Pending, taken: Slice) -> None:
        for task_id, fold in pending.folds.items():
            put = fold.put
            if put is None:
                if fold.stored_rev:
                    taken.deletes.append((task_id, fold.stored_rev))
                if fold.tombstone is not None:
                    taken.tombstones.append((partition, fold.tombstone))
                continue
            self.bytes -= len(put.body) + (len(fold.spec) if fold.spec is not None else 0)
            taken.rows.append((partition, fold))
        taken.forgets += pending.forgets
        if pending.horizon_us:
            taken.horizons[partition] = pending.horizon_us
        taken.applied[partition] = pending.sequence
