"""Who asks goes along to the primary, from whichever node; and below the access level nothing is said that an earlier release
would take for less than it is. Three whole nodes in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.costs.three_nodes import AS_WIRED
from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.node import SimulatedNode, composition
from tests.simulation.cluster.world import ClusterWorld
from tq_node.cluster import controller
from tq_node.cluster.commands import AnyCommand, PauseQueue
from tq_node.cluster.records import ACCESS_LEVEL
from tq_node.errors import IdConflict, NoSuchTask, TaskPurged, Upgrading
from tq_node.facade import EventBatch, ListQuery, Submission
from tq_node.node import member
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.control.registration import Outcome
from tq_node.runtime.routing.cluster_queue import ClusterQueue
from tq_node.tokens import Asker
from tq_node.types import NodeId, PauseEntry, State

BORN_US_MAX = WAIT_US = 60_000_000
LOOK_US = 1_000
IDS = [f"task-of-ann-{number}" for number in range(12)]
ANN, BOB = Asker("ann", own_only=True), Asker("bob", own_only=True)
MAILER, SHOP = Asker("mailer", ("mail",)), Asker("shop", ("shop", "news"))
OPERATOR = Asker("operator")


@implementer(ILogObserver)
class Log:
    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)


class Three:
    def __init__(self, world: ClusterWorld, log: Log) -> None:
        self.world = world
        self.log = log
        world.nodes = [SimulatedNode(world, index, 8, 3) for index in range(3)]
        world.be_born()
        self.world._until(self.world._is_whole, BORN_US_MAX, "the copies are there")

    @property
    def queues(self) -> list[ClusterQueue]:
        return [node.queue for node in self.world.nodes]

    def until(self, condition: Any) -> None:
        end_us = self.world.time.now_us + WAIT_US
        while not condition():
            assert self.world.time.now_us < end_us
            self.world.time.run_until(self.world.time.now_us + LOOK_US)

    def answer(self, deferred: Deferred[Any]) -> Any:
        found: list[Any] = []
        deferred.addBoth(found.append)
        self.until(lambda: found)
        return found[0].value if isinstance(found[0], Failure) else found[0]

    def submit(
        self, task_id: str, node: int = 0, *, queue: str = "shop", made_by: str = "ann", own_only: bool = True
    ) -> Any:
        one = Submission("never", b"1", id=task_id, queue=queue, delay_us=10**12, content_hash=bytes(16))
        one.made_by, one.own_only = made_by, own_only
        return self.answer(self.queues[node].submit(one))

    def primaries(self) -> set[str]:
        return {self.answer(self.queues[0].get(task_id)).node for task_id in IDS}


def three_nodes() -> Iterator[Three]:
    world, log = ClusterWorld(1, faults=Faults(nodes=3)), Log()
    with composition(world, AS_WIRED):
        globalLogPublisher.addObserver(log)
        try:
            yield Three(world, log)
        finally:
            globalLogPublisher.removeObserver(log)
            for node in world.nodes:
                node.graveyard.clear()


@pytest.fixture(scope="module")
def three() -> Iterator[Three]:
    for three in three_nodes():
        for number, task_id in enumerate(IDS):
            three.submit(task_id, number % 3)
        assert len(three.primaries()) == 3, "most of them live at another node than the one asked"
        yield three


@pytest.fixture(scope="module")
def upgrading() -> Iterator[Three]:
    """As while a node still runs the release before."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (member, controller):
            patch.setattr(module, "FEATURE_LEVEL_MAX", ACCESS_LEVEL - 1)
        for three in three_nodes():
            assert {node.node.state.map.feature_level for node in three.world.nodes} == {ACCESS_LEVEL - 1}
            yield three


@pytest.mark.parametrize("node", range(3))
def test_every_node_answers_as_the_asker_may_know(three: Three, node: int) -> None:
    queue = three.queues[node]
    for task_id in IDS:
        for asker, may in ((None, True), (ANN, True), (OPERATOR, True), (SHOP, True), (BOB, False), (MAILER, False)):
            for options in ({}, {"local": True}, {"wait_s": 0.001}):
                read = three.answer(queue.get(task_id, asker=asker, **options))
                assert (type(read) is NoSuchTask) is not may, (asker, options)
                assert not may or read.row.spec.made_by == "ann"
        for change in (queue.cancel, queue.retry, queue.purge):
            for asker in (BOB, MAILER):
                assert type(three.answer(change(task_id, asker))) is NoSuchTask
    assert type(three.submit(IDS[node], node, made_by="bob")) is IdConflict
    assert not three.submit(IDS[node], node).created


def test_a_batch_keeps_its_maker_wherever_its_tasks_live(three: Three) -> None:
    ids = [f"batch-{number}" for number in range(9)]
    batch = [
        Submission("never", b"1", id=one, queue="mail", delay_us=10**12, content_hash=bytes(16), made_by="bob")
        for one in ids
    ]
    assert all(one.created for one in three.answer(three.queues[1].submit_many(batch)))
    rows = [three.answer(three.queues[2].get(task_id, asker=BOB)).row for task_id in ids]
    assert {row.spec.made_by for row in rows} == {"bob"}


def test_counts_of_queues_are_those_of_all_primaries(three: Three) -> None:
    three.submit("only", queue="counted")
    for queue in three.queues:
        found = three.answer(queue.stats(cluster=True, queues=("counted", "none")))
        assert (sum(found.primary), found.missing, found.partitions_missing) == (1, [], [])
    here = [sum(three.answer(queue.stats(queues=("counted",))).primary) for queue in three.queues]
    assert sorted(here) == [0, 0, 1]


