"""What a refusal of the table is to who asked: of a token another than of a queue."""

from __future__ import annotations

import pytest

from tq_node.cluster.commands import Order, PauseQueue, PutToken, RevokeToken
from tq_node.cluster.refusals import Refusal
from tq_node.errors import ClusterRefused, NoSuchToken, TaskQueueError, Upgrading
from tq_node.runtime.routing.admin import as_error
from tq_node.tokens import Role, TokenEntry

PUT = PutToken(TokenEntry("a", b"h" * 32, (Role.VIEW,)))


@pytest.mark.parametrize(
    ("refusal", "order", "kind", "said"),
    [
        (Refusal.TOO_MANY, PUT, ClusterRefused, "1000 tokens"),
        (Refusal.TOO_MANY, PauseQueue("q"), ClusterRefused, "too many queues"),
        (Refusal.BAD_SETTINGS, PUT, ClusterRefused, "no token can be like that"),
        (Refusal.NOT_NEEDED, RevokeToken("a"), NoSuchToken, "No such token"),
        (Refusal.NOT_NEEDED, None, ClusterRefused, "nothing needs to be done"),
        (Refusal.FEATURE_LEVEL, PUT, Upgrading, "a release that does not know this yet"),
    ],
)
def test_it_is_said_in_the_words_of_what_was_asked(
    refusal: Refusal, order: Order | None, kind: type[TaskQueueError], said: str
) -> None:
    error = as_error(refusal, order)
    assert type(error) is kind
    assert said in error.detail
    assert as_error(refusal, order) is not error, "an exception is raised once"
