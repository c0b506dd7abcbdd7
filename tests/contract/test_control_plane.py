"""Consensus, table, membership and wire put together: nodes find each other, elect, register, and notice a death."""

from __future__ import annotations

import functools
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred

from tests.support.harness import free_port
from tests.support.planes import CLUSTER, PlaneNode, pause, until
from tq_node.cluster.commands import PauseQueue, RegisterNode
from tq_node.cluster.commands import encode as encode_command
from tq_node.cluster.map import digest
from tq_node.cluster.refusals import Refusal
from tq_node.runtime.control.registration import WELCOMES
from tq_node.types import NodeId
from tq_node.wire.commands import Register

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


class Three:
    def __init__(self, directory: Path, **options: Any) -> None:
        self.nodes = [PlaneNode(directory, f"node-{number}", **options) for number in (1, 2, 3)]
        self.up: list[PlaneNode] = []

    async def form(self) -> None:
        first = self.nodes[0]
        await self.start(first, founds=True)
        await until(lambda: first.plane.consensus.core.is_leader)
        for node in self.nodes[1:]:
            await self.start(node)
            outcome = await node.join(first)
            assert outcome.refused == ()
        await until(self.is_whole)

    async def start(self, node: PlaneNode, *, founds: bool = False) -> None:
        await node.start(founds=founds)
        self.up.append(node)

    async def stop(self, node: PlaneNode) -> None:
        self.up.remove(node)
        await node.stop()

    def is_whole(self) -> bool:
        """Everybody is registered, votes, and agrees on leader and term."""
        cores = [node.plane.consensus.core for node in self.up]
        return (
            all(len(core.configuration.voters) == 3 for core in cores)
            and all(node.plane.membership.is_registered for node in self.up)
            and len({(core.leader, core.term) for core in cores}) == 1
            and cores[0].leader is not None
            and all(len(node.plane.map.members()) == 3 for node in self.up)
        )

    def session(self, node: PlaneNode) -> int:
        return max(one.plane.map.nodes[node.node_id].session for one in self.up)

    def is_down_everywhere(self, node_id: NodeId) -> bool:
        return all(not node.plane.map.nodes[node_id].is_up for node in self.up)

    def leader(self) -> PlaneNode | None:
        return next((node for node in self.up if node.plane.consensus.core.is_leader), None)


@async_fixture()
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    group = Three(tmp_path)
    yield group
    for node in list(group.up):
        await group.stop(node)
    for node in group.nodes:
        assert node.outside.failures == []


@deferred
async def test_three_nodes_become_a_cluster_with_three_voters(three: Three) -> None:
    await three.form()
    await until(lambda: len({digest(node.plane.map) for node in three.up}) == 1)
    assert {node.name for node in three.nodes[0].plane.map.members()} == {"node-1", "node-2", "node-3"}


@deferred
async def test_a_command_may_be_proposed_at_any_node(three: Three) -> None:
    await three.form()
    for number, node in enumerate(three.up):
        await node.plane.membership.propose(PauseQueue(f"q{number}"))
    await until(lambda: all(node.plane.map.paused_queues == ("q0", "q1", "q2") for node in three.up))


@deferred
async def test_a_leader_that_dies_is_replaced_by_evidence_not_by_silence(three: Three) -> None:
    await three.form()
    for _ in range(3):
        old = three.leader()
        assert old is not None
        old_id = old.node_id
        await three.stop(old)
        took = await until(lambda: three.leader() is not None, 3.0)
        print(f"a new leader after {took * 1000:.0f} ms")
        await until(functools.partial(three.is_down_everywhere, old_id), 3.0)
        await three.start(old)
        await until(three.is_whole)


@deferred
async def test_a_follower_that_dies_is_down_and_comes_back_with_a_new_session(three: Three) -> None:
    await three.form()
    follower = next(node for node in three.up if node is not three.leader())
    session = three.nodes[0].plane.map.nodes[follower.node_id].session
    await three.stop(follower)
    down = await until(lambda: all(not n.plane.map.nodes[follower.node_id].is_up for n in three.up), 3.0)
    print(f"down after {down * 1000:.0f} ms")
    silence_s = three.up[0].plane.membership.liveness.settings.session_ms / 1_000
    assert down < silence_s, "evidence, not silence"
    await three.start(follower)
    await until(three.is_whole)
    assert three.up[0].plane.map.nodes[follower.node_id].session > session


@deferred
async def test_all_stop_and_start_in_another_order(three: Three) -> None:
    await three.form()
    await three.nodes[0].plane.membership.propose(PauseQueue("mail"))
    for node in list(three.up):
        await three.stop(node)
    for node in reversed(three.nodes):
        await three.start(node)
    await until(three.is_whole)
    assert three.up[0].plane.map.paused_queues == ("mail",)


@deferred
async def test_a_name_that_is_taken_is_refused(three: Three, tmp_path: Path) -> None:
    await three.form()
    other = PlaneNode(tmp_path / "other", "node-4")
    other.name = "node-2"
    await other.start()
    try:
        outcome = await other.join(three.nodes[0])
        assert [refused.code for refused in outcome.refused] == [Refusal.NAME_TAKEN]
        await pause(0.3)
        assert len(three.nodes[0].plane.map.members()) == 3
    finally:
        await other.stop()


# --- other addresses ---
@deferred
async def test_whoever_comes_back_at_another_address_is_found(three: Three) -> None:
    """The leader looks for it where it was; any member that it finds says who leads."""
    await three.form()
    leader = three.leader()
    assert leader is not None
    for node in (next(node for node in three.up if node is not leader), leader):
        await three.stop(node)
        await until(lambda: three.leader() is not None, 5.0)
        node.port = free_port()
        await three.start(node)
        took = await until(three.is_whole)
        print(f"whole {took:.2f} s after its start at another port")
        assert {other.plane.map.nodes[node.node_id].peer for other in three.up} == {node.address}


@deferred
async def test_a_member_that_does_not_lead_says_who_does(three: Three) -> None:
    await three.form()
    leader = three.leader()
    assert leader is not None
    follower = next(node for node in three.up if node is not leader)
    asking = next(node for node in three.up if node not in (leader, follower))
    body = encode_command(RegisterNode(CLUSTER, asking.registration()))
    welcome = WELCOMES.decode(await asking.plane.pool.ask(follower.node_id, Register, body))
    assert welcome.outcome is None
    assert welcome.leader == leader.node_id
    assert welcome.leader_address == leader.address
    assert {node for node, _, _ in welcome.members} == {node.node_id for node in three.nodes}


# --- copies of a directory (F14) ---
@deferred
async def test_a_copy_of_a_node_that_runs_harms_nobody(three: Three, tmp_path: Path) -> None:
    await three.form()
    for original in list(three.up):
        earlier = three.session(original)
        await three.stop(original)
        copy = PlaneNode(tmp_path / "copies", original.name)
        shutil.copytree(original.directory, copy.directory)
        await three.start(original)
        await until(lambda: three.is_whole() and three.session(original) > earlier)  # noqa: B023
        core = three.up[0].plane.consensus.core
        before = core.term, core.leader, three.session(original)
        copy.incarnation = original.incarnation + 3
        await copy.start()
        try:
            took = await until(lambda: copy.outside.refusals, 5.0)  # noqa: B023
            print(f"the copy of {original.name} was refused after {took * 1000:.0f} ms")
            await pause(0.7)
            assert copy.outside.refusals == [Refusal.STORE_CLONED]
            assert three.is_whole()
            assert (core.term, core.leader, three.session(original)) == before
            assert not any(node.outside.refusals for node in three.up)
        finally:
            await copy.stop()
