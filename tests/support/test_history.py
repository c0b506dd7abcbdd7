"""The checker itself: a sound history passes, and each way to spoil it is named."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from tests.support.history import RULES, Call, History, assert_sound, check, outcome_of


def ok(kind: str, began_s: float, ended_s: float, http: int = 200, status: str = "", version: int = 0) -> Call:
    return Call(kind, "t", began_s, "c", "node-1", ended_s, "ok", http, "", status or None, version or None)


def refused(kind: str, began_s: float, ended_s: float, http: int, code: str) -> Call:
    return Call(kind, "t", began_s, "c", "node-1", ended_s, "refused", http, code)


def unknown(kind: str, began_s: float) -> Call:
    return Call(kind, "t", began_s, "c", "node-1")


def record(status: str, version: int, *outcomes: str) -> dict[str, dict[str, Any]]:
    attempts = [{"attempt": number, "outcome": outcome} for number, outcome in enumerate(outcomes, 1)]
    return {"t": {"id": "t", "status": status, "version": version, "attempts": attempts}}


def rules(calls: list[Call], final: dict[str, dict[str, Any]]) -> set[str]:
    return {violation.rule for violation in check(calls, final)}


SOUND = [
    unknown("submit", 0.0),
    ok("submit", 1.0, 1.2, 201, "scheduled"),
    ok("submit", 1.1, 1.4, 200, "scheduled"),
    ok("status", 2.0, 2.1, status="pending", version=2),
    refused("submit", 2.1, 2.2, 503, "not_primary"),
    refused("retry", 2.2, 2.3, 409, "not_retryable"),
    ok("cancel", 3.0, 3.1, status="cancelled"),
    ok("status", 3.2, 3.3, status="cancelled", version=4),
    refused("cancel", 3.4, 3.5, 409, "already_final"),
    ok("retry", 4.0, 4.1, status="pending"),
    unknown("cancel", 4.2),
    ok("status", 5.0, 5.1, status="processing", version=6),
    ok("status", 5.0, 6.0, status="processing", version=7),
    ok("status", 5.2, 5.9, status="completed", version=8),
]
SOUND_RECORD = record("completed", 8, "cancelled", "completed")


def test_a_sound_history() -> None:
    assert check(SOUND, SOUND_RECORD) == []
    assert_sound(History(SOUND), SOUND_RECORD)


def test_what_answers_mean() -> None:
    assert outcome_of("submit", 201, "") == outcome_of("status", 200, "") == "ok"
    assert outcome_of("submit", 503, "not_primary") == outcome_of("submit", 429, "busy") == "refused"
    assert outcome_of("submit", 503, "not_confirmed") == outcome_of("cancel", 504, "outcome_unknown") == "unknown"


def test_unknown_calls_may_have_happened_or_not() -> None:
    assert check([unknown("submit", 0)], {}) == []
    assert check([unknown("submit", 0)], record("completed", 3, "completed")) == []
    assert check([unknown("submit", 0), unknown("cancel", 1)], record("cancelled", 2)) == []
    # Very late, too: between two reads that came long after.
    late = [
        ok("submit", 0, 1, 201, "scheduled"),
        unknown("cancel", 2),
        ok("status", 8, 9, status="scheduled", version=1),
        ok("status", 10, 11, status="cancelled", version=2),
    ]
    assert check(late, record("cancelled", 2)) == []


def test_a_node_may_have_sent_a_submit_on_twice() -> None:
    """The first primary died without a word, and the second had it already: 200, though the client sent it once."""
    once = [ok("submit", 0, 1, 200, "processing"), ok("status", 2, 3, status="processing", version=2)]
    assert check(once, record("completed", 3, "completed")) == []
    unborn = [ok("submit", 0, 1, 200, "processing"), ok("status", 2, 3, status="pending", version=1)]
    assert rules(unborn, record("completed", 3, "completed")) == {"not linearizable"}


def test_local_reads_may_be_old() -> None:
    old = Call("local", "t", 9.0, ended_s=9.1, outcome="ok", http=200, status="pending", version=2)
    assert check([*SOUND, old], SOUND_RECORD) == []


SUBMITTED = ok("submit", 0, 1, 201, "pending")
SPOILT = {
    "a lost acknowledgement": ("lost", [SUBMITTED], {}),
    "a lost repeat": ("lost", [ok("submit", 0, 1, 200, "pending")], {}),
    "nobody submitted it": ("phantom", [], record("completed", 3, "completed")),
    "refused, and there": (
        "phantom",
        [refused("submit", 0, 1, 503, "not_enough_replicas")],
        record("completed", 3, "completed"),
    ),
    "two births": (
        "two births",
        [SUBMITTED, ok("submit", 2, 3, 201, "pending")],
        record("completed", 3, "completed"),
    ),
    "a double completion": ("double completion", [SUBMITTED], record("completed", 5, "completed", "completed")),
    "a completion of a cancelled task": ("double completion", [SUBMITTED], record("cancelled", 4, "completed")),
    "a revert": (
        "revert",
        [SUBMITTED, ok("status", 2, 3, status="completed", version=3), ok("status", 4, 5, status="pending", version=4)],
        record("completed", 6, "completed"),
    ),
    "another end": (
        "revert",
        [SUBMITTED, ok("status", 2, 3, status="failed", version=3)],
        record("completed", 3, "completed"),
    ),
    "unfinished": ("unfinished", [SUBMITTED], record("processing", 2)),
    "a stale read": (
        "stale read",
        [
            SUBMITTED,
            ok("status", 2, 3, status="processing", version=2),
            ok("status", 4, 5, status="pending", version=1),
        ],
        record("completed", 3, "completed"),
    ),
    "a read that misses the submit before it": (
        "not linearizable",
        [SUBMITTED, Call("status", "t", 2, ended_s=3, outcome="refused", http=404, code="not_found")],
        record("completed", 3, "completed"),
    ),
    "a read that misses the cancel before it": (
        "not linearizable",
        [SUBMITTED, ok("cancel", 2, 3, status="cancelled"), ok("status", 4, 5, status="pending", version=1)],
        record("cancelled", 2),
    ),
    "a cancel that never was": (
        "not linearizable",
        [SUBMITTED, ok("cancel", 2, 3, status="cancelled")],
        record("completed", 3, "completed"),
    ),
    "cancelled by nobody": ("not linearizable", [SUBMITTED], record("cancelled", 2)),
    "more steps than there are": (
        "not linearizable",
        [ok("submit", 0, 1, 201, "scheduled"), ok("status", 2, 3, status="completed", version=2)],
        record("completed", 2, "completed"),
    ),
    "a repeat before the birth": (
        "not linearizable",
        [ok("submit", 0, 1, 200, "pending"), ok("submit", 2, 3, 201, "pending")],
        record("completed", 3, "completed"),
    ),
    "an internal error": (
        "internal error",
        [SUBMITTED, Call("status", "t", 2, ended_s=3, outcome="unknown", http=500)],
        record("completed", 3, "completed"),
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_each_spoilt_history_is_named(name: str) -> None:
    rule, calls, final = SPOILT[name]
    assert rules(calls, final) == {rule}
    with pytest.raises(AssertionError, match=rule):
        assert_sound(History(calls), final)


def test_every_rule_has_its_spoilt_history() -> None:
    assert {rule for rule, _, _ in SPOILT.values()} == set(RULES)


def simulated(rolls: random.Random) -> tuple[list[Call], dict[str, dict[str, Any]]]:
    """A task, called by clients that overlap: each call happens at one moment between its begin and its end."""
    calls: list[Call] = []
    state: tuple[str, int] | None = None
    attempts: list[str] = []
    now_s = 0.0
    while state is None or state[0] not in ("completed", "failed") or rolls.random() < 0.7:
        now_s += 1.0
        if state is not None and rolls.random() < 0.5:
            steps = {"scheduled": ["pending"], "pending": ["processing"], "processing": ["completed", "scheduled"]}
            if state[0] in steps:
                to = rolls.choice(steps[state[0]])
                if state[0] == "processing":
                    attempts.append("completed" if to == "completed" else "failed")
                state = to, state[1] + 1
            continue
        kind = rolls.choice(["submit", "status", "status", "cancel", "retry"])
        call = Call(kind, "t", now_s - rolls.uniform(0, 3), ended_s=now_s + rolls.uniform(0, 3), outcome="ok", http=200)
        if kind == "submit":
            if state is None:
                state, call.http = (rolls.choice(["pending", "scheduled"]), 1), 201
            call.status = state[0]
        elif state is None:
            call.outcome, call.http, call.code = "refused", 404, "not_found"
        elif kind == "status":
            call.status, call.version = state
        elif kind == "cancel" and state[0] not in ("completed", "failed", "cancelled"):
            if state[0] == "processing":
                attempts.append("cancelled")
            state = call.status, _ = "cancelled", state[1] + 1
        elif kind == "retry" and state[0] == "cancelled":
            state = call.status, _ = "pending", state[1] + 1
        else:
            code = "already_final" if kind == "cancel" else "not_retryable"
            call.outcome, call.http, call.code = "refused", 409, code
        if kind != "status" and rolls.random() < 0.2:
            call = Call(kind, "t", call.began_s)  # its answer is lost
        calls.append(call)
    return calls, record(state[0], state[1], *attempts)


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.long)])
def test_simulated_histories_are_sound_and_old_reads_are_not(count: int) -> None:
    rolls = random.Random(7)
    spoilt_count = 0
    for _ in range(count):
        calls, final = simulated(rolls)
        assert check(calls, final) == []
        reads = sorted((c for c in calls if c.kind == "status" and c.version), key=lambda call: call.began_s)
        later = [(a, b) for a in reads for b in reads if a.ended_s < b.began_s and (a.version or 0) < (b.version or 0)]
        if later:
            spoilt_count += 1
            spoilt = copy.deepcopy(calls)
            old, new = rolls.choice(later)
            again = copy.deepcopy(old)
            again.began_s, again.ended_s = new.ended_s + 0.001, new.ended_s + 0.002
            assert rules([*spoilt, again], final) & {"stale read", "not linearizable"}
    assert spoilt_count > count // 10
