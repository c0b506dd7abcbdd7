"""The audit log in the reactor: it takes records at once, writes them soon, and outlives a full disk."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.chaos.faults import lacks_mount, mount_disk, unmount
from tests.conftest import LoggedErrors
from tests.unit.tq_node.store.test_audit_files import all_lines, assert_whole, record, whats
from tq_node import limits
from tq_node.errors import Busy
from tq_node.store.audit_log import AuditLog

Test = Callable[..., Coroutine[Any, Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
NOW_US = 1_790_000_000_000_000


def opened(directory: Path, **options: Any) -> AuditLog:
    return AuditLog(directory / "audit", "node-1", reactor, lambda: NOW_US, **options)


async def until(condition: Any) -> None:
    for _ in range(1_000):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it never became true")


@deferred
async def test_records_are_lines_soon_in_their_order_and_all_of_them_when_it_is_closed(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.write(record(0))
    await until(lambda: whats(all_lines(tmp_path)) == ["id=0"])
    for number in range(1, 5_000):
        log.write(record(number))
    await log.close()
    assert whats(all_lines(tmp_path)) == [f"id={n}" for n in range(5_000)]
    assert (log.lines_written(), log.lines_lost(), log.failing) == (5_000, 0, "")
    assert_whole(tmp_path)


@deferred
async def test_a_page_holds_what_was_written_before_it_was_asked_for(tmp_path: Path) -> None:
    log = opened(tmp_path, bytes_max=20_000)
    for number in range(200):
        log.write(record(number))
    page = await log.read("", None, 50)
    found = whats(page.lines)
    while page.next is not None:
        page = await log.read("", page.next, 50)
        found += whats(page.lines)
    assert found == [f"id={n}" for n in range(200)]
    await log.close()


@deferred
async def test_too_many_readers_are_refused_and_one_that_went_away_does_no_harm(tmp_path: Path) -> None:
    log = opened(tmp_path)
    reads = [log.read("", None, 10) for _ in range(limits.AUDIT_READS_MAX)]
    with pytest.raises(Busy):
        await log.read("", None, 10)
    reads[0].addErrback(lambda _: None).cancel()
    for read in reads[1:]:
        await read
    await log.read("", None, 10)
    await log.close()
    with pytest.raises(Busy):
        await log.read("", None, 10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if why := lacks_mount():
        pytest.skip(why)
    disk = tmp_path / "disk"
    mount_disk(disk, 1)
    yield disk
    unmount(disk)


@deferred
async def test_a_full_disk_is_said_nothing_waits_and_all_goes_on_where_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, logged_errors: LoggedErrors
) -> None:
    monkeypatch.setattr("tq_node.store.audit_log._RETRY_S", 0.05)
    monkeypatch.setattr(limits, "AUDIT_HELD_BYTES_MAX", 100_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 800_000)
    log = opened(small_disk)
    sent = 0
    while not log.failing:
        log.write(record(sent, "y" * 3_000))
        sent += 1
        if sent % 10 == 0:
            await deferLater(reactor, 0.02)
    assert "No space left" in log.failing
    while not log.lines_lost():
        log.write(record(sent, "y" * 3_000))
        sent += 1
    lost_at = sent
    for _ in range(100):
        log.write(record(sent, "y" * 3_000))
        sent += 1
    lost = log.lines_lost()
    assert lost == 1 + sent - lost_at
    ballast.unlink()
    await until(lambda: not log.failing)
    await until(lambda: log._taken_bytes == log._writer.written_bytes)
    log.write(record(sent))
    await log.close()
    assert_whole(small_disk)
    said = whats(all_lines(small_disk))
    assert f"{lost} lines were lost here, for they could not be written" in said
    assert len(said) == sent - lost + 1 + 1
    assert log.lines_lost() == lost


@deferred
async def test_to_close_waits_for_no_disk_that_stays_full(small_disk: Path, logged_errors: LoggedErrors) -> None:
    ballast = small_disk / "ballast"
    log = opened(small_disk)
    log.write(record(0))
    await until(lambda: all_lines(small_disk))
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"x" * 2_000_000)
    for number in range(1, 100):
        log.write(record(number, "y" * 3_000))
    await log.close()
    assert_whole(small_disk)
