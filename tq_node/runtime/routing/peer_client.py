"""Calls for another node's partitions: gathered within one turn of the reactor, one box for each
peer, one hop (section 6).

Whoever serves them looks only at its own partitions: what it does not lead it refuses as
``NotPrimary``, so nothing travels on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.errors import NotConfirmed, NotPrimary, OutcomeUnknown, TaskQueueError
from tq_node.runtime.clock import Clock
from tq_node.runtime.peer_calls import BOX_CALLS_MAX, CALL_S, PeerCall, for_task
from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.errors import MalformedBox, PeerUnreachable, WireRefusal, decode_error
from tq_node.wire.pool import PeerPool

_log = Logger(namespace="taskqueue.forwarding")


class _Waiting(msgspec.Struct, gc=False):
    kind: PeerCall
    task_id: str | None
    deferred: Deferred[Any]


class _Failed(NamedTuple):
    """A box that was not answered."""

    error: TaskQueueError
    node: str


_AT_ONCE = 64
"""So many callers are answered in the turn in which their answers come; more in slices."""


class PeerClient:
    """The caller's side; sends nothing twice: a failure's error says if it may have happened."""

    def __init__(self, pool: PeerPool, clock: Clock, name_of: Callable[[NodeId], str]) -> None:
        self._pool = pool
        self._clock = clock
        self._name_of = name_of
        self._gathered: dict[NodeId, list[tuple[ForwardedCall, _Waiting]]] = {}
        self._in_flight: dict[int, list[_Waiting]] = {}
        """Boxes that are not answered yet, by number."""
        self._boxes = 0
        self._at_once_left = _AT_ONCE
        self._late: deque[tuple[_Waiting, ForwardedResult | _Failed]] = deque()
        """Answers that have come and wait for a slice, in order."""
        self._is_late_going = False

    def call(self, node: NodeId, kind: PeerCall, value: Any, task_id: str | None = None) -> Deferred[Any]:
        """Goes with whatever else this turn has for the node.

        :raises TaskQueueError: what the node said; ``NotPrimary`` where it can't be reached,
            ``OutcomeUnknown`` where it did not answer (``NotConfirmed`` for a read). (Through the
            Deferred.)"""
        waiting, call = _Waiting(kind, task_id, Deferred()), _encoded(kind, value)
        if isinstance(call, Failure):
            return fail(call)
        gathered = self._gathered.get(node)
        if gathered is None:
            gathered = self._gathered[node] = []
            self._clock.call_later(0, self._leave, node)
        gathered.append((call, waiting))
        return waiting.deferred

    def call_alone(self, node: NodeId, kind: PeerCall, value: Any, within_s: float, task_id: str | None = None) -> Any:
        """In a box of its own: for what may take long and must not hold up others' answers."""
        waiting, call = _Waiting(kind, task_id, Deferred()), _encoded(kind, value)
        if isinstance(call, Failure):
            return fail(call)
        self._send(node, [(call, waiting)], within_s)
        return waiting.deferred

    def _leave(self, node: NodeId) -> None:
        box: list[tuple[ForwardedCall, _Waiting]] = []
        size = 0
        for call, waiting in self._gathered.pop(node):
            if box and (size + len(call.body) > bounds.FORWARD_BYTES_AIM or len(box) >= BOX_CALLS_MAX):
                self._send(node, box, CALL_S)
                box, size = [], 0
            box.append((call, waiting))
            size += len(call.body)
        self._send(node, box, CALL_S)

    def _send(self, node: NodeId, box: list[tuple[ForwardedCall, _Waiting]], within_s: float) -> None:
        waiting = [one for _, one in box]
        self._boxes += 1
        number = self._boxes
        self._in_flight[number] = waiting

        def answered(result: Any) -> Any:
            self._in_flight.pop(number, None)
            return result

        self._pool.forward(node, [call for call, _ in box], within_s).addBoth(answered).addCallbacks(
            self._answered, self._failed, callbackArgs=(waiting,), errbackArgs=(waiting, node)
        ).addErrback(lambda why: _log.failure("answers could not be delivered", failure=why, event="forward_failed"))

    def stop(self) -> None:
        """Tell callers now that the outcome is not known, before their connections break."""
        error = OutcomeUnknown("the node stops before the answer has come")
        for waiting in list(self._in_flight.values()):
            for one in waiting:
                if not one.deferred.called:
                    one.deferred.errback(_for_caller(error, one))

    def _answered(self, results: list[ForwardedResult], waiting: Sequence[_Waiting]) -> None:
        self._deliver(zip(waiting, results, strict=True))

    def _failed(self, why: Failure, waiting: Sequence[_Waiting], node: NodeId) -> None:
        error = why.value
        if not isinstance(error, TaskQueueError):
            _log.failure("a call could not be forwarded", failure=why, event="forward_failed")
            error = OutcomeUnknown("forwarding failed")
        name = self._name_of(node)
        self._deliver((one, _Failed(error, name)) for one in waiting)

    # --- delivering ---
    def _deliver(self, outcomes: Iterable[tuple[_Waiting, ForwardedResult | _Failed]]) -> None:
        """Answer callers: some at once and more in slices, for each goes on from here."""
        for one, outcome in outcomes:
            if self._at_once_left == 0 or self._late:
                self._late.append((one, outcome))
                continue
            self._at_once_left -= 1
            if self._at_once_left == 0:
                self._clock.call_later(0, self._next_turn)
            _hand_over(one, outcome)
        if self._late and not self._is_late_going:
            self._is_late_going = True
            Deferred.fromCoroutine(self._deliver_late()).addErrback(
                lambda why: _log.failure("answers could not be delivered", failure=why, event="forward_failed")
            )

    def _next_turn(self) -> None:
        self._at_once_left = _AT_ONCE

    async def _deliver_late(self) -> None:
        pace = self._clock.slices.pace("answers of other nodes")
        try:
            while self._late:
                await pace.turn()
                while self._late and not pace.is_over():
                    _hand_over(*self._late.popleft())
        finally:
            self._is_late_going = False


def _hand_over(one: _Waiting, outcome: ForwardedResult | _Failed) -> None:
    if one.deferred.called:
        return  # its caller has gone
    if isinstance(outcome, _Failed):
        one.deferred.errback(_for_caller(outcome.error, one, outcome.node))
        return
    try:
        if outcome.error:
            one.deferred.errback(_for_caller(decode_error(outcome.error, outcome.body), one))
        else:
            one.deferred.callback(one.kind.reading.decode(outcome.body))
    except MalformedBox as why:
        one.deferred.errback(_for_caller(OutcomeUnknown(f"its answer can't be read: {why}"), one))


def _encoded(kind: PeerCall, value: Any) -> ForwardedCall | Failure:
    try:
        return ForwardedCall(kind.name, kind.call.encode(value))
    except WireRefusal:
        return Failure()


def _for_caller(error: TaskQueueError, one: _Waiting, node: str = "the primary") -> TaskQueueError:
    """The error in the words of the caller's own node; one of its own for each caller."""
    if not error.definite:
        kind = NotConfirmed if one.kind.is_read else OutcomeUnknown
        return kind(f"{node} did not say what became of it: {error.detail}", task_id=one.task_id)
    if one.kind.is_routed and isinstance(error, WireRefusal | PeerUnreachable):
        return NotPrimary(f"{node} leads the task's partition and can't be reached", task_id=one.task_id)
    return for_task(error, one.task_id)
