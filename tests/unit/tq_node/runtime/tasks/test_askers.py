"""What a primary lets an asker know: of its queues, of its own tasks, and of nothing that is neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.support.node_world import Nobody, NodeWorld
from tq_node.errors import IdConflict, NoSuchTask, NotFinal, NotRetryable, TaskPurged
from tq_node.facade import Accepted, EventBatch, Read, Submission
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.routing.peer_server import PeerServer, handlers_of
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.tokens import Asker
from tq_node.types import State, TaskRow
from tq_node.wire.codec import ForwardedCall

ANN = Asker("ann", own_only=True)
BOB = Asker("bob", own_only=True)
MAIL = Asker("mailer", queues=("mail", "news"))
ANN_IN_MAIL = Asker("ann", queues=("mail",), own_only=True)
OPERATOR = Asker("operator")
CHANGES: dict[str, Callable[[LocalQueue, str, Asker | None], Deferred[TaskRow]]] = {
    "cancel": LocalQueue.cancel,
    "retry": LocalQueue.retry,
    "purge": LocalQueue.purge,
}


@pytest.fixture
def world() -> NodeWorld:
    return NodeWorld(1)


def answer(world: NodeWorld, deferred: Deferred[Any]) -> Any:
    found: list[Any] = []
    deferred.addBoth(found.append)

    def is_there() -> bool:
        world.store.deliver()
        return bool(found)

    world.until(is_there, "an answer")
    return found[0].value if isinstance(found[0], Failure) else found[0]


def submit(world: NodeWorld, task_id: str, queue: str = "mail", made_by: str = "ann", **fields: Any) -> Any:
    one = Submission("email", b'"hi"', id=task_id, queue=queue, delay_us=300_000_000_000, made_by=made_by, **fields)
    return answer(world, world.queue.submitter.submit(one))


@pytest.mark.parametrize(
    ("asker", "queue", "made_by", "may"),
    [
        (ANN, "mail", "ann", True),
        (ANN, "other", "ann", True),
        (BOB, "mail", "ann", False),
        (ANN, "mail", "", False),
        (MAIL, "mail", "ann", True),
        (MAIL, "news", "", True),
        (MAIL, "mails", "mailer", False),
        (Asker("none", queues=()), "mail", "none", False),
        (ANN_IN_MAIL, "mail", "ann", True),
        (ANN_IN_MAIL, "news", "ann", False),
        (ANN_IN_MAIL, "mail", "bob", False),
        (OPERATOR, "any", "bob", True),
    ],
)
@pytest.mark.parametrize("is_resident", [True, False])
def test_what_an_asker_may_know_it_reads_and_changes(
    world: NodeWorld, asker: Asker, queue: str, made_by: str, may: bool, is_resident: bool
) -> None:
    assert asker.is_restricted is (asker is not OPERATOR)
    assert isinstance(submit(world, "a", queue, made_by), Accepted)
    if not is_resident:  # a scheduled task leaves the memory once it is stored
        world.until(lambda: world.queue.table.find("a") is None, "it is in the store alone")
    read = answer(world, world.queue.reads.get("a", asker=asker))
    copy = answer(world, world.queue.reads.get("a", local=True, asker=asker))
    if may:
        assert isinstance(read, Read)
        assert isinstance(copy, Read)
        assert read.row.spec.made_by == copy.row.spec.made_by == made_by
        assert answer(world, world.queue.cancel("a", asker)).state is State.CANCELLED
        assert answer(world, world.queue.retry("a", asker)).state is State.PENDING
        assert answer(world, world.queue.cancel("a", asker)).state is State.CANCELLED
        assert answer(world, world.queue.purge("a", asker)).id == "a"
        return
    assert type(read) is type(copy) is NoSuchTask
    for change in CHANGES.values():
        refused = answer(world, change(world.queue, "a", asker))
        assert type(refused) is NoSuchTask
        assert refused.detail == answer(world, change(world.queue, "there never was one", asker)).detail
    assert answer(world, world.queue.reads.get("a")).row.rev == 1, "nothing was changed"


@pytest.mark.parametrize("change", CHANGES)
def test_of_a_purged_task_nobody_restricted_hears(world: NodeWorld, change: str) -> None:
    submit(world, "a")
    answer(world, world.queue.cancel("a"))
    answer(world, world.queue.purge("a"))
    for asker, error in ((None, TaskPurged), (OPERATOR, TaskPurged), (ANN, NoSuchTask), (MAIL, NoSuchTask)):
        assert type(answer(world, CHANGES[change](world.queue, "a", asker))) is error
        assert type(answer(world, world.queue.reads.get("a", asker=asker))) is error
        local = answer(world, world.queue.reads.get("a", local=True, asker=asker))
        assert type(local) is error


def test_a_refusal_by_the_tasks_state_tells_only_those_who_may_know(world: NodeWorld) -> None:
    submit(world, "a")
    assert type(answer(world, world.queue.retry("a", ANN))) is NotRetryable
    assert type(answer(world, world.queue.purge("a", ANN))) is NotFinal
    assert type(answer(world, world.queue.retry("a", BOB))) is NoSuchTask
    assert type(answer(world, world.queue.purge("a", BOB))) is NoSuchTask


def test_who_waits_for_a_foreign_task_hears_at_once_that_there_is_none(world: NodeWorld) -> None:
    submit(world, "a")
    assert type(answer(world, world.queue.reads.get("a", wait_s=60.0, asker=BOB))) is NoSuchTask
    own = world.queue.reads.get("a", wait_s=60.0, asker=ANN)
    answer(world, world.queue.cancel("a"))
    assert answer(world, own).row.state is State.CANCELLED


def test_the_id_of_another_tokens_task_is_taken(world: NodeWorld) -> None:
    assert submit(world, "a", own_only=True).created
    again = submit(world, "a", own_only=True)
    assert (again.created, again.state) == (False, State.SCHEDULED)
    assert type(submit(world, "a", made_by="bob", own_only=True)) is IdConflict
    assert not submit(world, "a", made_by="operator").created, "who sees all tasks is answered as ever"


def test_the_id_of_a_task_in_another_queue_is_taken(world: NodeWorld) -> None:
    submit(world, "a", "shop")
    assert type(submit(world, "a", "mail", queue_only=True)) is IdConflict
    assert not submit(world, "a", "shop", queue_only=True).created
    assert not submit(world, "a", "mail").created, "what the content was is not the queue's to say"


def test_tasks_are_counted_by_queue(world: NodeWorld) -> None:
    for number in range(12):
        submit(world, f"t{number}", ("mail", "news", "shop")[number % 3])
    answer(world, world.queue.cancel("t0"))
    world.until(lambda: world.queue.reads.stats().primary[State.CANCELLED] == 1, "it is counted")
    found = world.queue.reads.stats_of(("mail", "news", "none"))
    assert (found.primary[State.SCHEDULED], found.primary[State.CANCELLED]) == (7, 1)
    assert sum(found.primary) == 8
    assert found.replica == [0] * len(State)
    assert found.led == world.queue.reads.stats().led
    assert sum(world.queue.reads.stats_of(()).primary) == 0


def test_an_event_says_whose_task_it_is_to_nodes_that_know_of_it(world: NodeWorld) -> None:
    first = world.queue.events.next_id
    submit(world, "a")
    answer(world, world.queue.cancel("a"))
    world.until(lambda: world.queue.events.next_id == first + 2, "both are told")
    server = PeerServer(
        handlers_of(lambda: world.queue, world.queue.claims._clock, lambda _: None, lambda: None, Nobody)
    )
    body = calls.EVENTS.call.encode(calls.EventsAfter(first - 1, 1.0))
    asked = [ForwardedCall(kind.name, body) for kind in (calls.EVENTS_WITH_MAKERS, calls.EVENTS)]
    whole, earlier = answer(world, server.serve(asked))
    told = calls.EVENTS_WITH_MAKERS.result.decode(whole.body)
    assert [change.made_by for change in told.transitions] == ["ann", "ann"]
    older = calls.EVENTS.result.decode(earlier.body)
    assert [len(change) for change in older.transitions] == [8, 8], "what an earlier release expects, to the value"
    nameless = [change._replace(made_by="") for change in told.transitions]
    assert calls.events_of(older) == EventBatch(first, nameless)


@pytest.mark.parametrize("by", ["", "chief"])
def test_a_node_that_another_tells_to_stop_says_by_whom(world: NodeWorld, by: str) -> None:
    told: list[str] = []
    server = PeerServer(
        handlers_of(lambda: world.queue, world.queue.claims._clock, lambda _: None, lambda: told.append("stop"), Nobody)
    )
    order = calls.SHUTDOWN.call.encode(calls.Shutdown(by) if by else calls.NOTHING)
    with capturedLogs() as logged:
        (answered,) = answer(world, server.serve([ForwardedCall(calls.SHUTDOWN.name, order)]))
    assert (answered.error, told) == ("", ["stop"])
    assert [event["by"] for event in logged if event.get("event") == "ordered"] == [by] * bool(by)
