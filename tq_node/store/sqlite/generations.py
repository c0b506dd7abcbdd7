"""Where a partition's rows are in the tables: its live generation, and those that wait to be
deleted (decision 0008).

Rows and tombstones are stored under a *slot*: the partition's number and a generation. Exactly one
generation of a partition is live. A snapshot is staged under the next one, row by row, over many
commits; dead generations are deleted over many commits; the switch between them is one commit that
changes a handful of rows. The slot of generation 0 is the partition's number.

The writer thread changes what is here; the reactor thread reads ``sizes``."""

from __future__ import annotations

from tq_node import limits
from tq_node.store.api import PartitionSize
from tq_node.store.partition_state import Extent, Staging

PARTITION_BITS = 16
PARTITION_MASK = (1 << PARTITION_BITS) - 1

assert limits.PARTITIONS_MAX <= PARTITION_MASK


class Generations:
    """The generations of all partitions."""

    def __init__(self) -> None:
        self.extents: dict[int, Extent] = {}
        """By partition: the size of its live generation."""
        self.live_slots: dict[int, int] = {}
        """By partition, where the live generation is past 0; any other's slot is its number."""
        self.staged: dict[int, Staging] = {}
        self.dead_slots: set[int] = set()
        """Slots whose rows and tombstones are to be deleted."""
        self._newest: dict[int, int] = {}
        """By partition: the highest generation used. Only grows: no slot is reused unemptied."""

    def load(self, extents: dict[int, Extent], hidden: set[int]) -> None:
        """Take over what opening the store found. Slots in ``hidden`` are dead."""
        self.extents = extents
        self.dead_slots = hidden
        for partition, extent in extents.items():
            self._newest[partition] = extent.generation
            if extent.generation:
                self.live_slots[partition] = slot_of(partition, extent.generation)
        for slot in hidden:
            partition = slot & PARTITION_MASK
            self._newest[partition] = max(self._newest.get(partition, 0), slot >> PARTITION_BITS)

    def extent(self, partition: int) -> Extent:
        """The live generation's size, to be counted up and down; made for a new partition."""
        extent = self.extents.get(partition)
        if extent is None:
            extent = self.extents[partition] = Extent()
        return extent

    def begin_staging(self, partition: int) -> int:
        """Begin to stage a snapshot and discard an unfinished one; return the slot to write to."""
        self.discard_staged(partition)
        staging = self.staged[partition] = Staging(self._next_generation(partition))
        return slot_of(partition, staging.extent.generation)

    def discard_staged(self, partition: int) -> None:
        """Mark what is staged of the partition as dead, if anything is."""
        staging = self.staged.pop(partition, None)
        if staging is not None:
            self.dead_slots.add(slot_of(partition, staging.extent.generation))

    def replace(self, partition: int, extent: Extent | None, log_from: int) -> int | None:
        """Make ``extent`` (None: an empty one) live; return the slot that died, None if empty."""
        before = self.extent(partition)
        if extent is None:
            extent = Extent(before.generation if before.is_empty else self._next_generation(partition))
        extent.log_from = log_from
        self.extents[partition] = extent
        if extent.generation:
            self.live_slots[partition] = slot_of(partition, extent.generation)
        if before.is_empty:
            return None
        dead = slot_of(partition, before.generation)
        self.dead_slots.add(dead)
        return dead

    def slots_deleted(self, slots: set[int]) -> None:
        """Forget dead slots of which no row or tombstone is left."""
        self.dead_slots -= slots

    def sizes(self) -> dict[int, PartitionSize]:
        return {partition: extent.size() for partition, extent in list(self.extents.items()) if not extent.is_empty}

    def _next_generation(self, partition: int) -> int:
        generation = self._newest[partition] = self._newest.get(partition, 0) + 1
        return generation


def slot_of(partition: int, generation: int) -> int:
    """The number under which rows of this generation of the partition are stored."""
    return generation << PARTITION_BITS | partition
