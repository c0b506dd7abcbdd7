"""What the copies of a partition say to each other (replication.md, section 4), and the node's
``Ping`` for all of them.

Frozen, array-like msgpack with a number for the kind: part of the protocol between nodes, new
fields go to the end with a default (F44). Nothing in a message is believed but what its epoch
allows: R13 to R16 are in ``following``, R8 in ``leading``."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from tq_node.partition.entries import LogEntry
from tq_node.types import NodeId

NUMBER_MAX = 2**62
"""No epoch, sequence or counter is greater: the store's 64 signed bits hold a sum of two too."""
Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
"""Held by the decoder, at no cost to speak of."""


class Message(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``epoch`` is the sender's; in an answer, that of what is answered."""

    partition: Number
    epoch: Number


class Sync(Message, frozen=True, tag=1):
    """The first message of an epoch and of a connection. ``epochs``: the epoch table of the
    primary's log, whose last epoch is open-ended (R15). ``reset_epoch``: a copy whose promise is
    below it holds another history and starts from nothing (unsafe recovery); 0: no copy does."""

    epochs: tuple[tuple[Number, Number], ...]
    log_start: Number
    last_sequence: Number
    reset_epoch: Number = 0


class SyncOk(Message, frozen=True, tag=2):
    """The epoch is promised and the log cut: it is the primary's up to ``durable_sequence``."""

    durable_sequence: Number


class Append(Message, frozen=True, tag=3):
    """``entries`` follow ``prev_sequence``. With none, only ``committed_sequence`` is new."""

    prev_sequence: Number
    entries: tuple[LogEntry, ...]
    committed_sequence: Number


class Ack(Message, frozen=True, tag=4):
    """Everything up to ``durable_sequence`` is durable, in this epoch."""

    durable_sequence: Number


class RejectCode(enum.IntEnum):
    STALE_EPOCH = 0
    """``promised`` is above the message's epoch (R13)."""
    NOT_SYNCED = 1
    """A ``Sync`` is needed before anything else (R14)."""


class Reject(Message, frozen=True, tag=5):
    code: RejectCode
    promised: Number


class SnapBegin(Message, frozen=True, tag=6):
    """The rows at ``applied`` will follow as chunks. ``epochs``: the log's, up to there."""

    snapshot_id: Number
    applied: Number
    epochs: tuple[tuple[Number, Number], ...]
    horizon_us: Number


class SnapChunk(Message, frozen=True, tag=7):
    """``number`` counts from 0; ``crc`` is that of ``data``, which only the store can read."""

    snapshot_id: Number
    number: Number
    crc: Number
    data: bytes


class SnapEnd(Message, frozen=True, tag=8):
    snapshot_id: Number
    chunks: Number
    digest: bytes


class SnapAck(Message, frozen=True, tag=9):
    """The first ``chunks`` chunks are staged. A ``SyncOk`` says that the snapshot is installed."""

    snapshot_id: Number
    chunks: Number


AnyMessage = Sync | SyncOk | Append | Ack | Reject | SnapBegin | SnapChunk | SnapEnd | SnapAck


class Ping(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=10):
    """One node's question for all (partition, epoch) that it leads. ``number`` only grows."""

    number: Number
    led: tuple[tuple[Number, Number], ...]


class Pong(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=11):
    """``refused``: (partition, promise) where the promise is above the epoch asked about."""

    number: Number
    refused: tuple[tuple[Number, Number], ...]


encode: Callable[[AnyMessage], bytes] = msgspec.msgpack.Encoder().encode
decode: Callable[[bytes | memoryview], AnyMessage] = msgspec.msgpack.Decoder(AnyMessage).decode
"""Decode a message (the wire: ``list[AnyMessage]``); raises ``msgspec.DecodeError``."""

Addressed = tuple[NodeId, AnyMessage]
"""To whom, and what."""
