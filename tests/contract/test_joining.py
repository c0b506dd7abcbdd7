"""Joining as a whole: control planes over real sockets and stores, joiners that ask over HTTP; and whoever is looked for."""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.support.member_site import Answer, MemberSite, cluster_answer, join_answer, problem
from tests.support.planes import CLUSTER, SECRET, PlaneNode, pause, the_reactor, until
from tests.support.wire_kinds import TcpWire
from tests.support.wires import WireNode
from tq_node.cluster.commands import RemoveNode
from tq_node.runtime.bootstrap.bootstrap_guard import BootstrapGuard, Founder
from tq_node.runtime.bootstrap.identity import Belonging, belonging_in, joined
from tq_node.runtime.bootstrap.invitation import Invited, Inviter, JoinRefused
from tq_node.runtime.bootstrap.join import Joiner, JoinSettings, JoinSteps
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.registration import Welcomed
from tq_node.store.api import Batch
from tq_node.types import PartitionId
from tq_node.wire import bounds
from tq_node.wire.handler import Greeting, Welcome

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture
OWN_SECRET = b"the same secret, in a file of each node"


class Node(PlaneNode):
    """A control plane with an HTTP side that says of it what the contract wants."""

    def __init__(self, directory: Path, name: str, secret: bytes | None = None) -> None:
        super().__init__(directory, name)
        self.secret_file = secret
        self.site = MemberSite()
        self.site.answers = {"GET /cluster": lambda: problem(503, "not_ready")}
        self.is_newborn = False
        self.joining: Deferred[Welcomed | None] | None = None
        self.joiner: Joiner | None = None

    def _cluster(self) -> Answer:
        members = {str(node.name): node.peer for node in self.plane.map.members()}
        leader = self.plane.map.nodes.get(self.plane.consensus.core.leader or self.node_id)
        return cluster_answer(self.plane.map.cluster_id, members, None if leader is None else str(leader.name))

    def _invite(self) -> Answer:
        if self.secret_file is not None:
            return problem(403, "denied", "the cluster's secret is in a file: give this node --secret-file")
        if self.is_newborn or self.plane.local.secret is None:
            return problem(503, "not_ready", "the cluster is newborn")
        return join_answer(self.plane.map.cluster_id, self.plane.local.secret, self.address)

    def _answer(self) -> None:
        self.site.answers = {"GET /cluster": self._cluster, "POST /cluster/join": self._invite}

    async def found(self) -> None:
        await self.start(founds=True)
        self._answer()
        self.plane.local.secret = self.secret_file or SECRET
        await until(lambda: self.plane.consensus.core.is_leader)

    async def begin_to_join(self, *others: Node) -> Deferred[Welcomed | None]:
        """An empty node, started with ``--join``."""
        await self.start()
        self._answer()
        self.plane.local.cluster = self.plane.local.secret = None
        self.joiner = Joiner(
            Clock(the_reactor),
            JoinSettings(
                [self.site.address, *(other.site.address for other in others)],
                own=[f"localhost:{self.site.port}"],
                secret=lambda: self.secret_file,
            ),
            JoinSteps(Inviter(the_reactor, needs_secret=self.secret_file is None), self.plane.pool.dial, self._keep),
            self.plane.local,
            self.plane.membership.registration,
            dice=random.Random(self.port),
        )
        self.joining = Deferred.fromCoroutine(self._join(self.joiner))
        return self.joining

    async def _join(self, joiner: Joiner) -> Welcomed | None:
        welcome = await joiner.join()
        if welcome is not None:
            self.plane.membership.welcomed(welcome)
        return welcome

    def _keep(self, invited: Invited) -> Deferred[None]:
        return self.store.commit(Batch(meta=joined(invited.cluster_id, invited.secret, 1)))

    async def stop(self) -> None:
        if self.joiner is not None and self.joining is not None:
            self.joiner.stop()
            await self.joining.addErrback(lambda _: None)
        await super().stop()


class House:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: list[Node] = []
        self.up: list[Node] = []

    def node(self, name: str, secret: bytes | None = None, place: str = "") -> Node:
        made = Node(self.directory / place, name, secret)
        self.nodes.append(made)
        self.up.append(made)
        return made

    async def take_down(self, node: Node) -> None:
        self.up.remove(node)
        await node.stop()

    async def close(self) -> None:
        for node in list(self.up):
            await self.take_down(node)
        for node in self.nodes:
            assert node.outside.failures == []
            await node.site.stop()


@async_fixture()
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    yield made
    await made.close()


def is_whole(nodes: list[Node], members: int) -> bool:
    return all(node.plane.membership.is_registered and len(node.plane.map.members()) == members for node in nodes)


@deferred
async def test_three_nodes_that_start_at_once_become_one_cluster(house: House) -> None:
    first, second, third = (house.node(f"node-{number}") for number in (1, 2, 3))
    first.is_newborn = True
    waiting = [await node.begin_to_join(third, second, first) for node in (third, second)]
    await pause(0.2)
    await first.found()
    await pause(0.3)
    assert not any(one.called for one in waiting), "the founder is newborn"
    assert len(first.plane.map.members()) == 1
    first.is_newborn = False
    for one in waiting:
        assert await one is not None
    await until(lambda: is_whole(house.up, 3))
    await until(lambda: all(len(node.plane.consensus.core.configuration.voters) == 3 for node in house.up))
    for node in (second, third):
        assert belonging_in(node.store.meta()) == Belonging(CLUSTER, SECRET, 1)
        assert (node.plane.local.cluster, node.plane.local.secret) == (CLUSTER, SECRET)


