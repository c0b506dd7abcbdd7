"""Setting a failed store aside (R18): nothing is lost, nothing half done, and not every time that the option is there."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tq_node.store.lock import DirectoryLock, DirectoryLocked
from tq_node.store.readmit import FAILED_MARK, READMITTED_MARK, mark_failed, set_store_aside, why_failed
from tq_node.store.sqlite.open_database import DATABASE_NAME

AT_S = 1_700_000_000.0
STAMP = "20231114T221320Z"
PARTS = ("", "-wal", "-shm")


def make_store(directory: Path, content: str = "old") -> None:
    for suffix in PARTS:
        (directory / f"{DATABASE_NAME}{suffix}").write_text(content + suffix)


def store_files(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if path.name.startswith(DATABASE_NAME)}


def test_the_files_of_a_store_get_another_name_together(tmp_path: Path) -> None:
    make_store(tmp_path)
    aside = set_store_aside(tmp_path, AT_S)
    assert aside == tmp_path / f"{DATABASE_NAME}.failed-{STAMP}"
    kept = {f"{aside.name}{suffix}": f"old{suffix}" for suffix in PARTS}
    assert store_files(tmp_path) == kept | {READMITTED_MARK: ""}


def test_sqlite_still_opens_what_was_set_aside_with_its_log(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / DATABASE_NAME)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE t (x)")
    database.execute("INSERT INTO t VALUES (1)")
    database.commit()
    aside = set_store_aside(tmp_path, AT_S)
    assert aside is not None
    assert Path(f"{aside}-wal").exists()
    database.close()
    again = sqlite3.connect(aside)
    assert again.execute("SELECT x FROM t").fetchall() == [(1,)]
    again.close()


def test_an_empty_directory_stays_empty(tmp_path: Path) -> None:
    assert set_store_aside(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert set_store_aside(tmp_path / "not there") is None


def test_a_store_that_a_readmission_began_is_not_thrown_away_by_the_next_start(tmp_path: Path) -> None:
    make_store(tmp_path)
    assert set_store_aside(tmp_path, AT_S) is not None
    make_store(tmp_path, "new")
    assert set_store_aside(tmp_path, AT_S + 1) is None
    assert (tmp_path / DATABASE_NAME).read_text() == "new"


def test_unless_it_has_failed_too(tmp_path: Path) -> None:
    make_store(tmp_path)
    set_store_aside(tmp_path, AT_S)
    make_store(tmp_path, "new")
    mark_failed(tmp_path, "no fsync")
    aside = set_store_aside(tmp_path, AT_S)
    assert aside == tmp_path / f"{DATABASE_NAME}.failed-{STAMP}-2"
    assert aside.read_text() == "new"
    assert not (tmp_path / FAILED_MARK).exists()


def test_a_running_node_keeps_its_store(tmp_path: Path) -> None:
    make_store(tmp_path)
    lock = DirectoryLock(tmp_path)
    with pytest.raises(DirectoryLocked):
        set_store_aside(tmp_path)
    lock.release()
    assert (tmp_path / DATABASE_NAME).exists()
    assert set_store_aside(tmp_path) is not None
    DirectoryLock(tmp_path).release()  # and lets go


@pytest.mark.parametrize("renamed", [1, 2])
def test_interrupted_it_is_known_as_failed_and_the_next_call_does_the_rest(
    tmp_path: Path, renamed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    rename = Path.rename
    calls = iter(range(10))

    def power_cut(path: Path, target: str) -> Path:
        if next(calls) == renamed:
            raise OSError("power cut")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", power_cut)
    with pytest.raises(OSError, match="power cut"):
        set_store_aside(tmp_path, AT_S)
    assert why_failed(tmp_path) is not None
    monkeypatch.undo()
    set_store_aside(tmp_path, AT_S)
    assert not (tmp_path / DATABASE_NAME).exists()
    assert why_failed(tmp_path) is None
    assert sorted(store_files(tmp_path).values()) == sorted(["", *(f"old{suffix}" for suffix in PARTS)])


# --- marks ---
def test_why_a_store_has_failed_is_one_line(tmp_path: Path) -> None:
    make_store(tmp_path)
    assert why_failed(tmp_path) is None
    mark_failed(tmp_path, "disk I/O error\nat commit")
    assert why_failed(tmp_path) == "disk I/O error at commit"


def test_a_mark_without_a_store_means_nothing(tmp_path: Path) -> None:
    mark_failed(tmp_path, "x")
    assert why_failed(tmp_path) is None
    assert not (tmp_path / FAILED_MARK).exists()
    assert why_failed(tmp_path / "not there") is None


def test_a_mark_that_can_t_be_written_is_no_error(tmp_path: Path) -> None:
    mark_failed(tmp_path / "not there", "x")
