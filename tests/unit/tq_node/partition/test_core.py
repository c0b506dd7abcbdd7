from __future__ import annotations

import zlib
from typing import Any

import msgspec
import pytest

from tests.simulation.replication.handmade import A, B, C, Core, a_core, entry, lead, leaving, persist, record, stored
from tq_node.errors import Divergence, Unsound
from tq_node.partition.effects import (
    Activated,
    AskEpoch,
    CloseSnapshot,
    OpenSnapshot,
    ProposeIsr,
    ProposeStepDown,
    ReadChunk,
    ReadLog,
    SteppedDown,
)
from tq_node.partition.entries import (
    EpochStart,
    Horizon,
    LogEntry,
)
from tq_node.partition.leases import NEVER_MS
from tq_node.partition.messages import (
    Ack,
    Append,
    Reject,
    RejectCode,
    SnapAck,
    SnapBegin,
    SnapChunk,
    SnapEnd,
    Sync,
    SyncOk,
)
from tq_node.partition.progress import Mode
from tq_node.partition.replica_log import Install, Stored
from tq_node.partition.settings import ReplicationSettings
from tq_node.types import Token

PAIR: dict[str, Any] = {"isr": (A, B), "copies": (A, B)}


def led_pair(**pace: int) -> Core:
    core = a_core(A, pace=ReplicationSettings(keep_bytes=0, mark_bytes=1, **pace))
    lead(core, 1, (B,), **PAIR)
    return core


def put(core: Core, count: int = 1, now_ms: int = 0) -> None:
    """So many entries, sealed, sent, durable here."""
    for _ in range(count):
        core.propose(Horizon(1), 8)
        persist(core, now_ms)


class TestBecomingPrimary:
    def test_r6_nothing_leaves_before_the_promise_is_durable(self) -> None:
        core = a_core(A)
        core.connected(B, 0)
        core.follow(record(1, 1, A, **PAIR), 0)
        assert leaving(core) == []
        ready = core.ready(0)
        assert (ready.write.promise, ready.write.epochs) == (1, [(1, 1)])
        assert (ready.messages, ready.messages_after) == ([], [])
        assert core.requeue_at_ms is None
        core.persisted(ready.number, 70)
        assert leaving(core) == [(B, Sync(0, 1, ((1, 1),), 1, 1))]
        assert core.requeue_at_ms == 70 + ReplicationSettings().lease_ms

    def test_r7_active_with_the_barrier_and_then_it_says_so(self) -> None:
        core = a_core(A)
        core.connected(B, 0)
        core.follow(record(1, 1, A, **PAIR), 0)
        persist(core)
        core.outbox()
        core.receive(B, SyncOk(0, 1, 0), 0)
        [(to, append)] = leaving(core)
        assert isinstance(append, Append)
        assert (to, append.prev_sequence, [e.sequence for e in append.entries]) == (B, 0, [1])
        assert core.outbox().events == []
        core.receive(B, Ack(0, 1, 1), 0)
        box = core.outbox()
        assert core.is_active
        assert box.events == [Activated(1)]
        assert [entry.effects for entry in box.committed] == [[EpochStart(1)]]

    def test_r6_an_epoch_that_may_have_been_led_before_is_not_led_again(self) -> None:
        core = a_core(A, stored(1, promised=2))
        core.follow(record(2, 5, A, **PAIR), 0)
        assert core.outbox().steps == [AskEpoch(0, 2, 5)]
        core.tick(500)
        assert core.outbox().steps == []
        core.tick(1_100)
        assert core.outbox().steps == [AskEpoch(0, 2, 5)], "until it is heard"
        core.follow(record(3, 6, A, **PAIR), 1_200)
        assert core.epoch == 3

    def test_the_table_never_goes_back(self) -> None:
        core = a_core(A)
        core.follow(record(2, 5, B), 0)
        assert core.primary == B
        with pytest.raises(AssertionError, match="never goes back"):
            core.follow(record(2, 4, B), 0)

    def test_alone_it_needs_nobody(self) -> None:
        core = a_core(A)
        lead(core, 1, (), isr=(A,), copies=(A,), min_isr=1)
        core.propose(Horizon(1), 8, "news")
        persist(core)
        assert [e.news for e in core.outbox().committed] == [["news"]]
        assert core.may_read(10**9)
        assert core.confirmed_at_ms(55) == 55


