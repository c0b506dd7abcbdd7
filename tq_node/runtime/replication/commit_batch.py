"""What the cores and the fold of committed effects want durable, in the store's words."""

from __future__ import annotations

from collections.abc import Callable

from tq_node.partition.apply_queue import Slice
from tq_node.partition.entries import decode_spec
from tq_node.partition.replica_log import PendingWrite
from tq_node.store.api import Batch, Install, RowDelete, RowWrite, StagedChunk, Tombstone
from tq_node.types import TaskSpec


def add_draft(batch: Batch, partition: int, draft: PendingWrite) -> int:
    """One partition's share; the store keeps to the order that ``PendingWrite`` has its fields in.

    Returns the bytes of its entries.
    """
    if draft.promise:
        batch.promises[partition] = draft.promise
    if draft.drop:
        batch.drops.append(partition)
    if draft.unstage:
        batch.unstage.append(partition)
    for number, data in draft.stage:
        batch.stage.append(StagedChunk(partition, number, data))
    if draft.install is not None:
        install = draft.install
        batch.installs.append(
            Install(
                partition, install.applied, list(install.epochs), install.horizon_us, install.chunks, install.digest
            )
        )
    if draft.cut_after is not None:
        batch.cuts[partition] = draft.cut_after
    for epoch, first_sequence in draft.epochs:
        batch.epochs.append((partition, epoch, first_sequence))
    entries = draft.entries
    batch.entries += entries
    size = 0
    for entry in entries:
        size += len(entry.payload)
    return size


def add_slice(batch: Batch, taken: Slice, spec_of: Callable[[str], TaskSpec | None]) -> None:
    """Rows behind the log. :param spec_of: what was submitted, of a task in memory; it spares decoding it."""
    for partition, fold in taken.rows:
        put = fold.put
        assert put is not None
        row = RowWrite(put.id, partition, fold.stored_rev, put.rev, put.state, put.run_at_us, put.ended_us, put.body)
        if fold.spec is not None:
            spec = spec_of(put.id) or decode_spec(fold.spec)
            row.spec = fold.spec
            row.type, row.queue, row.priority, row.created_us = spec.type, spec.queue, spec.priority, spec.created_us
        batch.rows.append(row)
    batch.deletes = [RowDelete(task_id, rev) for task_id, rev in taken.deletes]
    batch.tombstones = [Tombstone(t.id, p, t.content_hash, t.at_us) for p, t in taken.tombstones]
    batch.forgets = taken.forgets
    batch.horizons = taken.horizons
    batch.applied = taken.applied
