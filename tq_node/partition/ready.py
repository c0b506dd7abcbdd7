"""What may start, in order: one line over all partitions that a node leads, kept as a heap for each of them.

Entries are bytes, not objects: a million of them cost about 100 MB and nothing to the garbage collector, and comparing them
is one memcmp. They are hints: an entry says that a task was pending (or scheduled) when it was pushed; whoever pops it
looks at the row. The heads of all heaps are a heap themselves, so that taking a partition up or letting it go looks at none of
the others' entries, however many wait.

**Order.** The rank of a task is the time it became due, plus ``AGE_STEP_MS`` for each priority below 9; the smallest rank
starts first. So of two tasks that are due the higher priority starts first, unless the lower one has been due for longer
by (difference of priorities) x ``AGE_STEP_MS``: that is the bound on starving. Priority 0 waits at most nine steps, nine
minutes, behind any number of tasks of priority 9 that became due after it.
"""

from __future__ import annotations

import heapq
import struct

from tq_node import limits

_AGE_STEP_US = limits.AGE_STEP_MS * 1000
_head = struct.Struct(">QH")
_pack = _head.pack
_unpack_from = _head.unpack_from
_HEAD_BYTES = _head.size


def rank_us(run_at_us: int, priority: int) -> int:
    """The place in line, microseconds; smaller starts first."""
    return run_at_us + (limits.PRIORITY_MAX - priority) * _AGE_STEP_US


class _Heaps:
    """A heap of entries for each partition."""

    __slots__ = ("count", "of")

    def __init__(self) -> None:
        self.of: dict[int, list[bytes]] = {}
        self.count = 0

    def push(self, partition: int, key: bytes) -> bool:
        """Whether it is its heap's first entry now."""
        heap = self.of.get(partition)
        if heap is None:
            heap = self.of[partition] = []
        heapq.heappush(heap, key)
        self.count += 1
        return heap[0] is key

    def append(self, partition: int, key: bytes) -> None:
        """Nothing may be asked before ``arrange``."""
        heap = self.of.get(partition)
        if heap is None:
            heap = self.of[partition] = []
        heap.append(key)
        self.count += 1

    def arrange(self) -> None:
        for heap in self.of.values():
            heapq.heapify(heap)

    def pop(self, partition: int, key: bytes) -> list[bytes] | None:
        """Remove ``key`` and return what is left of its heap; None where it is not a first entry any more."""
        heap = self.of.get(partition)
        if not heap or heap[0] != key:
            return None
        heapq.heappop(heap)
        self.count -= 1
        if not heap:
            del self.of[partition]
        return heap

    def absorb(self, other: _Heaps) -> None:
        for partition, heap in other.of.items():
            mine = self.of.get(partition)
            if mine is None:
                self.of[partition] = heap
            else:
                mine += heap
                heapq.heapify(mine)
        self.count += other.count

    def drop(self, partition: int) -> None:
        self.count -= len(self.of.pop(partition, ()))


