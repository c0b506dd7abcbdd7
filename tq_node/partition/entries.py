"""What a partition's log holds: row effects, never commands (replication.md, section 3).

The primary decides once; a replica only compares revisions. An entry is a list of effects, so that a batch of submits
costs one entry for each partition that it touches. The encoding is msgpack, made once and passed on as bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import Annotated

import msgspec
from msgspec import Meta

from tq_node.types import State

_Stored = Annotated[int, Meta(ge=-(2**62), le=2**62)]
"""What a column of the store holds: 64 bits with a sign. More would fail the write, and with it the store (R18)."""
_State = Annotated[int, Meta(ge=0, le=int(max(State)))]
_StateBefore = Annotated[int, Meta(ge=-1, le=int(max(State)))]


class EpochStart(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=0):
    """The barrier: first entry of an epoch (R7)."""

    epoch: _Stored


class Put(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A task's row after a change. ``spec`` is there only where the row is born (``expected_rev`` 0).

    ``was`` is the state before, -1 at birth: whoever applies the effect can keep its counts without reading the row.
    """

    id: str
    expected_rev: _Stored
    rev: _Stored
    was: _StateBefore
    state: _State
    run_at_us: _Stored
    ended_us: _Stored
    body: bytes
    spec: bytes | None = None


class PutTombstone(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """The task's row goes, its id and content hash stay until the horizon passes ``at_us``."""

    id: str
    expected_rev: _Stored
    was: _StateBefore
    content_hash: bytes
    at_us: _Stored


class DeleteTombstone(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    id: str


class Horizon(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Made ids older than this are refused from here on; it only grows (section 9)."""

    at_us: _Stored


Effect = EpochStart | Put | PutTombstone | DeleteTombstone | Horizon

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Effect]).decode
_place = struct.Struct(">IQQ")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One position of one partition's log. ``payload`` is the encoded list of effects."""

    partition: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    sequence: Annotated[int, Meta(ge=0, le=2**62)]
    epoch: Annotated[int, Meta(ge=0, le=2**62)]
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


def is_intact(entry: Entry) -> bool:
    return entry.crc == checksum(entry.partition, entry.sequence, entry.epoch, entry.payload)
