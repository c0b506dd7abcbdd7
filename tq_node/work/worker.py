"""WorkerService: claims what is due as far as there are free slots, runs it, and says how it ended.

Dispatch is by events: a hint of the queue, or a slot that is free again, leads to one claim in the
next turn of the reactor. A slot is free when the handler has ended, not when that is committed, so
that a completion and the next claim share a commit. While worker processes end tasks faster than
claims are committed, some are held ahead of the slots (``prefetch``); they wait in the pool, and
those of ``async def`` handlers that come among them in ``_shared_queue``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import StaleAttempt, TaskQueueError
from tq_node.facade import AttemptFailed, Claim, HandlersReloaded, Notes, Outcome, ReadyNote, Released, WorkQueue
from tq_node.types import Announced, HandlerKind, Token
from tq_node.work.attempt import CANCELLED, Attempt, SharedAttempt, failed
from tq_node.work.completer import Completer
from tq_node.work.failure_log import FailureLog, printable
from tq_node.work.handler_output import unwrap_streams, wrap_streams
from tq_node.work.handler_reload import HandlerReload
from tq_node.work.handlers import Handler, RunIn
from tq_node.work.lease import renew_leases
from tq_node.work.loop_attempt import LoopAttempt
from tq_node.work.loop_pool import LoopPool
from tq_node.work.pool import ProcessPool
from tq_node.work.prefetch import Prefetch
from tq_node.work.process_attempt import ProcessAttempt
from tq_node.work.reactor_attempt import ReactorAttempt
from tq_node.work.registry import Registry
from tq_node.work.settings import WorkerSettings

_log = Logger()
DEFAULT_SETTINGS = WorkerSettings()
_CHECK_S = limits.CLAIMS_AHEAD_WAIT_MS / 1000 / 4
_NOTHING = Announced(HandlerKind.NONE)
_RUNS_NONE = ReadyNote("no_workers", "--concurrency 0: this node keeps tasks and runs none")
_STOP_COMMIT_S = 5.0
"""How long a stop waits for claims and completions under way, once no handler runs."""


class WorkerService(Service):
    """Implements ``facade.Worker``. Never runs more attempts than ``concurrency``, and never holds
    and asks for more claims than that and ``Prefetch.claims`` together. With a ``concurrency`` of 0
    it starts no process, announces no handlers and claims nothing."""

    name = "worker"

    def __init__(
        self,
        queue: WorkQueue,
        registry: Registry,
        settings: WorkerSettings = DEFAULT_SETTINGS,
        *,
        reactor: Any = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``reactor`` None: the global one. ``monotonic``: CLOCK_MONOTONIC, as in its processes."""
        concurrency = settings.concurrency
        self.clock: IReactorTime = _reactor() if reactor is None else reactor
        self._queue = queue
        self._registry = registry
        self._concurrency = concurrency
        self._stop_timeout_s = settings.stop_timeout_s
        self._monotonic = monotonic
        self._echo = settings.echo
        self._failures = FailureLog(self.clock)
        self.prefetch = Prefetch(concurrency)
        self.pool = ProcessPool(
            registry.modules,
            settings.environment,
            self.prefetch,
            size=concurrency,
            reactor=self.clock,
            monotonic=monotonic,
        )
        self.loops = LoopPool(registry.modules, settings.environment, size=concurrency, reactor=self.clock)
        self._attempts: dict[tuple[str, Token], Attempt] = {}
        self._claiming = 0
        """Slots that claims in flight have asked for."""
        self._shared_queue: deque[SharedAttempt] = deque()
        """Prefetched attempts of ``async def`` handlers. (Those of ``def`` wait in the pool.)"""
        self._shared_running = 0
        self._is_starting = False
        self._overdue_call: IDelayedCall | None = None
        self.completer = Completer(
            queue,
            self.clock,
            in_flight_max=max(64, 4 * concurrency) + limits.CLAIMS_AHEAD_MAX,
            on_finished=self._end_committed,
        )
        self._wakes = 0
        self._dispatch_call: IDelayedCall | None = None
        self._stopping = False
        self._loops: list[LoopingCall] = []
        self._changed: Deferred[None] | None = None
        self._reload = HandlerReload(registry, self._handlers_reloaded)

    @property
    def running_count(self) -> int:
        """Attempts that run, without those that wait for a slot."""
        return min(len(self._attempts), self._concurrency)

    # --- Service ---
    def startService(self) -> None:
        super().startService()
        self._stopping = False
        self._queue.attach(self)
        wrap_streams()
        self._start_pools()
        for work, interval_s in ((self._safety_net, limits.SAFETY_NET_S), (self._renew, limits.LEASE_RENEW_MS / 1000)):
            loop = LoopingCall(_guarded, work)
            loop.clock = self.clock
            loop.start(interval_s, now=False).addErrback(_unexpected)
            self._loops.append(loop)
        self._schedule()

    def _start_pools(self) -> None:
        if not self._concurrency:
            return
        if self._registry.has(RunIn.PROCESS):
            self.pool.start()
        if self._registry.has(RunIn.ASYNCIO):
            self.loops.start()

    def stopService(self) -> Deferred[None]:
        """Claim nothing more, give the handlers ``stop_timeout_s``, then kill them and release
        their attempts. Fires when nothing is left: no process, no pipe, no timer."""
        super().stopService()
        self._stopping = True
        if self._dispatch_call is not None:
            self._dispatch_call.cancel()
            self._dispatch_call = None
        return Deferred.fromCoroutine(self._drain())

    # --- facade.Worker ---
    @property
    def slots_free(self) -> int:
        free = min(self._concurrency, self.pool.slots) - len(self._attempts) - self._claiming
        return max(0, free) if self.running and not self._stopping else 0

    @property
    def types(self) -> tuple[str, ...] | None:
        return self._registry.takes if self._concurrency else ()

    @property
    def notes(self) -> Sequence[ReadyNote]:
        return self.pool.notes or self.loops.notes if self._concurrency else (_RUNS_NONE,)

    @property
    def announced(self) -> Announced:
        return self._registry.announced if self._concurrency else _NOTHING

    def stand_in(self, may: bool) -> None:
        if self._registry.stand_in(may):
            if not may:
                # What a stand-in began it does not complete: a real handler begins it anew.
                for attempt in list(self._attempts.values()):
                    attempt.release()
            self._handlers_changed()

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        return self._reload.reload()

    def _handlers_reloaded(self) -> None:
        for waiting in [*self._shared_queue, *self.pool.waiting]:
            waiting.release()  # to be claimed anew, by whoever has a handler for it now
        if self.running and not self._stopping:
            self._start_pools()
            self.pool.renew()
            self.loops.renew()
        self._handlers_changed()

    def _handlers_changed(self) -> None:
        self._queue.handlers_changed()
        self._schedule()

    def wake(self) -> None:
        self._wakes += 1
        if self._dispatch_call is None:
            self._schedule()

    def stop_attempt(self, task_id: str, token: Token) -> None:
        attempt = self._attempts.get((task_id, token))
        if attempt is not None:
            try:
                attempt.stop()
            except Exception:
                _log.failure("attempt of {task_id} could not be stopped", task_id=task_id, event="stop_attempt_failed")

    # --- claiming ---
    def _claimable(self) -> int:
        slots = self.pool.slots
        if slots < self._concurrency:
            return slots - len(self._attempts) - self._claiming
        return slots + self.prefetch.claims - len(self._attempts) - self._claiming

    def _schedule(self) -> None:
        if self._dispatch_call is None and not self._stopping and self.running and self._claimable() > 0:
            self._dispatch_call = self.clock.callLater(0, self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_call = None
        free = self._claimable()
        if free <= 0 or self._stopping or self.completer.is_full:
            return
        self._claiming += free
        asked_at = self._monotonic()
        try:
            claims = self._queue.claim(free)
        except Exception:
            self._claim_failed(Failure(), free)
            return
        claims.addCallbacks(self._claimed, self._claim_failed, (free, self._wakes, asked_at), {}, (free,))
        claims.addErrback(_unexpected)

    def _claimed(self, claims: Sequence[Claim], limit: int, wakes: int, asked_at: float) -> None:
        self._claiming -= limit
        if claims:
            self.prefetch.claim_took(self._monotonic() - asked_at)
            for claim in claims:
                self._run(claim)
            if self._overdue_call is None and len(self._attempts) > self._concurrency:
                self._overdue_call = self.clock.callLater(_CHECK_S, self._release_overdue)
        # A hint that came while the answer was on its way found no slot to ask for.
        if len(claims) < limit and wakes != self._wakes:
            self._schedule()
        if self._changed is not None:
            self._notify()

    def _claim_failed(self, why: Failure, limit: int) -> None:
        self._claiming -= limit
        if not why.check(TaskQueueError, CancelledError):
            _log.failure("claim failed; the safety net tries again", failure=why, event="claim_failed")
        if self._changed is not None:
            self._notify()

    def _run(self, claim: Claim) -> None:
        if self._stopping:
            self.completer.finish(claim, Released(), None)
            return
        handler = self._registry.resolve(claim.task_type)
        if handler is None:
            # Its handler has gone while it was being claimed: for whoever has one.
            self.completer.finish(claim, Released(), None)
            return
        now = self._monotonic()
        granted_ms = self._queue.lease_ms(claim)
        if granted_ms <= 0:
            self.completer.finish(claim, Released(), None)
            return
        attempt = self._attempt_of(claim, handler, now + granted_ms / 1000)
        attempt.claimed_at = now
        self._attempts[claim.task_id, claim.token] = attempt
        if not isinstance(attempt, SharedAttempt):
            self._start(attempt)
            return
        self.prefetch.stop()  # it is for processes with one task each: others would only stand in line
        if len(self._attempts) <= self._concurrency:
            self._start_shared(attempt)
        else:
            self._shared_queue.append(attempt)

    def _attempt_of(self, claim: Claim, handler: Handler, lease_until: float) -> Attempt:
        if handler.run is RunIn.PROCESS:
            return ProcessAttempt(self, claim, handler, lease_until, self.pool)
        if handler.run is RunIn.ASYNCIO:
            return LoopAttempt(self, claim, handler, lease_until, self.loops)
        return ReactorAttempt(self, claim, handler, lease_until)

    def _start_shared(self, attempt: SharedAttempt) -> None:
        attempt.has_slot = True
        self._shared_running += 1
        self.pool.limit = self._concurrency - self._shared_running
        self._start(attempt)

    def _start(self, attempt: Attempt) -> None:
        try:
            attempt.start()
        except Exception:
            _log.failure(
                "attempt of {task_id} could not be started", task_id=attempt.claim.task_id, event="attempt_start_failed"
            )
            if not attempt.ended:
                attempt.abort(failed("worker_start_failed", "the attempt could not be started"))

    # --- what waits for a slot ---
    def _release_overdue(self) -> None:
        """Release claims that waited too long for a slot, latest claim first, for other nodes."""
        self._overdue_call = None
        self.pool.check_long_tasks(_CHECK_S)
        ahead = len(self._attempts) - self._concurrency
        waiting: list[Attempt] = sorted(
            [*self._shared_queue, *self.pool.waiting], key=lambda attempt: attempt.claimed_at
        )
        due = self._monotonic() - limits.CLAIMS_AHEAD_WAIT_MS / 1000
        overdue = min(ahead, sum(attempt.claimed_at < due for attempt in waiting))
        if overdue > 0:
            self.prefetch.stop()
            for attempt in waiting[-overdue:]:
                attempt.release()
        if not self._stopping and (len(self._attempts) > self._concurrency or self.pool.is_deep):
            self._overdue_call = self.clock.callLater(_CHECK_S, self._release_overdue)

    def _next_in_line(self) -> None:
        if self._is_starting:
            return  # one that ends at once leads back here; the loop below goes on
        self._is_starting = True
        while (
            self._shared_queue
            and len(self._attempts) - len(self._shared_queue) - len(self.pool.waiting) < self._concurrency
        ):
            self._start_shared(self._shared_queue.popleft())
        self._is_starting = False

    # --- attempt.Host ---
    def note(self, attempt: Attempt, notes: Notes) -> None:
        if self._echo:
            _echo(attempt.claim, notes)
        try:
            noted = self._queue.note(attempt.claim, notes)
        except Exception:
            self._noted(Failure(), attempt)
            return
        noted.addBoth(self._noted, attempt)
        noted.addErrback(_unexpected)

    def _noted(self, result: object, attempt: Attempt) -> None:
        attempt.note_in_flight = False
        if not isinstance(result, Failure):
            return
        if result.check(StaleAttempt):
            # Its task has another claim or has ended: its handler counts no more.
            if not attempt.ended:
                attempt.stop()
        elif not result.check(TaskQueueError, CancelledError):
            _log.failure(
                "notes of {task_id} failed", failure=result, task_id=attempt.claim.task_id, event="note_failed"
            )

    def ended(self, attempt: Attempt, outcome: Outcome, notes: Notes | None) -> None:
        claim = attempt.claim
        self._attempts.pop((claim.task_id, claim.token), None)
        if isinstance(attempt, SharedAttempt):
            self._left_slot(attempt)
        if self._shared_queue:
            self._next_in_line()
        self.pool.feed()
        if notes is not None and self._echo:
            _echo(claim, notes)
        if type(outcome) is AttemptFailed and outcome is not CANCELLED:
            self._failures.failed(claim, outcome.error)
        self.completer.finish(claim, outcome, notes)
        if self._dispatch_call is None:
            self._schedule()
        if self._changed is not None:
            self._notify()

    def _left_slot(self, attempt: SharedAttempt) -> None:
        if attempt.has_slot:
            self._shared_running -= 1
            self.pool.limit = self._concurrency - self._shared_running
        else:
            self._shared_queue.remove(attempt)

    def _end_committed(self) -> None:
        """The end of an attempt is committed."""
        if self._dispatch_call is None and not self.completer.is_full:
            self._schedule()
        if self._changed is not None:
            self._notify()

    # --- loops ---
    def _safety_net(self) -> None:
        self.pool.sweep()
        self._failures.look()
        self._schedule()

    def _renew(self) -> None:
        renew_leases(list(self._attempts.values()), self._queue.lease_ms, self._monotonic)

    # --- stopping ---
    async def _drain(self) -> None:
        self.pool.close()
        self.loops.close()
        for waiting in list(self._shared_queue):
            waiting.release()
        if self._overdue_call is not None:
            self._overdue_call.cancel()
            self._overdue_call = None
        await self._until(lambda: not self._attempts, self._stop_timeout_s)
        for attempt in list(self._attempts.values()):
            attempt.release()
        await self._until(lambda: not self._attempts, None)
        for loop in self._loops:
            loop.stop()
        self._loops.clear()
        await self.pool.stop()
        await self.loops.stop()
        if not await self._until(lambda: not self._claiming and not self.completer.count, _STOP_COMMIT_S):
            _log.info(
                "stopped with {finishing} ends of attempts and {asked} claims not yet confirmed",
                finishing=self.completer.count, asked=self._claiming, event="worker_stopped_early",
            )  # fmt: skip
        self.completer.stop()
        self._failures.look()
        unwrap_streams()

    async def _until(self, reached: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until ``reached()``, for at most ``seconds``; return whether it was."""
        end_s = None if timeout_s is None else self.clock.seconds() + timeout_s
        while not reached():
            changed: Deferred[None] = Deferred()
            self._changed = changed
            timer = None
            if end_s is not None:
                left_s = end_s - self.clock.seconds()
                if left_s <= 0:
                    self._changed = None
                    return False
                timer = self.clock.callLater(left_s, self._notify)
            await changed
            if timer is not None and timer.active():
                timer.cancel()
        return True

    def _notify(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.callback(None)


def _echo(claim: Claim, notes: Notes) -> None:
    for line in notes.lines:
        _log.info("{task_id} | {line}", task_id=claim.task_id, line=printable(line.line), event="handler_said")


def _guarded(work: Callable[[], None]) -> None:
    # An exception would end a LoopingCall for good.
    with _log.failuresHandled("a round of {work} failed", work=work.__name__, event="worker_round_failed"):
        work()


def _unexpected(why: Failure) -> None:
    _log.failure("a bug in the worker service", failure=why, event="worker_bug")


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor
