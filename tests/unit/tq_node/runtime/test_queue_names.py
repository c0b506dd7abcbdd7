"""How many queues a node takes tasks for: names that a caller makes up must not keep others out, nor fill the node's memory."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.support.node_world import NodeWorld
from tq_node import limits
from tq_node.errors import Busy, InvalidField, NotFinal, TaskPurged, TaskQueueError
from tq_node.facade import Accepted, Submission
from tq_node.runtime.tasks import submit as submitting
from tq_node.runtime.tasks.task_table import OTHER_QUEUES
from tq_node.types import State

FEW = 3


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> NodeWorld:
    monkeypatch.setattr(limits, "QUEUES_MAX", FEW)
    return NodeWorld(1)


def answer(world: NodeWorld, deferred: Deferred[Any]) -> Any:
    found: list[Any] = []
    deferred.addBoth(found.append)
    world.until(lambda: bool(found), "an answer")
    return found[0].value if isinstance(found[0], Failure) else found[0]


def task(queue: str | None, **fields: Any) -> Submission:
    return Submission(type="email", payload=b"1", queue=queue, delay_us=300_000_000_000, **fields)


def submit(world: NodeWorld, queue: str | None, **fields: Any) -> Accepted | TaskQueueError:
    one = task(queue, **fields)
    submitter = world.queue.submitter
    submitted = submitter.submit_new(one, 0) if one.id is None else submitter.submit(one)
    assert submitted is not None, "it leads all partitions"
    result: Accepted | TaskQueueError = answer(world, submitted)
    return result


def fill(world: NodeWorld) -> list[str]:
    accepted = [submit(world, f"q{number}") for number in range(FEW)]
    return [one.task_id for one in accepted if isinstance(one, Accepted)]


def test_a_name_too_many_is_refused_by_name_and_not_with_soon(world: NodeWorld) -> None:
    fill(world)
    refused = submit(world, "newcomer")
    assert isinstance(refused, InvalidField)
    assert (refused.field, refused.status, refused.retry_after_s) == ("/queue", 422, None)
    assert "'newcomer'" in refused.detail


def test_the_bound_holds_within_a_batch(world: NodeWorld) -> None:
    batch = [task(f"q{number % 10}") for number in range(20)]
    world.queue.submitter.name_many(batch)
    results = answer(world, world.queue.submitter.submit_many(batch))
    taken = [isinstance(result, Accepted) for result in results]
    assert taken == ([True] * FEW + [False] * (10 - FEW)) * 2
    assert all(isinstance(result, InvalidField) for result in results if not isinstance(result, Accepted))


def test_default_and_those_in_use_and_those_of_handlers_are_never_refused(world: NodeWorld) -> None:
    settings = world.queue.submitter._settings
    world.queue.submitter._settings = msgspec.structs.replace(settings, declared_queues=lambda: frozenset({"mail"}))
    fill(world)
    for queue in (None, "default", "mail", "q0"):
        assert isinstance(submit(world, queue), Accepted), queue
    assert isinstance(submit(world, "email"), InvalidField)


def test_a_queue_without_open_tasks_makes_room_at_once(world: NodeWorld) -> None:
    ids = fill(world)
    answer(world, world.queue.cancel(ids[0]))
    assert isinstance(submit(world, "newcomer"), Accepted)
    # The ended task is still there, and counts again once it is sent back; but the queue it is in had to make room.
    assert isinstance(submit(world, "q0"), InvalidField)
    row = answer(world, world.queue.retry(ids[0]))
    assert row.state is State.PENDING
    assert isinstance(submit(world, "q0"), Accepted)


def test_what_is_led_elsewhere_does_not_count(world: NodeWorld) -> None:
    fill(world)
    world.choose(range(world.partitions), None)
    assert world.queue.table.open_queues == {}
    assert world.queue.table.open_tasks == 0
    world.restore()
    world.until(lambda: not world.queue.activation.waiting(), "it leads again")
    assert world.queue.table.open_queues == {f"q{number}": 1 for number in range(FEW)}
    assert isinstance(submit(world, "newcomer"), InvalidField)


def test_names_of_queues_whose_tasks_have_ended_are_not_kept_for_each(
    world: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "QUEUE_NAMES_MAX", 2 * FEW)
    table = world.queue.table
    ids = []
    for number in range(60):
        accepted = submit(world, f"q{number}", id=f"own-{number}")
        assert isinstance(accepted, Accepted)
        answer(world, world.queue.cancel(accepted.task_id))
        ids.append(accepted.task_id)
    assert all(len(counts) <= 2 * FEW + 1 for counts in table.partition_counts.values())

    def cancelled() -> int:
        return sum(row[State.CANCELLED] for counts in table.partition_counts.values() for row in counts.values())

    assert cancelled() == 60
    for number, task_id in enumerate(ids):
        answer(world, world.queue.purge(task_id))
        assert cancelled() == 59 - number
    rows = [row for counts in table.partition_counts.values() for row in counts.values()]
    assert all(count == 0 for row in rows for count in row)
    assert any(OTHER_QUEUES in counts for counts in table.partition_counts.values())


def test_a_flood_in_one_queue_leaves_room_for_few_in_others(world: NodeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_TASKS_MAX", 20)
    monkeypatch.setattr(limits, "OPEN_TASKS_FEW", 2)
    monkeypatch.setattr(submitting, "_OPEN_TASKS_FOR_ALL", 14)
    flood = [task("flood") for _ in range(30)]
    world.queue.submitter.name_many(flood)
    results = answer(world, world.queue.submitter.submit_many(flood))
    assert [isinstance(result, Accepted) for result in results] == [True] * 14 + [False] * 16
    refused = results[-1]
    assert isinstance(refused, Busy)
    assert refused.retry_after_s == limits.OPEN_TASKS_FULL_RETRY_S
    assert [type(submit(world, "mail")) for _ in range(3)] == [Accepted, Accepted, Busy]
    assert [type(submit(world, "shop")) for _ in range(3)] == [Accepted, Accepted, Busy]


class TestPurge:
    def test_a_task_that_has_ended_is_forgotten_and_its_id_is_not(self, world: NodeWorld) -> None:
        accepted = submit(world, "q0", id="own", content_hash=b"a")
        assert isinstance(accepted, Accepted)
        refused = answer(world, world.queue.purge("own"))
        assert isinstance(refused, NotFinal)
        assert refused.task_id == "own"
        answer(world, world.queue.cancel("own"))
        row = answer(world, world.queue.purge("own"))
        assert (row.id, row.state) == ("own", State.CANCELLED)
        for again in (world.queue.purge("own"), world.queue.reads.get("own"), world.queue.retry("own")):
            assert isinstance(answer(world, again), TaskPurged)
        assert isinstance(submit(world, "q0", id="own", content_hash=b"a"), TaskPurged)
        world.settle()
        assert sum(world.queue.reads.stats().primary) == 0

    def test_it_outlives_a_crash(self, world: NodeWorld) -> None:
        submit(world, "q0", id="own")
        answer(world, world.queue.cancel("own"))
        answer(world, world.queue.purge("own"))
        world.crash()
        assert isinstance(answer(world, world.queue.reads.get("own")), TaskPurged)

    def test_one_that_runs_is_not_purged(self, world: NodeWorld) -> None:
        one = Submission(type="email", payload=b"1", id="own")
        answer(world, world.queue.submitter.submit(one))
        (claim,) = answer(world, world.queue.claims.claim(1))
        assert claim.task_id == "own"
        assert isinstance(answer(world, world.queue.purge("own")), NotFinal)
