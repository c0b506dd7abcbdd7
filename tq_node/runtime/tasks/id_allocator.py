"""Where a task gets its id: one of a partition that this node leads, which all submits of one
commit share.

A task's partition is a function of its id (section 9), so whoever makes the id chooses the
partition. Two costs go away: nothing is forwarded, and what a partition costs each time it has
something to say (an entry, a message to each copy, an acknowledgement, on three nodes) is shared by
many tasks instead of paid by each. The next commit goes on with the next partition, so that all
that are led here fill alike.

Ids are ``task-<uuid7>`` (RFC 9562, section 5.7). They sort by the time they were made, to 64 ms: a
node's single submits share a beginning for so long; only the random ending tells them apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from tq_node.cluster.placement import draw_in, first_in

TASKS_EACH = 64
"""Tasks that land in the same place within one commit: enough to share its cost."""
TASKS_EACH_OF_BATCH = 32
"""A batch's tasks for each of its partitions: with more partitions an id costs fewer hashes."""
DRAWS_EACH = 64
"""Hashes that one id may cost, about: of more partitions than that, several are as good as one."""
_MADE = re.compile(r"task-([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")

_POOL_BYTES = 4_096
_TAIL_DIGITS = 16
_VERSION = 7 << 12
_VARIANT_DIGIT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
TAILS = 1_024
"""Random endings kept ready, at least: then an id that must fit costs little but a hash a try."""
BEGINNING_US = 64_000
"""How long single submits share the beginning of their ids: an ending hashed for one partition is
kept, and fits another that has its turn meanwhile."""
KEPT_EACH = TASKS_EACH
"""Endings kept for a partition at most."""
_A_MS = 1 << 12
"""In the units of an id's time."""
_ROUNDS_MAX = 4


class IdMaker:
    """:param random_bytes: asked for 4 KiB at a time: each system call lets go of the interpreter,
    and at tens of thousands of ids a second the other threads would take it at every one of
    them.
    :param seed, partition_count: fixed when the cluster was born.

    Each ending is used once at most, whatever stands before it: ids of one process differ in their
    random bits, however the clock steps."""

    __slots__ = ("_at", "_begun_us", "_head", "_kept", "_partition_count", "_random_bytes", "_seed", "_tails", "_units")

    def __init__(self, random_bytes: Callable[[int], bytes], *, seed: int, partition_count: int) -> None:
        self._random_bytes = random_bytes
        self._seed = seed
        self._partition_count = partition_count
        self._tails: list[str] = []
        self._at = 0
        self._units = 0
        self._head = ""
        """The beginning that single submits share, ..."""
        self._begun_us = -BEGINNING_US
        """... and since when."""
        self._kept: list[list[str]] = [[] for _ in range(partition_count)]
        """By partition, endings that make ``_head`` an id of it."""

    def make(self, wall_us: int) -> str:
        """A fresh id: 48 bits of milliseconds, 12 of the fraction below them, 62 random bits."""
        if not self._tails:
            self._refill()
        return f"task-{_head(_units_of(wall_us))}{self._tails.pop()}"

    def make_one(self, wall_us: int, partitions: Collection[int]) -> tuple[str, int | None]:
        """One whose task lives in one of ``partitions``, and in which. Its time is that of the
        present beginning, up to ``BEGINNING_US`` ago. Without any luck the id is one of any
        partition (None)."""
        if not 0 <= wall_us - self._begun_us < BEGINNING_US:
            self._begin(wall_us)
        kept = self._kept
        for partition in partitions:
            if kept[partition]:
                return self._head + kept[partition].pop(), partition
        seed, partition_count = self._seed, self._partition_count
        for _ in range(_ROUNDS_MAX):
            drawn = draw_in(
                self._head, self._tails, partitions, kept, KEPT_EACH, seed=seed, partition_count=partition_count
            )
            if drawn is not None:
                return self._head + drawn[0], drawn[1]
            while len(self._tails) < TAILS:
                self._refill()
        return self.make(wall_us), None

    def _begin(self, wall_us: int) -> None:
        """A new beginning: what was kept for the last one is tried again."""
        self._begun_us = wall_us
        self._head = f"task-{_head(_units_of(wall_us))}"
        for tails in self._kept:
            self._tails += tails
            tails.clear()

    def make_in(self, wall_us: int, partitions: Collection[int]) -> str:
        """As ``make_one``, for tasks that come together: of many places, so that an id costs few
        hashes, and with its own time.

        Endings are tried as often as it takes: the random bits of an id are those among 62 that
        fit. Where none does, the time goes on by a quarter of a microsecond."""
        tails = self._tails
        while len(tails) < TAILS:
            self._refill()
        units = _units_of(wall_us)
        if units < self._units < units + _A_MS:
            units = self._units  # all endings were tried with less
        begin = self._at
        for _ in range(_ROUNDS_MAX):
            head = f"task-{_head(units)}"
            at = first_in(head, tails, begin, partitions, seed=self._seed, partition_count=self._partition_count)
            if at is not None:
                made = head + tails[at]
                tails[at] = tails[-1]
                del tails[-1]
                self._at, self._units = at, units
                return made
            begin = 0
            units += 1
        return self.make(wall_us)

    def _refill(self) -> None:
        """Endings as after an id's third dash: the variant's two bits, then 62 random ones."""
        digits, variant = self._random_bytes(_POOL_BYTES).hex(), _VARIANT_DIGIT
        self._tails += [
            f"{variant[digits[at]]}{digits[at + 1 : at + 4]}-{digits[at + 4 : at + _TAIL_DIGITS]}"
            for at in range(0, len(digits), _TAIL_DIGITS)
        ]


