"""A busy node sends its entries at once and holds its own write of them (R21); any other holds
nothing."""

from __future__ import annotations

import pytest

from tests.support.node_world import NodeWorld
from tq_node import limits
from tq_node.errors import OutcomeUnknown
from tq_node.facade import Submission
from tq_node.types import NodeId

HOLD_S = limits.GATHER_MS / 1000
PEER = NodeId("b" * 32)


@pytest.fixture
def world() -> NodeWorld:
    world = NodeWorld(1)
    world.until(lambda: not world.store._pending, "nothing is on its way")
    return world


def submit(world: NodeWorld, count: int) -> None:
    for _ in range(count):
        world.queue.submitter.submit(Submission("email", b"{}")).addErrback(lambda why: why.trap(OutcomeUnknown))
    world.turn()


def commits(world: NodeWorld) -> int:
    return len([batch for batch, _ in world.store._pending if batch.entries])


def test_who_has_few_callers_holds_nothing(world: NodeWorld) -> None:
    world.queue.replication.driver.connected(PEER)
    submit(world, limits.GATHER_CALLERS_MIN - 1)
    assert commits(world) == 1


def test_who_has_no_peers_holds_nothing(world: NodeWorld) -> None:
    driver = world.queue.replication.driver
    driver.connected(PEER)
    driver.disconnected(PEER)
    submit(world, limits.GATHER_CALLERS_MIN)
    assert commits(world) == 1


def test_a_busy_node_closes_its_entries_and_writes_them_a_moment_later(world: NodeWorld) -> None:
    driver = world.queue.replication.driver
    driver.connected(PEER)
    ends = {core.partition: core.last_sequence for core in driver.cores}
    submit(world, limits.GATHER_CALLERS_MIN)
    assert not commits(world)
    assert any(core.last_sequence > ends[core.partition] for core in driver.cores), "sent, if a copy were there"
    assert all(core.log.durable_sequence == ends[core.partition] for core in driver.cores), "and not durable (R8)"
    world.turn(HOLD_S)
    assert commits(world) == 1


def test_what_comes_while_it_holds_goes_along(world: NodeWorld) -> None:
    world.queue.replication.driver.connected(PEER)
    submit(world, limits.GATHER_CALLERS_MIN)
    submit(world, 3)
    world.turn(HOLD_S)
    assert commits(world) == 1
    world.store.sync()
    world.turn()
    assert not commits(world)


def test_callers_that_were_answered_or_given_up_count_no_more(world: NodeWorld) -> None:
    driver = world.queue.replication.driver
    driver.connected(PEER)
    for _ in range(3):
        submit(world, 5)
        world.turn(HOLD_S)
        world.store.sync()
        assert driver._callers == 0
    submit(world, 5)
    assert driver._callers == 5
    world.choose(range(world.partitions), None)
    assert driver._callers == 0
