"""Invitations over real control planes: of many who show one at once, at any members, one is let in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.contract.test_control_plane import Three
from tests.support.planes import SECRET, PlaneNode, the_reactor, until
from tq_node import limits
from tq_node.cluster.commands import Order
from tq_node.cluster.map import ClusterMap
from tq_node.cluster.records import ACCESS_LEVEL
from tq_node.errors import ClusterRefused, TaskQueueError, Unauthorized
from tq_node.facade import CHALLENGE_BYTES, Invitation, NotReadyReason
from tq_node.runtime.clock import Clock, WallClock
from tq_node.runtime.join_proof import proof
from tq_node.runtime.routing.invitations import Invitations
from tq_node.runtime.routing.node_state import NodeState

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


class Door:
    """The invitations of one node, whose wall clock may be set."""

    def __init__(self, node: PlaneNode) -> None:
        self.plane = node.plane
        self.wall = _Wall()
        self.made = Invitations(cast("NodeState", self), Clock(the_reactor, self.wall), self)

    @property
    def map(self) -> ClusterMap:
        return self.plane.map

    def not_ready(self) -> Sequence[NotReadyReason]:
        return ()

    def order_everywhere(self, order: Order, by: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self.plane.membership.propose(order)).addCallback(lambda _: None)


class _Wall(WallClock):
    ahead_us = 0

    def __call__(self) -> int:
        return super().__call__() + self.ahead_us


@async_fixture()
async def doors(tmp_path: Path) -> AsyncIterator[list[Door]]:
    three = Three(tmp_path, feature_level=ACCESS_LEVEL)
    await three.form()
    yield [Door(node) for node in three.nodes]
    for node in list(three.up):
        await three.stop(node)
    for node in three.nodes:
        assert node.outside.failures == []


async def outcome_of(taken: Deferred[Invitation]) -> Invitation | TaskQueueError:
    try:
        return await taken
    except TaskQueueError as why:
        return why


async def known(doors: list[Door], number: int) -> None:
    await until(lambda: all(len(door.map.invitations) == number for door in doors))


@deferred
async def test_of_many_at_once_one_is_let_in(doors: list[Door]) -> None:
    hash_ = b"h" * 32
    await doors[1].made.put_invitation(hash_, "ops")
    await known(doors, 1)
    asked = [door.made.take_invitation(hash_) for door in doors * 3]
    outcomes = [await outcome_of(one) for one in asked]
    (let_in,) = [one for one in outcomes if isinstance(one, Invitation)]
    assert sum(isinstance(one, Unauthorized) for one in outcomes) == len(outcomes) - 1
    assert let_in.secret == SECRET.hex()
    assert {let_in.peer, *let_in.peers} == {node.peer for node in doors[0].map.members()}
    await known(doors, 0)


@deferred
async def test_a_guess_costs_no_entry_of_the_log_and_neither_does_one_that_has_ended(doors: list[Door]) -> None:
    hash_ = b"h" * 32
    ends_us = await doors[0].made.put_invitation(hash_)
    await known(doors, 1)
    before = [door.plane.core.log.last_index for door in doors]
    doors[0].wall.ahead_us = limits.INVITATION_S * 1_000_000 + 1
    assert ends_us < doors[0].wall()
    for tried in (b"g" * 32, hash_, b"", b"h" * 31):
        assert isinstance(await outcome_of(doors[0].made.take_invitation(tried)), Unauthorized)
    assert [door.plane.core.log.last_index for door in doors] == before
    assert isinstance(await outcome_of(doors[1].made.take_invitation(hash_)), Invitation)


@deferred
async def test_there_are_not_too_many(doors: list[Door]) -> None:
    for number in range(limits.INVITATIONS_MAX):
        await doors[0].made.put_invitation(number.to_bytes(32, "big"))
    with pytest.raises(ClusterRefused):
        await doors[0].made.put_invitation(b"m" * 32)


# --- who proves the secret ---
@deferred
async def test_a_proof_counts_at_the_member_that_gave_the_challenge(doors: list[Door]) -> None:
    one, other = doors[0], doors[1]
    challenge = bytes.fromhex(one.made.challenge())
    for wrong in (
        (challenge, proof(b"guessed guessed guessed", challenge)),
        (challenge, b""),
        (bytes.fromhex(other.made.challenge()), proof(SECRET, bytes.fromhex(other.made.challenge()))),
        (bytes(CHALLENGE_BYTES), proof(SECRET, bytes(CHALLENGE_BYTES))),
    ):
        with pytest.raises(Unauthorized):
            one.made.peers_for(*wrong)
    leader = one.plane.map.nodes[one.plane.core.leader or one.plane.local.node_id]
    peers = one.made.peers_for(challenge, proof(SECRET, challenge))
    assert peers[0] == leader.peer
    assert set(peers) == {node.peer for node in one.map.members()}


@deferred
async def test_either_secret_proves_while_one_replaces_the_other(doors: list[Door]) -> None:
    new = b"the secret that takes its place"
    door = doors[0]
    door.plane.local.hold((new, SECRET))
    for secret in (new, SECRET):
        challenge = bytes.fromhex(door.made.challenge())
        assert door.made.peers_for(challenge, proof(secret, challenge))
    door.plane.local.hold((new,))
    challenge = bytes.fromhex(door.made.challenge())
    with pytest.raises(Unauthorized, match="differs"):
        door.made.peers_for(challenge, proof(SECRET, challenge))
    door.plane.local.secret = None
    assert door.made.challenge() == ""
