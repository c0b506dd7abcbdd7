"""Leases of remote workers at their primary (replication.md, section 8): a real queue, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.support.node_world import START_US, NodeWorld
from tq_node import limits
from tq_node.errors import NotPrimary, StaleAttempt
from tq_node.facade import Claim, Completed, Extended, HeldAttempt, Released, Submission, WorkerAsk
from tq_node.partition.lifecycle import Cancel
from tq_node.types import State, TaskRow

LEASE_MS = 40_000
"""Longer than a node's own."""


class Far:
    """A node, and a worker that speaks to it."""

    def __init__(self) -> None:
        self.world = NodeWorld(0)

    @property
    def queue(self) -> Any:
        return self.world.queue

    @property
    def attempts(self) -> Any:
        return self.queue.claims.of_workers

    def submit(self, *ids: str, timeout_ms: int | None = None) -> None:
        for task_id in ids:
            submission = Submission(type="email", payload=b"1", id=task_id, content_hash=b"a", timeout_ms=timeout_ms)
            self.result(self.queue.submitter.submit(submission))

    def claim(self, worker: str = "w-1", lease_ms: int = LEASE_MS, claim_id: str = "") -> list[Claim]:
        return list(self.result(self.queue.claims.claim_for(WorkerAsk(worker, lease_ms, claim_id), 10)))

    def one(self, task_id: str = "a", **fields: Any) -> Claim:
        self.submit(task_id, **fields)
        (claim,) = self.claim()
        return claim

    def extend(self, *claims: Claim, worker: str = "w-1") -> list[Extended]:
        found: list[Extended] = []
        for claim in claims:
            held = HeldAttempt(claim.task_id, claim.partition, claim.attempt, claim.token)
            found += self.result(self.queue.extend(claim.partition, worker, [held]))
        return found

    def result(self, answer: Deferred[Any]) -> Any:
        results: list[Any] = []
        answer.addBoth(results.append)
        self.world.until(lambda: bool(results), "an answer")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def row(self, task_id: str = "a") -> TaskRow:
        row = self.result(self.queue.reads.get(task_id)).row
        assert isinstance(row, TaskRow)
        return row

    def pass_by(self, milliseconds: int) -> None:
        for _ in range(milliseconds // 100):
            self.world.turn(0.1)
            self.world.store.deliver()
            self.world.store.sync()

    def come_back(self) -> None:
        """Every partition goes, and is led here again in a later epoch."""
        self.world.choose(range(self.world.partitions), None)
        self.world.choose(range(self.world.partitions), self.queue.node_id)

    def lead(self) -> None:
        self.world.until(lambda: not self.queue.activation.waiting(), "it leads")
        self.world.settle()


@pytest.fixture
def far() -> Far:
    return Far()


# --- one primary ---
def test_a_lease_is_as_long_as_was_asked_and_extended_from_now(far: Far) -> None:
    claim = far.one()
    far.pass_by(LEASE_MS - 2_000)
    assert far.extend(claim) == [Extended(LEASE_MS)]
    far.pass_by(LEASE_MS - 2_000)
    assert far.row().state is State.PROCESSING
    far.pass_by(4_000)
    assert far.row().state is not State.PROCESSING
    assert far.row().attempts[-1].outcome == "lost"
    assert far.extend(claim) == [Extended(0)]
    with pytest.raises(StaleAttempt):
        far.result(far.queue.claims.finish(claim, Completed(b"1")))
    assert far.attempts.counts() == {}


def test_what_ended_is_in_no_book(far: Far) -> None:
    claim = far.one()
    far.result(far.queue.claims.finish(claim, Completed(b"1")))
    far.submit("b")
    (other,) = far.claim()
    far.result(far.queue.claims.finish(other, Released()))
    assert far.attempts.counts() == {}
    assert not far.attempts.books


def test_a_cancelled_task_that_is_tried_again_waits_for_its_handler_or_its_lease(far: Far) -> None:
    claim = far.one()
    far.result(far.queue.cancel("a"))
    assert far.extend(claim) == [Extended(0, is_cancelled=True)]
    far.result(far.queue.retry("a"))
    far.pass_by(limits.LEASE_MS + 5_000)
    assert far.claim() == [], "it may run for another 20 s"
    with pytest.raises(StaleAttempt):
        far.result(far.queue.claims.finish(claim, Released()))
    assert len(far.claim()) == 1, "its worker says that it runs no more"


def test_a_timeout_ends_it_and_nothing_starts_beside_its_handler(far: Far) -> None:
    claim = far.one(timeout_ms=3_000)
    far.pass_by(4_000)
    row = far.row()
    assert row.error is not None
    assert row.error.type == "timeout"
    far.pass_by(20_000)
    assert far.row().state is State.PENDING
    assert far.claim() == []
    assert far.extend(claim) == [Extended(0)]
    far.pass_by(20_000)
    assert len(far.claim()) == 1


def test_a_timeout_is_measured_in_time_that_passes(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the system's clock ends nothing."""
    far.one(timeout_ms=30_000)
    far.queue._clock.wall_us._wall_ns = lambda: (START_US + 10**10) * 1000
    far.pass_by(20_000)
    assert far.row().state is State.PROCESSING
    far.pass_by(12_000)
    assert far.row().state is not State.PROCESSING


def test_claims_of_an_id_are_told_once_they_are_committed(far: Far) -> None:
    far.submit("a", "b")
    asked = far.queue.claims.claim_for(WorkerAsk("w-1", LEASE_MS, "c-1"), 10)
    again = far.attempts.claimed_before("w-1", "c-1")
    far.world.turn()
    assert not asked.called
    assert not again.called, "their entries could still be lost"
    claims, found = far.result(asked), far.result(again)
    assert [claim.token for claim in found] == [claim.token for claim in claims]
    assert far.result(far.attempts.claimed_before("w-1", "c-2")) == []
    assert far.result(far.attempts.claimed_before("w-2", "c-1")) == []
    far.result(far.queue.claims.finish(claims[0], Completed(b"1")))
    assert [claim.token for claim in far.result(far.attempts.claimed_before("w-1", "c-1"))] == [claims[1].token]


# --- a later primary ---
def test_an_inherited_attempt_has_its_whole_lease_and_no_more(far: Far) -> None:
    claim = far.one()
    far.pass_by(LEASE_MS - 5_000)
    far.world.crash()
    far.pass_by(LEASE_MS - 5_000)
    assert far.row().state is State.PROCESSING
    far.pass_by(10_000)
    assert far.row().attempts[-1].outcome == "lost"
    assert far.extend(claim) == [Extended(0)]


def test_a_partition_that_comes_back_before_anybody_looked(far: Far) -> None:
    """The booking of the earlier epoch is none of this one."""
    claim = far.one()
    far.come_back()
    far.lead()
    assert far.extend(claim) == [Extended(LEASE_MS)]
    far.pass_by(2_000)
    assert far.extend(claim) == [Extended(LEASE_MS)], "not forgotten when the old booking is dropped"
    far.pass_by(LEASE_MS + 2_000)
    assert far.row().attempts[-1].outcome == "lost"


def test_it_is_extended_before_the_partitions_rows_are_looked_at(far: Far) -> None:
    """An extend may come between the take-up and the read of the rows that run."""
    claim = far.one()
    far.world.crash()
    far.queue.table.rows._bytes_max = 0
    far.attempts._held.clear()
    assert far.extend(claim) == [Extended(LEASE_MS)]
    far.pass_by(LEASE_MS + 2_000)
    assert far.row().attempts[-1].outcome == "lost", "and it is in the books since"


def test_an_id_is_known_to_the_later_primary(far: Far) -> None:
    far.submit("a")
    claims = far.claim(claim_id="c-1")
    far.world.crash()
    far.lead()
    assert [claim.token for claim in far.result(far.attempts.claimed_before("w-1", "c-1"))] == [claims[0].token]


def test_while_rows_are_read_no_partition_is_answered_for(far: Far) -> None:
    far.submit("a")
    far.claim(claim_id="c-1")
    assert len(far.attempts.known_of()) == far.world.partitions
    far.world.crash()
    far.queue.table.rows.drop_partition(far.queue.table.partition_of("a"))
    adopting = far.attempts.adopt(["a"])
    assert far.attempts.known_of() == []
    far.result(adopting)
    assert len(far.attempts.known_of()) == far.world.partitions


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_a_later_primary_waits_for_the_lease_of_the_row(far: Far, how: str) -> None:
    """Only the earlier one knew whether the handler still ran (I12)."""
    far.one(timeout_ms=None if how == "cancelled" else 3_000)
    if how == "cancelled":
        far.result(far.queue.cancel("a"))
    else:
        far.pass_by(4_000)
    far.world.crash()
    if how == "cancelled":
        far.result(far.queue.retry("a"))
    far.pass_by(limits.LEASE_MS + 5_000)
    assert far.claim() == []
    far.pass_by(LEASE_MS - limits.LEASE_MS)
    assert len(far.claim()) == 1


def test_nobody_who_is_deposed_extends(far: Far) -> None:
    claim = far.one()
    far.world.choose(range(far.world.partitions), None)
    with pytest.raises(NotPrimary):
        far.extend(claim)
    assert far.attempts.counts() == {}, "whoever leads it now has adopted it"


def test_an_extend_that_crosses_a_cancel(far: Far) -> None:
    claim = far.one()
    slot = far.queue.table.find("a")
    far.queue.table.change(slot, Cancel(1), 1)
    assert far.extend(claim) == [Extended(0, is_cancelled=True)]
