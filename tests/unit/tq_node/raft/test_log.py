"""The log in memory: consistency check, cuts, configuration, snapshots, what is durable."""

from __future__ import annotations

import pytest

from tests.unit.tq_node.raft.single import A, B, C, entry
from tq_node.raft.log import RaftLog, Write
from tq_node.raft.messages import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    Snapshot,
    encode_change,
)

BASE = Snapshot(1, 1, Configuration((A, B, C)), 1)


def log_of(*terms: int) -> RaftLog:
    return RaftLog(BASE, [entry(term, index) for index, term in enumerate(terms, 2)])


def terms_of(log: RaftLog) -> list[int]:
    return [each.term for each in log.entries]


def configuration_entry(term: int, log_index: int, *voters: str) -> Entry:
    change = ConfigurationChange(Configuration(voters), Change(ChangeKind.REMOVE, C))  # type: ignore[arg-type]
    return Entry(term, log_index, EntryKind.CONFIGURATION, encode_change(change))


class TestConsistencyCheck:
    """Dissertation, 3.5."""

    def test_refuses_a_gap_and_a_conflict_before(self) -> None:
        log = log_of(1, 2)
        assert log.try_append(4, 2, [entry(2, 5)]) is None
        assert log.try_append(3, 1, [entry(2, 4)]) is None
        assert terms_of(log) == [1, 2]

    def test_takes_what_is_new_and_cuts_only_at_a_conflict(self) -> None:
        log = log_of(1, 2, 2)
        assert log.try_append(2, 1, [entry(2, 3)]) == 3
        assert terms_of(log) == [1, 2, 2], "an old append cuts nothing"
        assert log.try_append(2, 1, [entry(2, 3), entry(3, 4), entry(3, 5)]) == 5
        assert terms_of(log) == [1, 2, 3, 3]

    def test_an_empty_append_proves_what_is_before_it(self) -> None:
        assert log_of(1, 2).try_append(2, 1, []) == 2

    def test_never_cuts_what_is_committed(self) -> None:
        log = log_of(1, 2)
        log.commit_to(3)
        with pytest.raises(AssertionError):
            log.try_append(2, 1, [entry(3, 3)])

    def test_the_hint_is_the_last_position_that_may_agree(self) -> None:
        log = log_of(1, 1, 2, 5, 5)
        assert log.agreement_at_most(6, 4) == (4, 2)
        assert log.agreement_at_most(99, 9) == (6, 5)
        assert log.agreement_at_most(5, 0) == (0, 0)


class TestBounds:
    def test_gaps_and_short_logs_are_not_taken_for_logs(self) -> None:
        with pytest.raises(AssertionError, match="gap"):
            RaftLog(BASE, [entry(1, 3)])
        with pytest.raises(AssertionError, match="ends before"):
            RaftLog(Snapshot(9, 1), [entry(1, 3), entry(1, 4)])
        with pytest.raises(AssertionError, match="applied more"):
            RaftLog(BASE, [], applied_index=2)

    def test_commit_never_decreases_and_never_passes_the_end(self) -> None:
        log = log_of(1, 1)
        log.commit_to(3)
        log.commit_to(2)
        assert log.commit_index == 3
        with pytest.raises(AssertionError):
            log.commit_to(4)

    def test_a_slice_holds_at_least_one_entry_then_what_fits(self) -> None:
        log = log_of(1, 1, 1)
        size = log.entries[0].size_bytes
        assert len(log.slice(2, 4, 1)) == 1
        assert len(log.slice(2, 4, 2 * size)) == 2
        assert len(log.slice(2, 4, 1 << 30)) == 3
        assert log.slice(4, 3, 1 << 30) == ()


