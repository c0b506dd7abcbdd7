"""What a task costs from its claim to its end, at its primary: calls of Python functions, without worker, HTTP, SQL.

The bound is what was measured and a tenth.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred, gatherResults

from tests.support.node_world import NodeWorld
from tq_node.facade import Claim, Completed, Submission

T = TypeVar("T")
TASKS = 1_024
AT_ONCE = 32


def test_from_claim_to_end() -> None:
    world = NodeWorld(1, cache_bytes=1 << 30)
    queue = world.queue
    batch = [Submission("email", b"1", content_hash=bytes(16)) for _ in range(TASKS)]
    queue.submitter.name_many(batch)
    _wait(world, queue.submitter.submit_many(batch))
    profile = cProfile.Profile(builtins=False)
    profile.enable()
    ended = 0
    while ended < TASKS:
        claims: Sequence[Claim] = _wait(world, queue.claims.claim(AT_ONCE))
        assert claims
        _wait(world, gatherResults([queue.claims.finish(claim, Completed(b"1")) for claim in claims]))
        ended += len(claims)
    profile.disable()
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # public, and not in typeshed
    calls = sum(row[1] for place, row in found.items() if "/tests/" not in place[0]) / TASKS
    print(f"\nfrom claim to end, {AT_ONCE} at once: {calls:.0f} calls")
    assert calls < 112


def _wait(world: NodeWorld, deferred: Deferred[T]) -> T:
    found: list[T] = []
    deferred.addCallback(found.append)
    world.until(lambda: bool(found), "an answer")
    return found[0]
