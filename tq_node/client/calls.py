"""Calls that get an answer from some node within a deadline, or say exactly what is known."""

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
    """Seconds before the next try, with jitter. :param tries: how many there were."""
    pause_s = min(limits.AGAIN_S * 2.0 ** min(tries - 1, 16), limits.AGAIN_S_MAX)
    return pause_s * random.uniform(limits.JITTER, 1.0)  # noqa: S311


def refusal(node: Node, answer: Answer) -> TaskQueueError:
    """The error in an answer; the node that asked for a pause gets one."""
    error = error_in(answer.status, answer.body)
    said = answer.header(b"retry-after")
    if error.code in OF_THE_NODE or (error.code == "unknown" and said is not None):
        node.leave_alone(float(said) if said is not None and said.isdigit() else limits.AGAIN_S_MAX)
    return error


def is_definite(error: TaskQueueError) -> bool:
    """Nothing was done."""
    return not isinstance(error, OutcomeUnknown) and error.code not in UNPROVEN


def is_worth_another(error: TaskQueueError) -> bool:
    """The same call may succeed later, or at another node."""
    return isinstance(error, Unavailable | OutcomeUnknown)


class Trials:
    """What has come of one call so far. :param changes: it is to change something, so that a lost
    answer matters.
    """

    __slots__ = ("_changes", "last", "task_id", "tries", "unknown")

    def __init__(self, *, changes: bool, task_id: str | None = None) -> None:
        self._changes = changes
        self.task_id = task_id
        self.tries = 0
        self.last: TaskQueueError | None = None
        self.unknown: str | None = None
        """Why it may have been done, once that is so; nothing that is said later takes it back."""

    def met(self, error: TaskQueueError) -> None:
        self.tries += 1
        self.last = error
        if self._changes and not is_definite(error):
            self.unknown = error.detail

    def lost(self, why: Lost) -> None:
        self.tries += 1
        self.last = Unreachable(str(why), task_id=self.task_id)
        if why.sent and self._changes:
            self.unknown = str(why)

    def held_up(self) -> None:
        """Every node has asked to be left alone for now, before this was sent."""
        self.last = self.last or Busy("every node has asked for a pause", task_id=self.task_id)

    def verdict(self, *, under_way: bool = False) -> TaskQueueError:
        """The error for the caller. :param under_way: a node has it at this moment."""
        if self._changes and (under_way or self.unknown is not None):
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
) -> bytes:
    """The body of a good answer, from the first node that gives one.

    :param end_s: loop time at which it is over. :param attempt_s: how long one node may take.
    :raises TaskQueueError: what was refused at once; at the deadline, what ``trials`` says. A
        ``Conflict`` comes as it is, also where an earlier try of the same call may be what it is in
        conflict with.
    """
    loop = asyncio.get_running_loop()
    node: Node | None = None
    while True:
        if roster.is_closed:
            raise trials.verdict() if trials.unknown is not None else Closed("the queue was closed")
        node, pause_s = roster.next(after=node)
        if pause_s:
            trials.held_up()
            if loop.time() + pause_s >= end_s:  # nobody can be asked any more
                raise trials.verdict()
            await asyncio.sleep(pause_s)
        left_s = end_s - loop.time()
        if left_s <= 0:
            raise trials.verdict()
        stale = False
        try:
            answer = await node.ask(method, path, None, min(left_s, attempt_s), waits=waits)
        except Lost as why:
            trials.lost(why)
            roster.lost_one()
            stale = why.stale
        else:
            if answer.status < 300:
                return answer.body
            error = refusal(node, answer)
            trials.met(error)
            if not is_worth_another(error):
                raise error if trials.unknown is None or isinstance(error, Conflict) else trials.verdict()
        if not stale:
            await asyncio.sleep(min(pause_after(trials.tries), max(0.0, end_s - loop.time())))
