"""Attempts that an earlier primary granted, at the primary of today."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from tests.support.node_world import NodeWorld
from tq_node.facade import Claim, Submission
from tq_node.types import State


@pytest.mark.parametrize("is_stale", [False, True], ids=["its own attempt", "an older attempt"])
def test_only_the_claim_of_this_very_attempt_keeps_it(is_stale: bool) -> None:
    """Found by the simulator: a worker here that still held an attempt long lost elsewhere kept
    every later one of that task ``processing``."""
    world = NodeWorld(1)
    world.queue.submitter.submit(Submission("email", b"{}", id="a"))
    claims: list[Claim] = []

    def is_claimed() -> bool:
        world.queue.claims.claim(1).addCallback(claims.extend)
        return bool(claims)

    world.until(is_claimed, "a claim")
    (claim,) = claims
    if is_stale:
        older = claim.token._replace(epoch=claim.token.epoch - 1)
        world.queue.claims._claims["a"] = msgspec.structs.replace(claim, token=older)
    lost: Deferred[list[str]] = world.queue.claims.remote.lose(["a"], None)
    world.until(lambda: bool(lost.called), "the attempts are looked at")
    world.settle()
    found: list[Any] = []
    world.queue.reads.get("a").addCallback(found.append)
    world.until(lambda: bool(found), "an answer")
    assert (found[0].row.state is State.PROCESSING) is not is_stale