class TestConfiguration:
    """A function of the log: in effect when appended, and gone when cut (4.1)."""

    def test_follows_the_log_forth_and_back(self) -> None:
        log = log_of(1)
        log.append([configuration_entry(1, 3, A, B)])
        assert (log.configuration.voters, log.configuration_index) == ((A, B), 3)
        assert log.configuration_at(2) == (1, BASE.configuration)
        log.cut_from(3)
        assert (log.configuration.voters, log.configuration_index) == ((A, B, C), 1)

    def test_is_read_from_the_log_at_start_but_not_from_below_the_snapshot(self) -> None:
        snapshot = Snapshot(3, 1, Configuration((A,)), 2)
        log = RaftLog(snapshot, [configuration_entry(1, 2, A, B, C), entry(1, 3), configuration_entry(1, 4, A, B)])
        assert (log.offset_index, log.configuration.voters) == (2, (A, B))
        log.cut_from(4)
        assert (log.configuration_index, log.configuration.voters) == (2, (A,))

    def test_is_kept_by_a_snapshot(self) -> None:
        log = log_of(1)
        log.restore(Snapshot(9, 2, Configuration((A, B)), 7, b""))
        assert (log.configuration_index, log.configuration.voters) == (7, (A, B))

    def test_compaction_keeps_the_one_in_effect(self) -> None:
        log = RaftLog(
            BASE, [configuration_entry(1, 2, A, B), entry(1, 3), configuration_entry(1, 4, A)], applied_index=3
        )
        log.compact(Snapshot(3, 1, Configuration((A, B)), 2), 4)
        assert [index for index, _ in log.configurations] == [2, 4]


class TestSnapshots:
    def test_an_old_one_is_never_installed(self) -> None:
        log = log_of(1, 1)
        log.commit_to(3)
        with pytest.raises(AssertionError):
            log.restore(Snapshot(3, 1))

    def test_nothing_is_applied_until_the_disk_has_it(self) -> None:
        log = log_of(1, 1)
        log.restore(Snapshot(9, 2, BASE.configuration, 1, b"x"))
        assert not log.has_committed()
        snapshot, entries = log.hand_out()
        assert snapshot is not None
        assert (snapshot.log_index, entries) == (9, ())
        log.writes.append(Write(1, log.handed_index, None))
        log.append([entry(2, 10)])
        log.commit_to(10)
        assert not log.has_committed()
        log.hand_out()
        log.writes.append(Write(2, 10, None))
        log.persisted(1)
        assert not log.has_committed()
        log.persisted(2)
        assert [each.log_index for each in log.next_committed(1 << 20)] == [10]

    def test_a_write_under_way_does_not_count_for_what_a_snapshot_replaced(self) -> None:
        log = log_of(1)
        log.append([entry(1, 3)])
        log.hand_out()
        log.writes.append(Write(1, 3, None))
        log.restore(Snapshot(3, 2, BASE.configuration, 1, b""))
        log.persisted(1)
        assert log.durable_index < 3

    def test_compaction_keeps_some_entries_and_never_passes_the_snapshot(self) -> None:
        log = RaftLog(BASE, [entry(1, index) for index in range(2, 8)], applied_index=6)
        assert log.compact(Snapshot(6, 1, BASE.configuration, 1), 5) == 5
        assert (log.offset_index, log.term(4), log.term(3)) == (4, 1, None)
        assert log.compact(Snapshot(6, 1, BASE.configuration, 1), 99) == 7
        assert log.compact(Snapshot(5, 1, BASE.configuration, 1), 2) == 7, "an older one changes nothing"
        with pytest.raises(AssertionError):
            log.compact(Snapshot(7, 1, BASE.configuration, 1), 2)

    def test_restart_keeps_the_entries_before_the_snapshot(self) -> None:
        log = RaftLog(Snapshot(4, 1, BASE.configuration, 1), [entry(1, index) for index in range(3, 7)])
        assert (log.offset_index, log.commit_index, log.last_index) == (3, 4, 6)
        assert log.matches(3, 1)


class TestDurability:
    def test_a_cut_takes_back_what_a_write_under_way_will_make_durable(self) -> None:
        log = log_of(1)
        log.append([entry(1, 3), entry(1, 4)])
        log.hand_out()
        log.writes.append(Write(1, 4, None))
        log.try_append(3, 1, [entry(2, 4)])
        log.hand_out()
        log.writes.append(Write(2, 4, None))
        log.persisted(1)
        assert log.durable_index == 3
        log.persisted(2)
        assert log.durable_index == 4

    def test_only_what_is_durable_here_is_applied(self) -> None:
        log = log_of(1)
        log.append([entry(1, 3)])
        log.commit_to(3)
        assert [each.log_index for each in log.next_committed(1 << 20)] == [2]
        assert log.next_committed(1 << 20) == ()
