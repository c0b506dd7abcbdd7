"""Where in the ``log`` table each partition's records are: 12 bytes of memory a record instead of
an index on disk.

The writer thread changes it after each commit, the reader threads ask it; a lock parts them."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Collection
from typing import NamedTuple


class _Records:
    """``positions[dropped:]`` are the kept ones; the first of them has sequence ``first``."""

    __slots__ = ("dropped", "first", "positions", "sizes")

    def __init__(self, first: int) -> None:
        self.first = first
        self.dropped = 0
        self.positions = array("q")
        self.sizes = array("I")

    def __len__(self) -> int:
        return len(self.positions) - self.dropped

    def drop(self, count: int) -> None:
        """The first ``count`` go."""
        self.dropped += count
        self.first += count
        if self.dropped > 1024 and self.dropped * 2 > len(self.positions):
            del self.positions[: self.dropped]
            del self.sizes[: self.dropped]
            self.dropped = 0


class LogLoad(NamedTuple):
    """What the ``log`` table holds when the store is opened, dead records included."""

    next_position: int
    rows: int
    bytes: int


class LogIndex:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.settled = threading.Lock()
        """Held by the writer from a transaction that removes records behind the front to here."""
        self._records: dict[int, _Records] = {}
        self.kept = 0
        """Live records of all partitions."""

    def extend(self, added: Collection[tuple[int, int, int, int]]) -> None:
        """Add records (partition, sequence, position, payload bytes), in order of positions."""
        with self._lock:
            for partition, sequence, position, size in added:
                records = self._records.get(partition)
                if records is None:
                    records = self._records[partition] = _Records(sequence)
                elif records.dropped == len(records.positions):
                    records.first = sequence
                records.positions.append(position)
                records.sizes.append(size)
            self.kept += len(added)

    def trim(self, partition: int, upto: int) -> None:
        """Forget the partition's records up to and with sequence ``upto``. In the writer thread,
        the only one that changes anything."""
        records = self._records.get(partition)
        if records is None or upto < records.first:
            return
        with self._lock:
            count = min(upto - records.first + 1, len(records))
            records.drop(count)
            self.kept -= count

    def end(self, partition: int, kept: int) -> list[int]:
        """Positions of the partition's records above sequence ``kept``."""
        with self._lock:
            records = self._records.get(partition)
            if records is None:
                return []
            return records.positions[records.dropped + max(kept - records.first + 1, 0) :].tolist()

    def cut(self, partition: int, kept: int) -> None:
        """Forget the partition's records above sequence ``kept``."""
        with self._lock:
            records = self._records.get(partition)
            if records is None:
                return
            left = min(max(kept - records.first + 1, 0), len(records))
            self.kept -= len(records) - left
            del records.positions[records.dropped + left :]
            del records.sizes[records.dropped + left :]

    def forget(self, partition: int) -> None:
        with self._lock:
            records = self._records.pop(partition, None)
            if records is not None:
                self.kept -= len(records)

    def first_position(self, otherwise: int) -> int:
        """The lowest live position: the table may be emptied below it."""
        with self._lock:
            first = [r.positions[r.dropped] for r in self._records.values() if r.dropped < len(r.positions)]
            return min(first, default=otherwise)

    def find(self, partition: int, first: int, bytes_max: int) -> list[int]:
        """Positions of the records from ``first`` on, up to ``bytes_max``, at least one if any."""
        with self._lock:
            records = self._records.get(partition)
            if records is None or first < records.first:
                return []
            start = end = records.dropped + first - records.first
            total = 0
            stop = len(records.positions)
            while end < stop and (end == start or total + records.sizes[end] <= bytes_max):
                total += records.sizes[end]
                end += 1
            return records.positions[start:end].tolist()