class TestWriting:
    def test_entries_leave_before_the_own_sync_and_are_encoded_once(self) -> None:
        core = a_core(A)
        lead(core, 1, (B, C))
        core.propose(Horizon(1), 8, "one")
        core.propose(Horizon(2), 8, "two")
        ready = core.ready(0)
        (to_b, first), (to_c, second) = ready.messages
        assert (to_b, to_c, first is second) == (B, C, True)
        assert isinstance(first, Append)
        assert first.entries[0] is ready.write.entries[0]
        core.receive(B, Ack(0, 1, 2), 0)
        core.receive(C, Ack(0, 1, 2), 0)
        assert core.outbox().committed == [], "R8: its own disk counts too"
        core.persisted(ready.number, 0)
        assert [e.news for e in core.outbox().committed] == [["one", "two"]]

    def test_r9_a_smaller_set_counts_once_it_is_learned(self) -> None:
        core = a_core(A)
        lead(core, 1, (B, C))
        put(core)
        core.receive(B, Ack(0, 1, 2), 0)
        assert core.committed == 1
        core.follow(record(1, 2, A, isr=(A, B)), 0)
        assert core.committed == 2
        assert core.effective_set == {A, B}

    def test_tokens_and_entries_as_the_table_of_tasks_wants_them(self) -> None:
        core = led_pair()
        assert core.log.last_sequence + 1 == 2
        assert core.claim_token(0) == Token(1, 2)
        core.propose(Horizon(1), 8)
        assert core.will_share_entry(100)
        assert not core.will_share_entry(1 << 20)
        assert core.claim_token(2) == Token(1, 3)
        assert core.propose(Horizon(1), 1 << 20) == 3
        assert core.propose(Horizon(1), 8) == 4, "a large entry is cut"
        core.close_open()
        assert core.log.last_sequence + 1 == 5
        assert core.uncommitted_bytes > 0
        assert core.has_ready

    def test_r12_stepping_down_is_at_once(self) -> None:
        core = led_pair()
        core.propose(Horizon(1), 8, "sent")
        persist(core)
        core.propose(Horizon(2), 8, "open")
        core.receive(B, Reject(0, 1, RejectCode.STALE_EPOCH, 3), 0)
        assert not core.is_leading
        assert core.outbox().events == [SteppedDown(1, was_active=True)]
        assert core.last_sequence == 2, "what was sent stays in the log, what was open never was in it"
        assert (core.is_active, core.may_read(0), core.confirmed_at_ms(5)) == (False, False, NEVER_MS)
        assert (core.streams, core.effective_set, core.requeue_at_ms) == ({}, frozenset(), None)
        core.receive(B, Ack(0, 1, 2), 0)
        core.receive(B, SyncOk(0, 1, 2), 0)
        assert core.committed == 1
        with pytest.raises(AssertionError, match="only a primary"):
            core.propose(Horizon(1), 8)

    def test_the_table_ends_it_too(self) -> None:
        for later in (record(2, 2, B, **PAIR), record(1, 2, None, **PAIR)):
            core = led_pair()
            core.follow(later, 0)
            assert not core.is_leading

    def test_a_higher_sync_makes_it_a_replica(self) -> None:
        core = led_pair()
        core.receive(B, Sync(0, 2, ((1, 1), (2, 2)), 1, 2), 0)
        assert persist(core).messages_after == [(B, SyncOk(0, 2, 1))]
        with pytest.raises(Unsound, match="b says that it is primary of epoch 1, as this node is"):
            led_pair().receive(B, Sync(0, 1, ((1, 1),), 1, 1), 0)