def test_a_change_is_made_where_the_asker_may(three: Three) -> None:
    three.answer(three.queues[0].pause(PauseEntry("queue", "news")))  # what is retried shall not run
    for number, (asker, made_by) in enumerate(((ANN, "ann"), (SHOP, "bob"), (OPERATOR, ""), (None, "ann"))):
        queue, task_id = three.queues[number % 3], f"changed-{number}"
        three.submit(task_id, queue="news", made_by=made_by)
        assert three.answer(queue.cancel(task_id, asker)).state is State.CANCELLED
        assert three.answer(queue.retry(task_id, asker)).state is State.PENDING
        assert three.answer(queue.cancel(task_id, asker)).state is State.CANCELLED
        assert three.answer(queue.purge(task_id, asker)).id == task_id
        gone = three.answer(queue.get(task_id, asker=asker))
        assert type(gone) is (TaskPurged if asker in (OPERATOR, None) else NoSuchTask)


def test_events_of_all_nodes_say_whose_tasks_they_are(three: Three) -> None:
    told: list[EventBatch] = []
    watch = three.queues[0].watch(told.append, cluster=True)
    three.world.time.run_until(three.world.time.now_us + 1_000_000)
    ids = {f"told-{number}" for number in range(9)}
    for task_id in ids:
        three.submit(task_id, made_by="bob")

    def makers() -> dict[str, str]:
        return {change.task_id: change.made_by for batch in told for change in batch.transitions}

    three.until(lambda: ids <= makers().keys())
    watch.close()
    assert {makers()[task_id] for task_id in ids} == {"bob"}
    nodes = {batch.node for batch in told if batch.transitions}
    assert len(nodes) == 3


def ordered(three: Three) -> list[str]:
    return [formatEvent(event) for event in three.log.events if event.get("event") == "order_applied"]


def test_each_node_says_who_ordered_what_it_applies(three: Three) -> None:
    three.answer(three.queues[1].pause(PauseEntry("queue", "mail", by="chief")))
    three.answer(three.queues[2].resume("queue", "mail", "deputy"))
    three.answer(three.queues[0].pause(PauseEntry("queue", "nobody's")))
    three.answer(three.queues[0].resume("queue", "nobody's"))
    three.until(lambda: len(ordered(three)) >= 6)
    said = [line.partition(", by entry ")[0] + line.partition(":")[2] for line in ordered(three)]
    assert (
        sorted(said)
        == ["token chief ordered pause queue 'mail'"] * 3 + ["token deputy ordered resume queue 'mail'"] * 3
    )


# --- while a node may run the release before ---
@pytest.mark.parametrize("node", range(3))
def test_below_the_access_level_nobody_restricted_is_answered(upgrading: Three, node: int) -> None:
    queue = upgrading.queues[node]
    task_id = f"kept-{node}"
    assert upgrading.submit(task_id, node, made_by="operator", own_only=False).created
    assert upgrading.answer(queue.get(task_id)).row.spec.made_by == "", "older nodes read the bytes they know"
    assert type(upgrading.submit(f"own-{node}", node)) is Upgrading, "who could not see it afterwards"
    batch = [Submission("never", b"1", made_by="ann", own_only=True)]
    assert type(upgrading.answer(queue.submit_many(batch))) is Upgrading
    for asker in (ANN, MAILER):
        assert type(upgrading.answer(queue.get(task_id, asker=asker))) is Upgrading
        for change in (queue.cancel, queue.retry, queue.purge):
            assert type(upgrading.answer(change(task_id, asker))) is Upgrading
    assert upgrading.answer(queue.cancel(task_id, OPERATOR)).state is State.CANCELLED
    assert upgrading.answer(queue.list(ListQuery(cluster=True))).missing == []


def test_below_the_access_level_only_known_calls_are_made(upgrading: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    later = {calls.CANCEL_FOR, calls.RETRY_FOR, calls.PURGE_FOR, calls.EVENTS_WITH_MAKERS}
    asked: list[calls.PeerCall] = []

    def noted(real: Callable[..., Deferred[Any]]) -> Callable[..., Deferred[Any]]:
        def call(node: NodeId, kind: calls.PeerCall, *rest: Any) -> Deferred[Any]:
            asked.append(kind)
            return real(node, kind, *rest)

        return call

    for queue in upgrading.queues:
        client = queue._state.client
        for name in ("call", "call_alone"):
            monkeypatch.setattr(client, name, noted(getattr(client, name)))
    told: list[EventBatch] = []
    watch = upgrading.queues[0].watch(told.append, cluster=True)
    upgrading.world.time.run_until(upgrading.world.time.now_us + 1_000_000)
    for number in range(6):
        upgrading.submit(f"old-{number}", made_by="", own_only=False)
        assert upgrading.answer(upgrading.queues[1].cancel(f"old-{number}", OPERATOR)).state is State.CANCELLED
    upgrading.until(lambda: sum(len(batch.transitions) for batch in told) >= 12)
    watch.close()
    assert later.isdisjoint(asked)
    assert {calls.CANCEL, calls.EVENTS} <= set(asked)


def test_below_the_access_level_an_order_names_nobody(upgrading: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed: list[object] = []
    membership = upgrading.world.nodes[0].node.state.plane.membership
    real = membership.propose

    async def propose(command: AnyCommand) -> Outcome:
        proposed.append(command)
        return await real(command)

    monkeypatch.setattr(membership, "propose", propose)
    upgrading.answer(upgrading.queues[0].pause(PauseEntry("queue", "mail", by="chief")))
    assert proposed == [PauseQueue("mail")]
    assert ordered(upgrading) == []
