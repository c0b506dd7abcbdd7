"""What each token has open: counted with each change, found again when a partition is taken up."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.support.node_world import NodeWorld
from tq_node.facade import OpenOfMaker, Submission
from tq_node.runtime.tasks.open_by_maker import OpenByMaker
from tq_node.types import TaskRow

STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["ann", "bob"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from([1, -1, "leave"]),
    )
)


@given(steps=STEPS)
def test_counts_are_those_of_the_tasks(steps: list[tuple[int, str, str, int | str]]) -> None:
    made, model = OpenByMaker(), Counter[tuple[int, str, str]]()
    for partition in range(3):
        made.lead(partition, {})
    for partition, maker, queue, what in steps:
        if isinstance(what, str):
            held = {key[1:]: count for key, count in model.items() if key[0] == partition and count}
            made.leave(partition)
            assert made.of("ann").tasks == sum(n for (p, m, _), n in model.items() if m == "ann" and p != partition)
            made.lead(partition, held)
        else:
            made.add(partition, maker, queue, what)
            model[partition, maker, queue] = max(0, model[partition, maker, queue] + what)
        for name in ("ann", "bob"):
            found = made.of(name)
            assert found.tasks == sum(count for (_, m, _), count in model.items() if m == name)
            assert sorted(found.queues) == sorted({q for (_, m, q), count in model.items() if m == name and count})


@pytest.fixture
def world() -> NodeWorld:
    return NodeWorld(1)


def submit(world: NodeWorld, count: int, maker: str, queue: str) -> list[str]:
    found: list[str] = []
    for _ in range(count):
        submission = Submission("never", b"1", queue=queue, made_by=maker, delay_us=10**12)
        world.queue.submitter.submit_new(submission, 0).addCallback(lambda one: found.append(one.task_id))  # type: ignore[union-attr]
    world.until(lambda: len(found) == count, "the tasks are committed")
    return found


def done(world: NodeWorld, answer: Deferred[TaskRow]) -> None:
    rows: list[TaskRow] = []
    answer.addCallback(rows.append)
    world.until(lambda: bool(rows), "the change is committed")


def open_of(world: NodeWorld, maker: str) -> tuple[int, set[str]]:
    found: OpenOfMaker = world.queue.table.made.of(maker)
    return found.tasks, set(found.queues)


def test_a_task_counts_from_its_submit_to_its_end_and_again_when_it_is_retried(world: NodeWorld) -> None:
    first, *_ = submit(world, 3, "ann", "mail")
    submit(world, 1, "ann", "shop")
    submit(world, 2, "bob", "mail")
    submit(world, 1, "", "mail")
    assert (open_of(world, "ann"), open_of(world, "bob")) == ((4, {"mail", "shop"}), (2, {"mail"}))
    assert open_of(world, "") == (0, set())
    done(world, world.queue.cancel(first))
    assert open_of(world, "ann") == (3, {"mail", "shop"})
    done(world, world.queue.retry(first))
    assert open_of(world, "ann") == (4, {"mail", "shop"})


def test_a_new_primary_finds_what_was_open(world: NodeWorld) -> None:
    """After a failover, and after a crash; long tasks too, whose submitted part lies elsewhere in the store."""
    first, *_ = submit(world, 12, "ann", "mail")
    submit(world, 3, "bob", "shop")
    done(world, world.queue.cancel(first))
    world.choose([0, 1], None)
    world.until(lambda: len(world.queue.table.leading) == 2, "two are led no more")
    assert open_of(world, "ann")[0] < 11
    world.restore()
    world.until(lambda: not world.queue.activation.waiting(), "they are led again")
    assert (open_of(world, "ann"), open_of(world, "bob")) == ((11, {"mail"}), (3, {"shop"}))
    world.crash()
    assert (open_of(world, "ann"), open_of(world, "bob")) == ((11, {"mail"}), (3, {"shop"}))
