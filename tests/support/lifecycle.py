"""A small world for the task lifecycle: one partition's log, many tasks, events in any order, and a judge after every step.

Deterministic: the same seed gives the same walk. ``tests/property/test_lifecycle.py`` walks it with the rules as they are, and
again with each rule switched off, to see that the judge notices.
"""

from __future__ import annotations

import random
from typing import Any

from tq_node import limits
from tq_node.errors import AlreadyFinal, Divergence, NotRetryable, StaleAttempt
from tq_node.partition import lifecycle
from tq_node.partition.apply_queue import ApplyQueue, Slice
from tq_node.partition.core import PartitionCore
from tq_node.partition.entries import (
    Effect,
    Put,
    PutTombstone,
    decode_effects,
    decode_row,
    put_born,
    put_changed,
    put_size,
    tombstone_of,
)
from tq_node.partition.record import Record
from tq_node.partition.replica_log import Stored
from tq_node.types import Backoff, NodeId, State, TaskError, TaskId, TaskRow, TaskSpec, Token

REFUSALS = (StaleAttempt, AlreadyFinal, NotRetryable)
SECOND_US = 1_000_000


class Violation(AssertionError):
    """A rule was broken; the text names it."""


def spec(task_id: str, *, max_attempts: int = 3, created_us: int = 0, backoff: Backoff | None = None) -> TaskSpec:
    return TaskSpec(
        TaskId(task_id), "email", b"null", "default", 5, max_attempts, None, backoff or Backoff(), None, created_us, b""
    )


class Judge:
    """Invariant I10 and the contract's promises about states, checked on every single change."""

    def __init__(self) -> None:
        self._greatest_token: dict[str, Token] = {}
        self._endings: dict[str, int] = {}
        self.failed_by: dict[str, list[str]] = {}

    def see(self, before: TaskRow, event: Any, after: TaskRow) -> None:
        if after is before:
            return
        self._need(after.rev == before.rev + 1, "rev rises by one with each change")
        self._need(after.spec is before.spec, "what the submitter said never changes")
        started = before.state is not State.PROCESSING and after.state is State.PROCESSING
        if before.state.is_final:
            self._need(type(event) is lifecycle.Retry, "a final task changes by retry alone")
            self._need(before.state is not State.COMPLETED, "a completed task is never run again")
            self._endings[before.id] = 0
            self._need(after.attempt == after.failures == after.losses == 0, "a new run counts from zero")
            self._need(after.result is None and after.ended_us is None, "a new run has no result")
        else:
            self._need(after.attempt >= before.attempt, "within a run attempts only grow")
        if started:
            self._need(after.attempt == before.attempt + 1, "each start is a new attempt")
            self._need(before.state is State.PENDING, "only a pending task starts")
            self._need(before.run_at_us <= event.at_us, "nothing starts before its time")
            token = after.token
            self._need(
                token is not None and token > self._greatest_token.get(after.id, Token(0, 0)), "tokens only grow"
            )
            assert token is not None
            self._greatest_token[after.id] = token
        token = getattr(event, "token", None)
        if token is not None and not started:
            self._need(before.token == token, "only the holder of the token is heard (F30, F30a)")
            self._need(before.state is State.PROCESSING, "only a running attempt is heard")
        if after.state.is_final and not before.state.is_final:
            self._endings[after.id] = self._endings.get(after.id, 0) + 1
            self._need(self._endings[after.id] == 1, "one entry ends a run")
            self._need(after.ended_us is not None, "an ended task says when")
        if type(event) is lifecycle.Unhandled:
            self._need(before.state is State.PENDING, "only what waits is given up for want of a handler")
            self._need(after.attempts == before.attempts, "it was never begun")
        elif after.state is State.FAILED:
            enough = after.failures >= after.spec.max_attempts or after.losses >= limits.LOST_ATTEMPTS_MAX
            self._need(enough or event.final, "a task fails for good only when its attempts are spent")
        if type(event) is lifecycle.Fail and after.failures >= after.spec.max_attempts:
            self._need(after.state is State.FAILED, "max_attempts bounds the failed attempts")
        if type(event) is lifecycle.Lose:
            self._need(after.failures == before.failures, "lost attempts are counted apart")
            self._need(after.state is not State.PENDING, "a lost attempt waits before the next (F31)")
            self._need(after.losses < limits.LOST_ATTEMPTS_MAX or after.state is State.FAILED, "three lost: failed")
        if type(event) is lifecycle.Release:
            spends = (after.failures, after.losses) != (before.failures, before.losses)
            self._need(not spends, "a released attempt spends nothing")
        if before.state is State.PROCESSING and after.state is not State.PROCESSING:
            self._need(len(after.attempts) == min(len(before.attempts) + 1, limits.ATTEMPTS_KEPT_MAX), "recorded once")
            self._need(after.attempts[-1].attempt == before.attempt, "every attempt is kept with its outcome")

    @staticmethod
    def _need(holds: bool, rule: str) -> None:
        if not holds:
            raise Violation(rule)


