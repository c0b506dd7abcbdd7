"""One snapshot at a time, and none into the disk's reserve."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tq_node.errors import Busy, DiskReserve, StoreBroken
from tq_node.facade import TypeDefaults
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.snapshot_taker import SnapshotTaker
from tq_node.types import NodeId

SETTINGS = QueueSettings(
    defaults_of=lambda task_type: TypeDefaults(),
    node_id=NodeId("n"), node_name="n", incarnation=1, seed=1, random_bytes=bytes, draw=lambda: 0.5,
    disk_free_bytes_min=100, snapshot_dir="/there", snapshots_kept=2,
)  # fmt: skip


class Disk:
    """A store of 50 bytes, whose copies are written when the test says so."""

    def __init__(self) -> None:
        self.free = {"/there": 150}
        self.asked: list[tuple[str, str, int]] = []
        self.making: Deferred[Sequence[str]] = Deferred()

    def bytes_on_disk(self) -> int:
        return 50

    def disk_free_bytes(self, directory: str | None = None) -> int:
        return self.free[directory or ""]

    def backup(self, directory: str, name: str, kept: int) -> Deferred[Sequence[str]]:
        self.asked.append((directory, name, kept))
        self.making = Deferred()
        return self.making


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def taker(disk: Disk) -> SnapshotTaker:
    store: Any = disk
    clock: Any = SimpleNamespace(wall_us=lambda: 7)
    return SnapshotTaker(store, clock, SETTINGS)


def failure(taken: Deferred[Any]) -> BaseException:
    seen: list[Any] = []
    taken.addErrback(seen.append)
    assert seen
    return seen[0].value  # type: ignore[no-any-return]


def test_one_at_a_time_and_the_next_one_after_it(taker: SnapshotTaker, disk: Disk) -> None:
    first, paths = taker.take(), ["/there/snapshot-7.sqlite3"]
    assert isinstance(failure(taker.take()), Busy)
    assert disk.asked == [("/there", "snapshot-7.sqlite3", 2)]
    disk.making.callback(paths)
    assert first.result == paths
    second = taker.take()
    disk.making.errback(OSError("no"))
    assert isinstance(failure(second), DiskReserve)
    third = taker.take()
    disk.making.errback(StoreBroken("gone"))
    assert isinstance(failure(third), StoreBroken)
    assert len(disk.asked) == 3


def test_the_reserve_of_the_disk_that_they_go_to_is_kept(taker: SnapshotTaker, disk: Disk) -> None:
    disk.free["/there"] = 149
    assert isinstance(failure(taker.take()), DiskReserve)
    assert disk.asked == []
