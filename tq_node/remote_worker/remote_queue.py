"""``facade.TaskQueue`` for a worker on another machine: what ``work`` asks of the queue, over HTTP.

One request for work is under way at a time. It waits at a node until there is something, for as
many tasks as the worker last had slots for; what it brings is kept until the worker claims, which
it is woken for. Ends and leases of many attempts share a request. A lease counts from when the
request was sent, plus what the node says that it held it, less a margin."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import attempt_token, limits
from tq_node.client import errors as client_errors
from tq_node.errors import NotReady, StaleAttempt
from tq_node.facade import AttemptFailed, Claim, Completed, Lost, Notes, Outcome, Released, Worker
from tq_node.remote_worker.work_api import BATCH_MAX, Claimed, Result, WorkApi
from tq_node.remote_worker.work_api import Worker as Said
from tq_node.types import Token

T = TypeVar("T")
_log = Logger(namespace="taskqueue.worker")
MARGIN_S = limits.LEASE_MARGIN_MS / 1000
EXTENDS_A_LEASE = 4
"""A lease is extended so often before it would be over."""
AGAIN_FIRST_S, AGAIN_S_MAX = 0.2, 5.0
"""Pause after a request that no node answered: doubled from the first to the last."""
GATHER_S = 0.002
"""So long ends of attempts wait for others that share their request, while none is under way."""
STALE = frozenset({"stale_attempt", "not_found", "task_purged"})


class _Held(msgspec.Struct, gc=False):
    """An attempt that runs here."""

    claim: Claim
    text: str
    """Its token, as the API has it."""
    until_s: float
    """When its lease is over, monotonic, less the margin."""


class _Woken(Protocol):
    """What the queue asks of its worker."""

    @property
    def types(self) -> Collection[str] | None: ...

    def wake(self) -> None: ...

    def stop_attempt(self, task_id: str, token: Token) -> None: ...


class _Nobody:
    """Before the worker is attached."""

    types: Collection[str] | None = ()

    def wake(self) -> None: ...

    def stop_attempt(self, task_id: str, token: Token) -> None: ...


class _End(msgspec.Struct, gc=False):
    """The end of an attempt on its way, or news of one that goes on."""

    item: dict[str, Any]
    done: Deferred[None]


class RemoteQueue:
    """See the module.

    :param said: what the worker says of itself; its types and slots follow those of the worker.
    :param ordered: called with ``quiet``, ``stop`` or ``run`` when an operator wants another."""

    def __init__(
        self,
        api: WorkApi,
        said: Said,
        clock: IReactorTime,
        ordered: Callable[[str], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node_name = said.worker
        self.is_connected = False
        """Whether the last request was answered."""
        self.claimed = self.finished = 0
        """Since the start."""
        self._api = api
        self._said = said
        self._clock = clock
        self._ordered = ordered
        self._monotonic = monotonic
        self._worker: _Woken = _Nobody()
        self._state = "run"
        self._held: dict[tuple[str, Token], _Held] = {}
        self._ready: deque[Claim] = deque()
        """Claimed, and not given to the worker yet."""
        self._wanted = 0
        """For how many tasks the worker last had slots."""
        self._polling: asyncio.Task[None] | None = None
        self._ends: list[_End] = []
        self._ending: asyncio.Task[None] | None = None
        self._notes: dict[tuple[str, Token], _End] = {}
        self._note_call: IDelayedCall | None = None
        self._extending: asyncio.Task[None] | None = None
        self._stopped = False

    # --- life ---
    def begin(self) -> None:
        """To be called in the running asyncio loop."""
        self._extending = asyncio.ensure_future(self._extend_for_ever())

    def stop_claiming(self) -> None:
        """Ask for no more work; what is kept and not begun is given back."""
        self._stopped = True
        if self._polling is not None:
            self._polling.cancel()
        while self._ready:
            self._give_back(self._ready.popleft())

    async def close(self) -> None:
        """End all requests; what they were about is known by then, or lost with its lease."""
        self.stop_claiming()
        tasks = [task for task in (self._polling, self._ending, self._extending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._note_call is not None and self._note_call.active():
            self._note_call.cancel()
        self._api.close()

    # --- for work/ ---
    def attach(self, worker: Worker) -> None:
        """See ``facade.TaskQueue.attach``."""
        self._worker = worker
        self.handlers_changed()

    def handlers_changed(self) -> None:
        """The worker's types have changed: the next request says them."""
        types = self._worker.types
        self._said = msgspec.structs.replace(self._said, types=None if types is None else tuple(types))

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        """What has come by now; if that is nothing, the worker is woken when something has."""
        claims = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        self._wanted = limit - len(claims)
        if self._wanted > 0:
            self._poll()
        return succeed(claims)

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        """See ``facade.TaskQueue.finish``."""
        held = self._held.get((claim.task_id, claim.token))
        if held is None:
            return fail(StaleAttempt(task_id=claim.task_id))
        if isinstance(outcome, Lost):
            del self._held[claim.task_id, claim.token]  # its lease is over: the cluster knows by itself
            return succeed(None)
        item = {"task_id": claim.task_id, "token": held.text, **_outcome(outcome), **_said(notes)}
        end = _End(item, Deferred())
        self._ends.append(end)
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end_all())

        def ended(result: Any) -> Any:
            if not isinstance(result, Failure) or result.check(StaleAttempt):
                self._held.pop((claim.task_id, claim.token), None)
                self.finished += 1
            return result

        return end.done.addBoth(ended)

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        """See ``facade.TaskQueue.note``; goes with the next ``extend``, which is soon then."""
        key = claim.task_id, claim.token
        held = self._held.get(key)
        if held is None:
            return fail(StaleAttempt(task_id=claim.task_id))
        noted = self._notes.get(key)
        if noted is None:
            noted = self._notes[key] = _End({}, Deferred())
        noted.item |= _said(notes) | {"log": [*noted.item.get("log", ()), *(line.line for line in notes.lines)]}
        if self._note_call is None or not self._note_call.active():
            self._note_call = self._clock.callLater(GATHER_S * 10, self._send_notes)
        heard: Deferred[None] = Deferred()
        noted.done.addBoth(_pass_on, heard)
        return heard

    def lease_ms(self, claim: Claim) -> int:
        """See ``facade.TaskQueue.lease_ms``."""
        held = self._held.get((claim.task_id, claim.token))
        return 0 if held is None else max(0, int((held.until_s - self._monotonic()) * 1000))

    # --- claiming ---
    def _poll(self) -> None:
        if self._polling is None and not self._stopped:
            self._polling = asyncio.ensure_future(self._poll_once())
            self._polling.add_done_callback(self._polled)

    def _polled(self, task: asyncio.Task[None]) -> None:
        self._polling = None
        if not task.cancelled() and (why := task.exception()) is not None:
            _log.failure("asking for work failed", failure=Failure(why), event="poll_failed")
        if self._stopped:
            return
        if self._ready:
            self._worker.wake()
        elif self._wanted > 0:
            self._poll()

    async def _poll_once(self) -> None:
        claim_id, failures = uuid.uuid4().hex, 0
        while not self._stopped:
            limit = max(1, min(self._wanted, BATCH_MAX))
            sent_s = self._monotonic()
            try:
                # The first one does not wait: it says whether a node answers at all.
                wait_s = limits.WORKER_POLL_S if self.is_connected else 0
                answer = await self._api.claim(self._said, claim_id, limit, wait_s)
            except client_errors.TaskQueueError as why:
                failures += 1
                self._not_answered(why, failures)
                await asyncio.sleep(min(AGAIN_S_MAX, AGAIN_FIRST_S * 2 ** min(failures, 10)))
                continue
            self._answered()
            self._follow(answer.state)
            for one in answer.claims:
                self._take(one, sent_s + answer.waited)
            return

    def _take(self, one: Claimed, from_s: float) -> None:
        read = attempt_token.read(one.token)
        claim = Claim(
            one.task_id, one.type, bytes(one.payload), read.partition, one.attempt, read.token,
            None if one.timeout is None else round(one.timeout * 1000), one.queue, one.max_attempts,
            0 if one.attempts_left is None else max(0, one.max_attempts - one.attempts_left - 1),
            _time_us(one.created_at), one.tags,
        )  # fmt: skip
        key = claim.task_id, claim.token
        if key not in self._held:
            self.claimed += 1
            self._ready.append(claim)
        self._held[key] = _Held(claim, one.token, from_s + one.lease - MARGIN_S)

    def _give_back(self, claim: Claim) -> None:
        self.finish(claim, Released()).addErrback(lambda _: None)

    def _follow(self, state: str) -> None:
        if state != self._state:
            self._state = state
            _log.info("operators want this worker to {state}", state=state, event="worker_ordered")
            self._ordered(state)

    # --- ends ---
    async def _end_all(self) -> None:
        try:
            await asyncio.sleep(GATHER_S)
            while self._ends:
                ends, self._ends = self._ends[:BATCH_MAX], self._ends[BATCH_MAX:]
                await self._send(ends, self._api.finish)
        finally:
            self._ending = None

    async def _send(
        self, ends: list[_End], send: Callable[[str, list[dict[str, Any]]], Coroutine[Any, Any, list[Result]]]
    ) -> list[Result]:
        """Send these and tell each what became of it."""
        try:
            results = await send(self._said.worker, [end.item for end in ends])
        except client_errors.TaskQueueError as why:
            self._not_answered(why, 1)
            for end in ends:
                end.done.errback(NotReady(f"no node has answered: {why.detail}"))
            return []
        self._answered()
        for end, result in zip(ends, results, strict=True):
            task_id = end.item["task_id"]
            if result.error is None and not result.cancelled:
                end.done.callback(None)
            elif result.error is not None and result.error.code not in STALE:
                end.done.errback(NotReady(result.error.detail, task_id=task_id))
            else:
                end.done.errback(StaleAttempt(task_id=task_id))
        return results

    # --- leases ---
    async def _extend_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._said.lease / EXTENDS_A_LEASE)
            await self._extend(list(self._held.values()))

    def _send_notes(self) -> None:
        held = [self._held[key] for key in self._notes if key in self._held]
        asyncio.ensure_future(self._extend(held)).add_done_callback(_bug)

    async def _extend(self, held: list[_Held]) -> None:
        for first in range(0, len(held), BATCH_MAX):
            part = held[first : first + BATCH_MAX]
            ends = []
            for one in part:
                noted = self._notes.pop((one.claim.task_id, one.claim.token), None)
                end = _End({}, Deferred()) if noted is None else noted
                end.item |= {"task_id": one.claim.task_id, "token": one.text}
                end.done.addErrback(lambda _: None) if noted is None else end.done.addErrback(_quiet)
                ends.append(end)
            sent_s = self._monotonic()
            results = await self._send(ends, self._api.extend)
            for one, result in zip(part, results, strict=False):
                self._extended(one, result, sent_s)

    def _extended(self, one: _Held, result: Result, sent_s: float) -> None:
        claim = one.claim
        key = claim.task_id, claim.token
        if key not in self._held:
            return  # it has ended meanwhile
        if result.lease > 0:
            one.until_s = sent_s + result.lease - MARGIN_S
        elif result.cancelled or (result.error is not None and result.error.code in STALE):
            if claim in self._ready:
                self._ready.remove(claim)
                del self._held[key]
            else:
                self._worker.stop_attempt(claim.task_id, claim.token)

    # --- connected or not ---
    def _answered(self) -> None:
        if not self.is_connected:
            self.is_connected = True
            _log.info("a node answers", event="worker_connected")

    def _not_answered(self, why: client_errors.TaskQueueError, failures: int) -> None:
        if self.is_connected or failures == 1:
            _log.warn("no node answers as it should: {why}", why=why.detail, event="worker_unconnected")
        self.is_connected = False


