from __future__ import annotations

import pytest

from tq_node import limits
from tq_node.errors import Divergence
from tq_node.partition.entries import EpochStart, Horizon, decode_effects, is_intact
from tq_node.partition.replica import PrimaryLog, committed_sequence


def leading(**state: int) -> PrimaryLog[str]:
    log: PrimaryLog[str] = PrimaryLog(3, "a", **state)
    log.begin_epoch(state.get("promised", 0) + 1)
    return log


def test_r8_commit_is_the_least_of_the_whole_effective_set() -> None:
    everybody = frozenset("abc")
    assert committed_sequence({"a": 9, "b": 7, "c": 8}, everybody, 1) == 7
    assert committed_sequence({"a": 9, "b": 7}, everybody, 1) == 0, "who has said nothing counts as 0"
    assert committed_sequence({"a": 9, "b": 7}, frozenset("a"), 1) == 9
    with pytest.raises(ValueError, match="empty"):
        committed_sequence({"a": 1}, frozenset(), 1)


def test_r8_nothing_commits_below_the_barrier() -> None:
    assert committed_sequence({"a": 4}, frozenset("a"), 5) == 0
    assert committed_sequence({"a": 5}, frozenset("a"), 5) == 5


def test_r7_active_when_the_barrier_is_committed() -> None:
    log = leading()
    assert not log.is_active
    [entry] = log.seal()
    assert decode_effects(entry.payload) == [EpochStart(1)]
    assert is_intact(entry)
    log.durable("a", 1)
    assert log.is_active


def test_f20_an_epoch_is_never_resumed() -> None:
    log: PrimaryLog[str] = PrimaryLog(0, "a", promised=4)
    with pytest.raises(Divergence, match="epoch 4"):
        log.begin_epoch(4)


def test_effects_between_two_seals_share_an_entry() -> None:
    log = leading()
    log.seal()
    assert log.open_sequence == 2
    assert log.propose(Horizon(1), 8, "first") == 2
    assert log.propose(Horizon(2), 8) == 2
    assert log.open_sequence == 2
    [entry] = log.seal()
    assert decode_effects(entry.payload) == [Horizon(1), Horizon(2)]
    assert log.propose(Horizon(3), 8, "second") == 3
    log.seal()
    committed = log.durable("a", 3)
    assert [(entry.sequence, entry.news) for entry in committed] == [(1, []), (2, ["first"]), (3, ["second"])]
    assert log.durable("a", 3) == [], "told twice, committed once"
    assert log.durable("a", 2) == [], "never goes back"


def test_a_large_entry_is_cut() -> None:
    log = leading()
    log.seal()
    assert log.propose(Horizon(1), limits.ENTRY_BYTES_AIM - 1) == 2
    assert not log.will_share_entry(1_000)
    assert log.propose(Horizon(2), 1_000) == 3
    assert log.will_share_entry(1_000)
    assert [entry.sequence for entry in log.seal()] == [2, 3]


def test_close_open_starts_a_new_entry() -> None:
    log = leading()
    log.seal()
    log.close_open()
    log.propose(Horizon(1), 8)
    log.close_open()
    assert log.propose(Horizon(2), 8) == 3
    assert len(log.seal()) == 2


def test_two_claims_of_a_task_never_share_a_token() -> None:
    log = leading()
    log.seal()
    first = log.claim_token(0)
    log.propose(Horizon(1), 8)
    assert log.claim_token(0) == first, "another task's claim may share the entry"
    second = log.claim_token(first.sequence)
    assert second > first


def test_the_tail_commits_with_the_barrier_not_before() -> None:
    log: PrimaryLog[str] = PrimaryLog(0, "a", promised=2, last_sequence=5, applied=3)
    log.recover([(4, [Horizon(1)]), (5, [Horizon(2)])])
    assert log.committed == 3
    log.begin_epoch(3)
    log.seal()
    assert log.durable("a", 5) == []
    assert [entry.sequence for entry in log.durable("a", 6)] == [4, 5, 6]


@pytest.mark.parametrize("tail", [[(5, [])], [(4, [])], [(4, []), (6, [])]])
def test_a_log_with_a_gap_is_refused(tail: list[tuple[int, list[object]]]) -> None:
    log: PrimaryLog[str] = PrimaryLog(0, "a", promised=2, last_sequence=6, applied=3)
    with pytest.raises(Divergence):
        log.recover(tail)  # type: ignore[arg-type]  # lists are invariant


def test_every_member_must_have_it_when_there_are_several() -> None:
    log = leading()
    log.effective_set = frozenset("abc")
    log.seal()
    assert log.durable("a", 1) == []
    assert log.durable("b", 1) == []
    assert len(log.durable("c", 1)) == 1
