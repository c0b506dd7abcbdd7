"""Going back: a node says of a directory that a later release has opened that it is not for it, and leaves it as it is."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.support.harness import Nodes
from tq_node.cluster.records import FEATURE_LEVEL_MAX
from tq_node.runtime.control.raft_driver import SNAPSHOT
from tq_node.store.checksums import meta_crc
from tq_node.store.sqlite.open_database import DATABASE_NAME
from tq_node.store.sqlite.upgrade import APPLICATION_ID, load_steps

pytestmark = pytest.mark.cluster

NEWEST = load_steps()[-1].version


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(directory.iterdir())
        if path.suffix != ".lock" and path.name != "lock"
    }


def dump(directory: Path, scratch: Path) -> list[str]:
    """Of a copy: to look settles the write-ahead log."""
    shutil.copytree(directory, scratch)
    with closing(sqlite3.connect(scratch / DATABASE_NAME)) as connection:
        return [
            f"PRAGMA user_version = {connection.execute('PRAGMA user_version').fetchone()[0]}",
            *connection.iterdump(),
        ]


def rows(directory: Path, scratch: Path) -> list[str]:
    """All that the dump says but ``meta``, where a start is counted before anything else is done."""
    return [line for line in dump(directory, scratch) if not line.startswith('INSERT INTO "meta"')]


@pytest.mark.parametrize("ended", ["in order", pytest.param("killed", marks=pytest.mark.long)])
def test_a_newer_schema_is_refused_in_one_line_and_nothing_is_changed(ended: str, nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.start("--node-id", "node-1", environment={"TQ_TEST_BIRTH_GUARD_S": "0.2"})
    task = node.submit("quick", delay=3600)
    assert node.terminate() == 0
    data = tmp_path / "data" / "node-1"
    later = sqlite3.connect(data / DATABASE_NAME)
    later.execute("PRAGMA wal_autocheckpoint = 0")
    later.executescript(
        f"PRAGMA journal_mode = WAL; BEGIN; CREATE TABLE later (what TEXT); INSERT INTO later VALUES ('x'); "
        f"PRAGMA user_version = {NEWEST + 1}; COMMIT;"
    )
    if ended == "killed":  # what a kill -9 leaves: all of it in the write-ahead log, with nobody who has it open
        shutil.copytree(data, tmp_path / "killed")
        later.close()
        shutil.rmtree(data)
        (tmp_path / "killed").rename(data)
    later.close()
    before, said = content(data), dump(data, tmp_path / "before")
    assert (f"{DATABASE_NAME}-wal" in before) == (ended == "killed")

    refused = nodes.run("--node-id", "node-1")
    assert refused.code == 1
    words = f"the store has schema version {NEWEST + 1}, this release knows versions up to {NEWEST}"
    assert words in refused.out + refused.err
    assert "Traceback" not in refused.out + refused.err
    if ended == "in order":
        assert content(data) == before
    # Of a store that was killed SQLite may settle the write-ahead log; what it says is the same.
    assert dump(data, tmp_path / "after") == said

    # The later release goes on with it: here, ours again once its step is taken back.
    with closing(sqlite3.connect(data / DATABASE_NAME)) as connection:
        connection.executescript(f"DROP TABLE later; PRAGMA user_version = {NEWEST};")
    back = nodes.start("--node-id", "node-1", http_port=node.http_port)
    assert back.status(task)["status"] == "scheduled"


def test_nor_does_it_join_with_it(nodes: Nodes, tmp_path: Path) -> None:
    data = tmp_path / "data" / "node-1"
    data.mkdir(parents=True)
    with closing(sqlite3.connect(data / DATABASE_NAME)) as connection:
        connection.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {NEWEST + 7};")
    before = content(data)
    refused = nodes.run("--node-id", "node-1", "--join", "localhost:1")
    assert refused.code == 1
    assert f"schema version {NEWEST + 7}" in refused.out + refused.err
    assert content(data) == before


def test_a_table_of_a_newer_feature_level_ends_the_start(nodes: Nodes, tmp_path: Path) -> None:
    """The schema may be the same and the cluster's table yet be one that only a later release can go on with (F44)."""
    node = nodes.start("--node-id", "node-1", environment={"TQ_TEST_BIRTH_GUARD_S": "0.2"})
    task = node.submit("quick", delay=3600)
    node.kill9()
    data = tmp_path / "data" / "node-1"
    newer = FEATURE_LEVEL_MAX + 1

    def set_level(level: int) -> None:
        """In the snapshot of the table, as a release that knows the level would write it."""
        with closing(sqlite3.connect(data / DATABASE_NAME)) as connection:
            (value,) = connection.execute("SELECT value FROM meta WHERE key = ?", (SNAPSHOT,)).fetchone()
            *head, table = msgspec.msgpack.decode(value)
            fields = msgspec.msgpack.decode(table[1:])
            fields[2] = level
            value = msgspec.msgpack.encode([*head, table[:1] + msgspec.msgpack.encode(fields)])
            connection.execute(
                "UPDATE meta SET value = ?, crc = ? WHERE key = ?", (value, meta_crc(SNAPSHOT, value), SNAPSHOT)
            )
            connection.commit()

    set_level(newer)
    tasks = rows(data, tmp_path / "before")
    refused = nodes.run("--node-id", "node-1", "--http", str(node.http_port))
    assert refused.code == 1, refused
    assert "Traceback" not in refused.out + refused.err
    assert f"feature level {newer}, not 1 to {FEATURE_LEVEL_MAX}" in refused.out + refused.err
    assert rows(data, tmp_path / "after") == tasks

    set_level(FEATURE_LEVEL_MAX)
    back = nodes.start("--node-id", "node-1", http_port=node.http_port)
    assert back.status(task)["status"] == "scheduled"
