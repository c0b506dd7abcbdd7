"""The longer queries of the model store, written as plainly as the contract states them."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection

from tests.support.model_store.disk import Disk, Task
from tq_node.errors import StoreBroken
from tq_node.partition.entries import Entry, is_intact
from tq_node.store.api import RowPage, RowQuery, StoredRow
from tq_node.store.snapshots import Chunk, Digest, encode_chunk, require_intact

_ascii_lower = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_SORT_KEYS: dict[str, Callable[[Task], int]] = {
    "id": lambda task: 0,
    "created_at": lambda task: task.created_us,
    "run_at": lambda task: task.run_at_us,
    "priority": lambda task: task.priority,
}
_ITEM_BYTES_FLAT = 80


def is_wanted(partition: int, partitions: Collection[int] | None) -> bool:
    return partitions is None or partition in partitions


def read_log(records: dict[int, Entry], partition: int, first: int, bytes_max: int) -> list[Entry]:
    found: list[Entry] = []
    total = 0
    sequence = first
    while (entry := records.get(sequence)) is not None:
        total += len(entry.payload)
        if found and total > bytes_max:
            break
        if not is_intact(entry):
            raise StoreBroken(f"log record {sequence} of partition {partition} is damaged")
        found.append(entry)
        sequence += 1
    return found


class PartitionCopy:
    """One partition's content at one moment."""

    def __init__(self, disk: Disk, partition: int) -> None:
        self._partition = partition
        state = disk.states.get(partition)
        self.applied = state.applied if state else 0
        self.horizon_us = state.horizon_us if state else 0
        self.epochs = [line for line in state.epochs if line[1] <= state.applied] if state else []
        self.digest = Digest()
        self._rows = sorted(task.parts() for task in disk.tasks.values() if task.partition == partition)
        self._tombstones = sorted(
            disk.tombstone_parts(tombstone)
            for tombstone in disk.tombstones.values()
            if tombstone.partition == partition
        )
        self._next = 0

    def read(self, bytes_max: int) -> bytes | None:
        chunk = Chunk([], [])
        left = bytes_max
        while self._next < len(self._rows) + len(self._tombstones):
            row = self._rows[self._next] if self._next < len(self._rows) else None
            tombstone = self._tombstones[self._next - len(self._rows)] if row is None else None
            left -= _ITEM_BYTES_FLAT + sum(
                len(part) for part in row or tombstone or () if isinstance(part, str | bytes)
            )
            if left < 0 and (chunk.rows or chunk.tombstones):
                break
            if row is not None:
                require_intact(self._partition, row)
                chunk.rows.append(row)
            elif tombstone is not None:
                chunk.tombstones.append(tombstone)
            self._next += 1
        return encode_chunk(chunk, self.digest) if chunk.rows or chunk.tombstones else None


def digest(disk: Disk, partition: int) -> tuple[int, bytes]:
    copy = PartitionCopy(disk, partition)
    while copy.read(1 << 20) is not None:
        pass
    return copy.applied, copy.digest.value()


def page(tasks: list[Task], query: RowQuery) -> RowPage:
    """As the contract states it: sort all rows, look at ``scan_rows_max``. Sorted by id, rows of
    other states don't count.
    """
    sort_key = _SORT_KEYS[query.sort]

    def place(task: Task) -> tuple[int, str]:
        return sort_key(task), task.id

    if query.sort == "id" and query.states is not None:
        tasks = [task for task in tasks if (task.state in query.states) is not query.states_not]
    tasks.sort(key=place, reverse=query.descending)
    if query.after is not None:
        after = (0, query.after[1]) if query.sort == "id" else query.after
        if query.descending:
            tasks = [task for task in tasks if place(task) < after]
        else:
            tasks = tasks[bisect.bisect_right(tasks, after, key=place) :]
    text = query.text.translate(_ascii_lower) if query.text is not None else None
    rows: list[StoredRow] = []
    total = 0
    for looked, task in enumerate(tasks, 1):
        if _matches(task, query, text):
            rows.append(task.stored())
            total += len(task.spec) + len(task.body)
        if len(rows) == query.limit or total > query.bytes_max or looked == query.scan_rows_max:
            return RowPage(rows, place(task) if looked < len(tasks) else None)
    return RowPage(rows, None)


def _matches(task: Task, query: RowQuery, text: str | None) -> bool:
    return (
        (query.states is None or (task.state in query.states) is not query.states_not)
        and (query.types is None or (task.type in query.types) is not query.types_not)
        and (query.queues is None or (task.queue in query.queues) is not query.queues_not)
        and (query.partitions is None or task.partition in query.partitions)
        and (text is None or text in task.id.translate(_ascii_lower) or text in task.type.translate(_ascii_lower))
    )
