"""F12: a node whose own syncs are slow says so, and is believed neither at once nor for ever."""

from __future__ import annotations

from tq_node.limits import COMMIT_SLOW_MS, DISK_SLOW_MS, DISK_WELL_MS
from tq_node.runtime.replication.disk_health import DiskHealth

LOOK_MS = 1_000


class Disk:
    """A node that always writes, on a disk whose commits take so long; it is looked at once a second."""

    def __init__(self) -> None:
        self.pace = DiskHealth()
        self.now_ms = 0

    def run(self, for_ms: int, commit_ms: int) -> list[int]:
        """When ``is_slow`` changed, counted from the beginning of this run."""
        began_ms, changes = self.now_ms, []
        self.pace.began(self.now_ms)
        ends_ms = self.now_ms + commit_ms
        while self.now_ms < began_ms + for_ms:
            self.now_ms += 10
            if self.now_ms >= ends_ms:
                self.pace.ended(self.now_ms)
                self.pace.began(self.now_ms)
                ends_ms = self.now_ms + commit_ms
            if self.now_ms % LOOK_MS == 0 and self.pace.look(self.now_ms):
                changes.append(self.now_ms - began_ms)
        self.pace.ended(self.now_ms)
        return changes


def test_a_fast_disk_is_never_slow() -> None:
    disk = Disk()
    assert disk.run(60_000, COMMIT_SLOW_MS // 2) == []
    assert not disk.pace.is_slow


def test_a_slow_disk_is_slow_after_a_while_and_well_again_after_another() -> None:
    """Also where one commit takes longer than from one look to the next, and each look sees another part of it."""
    for commit_ms in (COMMIT_SLOW_MS, 2 * COMMIT_SLOW_MS + 330, 7_000):
        disk = Disk()
        (after_ms,) = disk.run(30_000, commit_ms)
        assert DISK_SLOW_MS <= after_ms <= DISK_SLOW_MS + commit_ms + 2 * LOOK_MS
        assert disk.pace.is_slow
        (after_ms,) = disk.run(40_000, 20)
        assert DISK_WELL_MS <= after_ms <= DISK_WELL_MS + commit_ms + 2 * LOOK_MS
        assert not disk.pace.is_slow


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
        assert not disk.pace.look(disk.now_ms)
    assert disk.pace.is_slow
