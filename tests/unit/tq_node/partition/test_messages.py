from __future__ import annotations

import pytest

from tests.simulation.replication.handmade import entry
from tq_node.partition.entries import (
    Entry,
    LogEntry,
    is_intact,
    log_entry,
)
from tq_node.partition.messages import (
    Ack,
    AnyMessage,
    Append,
    Reject,
    RejectCode,
    SnapAck,
    SnapBegin,
    SnapChunk,
    SnapEnd,
    Sync,
    SyncOk,
    decode,
    encode,
)

MESSAGES: tuple[AnyMessage, ...] = (
    Sync(3, 7, ((1, 1), (7, 12)), 4, 12, 5),
    SyncOk(3, 7, 11),
    Append(3, 7, 11, (entry(12, 7), entry(13, 7)), 9),
    Ack(3, 7, 13),
    Reject(3, 7, RejectCode.STALE_EPOCH, 8),
    SnapBegin(3, 7, 1, 40, ((1, 1),), 99),
    SnapChunk(3, 7, 1, 0, 5, b"rows"),
    SnapEnd(3, 7, 1, 1, b"digest"),
    SnapAck(3, 7, 1, 1),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: AnyMessage) -> None:
    assert decode(encode(message)) == message


def test_an_entry_is_the_store_s_and_the_wire_s() -> None:
    here = entry(12, 7)
    assert isinstance(here, Entry)
    assert is_intact(here)
    read = Entry(here.partition, here.sequence, here.epoch, here.crc, here.payload)
    assert type(log_entry(read)) is LogEntry
    assert log_entry(read) == here
