"""The lifecycle under any order of events, and the proof that the judge is awake: each rule off is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from tests.support.lifecycle import SECOND_US, Violation, World, walk
from tq_node import limits
from tq_node.errors import Divergence, StaleAttempt
from tq_node.partition import apply_queue, lifecycle, primary
from tq_node.types import State, TaskError, TaskRow, Token

SEEDS = 300
MUTATION_SEEDS = 300


@pytest.mark.parametrize("base", range(3))
def test_rules_hold_in_any_order(base: int) -> None:
    for seed in range(base * 1_000, base * 1_000 + SEEDS // 3):
        walk(seed)


class Lifecycle(RuleBasedStateMachine):
    """Hypothesis chooses what happens; the judge of ``World`` looks at every change."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(0)

    @rule()
    def submit(self) -> None:
        self.world.submit()

    @rule(which=st.integers(0, 50), seconds=st.integers(0, 5_000))
    def claim_after(self, which: int, seconds: int) -> None:
        self.world.now_us += seconds * SECOND_US
        self._tell(which, lifecycle.Due(self.world.now_us))
        task_id = self._task(which)
        if task_id is not None:
            self.world.tell(task_id, self.world.claim(task_id))

    @rule(
        which=st.integers(0, 50), draw=st.floats(0, 0.999), final=st.booleans(), delay=st.none() | st.integers(0, 9_999)
    )
    def fail(self, which: int, draw: float, final: bool, delay: int | None) -> None:
        self._tell(
            which, lifecycle.Fail(self.world.now_us, self._token(which), TaskError("E", "m"), delay, final, draw)
        )

    @rule(which=st.integers(0, 50))
    def complete(self, which: int) -> None:
        self._tell(which, lifecycle.Complete(self.world.now_us, self._token(which), b"null"))

    @rule(which=st.integers(0, 50))
    def lose(self, which: int) -> None:
        self._tell(which, lifecycle.Lose(self.world.now_us, self._token(which), 0.5))

    @rule(which=st.integers(0, 50))
    def release(self, which: int) -> None:
        self._tell(which, lifecycle.Release(self.world.now_us, self._token(which)))

    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        self._tell(which, lifecycle.Cancel(self.world.now_us))

    @rule(which=st.integers(0, 50))
    def retry(self, which: int) -> None:
        self._tell(which, lifecycle.Retry(self.world.now_us))

    @rule()
    def persist_and_apply(self) -> None:
        self.world.persist()
        self.world.apply()

    @invariant()
    def log_is_in_order(self) -> None:
        assert self.world.log.committed <= self.world.log.last_sequence

    def teardown(self) -> None:
        self.world.end()

    def _task(self, which: int) -> str | None:
        known = sorted(self.world.tasks)
        return known[which % len(known)] if known else None

    def _token(self, which: int) -> Token:
        task_id = self._task(which)
        return (self.world.tasks[task_id].token if task_id else None) or Token(9, 9)

    def _tell(self, which: int, event: Any) -> None:
        task_id = self._task(which)
        if task_id is not None:
            self.world.tell(task_id, event)


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- the mutation table: each rule switched off, once ---
def _table(
    state: State, event: type[Any], handler: Callable[[TaskRow, Any], TaskRow]
) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(lifecycle.TABLE, (state, event), handler)


