"""Snapshots in chunks (dissertation, chapter 5; F6)."""

from __future__ import annotations

from tests.unit.tq_node.raft.single import (
    A,
    B,
    C,
    acknowledge,
    answer,
    core_of,
    drain,
    entry,
    lead,
    leader_of,
    only,
    said,
    step,
)
from tq_node.raft.core import RaftCore
from tq_node.raft.messages import Append, AppendReply, Configuration, Snapshot, SnapshotChunk, SnapshotReply
from tq_node.raft.progress import Mode
from tq_node.raft.settings import RaftSettings

SMALL = RaftSettings(snapshot_chunk_bytes=4, snapshot_bytes_max=100)
DATA = b"0123456789"


def chunk(
    offset: int, data: bytes, *, index: int = 9, term: int = 1, total: int = 10, source: str = B
) -> SnapshotChunk:
    return SnapshotChunk(source, A, term, index, 1, Configuration((A, B)), min(5, index), offset, total, data)  # type: ignore[arg-type]


def compacted_leader() -> RaftCore:
    """C has nothing, and the log no longer reaches back to it."""
    core = core_of(settings=SMALL)
    lead(core, B)
    acknowledge(core, B)
    core.propose(b"x")
    said(core)
    acknowledge(core, B)
    snapshot = core.snapshot_at(3, DATA)
    assert snapshot is not None
    assert core.compact(snapshot, 99) == 4
    return core


class TestLeader:
    def start(self) -> tuple[RaftCore, SnapshotChunk]:
        core = compacted_leader()
        messages = answer(core, C, 1)
        return core, only(messages, SnapshotChunk)[0]

    def test_sends_chunk_after_chunk_as_the_follower_asks(self) -> None:
        core, first = self.start()
        assert (first.offset, first.data, first.total_bytes, first.log_index) == (0, b"0123", 10, 3)
        second = only(step(core, SnapshotReply(C, A, core.term, 3, 4)), SnapshotChunk)[0]
        assert (second.offset, second.data) == (4, b"4567")
        third = only(step(core, SnapshotReply(C, A, core.term, 3, 8)), SnapshotChunk)[0]
        assert (third.offset, third.data) == (8, b"89")
        assert core.followers()[C].mode is Mode.SNAPSHOT
        core.propose(b"y")
        assert {append.target for append in only(said(core), Append)} == {B}, "no appends meanwhile"
        appends = only(step(core, AppendReply(C, A, core.term, 3)), Append)
        assert [each.data for append in appends for each in append.entries] == [b"y"]

    def test_an_answer_that_comes_twice_is_heard_once(self) -> None:
        core, _ = self.start()
        assert step(core, SnapshotReply(C, A, core.term, 3, 4))
        assert step(core, SnapshotReply(C, A, core.term, 3, 4)) == []
        assert step(core, SnapshotReply(C, A, core.term, 2, 8)) == [], "of another snapshot"

    def test_a_lost_chunk_is_sent_again_when_nothing_moves(self) -> None:
        core, first = self.start()
        assert only(answer(core, C, 1), SnapshotChunk) == []
        assert only(answer(core, C, 1), SnapshotChunk) == [first]

    def test_a_follower_that_has_restarted_begins_anew(self) -> None:
        core, first = self.start()
        step(core, SnapshotReply(C, A, core.term, 3, 4))
        assert only(step(core, SnapshotReply(C, A, core.term, 3, 0)), SnapshotChunk) == [first]

    def test_takes_none_that_is_older_than_what_came_in(self) -> None:
        core = core_of(1)
        core.step(chunk(0, DATA), 0)
        assert core.snapshot_at(1, b"") is None


class TestFollower:
    def test_puts_the_pieces_together_and_installs_once_the_disk_has_it(self) -> None:
        core = core_of(1)
        assert [reply.offset for reply in only(step(core, chunk(0, DATA[:5])), SnapshotReply)] == [5]
        core.step(chunk(5, DATA[5:]), 0)
        ready = core.ready()
        assert ready.snapshot == Snapshot(9, 1, Configuration((A, B)), 5, DATA)
        assert only(ready.messages_after_persist, AppendReply)[0].log_index == 9
        assert (core.commit_index, core.configuration.voters, core.log.configuration_index) == (9, (A, B), 5)

    def test_pieces_that_are_lost_doubled_or_late_cost_nothing_but_time(self) -> None:
        core = core_of(1)
        for offset, data, wants in ((5, DATA[5:], 0), (0, DATA[:5], 5), (0, DATA[:5], 5)):
            assert [reply.offset for reply in only(step(core, chunk(offset, data)), SnapshotReply)] == [wants]
        _, readies = drain(core)
        core.step(chunk(5, DATA[5:]), 0)
        _, readies = drain(core)
        assert [ready.snapshot.data for ready in readies if ready.snapshot] == [DATA]

    def test_pieces_of_two_snapshots_are_not_mixed(self) -> None:
        core = core_of(1)
        step(core, chunk(0, DATA[:5]))
        for other in (chunk(5, DATA[5:], index=8), chunk(5, DATA[5:], source=C, term=2)):
            assert [reply.offset for reply in only(step(core, other), SnapshotReply)] == [0]
        assert core.commit_index == 1

    def test_an_old_one_is_ignored_and_answered_with_what_is_here(self) -> None:
        core = core_of(1, 1, 1)
        step(core, Append(B, A, 1, 4, 1, 4))
        messages, readies = drain(core)
        core.step(chunk(0, b"", index=4, total=0), 0)
        messages, readies = drain(core)
        assert [reply.log_index for reply in only(messages, AppendReply)] == [4]
        assert not any(ready.snapshot for ready in readies)

    def test_one_whose_end_is_in_the_log_only_moves_the_commit_index(self) -> None:
        core = core_of(1, 1, 1)
        core.step(chunk(0, b"", index=3, total=0), 0)
        messages, readies = drain(core)
        assert (core.commit_index, core.log.last_index) == (3, 4)
        assert not any(ready.snapshot for ready in readies)
        assert [reply.log_index for reply in only(messages, AppendReply)] == [3]

    def test_one_that_is_too_long_is_not_begun(self) -> None:
        core = core_of(1, settings=SMALL)
        assert step(core, chunk(0, DATA, total=101)) == []

    def test_a_new_term_forgets_the_pieces(self) -> None:
        core = core_of(1)
        step(core, chunk(0, DATA[:5]))
        step(core, Append(C, A, 2, 2, 1, 1))
        assert not core._snapshots.buffer

    def test_who_joins_gets_the_founding_snapshot(self) -> None:
        core = leader_of()
        joiner = RaftCore(C, seed=1)
        step(joiner, Append(A, C, core.term, 2, 2, 1))
        joiner.step(
            SnapshotChunk(A, C, core.term, 1, 1, core.configuration, 1, 0, 0, b""),
            0,
        )
        _, readies = drain(joiner)
        assert [ready.snapshot.log_index for ready in readies if ready.snapshot] == [1]
        assert joiner.configuration.voters == (A, B, C)
        step(joiner, Append(A, C, core.term, 1, 1, 2, (entry(2, 2),)))
        assert joiner.commit_index == 2
