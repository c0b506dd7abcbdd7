"""Where a partition's rows are in the tables, and how much each partition holds (docs/decisions/0008-slots.md).

Rows and tombstones are stored under a *slot*: the partition's number and a generation. One slot of a partition counts. A
snapshot is staged under the next generation, row by row, over many commits; what no longer counts is deleted over many
commits; the moment in between, at which one takes the place of the other, changes a handful of rows. Generation 0 is the
partition's number itself. The writer thread changes what is here; the reactor thread reads sizes.
"""

from __future__ import annotations

from tq_node import limits
from tq_node.errors import Divergence
from tq_node.store.api import PartitionSize
from tq_node.store.snapshots import GRAVE_BYTES_ABOUT, ROW_BYTES_ABOUT, Chunk, Digest

PARTITION_BITS = 16
PARTITION_MASK = (1 << PARTITION_BITS) - 1

assert limits.PARTITIONS_MAX <= PARTITION_MASK


class Extent:
    """What one slot holds. ``log_from``: records of the partition at lower positions no longer count."""

    __slots__ = ("content_bytes", "generation", "log_from", "rows", "tombstones")

    def __init__(
        self, generation: int = 0, log_from: int = 0, rows: int = 0, tombstones: int = 0, content_bytes: int = 0
    ) -> None:
        self.generation = generation
        self.log_from = log_from
        self.rows = rows
        self.tombstones = tombstones
        self.content_bytes = content_bytes

    @property
    def is_empty(self) -> bool:
        return not (self.rows or self.tombstones)

    def size(self) -> PartitionSize:
        total = self.content_bytes + self.rows * ROW_BYTES_ABOUT + self.tombstones * GRAVE_BYTES_ABOUT
        return PartitionSize(self.rows, self.tombstones, total)

    def take_in(self, chunk: Chunk) -> None:
        self.rows += len(chunk.rows)
        self.content_bytes += sum(len(row[11]) + len(row[12]) for row in chunk.rows)
        self.tombstones += len(chunk.graves)


class Staging:
    """A snapshot on its way in. ``held.generation`` is the one that will count."""

    __slots__ = ("chunks", "digest", "held")

    def __init__(self, generation: int) -> None:
        self.held = Extent(generation)
        self.chunks = 0
        self.digest = Digest()

    def require_next(self, partition: int, number: int) -> None:
        """:raises Divergence: a chunk is missing."""
        if number != self.chunks:
            raise Divergence(f"partition {partition}: chunk {number} after {self.chunks}")
        self.chunks += 1

    def require_whole(self, partition: int, chunks: int, digest: bytes) -> None:
        """:raises Divergence: not what the installer means."""
        if self.chunks != chunks:
            raise Divergence(f"partition {partition}: {self.chunks} chunks are staged, not {chunks}")
        if digest and digest != self.digest.value():
            raise Divergence(f"partition {partition}: what is staged has another digest than the snapshot")


class Generations:
    """The slots of all partitions. ``live`` names those of a generation past 0; a partition not in it has its own number."""

    def __init__(self) -> None:
        self.held: dict[int, Extent] = {}
        self.live: dict[int, int] = {}
        self.staged: dict[int, Staging] = {}
        self.dead: set[int] = set()
        """Slots whose rows are to be deleted."""
        self._newest: dict[int, int] = {}

    def load(self, held: dict[int, Extent], hidden: set[int]) -> None:
        """As found at opening: what is hidden was staged and given up, or replaced, and not all deleted yet."""
        self.held = held
        self.dead = hidden
        for partition, found in held.items():
            self._newest[partition] = found.generation
            if found.generation:
                self.live[partition] = slot_of(partition, found.generation)
        for slot in hidden:
            partition = slot & PARTITION_MASK
            self._newest[partition] = max(self._newest.get(partition, 0), slot >> PARTITION_BITS)

    def of(self, partition: int) -> Extent:
        held = self.held.get(partition)
        if held is None:
            held = self.held[partition] = Extent()
        return held

    def begin(self, partition: int) -> int:
        """Begin to stage, anew if it has begun: the slot to write to."""
        self.give_up(partition)
        staging = self.staged[partition] = Staging(self._next_generation(partition))
        return slot_of(partition, staging.held.generation)

    def give_up(self, partition: int) -> None:
        """Stage nothing any more."""
        staging = self.staged.pop(partition, None)
        if staging is not None:
            self.dead.add(slot_of(partition, staging.held.generation))

    def replace(self, partition: int, held: Extent | None, log_from: int) -> int | None:
        """``held`` counts from now on (None: an empty one). Returns the slot that has become dead, None if nothing was in it."""
        before = self.of(partition)
        if held is None:
            held = Extent(before.generation if before.is_empty else self._next_generation(partition))
        held.log_from = log_from
        self.held[partition] = held
        if held.generation:
            self.live[partition] = slot_of(partition, held.generation)
        if before.is_empty:
            return None
        dead = slot_of(partition, before.generation)
        self.dead.add(dead)
        return dead

    def buried(self, slots: set[int]) -> None:
        """Nothing is left of these."""
        self.dead -= slots

    def sizes(self) -> dict[int, PartitionSize]:
        return {partition: held.size() for partition, held in list(self.held.items()) if not held.is_empty}

    def _next_generation(self, partition: int) -> int:
        generation = self._newest[partition] = self._newest.get(partition, 0) + 1
        return generation


def slot_of(partition: int, generation: int) -> int:
    return generation << PARTITION_BITS | partition
