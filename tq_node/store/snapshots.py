"""What a snapshot's chunks look like, and the digest over them. Both implementations share it; no
IO.

A chunk is msgpack: an array of rows and an array of tombstones, each of these an array again, in
the order of the tuples below. Rows keep the checksums that they are stored under, which cover the
partition's number: content of another partition is damage. The digest is BLAKE2b over the encoded
rows and tombstones themselves, one after another, so that it does not matter how they are spread
over chunks. Chunks and digest are part of the protocol between nodes."""

from __future__ import annotations

import hashlib

import msgspec

from tq_node.errors import StoreBroken
from tq_node.store.checksums import row_crc, spec_crc, tombstone_crc

RowParts = tuple[str, int, int, int, int, int, str, str, int, int, int, bytes, bytes]
"""id, rev, state, run_at_us, ended_us, crc, type, queue, priority, created_us, spec_crc, spec,
body"""
TombstoneParts = tuple[str, bytes, int, int]
"""id, content_hash, at_us, crc"""

DIGEST_BYTES = 16
ROW_BYTES_ABOUT = 120
"""What a row costs in a chunk besides its spec and body."""
TOMBSTONE_BYTES_ABOUT = 90

_encode = msgspec.msgpack.Encoder().encode
_decode_chunk = msgspec.msgpack.Decoder(tuple[list[msgspec.Raw], list[msgspec.Raw]]).decode
_decode_row = msgspec.msgpack.Decoder(RowParts).decode
_decode_tombstone = msgspec.msgpack.Decoder(TombstoneParts).decode


class ChunkDamaged(Exception):
    """A received chunk is not what its sender's store holds. Nothing was done with it."""


class Digest:
    """Running digest over the rows and tombstones that were encoded or decoded."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.add = self._hash.update
        self.value = self._hash.digest


class Chunk(msgspec.Struct, gc=False):
    rows: list[RowParts]
    tombstones: list[TombstoneParts]


def encode_chunk(chunk: Chunk, digest: Digest) -> bytes:
    """Encode a chunk and add it to ``digest``."""
    rows = [_encode(row) for row in chunk.rows]
    tombstones = [_encode(tombstone) for tombstone in chunk.tombstones]
    for part in rows:
        digest.add(part)
    for part in tombstones:
        digest.add(part)
    return _encode(([msgspec.Raw(part) for part in rows], [msgspec.Raw(part) for part in tombstones]))


def decode_chunk(partition: int, data: bytes, digest: Digest) -> Chunk:
    """Decode a received chunk into ``digest``; raises ``ChunkDamaged`` if a checksum fails."""
    try:
        rows, tombstones = _decode_chunk(data)
        for part in rows:
            digest.add(part)
        for part in tombstones:
            digest.add(part)
        chunk = Chunk([_decode_row(part) for part in rows], [_decode_tombstone(part) for part in tombstones])
    except msgspec.MsgspecError as why:
        raise ChunkDamaged(f"partition {partition}: a chunk can't be read: {why}") from why
    for row in chunk.rows:
        if not is_row_intact(partition, row):
            raise ChunkDamaged(f"partition {partition}: the row of task {row[0]} is damaged")
    for task_id, content_hash, at_us, crc in chunk.tombstones:
        if crc != tombstone_crc(task_id, partition, content_hash, at_us):
            raise ChunkDamaged(f"partition {partition}: the tombstone of task {task_id} is damaged")
    return chunk


def is_row_intact(partition: int, row: RowParts) -> bool:
    task_id, rev, state, run_at_us, ended_us, crc, task_type, queue, priority, created_us, fixed, spec, body = row
    return crc == row_crc(task_id, partition, rev, state, run_at_us, ended_us, body) and fixed == spec_crc(
        task_id, task_type, queue, priority, created_us, spec
    )


def require_intact(partition: int, row: RowParts) -> None:
    """Check a row of this store; raises ``StoreBroken`` if it fails its checksum."""
    if not is_row_intact(partition, row):
        raise StoreBroken(f"the stored row of task {row[0]} is damaged")


class SnapshotCheck:
    """Checks each received chunk before it is staged, so that no peer can break this store."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._digest = Digest()
        self.chunks = 0

    def take(self, data: bytes) -> None:
        """Check a chunk; ``ChunkDamaged``: do not stage it, give the snapshot up."""
        decode_chunk(self._partition, data, self._digest)
        self.chunks += 1

    def digest(self) -> bytes:
        """Digest of all chunks so far; at the end it must equal the sender's."""
        return self._digest.value()
