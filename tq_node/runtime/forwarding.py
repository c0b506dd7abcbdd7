"""Calls for another node's partitions: gathered within one turn of the reactor, one box for each peer, one hop (section 6).

Whoever serves them looks only at its own partitions: what it does not lead it refuses as ``NotPrimary``, so nothing travels on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import NotConfirmed, NotPrimary, OutcomeUnknown, TaskQueueError
from tq_node.facade import Accepted, Claim, EventBatch, ListQuery, Notes, Outcome, Read, Stats, Submission, TaskPage
from tq_node.runtime.clock import Clock
from tq_node.types import NodeId, TaskRow, Token
from tq_node.wire import bounds
from tq_node.wire.codec import Codec, ForwardedCall, ForwardedResult
from tq_node.wire.failures import (
    Internal,
    MalformedBox,
    PeerUnreachable,
    WireRefusal,
    declared_code,
    decode_error,
    encode_error,
)
from tq_node.wire.pool import PeerPool

_log = Logger(namespace="taskqueue.forwarding")
T = TypeVar("T")

CALL_S = 10.0
"""How long a forwarded call may take; a wait for a task's end has its own time besides."""
BOX_CALLS_MAX = 1_000
SUBMISSION_BYTES = 300
"""What a submission takes besides its payload, roughly: it is only for cutting batches."""


_WaitS = Annotated[float, Meta(ge=0, le=limits.WAIT_S_MAX)]


class Item(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What became of one submission of a batch: ``error`` is empty, or a code with its body."""

    accepted: Accepted | None
    error: str = ""
    body: bytes = b""


class Get(msgspec.Struct, frozen=True, gc=False, array_like=True):
    task_id: str
    wait_s: _WaitS = 0.0


class Finish(msgspec.Struct, frozen=True, gc=False, array_like=True):
    claim: Claim
    outcome: Outcome
    notes: Notes | None


class Note(msgspec.Struct, frozen=True, gc=False, array_like=True):
    claim: Claim
    notes: Notes


class Renew(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Attempts of one partition that go on running at the node that asks."""

    partition: Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]
    attempts: list[tuple[str, Token]]


