"""The durable content of the model store, and how a batch changes it."""

from __future__ import annotations

import msgspec

from tq_node.errors import Divergence
from tq_node.partition.entries import Entry
from tq_node.store.api import (
    Batch,
    ConsensusRecord,
    ConsensusWrite,
    Install,
    RowWrite,
    StagedChunk,
    StoredRow,
    Tombstone,
)
from tq_node.store.checksums import row_crc, spec_crc, tombstone_crc
from tq_node.store.partition_state import Extent, LogState, Staging, fold
from tq_node.store.snapshots import ChunkDamaged, RowParts, TombstoneParts, decode_chunk, require_intact


class Task(msgspec.Struct, gc=False):
    id: str
    partition: int
    rev: int
    state: int
    run_at_us: int
    ended_us: int
    type: str
    queue: str
    priority: int
    created_us: int
    spec: bytes
    body: bytes
    crc: int = 0
    spec_crc: int = 0

    def sum_of_change(self) -> int:
        return row_crc(self.id, self.partition, self.rev, self.state, self.run_at_us, self.ended_us, self.body)

    def sum_of_birth(self) -> int:
        return spec_crc(self.id, self.type, self.queue, self.priority, self.created_us, self.spec)

    def stored(self) -> StoredRow:
        require_intact(self.partition, self.parts())
        return StoredRow(
            self.id, self.partition, self.rev, self.state, self.run_at_us, self.ended_us, self.spec, self.body
        )

    def parts(self) -> RowParts:
        return (
            self.id, self.rev, self.state, self.run_at_us, self.ended_us, self.crc,
            self.type, self.queue, self.priority, self.created_us, self.spec_crc, self.spec, self.body,
        )  # fmt: skip


class _Staged:
    def __init__(self) -> None:
        self.staging = Staging(0)
        self.tasks: dict[str, Task] = {}
        self.tombstones: dict[str, Tombstone] = {}


