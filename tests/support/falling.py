"""Loaded as ``--handlers`` into the nodes of a test for what it does to the node: a Raft leader that dies at one step of a move.

``TEST_FALL`` names a file. Once it is there and holds an ``Order``, the leader that carries out the ordered step ends by
SIGKILL, in the middle of its turn; before that it takes the file away, and says beside it (``.fell``) what it was at. The steps
are the five entries of a move, as ``docs/explanation/cluster.md`` counts them.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec

from tests.support.handlers import noop
from tq_node.cluster import commands
from tq_node.cluster import map as tables
from tq_node.cluster.map import ClusterMap
from tq_node.cluster.records import PartitionEntry
from tq_node.cluster.rules_moves import MoveStage, stage_of
from tq_node.raft.messages import Entry, EntryKind
from tq_node.runtime.control.raft_driver import RaftDriver
from tq_node.types import NodeId

__all__ = ["STEPS", "VARIABLE", "Fell", "Order", "noop"]

VARIABLE = "TEST_FALL"
# BeginMove; AlterIsr with the newcomer; another primary; AlterIsr without who leaves; FinishMove.
STEPS = ("begin", "in_sync", "new_primary", "out_of_sync", "finish")


class Order(msgspec.Struct):
    """``moment``: ``lost``, the entry dies with the leader; ``decided``, it is committed, and nobody but the leader knows yet.
    ``role``: what the leader is to the partition: ``outside``, ``newcomer`` or ``staying``.
    """

    step: str
    moment: str
    role: str


class Fell(msgspec.Struct):
    step: str
    partition: int
    node: str


def step_between(before: PartitionEntry, after: PartitionEntry) -> str | None:
    """Which step of a move makes the one into the other."""
    old, new = stage_of(before), stage_of(after)
    if old is new:
        return None
    if old is None:
        return "begin"
    if new is None:
        return "finish"
    if new is MoveStage.FINISHING:
        return "out_of_sync"
    return {MoveStage.COPYING: "in_sync", MoveStage.HANDING_OVER: "new_primary"}.get(old)


def role_of(node: NodeId, before: PartitionEntry, after: PartitionEntry) -> str:
    if node in (*before.adding, *after.adding):
        return "newcomer"
    if node in before.copies:
        return "leaving" if node in (*before.removing, *after.removing) else "staying"
    return "outside"


class _Fall:
    """Of this process. :param path: of the order."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def look(self, moment: str, me: NodeId, before: ClusterMap, after: ClusterMap) -> None:
        if before.partitions is after.partitions or not self._path.exists():
            return
        order = msgspec.json.decode(self._path.read_bytes(), type=Order)
        if order.moment != moment:
            return
        for partition, (old, new) in enumerate(zip(before.partitions, after.partitions, strict=False)):
            if step_between(old, new) == order.step and role_of(me, old, new) == order.role:
                self._end(Fell(order.step, partition, before.nodes[me].name))

    def _end(self, fell: Fell) -> None:
        self._path.with_suffix(".fell").write_bytes(msgspec.json.encode(fell))
        self._path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(fall: _Fall) -> None:
    apply, propose = RaftDriver._apply, RaftDriver.propose

    def table(driver: RaftDriver) -> ClusterMap:
        machine: Any = driver._machine
        found: ClusterMap = machine.map
        return found

    def watched_apply(self: RaftDriver, entry: Entry) -> None:
        before = table(self)
        if entry.kind is EntryKind.DATA and self.core.is_leader:
            # Looked at before the table's followers act on it: they would tell others.
            after = tables.apply(before, entry.log_index, commands.decode(entry.data)).map
            fall.look("decided", self.me, before, after)
        apply(self, entry)

    def watched_propose(self: RaftDriver, data: bytes) -> Any:
        if self.core.is_leader:
            before = table(self)
            after = tables.apply(before, self.applied_index + 1, commands.decode(data)).map
            fall.look("lost", self.me, before, after)
        return propose(self, data)

    RaftDriver._apply = watched_apply  # type: ignore[method-assign]
    RaftDriver.propose = watched_propose  # type: ignore[method-assign]


if VARIABLE in os.environ:
    _watch(_Fall(Path(os.environ[VARIABLE])))
