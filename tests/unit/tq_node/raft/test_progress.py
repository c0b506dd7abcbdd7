"""The leader's view of one follower: its modes, its window, its rounds."""

from __future__ import annotations

from tq_node.raft.messages import Snapshot
from tq_node.raft.progress import Mode, Progress
from tq_node.raft.settings import RaftSettings

SETTINGS = RaftSettings(inflight_messages_max=2)


def replicating(match_index: int = 5) -> Progress:
    progress = Progress(match_index)
    progress.accepted(match_index)
    assert progress.mode is Mode.REPLICATE
    return progress


def test_a_probe_is_alone_until_it_is_answered_or_a_heartbeat_is() -> None:
    progress = Progress(5)
    assert not progress.is_paused(SETTINGS)
    progress.sent(5, 0, 1)
    assert progress.is_paused(SETTINGS)
    progress.answered_heartbeat()
    assert not progress.is_paused(SETTINGS)


def test_an_accepted_probe_begins_replication_even_without_news() -> None:
    progress = Progress(5, match_index=5)
    assert progress.accepted(5)
    assert (progress.mode, progress.next_index) == (Mode.REPLICATE, 6)
    assert not progress.accepted(5)


def test_an_old_answer_does_not_end_a_probe() -> None:
    progress = Progress(9, match_index=5)
    assert not progress.accepted(4)
    assert progress.mode is Mode.PROBE


def test_the_window_closes_and_opens() -> None:
    progress = replicating()
    progress.sent(6, 100, 5)
    progress.sent(7, 100, 5)
    assert (progress.next_index, progress.is_paused(SETTINGS)) == (8, True)
    progress.accepted(6)
    assert (progress.is_paused(SETTINGS), progress.inflight_bytes) == (False, 100)
    progress.sent(7, 0, 6)
    assert progress.next_index == 8, "an empty append takes no place"


def test_the_window_counts_bytes_too() -> None:
    progress = replicating()
    progress.sent(6, SETTINGS.inflight_bytes_max - SETTINGS.message_bytes_max + 1, 5)
    assert progress.is_paused(SETTINGS)


def test_a_rejection_while_replicating_goes_back_to_what_is_known() -> None:
    progress = replicating()
    progress.sent(6, 100, 5)
    assert progress.rejected(6, 3)
    assert (progress.mode, progress.next_index, progress.inflight_bytes) == (Mode.PROBE, 6, 0)


def test_a_rejected_probe_goes_to_the_hint_but_never_below_the_match() -> None:
    progress = Progress(9, match_index=2)
    assert progress.rejected(9, 6)
    assert progress.next_index == 6
    assert progress.rejected(5, 1)
    assert progress.next_index == 3


def test_old_rejections_are_ignored() -> None:
    progress = Progress(9, match_index=2)
    assert not progress.rejected(2, 1), "known to match"
    assert not progress.rejected(7, 1), "not what was probed"
    progress.needs_snapshot(Snapshot(8, 1))
    assert not progress.rejected(9, 1)


def test_a_snapshot_ends_when_the_follower_has_what_it_says() -> None:
    progress = Progress(9)
    progress.needs_snapshot(Snapshot(8, 1))
    assert progress.is_paused(SETTINGS)
    progress.accepted(3)
    assert progress.mode is Mode.SNAPSHOT
    progress.accepted(8)
    assert (progress.mode, progress.next_index, progress.snapshot) == (Mode.REPLICATE, 9, None)


def test_caught_up_means_within_one_round_of_the_end() -> None:
    """Dissertation, 4.2.1: a round that takes less than an election timeout."""
    progress = Progress(100)
    progress.note_contact()
    for _ in range(SETTINGS.election_ticks + 1):
        progress.tick(100, SETTINGS)
        progress.note_contact()
    progress.accepted(100)
    progress.note_round(150, SETTINGS)
    assert not progress.is_caught_up, "the first round was slow"
    progress.accepted(150)
    progress.note_round(150, SETTINGS)
    assert bool(progress.is_caught_up)
    for _ in range(SETTINGS.election_ticks + 1):
        progress.tick(160, SETTINGS)
        progress.note_contact()
    assert not progress.is_caught_up, "it falls behind"


def test_who_is_silent_for_an_election_timeout_is_not_active() -> None:
    progress = Progress(1)
    assert not progress.is_active, "no answer yet"
    assert not progress.is_silent(SETTINGS), "but it has an election timeout's time"
    progress.note_contact()
    seen = []
    for _ in range(SETTINGS.election_ticks):
        seen.append(progress.is_active)
        progress.tick(1, SETTINGS)
    assert all(seen)
    assert (progress.is_active, progress.is_silent(SETTINGS)) == (False, True)
