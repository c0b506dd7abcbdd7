from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.replication.handmade import entry, stored
from tq_node.errors import Divergence
from tq_node.partition.entries import (
    Horizon,
    log_entry,
)
from tq_node.partition.replica_log import Committed, Install, ReplicaLog, Stored, Tail, follows_on, head
from tq_node.partition.settings import Budget, ReplicationSettings

Log = ReplicaLog[str]


def a_log(state: Stored | None = None, budget: Budget | None = None, **pace: int) -> Log:
    return ReplicaLog(0, state or Stored(), ReplicationSettings(**pace), budget or Budget())


def grow(log: Log, *epochs: int) -> None:
    for epoch in epochs:
        log.append(entry(log.last_sequence + 1, epoch), None, [])


def flush(log: Log, number: int = 1) -> Any:
    draft = log.take(number)
    log.persisted(number)
    return draft


def test_an_entry_goes_to_the_disk_once_and_its_epoch_with_it() -> None:
    log = a_log()
    log.promise(1)
    grow(log, 1, 1)
    draft = log.take(1)
    assert (draft.promise, draft.epochs, [e.sequence for e in draft.entries]) == (1, [(1, 1)], [1, 2])
    assert (log.durable_sequence, log.durable_promised) == (0, 0), "not before the disk says so"
    grow(log, 1)
    log.persisted(1)
    assert (log.durable_sequence, log.durable_promised, log.last_sequence) == (2, 1, 3)
    assert [e.sequence for e in log.take(2).entries] == [3]


@pytest.mark.parametrize(
    "put",
    [
        lambda log: log.promise(9),
        lambda log: grow(log, 2),
        lambda log: log.cut_after(2),
        lambda log: log.drop(),
        lambda log: log.unstage(),
        lambda log: log.stage(0, b"chunk"),
        lambda log: log.install(Install(5, ((2, 1),), 0, 1, b"digest")),
    ],
    ids=["promise", "append", "cut", "drop", "unstage", "stage", "install"],
)
def test_whatever_the_disk_owes_is_taken_once(put: Any) -> None:
    log = a_log(stored(1, 1, 1))
    before = log.has_pending
    put(log)
    assert (before, log.has_pending) == (False, True)
    assert not log.take(1).is_empty
    assert log.take(2).is_empty


def test_what_was_taken_with_nothing_in_it_stays_empty() -> None:
    log = a_log()
    draft = log.take(1)
    grow(log, 1)
    assert draft.is_empty


def test_i7_a_promise_only_grows() -> None:
    log = a_log(stored(1, promised=3))
    with pytest.raises(AssertionError, match="grows"):
        log.promise(3)


def test_commit_hands_out_in_order_and_once() -> None:
    budget = Budget()
    log = a_log(stored(1, 1, applied=1), budget)
    grow(log, 2)
    assert budget.uncommitted_bytes == log.uncommitted_bytes > 0
    log.commit_to(3)
    assert [(e.sequence, e.effects) for e in log.take_newly()] == [(2, [Horizon(2)]), (3, [Horizon(3)])]
    assert log.take_newly() == []
    assert budget.uncommitted_bytes == log.uncommitted_bytes == 0
    with pytest.raises(AssertionError, match="stays committed"):
        log.commit_to(3)


def test_r15_a_cut_takes_away_what_the_disk_has_and_what_it_has_not() -> None:
    log = a_log(stored(1, 1, 1))
    grow(log, 2)
    log.take(1)
    grow(log, 2)
    log.cut_after(2)
    draft = log.take(2)
    assert (draft.cut_after, draft.entries, draft.epochs) == (2, [], [])
    assert (log.last_sequence, log.durable_sequence, log.epochs.runs) == (2, 2, ((1, 1),))
    log.persisted(1)
    assert log.durable_sequence == 2, "what gets there late counts no further than the cut"
    grow(log, 3)
    log.cut_after(2)
    assert log.take(3).is_empty, "what the disk never heard of needs no cut"


