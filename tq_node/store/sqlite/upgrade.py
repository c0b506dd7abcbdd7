"""The schema's numbered steps, and what applies them; ``PRAGMA user_version``: the last applied."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence as Seq
from importlib import resources
from typing import NamedTuple

from tq_node.errors import StoreBroken
from tq_node.store.checksums import partition_crc_3

APPLICATION_ID = 0x74717331
"""``tqs1``: what tells our file from any other SQLite database."""


class SchemaTooNew(Exception):
    """A later release wrote this store. The message is one line for a person."""


class Step(NamedTuple):
    """``sql``, without BEGIN and COMMIT, takes the schema from ``version`` - 1 to ``version``."""

    version: int
    sql: str


def load_steps() -> list[Step]:
    """The steps that this release brings along, from 1 without gaps."""
    files = sorted(
        (item for item in resources.files("tq_node.store.schema").iterdir() if item.name.endswith(".sql")),
        key=lambda item: item.name,
    )
    steps = [Step(int(item.name.split("_", 1)[0]), item.read_text(encoding="utf-8")) for item in files]
    assert [step.version for step in steps] == list(range(1, len(steps) + 1)), "schema steps have a gap"
    return steps


def check_identity(connection: sqlite3.Connection, steps: Seq[Step]) -> int:
    """The database's version, 0 where it is new; changes nothing.

    :raises SchemaTooNew: ``steps`` does not reach its version.
    :raises StoreBroken: it belongs to another program."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreBroken("the database file was not made by taskqueue")
    newest = steps[-1].version
    if version > newest:
        raise SchemaTooNew(f"the store has schema version {version}, this release knows versions up to {newest}")
    return version


def upgrade(connection: sqlite3.Connection, steps: Seq[Step]) -> int:
    """Bring the database to the last step, each step in a transaction of its own; return how many
    were applied.

    A crash in between leaves a whole older version, from which the next start goes on.

    :raises SchemaTooNew, StoreBroken: as ``check_identity``."""
    version = check_identity(connection, steps)
    connection.create_function("partition_crc_3", -1, partition_crc_3)
    for step in steps[version:]:
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{step.sql}\n;PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {step.version};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(steps) - version
