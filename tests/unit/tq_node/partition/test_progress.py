from __future__ import annotations

from tests.simulation.replication.handmade import B
from tq_node.partition.progress import Mode, Removals, ReplicaProgress, stable_for_ms
from tq_node.partition.settings import Budget, ReplicationSettings


def a_stream(budget: Budget | None = None, **pace: int) -> ReplicaProgress:
    stream = ReplicaProgress(B, ReplicationSettings(**pace), budget or Budget(), 0)
    stream.become(Mode.STREAM)
    return stream


def test_a_window_is_bounded_in_entries_and_bytes() -> None:
    stream = a_stream(window_entries=3, window_bytes=1_000, append_bytes_aim=500)
    assert stream.has_room_for(3, 5_000), "with nothing on its way one append may go, however long"
    stream.sent(2, 2, 600, 0)
    assert stream.has_room_for(1, 400)
    assert not stream.has_room_for(2, 100)
    assert not stream.has_room_for(1, 401)
    stream.sent(3, 1, 100, 0)
    assert stream.room_bytes() == 0
    assert stream.acknowledged(2, 3, 1)
    assert (stream.in_flight_entries, stream.in_flight_bytes, stream.room_entries()) == (1, 100, 2)


def test_all_streams_of_a_node_share_a_budget() -> None:
    budget = Budget(in_flight_bytes_max=1_000)
    first, second = a_stream(budget), a_stream(budget)
    first.sent(1, 1, 900, 0)
    second.sent(1, 1, 50, 0)
    assert second.room_bytes() == 50
    first.become(Mode.SYNC)
    assert budget.in_flight_bytes == 50


def test_an_acknowledgement_never_goes_back() -> None:
    stream = a_stream()
    stream.sent(5, 5, 500, 0)
    assert stream.acknowledged(3, 5, 1)
    assert not stream.acknowledged(2, 5, 2)
    assert (stream.acked, stream.next_sequence, stream.in_flight_entries) == (3, 6, 5)
    stream.become(Mode.SYNC)
    assert stream.next_sequence == 4
    assert stream.acknowledged(5, 5, 3)
    assert stream.next_sequence == 6


def test_lag_is_counted_from_the_oldest_thing_owed() -> None:
    stream = a_stream(replica_lag_max_ms=2_000)
    stream.answered_ms = 10_000
    stream.behind_since_ms = 100
    stream.sent(1, 1, 10, 100)
    stream.sent(2, 1, 10, 1_500)
    assert not stream.lags(2_000)
    assert stream.lags(2_101)
    stream.acknowledged(1, 2, 2_200)
    assert stream.owes_ms(2_200) == 700
    stream.acknowledged(2, 3, 2_300)
    assert stream.owes_ms(2_300) == 0, "what was not even sent is owed from now on"
    stream.acknowledged(3, 3, 2_400)
    assert stream.behind_since_ms is None


def test_f45_silence_is_lag() -> None:
    stream = a_stream(replica_lag_max_ms=2_000)
    assert not stream.lags(2_000)
    assert stream.lags(2_001)
    stream.answered_ms = 1_000
    assert not stream.lags(3_000)


def test_f40_who_slept_cannot_say_who_was_silent() -> None:
    stream = a_stream()
    stream.behind_since_ms = 10
    stream.paused(60_000)
    assert not stream.lags(61_000)


def test_after_a_removal_for_lag_it_must_keep_up_for_a_while() -> None:
    stream = a_stream(stable_for_ms=3_000, near_end_ms=1_000)
    assert stream.is_fit(0)
    stream.removed_for_lag(0)
    stream.note_nearness(1_000)
    assert not stream.is_fit(3_999)
    assert stream.is_fit(4_000)
    stream.behind_since_ms = 2_500
    stream.note_nearness(3_600)
    assert stream.near_since_ms is None, "more than near_end behind: it begins again"
    stream.removed_for_lag(5_000)
    assert stream.removals.count == 2
    stream.removed_for_lag(5_000 + 600_001)
    assert stream.removals.count == 1, "long ago"
    stream.become(Mode.SYNC)
    assert not stream.is_fit(10**9)


def test_patience_doubles_with_each_removal_for_lag() -> None:
    assert stable_for_ms(Removals(), 3_000, 60_000) == 0, "a copy that is new needs none"
    assert [stable_for_ms(Removals(count), 3_000, 60_000) for count in (1, 2, 5, 6, 99)] == [
        3_000,
        6_000,
        48_000,
        60_000,
        60_000,
    ]
