"""What may start, in order: one line over all partitions that a node leads, kept as a heap for each
of them.

Entries are bytes, not objects: a million of them cost about 100 MB and nothing to the garbage
collector, and comparing them is one memcmp. They are hints: an entry says that a task was pending
(or scheduled) when it was pushed; whoever pops it looks at the row. The heads of all heaps are a
heap themselves, so that taking a partition up or letting it go looks at none of the others'
entries, however many wait.

**Order.** The rank of a task is the time it became due, plus ``AGE_STEP_MS`` for each priority
below 9; the smallest rank starts first. So of two tasks that are due the higher priority starts
first, unless the lower one has been due for longer by (difference of priorities) x ``AGE_STEP_MS``:
that is the bound on starving. Priority 0 waits at most nine steps, nine minutes, behind any number
of tasks of priority 9 that became due after it."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator

from tq_node import limits

_AGE_STEP_US = limits.AGE_STEP_MS * 1000
_head = struct.Struct(">QH")
_pack = _head.pack
_unpack_from = _head.unpack_from
_HEAD_BYTES = _head.size
Lane = tuple[str, str]
"""Queue and type."""
_UNKNOWN = ""
"""In place of a type that nobody is known to name: no task has it."""
_HEADS_MAX = 50_000
"""A line that is asked for nothing collects stale heads; past this, asking makes them anew."""
_LINES_MAX = 32
"""Lines of other workers that are kept, besides this node's own."""


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
        """Add an entry. True: it is the first of its heap now."""
        heap = self.of.get(partition)
        if heap is None:
            heap = self.of[partition] = []
        heapq.heappush(heap, key)
        self.count += 1
        return heap[0] is key

    def pop(self, partition: int, key: bytes) -> list[bytes] | None:
        """Remove ``key``; return the rest of its heap, None if it is not a first entry any more."""
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


class _Line:
    """The heads of all lanes that one kind of worker may take from, as a heap. Some are stale: only
    one that is its heap's first entry counts. ``heads`` None: to be made anew when they are asked
    for."""

    __slots__ = ("heads", "queues", "types")

    def __init__(self, types: Collection[str] | None, queues: Collection[str] | None = None) -> None:
        self.types = types
        self.queues = queues
        self.heads: list[tuple[bytes, Lane, int]] | None = None

    def takes(self, lane: Lane) -> bool:
        return (self.types is None or lane[1] in self.types) and (self.queues is None or lane[0] in self.queues)


