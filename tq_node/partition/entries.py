"""What a partition's log holds: row effects, never commands (replication.md, section 3).

The primary decides once; a replica only compares revisions. An entry is a list of effects, so that a batch of submits
costs one entry for each partition that it touches. The encoding is msgpack, made once and passed on as bytes.
"""

from __future__ import annotations

import struct
import zlib

import msgspec


class EpochStart(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=0):
    """The barrier: first entry of an epoch (R7)."""

    epoch: int


class Put(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A task's row after a change. ``spec`` is there only where the row is born (``expected_rev`` 0).

    ``was`` is the state before, -1 at birth: whoever applies the effect can keep its counts without reading the row.
    """

    id: str
    expected_rev: int
    rev: int
    was: int
    state: int
    run_at_us: int
    ended_us: int
    body: bytes
    spec: bytes | None = None


class PutTombstone(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """The task's row goes, its id and content hash stay until the horizon passes ``at_us``."""

    id: str
    expected_rev: int
    was: int
    content_hash: bytes
    at_us: int


class DeleteTombstone(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    id: str


class Horizon(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Made ids older than this are refused from here on; it only grows (section 9)."""

    at_us: int


Effect = EpochStart | Put | PutTombstone | DeleteTombstone | Horizon

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Effect]).decode
_place = struct.Struct(">IQQ")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One position of one partition's log. ``payload`` is the encoded list of effects."""

    partition: int
    sequence: int
    epoch: int
    crc: int
    payload: bytes


def encode_effects(effects: list[Effect]) -> bytes:
    return _encode(effects)


def decode_effects(payload: bytes) -> list[Effect]:
    """:raises msgspec.DecodeError: the bytes are not a list of effects."""
    return _decode(payload)


def checksum(partition: int, sequence: int, epoch: int, payload: bytes) -> int:
    """CRC-32 over the entry's place and its payload, so that an entry under a wrong key is damage too."""
    return zlib.crc32(payload, zlib.crc32(_place.pack(partition, sequence, epoch)))


def make_entry(partition: int, sequence: int, epoch: int, effects: list[Effect]) -> Entry:
    payload = _encode(effects)
    return Entry(partition, sequence, epoch, checksum(partition, sequence, epoch, payload), payload)


def is_intact(entry: Entry) -> bool:
    return entry.crc == checksum(entry.partition, entry.sequence, entry.epoch, entry.payload)