class TestStreams:
    def test_a_gap_or_a_lost_message_is_mended_by_a_sync(self) -> None:
        core = led_pair()
        put(core, 2)
        core.outbox()
        core.receive(B, Reject(0, 1, RejectCode.NOT_SYNCED, 1), 5)
        assert leaving(core) == [(B, Sync(0, 1, ((1, 1),), 1, 3))]
        core.receive(B, Reject(0, 1, RejectCode.NOT_SYNCED, 1), 5)
        assert leaving(core) == [], "one is on its way"
        core.tick(1_100)
        assert [type(m) for _, m in leaving(core)] == [Sync], "that was lost too"
        core.receive(B, SyncOk(0, 1, 1), 1_200)
        [(_, append)] = leaving(core)
        assert isinstance(append, Append)
        assert [e.sequence for e in append.entries] == [2, 3]
        core.tick(2_300)
        assert [type(m) for _, m in leaving(core)] == [Sync], "nobody answers"

    def test_the_commit_is_told_with_the_next_entries_or_by_a_tick(self) -> None:
        core = led_pair()
        put(core)
        core.receive(B, Ack(0, 1, 2), 0)
        core.outbox()
        core.tick(50)
        assert leaving(core) == [(B, Append(0, 1, 2, (), 2))]
        core.tick(100)
        assert leaving(core) == []

    def test_connections_come_and_go(self) -> None:
        core = led_pair()
        core.disconnected(B)
        put(core)
        assert leaving(core) == []
        assert core.lag() == {B: 1}
        core.connected(B, 9)
        assert [type(m) for _, m in leaving(core)] == [Sync]
        core.connected(C, 9)
        core.disconnected(C)
        assert leaving(core) == []

    def test_a_replica_that_lags_is_fed_from_the_store_within_a_window(self) -> None:
        core = led_pair(recent_bytes=1, window_entries=2, append_bytes_aim=1_000)
        core.disconnected(B)
        put(core, 5)
        core.connected(B, 0)
        core.receive(B, SyncOk(0, 1, 1), 0)
        assert core.outbox().requests == [ReadLog(B, 2, 1_000)]
        read = [LogEntry(0, s, 1, 0, b"") for s in (2, 3, 4)]
        core.log_read(B, read, 0)
        [(_, append)] = leaving(core)[-1:]
        assert isinstance(append, Append)
        assert [e.sequence for e in append.entries] == [2, 3]
        core.receive(B, Ack(0, 1, 3), 0)
        assert core.outbox().requests == [ReadLog(B, 4, 1_000)]
        core.log_read(B, [], 0)
        assert [w.first for w in core.outbox().requests if isinstance(w, ReadLog)] == [4], (
            "nothing there: it looks again"
        )
        core.log_read(C, [], 0)
        core.disconnected(B)
        core.log_read(B, read, 0)
        assert leaving(core) == []

    def test_copies_that_are_none_any_more_get_nothing_more(self) -> None:
        core = a_core(A)
        lead(core, 1, (B, C))
        core.follow(record(1, 2, A, isr=(A, B), copies=(A, B)), 0)
        assert set(core.streams) == {B}
        core.receive(C, Ack(0, 1, 1), 0)
        core.receive(C, SyncOk(0, 1, 1), 0)


