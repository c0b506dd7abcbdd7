"""Calls answered by some node within a deadline, or an error that says what is known."""

from __future__ import annotations

import asyncio
import random

from tq_node.client import limits
from tq_node.client.connection import Lost
from tq_node.client.errors import (
    OF_THE_NODE,
    UNPROVEN,
    Busy,
    Closed,
    Conflict,
    OutcomeUnknown,
    TaskQueueError,
    Unavailable,
    Unreachable,
    error_in,
)
from tq_node.client.node import Node
from tq_node.client.reading import Answer
from tq_node.client.roster import Roster


def pause_after(tries: int) -> float:
    """Seconds to wait after the ``tries``-th try: exponential, with jitter."""
    pause_s = min(limits.AGAIN_S * 2.0 ** min(tries - 1, 16), limits.AGAIN_S_MAX)
    return pause_s * random.uniform(limits.JITTER, 1.0)  # noqa: S311


def refusal(node: Node, answer: Answer) -> TaskQueueError:
    """The error in an answer; if it asks for a pause, the node is not asked for that long."""
    error = error_in(answer.status, answer.body)
    retry_after = answer.header(b"retry-after")
    if error.code in OF_THE_NODE or (error.code == "unknown" and retry_after is not None):
        node.pause(float(retry_after) if retry_after is not None and retry_after.isdigit() else limits.AGAIN_S_MAX)
    return error


def is_definite(error: TaskQueueError) -> bool:
    """Whether the error says that nothing was done."""
    return not isinstance(error, OutcomeUnknown) and error.code not in UNPROVEN


def is_worth_another(error: TaskQueueError) -> bool:
    """Whether the same call may succeed later, or at another node."""
    return isinstance(error, Unavailable | OutcomeUnknown)


class Trials:
    """What one call's tries have shown. ``changes``: a lost answer leaves its outcome unknown."""

    __slots__ = ("_changes", "last", "task_id", "tries", "unknown")

    def __init__(self, *, changes: bool, task_id: str | None = None) -> None:
        self._changes = changes
        self.task_id = task_id
        self.tries = 0
        self.last: TaskQueueError | None = None
        self.unknown: str | None = None
        """Why the call may have been done; never cleared once set. None: it was not done."""

    def note_error(self, error: TaskQueueError) -> None:
        """A node answered with an error."""
        self.tries += 1
        self.last = error
        if self._changes and not is_definite(error):
            self.unknown = error.detail

    def note_lost(self, why: Lost) -> None:
        """A try got no answer."""
        self.tries += 1
        self.last = Unreachable(str(why), task_id=self.task_id)
        if why.sent and self._changes:
            self.unknown = str(why)

    def note_paused(self) -> None:
        """Before this was sent, every node had asked for a pause."""
        self.last = self.last or Busy("every node has asked for a pause", task_id=self.task_id)

    def verdict(self, *, in_flight: bool = False) -> TaskQueueError:
        """The error for the caller. ``in_flight``: a node works on it now."""
        if self._changes and (in_flight or self.unknown is not None):
            why = self.unknown or "no answer in time"
            return OutcomeUnknown(why, task_id=self.task_id)
        if isinstance(self.last, OutcomeUnknown):  # of a read: it has no outcome
            return Unavailable(self.last.detail, code=self.last.code, status=self.last.status, task_id=self.task_id)
        return self.last or Unavailable("it could not be sent in time", code="not_sent", task_id=self.task_id)


async def call(
    roster: Roster,
    method: bytes,
    path: bytes,
    *,
    end_s: float,
    trials: Trials,
    attempt_s: float = limits.ATTEMPT_S,
    waits: bool = False,
    body: bytes | None = None,
) -> bytes:
    """The body of a successful answer, from the first node that gives one.

    :param end_s: loop time of the deadline.
    :param attempt_s: bound of one try.
    :param waits: the call waits for a task to end, so it takes a connection of its own kind.
    :raises TaskQueueError: a refusal at once; at the deadline, ``trials.verdict()``. A ``Conflict``
        is raised unchanged, even if an earlier try of this call may have caused it."""
    loop = asyncio.get_running_loop()
    node: Node | None = None
    while True:
        if roster.is_closed:
            raise trials.verdict() if trials.unknown is not None else Closed("the queue was closed")
        node, pause_s = roster.next(after=node)
        if pause_s:
            trials.note_paused()
            if loop.time() + pause_s >= end_s:  # nobody can be asked any more
                raise trials.verdict()
            await asyncio.sleep(pause_s)
        left_s = end_s - loop.time()
        if left_s <= 0:
            raise trials.verdict()
        stale = False
        try:
            answer = await node.ask(method, path, body, min(left_s, attempt_s), waits=waits)
        except Lost as why:
            trials.note_lost(why)
            roster.note_lost()
            stale = why.stale
        else:
            if answer.status < 300:
                return answer.body
            error = refusal(node, answer)
            trials.note_error(error)
            if not is_worth_another(error):
                raise error if trials.unknown is None or isinstance(error, Conflict) else trials.verdict()
        if not stale:
            await asyncio.sleep(min(pause_after(trials.tries), max(0.0, end_s - loop.time())))
