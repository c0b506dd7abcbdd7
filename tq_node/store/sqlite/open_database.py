"""Opens the database and loads what the writer keeps in memory, before the store's first call."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import msgspec

from tq_node.errors import StoreBroken
from tq_node.partition.entries import maker_of
from tq_node.store.checksums import epoch_crc, meta_crc, partition_crc, slot_crc
from tq_node.store.lock import sync_directory
from tq_node.store.partition_state import Extent, LogState
from tq_node.store.private import create, refuse_link
from tq_node.store.sqlite.generations import Generations
from tq_node.store.sqlite.log_index import LogIndex, LogLoad
from tq_node.store.sqlite.upgrade import check_identity, load_steps, upgrade

DATABASE_NAME = "taskqueue.sqlite3"
WRITER_CACHE_KIB = 32 * 1024
READER_CACHE_KIB = 4 * 1024
BUSY_S = 5.0
"""SQLite waits so long for another connection's lock. Ours meet for moments, at checkpoints."""
SQLITE_VERSION_LEAST = (3, 38, 0)
"""For UPDATE ... FROM (3.33) and JSON functions that are always there (3.38)."""
_DATABASE_FILES = ("", "-wal", "-shm", "-journal")
_SCAN_ROWS = 50_000

_decode_scan = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode


def make_directory(directory: Path) -> None:
    """Create the data directory if missing, for its owner alone, and make its name durable."""
    absolute = directory.absolute()
    missing = [path for path in (absolute, *absolute.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def connect(database: Path, *, cache_kib: int, read_only: bool = False) -> sqlite3.Connection:
    """A connection that one thread at a time may use, without Python's own transactions."""
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"{database.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.create_function("made_by", 1, maker_of, deterministic=True)
    return connection


def connect_writer(database: Path) -> sqlite3.Connection:
    """The one connection that writes, its durability settings read back, the schema up to date.

    :raises StoreBroken: no database of ours, damaged, or a setting does not hold.
    :raises SchemaTooNew: by a later release.
    :raises OSError: a file of it is a link, or can't be made."""
    if sqlite3.sqlite_version_info < SQLITE_VERSION_LEAST:
        raise StoreBroken(f"SQLite {sqlite3.sqlite_version} is too old: 3.38 or later is needed")
    steps = load_steps()
    connection = None
    for suffix in _DATABASE_FILES:
        refuse_link(database.with_name(f"{database.name}{suffix}"))
    if not database.exists():
        os.close(create(database))  # SQLite gives what it makes beside it the same mode
    try:
        connection = connect(database, cache_kib=WRITER_CACHE_KIB)
        check_identity(connection, steps)  # before anything is changed in it
        _require(connection, "journal_mode", "WAL", "wal")
        _require(connection, "synchronous", "FULL", 2)
        _require(connection, "wal_autocheckpoint", "0", 0)
        _require(connection, "secure_delete", "OFF", 0)
        _settle_wal(connection)
        upgrade(connection, steps)
        sync_directory(database.parent)
    except BaseException as why:
        if connection is not None:
            connection.close()
        if isinstance(why, sqlite3.Error):
            raise StoreBroken(f"store {database}: {why}") from why
        raise
    return connection


def _settle_wal(connection: sqlite3.Connection) -> None:
    """Bring what the write-ahead log holds into the database, synced, before anything is added
    behind it.

    A sync that failed in the last run may have left pages that only the cache still shows (F8): a
    commit behind such a hole would be acknowledged and lost with the next power cut. Copied and
    synced anew, they are on the disk, or the start fails here."""
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StoreBroken("another process reads the store: its log can't be settled")


def _require(connection: sqlite3.Connection, pragma: str, value: str, expected: object) -> None:
    connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
    (actual,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    if actual != expected:
        raise StoreBroken(f"SQLite does not keep to {pragma} = {value}: it says {actual!r}")


def load_meta(connection: sqlite3.Connection) -> dict[str, bytes]:
    named = {}
    for key, value, crc in connection.execute("SELECT key, value, crc FROM meta"):
        if crc != meta_crc(key, value):
            raise StoreBroken(f"the stored value {key!r} is damaged")
        named[key] = value
    return named


def load_states(connection: sqlite3.Connection) -> tuple[dict[int, LogState], Generations]:
    """Load every partition's ``LogState`` but ``last``, which ``load_log`` fills in, and its
    ``Extent``. What was staged when the last run ended is dead: a crash gives up a snapshot
    (replication.md, section 6)."""
    states: dict[int, LogState] = {}
    extents: dict[int, Extent] = {}
    for *values, crc in connection.execute(
        "SELECT partition, promised, applied, horizon_us, trimmed, "
        "generation, log_from, task_rows, tombstone_rows, content_bytes, crc FROM partitions"
    ):
        if crc != partition_crc(*values):
            raise StoreBroken(f"the stored state of partition {values[0]} is damaged")
        partition = values[0]
        states[partition] = LogState(*values[1:5])
        extents[partition] = Extent(*values[5:])
    rows = connection.execute("SELECT partition, epoch, first_sequence, crc FROM epochs ORDER BY partition, epoch")
    for partition, epoch, first_sequence, crc in rows:
        if crc != epoch_crc(partition, epoch, first_sequence):
            raise StoreBroken(f"the stored epochs of partition {partition} are damaged")
        states.setdefault(partition, LogState()).epochs.append((epoch, first_sequence))
    hidden: set[int] = set()
    for slot, crc in connection.execute("SELECT slot, crc FROM hidden"):
        if crc != slot_crc(slot):
            raise StoreBroken(f"the stored note about slot {slot} is damaged")
        hidden.add(slot)
    generations = Generations()
    generations.load(extents, hidden)
    return states, generations


def load_log(
    connection: sqlite3.Connection, states: dict[int, LogState], generations: Generations, index: LogIndex
) -> LogLoad:
    """Index every live record without its payload; raises ``StoreBroken`` if one is missing."""
    last_position = rows = total = 0
    # Positions from which a log begins anew are never given out again, though the table may have
    # been emptied up to there.
    log_from = {partition: extent.log_from for partition, extent in generations.extents.items()}
    next_position = max(log_from.values(), default=0)
    while True:
        (text,) = connection.execute(
            "SELECT json_group_array(json_array(pos, partition, sequence, length(payload))) FROM "
            "(SELECT pos, partition, sequence, payload FROM log WHERE pos > ? ORDER BY pos LIMIT ?)",
            (last_position, _SCAN_ROWS),
        ).fetchone()
        found = _decode_scan(text)
        if not found:
            return LogLoad(max(last_position + 1, next_position), rows, total)
        kept = []
        for position, partition, sequence, size in found:
            total += size
            state = states.setdefault(partition, LogState())
            if sequence <= state.trimmed or position < log_from.get(partition, 0):
                continue
            if sequence != state.last + 1:
                raise StoreBroken(f"partition {partition}: log record {state.last + 1} is missing")
            state.last = sequence
            kept.append((partition, sequence, position, size))
        index.extend(kept)
        rows += len(found)
        last_position = found[-1][0]


def next_task_number(connection: sqlite3.Connection) -> int:
    (highest,) = connection.execute("SELECT max(num) FROM tasks").fetchone()
    return (highest or 0) + 1


def prune_epochs(connection: sqlite3.Connection, states: dict[int, LogState]) -> None:
    """Drop epochs that ended before the log's start: once a start, for each start adds some."""
    for partition, state in states.items():
        kept = state.as_partition_log(partition).epochs
        if len(kept) < len(state.epochs):
            connection.execute("DELETE FROM epochs WHERE partition = ? AND epoch < ?", (partition, kept[0][0]))
            state.epochs = kept


def size_on_disk(database: Path) -> int:
    total = 0
    for suffix in _DATABASE_FILES[:3]:
        try:
            total += os.stat(f"{database}{suffix}").st_size
        except FileNotFoundError:
            continue
    return total