def _units_of(wall_us: int) -> int:
    """The time in an id: milliseconds, and 12 bits below them."""
    millis, micros = divmod(wall_us, 1000)
    return millis << 12 | (micros << 12) // 1000


def _head(units: int) -> str:
    text = f"{(units >> 12) << 16 | _VERSION | (units & 0xFFF):016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:]}-"


def made_at_us(task_id: str) -> int | None:
    """When an id of that form was made, wall clock; None for an id of another form."""
    match = _MADE.match(task_id)
    if match is None:
        return None
    return int(match[1] + match[2], 16) * 1000


class Gathering(Protocol):
    """Whoever gathers commits, as the allocator sees it."""

    commits: int
    """How many have been gathered so far."""


class IdAllocator:
    """Chooses each new task's partition among those led here, and makes an id that hashes to it.

    :param led: the partitions that are led and active here.
    :param refusals: those of them that take no new work for now."""

    def __init__(
        self,
        ids: IdMaker,
        led: Mapping[int, object],
        refusals: Mapping[int, object],
        gathering: Gathering,
        partition_count: int,
    ) -> None:
        self._ids = ids
        self._led = led
        self._refusals = refusals
        self._gathering = gathering
        self._partitions_at_once = -(-partition_count // DRAWS_EACH)
        self._partitions: frozenset[int] = frozenset()
        """Where ids of the present commit lead to; empty where this node leads nothing."""
        self._newest = -1
        """The partition that had its turn last."""
        self._ids_left = 0
        """Ids that these partitions still get in the present commit."""
        self._commit = -1

    def allocate(self, wall_us: int) -> tuple[str, int | None]:
        """The id of a new task, and its partition: one that this node leads and that takes work, in
        this turn of the reactor. None: of a partition that is not looked at."""
        partitions = self._partitions
        # A partition may go within a commit; where nothing is proposed, no other commit follows.
        if not (
            self._ids_left
            and self._gathering.commits == self._commit
            and partitions <= self._led.keys()
            and partitions.isdisjoint(self._refusals)
        ):
            self._commit = self._gathering.commits
            self._partitions = partitions = self._next_partitions(self._partitions_at_once)
            self._ids_left = TASKS_EACH * max(len(partitions), 1)
        self._ids_left -= 1
        return self._ids.make_one(wall_us, partitions) if partitions else (self._ids.make(wall_us), None)

    def allocate_many(self, wall_us: int, count: int) -> tuple[list[str], bool]:
        """The ids of ``count`` tasks that come together, and whether this node leads all their
        partitions, in this turn of the reactor."""
        partitions = self._next_partitions(max(self._partitions_at_once, -(-count // TASKS_EACH_OF_BATCH)))
        make, make_in = self._ids.make, self._ids.make_in
        made = [make_in(wall_us, partitions) if partitions else make(wall_us) for _ in range(count)]
        return made, bool(partitions)

    def _next_partitions(self, count: int) -> frozenset[int]:
        """``count`` partitions that take work (or all there are), from behind the last one used."""
        refusals = self._refusals
        taking = sorted([partition for partition in self._led if partition not in refusals])
        after = [partition for partition in taking if partition > self._newest]
        partitions = (after + taking)[: min(count, len(taking))]
        if partitions:
            self._newest = partitions[-1]
        return frozenset(partitions)
