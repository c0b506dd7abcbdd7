"""Claims that a primary grants to another node's worker (replication.md, section 8): a real queue, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.support.node_world import NodeWorld
from tq_node import limits
from tq_node.errors import StaleAttempt
from tq_node.facade import Claim, Completed, Released, Submission
from tq_node.types import State, TaskRow

HELPER = "node-2"


class Helped:
    """A node whose worker has no slot free, and what the other node's worker gets of it."""

    def __init__(self) -> None:
        self.world = NodeWorld(0)

    def submit(self, *ids: str, task_type: str = "email", payload: bytes = b"1", queue: str | None = None) -> None:
        for task_id in ids:
            submission = Submission(type=task_type, payload=payload, id=task_id, queue=queue, content_hash=b"a")
            self.result(self.world.queue.submitter.submit(submission))

    def lend(self, limit: int = 10, types: Collection[str] | None = None) -> list[Claim]:
        return list(self.result(self.world.queue.claims.lend(limit, HELPER, types)))

    def result(self, answer: Deferred[Any]) -> Any:
        results: list[Any] = []
        answer.addBoth(results.append)
        self.world.until(lambda: bool(results), "an answer")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def row(self, task_id: str) -> TaskRow:
        row = self.result(self.world.queue.reads.get(task_id)).row
        assert isinstance(row, TaskRow)
        return row

    def renew(self, *claims: Claim) -> None:
        for claim in claims:
            assert self.result(self.world.queue.renew(claim.partition, [(claim.task_id, claim.token)])) == [True]

    def pass_by(self, milliseconds: int) -> None:
        for _ in range(milliseconds // 100):
            self.world.turn(0.1)
            self.world.store.deliver()
            self.world.store.sync()


@pytest.fixture
def helped() -> Helped:
    return Helped()


def test_a_claim_for_a_helper_is_a_claim_like_any_other(helped: Helped) -> None:
    helped.submit("a", "b")
    claims = helped.lend()
    assert {claim.task_id for claim in claims} == {"a", "b"}
    row = helped.row("a")
    assert (row.state, row.attempt, row.worker) == (State.PROCESSING, 1, HELPER)
    assert row.token == next(claim.token for claim in claims if claim.task_id == "a")
    assert [claim.queue for claim in claims] == ["default"] * 2
    helped.result(helped.world.queue.claims.finish(claims[0], Completed(b'"done"')))
    assert helped.row(claims[0].task_id).state is State.COMPLETED


def test_own_slots_come_first(helped: Helped) -> None:
    helped.submit("a", "b", "c")
    helped.world.worker.slots_free = 2
    assert helped.world.queue.claims.backlog() == 1
    assert len(helped.lend()) == 1
    assert helped.lend() == []
    assert len(helped.result(helped.world.queue.claims.claim(2))) == 2


def test_what_is_lent_is_lost_when_its_lease_expires_and_not_before(helped: Helped) -> None:
    helped.submit("a")
    (claim,) = helped.lend()
    helped.pass_by(limits.LEASE_MS - 500)
    assert helped.row("a").state is State.PROCESSING
    helped.pass_by(int(limits.SAFETY_NET_S * 1000) + 600)
    row = helped.row("a")
    assert [(attempt.outcome, attempt.node) for attempt in row.attempts] == [("lost", HELPER)]
    with pytest.raises(StaleAttempt):
        helped.result(helped.world.queue.claims.finish(claim, Completed(b"1")))


def test_what_its_node_renews_goes_on(helped: Helped) -> None:
    helped.submit("a", "b")
    kept, dropped = helped.lend()
    for _ in range(8):
        helped.pass_by(limits.LEASE_RENEW_MS)
        helped.renew(kept)
    assert helped.row(kept.task_id).state is State.PROCESSING
    assert [attempt.outcome for attempt in helped.row(dropped.task_id).attempts] == ["lost"]
    helped.result(helped.world.queue.claims.finish(kept, Completed(b"1")))
    assert helped.row(kept.task_id).state is State.COMPLETED
    assert helped.world.queue.claims.remote._granted == {}


def test_an_old_lease_says_nothing_in_a_later_epoch(helped: Helped) -> None:
    """Another primary may have renewed it meanwhile: it has one lease from this primary's own promise, as all it inherits."""
    helped.submit("a")
    (claim,) = helped.lend()
    helped.pass_by(limits.LEASE_MS - 3_000)
    helped.world.choose([claim.partition], None)
    helped.world.elect([claim.partition])
    helped.world.until(lambda: not helped.world.queue.activation.waiting(), "it leads again")
    helped.pass_by(6_000)
    assert helped.row("a").state is State.PROCESSING
    helped.renew(claim)
    helped.pass_by(limits.LEASE_MS - 1_000)
    assert helped.row("a").state is State.PROCESSING, "renewed at the later primary"
    helped.pass_by(4_000)
    assert [attempt.outcome for attempt in helped.row("a").attempts] == ["lost"]


def test_types_without_a_handler_there_stay_for_others(helped: Helped) -> None:
    helped.world.queue.follow_handlers(None, {"picture", "email"})
    helped.submit("a", "b", task_type="picture")
    helped.submit("c")
    assert [claim.task_id for claim in helped.lend(types=["email"])] == ["c"]
    assert helped.lend(types=["email"]) == []
    assert {claim.task_id for claim in helped.result(helped.world.queue.claims.claim(9))} == {"a", "b"}


def test_a_worker_that_nobody_knows_gets_its_types_too(helped: Helped) -> None:
    """Of a node of an earlier release, which does not say what it takes: what lay among the unknown is read anew."""
    helped.submit("a", "b", task_type="picture")
    helped.submit("c")
    assert helped.lend(types=["email"]) == []
    helped.world.until(lambda: helped.world.queue.claims.backlog(["email"]) == 1, "it is found")
    assert [claim.task_id for claim in helped.lend(types=["email"])] == ["c"]


def test_what_is_given_back_while_its_type_becomes_known_is_found(helped: Helped) -> None:
    """The heaps are built from committed rows: one on its way to be committed is taken along."""
    helped.submit("a", task_type="picture")
    (claim,) = helped.lend()
    released = helped.world.queue.claims.finish(claim, Released())
    helped.world.queue.follow_handlers(("email",), {"email", "picture"})
    helped.result(released)
    helped.world.until(lambda: not helped.world.queue.table.ready.is_misplaced, "they are read anew")
    assert [claim.task_id for claim in helped.lend(types=["picture"])] == ["a"]


def test_a_remote_worker_s_type_is_looked_for_when_it_asks(helped: Helped) -> None:
    helped.submit("a", task_type="picture")
    claims = helped.world.queue.claims
    assert claims.ready_for({"picture"}, None) == 0, "among the unknown"
    helped.world.until(lambda: claims.ready_for({"picture"}, None) == 1, "it is found")


def test_a_worker_claims_nothing_that_it_can_not_run(helped: Helped) -> None:
    queue, worker = helped.world.queue, helped.world.worker
    worker.types = ("email",)
    queue.follow_handlers(worker.types, {"email", "picture"})
    helped.submit(*(f"p{n}" for n in range(200)), task_type="picture")
    helped.submit("x", task_type="unheard of")
    helped.submit("e")
    assert [claim.task_id for claim in helped.result(queue.claims.claim(9))] == ["e"]
    assert helped.result(queue.claims.claim(9)) == []
    worker.slots_free = 7
    assert queue.claims.backlog(["picture"]) == 200, "own slots are of no use to them"
    assert len(helped.lend(types=["picture"])) == 10
    worker.types = ("unheard of",)
    queue.follow_handlers(worker.types, {"email", "picture", "unheard of"})
    helped.world.until(lambda: not queue.table.ready.is_misplaced, "they are read anew")
    assert [claim.task_id for claim in helped.result(queue.claims.claim(9))] == ["x"]


def test_an_answer_is_bounded_by_its_bytes(helped: Helped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELP_BYTES_MAX", 2_500)
    helped.submit(*"abcdefg", payload=b'"' + b"x" * 998 + b'"')
    assert [len(helped.lend()) for _ in range(4)] == [3, 3, 1, 0]
    assert all(helped.row(task_id).attempt == 1 for task_id in "abcdefg"), "what did not fit was not begun"


def test_paused_queues_are_no_backlog(helped: Helped) -> None:
    helped.world.queue.set_paused(["still"])
    helped.submit("a", "b", queue="still")
    assert helped.world.queue.claims.backlog() == 0
    assert helped.lend() == []
    helped.world.queue.set_paused([])
    assert helped.world.queue.claims.backlog() == 2
    assert len(helped.lend()) == 2


def test_a_node_that_stops_lends_nothing(helped: Helped) -> None:
    helped.submit("a")
    helped.world.queue.refuse_work()
    assert helped.world.queue.claims.backlog() == 0
    assert list(helped.result(helped.world.queue.claims.lend(5, HELPER, None))) == []


def cancelled(helped: Helped, task_id: str) -> None:
    assert helped.result(helped.world.queue.cancel(task_id)).state is State.CANCELLED


def retried(helped: Helped, task_id: str) -> None:
    helped.result(helped.world.queue.retry(task_id))


@pytest.mark.parametrize("says", [True, False])
def test_a_cancelled_one_holds_its_task_until_it_has_ended_there(helped: Helped, says: bool) -> None:
    """I12: the handler at the other node may still run, until that says otherwise or its lease is over."""
    helped.pass_by(limits.LEASE_MS + 500)  # nothing that an earlier primary knew can run any more
    helped.submit("a")
    (claim,) = helped.lend()
    cancelled(helped, "a")
    retried(helped, "a")
    assert helped.lend() == []
    if says:
        with pytest.raises(StaleAttempt):
            helped.result(helped.world.queue.claims.finish(claim, Completed(b"1")))
    else:
        helped.pass_by(limits.LEASE_MS + 3_000)
    assert [again.attempt for again in helped.lend()] == [1]


def test_one_that_is_cancelled_before_its_claim_is_committed_is_not_sent(helped: Helped) -> None:
    helped.pass_by(limits.LEASE_MS + 500)
    helped.submit("a", "b")
    answers: list[Any] = []
    helped.world.queue.claims.lend(5, HELPER, None).addCallback(answers.append)
    helped.world.queue.cancel("a")
    helped.world.until(lambda: bool(answers), "the claims")
    assert [claim.task_id for claim in answers[0]] == ["b"]
    retried(helped, "a")
    assert [claim.task_id for claim in helped.lend()] == ["a"], "nobody runs it: it need not wait for a lease"


def test_rows_that_are_not_in_memory_are_lent_too(helped: Helped) -> None:
    look: Callable[[str], Any] = helped.world.queue.table.find
    helped.world.queue.table.rows._bytes_max = 0
    helped.submit("a", "b")
    helped.pass_by(1_000)
    assert look("a") is None
    assert len(helped.lend()) == 2
