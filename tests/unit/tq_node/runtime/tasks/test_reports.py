"""A report of an attempt that a later primary granted is not this node's to answer, whatever it still knows of the task."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from tests.support.node_world import NodeWorld
from tq_node.errors import NotPrimary, StaleAttempt
from tq_node.facade import Claim, Completed, Notes, Outcome, Released, Submission
from tq_node.types import Token


@dataclass
class Deposed:
    """A node that still takes itself for the primary, and a claim of its own."""

    world: NodeWorld
    claim: Claim

    def why(self, claim: Claim, said: Outcome | Notes) -> type[BaseException] | None:
        """The kind of error that a report is answered with; None: it is taken."""
        claims = self.world.queue.claims
        answer = claims.note(claim, said) if isinstance(said, Notes) else claims.finish(claim, said)
        errors: list[type[BaseException] | None] = []
        answer.addCallbacks(lambda _: errors.append(None), lambda why: errors.append(why.type))
        self.world.until(lambda: bool(errors), "it is answered")
        return errors[0]


@pytest.fixture
def deposed() -> Deposed:
    world = NodeWorld(1)
    world.until(lambda: not world.store._pending, "nothing is on its way")
    world.queue.submitter.submit(Submission("email", b"{}"))
    claimed = world.queue.claims.claim(1)
    world.until(lambda: bool(claimed.called), "it is claimed")
    (claim,) = world.heard(claimed)
    return Deposed(world, claim)


@pytest.mark.parametrize("said", [Completed(b"1"), Released(), Notes(dropped=1)], ids=lambda said: type(said).__name__)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_later_attempt(deposed: Deposed, said: Outcome | Notes, is_known: bool) -> None:
    """Of a task that it doesn't know it would say that there is none, of one that it does that the attempt is stale: the worker
    would drop what the attempt came to, and the task would run again."""
    later = msgspec.structs.replace(
        deposed.claim,
        token=Token(deposed.claim.token.epoch + 1, 5),
        task_id=deposed.claim.task_id if is_known else "another",
    )
    assert deposed.why(later, said) is NotPrimary
    assert deposed.why(deposed.claim, said) is None, "its own is taken"


def test_an_earlier_attempt_is_stale(deposed: Deposed) -> None:
    epoch, sequence = deposed.claim.token
    earlier = msgspec.structs.replace(deposed.claim, token=Token(epoch, sequence - 1))
    assert deposed.why(earlier, Completed(b"1")) is StaleAttempt
