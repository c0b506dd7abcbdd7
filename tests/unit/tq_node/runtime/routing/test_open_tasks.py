"""What a token has open in the cluster, as one node knows it: asked of others, with what it sent them meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock as VirtualClock

from tq_node import limits
from tq_node.cluster.records import ACCESS_LEVEL
from tq_node.facade import OpenOfMaker
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock, WallClock
from tq_node.runtime.routing.open_tasks import OpenTasks
from tq_node.runtime.tasks.open_by_maker import OpenByMaker
from tq_node.types import NodeId


class Others:
    """A node with two others, whose answers come when the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], Deferred[list[OpenOfMaker]]]] = []
        self.made = OpenByMaker()
        self.made.lead(0, {})
        self.local: Any = SimpleNamespace(table=SimpleNamespace(made=self.made))
        self.client: Any = self
        self.map: Any = SimpleNamespace(feature_level=ACCESS_LEVEL)
        self.names = ["two", "three"]

    def others(self) -> Sequence[tuple[NodeId, str]]:
        return [(NodeId(name), name) for name in self.names]

    def call(self, node: NodeId, kind: calls.PeerCall, what: calls.OpenOf) -> Deferred[list[OpenOfMaker]]:
        assert kind is calls.OPEN_OF
        answer: Deferred[list[OpenOfMaker]] = Deferred()
        self.asked.append((node, what.makers, answer))
        return answer

    def answer(self, **found: int | Exception) -> None:
        asked, self.asked = self.asked, []
        for node, makers, answer in asked:
            value = found[node]
            if isinstance(value, Exception):
                answer.errback(value)
            else:
                answer.callback([OpenOfMaker(value, (f"of-{node}",) if value else ()) for _ in makers])


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def open_tasks(others: Others, clock: VirtualClock) -> OpenTasks:
    def mono_ns() -> int:
        return int(clock.seconds() * 1e9)

    return OpenTasks(cast("Any", others), Clock(clock, WallClock(mono_ns, mono_ns)))


def found(open_tasks: OpenTasks, maker: str = "ann") -> tuple[int, set[str]]:
    one = open_tasks.of(maker)
    return one.tasks, set(one.queues)


def test_what_others_say_is_added(open_tasks: OpenTasks, others: Others, clock: VirtualClock) -> None:
    others.made.add(0, "ann", "mail", 2)
    assert found(open_tasks) == (2, {"mail"}), "the first time nobody else has said anything"
    assert [(node, makers) for node, makers, _ in others.asked] == [("two", ["ann"]), ("three", ["ann"])]
    others.answer(two=3, three=0)
    assert found(open_tasks) == (5, {"mail", "of-two"})
    clock.advance(limits.OPEN_TASKS_ASK_S)
    others.answer(two=1, three=Exception("gone"))
    assert found(open_tasks) == (3, {"mail", "of-two"})
    others.names = ["three"]
    clock.advance(limits.OPEN_TASKS_ASK_S)
    assert found(open_tasks) == (2, {"mail"}), "who is no member has nothing"
    others.answer(three=4)
    assert found(open_tasks) == (6, {"mail", "of-three"})
    for _ in range(int(limits.OPEN_TASKS_TOLD_S / limits.OPEN_TASKS_ASK_S) - 1):
        clock.advance(limits.OPEN_TASKS_ASK_S)
        others.answer(three=Exception("dead"))
    assert found(open_tasks) == (6, {"mail", "of-three"})
    clock.advance(limits.OPEN_TASKS_ASK_S)
    assert found(open_tasks) == (2, {"mail"}), "others lead by now what it led"
    open_tasks.stop()
    assert clock.getDelayedCalls() == []


def test_what_was_sent_counts_until_the_answers_know_of_it(
    open_tasks: OpenTasks, others: Others, clock: VirtualClock
) -> None:
    open_tasks.sent("ann", 5)
    assert found(open_tasks) == (0, set()), "nobody had asked for it"
    open_tasks.sent("ann", 2)
    assert found(open_tasks)[0] == 2
    clock.advance(limits.OPEN_TASKS_ASK_S)
    assert found(open_tasks)[0] == 2, "an answer that is on its way may not know of it"
    clock.advance(limits.OPEN_TASKS_ASK_S)
    assert found(open_tasks)[0] == 0
    open_tasks.stop()


def test_others_are_asked_while_somebody_wants_to_know_and_no_longer(
    open_tasks: OpenTasks, others: Others, clock: VirtualClock
) -> None:
    open_tasks.of("ann")
    rounds = int(limits.OPEN_TASKS_WANTED_S / limits.OPEN_TASKS_ASK_S)
    clock.pump([limits.OPEN_TASKS_ASK_S] * (rounds + 2))
    assert rounds - 1 <= len(others.asked) / 2 <= rounds + 2
    assert clock.getDelayedCalls() == []
    others.asked.clear()
    open_tasks.of("bob")
    assert [makers for _, makers, _ in others.asked] == [["bob"], ["bob"]]
    open_tasks.stop()


def test_a_node_that_may_not_know_the_question_is_not_asked(
    open_tasks: OpenTasks, others: Others, clock: VirtualClock
) -> None:
    others.map.feature_level = ACCESS_LEVEL - 1
    assert found(open_tasks) == (0, set())
    clock.advance(limits.OPEN_TASKS_ASK_S)
    assert others.asked == []
    open_tasks.stop()


def test_for_how_many_tokens_it_is_asked_has_a_bound(open_tasks: OpenTasks, others: Others) -> None:
    for number in range(limits.OPEN_MAKERS_MAX + 10):
        open_tasks.of(f"t{number}")
    assert len(open_tasks._wanted_ms) == limits.OPEN_MAKERS_MAX
    open_tasks.stop()
