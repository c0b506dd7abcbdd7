"""A node that stops says so, and nobody waits for one that the table has as down: control planes over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred

from tests.contract.test_control_plane import Three
from tests.support.planes import PlaneNode, pause, until
from tq_node.cluster.commands import NodeDown
from tq_node.wire.commands import Lane

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


@async_fixture()
async def whole(tmp_path: Path) -> AsyncIterator[Three]:
    group = Three(tmp_path)
    await group.form()
    yield group
    for node in list(group.up):
        await group.stop(node)


def follower_of(group: Three) -> PlaneNode:
    return next(node for node in group.up if not node.plane.consensus.core.is_leader)


@deferred
async def test_who_departs_is_down_while_its_port_still_answers(whole: Three) -> None:
    leaves = follower_of(whole)
    session = whole.session(leaves)
    await leaves.plane.membership.depart()
    leader = whole.leader()
    assert leader is not None
    assert not leader.plane.map.nodes[leaves.node_id].is_up, "the answer comes when the leader has applied it"
    await pause(0.5)
    assert whole.session(leaves) == session, "it does not register anew, as one would that was taken for dead"
    await whole.stop(leaves)
    await until(lambda: whole.is_down_everywhere(leaves.node_id))
    await whole.start(leaves)
    await until(whole.is_whole, 30.0)
    assert whole.session(leaves) > session


@deferred
async def test_a_leader_that_nobody_relieves_departs_too(whole: Three) -> None:
    """Else its copies would be waited for until it has closed its last connection."""
    leader = whole.leader()
    assert leader is not None
    await leader.plane.membership.depart()
    assert not leader.plane.map.nodes[leader.node_id].is_up
    await whole.stop(leader)
    await until(lambda: whole.is_down_everywhere(leader.node_id) and whole.leader() is not None, 30.0)


@deferred
async def test_who_leaves_when_nobody_can_hear_it_just_leaves(whole: Three) -> None:
    stays, *others = whole.up
    for node in others:
        await whole.stop(node)
    await stays.plane.membership.depart()


@deferred
async def test_nobody_waits_for_an_answer_of_a_node_that_is_down_by_the_table(whole: Three) -> None:
    """A stopped process keeps its connections: what was forwarded to it would wait for its deadline."""
    leader, silent = whole.leader(), follower_of(whole)
    assert leader is not None
    watching = [node for node in whole.up if node is not silent]

    def is_dialled() -> bool:
        return all(node.plane.pool.is_connected(silent.node_id, Lane.BULK) for node in watching)

    await until(is_dialled, 30.0)
    before = [node.plane.pool.connection(silent.node_id, Lane.BULK) for node in watching]
    await leader.plane.membership.propose(NodeDown(silent.node_id, whole.session(silent), "silence"))
    await until(lambda: not any(connection.is_open() for connection in before if connection is not None), 30.0)
    await until(lambda: whole.is_whole() and is_dialled(), 30.0)  # it lives, registers anew, and is dialled again
