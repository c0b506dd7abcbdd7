"""A queue that exists only as far as ``work`` needs it: claims are handed out as scripted, ends and notes recorded."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from tq_node import limits
from tq_node.facade import Claim, Notes, Outcome, Worker
from tq_node.types import Token

Waiter = tuple[Callable[[], bool], Deferred[None]]


class FakeQueue:
    """The work side of ``facade.TaskQueue``.

    ``put`` makes a task ready and wakes the worker. ``finished`` and ``noted`` hold what came back, in order. A test waits
    with ``when``. ``hold_claims`` and ``hold_finishes`` keep the Deferreds open until ``release_held``;
    ``claim_errors`` and ``finish_errors`` are used up one by one, before anything else.
    """

    node_name = "node-1"

    def __init__(self) -> None:
        self.ready: deque[Claim] = deque()
        self.finished: list[tuple[Claim, Outcome, Notes | None]] = []
        self.noted: list[tuple[Claim, Notes]] = []
        self.claim_limits: list[int] = []
        self.claim_errors: deque[BaseException] = deque()
        self.finish_errors: deque[BaseException] = deque()
        self.note_errors: deque[BaseException] = deque()
        self.granted_ms = limits.LEASE_MS - limits.LEASE_MARGIN_MS
        self.lease_questions: list[int] = []
        self.handlers_changes = 0
        self.hold_claims = False
        self.hold_finishes = False
        self.wake_on_put = True
        self.worker: Worker | None = None
        self.on_finish: Callable[[], None] | None = None
        self._held: list[tuple[Deferred[Any], Any]] = []
        self._waiters: list[Waiter] = []
        self._sequence = 0

    # --- for tests ---
    def put(
        self,
        task_type: str,
        payload: object = None,
        *,
        timeout_ms: int | None = None,
        task_id: str | None = None,
        attempt: int = 1,
        **more: Any,
    ) -> Claim:
        self._sequence += 1
        claim = Claim(
            task_id=task_id or f"t{self._sequence}",
            task_type=task_type,
            payload=json.dumps(payload).encode(),
            partition=self._sequence % 4,
            attempt=attempt,
            token=Token(1, self._sequence),
            timeout_ms=timeout_ms,
            **more,
        )
        self.ready.append(claim)
        if self.wake_on_put and self.worker is not None:
            self.worker.wake()
        return claim

    def when(self, reached: Callable[[], bool]) -> Deferred[None]:
        """Fires once ``reached()`` holds; it is asked after each claim, end and note."""
        waiter: Deferred[None] = Deferred()
        self._waiters.append((reached, waiter))
        self._told()
        return waiter

    def outcome_of(self, claim: Claim) -> Outcome | None:
        return next((outcome for ended, outcome, _ in self.finished if ended is claim), None)

    def notes_of(self, claim: Claim) -> list[Notes]:
        """All of one attempt, with what came along with its end."""
        notes = [notes for ended, notes in self.noted if ended is claim]
        return notes + [last for ended, _, last in self.finished if ended is claim and last is not None]

    def lines_of(self, claim: Claim) -> list[str]:
        return [line.line for notes in self.notes_of(claim) for line in notes.lines]

    def release_held(self) -> None:
        held, self._held = self._held, []
        for deferred, value in held:
            deferred.callback(value)

    # --- facade.TaskQueue ---
    def handlers_changed(self) -> None:
        self.handlers_changes += 1
        self._told()

    def attach(self, worker: Worker) -> None:
        self.worker = worker

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        self.claim_limits.append(limit)
        if self.claim_errors:
            return fail(self.claim_errors.popleft())
        claims = [self.ready.popleft() for _ in range(min(limit, len(self.ready)))]
        return self._answer(claims, held=self.hold_claims)

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        if self.finish_errors:
            return fail(self.finish_errors.popleft())
        self.finished.append((claim, outcome, notes))
        if self.on_finish is not None:
            self.on_finish()
        return self._answer(None, held=self.hold_finishes)

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        self.noted.append((claim, notes))
        self._told()
        return fail(self.note_errors.popleft()) if self.note_errors else succeed(None)

    def lease_ms(self, claim: Claim) -> int:
        self.lease_questions.append(claim.partition)
        return self.granted_ms

    def _answer(self, value: Any, *, held: bool) -> Deferred[Any]:
        self._told()
        if not held:
            return succeed(value)
        deferred: Deferred[Any] = Deferred()
        self._held.append((deferred, value))
        return deferred

    def _told(self) -> None:
        if not self._waiters:
            return
        fired = [waiter for waiter in self._waiters if waiter[0]()]
        self._waiters = [waiter for waiter in self._waiters if waiter not in fired]
        for _, deferred in fired:
            deferred.callback(None)