def _outcome(outcome: Completed | AttemptFailed | Released) -> dict[str, Any]:
    if isinstance(outcome, Completed):
        return {"outcome": "completed", "result": msgspec.Raw(outcome.result)}
    if isinstance(outcome, AttemptFailed):
        error = {"type": outcome.error.type, "message": outcome.error.message, "traceback": outcome.error.traceback}
        failed = {"outcome": "failed", "error": error, "final": outcome.final}
        return failed if outcome.retry_in_ms is None else failed | {"retry_in": outcome.retry_in_ms / 1000}
    return {"outcome": "released"}


def _said(notes: Notes | None) -> dict[str, Any]:
    if notes is None:
        return {}
    said: dict[str, Any] = {}
    if notes.progress is not None:
        said["progress"] = {"fraction": notes.progress.fraction, "note": notes.progress.note}
    if notes.lines:
        said["log"] = [line.line for line in notes.lines]
    return said


def _time_us(text: str) -> int:
    return int(msgspec.convert(text, type=datetime).timestamp() * 1e6)


def _pass_on(result: Any, heard: Deferred[None]) -> Any:
    if not heard.called:
        heard.errback(result) if isinstance(result, Failure) else heard.callback(None)
    return None if isinstance(result, Failure) else result


def _quiet(_: Failure) -> None:
    """Whoever noted has been told."""


def _bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (why := task.exception()) is not None:
        _log.failure("extending leases failed", failure=Failure(why), event="extend_failed")