def _attribute(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def _unfenced(original: Callable[[TaskRow, Any], TaskRow]) -> Callable[[TaskRow, Any], TaskRow]:
    return lambda row, event: original(row, replace(event, token=row.token))


def _fenced_by_attempt(row: TaskRow, event: Any) -> TaskRow:
    # The mistake of F30a: numbers repeat after retry, and this stands for comparing them.
    if row.attempt == 0:
        raise StaleAttempt
    return lifecycle._complete(row, replace(event, token=row.token))


def _fold_forgets_spec(self: apply_queue.ApplyQueue, partition: int, sequence: int, effects: list[Any]) -> None:
    _add(self, partition, sequence, [replace(e, spec=None) if getattr(e, "spec", None) else e for e in effects])


_add = apply_queue.ApplyQueue.add
MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "complete is not fenced": _table(State.PROCESSING, lifecycle.Complete, _unfenced(lifecycle._complete)),
    "complete is fenced by attempt number": _table(State.PROCESSING, lifecycle.Complete, _fenced_by_attempt),
    "fail is not fenced": _table(State.PROCESSING, lifecycle.Fail, _unfenced(lifecycle._fail)),
    "release is not fenced": _table(State.PROCESSING, lifecycle.Release, _unfenced(lifecycle._release)),
    "lose is not fenced": _table(State.PROCESSING, lifecycle.Lose, _unfenced(lifecycle._lose)),
    "note is not fenced": _table(State.PROCESSING, lifecycle.Note, _unfenced(lifecycle._note)),
    "a completed task can be sent back": _table(State.COMPLETED, lifecycle.Retry, lifecycle._retry),
    "a final task can be cancelled": _table(State.COMPLETED, lifecycle.Cancel, lifecycle._cancel),
    "a cancelled task can complete": _table(State.CANCELLED, lifecycle.Complete, _unfenced(lifecycle._complete)),
    "a running task can be claimed again": _table(State.PROCESSING, lifecycle.Claim, lifecycle._claim),
    "a scheduled task can be claimed": _table(State.SCHEDULED, lifecycle.Claim, lifecycle._claim),
    "due looks at no clock": _table(
        State.SCHEDULED, lifecycle.Due, lambda r, e: replace(r, rev=r.rev + 1, state=State.PENDING)
    ),
    "a retry keeps its counts": _table(
        State.FAILED, lifecycle.Retry, lambda r, e: replace(lifecycle._retry(r, e), failures=r.failures)
    ),
    "a retry keeps its result": _table(
        State.CANCELLED, lifecycle.Retry, lambda r, e: replace(lifecycle._retry(r, e), ended_us=r.ended_us)
    ),
    "losses are not bounded": _attribute(limits, "LOST_ATTEMPTS_MAX", 10**9),
    "losses count as failures": _table(
        State.PROCESSING, lifecycle.Lose, lambda r, e: replace(lifecycle._lose(r, e), failures=r.failures + 1)
    ),
    "a lost attempt is re-queued at once": _table(
        State.PROCESSING, lifecycle.Lose, lambda r, e: replace(lifecycle._lose(r, e), state=State.PENDING)
    ),
    "max_attempts is not looked at": _table(
        State.PROCESSING,
        lifecycle.Fail,
        lambda r, e: replace(lifecycle._fail(r, e), state=State.SCHEDULED, ended_us=None),
    ),
    "attempts are not recorded": _attribute(lifecycle, "_recorded", lambda row, at_us, outcome, error: row.attempts),
    "rev stands still": _table(State.PENDING, lifecycle.Claim, lambda r, e: replace(lifecycle._claim(r, e), rev=r.rev)),
    "an attempt keeps its number": _table(
        State.PENDING, lifecycle.Claim, lambda r, e: replace(lifecycle._claim(r, e), attempt=max(1, r.attempt))
    ),
    "release spends an attempt": _table(
        State.PROCESSING, lifecycle.Release, lambda r, e: replace(lifecycle._release(r, e), failures=r.failures + 1)
    ),
    "the fold forgets what was submitted": _attribute(apply_queue.ApplyQueue, "add", _fold_forgets_spec),
    "two claims of a task may share an entry": _attribute(
        primary.OpenEntry, "claim_token", lambda self, before: Token(self.epoch, self._log.last_sequence + 1)
    ),
}

LIMITS_SEEN_BY_JUDGE = {"losses are not bounded"}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_switched_off_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    MUTATIONS[name](monkeypatch)
    if name in LIMITS_SEEN_BY_JUDGE:
        # The judge knows the number itself: a bound that both read would move for both.
        monkeypatch.setattr(
            "tests.support.lifecycle.limits", type("Limits", (), {"LOST_ATTEMPTS_MAX": 3, "ATTEMPTS_KEPT_MAX": 100})
        )
    for seed in range(MUTATION_SEEDS):
        try:
            walk(seed)
        except (Violation, Divergence, AssertionError, ValueError, KeyError, TypeError, AttributeError) as why:
            record_property("seeds_to_catch", seed + 1)
            print(f"{name}: caught after {seed + 1} seeds: {why}")
            return
    pytest.fail(f"{name}: not caught in {MUTATION_SEEDS} seeds")
