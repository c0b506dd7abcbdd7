from __future__ import annotations

from tests.simulation.replication.handmade import B, C
from tq_node.partition.leases import (
    ALWAYS,
    NEVER_MS,
    ROUNDS_KEPT,
    Answered,
    Confirmations,
    PingRounds,
    is_read_confirmed,
    renewed_until_ms,
    requeue_at_ms,
    runs_until_ms,
)
from tq_node.partition.messages import Pong


def test_a_round_is_answered_less_what_is_refused() -> None:
    rounds = PingRounds()
    ping = rounds.begin(100, [(0, 1), (1, 5)])
    assert (ping.number, ping.led) == (1, ((0, 1), (1, 5)))
    assert rounds.answered(Pong(1, ())) == Answered(1, 100, ((0, 1), (1, 5)))
    assert rounds.answered(Pong(1, ((1, 6),))) == Answered(1, 100, ((0, 1),))
    assert rounds.answered(Pong(2, ())) is None


def test_rounds_long_past_are_forgotten() -> None:
    rounds = PingRounds()
    for now_ms in range(ROUNDS_KEPT + 1):
        rounds.begin(now_ms, ())
    assert rounds.answered(Pong(1, ())) is None
    assert rounds.answered(Pong(2, ())) is not None


def test_a_round_counts_once_every_other_member_has_answered_it() -> None:
    confirmations = Confirmations()
    assert (confirmations.number((B, C)), confirmations.sent_ms((B, C), 9)) == (0, NEVER_MS)
    confirmations.confirm(B, 3, 300)
    assert confirmations.number((B, C)) == 0
    confirmations.confirm(C, 2, 200)
    confirmations.confirm(C, 1, 100)
    assert (confirmations.number((B, C)), confirmations.sent_ms((B, C), 9)) == (2, 200)


def test_alone_in_the_set_it_is_always_confirmed() -> None:
    confirmations = Confirmations()
    assert (confirmations.number(()), confirmations.sent_ms((), 77)) == (ALWAYS, 77)


def test_f24_a_read_needs_a_round_that_began_after_it_came() -> None:
    assert is_read_confirmed(5, 5)
    assert not is_read_confirmed(4, 5)


def test_section_8_no_attempt_runs_when_a_new_primary_queues_it_again() -> None:
    """Whoever was confirmed, was so before the promise; clocks may differ by 1 %."""
    lease_ms, margin_ms = 15_000, 1_000
    promise_ms = 50_000
    ends_ms = runs_until_ms(promise_ms, lease_ms, margin_ms)
    assert renewed_until_ms(promise_ms, lease_ms, margin_ms) == ends_ms
    assert (ends_ms - promise_ms) * 1.01 < (requeue_at_ms(promise_ms, lease_ms) - promise_ms) * 0.99
