"""The real queue over the memory model of the store: how much one commit carries, and what is refused while much waits."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.node_world import NodeWorld
from tq_node import limits
from tq_node.errors import Busy
from tq_node.facade import Accepted, Submission
from tq_node.limits import MIB

PARTITIONS = 16
PAYLOAD_BYTES = MIB // 2
EACH_BYTES_MAX = 6 * PAYLOAD_BYTES
"""More than any partition gets of what is submitted here."""


@pytest.fixture
def world() -> NodeWorld:
    return NodeWorld(1, partitions=PARTITIONS, cache_bytes=64 * MIB)


def tasks(count: int, payload_bytes: int = PAYLOAD_BYTES, name: str = "t") -> list[Submission]:
    payload = b'"%b"' % (b"x" * payload_bytes)
    return [Submission("email", payload, id=f"{name}{number}", made=True) for number in range(count)]


def carried(world: NodeWorld) -> Counter[int]:
    """Bytes of entries by partition in the commit that is on its way; nothing: there is none."""
    assert len(world.store._pending) <= 1, "one commit at a time"
    found: Counter[int] = Counter()
    for batch, _ in world.store._pending:
        for entry in batch.entries:
            found[entry.partition] += len(entry.payload)
    return found


def test_a_commit_carries_so_many_bytes_and_each_partition_has_its_turn(world: NodeWorld) -> None:
    answer = world.queue.submitter.submit_many(tasks(32))
    world.turn()
    seen: list[Counter[int]] = []
    while commit := carried(world):
        seen.append(commit)
        world.store.sync()
    largest = max(max(commit.values()) for commit in seen)
    assert largest < EACH_BYTES_MAX
    assert all(commit.total() <= limits.COMMIT_BYTES_AIM + largest for commit in seen)
    assert len(seen) > 2
    turns = Counter(partition for commit in seen for partition in commit)
    assert set(turns.values()) == {1}, "nobody has two turns before all have had one"
    assert all(isinstance(one, Accepted) for one in world.heard(answer))


def test_a_small_task_does_not_wait_for_all_that_came_before_it(world: NodeWorld) -> None:
    """Each commit has room for those that had none in the one before, whatever comes in meanwhile."""
    world.queue.submitter.submit_many(tasks(32))
    world.turn()
    first = set(carried(world))
    world.store.sync()
    heard: list[Accepted] = []
    number = next(n for n in range(100, 1_000) if world.queue.table.partition_of(f"t{n}") in first)
    world.queue.submitter.submit(Submission("email", b"1", id=f"t{number}", made=True)).addCallback(heard.append)
    commits = 0
    while not heard:
        world.turn()
        assert carried(world), "it is on its way"
        world.store.sync()
        commits += 1
    assert commits <= PARTITIONS


def test_while_a_commit_takes_long_batches_are_refused_and_small_tasks_are_not(world: NodeWorld) -> None:
    many = limits.UNCOMMITTED_BYTES_FREE // PAYLOAD_BYTES + 1
    world.queue.submitter.submit_many(tasks(many))
    world.turn()  # it is sealed; the disk has not answered
    world.turn(limits.UNCOMMITTED_MS_MAX / 1000 + 0.1)
    world.queue.replication.driver.tick_all()
    refused: list[object] = []
    world.queue.submitter.submit_many(tasks(2, 10, "a")).addErrback(lambda why: refused.append(why.check(Busy)))
    world.queue.submitter.submit(tasks(1, limits.LARGE_BODY_BYTES + 1, "b")[0]).addErrback(
        lambda why: refused.append(why.check(Busy))
    )
    assert refused == [Busy, Busy]
    small = world.queue.submitter.submit(Submission("email", b"1", id="small", made=True))
    world.until(lambda: bool(small.called), "the small one is durable")
    assert isinstance(world.heard(small), Accepted)
    world.turn(0.1)
    world.queue.replication.driver.tick_all()
    again = world.queue.submitter.submit_many(tasks(1, 20, "c"))
    world.until(lambda: bool(again.called), "a batch is taken again")


def test_past_the_bound_all_are_refused(world: NodeWorld) -> None:
    world.queue.submitter.submit_many(tasks(limits.UNCOMMITTED_BYTES_MAX // PAYLOAD_BYTES + 1 + PARTITIONS))
    world.turn()  # an entry that is still open, one of each partition, is not counted yet
    refused: list[object] = []
    small = Submission("email", b"1", id="small", made=True)
    world.queue.submitter.submit(small).addErrback(lambda why: refused.append(why.check(Busy)))
    assert refused == [Busy]
    world.until(lambda: not world.store._pending and world.queue.uncommitted_bytes() == 0, "all is durable")
    again = world.queue.submitter.submit(small)
    world.until(lambda: bool(again.called), "it is taken once there is room")
