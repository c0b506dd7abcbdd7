"""One transaction for all the batches that wait (group commit). Runs in the writer thread only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import Any

import msgspec

from tq_node import limits
from tq_node.errors import Divergence
from tq_node.store.api import Batch, ConsensusWrite
from tq_node.store.checksums import consensus_crc, epoch_crc, meta_crc, partition_crc, row_crc, spec_crc, tombstone_crc
from tq_node.store.partition_state import Extent, LogState, fold, state_of
from tq_node.store.sqlite import sql
from tq_node.store.sqlite.generations import PARTITION_MASK, Generations
from tq_node.store.sqlite.log_index import LogIndex, LogLoad
from tq_node.store.sqlite.snapshot_install import Added, SnapshotInstaller, reshapes
from tq_node.store.sqlite.vacuum import RecordSweeper, RowSweeper
from tq_node.types import State

_BLOB = bytearray()
"""Added to bytes, it makes a bytearray of them: as SQL parameters these are cheap (``sql``)."""
_to_json = msgspec.json.Encoder().encode
_decode_growth = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_weights = msgspec.json.Decoder(list[tuple[int, int, int]]).decode


class GroupWriter:
    """Writes batches through the write connection, one transaction for each call of ``write``.

    ``states``, positions and row numbers come from opening the store. After an exception memory is
    ahead of the database: the store must end."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        states: dict[int, LogState],
        generations: Generations,
        index: LogIndex,
        log: LogLoad,
        next_num: int,
    ) -> None:
        self._connection = connection
        self._states = states
        self._generations = generations
        self._index = index
        self._next_position = log.next_position
        self._installer = SnapshotInstaller(connection, generations, index, next_num)
        self._records_sweeper = RecordSweeper(connection, index, log)
        self._rows_sweeper = RowSweeper(connection, generations)
        connection.executescript(sql.WATCH_BODIES)

    @property
    def has_dead_rows(self) -> bool:
        """Whether ``sweep`` has something to do."""
        return self._rows_sweeper.is_due

    def sweep(self) -> None:
        """Delete a slice of dead rows in a commit of its own, while there is nothing to write."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._rows_sweeper.sweep()
        self._connection.execute("COMMIT")

    def write(self, batches: Seq[Batch]) -> tuple[int, int]:
        """Make the batches durable in one commit; return the numbers of (records, rows) written.

        :raises Divergence: a batch does not follow from what is stored.
        :raises sqlite3.Error: the disk failed."""
        if any(map(reshapes, batches)):
            # Readers that meet removed records wait for the index to know (``queries.read_log``).
            with self._index.settled:
                return self._write_in_order(batches)
        changed: set[int] = set()
        for batch in batches:
            changed |= fold(self._states, batch)
        records, added = self._records(batches)
        row_batches = [b for b in batches if b.rows or b.deletes or b.tombstones or b.forgets]
        others = any(b.epochs or b.meta or b.consensus for b in batches)
        clean = self._records_sweeper.is_due or self._rows_sweeper.is_due
        alone = not (changed or row_batches or others or clean)
        if alone and len(added) <= sql.ROWS_MAX:
            # A single statement commits within its only step (see ``sql``).
            self._insert(records)
            rows = 0
        else:
            self._connection.execute("BEGIN IMMEDIATE")
            self._insert(records)
            if others:
                self._write_others(batches)
            rows = sum(self._write_rows(run, changed) for run in _independent_runs(row_batches))
            self._end_transaction(changed)
        self._committed(added, changed)
        return len(added), rows

    def _write_in_order(self, batches: Seq[Batch]) -> tuple[int, int]:
        """Like ``write``, but batch by batch: one may remove what the one before it added."""
        changed: set[int] = set()
        added: Added = []
        written = rows = 0
        self._connection.execute("BEGIN IMMEDIATE")
        for batch in batches:
            changed |= fold(self._states, batch)
            added, deleted = self._installer.reshape(batch, added, self._next_position)
            self._records_sweeper.removed(deleted)
            records, more = self._records([batch])
            self._insert(records)
            added += more
            written += len(more)
            self._next_position += len(more)
            self._records_sweeper.added(more)
            self._write_others([batch])
            rows += self._write_rows([batch], changed)
        self._end_transaction(changed)
        self._installer.committed()
        self._index.extend(added)
        self._trim(changed)
        return written, rows

    def _end_transaction(self, changed: set[int]) -> None:
        if changed:
            self._write_partitions(changed)
        if self._records_sweeper.is_due:
            self._trim_index(changed)  # before the table: readers trust the index
            self._records_sweeper.sweep(self._next_position)
        if self._rows_sweeper.is_due:
            self._rows_sweeper.sweep()
        self._connection.execute("COMMIT")

    def _insert(self, records: list[Any]) -> None:
        if records:
            sql.insert(self._connection, sql.insert_log, sql.LOG_COLUMNS, records)

    def _records(self, batches: Iterable[Batch]) -> tuple[list[Any], Added]:
        parameters: list[Any] = []
        added: Added = []
        position = self._next_position
        for batch in batches:
            for entry in batch.entries:
                payload = entry.payload
                parameters += (position, entry.partition, entry.sequence, entry.epoch, entry.crc, _BLOB + payload)
                added.append((entry.partition, entry.sequence, position, len(payload)))
                position += 1
        return parameters, added

    def _committed(self, added: Added, changed: set[int]) -> None:
        if added:
            self._index.extend(added)
            self._next_position += len(added)
            self._records_sweeper.added(added)
        if changed:
            self._trim(changed)

    def _trim(self, changed: set[int]) -> None:
        self._trim_index(changed)
        self._records_sweeper.update_first_live(self._next_position)

    def _trim_index(self, changed: set[int]) -> None:
        for partition in changed:
            self._index.trim(partition, self._states[partition].trimmed)

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
                parameters += (r.log_index, r.term, r.kind, _BLOB + r.data, crc)
            sql.insert(self._connection, sql.insert_consensus, sql.CONSENSUS_COLUMNS, parameters)
        if write.cut_below:
            execute("DELETE FROM consensus_log WHERE log_index < ?", (write.cut_below,))

    def _write_partitions(self, changed: Iterable[int]) -> None:
        parameters: list[Any] = []
        for partition in sorted(changed):
            state, extent = state_of(self._states, partition), self._generations.extent(partition)
            values = (
                partition, state.promised, state.applied, state.horizon_us, state.trimmed,
                extent.generation, extent.log_from, extent.rows, extent.tombstones, extent.content_bytes,
            )  # fmt: skip
            parameters += values
            parameters.append(partition_crc(*values))
        sql.run_in_chunks(self._connection, sql.put_partitions, sql.PARTITION_COLUMNS, parameters)

    def _write_rows(self, batches: Seq[Batch], changed: set[int]) -> int:
        """Write the rows of batches that share no id, with one statement of each kind for all.

        ``changed`` grows by the partitions that now hold more or less."""
        births: list[Any] = []
        changes: list[Any] = []
        reschedules: list[Any] = []
        long_specs: list[tuple[int, bytes]] = []
        live_slots, extents, num = self._generations.live_slots, self._generations.extents, self._installer.next_num
        partition = slot = -1
        for batch in batches:
            for row in batch.rows:
                if row.partition != partition:  # those of one partition mostly come together
                    partition = row.partition
                    slot = live_slots.get(partition, partition)
                    changed.add(partition)
                body = row.body
                crc = row_crc(row.id, partition, row.rev, row.state, row.run_at_us, row.ended_us, body)
                if row.expected_rev:
                    change = changes if row.state >= State.PROCESSING else reschedules
                    change += (
                        row.id, row.expected_rev, row.rev, +row.state, row.run_at_us, row.ended_us, crc,
                        _BLOB + body, slot,
                    )  # fmt: skip
                    continue
                spec = row.spec
                if spec is None:
                    raise Divergence(f"task {row.id}: a new row without its spec")
                extent = extents.get(partition) or self._generations.extent(partition)
                extent.rows += 1
                extent.content_bytes += len(spec) + len(body)
                fixed = spec_crc(row.id, row.type, row.queue, row.priority, row.created_us, spec)
                inline: bytearray | None = None
                if len(spec) > limits.INLINE_SPEC_BYTES_MAX:
                    long_specs.append((num, spec))
                else:
                    inline = _BLOB + spec
                births += (
                    num, row.id, slot, row.rev, +row.state, row.run_at_us, row.ended_us, crc,
                    row.type, row.queue, row.priority, row.created_us, fixed, inline, _BLOB + body,
                )  # fmt: skip
                num += 1
        self._installer.next_num = num
        run, connection = sql.run_in_chunks, self._connection
        count = 0
        if births:
            try:
                count += sql.insert(connection, sql.insert_tasks, sql.BIRTH_COLUMNS, births)
            except sqlite3.IntegrityError as why:
                raise Divergence(f"a new row is there already: {why}") from why
        for number_and_spec in long_specs:
            connection.execute("INSERT INTO specs VALUES (?, ?)", number_and_spec)
        if changes:
            count += self._change(sql.change_tasks, changes)
        if reschedules:
            count += self._change(sql.reschedule_tasks, reschedules)
        if changes or reschedules:
            self._note_growth()
        for batch in batches:
            if batch.deletes:
                count += self._delete(batch, changed)
        tombstones: list[Any] = []
        for batch in batches:
            for t in batch.tombstones:
                crc = tombstone_crc(t.id, t.partition, t.content_hash, t.at_us)
                tombstones += (t.id, live_slots.get(t.partition, t.partition), _BLOB + t.content_hash, t.at_us, crc)
                self._generations.extent(t.partition).tombstones += 1
                changed.add(t.partition)
        if tombstones:
            count += run(connection, sql.put_tombstones, sql.TOMBSTONE_COLUMNS, tombstones)
        for batch in batches:
            if batch.forgets:
                count += self._forget(batch, changed)
        return count

    def _change(self, statement: Any, parameters: list[Any]) -> int:
        columns = sql.CHANGE_COLUMNS
        wanted = len(parameters) // columns
        done = sql.run_in_chunks(self._connection, statement, columns, parameters)
        if done < wanted and statement is sql.change_tasks:
            # Rows not matched have another run_at_us or revision; the changed ones a new revision.
            done += sql.run_in_chunks(self._connection, sql.reschedule_tasks, columns, parameters)
        if done != wanted:
            raise Divergence(f"{wanted - done} of {wanted} changed rows do not have the revision expected")
        return done

    def _note_growth(self) -> None:
        (text,) = self._connection.execute(sql.READ_GROWTH).fetchone()
        growth = _decode_growth(text)
        if growth:
            self._connection.execute(sql.CLEAR_GROWTH)
        for slot, grown in growth:
            partition = slot & PARTITION_MASK
            self._generations.extent(partition).content_bytes += grown

    def _delete(self, batch: Batch, changed: set[int]) -> int:
        wanted = _to_json([(delete.id, delete.expected_rev) for delete in batch.deletes]).decode()
        for extent, rows, total in self._weigh(sql.WEIGH_TASKS, wanted, changed):
            extent.rows -= rows
            extent.content_bytes -= total
        self._connection.execute(sql.DELETE_SPECS, (wanted,))
        deleted = self._connection.execute(sql.DELETE_TASKS, (wanted,)).rowcount
        if deleted != len(batch.deletes):
            raise Divergence(f"{len(batch.deletes) - deleted} deleted rows do not have the revision expected")
        return deleted

    def _forget(self, batch: Batch, changed: set[int]) -> int:
        wanted = _to_json(batch.forgets).decode()
        for extent, tombstones, _ in self._weigh(sql.WEIGH_TOMBSTONES, wanted, changed):
            extent.tombstones -= tombstones
        return self._connection.execute(sql.DELETE_TOMBSTONES, (wanted,)).rowcount

    def _weigh(self, statement: str, wanted: str, changed: set[int]) -> Iterator[tuple[Extent, int, int]]:
        """For each partition that loses rows or tombstones: its extent, how many, their bytes."""
        (text,) = self._connection.execute(statement, (wanted,)).fetchone()
        for slot, count, total in _decode_weights(text):
            partition = slot & PARTITION_MASK
            changed.add(partition)
            yield self._generations.extent(partition), count, total


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
