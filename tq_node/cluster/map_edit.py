"""The next cluster map while one entry is applied: shares with the last what does not change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from tq_node.cluster.records import ClusterMap, NodeEntry, PartitionEntry
from tq_node.cluster.refusals import Refusal, Refused
from tq_node.types import NodeId

replace = msgspec.structs.replace


class NodeChanged(msgspec.Struct, frozen=True):
    node_id: NodeId
    before: NodeEntry | None
    after: NodeEntry


class PartitionChanged(msgspec.Struct, frozen=True):
    partition: int
    before: PartitionEntry | None
    after: PartitionEntry


class QueueChanged(msgspec.Struct, frozen=True):
    queue: str
    is_paused: bool


class TypeChanged(msgspec.Struct, frozen=True):
    """The defaults of a type changed, or it was paused or resumed."""

    type: str


class TokensChanged(msgspec.Struct, frozen=True):
    """An access token came, changed or ended."""

    name: str


Change = NodeChanged | PartitionChanged | QueueChanged | TokensChanged | TypeChanged


class Applied(msgspec.Struct, frozen=True):
    """What one entry did, equal on every node. ``changes``: nodes, partitions, others, in order."""

    map: ClusterMap
    changes: tuple[Change, ...] = ()
    refused: tuple[Refused, ...] = ()


def raised_version(before: PartitionEntry) -> int:
    """Each entry that changes a partition raises its version by one, for compare-and-set."""
    return before.partition_version + 1


class MapEdit:
    """The next cluster map, as one entry is applied. A rule calls ``refuse`` before any change."""

    __slots__ = (
        "_changed_nodes",
        "_changed_partitions",
        "_fields",
        "_load",
        "_others",
        "_partitions",
        "before",
        "index",
        "nodes",
        "refused",
    )

    def __init__(self, before: ClusterMap, index: int) -> None:
        self.before = before
        self.index = index
        self.nodes = before.nodes
        self.refused: list[Refused] = []
        self._partitions: list[PartitionEntry] | None = None
        self._changed_partitions: set[int] = set()
        self._changed_nodes: set[NodeId] = set()
        self._fields: dict[str, Any] = {}
        self._others: list[Change] = []
        self._load: Counter[NodeId] | None = None

    # --- looking ---
    @property
    def replication_factor(self) -> int:
        return self.before.settings.replication_factor

    def partitions(self) -> list[tuple[int, PartitionEntry]]:
        """All, as they are now; may be changed while they are looped over."""
        return list(enumerate(self.before.partitions if self._partitions is None else self._partitions))

    def partition(self, partition: int) -> PartitionEntry:
        return (self.before.partitions if self._partitions is None else self._partitions)[partition]

    def is_touched(self, partition: int) -> bool:
        """Whether an earlier item of this entry changed what this item's proposer saw."""
        return partition in self._changed_partitions

    def primaries_on(self, node: NodeId) -> int:
        """How many partitions the node leads, choices of this entry included."""
        if self._load is None:
            self._load = Counter(entry.primary for _, entry in self.partitions() if entry.primary is not None)
        return self._load[node]

    # --- changing ---
    def refuse(self, code: Refusal, partition: int | None = None) -> None:
        self.refused.append(Refused(code, partition))

    def put_node(self, node: NodeEntry) -> None:
        is_new = node.node_id not in self.nodes
        nodes = {**self.nodes, node.node_id: node}
        self.nodes = dict(sorted(nodes.items())) if is_new else nodes
        self._changed_nodes.add(node.node_id)

    def put(self, partition: int, entry: PartitionEntry) -> None:
        if self._partitions is None:
            self._partitions = list(self.before.partitions)
        before = self._partitions[partition]
        if self._load is not None and entry.primary != before.primary:
            if before.primary is not None:
                self._load[before.primary] -= 1
            if entry.primary is not None:
                self._load[entry.primary] += 1
        self._partitions[partition] = entry
        self._changed_partitions.add(partition)

    def set(self, **fields: Any) -> None:
        """Change fields of the cluster map itself."""
        self._fields.update(fields)

    def note_queue(self, queue: str, *, is_paused: bool) -> None:
        self._others.append(QueueChanged(queue, is_paused))

    def note_type(self, task_type: str) -> None:
        self._others.append(TypeChanged(task_type))

    def note_token(self, name: str) -> None:
        self._others.append(TokensChanged(name))

    # --- the end ---
    def finish(self) -> Applied:
        changes: list[Change] = []
        for node_id in sorted(self._changed_nodes):
            node, was = self.nodes[node_id], self.before.nodes.get(node_id)
            if node != was:
                changes.append(NodeChanged(node_id, was, node))
                self._fields["nodes"] = self.nodes
        changes += self._changed()
        changes += self._others
        if not self._fields:
            return Applied(self.before, (), tuple(self.refused))
        self._fields["map_version"] = self.index
        return Applied(replace(self.before, **self._fields), tuple(changes), tuple(self.refused))

    def _changed(self) -> list[Change]:
        partitions = self._partitions
        if partitions is None:
            return []
        changes: list[Change] = []
        for partition in sorted(self._changed_partitions):
            before, after = self.before.partitions[partition], partitions[partition]
            if after == before:
                partitions[partition] = before
            else:
                after = partitions[partition] = replace(after, partition_version=raised_version(before))
                changes.append(PartitionChanged(partition, before, after))
        if changes:
            self._fields["partitions"] = tuple(partitions)
        return changes