class Disk:
    def __init__(self) -> None:
        self.meta: dict[str, bytes] = {}
        self.consensus: dict[int, ConsensusRecord] = {}
        self.states: dict[int, LogState] = {}
        self.records: dict[int, dict[int, Entry]] = {}
        self.emptied_to: dict[int, int] = {}
        self.tasks: dict[str, Task] = {}
        self.tombstones: dict[str, Tombstone] = {}
        self.staged: dict[int, _Staged] = {}
        self.extents: dict[int, Extent] = {}

    def apply(self, batch: Batch) -> None:
        """:raises Divergence: the batch does not follow; some of it may be applied, so the store
        must end.
        """
        changed = fold(self.states, batch)
        for partition in batch.drops:
            self.staged.pop(partition, None)
            self._empty(partition)
        for partition in batch.unstage:
            self.staged.pop(partition, None)
        for chunk in batch.stage:
            self._stage(chunk)
        for install in batch.installs:
            self._install(install)
        for partition, kept in batch.cuts.items():
            records = self.records.get(partition, {})
            self.records[partition] = {s: entry for s, entry in records.items() if s <= kept}
        for entry in batch.entries:
            self.records.setdefault(entry.partition, {})[entry.sequence] = entry
        for row in batch.rows:
            self._put(row)
        for delete in batch.deletes:
            task = self.tasks.pop(delete.id, None)
            if task is None or task.rev != delete.expected_rev:
                raise Divergence(f"task {delete.id}: to be deleted at revision {delete.expected_rev}")
            extent = self._extent(task.partition)
            extent.rows -= 1
            extent.content_bytes -= len(task.spec) + len(task.body)
        for tombstone in batch.tombstones:
            self.tombstones[tombstone.id] = tombstone
            self._extent(tombstone.partition).tombstones += 1
        for task_id in batch.forgets:
            forgotten = self.tombstones.pop(task_id, None)
            if forgotten is not None:
                self._extent(forgotten.partition).tombstones -= 1
        for partition in changed:
            records = self.records.get(partition, {})
            trimmed = self.states[partition].trimmed
            for sequence in range(self.emptied_to.get(partition, 0) + 1, trimmed + 1):
                records.pop(sequence, None)
            self.emptied_to[partition] = trimmed
        for write in batch.consensus:
            self._write_consensus(write)
        for key, value in batch.meta.items():
            if value is None:
                self.meta.pop(key, None)
            else:
                self.meta[key] = value

    def _write_consensus(self, write: ConsensusWrite) -> None:
        first = 0 if write.replace_all else write.records[0].log_index if write.records else None
        kept = self.consensus.items() if first is None else ((i, r) for i, r in self.consensus.items() if i < first)
        self.consensus = dict(kept) | {record.log_index: record for record in write.records}
        self.consensus = {i: r for i, r in self.consensus.items() if i >= write.cut_below}

    def tombstone_parts(self, tombstone: Tombstone) -> TombstoneParts:
        crc = tombstone_crc(tombstone.id, tombstone.partition, tombstone.content_hash, tombstone.at_us)
        return tombstone.id, tombstone.content_hash, tombstone.at_us, crc

    def _extent(self, partition: int) -> Extent:
        if partition not in self.extents:
            self.extents[partition] = Extent()
            self.states.setdefault(partition, LogState())
        return self.extents[partition]

    def _put(self, row: RowWrite) -> None:
        task = self.tasks.get(row.id)
        if (task.rev if task else 0) != row.expected_rev:
            raise Divergence(f"task {row.id}: revision {row.rev} does not follow {task.rev if task else 0}")
        extent = self._extent(row.partition)
        if task is None:
            if row.spec is None:
                raise Divergence(f"task {row.id}: a new row without its spec")
            task = self.tasks[row.id] = Task(
                row.id, row.partition, row.rev, row.state, row.run_at_us, row.ended_us,
                row.type, row.queue, row.priority, row.created_us, row.spec, row.body,
            )  # fmt: skip
            task.spec_crc = task.sum_of_birth()
            extent.rows += 1
            extent.content_bytes += len(row.spec) + len(row.body)
        elif task.partition != row.partition:
            raise Divergence(f"task {row.id}: of partition {task.partition}, not {row.partition}")
        extent.content_bytes += len(row.body) - len(task.body)
        task.rev, task.state, task.body = row.rev, row.state, row.body
        task.run_at_us, task.ended_us = row.run_at_us, row.ended_us
        task.crc = task.sum_of_change()

    # --- whole partitions ---
    def _empty(self, partition: int) -> None:
        self.tasks = {i: task for i, task in self.tasks.items() if task.partition != partition}
        self.tombstones = {i: t for i, t in self.tombstones.items() if t.partition != partition}
        self.records[partition] = {}
        self.emptied_to[partition] = 0
        self.extents[partition] = Extent()

    def _stage(self, chunk: StagedChunk) -> None:
        partition = chunk.partition
        if chunk.number == 0:
            self.staged[partition] = _Staged()
        staged = self.staged.get(partition)
        if staged is None:
            raise Divergence(f"partition {partition}: chunk {chunk.number} of nothing that is staged")
        staged.staging.require_next(partition, chunk.number)
        try:
            content = decode_chunk(partition, chunk.data, staged.staging.digest)
        except ChunkDamaged as why:
            raise Divergence(f"a chunk that was not checked: {why}") from why
        for (
            task_id, rev, state, run_at_us, ended_us, crc, task_type, queue, priority, created_us, fixed, spec, body
        ) in content.rows:  # fmt: skip
            if task_id in staged.tasks:
                raise Divergence(f"partition {partition}: a chunk holds task {task_id} twice")
            staged.tasks[task_id] = Task(
                task_id, partition, rev, state, run_at_us, ended_us,
                task_type, queue, priority, created_us, spec, body, crc, fixed,
            )  # fmt: skip
        for task_id, content_hash, at_us, _ in content.tombstones:
            staged.tombstones[task_id] = Tombstone(task_id, partition, content_hash, at_us)
        staged.staging.extent.count_chunk(content)

    def _install(self, install: Install) -> None:
        partition = install.partition
        staged = self.staged.pop(partition, None)
        if staged is not None:
            staged.staging.require_whole(partition, install.chunks, install.digest)
        elif install.chunks:
            raise Divergence(f"partition {partition}: {install.chunks} chunks to be installed, none staged")
        self._empty(partition)
        if staged is not None:
            self.tasks |= staged.tasks
            self.tombstones |= staged.tombstones
            self.extents[partition] = staged.staging.extent
