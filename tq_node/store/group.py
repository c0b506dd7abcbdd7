"""One transaction for all the batches that wait (group commit). Runs in the writer thread only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import Any

import msgspec

from tq_node import limits
from tq_node.errors import Divergence
from tq_node.store import statements
from tq_node.store.api import Batch, ConsensusWrite
from tq_node.store.checksums import consensus_crc, epoch_crc, meta_crc, partition_crc, row_crc, spec_crc, tombstone_crc
from tq_node.store.log_index import LogIndex
from tq_node.store.log_state import LogState, fold
from tq_node.types import State

_to_json = msgspec.json.Encoder().encode

TRIM_ROWS_PER_COMMIT = 4_096
TRIM_ROWS_LEAST = 256
TRIM_BYTES_PER_COMMIT = 16 * limits.MIB
"""Dead records leave the table in slices, so that no commit waits for a long one."""
DEAD_ROWS_MAX = 65_536
"""Dead records behind one that is still needed; past it, and past the number of live ones, they are looked for and removed."""


class GroupWriter:
    """Turns batches into statements on the write connection.

    ``states``, the positions and the row numbers are what opening the store has found. After any exception the object is
    ahead of the database: the store must end.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        states: dict[int, LogState],
        index: LogIndex,
        *,
        next_position: int,
        log_rows: int,
        log_bytes: int,
        next_num: int,
    ) -> None:
        self._connection = connection
        self._states = states
        self._index = index
        self._next_position = next_position
        self._next_num = next_num
        self._log_rows = log_rows
        self._log_bytes = log_bytes
        self._lowest = 0
        self._live_from = index.first_position(otherwise=next_position)
        self._swept_to = 0

    def write(self, batches: Seq[Batch]) -> tuple[int, int]:
        """Make the batches durable in one commit; return the numbers of (records, rows) written.

        :raises Divergence: a batch does not follow from what is stored. :raises sqlite3.Error: the disk.
        """
        execute = self._connection.execute
        changed: set[int] = set()
        for batch in batches:
            changed |= fold(self._states, batch)
        records, added = self._records(batches)
        row_batches = [b for b in batches if b.rows or b.deletes or b.tombstones or b.forgets]
        others = any(b.epochs or b.meta or b.consensus for b in batches)
        clean = self._live_from - self._lowest >= TRIM_ROWS_LEAST or self._sweep_due()
        alone = not (changed or row_batches or others or clean)
        if alone and len(added) <= statements.ROWS_MAX:
            # One statement is its own transaction: the commit happens within its only step (see statements.py).
            if added:
                statements.run_in_chunks(self._connection, statements.insert_log, statements.LOG_COLUMNS, records)
            rows = 0
        else:
            execute("BEGIN IMMEDIATE")
            if added:
                statements.run_in_chunks(self._connection, statements.insert_log, statements.LOG_COLUMNS, records)
            if others:
                self._write_others(batches)
            rows = sum(self._write_rows(run) for run in _independent_runs(row_batches))
            if changed:
                self._write_partitions(changed)
            if clean:
                self._remove_dead_records()
            execute("COMMIT")
        self._committed(added, changed)
        return len(added), rows

    def _records(self, batches: Iterable[Batch]) -> tuple[list[Any], list[tuple[int, int, int, int]]]:
        parameters: list[Any] = []
        added: list[tuple[int, int, int, int]] = []
        position = self._next_position
        for batch in batches:
            for entry in batch.entries:
                payload = entry.payload
                parameters += (position, entry.partition, entry.sequence, entry.epoch, entry.crc, payload)
                added.append((entry.partition, entry.sequence, position, len(payload)))
                position += 1
        return parameters, added

    def _committed(self, added: list[tuple[int, int, int, int]], changed: set[int]) -> None:
        if added:
            self._index.extend(added)
            self._next_position += len(added)
            self._log_rows += len(added)
            self._log_bytes += sum(size for _, _, _, size in added)
        if changed:
            for partition in changed:
                self._index.trim(partition, self._states[partition].trimmed)
            self._live_from = self._index.first_position(otherwise=self._next_position)

    def _write_others(self, batches: Iterable[Batch]) -> None:
        execute = self._connection.execute
        for batch in batches:
            for partition, epoch, first_sequence in batch.epochs:
                crc = epoch_crc(partition, epoch, first_sequence)
                execute("INSERT INTO epochs VALUES (?, ?, ?, ?)", (partition, epoch, first_sequence, crc))
            for write in batch.consensus:
                self._write_consensus(write)
            for key, value in batch.meta.items():
                if value is None:
                    execute("DELETE FROM meta WHERE key = ?", (key,))
                else:
                    execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, meta_crc(key, value)))

    def _write_consensus(self, write: ConsensusWrite) -> None:
        execute = self._connection.execute
        if write.replace_all:
            execute("DELETE FROM consensus_log")
        if write.records:
            execute("DELETE FROM consensus_log WHERE log_index >= ?", (write.records[0].log_index,))
            parameters: list[Any] = []
            for r in write.records:
                crc = consensus_crc(r.log_index, r.term, r.kind, r.data)
                parameters += (r.log_index, r.term, r.kind, r.data, crc)
            statements.run_in_chunks(
                self._connection, statements.insert_consensus, statements.CONSENSUS_COLUMNS, parameters
            )
        if write.cut_below:
            execute("DELETE FROM consensus_log WHERE log_index < ?", (write.cut_below,))

    def _write_partitions(self, changed: Iterable[int]) -> None:
        parameters: list[Any] = []
        for partition in sorted(changed):
            state = self._states[partition]
            values = (partition, state.promised, state.applied, state.horizon_us, state.trimmed)
            parameters += values
            parameters.append(partition_crc(*values))
        statements.run_in_chunks(self._connection, statements.put_partitions, statements.PARTITION_COLUMNS, parameters)

    def _write_rows(self, batches: Seq[Batch]) -> int:
        """Batches whose ids are all different, so that one statement of each kind does for all."""
        births: list[Any] = []
        changes: list[Any] = []
        reschedules: list[Any] = []
        long_specs: list[tuple[int, bytes]] = []
        num = self._next_num
        for batch in batches:
            for row in batch.rows:
                body = row.body
                crc = row_crc(row.id, row.partition, row.rev, row.state, row.run_at_us, row.ended_us, body)
                if row.expected_rev:
                    change = changes if row.state >= State.PROCESSING else reschedules
                    change += (row.id, row.expected_rev, row.rev, row.state, row.run_at_us, row.ended_us, crc, body)
                    continue
                spec = row.spec
                if spec is None:
                    raise Divergence(f"task {row.id}: a new row without its spec")
                fixed = spec_crc(row.id, row.type, row.queue, row.priority, row.created_us, spec)
                if len(spec) > limits.INLINE_SPEC_BYTES_MAX:
                    long_specs.append((num, spec))
                    spec = None
                births += (
                    num, row.id, row.partition, row.rev, row.state, row.run_at_us, row.ended_us, crc,
                    row.type, row.queue, row.priority, row.created_us, fixed, spec, body,
                )  # fmt: skip
                num += 1
        self._next_num = num
        run, connection = statements.run_in_chunks, self._connection
        count = 0
        if births:
            try:
                count += run(connection, statements.insert_tasks, statements.BIRTH_COLUMNS, births)
            except sqlite3.IntegrityError as why:
                raise Divergence(f"a new row is there already: {why}") from why
        for number_and_spec in long_specs:
            connection.execute("INSERT INTO specs VALUES (?, ?)", number_and_spec)
        if changes:
            count += self._change(statements.change_tasks, changes)
        if reschedules:
            count += self._change(statements.reschedule_tasks, reschedules)
        for batch in batches:
            if batch.deletes:
                count += self._delete(batch)
        tombstones: list[Any] = []
        for batch in batches:
            for t in batch.tombstones:
                crc = tombstone_crc(t.id, t.partition, t.content_hash, t.at_us)
                tombstones += (t.id, t.partition, t.content_hash, t.at_us, crc)
        if tombstones:
            count += run(connection, statements.put_tombstones, statements.TOMBSTONE_COLUMNS, tombstones)
        for batch in batches:
            if batch.forgets:
                count += connection.execute(statements.DELETE_TOMBSTONES, (_to_json(batch.forgets).decode(),)).rowcount
        return count

    def _change(self, statement: Any, parameters: list[Any]) -> int:
        columns = statements.CHANGE_COLUMNS
        wanted = len(parameters) // columns
        changed = statements.run_in_chunks(self._connection, statement, columns, parameters)
        if changed < wanted and statement is statements.change_tasks:
            # What was left has another run_at_us or another revision; what was changed no longer has the expected one.
            changed += statements.run_in_chunks(self._connection, statements.reschedule_tasks, columns, parameters)
        if changed != wanted:
            raise Divergence(f"{wanted - changed} of {wanted} changed rows do not have the revision expected")
        return changed

    def _delete(self, batch: Batch) -> int:
        wanted = _to_json([(delete.id, delete.expected_rev) for delete in batch.deletes]).decode()
        self._connection.execute(statements.DELETE_SPECS, (wanted,))
        deleted = self._connection.execute(statements.DELETE_TASKS, (wanted,)).rowcount
        if deleted != len(batch.deletes):
            raise Divergence(f"{len(batch.deletes) - deleted} deleted rows do not have the revision expected")
        return deleted

    def _sweep_due(self) -> bool:
        """Are so many dead records shut in behind live ones that looking for them pays?"""
        return self._log_rows - self._index.kept > max(DEAD_ROWS_MAX, self._index.kept)

    def _remove_dead_records(self) -> None:
        """Delete a slice of the records that no longer count: below the first that does, else wherever they are."""
        average = max(self._log_bytes // max(self._log_rows, 1), 1)
        slice_rows = min(max(TRIM_BYTES_PER_COMMIT // average, TRIM_ROWS_LEAST), TRIM_ROWS_PER_COMMIT)
        if self._live_from > self._lowest:
            self._lowest = min(self._lowest + slice_rows, self._live_from)
            deleted = self._connection.execute("DELETE FROM log WHERE pos < ?", (self._lowest,)).rowcount
        else:
            if not self._live_from <= self._swept_to < self._next_position:
                self._swept_to = self._live_from
            bounds = (self._swept_to, self._swept_to + slice_rows)
            deleted = self._connection.execute(statements.SWEEP_LOG, bounds).rowcount
            self._swept_to += slice_rows
        self._log_rows -= deleted
        self._log_bytes -= deleted * average


def _independent_runs(batches: Seq[Batch]) -> Iterator[list[Batch]]:
    """Cut the batches into runs within which no id comes up in two of them."""
    if len(batches) == 1:
        yield list(batches)
        return
    run: list[Batch] = []
    seen: set[str] = set()
    for batch in batches:
        ids = {row.id for row in batch.rows}
        ids.update(delete.id for delete in batch.deletes)
        ids.update(tombstone.id for tombstone in batch.tombstones)
        ids.update(batch.forgets)
        if not seen.isdisjoint(ids):
            yield run
            run, seen = [], set()
        run.append(batch)
        seen |= ids
    if run:
        yield run
