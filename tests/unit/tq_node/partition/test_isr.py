from __future__ import annotations

from typing import Any

from tests.simulation.replication.handmade import A, B, C, record
from tq_node.partition.isr import (
    Commitment,
    GiveUp,
    Larger,
    Smaller,
    Standing,
    effective_set,
    floor_to_join,
    may_commit,
    next_move,
)
from tq_node.partition.progress import ReplicaProgress
from tq_node.partition.settings import DEFAULT_SETTINGS, Budget
from tq_node.types import NodeId

D = NodeId("d")


def standing(node: NodeId, acked: int = 9, **fields: Any) -> Standing:
    return Standing(node, acked, **{"is_up": True, "lags": False, "is_fit": True, **fields})


def moves(rec: Any, *standings: Standing, floor: int = 5) -> Any:
    return next_move(rec, A, {s.node: s for s in standings}, floor)


def test_r9_the_effective_set_is_a_union() -> None:
    assert effective_set((A, B, C), (A, B)) == {A, B, C}, "a smaller set counts for nothing yet"
    assert effective_set((A, B), (A, B, C)) == {A, B, C}, "a larger one at once"


def test_r8_r10_the_barrier() -> None:
    assert not may_commit(4, 5)
    assert may_commit(5, 5)
    assert floor_to_join(5, 3) == 5, "F18"
    assert floor_to_join(5, 7) == 7


def test_all_well_nothing_to_do() -> None:
    assert moves(record(1, 1, A), standing(B), standing(C)) is None


def test_who_lags_goes() -> None:
    assert moves(record(1, 1, A), standing(B), standing(C, lags=True)) == Smaller(C, for_lag=True)


def test_r4_the_dead_go_first() -> None:
    assert moves(record(1, 1, A), standing(B, lags=True), standing(C, is_up=False, lags=True)) == Smaller(
        C, for_lag=False
    )


def test_r3_f16_never_below_min_isr() -> None:
    rec = record(1, 1, A, isr=(A, B))
    assert moves(rec, standing(B, lags=True), standing(C, acked=1)) is None
    assert moves(record(1, 1, A, isr=(A, B), min_isr=1), standing(B, lags=True), standing(C, acked=1)) == Smaller(
        B, for_lag=True
    ), "of one other alone it can't be told whose fault it is"


def test_all_lag_the_fault_is_here() -> None:
    assert moves(record(1, 1, A), standing(B, lags=True), standing(C, lags=True)) == GiveUp()


def test_r10_who_has_the_floor_comes_in() -> None:
    rec = record(1, 1, A, isr=(A, B))
    assert moves(rec, standing(B), standing(C, acked=5)) == Larger(C)
    assert moves(rec, standing(B), standing(C, acked=4)) is None
    assert moves(rec, standing(B), standing(C, is_up=False)) is None
    assert moves(rec, standing(B), standing(C, is_fit=False)) is None
    assert moves(rec, standing(B), standing(C, lags=True)) is None
    assert moves(rec, standing(B)) is None, "not heard of yet"


def test_who_moves_away_waits_for_the_newcomers_and_does_not_come_back() -> None:
    rec = record(1, 1, A, isr=(A, B, C), copies=(A, B, C, D), adding=(D,), removing=(C,), up=(A, B, C, D))
    assert moves(rec, standing(B), standing(C), standing(D, acked=1)) is None
    rec = record(1, 1, A, isr=(A, B, C, D), copies=(A, B, C, D), adding=(D,), removing=(C,), up=(A, B, C, D))
    assert moves(rec, standing(B), standing(C), standing(D)) == Smaller(C, for_lag=False)
    rec = record(1, 1, A, isr=(A, B, D), copies=(A, B, C, D), adding=(D,), removing=(C,), up=(A, B, C, D))
    assert moves(rec, standing(B), standing(C), standing(D)) is None
    rec = record(1, 1, A, isr=(A, B), removing=(A,))
    assert moves(rec, standing(B), standing(C, acked=1)) is None, "a primary that moves away has a successor"


# --- what is committed ---
def copies_that_have(**acked: int) -> dict[NodeId, ReplicaProgress]:
    copies = {}
    for name, sequence in acked.items():
        copies[NodeId(name)] = progress = ReplicaProgress(NodeId(name), DEFAULT_SETTINGS, Budget(), 0)
        progress.acked = sequence
    return copies


class TestCommitment:
    def test_the_least_that_is_durable_over_the_effective_set(self) -> None:
        copies = copies_that_have(b=7, c=5, d=1)
        commitment = Commitment(A, 3)
        commitment.learn((A, B, C), copies, settles=True)
        assert commitment.others == (B, C)
        assert commitment.advance(9, 2) == 5, "D is a copy and not in sync: it does not count"
        assert commitment.advance(4, 2) == 4, "the primary counts by its own disk"

    def test_it_never_goes_back(self) -> None:
        copies = copies_that_have(b=7)
        commitment = Commitment(A, 3)
        commitment.learn((A, B), copies, settles=True)
        assert commitment.advance(9, 7) is None
        copies[B].acked = 4
        assert commitment.advance(9, 7) is None, "a store that was set back takes back nothing that is committed"

    def test_nothing_before_the_barrier(self) -> None:
        copies = copies_that_have(b=2)
        commitment = Commitment(A, 3)
        commitment.learn((A, B), copies, settles=True)
        assert commitment.advance(9, 1) is None
        copies[B].acked = 3
        assert commitment.advance(9, 1) == 3, "with it, all before it"

    def test_alone_it_commits_what_is_on_its_disk(self) -> None:
        commitment = Commitment(A, 1)
        commitment.learn((A,), {}, settles=True)
        assert commitment.advance(0, 0) is None
        assert commitment.advance(6, 0) == 6

    def test_who_is_proposed_counts_until_a_newer_version_settles_it(self) -> None:
        copies = copies_that_have(b=7, c=5)
        commitment = Commitment(A, 3)
        commitment.learn((A, B), copies, settles=True)
        assert commitment.advance(9, 2) == 7
        commitment.propose(frozenset((A, B, C)), copies)
        assert commitment.effective == {A, B, C}
        assert commitment.unlearned() == (copies[C],)
        assert commitment.advance(9, 2) == 5
        commitment.propose(frozenset((A,)), copies)
        assert commitment.effective == {A, B, C}, "a smaller set counts for nothing before it is learned"
        commitment.learn((A, B), copies, settles=False)
        assert commitment.effective == {A, B, C}, "this record settles nothing"
        commitment.learn((A, B), copies, settles=True)
        assert commitment.effective == {A, B}
        assert commitment.unlearned() == ()
