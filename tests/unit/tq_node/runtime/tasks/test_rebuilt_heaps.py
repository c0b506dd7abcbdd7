"""Heaps that are built anew from the rows lose nothing, whatever is under way."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.support.node_world import NodeWorld
from tq_node.facade import Claim, Submission


def test_what_is_proposed_and_not_in_the_store_yet_is_in_the_new_heaps() -> None:
    """Found by the simulator: such a task waited until the node was started anew."""
    world = NodeWorld(1)
    world.until(lambda: not world.store._pending, "nothing is on its way")
    world.queue.submitter.submit(Submission("email", b"{}"))
    world.queue.submitter.submit(Submission("email", b"{}", delay_us=500_000))
    rebuilt = Deferred.fromCoroutine(world.queue.table.rebuild_heaps())
    world.until(lambda: bool(rebuilt.called), "the heaps are new")
    claims: list[Claim] = []

    def are_claimed() -> bool:
        world.queue.claims.claim(2).addCallback(claims.extend)
        return len(claims) == 2

    world.until(are_claimed, "both are found")
