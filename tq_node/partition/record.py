"""What copies need of their partition's entry in the cluster map; the driver makes it from that."""

from __future__ import annotations

import msgspec

from tq_node.types import NodeId


class Record(msgspec.Struct, frozen=True):
    """What the copies of one partition need of its entry in the cluster map.

    ``up``: the copies that are up by the map; it may change while ``partition_version`` does not.
    ``reset_epoch``: the epoch of the latest unsafe recovery, 0 if there was none; a copy whose
    promise is below it holds another history."""

    epoch: int
    partition_version: int
    primary: NodeId | None
    copies: tuple[NodeId, ...]
    isr: tuple[NodeId, ...]
    min_isr: int
    up: frozenset[NodeId]
    adding: tuple[NodeId, ...] = ()
    removing: tuple[NodeId, ...] = ()
    successor: NodeId | None = None
    reset_epoch: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether all copies are in sync, up, and stay: nothing to propose while none lags."""
        return len(self.isr) == len(self.copies) == len(self.up) and not (
            self.adding or self.removing or self.successor
        )

    def ordered(self, members: frozenset[NodeId]) -> tuple[NodeId, ...]:
        """In the order of ``copies``: equal sets are equal values."""
        return tuple(node for node in self.copies if node in members)