class TestAStoreThatWasSetBack:
    """F14: a later run of the replica answers a ``Sync`` with less than it had acknowledged. Its disk shows an older state."""

    def test_it_is_sent_what_it_lacks(self) -> None:
        core = led_pair()
        put(core, 2)
        core.receive(B, Ack(0, 1, 3), 0)
        assert core.committed == 3
        core.disconnected(B)
        core.connected(B, 9)
        core.receive(B, SyncOk(0, 1, 1), 9)
        [append] = [message for _, message in leaving(core) if isinstance(message, Append)]
        assert [e.sequence for e in append.entries] == [2, 3]
        assert core.lag() == {B: 2}
        assert core.committed == 3, "it never decreases"
        core.receive(B, Ack(0, 1, 3), 20)
        core.tick(30_000)
        assert core.lag() == {B: 0}

    def test_r10_what_it_had_once_does_not_count(self) -> None:
        core = led_pair()
        core.connected(C, 0)
        core.follow(record(1, 2, A, isr=(A, B)), 0)
        core.receive(C, SyncOk(0, 1, 0), 0)
        core.receive(C, Ack(0, 1, 1), 0)
        core.disconnected(C)
        core.connected(C, 9)
        core.receive(C, SyncOk(0, 1, 0), 9)
        core.tick(20)
        assert core.outbox().steps == [], "it has nothing, whatever it said before"
        core.receive(C, Ack(0, 1, 1), 30)
        core.tick(40)
        assert core.outbox().steps == [ProposeIsr(0, 1, 2, (A, B, C))]

    def test_in_the_set_and_too_far_behind_for_the_log_it_lags_until_it_is_out(self) -> None:
        core = a_core(A)
        lead(core, 1, (B, C))
        put(core, 2)
        for node in (B, C):
            core.receive(node, Ack(0, 1, 3), 0)
        core.applied(3)
        core.trim_to(3)
        assert core.log.log_start == 4
        core.outbox()
        core.disconnected(C)
        core.connected(C, 10)
        core.receive(C, SyncOk(0, 1, 1), 10)
        core.confirmed(B, 1, 1, 3_000)
        core.confirmed(C, 1, 1, 3_000)
        core.tick(3_000)
        steps = core.outbox().steps
        assert [set(step.isr) for step in steps if isinstance(step, ProposeIsr)] == [{A, B}], (
            "no divergence of this node"
        )


class TestTheSet:
    def test_f17_expand_counts_from_before_it_leaves(self) -> None:
        core = led_pair()
        rec = record(1, 2, A, isr=(A, B))
        core.connected(C, 0)
        core.follow(rec, 0)
        core.receive(C, SyncOk(0, 1, 0), 0)
        core.tick(10)
        assert core.outbox().steps == [], "R10: not before it has the barrier"
        core.receive(C, Ack(0, 1, 1), 0)
        core.tick(20)
        assert core.outbox().steps == [ProposeIsr(0, 1, 2, (A, B, C))]
        assert core.effective_set == {A, B, C}
        put(core)
        core.receive(B, Ack(0, 1, 2), 0)
        assert core.committed == 1
        core.tick(30)
        assert core.outbox().steps == [], "one proposal at a time"
        core.follow(record(1, 3, A, isr=(A, B)), 0)
        assert core.effective_set == {A, B}, "a higher version settles it"
        assert core.committed == 2

    def test_who_lags_is_removed_and_needs_patience_to_come_back(self) -> None:
        core = a_core(A)
        lead(core, 1, (B, C))
        core.tick(0)
        put(core, now_ms=0)
        core.receive(B, Ack(0, 1, 2), 0)
        for now_ms in range(0, 2_100, 50):
            core.confirmed(B, 1, now_ms + 1, now_ms)
            core.confirmed(C, 1, now_ms + 1, now_ms)
            core.tick(now_ms)
        assert ProposeIsr(0, 1, 1, (A, B)) in core.outbox().steps
        assert core.effective_set == {A, B, C}
        core.follow(record(1, 2, A, isr=(A, B)), 2_100)
        assert core.streams[C].removals.count == 1
        core.follow(record(1, 2, A, isr=(A, B), up=(A, B)), 2_100)
        assert core.streams[C].removals.count == 0, "a death is no slowness"

    def test_all_lag_and_it_asks_to_be_relieved(self) -> None:
        core = a_core(A)
        lead(core, 1, (B, C))
        for now_ms in range(0, 2_100, 50):
            core.tick(now_ms)
        assert core.outbox().steps == [ProposeStepDown(0, 1)]

    def test_f40_not_after_its_own_sleep(self) -> None:
        core = a_core(A)
        lead(core, 1, (B, C))
        core.tick(0)
        core.tick(60_000)
        assert core.outbox().steps == []

    def test_a_successor_takes_over_when_all_is_committed(self) -> None:
        core = led_pair()
        put(core)
        core.follow(record(1, 2, A, successor=B, **PAIR), 0)
        assert core.is_handing_over
        core.tick(10)
        assert core.outbox().steps == []
        core.receive(B, Ack(0, 1, 2), 0)
        core.tick(20)
        assert core.outbox().steps == [ProposeStepDown(0, 1)]
        core.tick(30)
        assert core.outbox().steps == []
        core.tick(1_020)
        assert core.outbox().steps == [ProposeStepDown(0, 1)], "said again"

    def test_a_successor_does_not_wait_for_ever(self) -> None:
        core = led_pair()
        put(core)
        core.follow(record(1, 2, A, successor=B, **PAIR), 0)
        core.tick(0)
        core.tick(2_000)
        assert core.outbox().steps == [ProposeStepDown(0, 1)]

    def test_a_proposal_that_nobody_resolves_needs_a_new_epoch(self) -> None:
        core = led_pair()
        core.connected(C, 0)
        core.follow(record(1, 2, A, isr=(A, B)), 0)
        core.receive(C, SyncOk(0, 1, 1), 0)
        core.tick(0)
        assert len(core.outbox().steps) == 1
        core.follow(record(1, 2, A, isr=(A, B), up=(A, B)), 0)
        core.tick(1_000)
        assert core.outbox().steps == [AskEpoch(0, 1, 2)]
        core.tick(1_050)
        assert core.outbox().steps == []