class ReadySet:
    """Pending tasks by rank, in a lane for each queue and type; types that no worker is known to
    name share one.

    A lane that may not be taken from costs nothing, however much lies in it: of a paused queue or
    type, or of a type that the worker which asks has no handler for. ``own`` is what this node's
    worker takes; ``pop_for`` asks for those of other nodes."""

    def __init__(self, own: Collection[str] | None = None, known: Collection[str] = frozenset()) -> None:
        """``own``: types, None: any. ``known``: those that get a lane of their own."""
        self._lanes: dict[Lane, _Heaps] = {}
        self._paused: set[str] = set()
        self._paused_types: frozenset[str] = frozenset()
        self._known = frozenset(known)
        self._own = _Line(own)
        self._lines = [self._own]
        """After this node's line, those of other workers that ask, the latest to ask last."""
        self.has_foreign = False
        """Something was pushed that this node's worker doesn't take; who reads it resets it."""
        self.is_misplaced = False
        """The unknown types' lane may hold tasks of types known by now: read them anew."""

    def like(self) -> ReadySet:
        """An empty one with the same lanes, and no queue paused."""
        return ReadySet(self._own.types, self._known)

    def has_lanes_of(self, other: ReadySet) -> bool:
        """Whether it still has the lanes and paused queues of ``other``."""
        return (self._own.types, self._known) == (other._own.types, other._known)

    def __len__(self) -> int:
        return sum(heaps.count for heaps in self._lanes.values())

    def _heaps(self, lane: Lane) -> _Heaps:
        heaps = self._lanes.get(lane)
        if heaps is None:
            heaps = self._lanes[lane] = _Heaps()
        return heaps

    # --- who takes what ---
    def set_own(self, types: Collection[str] | None) -> None:
        """What this node's worker takes; None: any."""
        self._own.types = types
        self._own.heads = None

    def set_known(self, types: Collection[str]) -> None:
        """The types that workers name. A dropped one keeps its lanes until they are empty."""
        known = frozenset(types)
        if not known <= self._known and any(lane[1] == _UNKNOWN for lane in self._lanes):
            self.is_misplaced = True
        self._known = known

    # --- putting in ---
    def push(
        self, task_id: str, partition: int, queue: str, priority: int, run_at_us: int, task_type: str = ""
    ) -> None:
        key = _pack(rank_us(run_at_us, priority), partition) + task_id.encode()
        lane = queue, task_type if task_type in self._known else _UNKNOWN
        own = self._own.types
        if own is not None and task_type not in own:
            self.has_foreign = True
        heaps = self._lanes.get(lane)
        if heaps is None:
            heaps = self._lanes[lane] = _Heaps()
        if heaps.push(partition, key) and queue not in self._paused and lane[1] not in self._paused_types:
            self._show(key, lane, partition)

    def _show(self, key: bytes, lane: Lane, partition: int) -> None:
        """It is its heap's first entry now, and its queue is not paused."""
        for line in self._lines:
            heads = line.heads
            if heads is not None and line.takes(lane):
                if len(heads) < _HEADS_MAX:
                    heapq.heappush(heads, (key, lane, partition))
                else:
                    line.heads = None

    def extend(self, tasks: list[tuple[str, int, str, int, int, str]]) -> None:
        """Add (task_id, partition, queue, priority, run_at_us, type); no pop before ``arrange``."""
        for task_id, partition, queue, priority, run_at_us, task_type in tasks:
            key = _pack(rank_us(run_at_us, priority), partition) + task_id.encode()
            self._heaps((queue, task_type if task_type in self._known else _UNKNOWN)).push(partition, key)

    def arrange(self) -> None:
        """Show ``extend``'s entries, in heap order already: a million would hold the reactor."""
        self._forget_heads()

    # --- taking out ---
    def pop_for(self, types: Collection[str] | None, queues: Collection[str] | None = None) -> tuple[str, int] | None:
        """Like ``pop``, for a worker elsewhere that takes these types and queues; None: any."""
        return self.pop(self._line_of(types, queues))

    def pop(self, line: _Line | None = None) -> tuple[str, int] | None:
        """The least (task_id, partition) that this node's worker may start; None if none."""
        if line is None:
            line = self._own
        heads = line.heads
        if heads is None:
            heads = self._make_heads(line)
        while heads:
            key, lane, partition = heapq.heappop(heads)
            heaps = self._lanes.get(lane)
            if heaps is None or lane[0] in self._paused or lane[1] in self._paused_types:
                continue
            left = heaps.pop(partition, key)
            if left is None:
                continue
            if left:
                self._show(left[0], lane, partition)
            elif not heaps.of:
                del self._lanes[lane]
            return key[_HEAD_BYTES:].decode(), partition
        return None

    def _make_heads(self, line: _Line) -> list[tuple[bytes, Lane, int]]:
        line.heads = heads = [
            (heap[0], lane, partition)
            for lane, heaps in self._lanes.items()
            if not self._is_held(lane) and line.takes(lane)
            for partition, heap in heaps.of.items()
        ]
        heapq.heapify(heads)
        return heads

    def _line_of(self, types: Collection[str] | None, queues: Collection[str] | None) -> _Line:
        for place in range(1, len(self._lines)):
            if (self._lines[place].types, self._lines[place].queues) == (types, queues):
                line = self._lines.pop(place)
                break
        else:
            line = _Line(types, queues)
            if len(self._lines) > _LINES_MAX:
                del self._lines[1]
        self._lines.append(line)
        return line

    def _forget_heads(self) -> None:
        for line in self._lines:
            line.heads = None

    # --- looking ---
    def is_paused(self, queue: str, task_type: str = "") -> bool:
        return queue in self._paused or task_type in self._paused_types

    def _is_held(self, lane: Lane) -> bool:
        return lane[0] in self._paused or lane[1] in self._paused_types

    @property
    def has_any(self) -> bool:
        """Whether ``pop`` may find one."""
        heads = self._own.heads
        return bool(self._make_heads(self._own) if heads is None else heads)

    def kinds(self) -> set[str]:
        """Types that wait, nothing of them paused; empty text: some that no worker names."""
        return {lane[1] for lane in self._lanes if not self._is_held(lane)}

    def waiting_for(self, types: Collection[str] | None, queues: Collection[str] | None = None) -> tuple[int, int]:
        """How many entries ``pop_for`` may come to, and how many of them ``pop`` may, too."""
        line, own = _Line(types, queues), self._own
        all_of_them = shared = 0
        for lane, heaps in self._lanes.items():
            if not self._is_held(lane) and line.takes(lane):
                all_of_them += heaps.count
                shared += heaps.count if own.takes(lane) else 0
        return all_of_them, shared

    def sizes(self, partitions: Collection[int]) -> Iterator[tuple[Lane, int, dict[int, int]]]:
        """Each lane with the number of its entries, and how many of them each of ``partitions``
        has."""
        for lane, heaps in self._lanes.items():
            yield lane, heaps.count, {number: len(heaps.of[number]) for number in partitions if number in heaps.of}

    # --- queues and partitions ---
    def pause(self, queue: str) -> None:
        self._paused.add(queue)

    def resume(self, queue: str) -> None:
        self._paused.discard(queue)
        self._forget_heads()

    def pause_types(self, types: Collection[str]) -> None:
        """Hold these types and no others; each must be among the known ones, for its own lanes."""
        self._paused_types = frozenset(types)
        self._forget_heads()

    def absorb(self, other: ReadySet) -> None:
        """Take over everything that ``other`` has."""
        for lane, heaps in other._lanes.items():
            self._heaps(lane).absorb(heaps)
        self._forget_heads()
        self.is_misplaced = self.is_misplaced or other.is_misplaced or not self._known <= other._known

    def drop_partition(self, partition: int) -> None:
        """Forget every task of a partition that this node no longer leads."""
        for lane, heaps in list(self._lanes.items()):
            heaps.drop(partition)
            if not heaps.of:
                del self._lanes[lane]


class DueSet:
    """Scheduled tasks by the time at which they become due."""

    def __init__(self) -> None:
        self._heaps = _Heaps()
        self._heads: list[tuple[bytes, int]] = []
        """Some are stale, as those of ``ReadySet``."""

    def __len__(self) -> int:
        return self._heaps.count

    def push(self, task_id: str, partition: int, run_at_us: int) -> bool:
        """Add a task. True: it is the earliest of all now."""
        key = _pack(run_at_us, partition) + task_id.encode()
        if not self._heaps.push(partition, key):
            return False
        heapq.heappush(self._heads, (key, partition))
        return self._heads[0][0] is key

    def extend(self, tasks: list[tuple[str, int, int]]) -> None:
        """Many (task_id, partition, run_at_us); nothing may be asked before ``arrange``."""
        for task_id, partition, run_at_us in tasks:
            self._heaps.push(partition, _pack(run_at_us, partition) + task_id.encode())

    def arrange(self) -> None:
        """Show what ``extend`` has brought."""
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
