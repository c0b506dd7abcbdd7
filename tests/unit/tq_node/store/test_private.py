"""Files that no other user reads, a directory that no other user writes, no links followed."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from tq_node.store.lock import DirectoryLock
from tq_node.store.private import NotOurs, create, refuse_link, replace, secure_directory
from tq_node.store.readmit import FAILED_MARK, mark_failed
from tq_node.store.sqlite.open_database import DATABASE_NAME, connect_writer
from tq_node.work.lease import WorkersLock


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_there_is_fine(tmp_path: Path) -> None:
    assert secure_directory(tmp_path / "later") == []


def test_what_is_there_is_hidden_and_what_is_not_ours_left_alone(tmp_path: Path) -> None:
    ours = (
        "taskqueue.sqlite3",
        "taskqueue.sqlite3-wal",
        "taskqueue.sqlite3.failed-1",
        "snapshot-1.sqlite3",
        "lock",
    )
    for name in (*ours, "notes.txt"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o664)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    elsewhere.chmod(0o644)
    (tmp_path / "snapshot-2.sqlite3").symlink_to(elsewhere)
    tmp_path.chmod(0o755)
    assert secure_directory(tmp_path) == []
    assert {mode(tmp_path / name) for name in ours} == {0o600}
    assert (mode(tmp_path / "notes.txt"), mode(elsewhere)) == (0o664, 0o644)


@pytest.mark.parametrize("directory_mode", [0o777, 0o1777, 0o770])
def test_a_directory_that_others_can_write_is_said(tmp_path: Path, directory_mode: int) -> None:
    tmp_path.chmod(directory_mode)
    (warning,) = secure_directory(tmp_path)
    assert f"mode {directory_mode:o}" in warning


def test_another_user_s_directory_is_refused_but_by_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner:
        with pytest.raises(NotOurs, match=f"belongs to user {owner}"):
            secure_directory(tmp_path)
    else:
        assert secure_directory(tmp_path) == []
        os.chown(tmp_path, 4_242, -1)
        with pytest.raises(NotOurs, match="belongs to user 4242"):
            secure_directory(tmp_path)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert len(secure_directory(tmp_path)) == 1


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_store_is_not_opened_through_a_link(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "target"
    (tmp_path / f"{DATABASE_NAME}{suffix}").symlink_to(target)
    with pytest.raises(OSError, match="is a symbolic link"):
        connect_writer(tmp_path / DATABASE_NAME)
    assert not target.exists()


def test_a_store_and_what_sqlite_makes_beside_it_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        connection = connect_writer(tmp_path / DATABASE_NAME)
    finally:
        os.umask(before)
    connection.execute("CREATE TABLE t (x)")
    found = {path.name: mode(path) for path in tmp_path.iterdir()}
    connection.close()
    assert set(found) == {DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"}
    assert set(found.values()) == {0o600}


def test_locks_follow_no_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for name in ("lock", "workers.lock"):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        DirectoryLock(tmp_path)
    with pytest.raises(OSError, match="symbolic link"):
        WorkersLock(tmp_path / "workers.lock")
    assert not target.exists()


def test_marks_and_pid_files_replace_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    for name in (FAILED_MARK, "twistd.pid"):
        (tmp_path / name).symlink_to(target)
    mark_failed(tmp_path, "why")
    replace(tmp_path / "twistd.pid", "1\n")
    assert target.read_text() == "kept"
    assert [(tmp_path / name).read_text() for name in (FAILED_MARK, "twistd.pid")] == ["why\n", "1\n"]
    assert mode(tmp_path / FAILED_MARK) == 0o600


def test_only_plain_files_are_opened_and_only_new_ones_made(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no plain file"):
        refuse_link(tmp_path / "pipe")
    (tmp_path / "there").touch()
    refuse_link(tmp_path / "there")
    with pytest.raises(FileExistsError):
        create(tmp_path / "there")


def test_hiding_a_file_leaves_sqlite_s_locks_alone(tmp_path: Path) -> None:
    database = tmp_path / "taskqueue.sqlite3"
    one = sqlite3.connect(database, isolation_level=None)
    one.execute("CREATE TABLE t (x)")
    database.chmod(0o644)
    one.execute("BEGIN EXCLUSIVE")
    secure_directory(tmp_path)
    assert mode(database) == 0o600
    pid = os.fork()  # the lock belongs to the process: another one has to find it
    if pid == 0:
        other = sqlite3.connect(database, timeout=0)
        try:
            other.execute("INSERT INTO t VALUES (1)")
        except sqlite3.OperationalError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    one.close()