class TestReadsAndLeases:
    def test_a_lease_rests_on_when_the_round_was_sent(self) -> None:
        core = led_pair()
        assert core.runs_until_ms(5) < 0
        core.confirmed(B, 1, 4, 1_000)
        core.confirmed(B, 7, 9, 9_000)
        core.confirmed(C, 1, 9, 9_000)
        assert core.confirmed_at_ms(9_999) == 1_000
        assert core.runs_until_ms(9_999) == 1_000 + 15_000 - 1_000
        assert core.may_read(4)
        assert not core.may_read(5)

    def test_a_ping_is_refused_after_a_higher_promise(self) -> None:
        core = a_core(B, stored(1, promised=5))
        assert core.refuses(4) == 5
        assert core.refuses(5) is None
        core.refused(A, 9)


class TestReplica:
    def test_what_is_only_told_to_be_committed_is_not_acknowledged_again(self) -> None:
        core = a_core(B)
        core.receive(A, Sync(0, 1, ((1, 1),), 1, 2), 0)
        core.receive(A, Append(0, 1, 0, (entry(1, 1), entry(2, 1)), 0), 0)
        core.ready(0)
        core.persisted(1, 0)
        core.receive(A, Append(0, 1, 2, (), 2), 0)
        assert [one.sequence for one in core.outbox().committed] == [1, 2]
        assert not core.has_ready
        core.receive(A, Append(0, 1, 0, (entry(1, 1), entry(2, 1)), 2), 0)
        assert core.ready(0).messages_after == [(A, Ack(0, 1, 2))], "sent twice: the first answer may be lost"

    def test_r13_r16_promise_cut_and_append_in_one_transaction_and_then_the_answers(self) -> None:
        core = a_core(B, stored(1, 1, 2, promised=2))
        core.receive(A, Sync(0, 3, ((1, 1), (3, 3)), 1, 4), 0)
        core.receive(A, Append(0, 3, 2, (entry(3, 3), entry(4, 3)), 3), 0)
        ready = core.ready(0)
        draft = ready.write
        assert (draft.promise, draft.cut_after, draft.epochs) == (3, 2, [(3, 3)])
        assert [e.sequence for e in draft.entries] == [3, 4]
        assert ready.messages == []
        assert ready.messages_after == [(A, SyncOk(0, 3, 2)), (A, Ack(0, 3, 4))]
        assert core.committed == 2, "what was told is committed as far as it is durable here"
        core.persisted(ready.number, 0)
        assert core.committed == 3
        assert [e.effects for e in core.outbox().committed][-1] == [Horizon(3)]

    def test_r14_no_entries_without_a_sync_of_this_epoch(self) -> None:
        core = a_core(B, stored(1))
        for message in (Append(0, 1, 1, (entry(2, 1),), 0), SnapBegin(0, 1, 1, 4, (), 0), SnapEnd(0, 1, 1, 0, b"")):
            core.receive(A, message, 0)
            assert leaving(core) == [(A, Reject(0, 1, RejectCode.NOT_SYNCED, 1))]

    def test_r14_a_gap_or_damage_asks_for_a_sync_and_what_is_had_is_skipped(self) -> None:
        core = a_core(B)
        core.receive(A, Sync(0, 1, ((1, 1),), 1, 3), 0)
        core.receive(A, Append(0, 1, 1, (entry(2, 1),), 0), 0)
        assert leaving(core) == [(A, Reject(0, 1, RejectCode.NOT_SYNCED, 1))]
        damaged = msgspec.structs.replace(entry(1, 1), payload=b"?")
        core.receive(A, Append(0, 1, 0, (damaged,), 0), 0)
        assert leaving(core) == [(A, Reject(0, 1, RejectCode.NOT_SYNCED, 1))]
        core.receive(A, Append(0, 1, 0, (entry(1, 1), entry(2, 1)), 0), 0)
        core.receive(A, Append(0, 1, 0, (entry(1, 1),), 0), 0)
        core.receive(A, Append(0, 1, 1, (entry(2, 1), entry(3, 1)), 0), 0)
        ready = persist(core)
        assert [e.sequence for e in ready.write.entries] == [1, 2, 3]
        assert ready.messages_after == [(A, SyncOk(0, 1, 0)), (A, Ack(0, 1, 3))], "one ack for all"
        core.receive(A, Append(0, 1, 0, (entry(1, 1),), 0), 0)
        assert core.has_ready
        assert persist(core).messages_after == [(A, Ack(0, 1, 3))]

    def test_answers_of_an_older_epoch_never_leave_after_a_promise(self) -> None:
        core = a_core(B)
        core.receive(A, Sync(0, 1, ((1, 1),), 1, 1), 0)
        core.receive(A, Append(0, 1, 0, (entry(1, 1),), 0), 0)
        core.receive(C, Sync(0, 2, ((2, 1),), 1, 1), 0)
        ready = persist(core)
        assert ready.messages_after == [(C, SyncOk(0, 2, 0))]
        assert ready.write.entries == []

    def test_i5_a_primary_that_lacks_what_is_committed_here_is_a_divergence(self) -> None:
        core = a_core(B, stored(1, 1, applied=2))
        with pytest.raises(Divergence, match="though 2 is committed"):
            core.receive(A, Sync(0, 3, ((1, 1), (3, 2)), 1, 2), 0)
        core = a_core(B, stored(1, 1, applied=2))
        with pytest.raises(Divergence, match="not that of epoch 3"):
            core.receive(A, Sync(0, 3, ((3, 1),), 1, 1), 0)

    def test_recovery_another_history_starts_from_nothing(self) -> None:
        core = a_core(B, stored(1, 1, applied=2))
        core.receive(A, Sync(0, 3, ((3, 1),), 1, 1, reset_epoch=2), 0)
        ready = persist(core)
        assert (ready.write.promise, ready.write.drop) == (3, True)
        assert ready.messages_after == [(A, SyncOk(0, 3, 0))]

    def test_f30_two_entries_at_one_place_are_refused(self) -> None:
        core = a_core(B)
        core.receive(A, Sync(0, 2, ((1, 1), (2, 2)), 1, 2), 0)
        core.receive(A, Append(0, 2, 0, (entry(1, 1), entry(2, 2)), 0), 0)
        with pytest.raises(Unsound, match="another entry 2"):
            core.receive(A, Append(0, 2, 1, (entry(2, 1),), 0), 0)


