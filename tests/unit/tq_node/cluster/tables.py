"""A table under test: commands go in one after the other, and every law is looked at after each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from tests.unit.tq_node.cluster.laws import check_step, check_table
from tq_node.cluster import commands as c
from tq_node.cluster import map as table_of
from tq_node.cluster.map import EMPTY, Applied, PartitionEntry, apply
from tq_node.cluster.records import FEATURE_LEVEL_MAX, ClusterSettings
from tq_node.cluster.refusals import Refusal
from tq_node.types import NodeId, NodeName, PartitionId

CLUSTER_ID = "c" * 32
LEVEL_MAX = FEATURE_LEVEL_MAX + 1
replace = msgspec.structs.replace


@contextmanager
def later_release(level_max: int = LEVEL_MAX) -> Iterator[None]:
    """Code that can apply higher feature levels, for tables whose members have them: this release knows but one (F44)."""
    known = vars(table_of)
    present = known["FEATURE_LEVEL_MAX"]
    known["FEATURE_LEVEL_MAX"] = level_max
    try:
        yield
    finally:
        known["FEATURE_LEVEL_MAX"] = present


def nid(number: int) -> NodeId:
    """A node's id. Node 1 founds."""
    return NodeId(f"{number:032x}")


def ids(*numbers: int) -> tuple[NodeId, ...]:
    return tuple(nid(number) for number in numbers)


def registration(number: int, incarnation: int = 1, **fields: Any) -> c.Registration:
    values: dict[str, Any] = {
        "node_id": nid(number),
        "name": NodeName(f"node-{number}"),
        "http": f"127.0.0.1:{8079 + number}",
        "peer": f"127.0.0.1:{9079 + number}",
        "incarnation": incarnation,
        "nonce": f"nonce-{number}-{incarnation}",
        "feature_level_min": 1,
        "feature_level_max": 1,
    }
    return c.Registration(**(values | fields))


class Table:
    """:param nodes: registered at once, as 1, 2, …; the first has founded and holds all partitions alone.
    :param level: the highest feature level that they know, and the map's."""

    def __init__(
        self,
        nodes: int = 1,
        *,
        partitions: int = 4,
        factor: int = 3,
        voters: int = 3,
        level: int = 1,
        checked: bool = True,
    ) -> None:
        self.map = EMPTY
        self.index = 0
        self.checked = checked
        settings = ClusterSettings(partitions, factor, 7, voters)
        self.do(c.FoundCluster(CLUSTER_ID, "test", settings, registration(1, feature_level_max=level)))
        for number in range(2, nodes + 1):
            self.register(number, feature_level_max=level)

    def do(self, command: c.AnyCommand) -> Applied:
        self.index += 1
        before = self.map
        with later_release():
            applied = apply(before, self.index, command)
        self.map = applied.map
        if self.checked:
            check_step(before, self.index, command, applied)
            check_table(self.map)
        return applied

    def refusals(self, command: c.AnyCommand) -> list[Refusal]:
        """Apply; nothing may change but what was not refused."""
        return [refused.code for refused in self.do(command).refused]

    def register(self, number: int, incarnation: int = 1, **fields: Any) -> Applied:
        return self.do(c.RegisterNode(CLUSTER_ID, registration(number, incarnation, **fields)))

    def down(self, *numbers: int) -> None:
        for number in numbers:
            assert not self.do(c.NodeDown(nid(number), self.session(number), "silence")).refused

    # --- looking ---
    def session(self, number: int) -> int:
        return self.map.nodes[nid(number)].session

    def entry(self, partition: int = 0) -> PartitionEntry:
        return self.map.partitions[partition]

    def primary(self, partition: int = 0) -> int | None:
        primary = self.entry(partition).primary
        return None if primary is None else int(primary, 16)

    def isr(self, partition: int = 0) -> set[int]:
        return {int(node, 16) for node in self.entry(partition).isr}

    def copies(self, partition: int = 0) -> set[int]:
        return {int(node, 16) for node in self.entry(partition).copies}

    # --- making up a state ---
    def forge(self, partition: int, *copies: int, isr: tuple[int, ...] | None = None, **fields: Any) -> None:
        """Put a partition into a given state without the entries that lead to it."""
        members = ids(*(copies if isr is None else isr))
        values: dict[str, Any] = {"copies": ids(*copies), "isr": members, "primary": members[0]} | fields
        values["partition_version"] = self.entry(partition).partition_version + 1
        partitions = list(self.map.partitions)
        partitions[partition] = replace(partitions[partition], **values)
        self.map = replace(self.map, partitions=tuple(partitions))
        check_table(self.map)

    def forge_all(self, *copies: int, **fields: Any) -> None:
        for partition in range(len(self.map.partitions)):
            self.forge(partition, *copies, **fields)

    # --- commands about a partition as it is now ---
    def seen(self, partition: int = 0) -> c.Seen:
        entry = self.entry(partition)
        return c.Seen(PartitionId(partition), entry.epoch, entry.partition_version)

    def isr_step(self, *isr: int, partition: int = 0, **fields: Any) -> c.IsrStep:
        entry = self.entry(partition)
        step = c.IsrStep(PartitionId(partition), entry.epoch, entry.partition_version, ids(*isr))
        return replace(step, **fields)

    def alter(self, *isr: int, sender: int | None = None, session: int | None = None, **fields: Any) -> c.AlterIsr:
        by = sender or self.primary(fields.get("partition", 0)) or 1
        step = self.isr_step(*isr, **fields)
        return c.AlterIsr(nid(by), self.session(by) if session is None else session, (step,))

    def move_step(
        self, adding: tuple[int, ...] = (), removing: tuple[int, ...] = (), partition: int = 0, **fields: Any
    ) -> c.MoveStep:
        entry = self.entry(partition)
        step = c.MoveStep(PartitionId(partition), entry.epoch, entry.partition_version, ids(*adding), ids(*removing))
        return replace(step, **fields)

    def begin(self, adding: tuple[int, ...] = (), removing: tuple[int, ...] = (), **fields: Any) -> c.BeginMove:
        return c.BeginMove((self.move_step(adding, removing, **fields),))

    def primary_step(self, to: int | None, partition: int = 0, **fields: Any) -> c.PrimaryStep:
        entry = self.entry(partition)
        target = None if to is None else nid(to)
        return replace(c.PrimaryStep(PartitionId(partition), entry.epoch, entry.partition_version, target), **fields)

    def step_down(self, sender: int, *partitions: int, session: int | None = None) -> c.StepDown:
        led = tuple(c.Led(PartitionId(p), self.entry(p).epoch) for p in partitions)
        return c.StepDown(nid(sender), self.session(sender) if session is None else session, led)