class ReadySet:
    """Pending tasks by rank. A paused queue costs nothing: its heads are not among those that ``pop`` looks at."""

    def __init__(self) -> None:
        self._queues: dict[str, _Heaps] = {}
        self._heads: list[tuple[bytes, str, int]] = []
        """Some are stale: only one that is its heap's first entry counts. Each ``absorb`` and ``resume`` makes them anew."""
        self._paused: set[str] = set()

    def __len__(self) -> int:
        return sum(heaps.count for heaps in self._queues.values())

    def _heaps(self, queue: str) -> _Heaps:
        heaps = self._queues.get(queue)
        if heaps is None:
            heaps = self._queues[queue] = _Heaps()
        return heaps

    def push(self, task_id: str, partition: int, queue: str, priority: int, run_at_us: int) -> None:
        key = _pack(rank_us(run_at_us, priority), partition) + task_id.encode()
        if self._heaps(queue).push(partition, key) and queue not in self._paused:
            heapq.heappush(self._heads, (key, queue, partition))

    def extend(self, tasks: list[tuple[str, int, str, int, int]]) -> None:
        """Many (task_id, partition, queue, priority, run_at_us); nothing may be popped before ``arrange``."""
        for task_id, partition, queue, priority, run_at_us in tasks:
            key = _pack(rank_us(run_at_us, priority), partition) + task_id.encode()
            self._heaps(queue).append(partition, key)

    def arrange(self) -> None:
        """Put in order what ``extend`` has brought."""
        for heaps in self._queues.values():
            heaps.arrange()
        self._show_heads()

    def _show_heads(self) -> None:
        self._heads = [
            (heap[0], queue, partition)
            for queue, heaps in self._queues.items()
            if queue not in self._paused
            for partition, heap in heaps.of.items()
        ]
        heapq.heapify(self._heads)

    def pop(self) -> tuple[str, int] | None:
        """The (task_id, partition) of least rank whose queue is not paused; None where there is none."""
        while self._heads:
            key, queue, partition = heapq.heappop(self._heads)
            heaps = self._queues.get(queue)
            if heaps is None or queue in self._paused:
                continue
            left = heaps.pop(partition, key)
            if left is None:
                continue
            if left:
                heapq.heappush(self._heads, (left[0], queue, partition))
            elif not heaps.of:
                del self._queues[queue]
            return key[_HEAD_BYTES:].decode(), partition
        return None

    def is_paused(self, queue: str) -> bool:
        return queue in self._paused

    @property
    def has_any(self) -> bool:
        """Whether ``pop`` may find one."""
        return bool(self._heads)

    @property
    def waiting(self) -> int:
        """How many entries ``pop`` may come to: those of queues that are not paused."""
        return sum(heaps.count for queue, heaps in self._queues.items() if queue not in self._paused)

    def pause(self, queue: str) -> None:
        self._paused.add(queue)

    def resume(self, queue: str) -> None:
        self._paused.discard(queue)
        self._show_heads()

    def absorb(self, other: ReadySet) -> None:
        """Take over everything that ``other`` has."""
        for queue, heaps in other._queues.items():
            self._heaps(queue).absorb(heaps)
        self._show_heads()

    def drop_partition(self, partition: int) -> None:
        """Forget every task of a partition that this node no longer leads."""
        for queue, heaps in list(self._queues.items()):
            heaps.drop(partition)
            if not heaps.of:
                del self._queues[queue]


class DueSet:
    """Scheduled tasks by the time at which they become due."""

    def __init__(self) -> None:
        self._heaps = _Heaps()
        self._heads: list[tuple[bytes, int]] = []
        """Some are stale, as those of ``ReadySet``."""

    def __len__(self) -> int:
        return self._heaps.count

    def push(self, task_id: str, partition: int, run_at_us: int) -> None:
        key = _pack(run_at_us, partition) + task_id.encode()
        if self._heaps.push(partition, key):
            heapq.heappush(self._heads, (key, partition))

    def extend(self, tasks: list[tuple[str, int, int]]) -> None:
        """Many (task_id, partition, run_at_us); nothing may be asked before ``arrange``."""
        for task_id, partition, run_at_us in tasks:
            self._heaps.append(partition, _pack(run_at_us, partition) + task_id.encode())

    def arrange(self) -> None:
        """Put in order what ``extend`` has brought."""
        self._heaps.arrange()
        self._show_heads()

    def _show_heads(self) -> None:
        self._heads = [(heap[0], partition) for partition, heap in self._heaps.of.items()]
        heapq.heapify(self._heads)

    def absorb(self, other: DueSet) -> None:
        """Take over everything that ``other`` has."""
        self._heaps.absorb(other._heaps)
        self._show_heads()

    def _first(self) -> tuple[bytes, int] | None:
        """The earliest entry, and its partition."""
        while self._heads:
            key, partition = self._heads[0]
            heap = self._heaps.of.get(partition)
            if heap and heap[0] == key:
                return key, partition
            heapq.heappop(self._heads)
        return None

    def next_us(self) -> int | None:
        """When the earliest becomes due, wall clock."""
        first = self._first()
        return None if first is None else _unpack_from(first[0])[0]

    def pop_due(self, now_us: int, limit: int) -> list[tuple[str, int]]:
        """Up to ``limit`` (task_id, partition) whose time has come, earliest first."""
        due: list[tuple[str, int]] = []
        while len(due) < limit and (first := self._first()) is not None and _unpack_from(first[0])[0] <= now_us:
            key, partition = first
            left = self._heaps.pop(partition, key)
            if left:
                heapq.heapreplace(self._heads, (left[0], partition))
            due.append((key[_HEAD_BYTES:].decode(), partition))
        return due

    def drop_partition(self, partition: int) -> None:
        self._heaps.drop(partition)
