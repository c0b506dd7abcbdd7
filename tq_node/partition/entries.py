"""What a partition's log holds: row effects, never commands (replication.md, section 3).

The primary decides once; a replica only compares revisions. An entry is a list of effects, so that
a batch of submits costs one entry for each partition that it touches. The encoding is msgpack, made
once and passed on as bytes."""

from __future__ import annotations

import struct
import zlib
from typing import Annotated

import msgspec
from msgspec import Meta

from tq_node.types import (
    AttemptRecord,
    Backoff,
    LogLine,
    Progress,
    State,
    TaskError,
    TaskId,
    TaskRow,
    TaskSpec,
    Token,
    WorkerLease,
)

_Stored = Annotated[int, Meta(ge=-(2**62), le=2**62)]
"""What a column holds: 64 bits, signed. More would fail the write, and with it the store (R18)."""
_State = Annotated[int, Meta(ge=0, le=int(max(State)))]
_StateBefore = Annotated[int, Meta(ge=-1, le=int(max(State)))]


class EpochStart(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=0):
    """The barrier: first entry of an epoch (R7)."""

    epoch: _Stored


class Put(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A task's row after a change. ``spec`` is there only where the row is born (``expected_rev``
    0). ``was`` is the state before, -1 at birth: whoever applies the effect can keep its counts
    without reading the row."""

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
    """Removes the task's row; its id and content hash stay until the horizon passes ``at_us``."""

    id: str
    expected_rev: _Stored
    was: _StateBefore
    content_hash: bytes
    at_us: _Stored


class DeleteTombstone(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    id: str


class Horizon(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Ids made before ``at_us`` are refused from here on; it only grows."""

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


class LogEntry(Entry, frozen=True, gc=False, array_like=True):
    """An ``Entry`` as it is sent to replicas; one object serves the disk and all of them."""


def encode_effects(effects: list[Effect]) -> bytes:
    return _encode(effects)


def decode_effects(payload: bytes) -> list[Effect]:
    """The effects of an entry; raises ``msgspec.DecodeError`` if the bytes hold no such list."""
    return _decode(payload)


def checksum(partition: int, sequence: int, epoch: int, payload: bytes) -> int:
    """CRC-32 over the entry's place and its payload: an entry at a wrong place is damaged too."""
    return zlib.crc32(payload, zlib.crc32(_place.pack(partition, sequence, epoch)))


def make_entry(partition: int, sequence: int, epoch: int, effects: list[Effect]) -> LogEntry:
    """The entry of these effects at this place, encoded once for the disk and all replicas."""
    payload = _encode(effects)
    return LogEntry(partition, sequence, epoch, checksum(partition, sequence, epoch, payload), payload)


def log_entry(entry: Entry) -> LogEntry:
    """``entry``, as read from the store, in the form that is sent to replicas."""
    if type(entry) is LogEntry:
        return entry
    return LogEntry(entry.partition, entry.sequence, entry.epoch, entry.crc, entry.payload)


def is_intact(entry: Entry) -> bool:
    return entry.crc == checksum(entry.partition, entry.sequence, entry.epoch, entry.payload)


# --- rows ---
class _Body(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A row's changing part, in no index. New fields come last, with defaults: old bytes decode."""

    attempt: int
    failures: int
    losses: int
    token: Token | None
    worker: str | None
    started_us: int | None
    result: bytes | None
    error: TaskError | None
    progress: Progress | None
    log: tuple[LogLine, ...]
    log_dropped: int
    attempts: tuple[AttemptRecord, ...]
    lease: WorkerLease | None = None


_decode_body = msgspec.msgpack.Decoder(_Body).decode
decode_spec = msgspec.msgpack.Decoder(TaskSpec).decode


def encode_spec(spec: TaskSpec) -> bytes:
    """Without ``made_by`` where it is empty: what no token submitted has the bytes that it had
    before feature level 3. Who reads more values than it knows skips them."""
    if spec.made_by:
        return _encode(spec)
    return _encode(
        (
            spec.id,
            spec.type,
            spec.payload,
            spec.queue,
            spec.priority,
            spec.max_attempts,
            spec.timeout_ms,
            spec.backoff,
            spec.tags,
            spec.created_us,
            spec.content_hash,
        )
    )


def maker_of(spec: bytes) -> str:
    """``made_by`` of an encoded spec; empty also where it can't be decoded."""
    try:
        return decode_spec(spec).made_by
    except msgspec.MsgspecError:
        return ""


def encode_body(row: TaskRow) -> bytes:
    """Without ``lease`` where there is none: then the bytes are those of before feature level 4."""
    # A tuple encodes like the array-like struct and saves making one.
    body = (
        row.attempt,
        row.failures,
        row.losses,
        row.token,
        row.worker,
        row.started_us,
        row.result,
        row.error,
        row.progress,
        row.log,
        row.log_dropped,
        row.attempts,
    )
    return _encode(body if row.lease is None else (*body, row.lease))


def decode_row(
    partition: int, rev: int, state: int, run_at_us: int, ended_us: int, spec: bytes, body: bytes
) -> TaskRow:
    """Raises ``msgspec.DecodeError`` if ``encode_spec`` and ``encode_body`` did not make it."""
    rest = _decode_body(body)
    return TaskRow(
        decode_spec(spec),
        partition,
        rev,
        State(state),
        run_at_us,
        rest.attempt,
        rest.failures,
        rest.losses,
        rest.token,
        rest.worker,
        rest.started_us,
        ended_us or None,
        rest.result,
        rest.error,
        rest.progress,
        rest.log,
        rest.log_dropped,
        rest.attempts,
        rest.lease,
    )


_A_SPEC = TaskSpec(TaskId(""), "", b"", "", 0, 1, None, Backoff(), None, 0, b"")
_BODY_BORN = encode_body(TaskRow(_A_SPEC, 0, 1, State.PENDING, 0))
"""What changes of a task is the same in all that are born."""


def put_born(row: TaskRow) -> Put:
    """The effect that creates a row that ``lifecycle.born`` has made."""
    return Put(row.spec.id, 0, 1, -1, row.state, row.run_at_us, 0, _BODY_BORN, encode_spec(row.spec))


def put_changed(before: TaskRow, after: TaskRow) -> Put:
    """The effect that turns ``before`` into ``after``."""
    return Put(
        after.spec.id,
        before.rev,
        after.rev,
        before.state,
        after.state,
        after.run_at_us,
        after.ended_us or 0,
        encode_body(after),
    )


def tombstone_of(row: TaskRow, at_us: int) -> PutTombstone:
    return PutTombstone(row.spec.id, row.rev, row.state, row.spec.content_hash, at_us)


def put_size(put: Put) -> int:
    """Bytes of a row effect's payloads."""
    return len(put.body) + (len(put.spec) if put.spec is not None else 0)
