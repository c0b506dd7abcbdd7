"""Where a task lands that brings no id: in a partition that this node leads, the same one for all that one commit gathers.

A task's place is a function of its id (section 9), so whoever makes the id chooses the place. Two costs go away: nothing is
forwarded, and what a partition costs each time it has something to say (an entry, a message to each copy, an acknowledgement,
on three nodes) is shared by many tasks instead of paid by each. The next commit goes on with the next partition, so that all
that are led here fill alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tq_node.runtime.tasks.ids import IdMaker

TASKS_EACH = 64
"""Tasks that land in the same place within one commit: enough to share its cost."""
TASKS_EACH_OF_BATCH = 32
"""A batch is spread over so many places that each gets about so many tasks: the more places fit, the fewer hashes an id costs."""
DRAWS_EACH = 64
"""Hashes that one id may cost, about: of more partitions than that, several are as good as one."""


class IdAllocator:
    """:param led: the partitions that are led and active here. :param refusals: those of them that take no new work for now.

    :param commits: how many commits have been gathered so far.
    :param seed, partition_count: fixed when the cluster was born.
    """

    def __init__(
        self,
        ids: IdMaker,
        led: Mapping[int, object],
        refusals: Callable[[], Mapping[int, object]],
        commits: Callable[[], int],
        *,
        seed: int,
        partition_count: int,
    ) -> None:
        self._ids = ids
        self._led = led
        self._refusals = refusals
        self._commits = commits
        self._seed = seed
        self._partition_count = partition_count
        self._places_at_once = -(-partition_count // DRAWS_EACH)
        self._places: frozenset[int] = frozenset()
        self.is_here = False
        """Whether what was made last lives at this node: for this turn."""
        self._newest = -1
        self._left = 0
        self._commit = -1

    def make_id(self, wall_us: int) -> str:
        """The id of a new task. Where this node leads nothing, any: its task goes to whoever leads it."""
        commit = self._commits()
        if self._left == 0 or commit != self._commit or not self._still_take():
            self._commit = commit
            self._places = self._next_places(self._places_at_once)
            self._left = TASKS_EACH * max(len(self._places), 1)
        self._left -= 1
        self.is_here = bool(self._places)
        return self._make(wall_us, self._places)

    def make_ids(self, wall_us: int, count: int) -> list[str]:
        """The ids of so many new tasks that come together."""
        places = self._next_places(max(self._places_at_once, -(-count // TASKS_EACH_OF_BATCH)))
        self.is_here = bool(places)
        return [self._make(wall_us, places) for _ in range(count)]

    def _make(self, wall_us: int, places: frozenset[int]) -> str:
        if not places:
            return self._ids.make(wall_us)
        return self._ids.make_in(wall_us, places, seed=self._seed, partition_count=self._partition_count)

    def _still_take(self) -> bool:
        """A partition may go within a commit: and where nothing is proposed any more, no other commit follows."""
        return self._places <= self._led.keys() and self._places.isdisjoint(self._refusals())

    def _next_places(self, count: int) -> frozenset[int]:
        """So many, or all that there are, from the one after the last that had its turn."""
        refusals = self._refusals()
        taking = sorted([partition for partition in self._led if partition not in refusals])
        after = [partition for partition in taking if partition > self._newest]
        places = (after + taking)[: min(count, len(taking))]
        if places:
            self._newest = places[-1]
        return frozenset(places)
