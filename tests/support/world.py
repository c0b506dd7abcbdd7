"""The parts of a simulated world: virtual time, a network that fails, disks that forget. For any core, not only Raft's.

One ``random.Random`` per concern, so that one more draw in one place does not shift the others; the same seed gives the same run
under any ``PYTHONHASHSEED`` (nothing here iterates over a set, hashes a string or reads a clock).
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Action = Callable[..., None]

SECOND_US = 1_000_000
MS_US = 1_000


def rng(seed: int, concern: str) -> random.Random:
    """The random source of one concern. Strings are folded by CRC, for ``hash`` differs from process to process."""
    return random.Random((seed << 32) | zlib.crc32(concern.encode()))


class VirtualTime:
    """A heap of (time, sequence, event). ``now_us`` moves only from event to event."""

    def __init__(self) -> None:
        self.now_us = 0
        self.events = 0
        self._heap: list[tuple[int, int, Action, tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, due_us: int, action: Action, *arguments: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (max(due_us, self.now_us), self._sequence, action, arguments))

    def after(self, delay_us: int, action: Action, *arguments: Any) -> None:
        self.at(self.now_us + delay_us, action, *arguments)

    def run_until(self, until_us: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            self.now_us, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            action(*arguments)
        self.now_us = until_us


class Network:
    """Links are directed. A message may be lost, doubled, late, overtaken; a link may be cut one way, or slow.

    :param deliver: called with (target, message) when one arrives.
    """

    def __init__(self, time: VirtualTime, random_source: random.Random, deliver: Callable[[str, Any], None]) -> None:
        self._time = time
        self._random = random_source
        self._deliver = deliver
        self._last_due: dict[tuple[str, str], int] = {}
        self.cut: dict[tuple[str, str], bool] = {}
        self.slow: dict[tuple[str, str], int] = {}
        """Extra delay of a link, in microseconds."""
        self.loss = 0.0
        self.doubling = 0.0
        self.overtaking = 0.0
        self.delay_us = (300, 2_000)

    def send(self, source: str, target: str, message: Any) -> None:
        link = (source, target)
        if link in self.cut or (self.loss and self._random.random() < self.loss):
            return
        self._schedule(link, message)
        if self.doubling and self._random.random() < self.doubling:
            self._schedule(link, message)

    def _schedule(self, link: tuple[str, str], message: Any) -> None:
        low, high = self.delay_us
        due = self._time.now_us + low + int(self._random.random() * (high - low)) + self.slow.get(link, 0)
        if self.overtaking and self._random.random() < self.overtaking:
            due += int(self._random.random() * 50 * high)
        else:
            due = max(due, self._last_due.get(link, 0))  # one connection keeps its order
            self._last_due[link] = due
        self._time.at(due, self._arrive, link, message)

    def _arrive(self, link: tuple[str, str], message: Any) -> None:
        if link not in self.cut:
            self._deliver(link[1], message)

    def heal(self) -> None:
        """What is under way still arrives."""
        self.cut.clear()
        self.slow.clear()
        self.loss = self.doubling = self.overtaking = 0.0
        self.delay_us = (300, 2_000)


class Disk(Generic[Item]):
    """Writes become durable in order, each wholly or not at all, some time after they were asked for.

    What is not durable is forgotten at a crash; but a crash may also come between the disk's having a write and its saying so.

    :param store: makes one write durable, at once.
    """

    def __init__(self, time: VirtualTime, random_source: random.Random, store: Callable[[Item], None]) -> None:
        self._time = time
        self._random = random_source
        self._store = store
        self._waiting: list[tuple[Item, Action]] = []
        self._run = 0
        self._is_busy = False
        self.delay_us = (200, 3_000)

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def write(self, item: Item, done: Action) -> None:
        """``done`` is called, with no arguments, once this and all earlier writes are durable."""
        self._waiting.append((item, done))
        if not self._is_busy:
            self._begin()

    def _begin(self) -> None:
        low, high = self.delay_us
        self._is_busy = True
        # All that waits now goes into one sync, as a writer thread's group commit does.
        self._time.after(low + int(self._random.random() * (high - low)), self._finish, self._run, len(self._waiting))

    def _finish(self, run: int, count: int) -> None:
        if run != self._run:
            return
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._is_busy = False
        for item, _ in batch:
            self._store(item)
        if self._waiting:
            self._begin()
        for _, done in batch:
            if run == self._run:  # one of them may have crashed the node
                done()

    def crash(self) -> None:
        """Power is lost: of what waits, a prefix drawn at random is on the disk, the rest never was."""
        kept = self._random.randint(0, len(self._waiting)) if self._waiting and self._random.random() < 0.5 else 0
        for item, _ in self._waiting[:kept]:
            self._store(item)
        self._waiting = []
        self._is_busy = False
        self._run += 1


class Trace:
    """A hash over everything that happened, in order: equal runs have equal hashes."""

    def __init__(self, *, keep: int = 0) -> None:
        self.hash = 0
        self._keep = keep
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.hash = zlib.crc32(line.encode(), self.hash)
        if self._keep:
            self.lines.append(line)
            if len(self.lines) > 2 * self._keep:
                del self.lines[: self._keep]
