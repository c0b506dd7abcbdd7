"""A task's row as bytes: the fixed part (spec) once, the changing part (body) with each effect."""

from __future__ import annotations

import msgspec

from tq_node.partition.entries import Put, PutTombstone
from tq_node.types import AttemptRecord, LogLine, Progress, State, TaskError, TaskRow, TaskSpec, Token


class _Body(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What changes and no index needs. New fields go to the end with a default: old bytes stay readable."""

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


_encode = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(_Body).decode
decode_spec = msgspec.msgpack.Decoder(TaskSpec).decode


def encode_spec(spec: TaskSpec) -> bytes:
    return _encode(spec)


def encode_body(row: TaskRow) -> bytes:
    # A tuple encodes like the array-like struct and saves making one.
    return _encode(
        (
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
    )


def decode_row(
    partition: int, rev: int, state: int, run_at_us: int, ended_us: int, spec: bytes, body: bytes
) -> TaskRow:
    """:raises msgspec.DecodeError: the bytes are not what ``encode_spec`` and ``encode_body`` made."""
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
    )


def put_born(row: TaskRow) -> Put:
    """The effect that brings a new row."""
    return Put(row.spec.id, 0, 1, -1, row.state, row.run_at_us, 0, encode_body(row), encode_spec(row.spec))


def put_changed(before: TaskRow, after: TaskRow) -> Put:
    """The effect that leads from one row to the next."""
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
