"""Checksums of what the store keeps besides log records (those bring their own,
``partition.entries.checksum``).

All are CRC-32 and part of the on-disk format. They cover the key too, so that content under a wrong
key is damage. A task has two: one over what changes, one over what is fixed at birth, so that a
change need not know the spec."""

from __future__ import annotations

import struct
from zlib import crc32

_row = struct.Struct(">QQQqq").pack
_birth = struct.Struct(">Qq").pack
_partition_2 = struct.Struct(">QQQqQ").pack
_partition = struct.Struct(">QQQqQQQQQQ").pack
_slot = struct.Struct(">Q").pack
_epoch = struct.Struct(">QQQ").pack
_tombstone = struct.Struct(">Qq").pack


def row_crc(task_id: str, partition: int, rev: int, state: int, run_at_us: int, ended_us: int, body: bytes) -> int:
    return crc32(body, crc32(_row(partition, rev, state, run_at_us, ended_us), crc32(task_id.encode())))


def spec_crc(task_id: str, task_type: str, queue: str, priority: int, created_us: int, spec: bytes) -> int:
    return crc32(spec, crc32(_birth(priority, created_us), crc32(f"{task_id}\0{task_type}\0{queue}".encode())))


def tombstone_crc(task_id: str, partition: int, content_hash: bytes, at_us: int) -> int:
    return crc32(content_hash, crc32(_tombstone(partition, at_us), crc32(task_id.encode())))


def partition_crc(
    partition: int,
    promised: int,
    applied: int,
    horizon_us: int,
    trimmed: int,
    generation: int,
    log_from: int,
    task_rows: int,
    tombstone_rows: int,
    content_bytes: int,
) -> int:
    return crc32(
        _partition(
            partition, promised, applied, horizon_us, trimmed,
            generation, log_from, task_rows, tombstone_rows, content_bytes,
        )
    )  # fmt: skip


def partition_crc_3(crc: int, *columns: int) -> int:
    """For the step to schema 3: the sum over all columns, once that of the first five holds;
    raises ``ValueError`` for damage."""
    if crc != crc32(_partition_2(*columns[:5])):
        raise ValueError(f"the stored state of partition {columns[0]} is damaged")
    return partition_crc(*columns)


def slot_crc(slot: int) -> int:
    return crc32(_slot(slot))


def epoch_crc(partition: int, epoch: int, first_sequence: int) -> int:
    return crc32(_epoch(partition, epoch, first_sequence))


def consensus_crc(log_index: int, term: int, kind: int, data: bytes) -> int:
    return crc32(data, crc32(_epoch(log_index, term, kind)))


def meta_crc(key: str, value: bytes) -> int:
    return crc32(value, crc32(key.encode()))
