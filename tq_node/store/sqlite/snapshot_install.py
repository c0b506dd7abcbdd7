"""The steps of a batch that change a whole partition: drops, staging, installs, cuts. In the
writer's transaction.

None of them touches more rows than it brings: replaced content becomes a dead slot in one step and
is deleted later (``generations``, ``vacuum``). Cut log records are deleted at once, since their
sequences are written again."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from tq_node import limits
from tq_node.errors import Divergence
from tq_node.store.api import Batch, Install, StagedChunk
from tq_node.store.checksums import epoch_crc, slot_crc
from tq_node.store.partition_state import Extent
from tq_node.store.snapshots import ChunkDamaged, decode_chunk
from tq_node.store.sqlite import sql
from tq_node.store.sqlite.generations import Generations, slot_of
from tq_node.store.sqlite.log_index import LogIndex

_to_json = msgspec.json.Encoder().encode

Added = list[tuple[int, int, int, int]]
"""(partition, sequence, position, bytes) of this transaction's records, not in the index yet."""


def reshapes(batch: Batch) -> bool:
    return bool(batch.cuts or batch.stage or batch.installs or batch.drops or batch.unstage)


class SnapshotInstaller:
    """Applies drops, chunks, installs, cuts. ``next_num``: a free row number of ``GroupWriter``."""

    def __init__(
        self, connection: sqlite3.Connection, generations: Generations, index: LogIndex, next_num: int
    ) -> None:
        self._connection = connection
        self._generations = generations
        self._index = index
        self.next_num = next_num
        self._emptied: set[int] = set()
        self._cut: dict[int, int] = {}

    def reshape(self, batch: Batch, added: Added, position: int) -> tuple[Added, int]:
        """Apply the batch's steps up to and with cuts. The states are folded already; ``position``
        is the next free one. Raises ``Divergence`` as ``api.Store.commit``.

        :returns: what is left of ``added``, and how many records were deleted."""
        deleted = 0
        for partition in batch.drops:
            self._generations.discard_staged(partition)
            self._replace(partition, None, position)
        for partition in batch.unstage:
            self._generations.discard_staged(partition)
        for chunk in batch.stage:
            self._stage(chunk)
        for install in batch.installs:
            self._install(install, position)
        emptied = {*batch.drops, *(install.partition for install in batch.installs)}
        if emptied:
            self._emptied |= emptied
            added = [record for record in added if record[0] not in emptied]
        for partition, kept in batch.cuts.items():
            added, count = self._cut_log(partition, kept, added)
            deleted += count
        return added, deleted

    def committed(self) -> None:
        """After the commit: remove emptied and cut records from the index, before new ones come."""
        for partition in self._emptied:
            self._index.forget(partition)
        for partition, kept in self._cut.items():
            self._index.cut(partition, kept)
        self._emptied, self._cut = set(), {}

    # --- staging ---
    def _stage(self, chunk: StagedChunk) -> None:
        partition = chunk.partition
        if chunk.number == 0:
            self._hide(self._generations.begin_staging(partition))
        staging = self._generations.staged.get(partition)
        if staging is None:
            raise Divergence(f"partition {partition}: chunk {chunk.number} of nothing that is staged")
        staging.require_next(partition, chunk.number)
        try:
            content = decode_chunk(partition, chunk.data, staging.digest)
        except ChunkDamaged as why:
            raise Divergence(f"a chunk that was not checked: {why}") from why
        staging.extent.count_chunk(content)
        slot = slot_of(partition, staging.extent.generation)
        births: list[Any] = []
        num = self.next_num
        for (
            task_id, rev, state, run_at_us, ended_us, crc, task_type, queue, priority, created_us, fixed, spec, body
        ) in content.rows:  # fmt: skip
            inline = None
            if len(spec) > limits.INLINE_SPEC_BYTES_MAX:
                self._connection.execute("INSERT INTO specs VALUES (?, ?)", (num, spec))
            else:
                inline = bytearray(spec)
            births += (
                num, task_id, slot, rev, state, run_at_us, ended_us, crc,
                task_type, queue, priority, created_us, fixed, inline, bytearray(body),
            )  # fmt: skip
            num += 1
        self.next_num = num
        tombstones = [value for task_id, *rest in content.tombstones for value in (task_id, slot, *rest)]
        connection = self._connection
        try:
            sql.insert(connection, sql.insert_tasks, sql.BIRTH_COLUMNS, births)
            sql.run_in_chunks(connection, sql.put_tombstones, sql.TOMBSTONE_COLUMNS, tombstones)
        except sqlite3.IntegrityError as why:
            raise Divergence(f"partition {partition}: a chunk holds a row twice: {why}") from why

    def _install(self, install: Install, position: int) -> None:
        partition = install.partition
        staging = self._generations.staged.pop(partition, None)
        if staging is not None:
            staging.require_whole(partition, install.chunks, install.digest)
            staged_slot = slot_of(partition, staging.extent.generation)
            self._connection.execute("DELETE FROM hidden WHERE slot = ?", (staged_slot,))
        elif install.chunks:
            raise Divergence(f"partition {partition}: {install.chunks} chunks to be installed, none staged")
        self._replace(partition, staging.extent if staging else None, position)
        for epoch, first_sequence in install.epochs:
            crc = epoch_crc(partition, epoch, first_sequence)
            self._connection.execute("INSERT INTO epochs VALUES (?, ?, ?, ?)", (partition, epoch, first_sequence, crc))

    def _replace(self, partition: int, extent: Extent | None, position: int) -> None:
        """Make ``extent`` live and all log records of the partition dead."""
        replaced = self._generations.replace(partition, extent, position)
        if replaced is not None:
            self._hide(replaced)
        self._connection.execute("DELETE FROM epochs WHERE partition = ?", (partition,))

    def _hide(self, slot: int) -> None:
        self._connection.execute("INSERT INTO hidden VALUES (?, ?)", (slot, slot_crc(slot)))

    # --- the log ---
    def _cut_log(self, partition: int, kept: int, added: Added) -> tuple[Added, int]:
        removed = [] if partition in self._emptied else self._index.end(partition, kept)
        removed += [position for p, sequence, position, _ in added if p == partition and sequence > kept]
        deleted = 0
        if removed:
            deleted = self._connection.execute(sql.DELETE_RECORDS, (_to_json(removed).decode(),)).rowcount
        self._connection.execute("DELETE FROM epochs WHERE partition = ? AND first_sequence > ?", (partition, kept))
        self._cut[partition] = min(kept, self._cut.get(partition, kept))
        return [record for record in added if record[0] != partition or record[1] <= kept], deleted
