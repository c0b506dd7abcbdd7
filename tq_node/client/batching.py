"""Submits on their way: gathered while others are in flight, sent as batches, each told its own
outcome.

The first one leaves at once. Those that come while it is in flight leave together when it lands,
when there are enough of them, or after 5 ms, whatever is first. On a fast network that makes one
batch of all that waits, and nobody waits for company that may not come.
"""

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
    """``status`` is the task's when it was answered. ``node``: its primary; a batch's answer does
    not say.
    """

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
    """One task on its way.

    :param body: the JSON of the task, id and all; the same bytes at each try. :param end_s: loop
        time of the deadline.
    :param tell: called once in the loop, when ``outcome`` is there.
    """

    __slots__ = ("body", "end_s", "in_flight", "outcome", "task_id", "tell", "trials")

    def __init__(self, task_id: str, body: bytes, end_s: float, tell: Callable[[Submit], None]) -> None:
        self.task_id = task_id
        self.body = body
        self.end_s = end_s
        self.tell = tell
        self.outcome: Accepted | TaskQueueError | None = None
        self.in_flight = False
        self.trials: Trials | None = None
        """None while nothing went wrong: that is nearly always."""

    @property
    def troubles(self) -> Trials:
        if self.trials is None:
            self.trials = Trials(changes=True, task_id=self.task_id)
        return self.trials


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """``tasks_max`` 1: every submit is a request of its own."""

    tasks_max: int = limits.BATCH_TASKS_MAX
    flights_max: int = limits.FLIGHTS_MAX
    open_max: int = limits.OPEN_TASKS_MAX
    outside_max: int = limits.OUTSIDE_TASKS_MAX


