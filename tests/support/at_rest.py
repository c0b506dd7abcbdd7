"""Stores of nodes that do not run: what each has applied, and a digest of its content (I11)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from tq_node.store.sqlite import open_database
from tq_node.store.sqlite.snapshot_reads import PartitionReader

READ_BYTES = 1024 * 1024


class CopyAtRest(NamedTuple):
    applied: int
    digest: str
    promised: int
    trimmed: int
    """Up to and with which entry the log is gone."""
    generation: int
    """Rises with each snapshot that took the place of what was there."""
    rows: int


def copies_at_rest(data_dir: Path) -> dict[int, CopyAtRest]:
    """Of each partition in the store of a node that has ended, however it ended."""
    found: dict[int, CopyAtRest] = {}
    with contextlib.closing(
        open_database.connect(data_dir / open_database.DATABASE_NAME, cache_kib=2048)
    ) as connection:
        rows = connection.execute(
            "SELECT partition, promised, trimmed, generation, task_rows FROM partitions"
        ).fetchall()
        for partition, promised, trimmed, generation, count in rows:
            reader = PartitionReader(connection, partition)
            while reader.read(READ_BYTES) is not None:
                pass
            found[partition] = CopyAtRest(
                reader.applied, reader.digest.value().hex(), promised, trimmed, generation, count
            )
            reader.end()
    return found
