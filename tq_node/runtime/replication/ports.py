"""What replication needs of the rest of the node, and what it reports: its borders' Protocols."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from tq_node.partition.apply_queue import ApplyQueue
from tq_node.partition.core import PartitionCore
from tq_node.partition.effects import Step
from tq_node.partition.messages import Addressed
from tq_node.partition.settings import Budget
from tq_node.types import Change, NodeId, TaskSpec

Core = PartitionCore[Change]


class Replicas(msgspec.Struct):
    """Every replica that a node keeps, as recovered from its store."""

    me: NodeId
    cores: list[Core]
    """By partition; one without a record does nothing."""
    unapplied: ApplyQueue
    """Committed effects that the rows do not show yet."""
    budget: Budget
    """Shared by all cores."""


class PeerLink(Protocol):
    """How replication sends to peers; the pool of ``wire`` is one. Nothing is retried here."""

    def send_data(self, node_id: NodeId, body: bytes, /) -> bool:
        """Send messages of partitions over the bulk lane. False: dropped."""

    def send_confirm(self, node_id: NodeId, body: bytes, /) -> bool:
        """Send a ping or its answer over the lane of consensus. False: dropped."""


class Surroundings(Protocol):
    """What replication needs of the rest of the node; the control plane is one."""

    @property
    def link(self) -> PeerLink:
        """The way to peers."""

    def ask_controller(self, steps: Sequence[Step]) -> None:
        """Propose these. Nobody waits for the outcome: the cores ask again."""


class LeadEvents(Protocol):
    """Changes of what this node leads."""

    def activated(self, partition: int, epoch: int) -> None:
        """The partition's barrier is committed in ``epoch``: this node may serve it (R7)."""

    def stepped_down(self, partition: int) -> None:
        """This node leads the partition no more: nothing may be proposed there (R12)."""


class ReplicaEvents(LeadEvents, Protocol):
    """What the node's tasks learn from the replicas, in the very turn in which it becomes true."""

    def committed(self, changes: list[Change]) -> None:
        """News of one commit, in order, before any caller gets its answer."""

    def applied(self, rows: list[tuple[str, int]]) -> None:
        """The rows of these (task id, sequence) now show the entry."""

    def broken(self, why: BaseException) -> None:
        """A promise is broken (divergence, failed assertion, bug): the process must end (R20)."""

    def spec_of(self, task_id: str) -> TaskSpec | None:
        """Return what was submitted, if the task is in memory: it spares decoding it."""


class Outbox(Protocol):
    """Collects messages to peers and sends them in order."""

    def gather(self, messages: Iterable[Addressed]) -> None:
        """Add messages; they stay here until ``send``."""

    def send(self) -> None:
        """Send everything gathered, in order."""


class DriverEvents(LeadEvents, Protocol):
    """What ``Replication`` learns from its driver, before the node's tasks do."""

    def wanted(self, steps: list[Step]) -> None:
        """The cores want these from the controller; they ask again as long as they want them."""
