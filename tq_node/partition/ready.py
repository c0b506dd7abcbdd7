"""What may start, in order: one heap over all partitions that a node leads.

Entries are bytes, not objects: a million of them cost about 100 MB and nothing to the garbage collector, and comparing them
is one memcmp. They are hints: an entry says that a task was pending (or scheduled) when it was pushed; whoever pops it
looks at the row.

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


class ReadySet:
    """Pending tasks by rank: a heap for each queue, and one of their heads, so that a paused queue costs nothing."""

    def __init__(self) -> None:
        self._queues: dict[str, list[bytes]] = {}
        self._heads: list[tuple[bytes, str]] = []
        """Some are stale: only one that is its queue's first entry counts."""
        self._paused: set[str] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, task_id: str, partition: int, queue: str, priority: int, run_at_us: int) -> None:
        key = _pack(rank_us(run_at_us, priority), partition) + task_id.encode()
        heap = self._queues.get(queue)
        if heap is None:
            heap = self._queues[queue] = []
        heapq.heappush(heap, key)
        self._count += 1
        if heap[0] is key and queue not in self._paused:
            heapq.heappush(self._heads, (key, queue))

    def extend(self, tasks: list[tuple[str, int, str, int, int]]) -> None:
        """Many (task_id, partition, queue, priority, run_at_us); nothing may be popped before ``arrange``."""
        for task_id, partition, queue, priority, run_at_us in tasks:
            key = _pack(rank_us(run_at_us, priority), partition) + task_id.encode()
            self._queues.setdefault(queue, []).append(key)
        self._count += len(tasks)

    def arrange(self) -> None:
        """Put in order what ``extend`` has brought."""
        for heap in self._queues.values():
            heapq.heapify(heap)
        self._show_heads()

    def _show_heads(self) -> None:
        self._heads = [(heap[0], queue) for queue, heap in self._queues.items() if heap and queue not in self._paused]
        heapq.heapify(self._heads)

    def pop(self) -> tuple[str, int] | None:
        """The (task_id, partition) of least rank whose queue is not paused; None where there is none."""
        while self._heads:
            key, queue = heapq.heappop(self._heads)
            heap = self._queues.get(queue)
            if not heap or heap[0] != key or queue in self._paused:
                continue
            heapq.heappop(heap)
            self._count -= 1
            if heap:
                heapq.heappush(self._heads, (heap[0], queue))
            else:
                del self._queues[queue]
            return key[_HEAD_BYTES:].decode(), _unpack_from(key)[1]
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
        if not self._paused:
            return self._count
        return sum(len(heap) for queue, heap in self._queues.items() if queue not in self._paused)

    def pause(self, queue: str) -> None:
        self._paused.add(queue)

    def resume(self, queue: str) -> None:
        self._paused.discard(queue)
        heap = self._queues.get(queue)
        if heap:
            heapq.heappush(self._heads, (heap[0], queue))

    def absorb(self, other: ReadySet) -> None:
        """Take over everything that ``other`` has."""
        for queue, heap in other._queues.items():
            mine = self._queues.get(queue)
            if mine is None:
                self._queues[queue] = heap
            elif len(heap) * 8 < len(mine):
                for key in heap:
                    heapq.heappush(mine, key)
            else:
                mine += heap
                heapq.heapify(mine)
        self._count += other._count
        self._show_heads()

    def drop_partition(self, partition: int) -> None:
        """Forget every task of a partition that this node no longer leads."""
        for queue, heap in list(self._queues.items()):
            kept = [key for key in heap if _unpack_from(key)[1] != partition]
            if kept:
                heapq.heapify(kept)
                self._queues[queue] = kept
            else:
                del self._queues[queue]
        self._count = sum(map(len, self._queues.values()))
        self._show_heads()


class DueSet:
    """Scheduled tasks by the time at which they become due."""

    def __init__(self) -> None:
        self._heap: list[bytes] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, task_id: str, partition: int, run_at_us: int) -> None:
        heapq.heappush(self._heap, _pack(run_at_us, partition) + task_id.encode())

    def extend(self, tasks: list[tuple[str, int, int]]) -> None:
        """Many (task_id, partition, run_at_us); nothing may be asked before ``arrange``."""
        self._heap += [_pack(run_at_us, partition) + task_id.encode() for task_id, partition, run_at_us in tasks]

    def arrange(self) -> None:
        """Put in order what ``extend`` has brought."""
        heapq.heapify(self._heap)

    def absorb(self, other: DueSet) -> None:
        """Take over everything that ``other`` has."""
        self._heap += other._heap
        heapq.heapify(self._heap)

    def next_us(self) -> int | None:
        """When the earliest becomes due, wall clock."""
        return _unpack_from(self._heap[0])[0] if self._heap else None

    def pop_due(self, now_us: int, limit: int) -> list[tuple[str, int]]:
        """Up to ``limit`` (task_id, partition) whose time has come, earliest first."""
        due: list[tuple[str, int]] = []
        while self._heap and len(due) < limit and _unpack_from(self._heap[0])[0] <= now_us:
            key = heapq.heappop(self._heap)
            due.append((key[_HEAD_BYTES:].decode(), _unpack_from(key)[1]))
        return due

    def drop_partition(self, partition: int) -> None:
        self._heap = [key for key in self._heap if _unpack_from(key)[1] != partition]
        heapq.heapify(self._heap)