class TestSnapshots:
    def trimmed(self, **pace: int) -> Core:
        """a leads alone, its log begins late, and c is a new copy."""
        core = a_core(A, Stored(1, ((1, 1),), 4, 3, 3), ReplicationSettings(keep_bytes=0, mark_bytes=1, **pace))
        core.connected(C, 0)
        core.follow(record(2, 2, A, isr=(A,), copies=(A, C), min_isr=1), 0)
        persist(core)
        core.receive(C, SyncOk(0, 2, 0), 0)
        return core

    def test_a_copy_behind_the_log_gets_the_rows_and_then_the_log(self) -> None:
        core = self.trimmed(snapshot_window=1)
        assert core.outbox().requests == [OpenSnapshot(C, 1)]
        core.applied(4)
        core.snapshot_opened(C, 1, 4, ((1, 1), (2, 4)), 99, 0)
        box = core.outbox()
        assert box.messages == [(C, SnapBegin(0, 2, 1, 4, ((1, 1), (2, 4)), 99))]
        assert box.requests == [ReadChunk(C, 1)]
        core.snapshot_chunk(C, 1, b"rows")
        box = core.outbox()
        assert box.messages == [(C, SnapChunk(0, 2, 1, 0, zlib.crc32(b"rows"), b"rows"))]
        assert box.requests == [], "the window is full"
        core.receive(C, SnapAck(0, 2, 1, 1), 0)
        core.receive(C, SnapAck(0, 2, 1, 1), 0)
        assert core.outbox().requests == [ReadChunk(C, 1)]
        core.snapshot_chunk(C, 1, None, b"digest")
        assert leaving(core) == [(C, SnapEnd(0, 2, 1, 1, b"digest"))]
        put(core)
        core.tick(10)
        assert leaving(core) == [], "no entries meanwhile, and it counts for nothing"
        core.receive(C, SyncOk(0, 2, 4), 20)
        box = core.outbox()
        assert box.requests == [CloseSnapshot(C, 1)]
        assert [m.prev_sequence for _, m in box.messages if isinstance(m, Append)] == [4]

    def test_the_log_behind_it_is_held_within_a_bound(self) -> None:
        core = self.trimmed(retain_bytes=0, hold_bytes_max=2_000)
        put(core, 3)
        core.applied(core.committed)
        assert core.trim_to(core.committed) == 0
        assert core.log.log_start == 4
        core.snapshot_opened(C, 1, core.committed, (), 0, 0)
        core.outbox()
        put(core, 40)
        core.applied(core.committed)
        assert core.trim_to(core.committed) > 7
        core.tick(10)
        box = core.outbox()
        assert box.requests == [CloseSnapshot(C, 1)]
        assert [type(m) for _, m in box.messages] == [Sync], "it begins anew"

    def test_what_fails_or_stalls_begins_anew_and_late_answers_are_dropped(self) -> None:
        core = self.trimmed(snapshot_stall_ms=500)
        core.outbox()
        core.tick(5_000)
        assert [type(m) for _, m in leaving(core)] == [], "it waits for its turn at the store"
        core.snapshot_failed(C, 1, 10)
        assert [type(m) for _, m in leaving(core)] == [Sync]
        core.snapshot_failed(C, 1, 10)
        core.snapshot_opened(C, 1, 4, (), 0, 10)
        core.snapshot_chunk(C, 1, b"")
        core.receive(C, SnapAck(0, 2, 1, 1), 10)
        assert leaving(core) == []
        core.receive(C, SyncOk(0, 2, 0), 20)
        core.applied(4)
        core.snapshot_opened(C, 2, 4, (), 0, 20)
        core.snapshot_chunk(C, 2, b"rows")
        core.snapshot_chunk(C, 2, None, b"")
        core.outbox()
        core.tick(521)
        assert [type(m) for _, m in leaving(core)] == [Sync]
        core.snapshot_opened(B, 1, 1, (), 0, 0)
        core.snapshot_chunk(B, 1, b"")
        core.snapshot_failed(B, 1, 0)

    def test_a_replica_stages_and_installs(self) -> None:
        core = a_core(C, stored(7, 7, promised=7))
        core.receive(A, Sync(0, 9, ((8, 3), (9, 5)), 5, 5), 0)
        assert persist(core).messages_after == [(A, SyncOk(0, 9, 0))]
        assert core.last_sequence == 2, "what can't be told apart stays until the snapshot is here"
        core.receive(A, Append(0, 9, 2, (entry(3, 9),), 0), 0)
        assert leaving(core) == [(A, Reject(0, 9, RejectCode.NOT_SYNCED, 9))], "but it takes no entries"
        core.receive(A, SnapBegin(0, 9, 1, 4, ((8, 3),), 77), 0)
        chunk = SnapChunk(0, 9, 1, 0, zlib.crc32(b"rows"), b"rows")
        core.receive(A, chunk, 0)
        core.receive(A, chunk, 0)
        ready = persist(core)
        assert (ready.write.unstage, ready.write.stage) == (True, [(0, b"rows")])
        assert ready.messages_after == [(A, SnapAck(0, 9, 1, 1))]
        core.receive(A, msgspec.structs.replace(chunk, number=1, crc=1), 0)
        core.receive(A, SnapEnd(0, 9, 1, 3, b"digest"), 0)
        assert [type(m) for _, m in leaving(core)] == [Reject, Reject]
        core.receive(A, SnapEnd(0, 9, 1, 1, b"digest"), 0)
        ready = persist(core)
        assert ready.write.install == Install(4, ((8, 3),), 77, 1, b"digest")
        assert ready.messages_after == [(A, SyncOk(0, 9, 4))]
        core.receive(A, Append(0, 9, 4, (entry(5, 9),), 5), 0)
        persist(core)
        assert core.committed == 5

    def test_a_new_epoch_aborts_it(self) -> None:
        core = a_core(C)
        core.receive(A, Sync(0, 1, ((1, 3),), 5, 5), 0)
        core.receive(A, SnapBegin(0, 1, 1, 4, ((1, 3),), 0), 0)
        core.receive(A, SnapChunk(0, 1, 1, 0, zlib.crc32(b""), b""), 0)
        persist(core)
        core.receive(B, Sync(0, 2, ((2, 4),), 5, 5), 0)
        assert persist(core).write.unstage
        core.receive(B, SnapBegin(0, 2, 1, 4, ((1, 3),), 0), 0)
        core.follow(record(3, 3, C, isr=(C,), copies=(C,), min_isr=1), 0)
        assert core.log.pending.unstage

    def test_a_primary_that_steps_down_lets_go(self) -> None:
        core = self.trimmed()
        core.outbox()
        core.follow(record(3, 3, C, isr=(A, C), copies=(A, C)), 0)
        assert core.outbox().requests == [CloseSnapshot(C, 1)]


