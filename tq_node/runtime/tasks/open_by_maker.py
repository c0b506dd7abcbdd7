"""Tasks that have not ended, by the token that submitted them: what quotas of tokens bound.

Counted are tasks of partitions led here. Those that a partition had before are found when it is
taken up; nothing is counted of tasks that no token submitted."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tq_node import limits
from tq_node.facade import OpenOfMaker

Makers = dict[tuple[str, str], int]
"""Open tasks of one partition by maker and queue."""


class _Open(msgspec.Struct, gc=False):
    tasks: int
    queues: dict[str, int]


class OpenByMaker:
    """See the module. All counts are above 0."""

    def __init__(self) -> None:
        self._of: dict[str, _Open] = {}
        self._in: dict[int, Makers] = {}

    def lead(self, partition: int, makers: Mapping[tuple[str, str], int]) -> None:
        """Take up a partition with the tasks that are open in it."""
        self._in[partition] = {}
        for (maker, queue), tasks in makers.items():
            self.add(partition, maker, queue, tasks)

    def leave(self, partition: int) -> None:
        """Forget a partition's tasks."""
        for (maker, queue), tasks in list(self._in[partition].items()):
            self.add(partition, maker, queue, -tasks)
        del self._in[partition]

    def add(self, partition: int, maker: str, queue: str, more: int) -> None:
        """Count tasks that have begun or ended. One that ends and was not counted, for it was there
        before anybody asked for tokens here, is passed by."""
        within = self._in[partition]
        left = within.get((maker, queue), 0) + more
        if left < 0:
            return
        _put(within, (maker, queue), left)
        made = self._of.get(maker)
        if made is None:
            made = self._of[maker] = _Open(0, {})
        made.tasks += more
        left = made.queues.get(queue, 0) + more
        if left:
            made.queues[queue] = left
        else:
            del made.queues[queue]
        if not made.tasks:
            del self._of[maker]

    def of(self, maker: str) -> OpenOfMaker:
        """What a token has open here."""
        made = self._of.get(maker)
        return OpenOfMaker(0, ()) if made is None else OpenOfMaker(made.tasks, tuple(made.queues)[: limits.QUEUES_MAX])


def _put(counts: Makers, key: tuple[str, str], tasks: int) -> None:
    if tasks:
        counts[key] = tasks
    else:
        counts.pop(key, None)
