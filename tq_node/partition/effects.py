"""What a core wants done: ``Outbox`` at once, ``Ready`` with the disk; and changes of its role."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

import msgspec

from tq_node.partition.messages import Addressed
from tq_node.partition.replica_log import Committed, News, PendingWrite
from tq_node.types import NodeId


# --- for the controller ---
class ProposeIsr(NamedTuple):
    """Propose this in-sync set (``AlterIsr``, R4). It counts from now on, even if refused (R9)."""

    partition: int
    epoch: int
    partition_version: int
    isr: tuple[NodeId, ...]


class ProposeStepDown(NamedTuple):
    """Propose that another node becomes primary: everybody lags, or the successor may take over."""

    partition: int
    epoch: int


class AskEpoch(NamedTuple):
    """Ask for an epoch (``ElectPrimary``): after a restart (R6), or to settle a lost proposal."""

    partition: int
    epoch: int
    partition_version: int


Step = ProposeIsr | ProposeStepDown | AskEpoch


# --- for the store ---
class ReadLog(NamedTuple):
    """Read durable entries that ``node`` needs; answer with ``log_read``."""

    node: NodeId
    first: int
    bytes_max: int


class OpenSnapshot(NamedTuple):
    """Begin a read transaction, perhaps once others are closed; answer with ``snapshot_opened`` or
    ``snapshot_failed``."""

    node: NodeId
    snapshot_id: int


class ReadChunk(NamedTuple):
    """Read the next chunk, one at a time for each snapshot; answer with ``snapshot_chunk`` or
    ``snapshot_failed``."""

    node: NodeId
    snapshot_id: int


class CloseSnapshot(NamedTuple):
    node: NodeId
    snapshot_id: int


StoreRequest = ReadLog | OpenSnapshot | ReadChunk | CloseSnapshot


# --- its own life ---
class Activated(NamedTuple):
    """The barrier is committed (R7); what came before is handed out, or in this ``Outbox``."""

    epoch: int


class SteppedDown(NamedTuple):
    """The primary stepped down (R12): answer ``Unknown``, drop overlay, heaps; attempts go on."""

    epoch: int
    was_active: bool


Event = Activated | SteppedDown


class Outbox(msgspec.Struct, Generic[News]):
    """What a core wants done that need not wait for the disk.

    The parts of a core add to one ``Outbox``; ``PartitionCore.outbox`` hands its content to the
    driver, which handles ``committed`` before ``events``. Each committed entry is handed out in
    order and exactly once in a run of the process."""

    messages: list[Addressed] = []
    committed: list[Committed[News]] = []
    events: list[Event] = []
    steps: list[Step] = []
    requests: list[StoreRequest] = []


class Ready(msgspec.Struct):
    """What one transaction shall make durable, and what goes with it. In this order:

    1. Send ``messages`` at once: a primary's entries leave before its own disk has them.
    2. Make ``write`` durable, in one transaction with the Readys of other partitions; Readys of one
       partition in the order of ``number``.
    3. Call ``persisted(number)``.
    4. Send ``messages_after``, which also wait for all earlier Readys, even where this one has
       nothing to persist (R6, R13, R16).

    ``write.drop`` and ``write.install`` replace the partition's rows: committed effects that the
    driver holds and the rows do not show are void from this Ready on."""

    number: int
    write: PendingWrite
    messages: list[Addressed]
    messages_after: list[Addressed]


AnyOutbox = Outbox[Any]