class TestTrimming:
    def test_never_past_applied_and_kept_for_who_lags(self) -> None:
        core = led_pair(retain_bytes=10_000)
        core.follow(record(1, 2, A, isr=(A,), copies=(A, B), min_isr=1), 0)
        put(core, 5)
        assert core.committed == 6
        core.applied(6)
        assert core.trim_to(6) == 1, "b is no member, but it lags, and the log is short"
        core.receive(B, Ack(0, 1, 4), 0)
        assert core.trim_to(6) == 4
        core.receive(B, Ack(0, 1, 6), 0)
        assert core.trim_to(5) == 5
        assert core.trim_to(5) == 0
        with pytest.raises(AssertionError, match="R17"):
            core.applied(7)

    def test_up_to_a_bound(self) -> None:
        core = led_pair(retain_bytes=0)
        core.follow(record(1, 2, A, isr=(A,), copies=(A, B), min_isr=1), 0)
        put(core, 3)
        core.applied(4)
        assert core.trim_to(4) == 4

    def test_a_replica_keeps_a_little(self) -> None:
        core = a_core(B, pace=ReplicationSettings(keep_bytes=150, mark_bytes=1))
        core.receive(A, Sync(0, 1, ((1, 1),), 1, 4), 0)
        core.receive(A, Append(0, 1, 0, tuple(entry(s, 1) for s in range(1, 5)), 4), 0)
        persist(core)
        core.applied(4)
        assert core.trim_to(4) == 2


def test_messages_for_another_partition_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="another partition"):
        a_core(A).receive(B, Ack(1, 1, 1), 0)


def test_a_stream_whose_place_was_trimmed_away_gets_a_snapshot() -> None:
    core = led_pair(recent_bytes=1, retain_bytes=0)
    core.follow(record(1, 2, A, isr=(A,), copies=(A, B), min_isr=1), 0)
    core.disconnected(B)
    put(core, 5)
    core.connected(B, 0)
    core.receive(B, SyncOk(0, 1, 1), 0)
    core.applied(6)
    assert core.trim_to(6) == 6
    core.log_read(B, [], 0)
    assert core.streams[B].mode is Mode.SNAPSHOT
    assert OpenSnapshot(B, 1) in core.outbox().requests
