"""The rows in memory: those with changes that the store does not show yet, and a bounded cache of others.

A row changes only while it is resident here, and a row that is loaded stays out of the store's hands until the load is over:
so nobody ever decides on a row that has been overtaken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from tq_node import limits
from tq_node.types import State, TaskRow, TaskSpec

_ROW_OVERHEAD_BYTES = 1_000


class Slot(msgspec.Struct, gc=False):
    """The newest row of one task, proposed or older. ``row`` None: it is being purged (``content_hash`` is kept meanwhile).

    ``sequence``: the entry of the newest change, 0 where the row is as the store has it.
    """

    partition: int
    row: TaskRow | None
    sequence: int = 0
    content_hash: bytes = b""
    body_bytes: int = 0
    """Encoded size of what changes: attempts, tracebacks, log, result."""
    claimed: int = 0
    """The entry of the latest claim that was proposed while the row has been resident."""


class RowCache:
    """By task id. Dirty rows stay; clean ones are dropped, least recently used first, past ``bytes_max``."""

    def __init__(self, bytes_max: int = limits.ROW_CACHE_BYTES_MAX) -> None:
        self._slots: dict[str, Slot] = {}
        self._clean: OrderedDict[str, int] = OrderedDict()
        """Cost by id, least recently used first. A plain dict would look for its first key past all those deleted before."""
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
        """What was submitted, if the row is in memory."""
        slot = self.get(task_id)
        return slot.row.spec if slot is not None and slot.row is not None else None

    def pin(self, task_id: str) -> None:
        """Keep a resident row until ``unpin``: somebody waits for others to be read beside it."""
        self._pins[task_id] = self._pins.get(task_id, 0) + 1
        cost = self._clean.pop(task_id, None)
        if cost is not None:
            self._clean_bytes -= cost

    def unpin(self, task_id: str) -> None:
        """Once for each ``pin``."""
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
        """A row that is born with the entry ``slot.sequence``."""
        self._slots[task_id] = slot

    def must_be_resident(self, task_id: str, slot: Slot) -> None:
        """:raises AssertionError: somebody is about to decide on a row that may have been overtaken."""
        assert self._slots.get(task_id) is slot, "a row changes only while it is resident"

    def touch(self, task_id: str, slot: Slot, row: TaskRow | None, sequence: int) -> None:
        """A change is proposed: the row becomes dirty."""
        self.must_be_resident(task_id, slot)
        cost = self._clean.pop(task_id, None)
        if cost is not None:
            self._clean_bytes -= cost
        slot.row = row
        slot.sequence = sequence

    def add_pinned(self, task_id: str, row: TaskRow, body_bytes: int) -> Slot:
        """A row just read from the store, pinned once; the resident one wins where there is one."""
        slot = self._slots.get(task_id)
        if slot is None:
            slot = self._slots[task_id] = Slot(row.partition, row, body_bytes=body_bytes)
        self.pin(task_id)
        return slot

    def applied(self, rows: Iterable[tuple[str, int]]) -> None:
        """Make rows clean: the store shows every change of these (task id, sequence) up to ``sequence``."""
        slots, pins = self._slots, self._pins
        for task_id, sequence in rows:
            slot = slots.get(task_id)
            if slot is None or slot.sequence == 0 or slot.sequence > sequence:
                continue
            if task_id in pins:
                slot.sequence = 0  # one that is being purged goes with the last pin
            elif slot.row is None or slot.row.state is State.SCHEDULED:
                # The time of a scheduled one may be far; the cache is for what is claimed or asked for soon.
                del slots[task_id]
            else:
                slot.sequence = 0
                self._keep(task_id, slot)

    def _keep(self, task_id: str, slot: Slot) -> None:
        assert slot.row is not None
        # Decoded, many small parts take about twice their encoded size, besides what every row takes.
        cost = _ROW_OVERHEAD_BYTES + len(slot.row.spec.payload) + 2 * slot.body_bytes
        self._clean[task_id] = cost
        self._clean_bytes += cost
        while self._clean_bytes > self._bytes_max:
            oldest, its_cost = self._clean.popitem(last=False)
            self._clean_bytes -= its_cost
            del self._slots[oldest]
