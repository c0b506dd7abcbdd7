"""A peer's damaged snapshot is kept from the store, which would otherwise end the node when it installs it."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from tq_node.partition.core import PartitionCore
from tq_node.partition.messages import AnyMessage, Append, Reject, RejectCode, SnapBegin, SnapChunk, SnapEnd, Sync
from tq_node.partition.replica_log import Stored
from tq_node.runtime.replication.snapshot_check import OF_SNAPSHOTS, ChunkCheck
from tq_node.store.checksums import tombstone_crc
from tq_node.store.snapshots import Chunk, Digest, encode_chunk
from tq_node.types import NodeId

A, B = NodeId("a" * 32), NodeId("b" * 32)
PARTITION, EPOCH = 3, 7


def a_chunk(digest: Digest, *task_ids: str, partition: int = PARTITION) -> bytes:
    content = b"h" * 16
    tombstones = [(task_id, content, 5, tombstone_crc(task_id, partition, content, 5)) for task_id in task_ids]
    return encode_chunk(Chunk([], tombstones), digest)


def begin(snapshot_id: int = 1) -> SnapBegin:
    return SnapBegin(PARTITION, EPOCH, snapshot_id, 9, ((1, 1),), 0)


def chunk(number: int, data: bytes, snapshot_id: int = 1) -> SnapChunk:
    return SnapChunk(PARTITION, EPOCH, snapshot_id, number, zlib.crc32(data), data)


def test_a_whole_snapshot_passes_whatever_comes_twice() -> None:
    incoming, digest = ChunkCheck(), Digest()
    first, second = a_chunk(digest, "a", "b"), a_chunk(digest, "c")
    messages: list[AnyMessage] = [begin(), chunk(0, first), chunk(0, first), chunk(1, second), chunk(1, second)]
    assert all(incoming.is_sound(A, message) for message in messages)
    end = SnapEnd(PARTITION, EPOCH, 1, 2, digest.value())
    assert incoming.is_sound(A, end)
    assert incoming.is_sound(A, end)


@pytest.mark.parametrize(
    "data",
    [b"", b"no msgpack", a_chunk(Digest(), "a", partition=PARTITION + 1), a_chunk(Digest(), "a").replace(b"h", b"i")],
    ids=["empty", "not a chunk", "of another partition", "changed"],
)
def test_a_chunk_that_does_not_hold_is_kept_back(data: bytes) -> None:
    incoming = ChunkCheck()
    assert incoming.is_sound(A, begin())
    assert not incoming.is_sound(A, chunk(0, data))
    assert incoming.is_sound(A, chunk(1, a_chunk(Digest(), "b"))), "the core misses the one before it, and says so"


def test_chunks_that_are_not_all_are_found_by_the_digest() -> None:
    incoming, digest = ChunkCheck(), Digest()
    data = a_chunk(digest, "a")
    assert incoming.is_sound(A, begin())
    assert incoming.is_sound(A, chunk(0, data))
    a_chunk(digest, "b")
    assert not incoming.is_sound(A, SnapEnd(PARTITION, EPOCH, 1, 1, digest.value()))


def test_each_snapshot_and_each_sender_stand_for_themselves() -> None:
    incoming, digest = ChunkCheck(), Digest()
    assert incoming.is_sound(A, begin(1))
    assert incoming.is_sound(A, chunk(0, a_chunk(Digest(), "a")))
    assert incoming.is_sound(A, begin(2))
    data = a_chunk(digest, "z")
    assert incoming.is_sound(B, chunk(0, b"another's", 2)), "the core drops what is not of its snapshot"
    assert incoming.is_sound(A, chunk(0, data, 2))
    assert incoming.is_sound(A, SnapEnd(PARTITION, EPOCH, 2, 1, digest.value()))


def test_nothing_else_is_looked_at() -> None:
    assert Append not in OF_SNAPSHOTS
    assert all(issubclass(kind, msgspec.Struct) for kind in OF_SNAPSHOTS)


def test_the_core_misses_what_was_kept_back_and_asks_to_begin_anew() -> None:
    incoming, core = ChunkCheck(), PartitionCore[object](PARTITION, B, Stored())
    core.receive(A, Sync(PARTITION, EPOCH, ((EPOCH, 1),), 10, 10), 0)
    core.persisted(core.ready(0).number, 0)
    core.outbox()
    whole = a_chunk(Digest(), "a")
    messages: list[AnyMessage] = [begin(), chunk(0, whole), chunk(1, b"damage"), chunk(2, a_chunk(Digest(), "b"))]
    for message in messages:
        if incoming.is_sound(A, message):
            core.receive(A, message, 0)
    ready = core.ready(0)
    assert ready.write.stage == [(0, whole)]
    assert (A, Reject(PARTITION, EPOCH, RejectCode.NOT_SYNCED, EPOCH)) in ready.messages