class Batcher:
    """Everything here happens in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, roster: Roster, settings: BatchSettings) -> None:
        self._loop = loop
        self._roster = roster
        self._settings = settings
        self._ready: deque[Submit] = deque()
        self._outside: deque[Submit] = deque()
        """No room for them yet."""
        self._open: dict[Submit, None] = {}
        self._open_bytes = self._outside_bytes = 0
        self._flights: set[asyncio.Task[None]] = set()
        self._leaving: asyncio.Handle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    # --- in and out ---
    def add(self, submit: Submit) -> None:
        size = len(submit.body)
        if self._is_closed:
            self._tell(submit, Closed("the queue is closed", task_id=submit.task_id))
        elif not self._outside and self._has_room(size):
            self._admit(submit)
        elif len(self._outside) < self._settings.outside_max and self._outside_bytes + size <= limits.OUTSIDE_BYTES_MAX:
            self._outside.append(submit)
            self._outside_bytes += size
            self._watch(submit)
        else:
            detail = f"{len(self._outside)} submits wait for room in this client"
            self._tell(submit, TooManyWaiting(detail, task_id=submit.task_id))

    def drop(self, submit: Submit) -> None:
        """Nobody wants to hear of it any more. What was not sent will not be."""
        if submit.outcome is None:
            submit.tell = _nobody
            if not submit.in_flight:
                self._finish(submit, Closed("dropped", task_id=submit.task_id))

    @property
    def waiting(self) -> int:
        """Submits that have not ended."""
        return len(self._open) + len(self._outside)

    async def close(self, wait_s: float) -> None:
        """What is under way has so long to end; then it hears that its outcome is unknown."""
        self._is_closed = True
        end_s = self._loop.time() + wait_s
        while self.waiting and self._loop.time() < end_s:
            if self._flights:
                await asyncio.wait(
                    self._flights, timeout=end_s - self._loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(limits.GATHER_S)
        for submit in (*self._open, *self._outside):
            sent = submit.in_flight or (submit.trials is not None and submit.trials.unknown is not None)
            closed = Closed("the queue was closed", task_id=submit.task_id)
            self._finish(submit, submit.troubles.verdict(under_way=True) if sent else closed)
        for timer in (self._leaving, self._sweep):
            if timer is not None:
                timer.cancel()
        for flight in tuple(self._flights):
            flight.cancel()
        await asyncio.gather(*self._flights, return_exceptions=True)

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
        self._tell(submit, outcome)
        while self._outside:
            waiting = self._outside[0]
            if waiting.outcome is None and not self._has_room(len(waiting.body)):
                break
            self._outside.popleft()
            self._outside_bytes -= len(waiting.body)
            if waiting.outcome is None:
                self._admit(waiting)

    @staticmethod
    def _tell(submit: Submit, outcome: Accepted | TaskQueueError) -> None:
        submit.outcome = outcome
        submit.tell(submit)

    # --- deadlines: one timer for the nearest ---
    def _watch(self, submit: Submit) -> None:
        if self._sweep is None or submit.end_s < self._sweep.when():
            if self._sweep is not None:
                self._sweep.cancel()
            self._sweep = self._loop.call_at(submit.end_s, self._look_for_late)

    def _look_for_late(self) -> None:
        self._sweep = None
        now_s = self._loop.time()
        for submit in [one for one in (*self._open, *self._outside) if one.end_s <= now_s]:
            self._finish(submit, submit.troubles.verdict(under_way=submit.in_flight))
        nearest = min((*self._open, *self._outside), key=lambda one: one.end_s, default=None)
        if nearest is not None:
            self._watch(nearest)

    # --- leaving ---
    def _wake(self) -> None:
        """See to it that what is ready leaves in time."""
        flights = len(self._flights)
        if flights >= self._settings.flights_max:
            return  # whatever lands takes it along
        if flights == 0 or len(self._ready) >= self._settings.tasks_max:
            # At the end of this turn: what others submit in the same turn comes along.
            if not isinstance(self._leaving, asyncio.TimerHandle) and self._leaving is not None:
                return
            if self._leaving is not None:
                self._leaving.cancel()
            self._leaving = self._loop.call_soon(self._leave)
        elif self._leaving is None:
            self._leaving = self._loop.call_later(limits.GATHER_S, self._leave)

    def _leave(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        while self._ready and len(self._flights) < self._settings.flights_max:
            batch = self._take()
            if batch:
                self._start(batch)

    def _start(self, batch: list[Submit]) -> None:
        flight = self._loop.create_task(self._fly(batch))
        self._flights.add(flight)
        flight.add_done_callback(self._landed)

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

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if not flight.cancelled():
            flight.result()  # a bug of ours is not swallowed: the loop's handler shows it
        if self._ready and not (self._is_closed and flight.cancelled()):
            self._leave()

    # --- one flight ---
    async def _fly(self, batch: list[Submit]) -> None:
        node, pause_s = self._roster.next()
        if pause_s:
            for submit in batch:
                submit.troubles.held_up()
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
            self._lost(batch, why)
            return
        finally:
            for submit in batch:
                submit.in_flight = False
        if answer.status >= 300:
            self._refused(batch, refusal(node, answer))
        elif len(batch) == 1:
            self._one(batch[0], node, answer.body)
        else:
            self._many(batch, node, answer.body)

    def _lost(self, batch: list[Submit], why: Lost) -> None:
        self._roster.lost_one()
        for submit in batch:
            submit.troubles.lost(why)
        if why.stale:
            self._again(batch)
        else:
            self._rest(batch)

    def _refused(self, batch: list[Submit], error: TaskQueueError) -> None:
        """The whole of it."""
        if error.code == "body_too_large" and len(batch) > 1:
            half = len(batch) // 2  # this node takes less at once than we thought; nothing was done
            self._start(batch[:half])
            self._start(batch[half:])
            return
        resting = [submit for submit in batch if self._settle(submit, error)]
        self._rest(resting)

    def _one(self, submit: Submit, node: Node, body: bytes) -> None:
        try:
            accepted = _decode_one(body)
        except UNREADABLE as why:
            self._lost([submit], _not_understood(node, why))
            return
        self._finish(submit, accepted)

    def _many(self, batch: list[Submit], node: Node, body: bytes) -> None:
        try:
            results = _decode_batch(body).results
            if len(results) != len(batch):
                raise msgspec.ValidationError(f"{len(results)} results for {len(batch)} tasks")
        except UNREADABLE as why:
            self._lost(batch, _not_understood(node, why))
            return
        resting: list[Submit] = []
        for submit, result in zip(batch, results, strict=True):
            if result.error is None:
                self._finish(submit, Accepted(result.task_id, result.status))
            elif self._settle(submit, _own(error_of(result.error), submit)):
                resting.append(submit)
        self._rest(resting)

    def _settle(self, submit: Submit, error: TaskQueueError) -> bool:
        """Tell it what it met; or else, it is worth another try."""
        troubles = submit.troubles
        troubles.met(error)
        if is_worth_another(error):
            return True
        # With an unknown outcome behind it, the only sure news is that another task has this id.
        is_sure = troubles.unknown is None or error.code == "id_conflict"
        self._finish(submit, error if is_sure else troubles.verdict())
        return False

    def _rest(self, batch: Iterable[Submit]) -> None:
        """Once more after a pause, at the next node."""
        resting = [submit for submit in batch if submit.outcome is None]
        if resting:
            pause_s = pause_after(min(submit.troubles.tries for submit in resting))
            self._loop.call_later(pause_s, self._again, resting)

    def _again(self, batch: list[Submit]) -> None:
        self._ready.extend(submit for submit in batch if submit.outcome is None)
        if self._ready:
            self._wake()


def _not_understood(node: Node, why: Exception) -> Lost:
    return Lost(f"{node.address} answered what no node says: {why}", sent=True)


def _own(error: TaskQueueError, submit: Submit) -> TaskQueueError:
    """An item's error points into the batch, which its caller never saw."""
    if error.field is not None and error.field.startswith("/tasks/"):
        error.field = "".join(f"/{part}" for part in error.field.split("/")[3:])
    error.task_id = submit.task_id
    return error


def _nobody(submit: Submit) -> None:
    pass
