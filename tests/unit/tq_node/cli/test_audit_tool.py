"""``tq-audit verify``: over files put aside, of several logs, with lines taken out, changed and cut off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tq_node import audit
from tq_node.audit import AuditRecord
from tq_node.cli.audit_tool import BROKEN, UNKNOWN, WHOLE, main
from tq_node.store.audit_files import AuditFiles

NOW_US = 1_790_000_000_000_000


def written(path: Path, *, count: int = 60, kept: int = 100) -> list[Path]:
    """The files of a log of some lines, the oldest first."""
    files = AuditFiles(path, "node-1", bytes_max=4_000, kept=kept)
    for number in range(count):
        files.append([AuditRecord(NOW_US + number, b"r", "ops", "::1", b"POST", b"/x", f"id={number}", 200)])
        while files.said:
            files.append([AuditRecord(NOW_US + number, what=files.said.pop(0))])
    files.close()
    return [*sorted(path.parent.glob(f"{path.name}.*")), path]


def said_by(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["verify", *map(str, arguments)])
    return code, capsys.readouterr().out


def take_out(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: number - 1] + lines[number:]))


def test_a_whole_log_is_whole_and_its_last_hash_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path / "audit")
    last = audit.hash_of(files[-1].read_bytes().splitlines()[-1])
    code, said = said_by(capsys, tmp_path / "audit")
    assert (code, f"60 lines in {len(files)} files" in said, f"has the hash {last}" in said) == (WHOLE, True, True)
    assert said_by(capsys, *reversed(files))[0] == WHOLE


def test_a_line_taken_out_is_found_in_whatever_file_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in range(len(written(tmp_path / "audit"))):
        directory = tmp_path / f"take-{place}"
        directory.mkdir()
        file = written(directory / "audit")[place]
        take_out(file, 3)
        code, said = said_by(capsys, directory / "audit")
        assert (code, f"{file}:3: does not follow {file}:2" in said) == (BROKEN, True), said


def test_a_whole_file_taken_out_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path / "audit")
    files[1].unlink()
    code, said = said_by(capsys, tmp_path / "audit")
    assert (code, f"{files[2]}:1: does not follow {files[0]}:" in said) == (BROKEN, True)


def test_the_oldest_file_taken_out_is_found_unless_the_log_deleted_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path / "audit")
    files[0].unlink()
    code, said = said_by(capsys, tmp_path / "audit")
    assert (code, f"{files[1]}:1: the lines before its first are missing" in said) == (BROKEN, True)
    (tmp_path / "b").mkdir()
    written(tmp_path / "b" / "audit", kept=3)
    assert said_by(capsys, tmp_path / "b" / "audit")[0] == WHOLE


def test_a_changed_line_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audit"
    written(path, count=5)
    path.write_bytes(path.read_bytes().replace(b"id=2", b"id=9"))
    code, said = said_by(capsys, path)
    assert (code, f"{path}:4: does not follow {path}:3" in said) == (BROKEN, True)


def test_lines_cut_off_at_the_end_are_found_by_a_hash_kept_from_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "audit"
    written(path, count=5)
    kept = audit.hash_of(path.read_bytes().splitlines()[-1])
    assert said_by(capsys, "--holds", kept.upper(), path)[0] == WHOLE
    take_out(path, 5)
    assert said_by(capsys, path)[0] == WHOLE
    code, said = said_by(capsys, "--holds", kept, path)
    assert (code, f"no line has the hash {kept}" in said) == (BROKEN, True)


def test_a_line_that_is_being_written_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audit"
    written(path, count=5)
    with path.open("ab") as file:
        file.write(b'{"at":"20')
    code, said = said_by(capsys, path)
    assert (code, "9 bytes of a line" in said) == (WHOLE, True)


def test_a_file_put_aside_that_was_cut_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path / "audit")
    files[0].write_bytes(files[0].read_bytes()[:-10])
    code, said = said_by(capsys, tmp_path / "audit")
    assert (code, f"{files[0]}: ends in the middle of a line" in said) == (BROKEN, True)


def test_each_of_several_logs_is_a_chain_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    written(first)
    written(second)
    code, said = said_by(capsys, first, second)
    assert (code, said.count(": whole")) == (WHOLE, 2)
    take_out(second, 1)
    code, said = said_by(capsys, first, second)
    assert (code, said.count(": whole")) == (BROKEN, 1)


def test_junk_of_any_length_is_said_and_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audit"
    written(path, count=2)
    with path.open("ab") as file:
        file.write(b"junk\n" * 1_000 + b"x" * 300_000 + b"\n")
    code, said = said_by(capsys, path)
    assert code == BROKEN
    assert len(said.splitlines()) < 110


def test_a_file_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none")]) == UNKNOWN
    assert "No such file" in capsys.readouterr().err


def test_it_runs_as_a_command(tmp_path: Path) -> None:
    written(tmp_path / "audit", count=3)
    command = [sys.executable, "-m", "tq_node.cli.audit_tool", "verify"]
    done = subprocess.run([*command, tmp_path / "audit"], capture_output=True, text=True, check=True)
    assert "3 lines in 1 files" in done.stdout
    wrong = subprocess.run([*command, "--holds", "x", "y"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "not the SHA-256" in wrong.stderr) == (UNKNOWN, True)
