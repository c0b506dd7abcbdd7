"""What is paused at a time: a pause with an end ends by itself, whatever the map keeps."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tq_node.cluster.records import ClusterMap
from tq_node.types import PauseEntry

QUEUE, TYPE = TARGETS = ("queue", "type")


class Paused(msgspec.Struct, frozen=True):
    """The pauses of queues and of types at one time, by name."""

    queues: dict[str, PauseEntry] = {}
    types: dict[str, PauseEntry] = {}
    next_end_us: int | None = None
    """When the first of them is over; None: none is, by itself."""

    def all(self) -> Sequence[PauseEntry]:
        """Queues first, in order of names."""
        return [*self.queues.values(), *self.types.values()]


def is_over(entry: PauseEntry, now_us: int) -> bool:
    return entry.until_us is not None and entry.until_us <= now_us


def paused(cluster_map: ClusterMap, now_us: int) -> Paused:
    """What is paused now, by the wall clock; of a queue paused below level 4 no more is known."""
    known = {entry.place: entry for entry in cluster_map.pauses}
    queues = {name: known.get((QUEUE, name), PauseEntry(QUEUE, name)) for name in cluster_map.paused_queues}
    types = {entry.name: entry for entry in cluster_map.pauses if entry.target == TYPE}
    queues = {name: entry for name, entry in queues.items() if not is_over(entry, now_us)}
    types = {name: entry for name, entry in types.items() if not is_over(entry, now_us)}
    ends = [one.until_us for one in (*queues.values(), *types.values()) if one.until_us is not None]
    return Paused(queues, types, min(ends, default=None))