def test_i5_what_is_committed_is_not_cut() -> None:
    log = a_log(stored(1, 1))
    log.commit_to(2)
    with pytest.raises(Divergence, match="though 2 is committed"):
        log.cut_after(1)


def test_a_log_that_does_not_hang_together_is_not_recovered() -> None:
    with pytest.raises(Divergence, match="gap before 3"):
        a_log(Stored(1, ((1, 1),), 1, 3, 1, (Tail(3, 1, []),)))
    with pytest.raises(Divergence, match="ends before 3"):
        a_log(Stored(1, ((1, 1),), 1, 3, 1, (Tail(2, 1, []),)))
    with pytest.raises(Divergence, match="does not begin"):
        a_log(Stored(1, ((1, 1),), 3, 1, 1))
    with pytest.raises(AssertionError, match="gaps"):
        a_log().append(entry(2, 1), None, [])


def test_an_install_takes_the_place_of_everything() -> None:
    log = a_log(stored(1, 1, 1, applied=1))
    log.commit_to(2)
    log.stage(0, b"rows")
    log.install(Install(9, ((1, 1), (4, 8)), 0, 1, b"d"))
    draft = log.take(1)
    assert (draft.stage, draft.install) == ([(0, b"rows")], Install(9, ((1, 1), (4, 8)), 0, 1, b"d"))
    assert (log.last_sequence, log.committed, log.applied, log.log_start) == (9, 9, 9, 10)
    assert log.durable_sequence == 2
    assert log.take_newly() == [], "the snapshot shows it already"
    log.persisted(1)
    assert log.durable_sequence == 9
    with pytest.raises(Divergence, match="behind the committed 9"):
        log.install(Install(8, (), 0, 0, b""))


def test_a_drop_starts_from_nothing_but_the_promise() -> None:
    log = a_log(stored(1, 1, applied=1))
    log.promise(7)
    grow(log, 1)
    log.drop()
    draft = log.take(1)
    assert (draft.promise, draft.drop, draft.entries) == (7, True, [])
    assert (log.last_sequence, log.committed, log.applied, log.log_start, len(log.epochs)) == (0, 0, 0, 1, 0)
    log.persisted(1)
    assert (log.durable_sequence, log.durable_promised) == (0, 7)


def test_recent_entries_are_kept_within_bounds_but_never_lost_before_they_are_durable() -> None:
    log = a_log(recent_bytes=200)
    grow(log, 1, 1, 1, 1, 1)
    assert len(log.recent) == 5
    assert [e.sequence for e in log.recent_from(2, 10_000, 3)] == [2, 3, 4]
    assert [e.sequence for e in log.recent_from(2, 1, 3)] == [2], "at least one"
    flush(log)
    assert log.recent[0].sequence > 2
    assert log.recent_from(1, 10_000, 3) == ()
    assert log.recent_from(6, 10_000, 3) == ()


def test_the_log_remembers_about_how_long_it_is() -> None:
    log = a_log(mark_bytes=1)
    assert log.keeps_from(0) == 0
    grow(log, 1, 1, 1)
    size = log.bytes_after(2)
    assert log.bytes_after(1) == 2 * size
    assert log.keeps_from(size) == 2
    assert log.keeps_from(3 * size) == 0
    log.commit_to(3)
    log.trimmed(2)
    assert (log.log_start, log.bytes_after(0)) == (3, size)
    with pytest.raises(AssertionError, match="never past"):
        log.trimmed(4)


def test_what_nobody_waits_for_has_no_news() -> None:
    log = a_log()
    log.append(entry(1, 1), [Horizon(1)], ["somebody"])
    log.abandon_news()
    log.commit_to(1)
    assert [e.news for e in log.take_newly()] == [[]]


def test_small_parts() -> None:
    entries = (entry(4, 1), entry(5, 1))
    assert follows_on(entries, 3)
    assert not follows_on(entries, 4)
    assert head(entries, 1 << 20, 1) == entries[:1]
    assert log_entry(entries[0]) is entries[0]
    assert Committed[str](1, None, entries[0].payload, [], 0).effects == [Horizon(4)]