@deferred
async def test_a_founder_that_greets_as_newborn_keeps_a_joiner_with_a_secret_of_its_own_waiting(house: House) -> None:
    first, second = house.node("node-1", OWN_SECRET), house.node("node-2", OWN_SECRET)
    await first.found()
    first.outside.is_newborn = lambda: True  # type: ignore[method-assign]
    waiting = await second.begin_to_join(first)
    await pause(0.4)
    assert len(first.plane.map.members()) == 1
    assert belonging_in(second.store.meta()) is None
    first.outside.is_newborn = lambda: False  # type: ignore[method-assign]
    assert await waiting is not None
    await until(lambda: is_whole(house.up, 2))
    assert belonging_in(second.store.meta()) == Belonging(CLUSTER, None, 1)


@deferred
async def test_any_member_lets_a_node_in_and_a_dead_one_in_the_list_does_no_harm(house: House) -> None:
    first, second, third = (house.node(f"node-{number}") for number in (1, 2, 3))
    await first.found()
    assert await (await second.begin_to_join(first)) is not None
    await until(lambda: is_whole([first, second], 2))
    lost = house.node("lost")
    house.up.remove(lost)
    lost.site.answers = {}
    assert await (await third.begin_to_join(lost, second)) is not None
    await until(lambda: is_whole(house.up, 3))


@deferred
async def test_another_secret_is_refused_in_one_line(house: House) -> None:
    first, second = house.node("node-1", OWN_SECRET), house.node("node-2", b"quite another secret, alas")
    await first.found()
    with pytest.raises(JoinRefused, match="the cluster secret differs"):
        await (await second.begin_to_join(first))
    assert belonging_in(second.store.meta()) is None
    assert len(first.plane.map.members()) == 1


@deferred
async def test_without_the_secret_s_file_there_is_no_way_in(house: House) -> None:
    first, second = house.node("node-1", OWN_SECRET), house.node("node-2")
    await first.found()
    with pytest.raises(JoinRefused, match=r"^--join 127\.0\.0\.1:\d+: the cluster's secret is in a file"):
        await (await second.begin_to_join(first))


@deferred
async def test_a_new_node_with_a_member_s_name_comes_in_once_that_member_is_removed(house: House) -> None:
    """F13: a wiped disk is a new node; the old one may only be resting."""
    first, second = house.node("node-1"), house.node("node-2")
    await first.found()
    await (await second.begin_to_join(first))
    await until(lambda: is_whole(house.up, 2))
    await house.take_down(second)
    wiped = house.node("node-2", place="new disk")
    wiped.node_id = type(wiped.node_id)("f" * 32)
    waiting = await wiped.begin_to_join(first)
    await until(lambda: not first.plane.map.nodes[second.node_id].is_up)
    await pause(0.5)
    assert not waiting.called
    lost = first.plane.map.nodes[second.node_id]
    removal = RemoveNode(lost.node_id, lost.session, tuple(PartitionId(number) for number in range(16)))
    await first.plane.membership.propose(removal)
    assert await waiting is not None
    await until(lambda: is_whole(house.up, 2))
    assert {node.node_id for node in first.plane.map.members()} == {first.node_id, wiped.node_id}


# --- the birth guard, over real connections ---
class Newborn:
    """A founder on an address that an older cluster looks for."""

    def __init__(self, wire: TcpWire, name: str) -> None:
        self.lines: list[str] = []
        self.node = WireNode(wire, name, cluster="n" * 32, secret=b"made by the newborn itself")
        self.guard: BootstrapGuard | None = None

    async def listen(self) -> None:
        await self.node.listen()
        self.guard = BootstrapGuard(
            Clock(the_reactor),
            Founder("n" * 32, self.node.name, self.node.address),
            has_tasks=lambda: False,
            on_older_cluster=self.lines.append,
        )
        answer = self.node.handler.greeted

        def greeted(greeting: Greeting) -> Welcome:
            assert self.guard is not None
            self.guard.greeted(greeting)
            return answer(greeting)

        self.node.handler.greeted = greeted  # type: ignore[method-assign]


@deferred
async def test_members_that_look_for_a_lost_one_end_a_newborn_in_its_place(house: House) -> None:
    """F15a: the secrets differ, so no handshake would tell; the first box does, and it comes again and again."""
    wire = TcpWire()
    old = await WireNode(wire, "b").listen()
    newborn = Newborn(wire, "a")
    await newborn.listen()
    assert newborn.guard is not None
    passed = newborn.guard.watch()
    try:
        old.dial(newborn.node)
        await until(functools.partial(bool, newborn.lines), bounds.BIRTH_GUARD_S)
        assert await passed is False, "ended by greetings that came again, before it took itself for ready"
        assert "remove a there and start with --join" in newborn.lines[0]
        seen = newborn.node.handler.greetings
        before = len(seen)
        await pause(2 * bounds.REDIAL_S_MAX + 0.4)
        assert len(seen) - before >= 4, "each of two lanes, at least every half second, though each is refused"
        assert {(g.cluster, g.name, g.address) for g in seen} == {(old.local.cluster, "a", newborn.node.address)}
    finally:
        newborn.guard.stop()
        await old.stop()
        await newborn.node.stop()
