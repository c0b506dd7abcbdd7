"""What a primary takes in while much waits for the disks, and when a slow disk has others lead (F12)."""

from __future__ import annotations

import pytest

from tq_node import limits
from tq_node.limits import COMMIT_SLOW_MS, DISK_SLOW_MS, DISK_WELL_MS
from tq_node.runtime.replication.overload import Admission, DiskHealth

FREE, MOST = limits.UNCOMMITTED_BYTES_FREE, limits.UNCOMMITTED_BYTES_MAX
LATE_MS = limits.UNCOMMITTED_MS_MAX + 1
LOOK_MS = 1_000


@pytest.mark.parametrize(
    ("waited_ms", "waiting_bytes", "is_large", "is_full"),
    [
        (0, MOST, True, False),
        (0, MOST + 1, True, True),
        (0, MOST + 1, False, True),
        (LATE_MS - 1, MOST, True, False),
        (LATE_MS, FREE + 1, True, True),
        (LATE_MS, FREE, True, False),
        (LATE_MS, MOST, False, False),
    ],
)
def test_full(waited_ms: int, waiting_bytes: int, is_large: bool, is_full: bool) -> None:
    admission = Admission()
    admission.waited(waited_ms)
    assert admission.is_full(waiting_bytes, is_large=is_large) is is_full


def test_it_is_over_when_nobody_waits_for_long_any_more() -> None:
    admission = Admission()
    admission.waited(LATE_MS)
    admission.waited(0)
    assert not admission.is_full(MOST, is_large=True)


class Disk:
    """A node that always writes, on a disk whose commits take so long; it is looked at once a second."""

    def __init__(self) -> None:
        self.health = DiskHealth()
        self.now_ms = 0

    def run(self, for_ms: int, commit_ms: int) -> list[int]:
        """When ``is_slow`` changed, counted from the beginning of this run."""
        began_ms, changes = self.now_ms, []
        self.health.began(self.now_ms)
        ends_ms = self.now_ms + commit_ms
        while self.now_ms < began_ms + for_ms:
            self.now_ms += 10
            if self.now_ms >= ends_ms:
                self.health.ended(self.now_ms)
                self.health.began(self.now_ms)
                ends_ms = self.now_ms + commit_ms
            if self.now_ms % LOOK_MS == 0 and self.health.look(self.now_ms):
                changes.append(self.now_ms - began_ms)
        self.health.ended(self.now_ms)
        return changes


def test_a_fast_disk_is_never_slow() -> None:
    disk = Disk()
    assert disk.run(60_000, COMMIT_SLOW_MS // 2) == []
    assert not disk.health.is_slow


def test_a_slow_disk_is_slow_after_a_while_and_well_again_after_another() -> None:
    """Also where one commit takes longer than from one look to the next, and each look sees another part of it."""
    for commit_ms in (COMMIT_SLOW_MS, 2 * COMMIT_SLOW_MS + 330, 7_000):
        disk = Disk()
        (after_ms,) = disk.run(30_000, commit_ms)
        assert DISK_SLOW_MS <= after_ms <= DISK_SLOW_MS + commit_ms + 2 * LOOK_MS
        assert disk.health.is_slow
        (after_ms,) = disk.run(40_000, 20)
        assert DISK_WELL_MS <= after_ms <= DISK_WELL_MS + commit_ms + 2 * LOOK_MS
        assert not disk.health.is_slow


def test_one_long_commit_is_no_slow_disk() -> None:
    disk = Disk()
    for _ in range(5):
        assert disk.run(DISK_SLOW_MS - LOOK_MS, DISK_SLOW_MS - 2 * LOOK_MS) == []
        assert disk.run(2 * LOOK_MS, 20) == []


def test_a_disk_that_hangs_is_slow_before_its_commit_ends() -> None:
    assert Disk().run(10 * DISK_SLOW_MS, 20 * DISK_SLOW_MS) == [DISK_SLOW_MS + COMMIT_SLOW_MS]


def test_a_disk_that_nobody_writes_to_stays_what_it_was() -> None:
    disk = Disk()
    disk.run(30_000, 2_000)
    for _ in range(100):
        disk.now_ms += LOOK_MS
        assert not disk.health.look(disk.now_ms)
    assert disk.health.is_slow
