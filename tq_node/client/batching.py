"""Gathers submits into batches, sends them, and gives each submit its outcome.

The first submit is sent at once. Those made while it is in flight are sent together when it is
answered, when they fill a batch, or after ``limits.GATHER_S``, whatever is first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from tq_node.client import limits
from tq_node.client.calls import Trials, is_worth_another, pause_after, refusal
from tq_node.client.connection import Lost
from tq_node.client.errors import UNREADABLE, Closed, Problem, TaskQueueError, TooManyWaiting, error_of
from tq_node.client.node import Node
from tq_node.client.roster import Roster


class Accepted(msgspec.Struct, frozen=True):
    """An accepted task; ``status`` as of the answer, ``node`` its primary (None: in a batch)."""

    task_id: str
    status: str
    node: str | None = None


class _Result(msgspec.Struct):
    task_id: str = ""
    status: str = ""
    error: Problem | None = None


class _Batch(msgspec.Struct):
    results: list[_Result]


_decode_one = msgspec.json.Decoder(Accepted).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode


class Submit:
    """One task that is being submitted.

    :param body: the JSON of the task with its id, sent unchanged at each try.
    :param end_s: loop time of the deadline.
    :param on_outcome: called once in the loop, when ``outcome`` is set."""

    __slots__ = ("body", "end_s", "in_flight", "on_outcome", "outcome", "task_id", "trials")

    def __init__(self, task_id: str, body: bytes, end_s: float, on_outcome: Callable[[Submit], None]) -> None:
        self.task_id = task_id
        self.body = body
        self.end_s = end_s
        self.on_outcome = on_outcome
        self.outcome: Accepted | TaskQueueError | None = None
        self.in_flight = False
        self.trials: Trials | None = None
        """None until a try fails, which is rare."""

    @property
    def made_trials(self) -> Trials:
        """``trials``, made on first use."""
        if self.trials is None:
            self.trials = Trials(changes=True, task_id=self.task_id)
        return self.trials


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Bounds of batches; with ``tasks_max`` 1 each submit is a request."""

    tasks_max: int = limits.BATCH_TASKS_MAX
    in_flight_max: int = limits.FLIGHTS_MAX
    open_max: int = limits.OPEN_TASKS_MAX
    waiting_max: int = limits.OUTSIDE_TASKS_MAX


class Batcher:
    """Sends submits. Runs in the event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, roster: Roster, settings: BatchSettings) -> None:
        self._loop = loop
        self._roster = roster
        self._settings = settings
        self._ready: deque[Submit] = deque()
        self._waiting: deque[Submit] = deque()
        """Submits beyond the bounds of the open ones."""
        self._open: dict[Submit, None] = {}
        self._open_bytes = self._waiting_bytes = 0
        self._requests: set[asyncio.Task[None]] = set()
        self._send_timer: asyncio.Handle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._stopped = False

    # --- in and out ---
    def add(self, submit: Submit) -> None:
        size = len(submit.body)
        if self._stopped:
            self._resolve(submit, Closed("the queue is closed", task_id=submit.task_id))
        elif not self._waiting and self._has_room(size):
            self._admit(submit)
        elif len(self._waiting) < self._settings.waiting_max and self._waiting_bytes + size <= limits.OUTSIDE_BYTES_MAX:
            self._waiting.append(submit)
            self._waiting_bytes += size
            self._watch(submit)
        else:
            detail = f"{len(self._waiting)} submits wait for room in this client"
            self._resolve(submit, TooManyWaiting(detail, task_id=submit.task_id))

    def drop(self, submit: Submit) -> None:
        """The caller gave up: ``on_outcome`` is not called, and what was not sent is not sent."""
        if submit.outcome is None:
            submit.on_outcome = _ignore
            if not submit.in_flight:
                self._finish(submit, Closed("dropped", task_id=submit.task_id))

    @property
    def waiting(self) -> int:
        """Number of submits without an outcome."""
        return len(self._open) + len(self._waiting)

    async def close(self, wait_s: float) -> None:
        """Wait up to ``wait_s`` for open submits; those sent by then get an unknown outcome."""
        self._stopped = True
        end_s = self._loop.time() + wait_s
        while self.waiting and self._loop.time() < end_s:
            if self._requests:
                await asyncio.wait(
                    self._requests, timeout=end_s - self._loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(limits.GATHER_S)
        for submit in (*self._open, *self._waiting):
            sent = submit.in_flight or (submit.trials is not None and submit.trials.unknown is not None)
            closed = Closed("the queue was closed", task_id=submit.task_id)
            self._finish(submit, submit.made_trials.verdict(in_flight=True) if sent else closed)
        for timer in (self._send_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
        for request in tuple(self._requests):
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def _has_room(self, size: int) -> bool:
        if not self._open:
            return True  # one that is too large for all limits must still be refused by a node, not wait for ever
        return len(self._open) < self._settings.open_max and self._open_bytes + size <= limits.OPEN_BYTES_MAX

    def _admit(self, submit: Submit) -> None:
        self._open[submit] = None
        self._open_bytes += len(submit.body)
        self._ready.append(submit)
        self._watch(submit)
        self._wake()

    def _finish(self, submit: Submit, outcome: Accepted | TaskQueueError) -> None:
        if submit.outcome is not None:
            return
        if submit in self._open:
            del self._open[submit]
            self._open_bytes -= len(submit.body)
        self._resolve(submit, outcome)
        while self._waiting:
            waiting = self._waiting[0]
            if waiting.outcome is None and not self._has_room(len(waiting.body)):
                break
            self._waiting.popleft()
            self._waiting_bytes -= len(waiting.body)
            if waiting.outcome is None:
                self._admit(waiting)

    @staticmethod
    def _resolve(submit: Submit, outcome: Accepted | TaskQueueError) -> None:
        submit.outcome = outcome
        submit.on_outcome(submit)

    # --- deadlines: one timer for the nearest ---
    def _watch(self, submit: Submit) -> None:
        if self._deadline_timer is None or submit.end_s < self._deadline_timer.when():
            if self._deadline_timer is not None:
                self._deadline_timer.cancel()
            self._deadline_timer = self._loop.call_at(submit.end_s, self._expire)

    def _expire(self) -> None:
        self._deadline_timer = None
        now_s = self._loop.time()
        for submit in [one for one in (*self._open, *self._waiting) if one.end_s <= now_s]:
            self._finish(submit, submit.made_trials.verdict(in_flight=submit.in_flight))
        nearest = min((*self._open, *self._waiting), key=lambda one: one.end_s, default=None)
        if nearest is not None:
            self._watch(nearest)

    # --- sending ---
    def _wake(self) -> None:
        """Schedule the next batch."""
        requests = len(self._requests)
        if requests >= self._settings.in_flight_max:
            return  # the next answer sends it
        if requests == 0 or len(self._ready) >= self._settings.tasks_max:
            # At the end of this turn of the loop, with what else is submitted in it.
            if not isinstance(self._send_timer, asyncio.TimerHandle) and self._send_timer is not None:
                return
            if self._send_timer is not None:
                self._send_timer.cancel()
            self._send_timer = self._loop.call_soon(self._send_ready)
        elif self._send_timer is None:
            self._send_timer = self._loop.call_later(limits.GATHER_S, self._send_ready)

    def _send_ready(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        while self._ready and len(self._requests) < self._settings.in_flight_max:
            batch = self._take()
            if batch:
                self._start(batch)

    def _start(self, batch: list[Submit]) -> None:
        request = self._loop.create_task(self._send(batch))
        self._requests.add(request)
        request.add_done_callback(self._on_request_done)

    def _take(self) -> list[Submit]:
        batch: list[Submit] = []
        size = 0
        ready = self._ready
        while ready and len(batch) < self._settings.tasks_max:
            submit = ready[0]
            size += len(submit.body)
            if batch and size > limits.BATCH_BYTES_MAX:
                break
            ready.popleft()
            if submit.outcome is None:  # not dropped, and in time
                batch.append(submit)
        return batch

    def _on_request_done(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.result()  # a bug of ours is not swallowed: the loop's handler shows it
        if self._ready and not (self._stopped and request.cancelled()):
            self._send_ready()

    # --- one request ---
    async def _send(self, batch: list[Submit]) -> None:
        node, pause_s = self._roster.next()
        if pause_s:
            for submit in batch:
                submit.made_trials.note_paused()
            await asyncio.sleep(pause_s)
            batch = [submit for submit in batch if submit.outcome is None]
            if not batch:
                return
        if len(batch) == 1:
            path, body = b"/tasks/submit", batch[0].body
        else:
            path, body = b"/tasks/batch", b'{"tasks":[%b]}' % b",".join([submit.body for submit in batch])
        for submit in batch:
            submit.in_flight = True
        try:
            answer = await node.ask(b"POST", path, body, limits.ATTEMPT_S)
        except Lost as why:
            self._on_lost(batch, why)
            return
        finally:
            for submit in batch:
                submit.in_flight = False
        if answer.status >= 300:
            self._on_refused(batch, refusal(node, answer))
        elif len(batch) == 1:
            self._on_answer(batch[0], node, answer.body)
        else:
            self._on_batch_answer(batch, node, answer.body)

    def _on_lost(self, batch: list[Submit], why: Lost) -> None:
        self._roster.note_lost()
        for submit in batch:
            submit.made_trials.note_lost(why)
        if why.stale:
            self._requeue(batch)
        else:
            self._retry_later(batch)

    def _on_refused(self, batch: list[Submit], error: TaskQueueError) -> None:
        """The node refused the whole batch."""
        if error.code == "body_too_large" and len(batch) > 1:
            half = len(batch) // 2  # this node takes less at once than we thought; nothing was done
            self._start(batch[:half])
            self._start(batch[half:])
            return
        retryable = [submit for submit in batch if self._resolve_unless_retryable(submit, error)]
        self._retry_later(retryable)

    def _on_answer(self, submit: Submit, node: Node, body: bytes) -> None:
        try:
            accepted = _decode_one(body)
        except UNREADABLE as why:
            self._on_lost([submit], _not_understood(node, why))
            return
        self._finish(submit, accepted)

    def _on_batch_answer(self, batch: list[Submit], node: Node, body: bytes) -> None:
        try:
            results = _decode_batch(body).results
            if len(results) != len(batch):
                raise msgspec.ValidationError(f"{len(results)} results for {len(batch)} tasks")
        except UNREADABLE as why:
            self._on_lost(batch, _not_understood(node, why))
            return
        retryable: list[Submit] = []
        for submit, result in zip(batch, results, strict=True):
            if result.error is None:
                self._finish(submit, Accepted(result.task_id, result.status))
            elif self._resolve_unless_retryable(submit, _item_error(error_of(result.error), submit)):
                retryable.append(submit)
        self._retry_later(retryable)

    def _resolve_unless_retryable(self, submit: Submit, error: TaskQueueError) -> bool:
        """Resolve the submit with an error, unless that is worth another try; whether it is."""
        made_trials = submit.made_trials
        made_trials.note_error(error)
        if is_worth_another(error):
            return True
        # After an unknown outcome, the only certain error is that another task has this id.
        is_sure = made_trials.unknown is None or error.code == "id_conflict"
        self._finish(submit, error if is_sure else made_trials.verdict())
        return False

    def _retry_later(self, batch: Iterable[Submit]) -> None:
        """Send again after a pause, to the next node."""
        retryable = [submit for submit in batch if submit.outcome is None]
        if retryable:
            pause_s = pause_after(min(submit.made_trials.tries for submit in retryable))
            self._loop.call_later(pause_s, self._requeue, retryable)

    def _requeue(self, batch: list[Submit]) -> None:
        self._ready.extend(submit for submit in batch if submit.outcome is None)
        if self._ready:
            self._wake()


def _not_understood(node: Node, why: Exception) -> Lost:
    return Lost(f"{node.address} answered what no node says: {why}", sent=True)


def _item_error(error: TaskQueueError, submit: Submit) -> TaskQueueError:
    """An item's error, with a pointer into the item, not the batch, which the caller never saw."""
    if error.field is not None and error.field.startswith("/tasks/"):
        error.field = "".join(f"/{part}" for part in error.field.split("/")[3:])
    error.task_id = submit.task_id
    return error


def _ignore(submit: Submit) -> None:
    pass
