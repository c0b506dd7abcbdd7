"""Taking partitions up: whose rows are read, and when."""

from __future__ import annotations

from collections.abc import Collection

from twisted.internet.defer import Deferred

from tests.support.node_world import NodeWorld
from tq_node.store.api import OpenRow


def test_partitions_that_become_active_while_others_are_read_are_read_next_and_together() -> None:
    """Each read passes all rows by: one beside another would do that for nothing, and read the other's partitions again."""
    world = NodeWorld(1)
    world.choose(range(world.partitions), None)
    world.until(lambda: not world.queue.table.leading, "the node leads nothing")
    asked: list[list[int]] = []
    held: list[tuple[Deferred[list[OpenRow]], Deferred[list[OpenRow]]]] = []
    ask = world.store.open_rows

    def open_rows(
        after: tuple[int, str] | None, limit: int, partitions: Collection[int] | None = None
    ) -> Deferred[list[OpenRow]]:
        assert partitions is not None
        asked.append(sorted(partitions))
        held.append((Deferred(), ask(after, limit, partitions)))
        return held[-1][0]

    world.store.open_rows = open_rows  # type: ignore[method-assign]
    cores = world.queue.replication.driver.cores
    for partition in range(3):
        world.elect([partition])
        world.until(lambda: cores[partition].is_active, "the barrier is committed")  # noqa: B023 -- called at once
        world.until(lambda: bool(held), "rows are read")
    for _ in range(20):
        world.turn(0.01)
    assert asked == [[0]]
    while held:
        out, found = held.pop(0)
        found.chainDeferred(out)
        for _ in range(20):
            world.store.deliver()
            world.store.sync()
            world.turn(0.01)
    assert asked == [[0], [1, 2]]
    assert sorted(world.queue.table.leading) == [0, 1, 2]
