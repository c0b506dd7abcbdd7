"""A batch handed in over several turns becomes durable in one commit; nobody else waits for it."""

from __future__ import annotations

from unittest import mock

import pytest
from twisted.internet.task import Clock

from tests.support import node_world
from tests.support.node_world import ME, NodeWorld
from tq_node import limits
from tq_node.facade import Accepted, Submission
from tq_node.partition.entries import EpochStart, Horizon, make_entry
from tq_node.partition.messages import Append, Sync
from tq_node.partition.record import Record
from tq_node.types import NodeId

PARTITIONS = 16
PEER = NodeId("b" * 32)


class Turns(Clock):
    """As a reactor: what is asked for in one turn happens in the next, not in the same."""

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        due = [call for call in self.calls if call.getTime() <= self.rightNow]
        for call in due:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


@pytest.fixture
def world() -> NodeWorld:
    with mock.patch.object(node_world, "VirtualClock", Turns):
        world = NodeWorld(1, partitions=PARTITIONS)
    world.until(lambda: not world.store._pending, "nothing is on its way")
    return world


def tasks(count: int) -> list[Submission]:
    return [Submission("email", b"{}") for _ in range(count)]


def commits(world: NodeWorld) -> int:
    return len([batch for batch, _ in world.store._pending if batch.entries])


def test_the_parts_of_a_batch_share_a_commit(world: NodeWorld) -> None:
    before = world.queue.replication.driver.commits
    answers = []
    for part in range(4):
        answers.append(world.queue.submitter.submit_many(tasks(250), has_more=part < 3))
        assert not commits(world)
        world.turn()
    assert commits(world) == 1
    world.store.sync()
    assert all(isinstance(one, Accepted) for answer in answers for one in world.heard(answer))
    assert world.queue.replication.driver.commits == before + 1


def test_what_gathers_while_the_disk_is_busy_is_not_torn_when_it_is_free(world: NodeWorld) -> None:
    world.queue.submitter.submit(tasks(1)[0])
    world.turn()
    world.queue.submitter.submit_many(tasks(250), has_more=True)
    world.store.sync()
    assert not commits(world), "the rest is still to come"
    last = world.queue.submitter.submit_many(tasks(250))
    world.turn()
    assert commits(world) == 1
    world.store.sync()
    assert world.heard(last)


def test_somebody_elses_task_leaves_in_the_next_turn(world: NodeWorld) -> None:
    world.queue.submitter.submit_many(tasks(250), has_more=True)
    world.turn()
    small = world.queue.submitter.submit(tasks(1)[0])
    world.turn()
    assert commits(world) == 1
    world.store.sync()
    assert world.heard(small)


def test_a_task_that_came_first_does_not_wait_either(world: NodeWorld) -> None:
    world.queue.submitter.submit(tasks(1)[0])
    world.queue.submitter.submit_many(tasks(250), has_more=True)
    world.turn()
    assert commits(world) == 1


def test_a_caller_that_never_goes_on_holds_up_nothing_for_long(world: NodeWorld) -> None:
    answer = world.queue.submitter.submit_many(tasks(250), has_more=True)
    for _ in range(limits.BATCH_TURNS_GATHERED_MAX):
        world.turn()
        assert not commits(world)
    world.turn()
    assert commits(world) == 1
    world.store.sync()
    assert world.heard(answer)


def test_a_stop_waits_for_what_gathers(world: NodeWorld) -> None:
    answer = world.queue.submitter.submit_many(tasks(250), has_more=True)
    idle = world.queue.replication.driver.idle()
    assert not idle.called
    world.until(lambda: bool(idle.called), "all is written")
    assert world.heard(answer)


def test_a_message_of_a_peer_tears_no_batch(world: NodeWorld) -> None:
    """Nothing is for the disk but the batch: a commit of the rows behind the log would have it wait for one more sync."""
    driver = world.queue.replication.driver
    world.queue.submitter.submit(tasks(1)[0])
    world.turn()
    world.store.sync()
    before = driver.commits
    world.queue.submitter.submit_many(tasks(10), has_more=True)
    driver.receive(PEER, [])
    assert driver.commits == before
    world.queue.submitter.submit_many(tasks(10))
    world.turn()
    assert commits(world) == 1


def test_what_this_node_stores_for_others_does_not_wait_for_a_batch(world: NodeWorld) -> None:
    driver = world.queue.replication.driver
    epoch = world.records[0].epoch + 1
    world.records[0] = Record(epoch, epoch, PEER, (ME, PEER), (ME, PEER), 1, frozenset([ME, PEER]))
    world.queue.follow(world.records, {ME: "node-1", PEER: "node-2"})
    driver.connected(PEER)
    core = driver.cores[0]
    driver.receive(PEER, [Sync(0, epoch, tuple(core.log.epochs.runs), 1, core.last_sequence)])
    world.until(lambda: not world.store._pending, "the new epoch is followed")
    world.queue.submitter.submit(tasks(1)[0])
    world.turn()
    world.queue.submitter.submit_many(tasks(10), has_more=True)
    entry = make_entry(0, core.last_sequence + 1, epoch, [EpochStart(epoch)])
    driver.receive(PEER, [Append(0, epoch, core.last_sequence, (entry,), 0)])
    world.store.sync()  # the disk is free
    written = [(record.partition, record.sequence) for batch, _ in world.store._pending for record in batch.entries]
    assert written == [(0, entry.sequence)]


def test_a_held_write_waits_for_no_batch(world: NodeWorld) -> None:
    """R21: it was sent, so it is written once its moment is over, though what nobody waits for was all that was held."""
    driver = world.queue.replication.driver
    driver.connected(PEER)
    driver._callers = limits.GATHER_CALLERS_MIN  # they wait for acknowledgements of others
    driver.propose(0, Horizon(1), 8)
    world.turn()
    assert not commits(world)
    world.queue.submitter.submit_many(tasks(10), has_more=True)
    world.turn(limits.GATHER_MS / 1000)
    assert commits(world) == 1
