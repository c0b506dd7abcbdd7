"""The files of an audit log: the chain goes on over rotation, a start, a full disk and a line that was cut short."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faults import lacks_mount, mount_disk, unmount
from tq_node import audit
from tq_node.audit import AuditRecord, Chain, Page, findings_of
from tq_node.store.audit_files import AuditFiles, AuditLocked, rotated_numbers

NOW_US = 1_790_000_000_000_000
SMALL = 4_000
"""A file of some ten lines."""


def record(number: int, what: str = "") -> AuditRecord:
    return AuditRecord(
        NOW_US + number, b"r-%d" % number, "ops", "10.0.0.1", b"POST", b"/x", what or f"id={number}", 200
    )


def append_all(files: AuditFiles, records: list[AuditRecord]) -> None:
    while records:
        records = records[files.append(records) :]


def opened(directory: Path, *, bytes_max: int = 1_000_000, kept: int = 1_000) -> AuditFiles:
    return AuditFiles(directory / "audit", "node-1", bytes_max=bytes_max, kept=kept)


def all_lines(directory: Path) -> list[bytes]:
    """Of all files, the oldest first."""
    paths = [directory / f"audit.{number:06}" for number in rotated_numbers(directory / "audit")]
    return [line for path in [*paths, directory / "audit"] if path.exists() for line in path.read_bytes().splitlines()]


def whats(lines: list[bytes]) -> list[str]:
    said = [audit.decode(line) for line in lines]
    return [one.what for one in said if one is not None]


def assert_whole(directory: Path) -> None:
    chain = Chain()
    assert not list(findings_of(chain, (("", line) for line in all_lines(directory))))
    assert chain.is_whole


def test_lines_are_written_in_order_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    files = opened(tmp_path)
    append_all(files, [record(n) for n in range(3)])
    files.close()
    assert whats(all_lines(tmp_path)) == ["id=0", "id=1", "id=2"]
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o600
    assert_whole(tmp_path)


def test_the_chain_goes_on_over_rotation_and_over_starts(tmp_path: Path) -> None:
    for start in range(5):
        files = opened(tmp_path, bytes_max=SMALL)
        append_all(files, [record(start * 20 + n) for n in range(20)])
        files.close()
    assert whats(all_lines(tmp_path)) == [f"id={n}" for n in range(100)]
    assert_whole(tmp_path)
    numbers = rotated_numbers(tmp_path / "audit")
    assert len(numbers) > 5
    assert numbers == list(range(1, len(numbers) + 1))
    assert all((tmp_path / f"audit.{n:06}").stat().st_size <= SMALL for n in numbers)


def test_it_goes_on_where_the_last_file_was_just_put_aside(tmp_path: Path) -> None:
    files = opened(tmp_path, bytes_max=SMALL)
    append_all(files, [record(n) for n in range(3)])
    files.close()
    (tmp_path / "audit").rename(tmp_path / "audit.000001")
    files = opened(tmp_path, bytes_max=SMALL)
    append_all(files, [record(3)])
    files.close()
    assert len(all_lines(tmp_path)) == 4
    assert_whole(tmp_path)


def test_the_oldest_files_are_deleted_and_the_log_says_so(tmp_path: Path) -> None:
    files = opened(tmp_path, bytes_max=SMALL, kept=2)
    for number in range(60):
        files.append([record(number)])
        while files.said:
            files.append([AuditRecord(NOW_US + number, what=files.said.pop(0))])
    files.close()
    assert len(rotated_numbers(tmp_path / "audit")) == 2
    assert [what for what in whats(all_lines(tmp_path)) if "deleted: audit.0000" in what]
    assert_whole(tmp_path)


def test_one_line_over_the_size_of_a_file_is_written_all_the_same(tmp_path: Path) -> None:
    files = opened(tmp_path, bytes_max=500)
    append_all(files, [record(n, "x" * 600) for n in range(3)])
    files.close()
    assert len(all_lines(tmp_path)) == 3
    assert_whole(tmp_path)


@pytest.mark.parametrize("cut", [1, 50])
def test_a_line_that_was_not_written_whole_is_cut_off_and_said(tmp_path: Path, cut: int) -> None:
    files = opened(tmp_path)
    append_all(files, [record(n) for n in range(3)])
    files.close()
    os.truncate(tmp_path / "audit", (tmp_path / "audit").stat().st_size - cut)
    files = opened(tmp_path)
    (said,) = files.said
    assert "had not been written whole" in said
    append_all(files, [record(3)])
    files.close()
    assert whats(all_lines(tmp_path)) == ["id=0", "id=1", "id=3"]
    assert_whole(tmp_path)


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "audit").write_bytes(b"x" * 200_000)
    with pytest.raises(OSError, match="too long for an audit log"):
        opened(tmp_path)
    assert (tmp_path / "audit").stat().st_size == 200_000


def test_two_processes_can_t_write_one_log(tmp_path: Path) -> None:
    files = opened(tmp_path)
    with pytest.raises(AuditLocked, match="written by another process"):
        opened(tmp_path)
    files.close()
    opened(tmp_path).close()


def test_no_link_and_no_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "audit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        opened(tmp_path)
    (tmp_path / "audit").unlink()
    os.mkfifo(tmp_path / "audit")
    with pytest.raises(OSError, match="no plain file"):
        opened(tmp_path)


# --- a full disk ---
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if why := lacks_mount():
        pytest.skip(why)
    disk = tmp_path / "disk"
    mount_disk(disk, 1)
    yield disk
    unmount(disk)


def test_a_full_disk_leaves_the_log_whole_and_it_goes_on_where_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 900_000)
    files = opened(small_disk)
    number = 0

    def until_full() -> str:
        nonlocal number
        while True:
            try:
                files.append([record(number, "y" * 3_000), record(number + 1, "z" * 3_000)])
            except OSError as why:
                return str(why)
            number += 2

    assert "No space left" in until_full()
    assert "No space left" in until_full()
    assert_whole(small_disk)
    before = len(all_lines(small_disk))
    assert before == number
    ballast.unlink()
    files.append([record(number)])
    files.close()
    assert len(all_lines(small_disk)) == before + 1
    assert_whole(small_disk)


def test_rotation_on_a_full_disk_is_tried_again(small_disk: Path) -> None:
    files = opened(small_disk, bytes_max=SMALL)
    append_all(files, [record(n) for n in range(8)])
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"x" * 2_000_000)
    with pytest.raises(OSError, match="No space left"):
        append_all(files, [record(8, "y" * 3_000)] * 4)
    subprocess.run(["rm", str(ballast)], check=True)
    append_all(files, [record(n) for n in range(8, 40)])
    files.close()
    assert_whole(small_disk)


# --- pages ---
def pages(files: AuditFiles, since: str, lines_max: int, bytes_max: int = 100_000) -> list[str]:
    found: list[str] = []
    place: tuple[int, int] | None = None
    while True:
        page: Page = files.page(since, place, lines_max, bytes_max)
        assert page.unreadable == 0
        found += whats(page.lines)
        if page.next is None:
            return found
        assert page.next != place
        place = page.next


@pytest.mark.parametrize("lines_max", [1, 7, 1_000])
def test_pages_show_each_line_once_from_an_instant_on(tmp_path: Path, lines_max: int) -> None:
    files = opened(tmp_path, bytes_max=SMALL)
    append_all(files, [record(n) for n in range(60)])
    for first in (0, 1, 13, 30, 59):
        assert pages(files, audit.instant(NOW_US + first), lines_max) == [f"id={n}" for n in range(first, 60)]
    assert pages(files, audit.instant(NOW_US + 60), lines_max) == []
    assert pages(files, audit.instant(NOW_US - 5), lines_max) == [f"id={n}" for n in range(60)]
    files.close()


def test_an_instant_is_found_in_a_long_file(tmp_path: Path) -> None:
    files = opened(tmp_path, bytes_max=50_000_000)
    append_all(files, [record(n, f"id={n} " + "x" * 500) for n in range(1_000)])
    for first in (0, 1, 500, 998, 999):
        found = files.page(audit.instant(NOW_US + first), None, 1, 1_000_000)
        while not found.lines:
            assert found.next is not None
            found = files.page(audit.instant(NOW_US + first), found.next, 1, 1_000_000)
        assert whats(found.lines)[0].startswith(f"id={first} ")
    files.close()


def test_a_page_is_bounded_by_its_bytes_and_goes_on(tmp_path: Path) -> None:
    files = opened(tmp_path, bytes_max=SMALL)
    append_all(files, [record(n) for n in range(60)])
    page = files.page("", None, 1_000, 2_000)
    assert sum(map(len, page.lines)) <= 2_000
    assert pages(files, "", 1_000, 2_000) == [f"id={n}" for n in range(60)]
    files.close()


def test_what_is_no_line_is_counted_and_passed_over(tmp_path: Path) -> None:
    files = opened(tmp_path)
    append_all(files, [record(0)])
    files.close()
    with (tmp_path / "audit").open("ab") as file:
        file.write(b"junk\n")
    files = opened(tmp_path)
    append_all(files, [record(1)])
    page = files.page("", None, 1_000, 100_000)
    assert (whats(page.lines), page.next, page.unreadable) == (["id=0", "id=1"], None, 1)
    files.close()


@pytest.mark.parametrize("place", [(0, 0), (99, 5), (1, 3), (1, 10**9)])
def test_a_place_that_no_page_gave_does_no_harm(tmp_path: Path, place: tuple[int, int]) -> None:
    files = opened(tmp_path)
    append_all(files, [record(n) for n in range(3)])
    assert len(files.page("", place, 1_000, 100_000).lines) <= 3
    files.close()