class Stop(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An attempt that runs at the node that is told; it holds its task no more."""

    task_id: str
    token: Token


class Offer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The node has so many ready tasks beyond what it can start now."""

    node: NodeId
    backlog: int


class Ask(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A node that helps wants up to ``limit`` claims for its own worker. ``types`` None: it runs any."""

    node_name: str
    limit: Annotated[int, Meta(ge=0, le=2**31)]
    types: list[str] | None = None


class Lent(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Committed claims for the node that asked, and how many ready tasks are left beyond what the primary itself can start."""

    claims: list[Claim]
    backlog: int


class EventsAfter(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``after_id`` -1: from now on."""

    after_id: Annotated[int, Meta(ge=-1, le=2**62)]
    wait_s: _WaitS


class Nothing(msgspec.Struct, frozen=True, array_like=True):
    pass


class Kind:
    """One kind of call: its name on the wire, and what goes there and comes back.

    :param is_read: it changes nothing, so that an outcome that is not known is a read that could not be confirmed.
    :param is_routed: it goes to a primary, so that one that can't be reached is no primary for now.
    """

    def __init__(self, name: str, call: Any, result: Any, *, is_read: bool = False, is_routed: bool = True) -> None:
        self.name = name
        self.call: Codec[Any] = Codec(call)
        self.result: Codec[Any] = Codec(result, bounds.ANSWER_BYTES_MAX)
        self.is_read = is_read
        self.is_routed = is_routed


SUBMIT = Kind("submit", Submission, Accepted)
SUBMIT_MANY = Kind("submit_many", list[Submission], list[Item])
GET = Kind("get", Get, Read, is_read=True)
CANCEL = Kind("cancel", str, TaskRow)
RETRY = Kind("retry", str, TaskRow)
PURGE = Kind("purge", str, TaskRow)
FINISH = Kind("finish", Finish, Nothing)
NOTE = Kind("note", Note, Nothing)
RENEW = Kind("renew", Renew, list[bool])
STOP = Kind("stop", Stop, Nothing, is_routed=False)
OFFER = Kind("offer", Offer, Nothing, is_routed=False)
CLAIM = Kind("claim", Ask, Lent, is_routed=False)
LIST = Kind("list", ListQuery, TaskPage, is_read=True, is_routed=False)
EVENTS = Kind("events", EventsAfter, EventBatch, is_read=True, is_routed=False)
STATS = Kind("stats", Nothing, Stats, is_read=True, is_routed=False)
SHUTDOWN = Kind("shutdown", Nothing, Nothing, is_routed=False)
_ALL = (
    SUBMIT,
    SUBMIT_MANY,
    GET,
    CANCEL,
    RETRY,
    PURGE,
    FINISH,
    NOTE,
    RENEW,
    STOP,
    OFFER,
    CLAIM,
    LIST,
    EVENTS,
    STATS,
    SHUTDOWN,
)
KINDS = {kind.name: kind for kind in _ALL}
NOTHING = Nothing()


class _Waiting(msgspec.Struct, gc=False):
    kind: Kind
    task_id: str | None
    deferred: Deferred[Any]


class Forwarding:
    """The caller's side. Nothing is sent twice: what failed is told, and the caller knows whether it may have happened."""

    def __init__(self, pool: PeerPool, clock: Clock, name_of: Callable[[NodeId], str]) -> None:
        self._pool = pool
        self._clock = clock
        self._name_of = name_of
        self._gathered: dict[NodeId, list[tuple[ForwardedCall, _Waiting]]] = {}
        self._under_way: dict[int, list[_Waiting]] = {}
        """Boxes that are not answered yet."""
        self._boxes = 0

    def call(self, node: NodeId, kind: Kind, value: Any, task_id: str | None = None) -> Deferred[Any]:
        """Goes with whatever else this turn has for the node.

        :raises TaskQueueError: what the node said; ``NotPrimary`` where it can't be reached, ``OutcomeUnknown`` where it did not
            answer (``NotConfirmed`` for a read). (Through the Deferred.)
        """
        waiting, call = _Waiting(kind, task_id, Deferred()), _encoded(kind, value)
        if isinstance(call, Failure):
            return fail(call)
        gathered = self._gathered.get(node)
        if gathered is None:
            gathered = self._gathered[node] = []
            self._clock.call_later(0, self._leave, node)
        gathered.append((call, waiting))
        return waiting.deferred

    def call_alone(self, node: NodeId, kind: Kind, value: Any, within_s: float, task_id: str | None = None) -> Any:
        """In a box of its own: for what may take long, and must not hold up the answers of others."""
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
        self._under_way[number] = waiting

        def over(result: Any) -> Any:
            self._under_way.pop(number, None)
            return result

        self._pool.forward(node, [call for call, _ in box], within_s).addBoth(over).addCallbacks(
            self._answered, self._failed, callbackArgs=(waiting,), errbackArgs=(waiting, node)
        ).addErrback(lambda why: _log.failure("answers could not be told", failure=why, event="forward_failed"))

    def stop(self) -> None:
        """Who still waits for another node hears now that the outcome is not known, rather than a connection that breaks."""
        error = OutcomeUnknown("the node stops before the answer has come")
        for waiting in list(self._under_way.values()):
            for one in waiting:
                if not one.deferred.called:
                    one.deferred.errback(_as_told(error, one))

    def _answered(self, results: list[ForwardedResult], waiting: Sequence[_Waiting]) -> None:
        for one, result in zip(waiting, results, strict=True):
            if one.deferred.called:
                continue  # its caller has gone
            try:
                if result.error:
                    one.deferred.errback(_as_told(decode_error(result.error, result.body), one))
                else:
                    one.deferred.callback(one.kind.result.decode(result.body))
            except MalformedBox as why:
                one.deferred.errback(_as_told(OutcomeUnknown(f"its answer can't be read: {why}"), one))

    def _failed(self, why: Failure, waiting: Sequence[_Waiting], node: NodeId) -> None:
        error = why.value
        if not isinstance(error, TaskQueueError):
            _log.failure("a call could not be forwarded", failure=why, event="forward_failed")
            error = OutcomeUnknown("forwarding failed")
        for one in waiting:
            if not one.deferred.called:
                one.deferred.errback(_as_told(error, one, self._name_of(node)))


def _encoded(kind: Kind, value: Any) -> ForwardedCall | Failure:
    try:
        return ForwardedCall(kind.name, kind.call.encode(value))
    except WireRefusal:
        return Failure()


def _as_told(error: TaskQueueError, one: _Waiting, node: str = "the primary") -> TaskQueueError:
    """The error in the words of the caller's own node; one of its own for each caller."""
    if not error.definite:
        kind = NotConfirmed if one.kind.is_read else OutcomeUnknown
        return kind(f"{node} did not say what became of it: {error.detail}", task_id=one.task_id)
    if one.kind.is_routed and isinstance(error, WireRefusal | PeerUnreachable):
        return NotPrimary(f"{node} leads the task's partition and can't be reached", task_id=one.task_id)
    return for_task(error, one.task_id)


def for_task(error: TaskQueueError, task_id: str | None) -> TaskQueueError:
    """The same error for one of several callers, with the task that it is about for this one."""
    told = decode_error(declared_code(error) or Internal.code, encode_error(error))
    if task_id is not None:
        told.task_id = task_id
    return told


def refused(error: TaskQueueError) -> ForwardedResult:
    return ForwardedResult(declared_code(error) or Internal.code, encode_error(error))


def item_of(result: Accepted | TaskQueueError) -> Item:
    """For a batch: one result as it travels."""
    if isinstance(result, Accepted):
        return Item(result)
    told = refused(result)
    return Item(None, told.error, told.body)


def result_of(item: Item, task_id: str | None) -> Accepted | TaskQueueError:
    """Back from its travel."""
    if item.accepted is not None:
        return item.accepted
    error = decode_error(item.error, item.body)
    if error.task_id is None:
        error.task_id = task_id
    return error


def parts_of(submissions: Sequence[Submission]) -> Iterator[list[Submission]]:
    """As many at a time as travel well in one call."""
    part: list[Submission] = []
    size = 0
    for submission in submissions:
        cost = len(submission.payload) + SUBMISSION_BYTES
        if part and (size + cost > bounds.FORWARD_BYTES_AIM or len(part) >= BOX_CALLS_MAX):
            yield part
            part, size = [], 0
        part.append(submission)
        size += cost
    if part:
        yield part