class Rows:
    """A copy of the rows, kept as the store keeps them: slices in, revisions compared."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, bytes, bytes, int, int, int]] = {}
        self.tombstones: set[str] = set()

    def apply(self, taken: Slice) -> None:
        for _, fold in taken.rows:
            put = fold.put
            assert put is not None
            stored = self.rows.get(put.id)
            if (stored[0] if stored else 0) != fold.stored_rev:
                raise Violation(f"slice expects rev {fold.stored_rev} of {put.id}")
            row_spec = fold.spec if fold.spec is not None else (stored[1] if stored else b"")
            self.rows[put.id] = (put.rev, row_spec, put.body, put.state, put.run_at_us, put.ended_us)
        for task_id, rev in taken.deletes:
            if self.rows.pop(task_id)[0] != rev:
                raise Violation(f"delete expects rev {rev} of {task_id}")
        self.tombstones.update(tombstone.id for _, tombstone in taken.tombstones)

    def replay(self, effects: list[Effect]) -> None:
        """The naive way: one effect after the other, as a replica without folding would."""
        for effect in effects:
            if isinstance(effect, Put):
                stored = self.rows.get(effect.id)
                if (stored[0] if stored else 0) != effect.expected_rev:
                    raise Violation(f"replay expects rev {effect.expected_rev} of {effect.id}")
                if (stored[3] if stored else -1) != effect.was:
                    raise Violation("an effect knows the state before it")
                row_spec = effect.spec if effect.spec is not None else (stored[1] if stored else b"")
                self.rows[effect.id] = (
                    effect.rev, row_spec, effect.body, effect.state, effect.run_at_us, effect.ended_us
                )  # fmt: skip
            elif isinstance(effect, PutTombstone):
                self.rows.pop(effect.id, None)
                self.tombstones.add(effect.id)


class World:
    """One partition, several tasks, a clock that only this class moves."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.judge = Judge()
        me = NodeId("me")
        self.log: PartitionCore[None] = PartitionCore(0, me, Stored())
        self.log.follow(Record(1, 1, me, (me,), (me,), 1, frozenset([me])), 0)
        self.unapplied = ApplyQueue()
        self.slices = Rows()
        self.replayed = Rows()
        self.now_us = 1_000 * SECOND_US
        self.tasks: dict[str, TaskRow] = {}
        self.buried: set[str] = set()
        self.tokens: dict[str, list[Token]] = {}
        self.entries: list[bytes] = []
        self.births = 0
        self.claimed: dict[str, int] = {}

    def step(self) -> None:
        roll = self.random.random()
        # Few tasks, so that each lives through much.
        if not self.tasks or (roll < 0.15 and len(self.tasks) < 6):
            self.submit()
        elif roll < 0.25:
            self.persist()
        elif roll < 0.32:
            self.apply()
        elif roll < 0.40:
            self.now_us += self.random.choice([1, SECOND_US, 60 * SECOND_US, 4_000 * SECOND_US])
        elif roll < 0.43:
            self.bury()
        else:
            self.event()

    def submit(self) -> None:
        self.births += 1
        made = spec(f"t{self.births}", max_attempts=self.random.randint(1, 4), created_us=self.now_us)
        row = lifecycle.born(made, 0, self.now_us + self.random.choice([0, 0, 5 * SECOND_US]))
        if (row.state is State.SCHEDULED) != (row.run_at_us > self.now_us):
            raise Violation("a task is born scheduled if and only if its time is to come")
        put = put_born(row)
        self.log.propose(put, put_size(put))
        self.tasks[row.id] = row

    def event(self) -> None:
        task_id = self.random.choice(sorted(self.tasks))
        row = self.tasks[task_id]
        # Mostly the token that holds, often an old one or one of nobody: that is what zombies send.
        known = self.tokens.get(task_id, [])
        token = row.token if row.token is not None and self.random.random() < 0.6 else None
        token = token or (self.random.choice(known) if known and self.random.random() < 0.8 else Token(9, 9))
        error = TaskError("ValueError", "no", "traceback")
        now, draw = self.now_us, self.random.random()
        event = self.random.choice(
            [
                lifecycle.Due(now),
                self.claim(task_id),
                self.claim(task_id),
                lifecycle.Note(token, None, (), 0),
                lifecycle.Complete(now, token, b"1"),
                lifecycle.Fail(now, token, error, self.random.choice([None, None, 0, 500]), draw < 0.1, draw),
                lifecycle.Release(now, token),
                lifecycle.Lose(now, token, draw),
                lifecycle.Cancel(now) if draw < 0.3 else lifecycle.Due(now),
                lifecycle.Retry(now),
                lifecycle.Unhandled(now, error) if draw < 0.3 else lifecycle.Due(now),
            ]
        )
        self.tell(task_id, event)

    def claim(self, task_id: str) -> lifecycle.Claim:
        return lifecycle.Claim(self.now_us, self.log.claim_token(self.claimed.get(task_id, 0)), "node-1")

    def tell(self, task_id: str, event: Any) -> None:
        row = self.tasks[task_id]
        try:
            after = lifecycle.transition(row, event)
        except REFUSALS as why:
            self._judge_refusal(row, event, why)
            return
        self.judge.see(row, event, after)
        if after is row:
            return
        put = put_changed(row, after)
        self.log.propose(put, put_size(put))
        self.tasks[task_id] = after
        if type(event) is lifecycle.Claim:
            self.tokens.setdefault(task_id, []).append(event.token)
            self.claimed[task_id] = event.token.sequence

    def _judge_refusal(self, row: TaskRow, event: Any, why: Exception) -> None:
        if type(event) is lifecycle.Retry and row.state in (State.FAILED, State.CANCELLED):
            raise Violation("a failed or cancelled task can be sent back") from why
        if type(event) is lifecycle.Cancel and not row.state.is_final:
            raise Violation("a task that has not ended can be cancelled") from why
        if type(event) is lifecycle.Claim and row.state is State.PENDING:
            raise Violation("a pending task can be claimed") from why
        if (
            row.state is State.PROCESSING
            and getattr(event, "token", None) == row.token
            and type(event) is not lifecycle.Claim
        ):
            raise Violation("the holder of the token is heard") from why

    def bury(self) -> None:
        ended = sorted(t for t, row in self.tasks.items() if row.state.is_final)
        if ended:
            task_id = self.random.choice(ended)
            self.log.propose(tombstone_of(self.tasks.pop(task_id), self.now_us), 64)
            self.buried.add(task_id)

    def persist(self) -> None:
        while self.log.has_ready:
            ready = self.log.ready(0)
            self.entries += [entry.payload for entry in ready.write.entries]
            self.log.persisted(ready.number, 0)
            for committed in self.log.outbox().committed:
                self.unapplied.add(0, committed.sequence, committed.effects)

    def apply(self) -> None:
        self.slices.apply(self.unapplied.take(1))

    def end(self) -> None:
        """Everything reaches the rows: folded, replayed and remembered must agree, byte for byte."""
        self.persist()
        self.apply()
        for payload in self.entries:
            self.replayed.replay(decode_effects(payload))
        if self.slices.rows != self.replayed.rows:
            raise Violation("folded and replayed rows are byte-equal (I11)")
        if self.slices.tombstones != self.buried or set(self.slices.rows) != set(self.tasks):
            raise Violation("rows and tombstones are those of the tasks")
        for task_id, (rev, row_spec, body, state, run_at_us, ended_us) in self.slices.rows.items():
            if decode_row(0, rev, state, run_at_us, ended_us, row_spec, body) != self.tasks[task_id]:
                raise Violation("a row reads back as it was")
        if self.unapplied.rows or self.unapplied.bytes:
            raise Violation("nothing is left in the books of what waits")


def walk(seed: int, steps: int = 400) -> None:
    """:raises Violation, Divergence: a rule was broken; the message ends with how to see it again."""
    world = World(seed)
    try:
        for _ in range(steps):
            world.step()
        world.end()
    except (Violation, Divergence) as why:
        raise type(why)(f"{why} [again: tests.support.lifecycle.walk({seed}, {steps})]") from why
