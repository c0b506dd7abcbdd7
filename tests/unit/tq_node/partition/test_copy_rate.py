"""The rate at which copies are filled that count for nothing yet; what the in-sync copies get is never held up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tests.simulation.replication.handmade import A, B, C, Core, lead, leaving, persist, record
from tests.support.stores import make_entry
from tq_node.partition.copy_rate import BURST_MS, UNLIMITED, CopyRate
from tq_node.partition.core import PartitionCore
from tq_node.partition.effects import AnyOutbox, ReadChunk, ReadLog
from tq_node.partition.entries import DeleteTombstone
from tq_node.partition.messages import Ack, Addressed, Append, SnapAck, SnapChunk, Sync, SyncOk
from tq_node.partition.replica_log import Stored
from tq_node.partition.settings import Budget, ReplicationSettings

RATE = 10_000
TICK_MS = 50


class TestTheBucket:
    def test_without_a_bound_there_is_always_room(self) -> None:
        rate = CopyRate()
        rate.spend(10**9)
        rate.refill(0)
        assert rate.room_bytes == UNLIMITED
        assert rate.sent_bytes == 10**9

    def test_over_time_no_more_leaves_than_the_rate_and_one_burst(self) -> None:
        rate, left = CopyRate(RATE), 0
        for now_ms in range(0, 10_001, TICK_MS):
            rate.refill(now_ms)
            while rate.room_bytes > 0:
                rate.spend(300)
                left += 300
        assert RATE * 10 <= left <= RATE * 10 + RATE * BURST_MS // 1000 + 300

    def test_a_long_piece_leaves_and_is_paid_off(self) -> None:
        rate = CopyRate(RATE)
        rate.refill(0)
        rate.spend(RATE)
        waited_ms = 0
        while not rate.room_bytes:
            waited_ms += TICK_MS
            rate.refill(waited_ms)
        assert 700 <= waited_ms <= 900, "a second's worth, less the burst that was there"

    def test_a_pause_is_not_made_up_for(self) -> None:
        rate = CopyRate(RATE)
        rate.refill(0)
        rate.spend(rate.room_bytes)
        rate.refill(60_000)
        assert rate.room_bytes == RATE * BURST_MS // 1000

    def test_what_is_being_read_is_counted_once(self) -> None:
        rate = CopyRate(RATE)
        rate.refill(0)
        room = rate.room_bytes
        rate.reserve(500)
        assert rate.room_bytes == room - 500
        rate.give_back(500)
        rate.spend(100)
        assert (rate.room_bytes, rate.sent_bytes) == (room - 100, 100)


def primary(budget: Budget, log: Stored | None = None, **pace: int) -> Core:
    return PartitionCore(
        0, A, log or Stored(), settings=ReplicationSettings(keep_bytes=0, mark_bytes=1, **pace), budget=budget
    )


def put(core: Core, size: int) -> dict[str, int]:
    """One entry, which b has too. How many entries left for whom."""
    core.propose(DeleteTombstone("t" * size), size)
    left = entries_for(persist(core).messages)
    core.receive(B, Ack(0, 1, core.last_sequence), 0)
    return left


def entries_for(messages: Iterable[Addressed]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node, message in messages:
        if isinstance(message, Append):
            found[node] += len(message.entries)
    return dict(+found)


def a_third(core: Core, acked: int) -> None:
    """C is a copy, in stream from ``acked`` on, and not in the set: the table does not have it up yet."""
    core.connected(C, 0)
    core.follow(record(1, 2, A, isr=(A, B), up=(A, B)), 0)
    core.receive(C, SyncOk(0, 1, acked), 0)


class TestStreams:
    def test_catching_up_waits_and_the_set_does_not(self) -> None:
        budget = Budget(copying=CopyRate(RATE))
        core = primary(budget)
        lead(core, 1, (B,), isr=(A, B), copies=(A, B))
        for _ in range(20):
            put(core, 1_000)
        leaving(core)
        a_third(core, 1)
        assert entries_for(leaving(core)) == {}, "there is no room before the first tick"
        assert put(core, 5_000) == {B: 1}, "who is in the set is not held up"
        got = 0
        for now_ms in range(0, 4_000, TICK_MS):
            budget.copying.refill(now_ms)
            core.tick(now_ms)
            got += entries_for(leaving(core)).get(C, 0)
            core.receive(C, Ack(0, 1, 1 + got), now_ms)
            if now_ms == 1_000:
                assert 8 <= got <= 14, "about a second's worth"
        assert got == 21
        assert put(core, 30_000) == {B: 1, C: 1}, (
            "what is written now leaves at once, also to a copy that is not in yet"
        )
        assert core.copying(0)[C][0] == budget.copying.sent_bytes > 20_000

    def test_one_that_is_proposed_for_the_set_is_not_held_up(self) -> None:
        budget = Budget(copying=CopyRate(RATE))
        core = primary(budget)
        lead(core, 1, (B,), isr=(A, B), copies=(A, B))
        for _ in range(5):
            put(core, 1_000)
        a_third(core, 1)
        leaving(core)
        core.follow(record(1, 3, A, isr=(A, B, C)), 0)
        core.tick(0)
        assert entries_for(leaving(core)) == {C: 5}

    def test_a_read_of_the_log_is_no_longer_than_there_is_room(self) -> None:
        budget = Budget(copying=CopyRate(RATE))
        core = primary(budget, recent_bytes=1)
        lead(core, 1, (B,), isr=(A, B), copies=(A, B))
        for _ in range(5):
            put(core, 1_000)
        a_third(core, 1)
        core.outbox()
        budget.copying.refill(0)
        core.tick(0)
        room = RATE * BURST_MS // 1000
        assert core.outbox().requests == [ReadLog(C, 2, room)]
        assert budget.copying.room_bytes == 0, "reserved"
        core.disconnected(C)
        assert budget.copying.room_bytes == room, "and given back: it was of no use"
        core.connected(C, 0)
        core.receive(C, SyncOk(0, 1, 1), 0)
        core.outbox()
        core.log_read(C, [make_entry(0, 2, 1, [DeleteTombstone("t" * 1_000)])], 0)
        assert budget.copying.room_bytes < room - 1_000 + 100


def reads(box: AnyOutbox) -> bool:
    """Is a chunk asked for? (Wishes are tuples: those of another kind may be equal.)"""
    return any(isinstance(request, ReadChunk) for request in box.requests)


class TestSnapshots:
    def begun(self, budget: Budget) -> Core:
        core = primary(budget, Stored(1, ((1, 1),), 4, 3, 3), snapshot_stall_ms=500)
        core.connected(C, 0)
        core.follow(record(2, 2, A, isr=(A,), copies=(A, C), min_isr=1), 0)
        persist(core)
        core.receive(C, SyncOk(0, 2, 0), 0)
        core.applied(4)
        core.outbox()
        core.snapshot_opened(C, 1, 4, ((1, 1), (2, 4)), 0, 0)
        return core

    def test_chunks_wait_for_room(self) -> None:
        budget = Budget(copying=CopyRate(RATE))
        core = self.begun(budget)
        assert not reads(core.outbox())
        chunks = 0
        for now_ms in range(0, 5_000, TICK_MS):
            budget.copying.refill(now_ms)
            core.tick(now_ms)
            box = core.outbox()
            assert not any(isinstance(message, Sync) for _, message in box.messages), "to wait is not to stall"
            if reads(box):
                core.snapshot_chunk(C, 1, b"x" * 8_000)
                core.receive(C, SnapAck(0, 2, 1, chunks + 1), now_ms)
                chunks += 1
        assert 5 <= chunks <= 8, "five seconds at 10 kB a second, in pieces of 8 kB"

    def test_a_replica_that_is_silent_still_stalls_it(self) -> None:
        budget = Budget(copying=CopyRate(RATE))
        core = self.begun(budget)
        sent = 0
        for now_ms in range(0, 30_000, TICK_MS):
            budget.copying.refill(now_ms)
            core.tick(now_ms)
            box = core.outbox()
            if any(isinstance(message, Sync) for _, message in box.messages):
                break
            while reads(box):
                core.snapshot_chunk(C, 1, b"x" * 1_000)
                box = core.outbox()
                sent += sum(isinstance(message, SnapChunk) for _, message in box.messages)
        assert sent == ReplicationSettings().snapshot_window

    def test_what_is_left_is_told(self) -> None:
        budget = Budget()
        core = self.begun(budget)
        assert core.copying(20_000) == {C: (0, 20_000)}
        core.snapshot_chunk(C, 1, b"x" * 5_000)
        assert core.copying(20_000) == {C: (5_000, 15_000)}
        core.snapshot_chunk(C, 1, None, b"")
        core.receive(C, SyncOk(0, 2, 4), 0)
        assert core.copying(20_000) == {C: (5_000, 0)}
