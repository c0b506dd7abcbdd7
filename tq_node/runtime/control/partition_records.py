"""Translates between cluster map and partitions' cores, which do not know each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from tq_node.cluster.commands import AlterIsr, AnyCommand, ElectPrimary, IsrStep, Led, PrimaryStep, StepDown
from tq_node.cluster.records import ClusterMap
from tq_node.partition.effects import AskEpoch, ProposeIsr, ProposeStepDown, Step
from tq_node.partition.record import Record
from tq_node.types import Epoch, NodeId, PartitionId

T = TypeVar("T")
STEPS_PER_ENTRY_MAX = 256
"""An entry of the metadata log stays small, however many partitions a node has."""


def records_of(table: ClusterMap, me: NodeId, *, may_lead: bool) -> dict[int, Record]:
    """Records of this node's copies. ``may_lead``: False while the map has its earlier run (R2)."""
    up = frozenset(node.node_id for node in table.nodes.values() if node.is_up)
    return {
        partition: Record(
            epoch=entry.epoch,
            partition_version=entry.partition_version,
            primary=entry.primary if may_lead or entry.primary != me else None,
            copies=entry.copies,
            isr=entry.isr,
            min_isr=entry.min_isr,
            up=up.intersection(entry.copies),
            adding=entry.adding,
            removing=entry.removing,
            successor=entry.successor,
            reset_epoch=max((recovery.epoch for recovery in entry.unsafe_recovered), default=0),
        )
        for partition, entry in enumerate(table.partitions)
    }


def commands_of(steps: Sequence[Step], me: NodeId, session: int) -> list[AnyCommand]:
    """Commands for what the cores ask of the controller, in as few entries as possible."""
    isr_steps, led, choices = [], [], []
    for step in steps:
        partition, epoch = PartitionId(step.partition), Epoch(step.epoch)
        if isinstance(step, ProposeIsr):
            isr_steps.append(IsrStep(partition, epoch, step.partition_version, step.isr))
        elif isinstance(step, ProposeStepDown):
            led.append(Led(partition, epoch))
        else:
            assert isinstance(step, AskEpoch)
            choices.append(PrimaryStep(partition, epoch, step.partition_version))
    return [
        *(AlterIsr(me, session, tuple(part)) for part in _parts(isr_steps)),
        *(StepDown(me, session, tuple(part)) for part in _parts(led)),
        *(ElectPrimary(tuple(part)) for part in _parts(choices)),
    ]


def _parts(steps: list[T]) -> Iterator[list[T]]:
    for first in range(0, len(steps), STEPS_PER_ENTRY_MAX):
        yield steps[first : first + STEPS_PER_ENTRY_MAX]
