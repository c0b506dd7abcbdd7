"""The calls that one node makes of another: their names on the wire, the values that travel, and
how errors travel in them.

A call is one hop: whoever serves it looks at its own partitions only (section 6 of
docs/explanation/replication.md). Names and the order of fields are part of the protocol between
nodes; new fields go to the end and have a default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from tq_node import limits
from tq_node.errors import TaskQueueError
from tq_node.facade import (
    Accepted,
    Claim,
    EventBatch,
    Extended,
    HeldAttempt,
    ListedTask,
    ListQuery,
    Notes,
    OpenOfMaker,
    Outcome,
    Read,
    Stats,
    Submission,
    TaskPage,
    WorkerAsk,
    WorkerSeen,
)
from tq_node.tokens import Asker
from tq_node.types import NodeId, State, TaskId, TaskRow, Token, Transition
from tq_node.wire import bounds
from tq_node.wire.codec import Codec, ForwardedResult
from tq_node.wire.errors import Internal, declared_code, decode_error, encode_error

CALL_S = 10.0
"""How long a forwarded call may take; a wait for a task's end has its own time besides."""
BOX_CALLS_MAX = 1_000
"""How many calls one box carries at most."""
SUBMISSION_BYTES = 300
"""What a submission takes besides its payload, roughly: it is only for cutting batches."""

_WaitS = Annotated[float, Meta(ge=0, le=limits.WAIT_S_MAX)]


class Item(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What became of one submission of a batch: ``error`` is empty, or a code with its body."""

    accepted: Accepted | None
    error: str = ""
    body: bytes = b""


class Get(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``asker`` None: who asks may know of every task. From ``ACCESS_LEVEL`` on it is heeded."""

    task_id: str
    wait_s: _WaitS = 0.0
    asker: Asker | None = None


class ChangeFor(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A change of a task that its primary makes if ``asker`` may know of the task."""

    task_id: str
    asker: Asker


class QueueStats(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Of which queues the primaries' tasks are to be counted."""

    queues: tuple[str, ...]


class OpenOf(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What these tokens have open, of tasks that the called node leads."""

    makers: Annotated[list[str], Meta(max_length=limits.OPEN_MAKERS_MAX)]


class Shutdown(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``by``: name of the token that ordered it."""

    by: str = ""


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
    """The attempt, which runs at the node that is called, holds its task no more."""

    task_id: str
    token: Token


class WorkOffer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``node`` has ``backlog`` ready tasks beyond what it can start now."""

    node: NodeId
    backlog: int


class ClaimRequest(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A helping node wants up to ``limit`` claims for its worker. ``types`` None: it runs any."""

    node_name: str
    limit: Annotated[int, Meta(ge=0, le=2**31)]
    types: list[str] | None = None


class ClaimGrant(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Committed claims for the asker, and how many ready tasks the primary can't start itself."""

    claims: list[Claim]
    backlog: int


class ClaimFor(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A remote worker of the node that asks wants up to ``limit`` claims."""

    ask: WorkerAsk
    limit: Annotated[int, Meta(ge=0, le=limits.WORKER_CLAIMS_MAX)]


class ClaimedBefore(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the request of this id was granted to a remote worker, of partitions led there or by way
    of there. If it still waits there, it is answered empty."""

    worker: str
    claim_id: str


class ClaimsBefore(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a node knows of. ``led``: (partition, epoch) of those that it answers for."""

    claims: list[Claim]
    led: list[tuple[int, int]]


class Extend(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Attempts of one partition that a remote worker runs."""

    partition: Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]
    worker: str
    held: Annotated[list[HeldAttempt], Meta(max_length=limits.WORKER_CLAIMS_MAX)]


class WorkerOrder(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """For a remote worker that may wait at the node that is called: answer it now. ``state``: what
    to tell it from now on; empty: as before. Of two orders the one given later holds."""

    worker: str
    state: str = ""
    at_us: int = 0
    """When it was given, wall clock."""


class EventsAfter(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``after_id`` -1: from now on."""

    after_id: Annotated[int, Meta(ge=-1, le=2**62)]
    wait_s: _WaitS


class EarlierTransition(NamedTuple):
    """A ``Transition`` below feature level 3; who expects it refuses one with more values."""

    task_id: TaskId
    task_type: str
    queue: str
    from_state: State | None
    to_state: State
    attempt: int
    partition: int
    at_us: int


class EarlierEvents(msgspec.Struct, frozen=True, array_like=True):
    """An ``EventBatch`` below feature level 3."""

    first_id: int
    transitions: list[EarlierTransition]
    reset: bool = False
    node: str | None = None


def earlier_events(batch: EventBatch) -> EarlierEvents:
    known = len(EarlierTransition._fields)
    told = [EarlierTransition._make(change[:known]) for change in batch.transitions]
    return EarlierEvents(batch.first_id, told, batch.reset, batch.node)


def events_of(batch: EventBatch | EarlierEvents) -> EventBatch:
    """The inverse of ``earlier_events``: nobody's tasks."""
    if isinstance(batch, EventBatch):
        return batch
    told = [Transition(*change) for change in batch.transitions]
    return EventBatch(batch.first_id, told, batch.reset, batch.node)


class EncodedPage(msgspec.Struct, frozen=True, array_like=True):
    """``TaskPage`` as it is read: the tasks, each a ``LISTED``, are decoded in slices, for their
    number is the caller's."""

    tasks: list[msgspec.Raw]
    next: tuple[int, str] | None
    missing: list[str] = []
    partitions_missing: list[int] = []
    led: list[tuple[int, int]] | None = None


class Nothing(msgspec.Struct, frozen=True, array_like=True):
    pass


class PeerCall:
    """One kind of call: its name on the wire, and what goes there and comes back.

    :param read_as: in place of ``result``, where the caller's side decodes only a part at once.
    :param is_read: it changes nothing, so that an outcome that is not known is a read that could
        not be confirmed.
    :param is_routed: it goes to a primary, so one that can't be reached is no primary for now."""

    def __init__(
        self,
        name: str,
        call: Any,
        result: Any,
        *,
        read_as: Any = None,
        is_read: bool = False,
        is_routed: bool = True,
    ) -> None:
        self.name = name
        self.call: Codec[Any] = Codec(call)
        self.result: Codec[Any] = Codec(result, bounds.ANSWER_BYTES_MAX)
        self.reading: Codec[Any] = self.result if read_as is None else Codec(read_as, bounds.ANSWER_BYTES_MAX)
        self.is_read = is_read
        self.is_routed = is_routed


SUBMIT = PeerCall("submit", Submission, Accepted)
SUBMIT_MANY = PeerCall("submit_many", list[Submission], list[Item])
GET = PeerCall("get", Get, Read, is_read=True)
CANCEL = PeerCall("cancel", str, TaskRow)
RETRY = PeerCall("retry", str, TaskRow)
PURGE = PeerCall("purge", str, TaskRow)
CANCEL_FOR = PeerCall("cancel_for", ChangeFor, TaskRow)
RETRY_FOR = PeerCall("retry_for", ChangeFor, TaskRow)
PURGE_FOR = PeerCall("purge_for", ChangeFor, TaskRow)
FINISH = PeerCall("finish", Finish, Nothing)
NOTE = PeerCall("note", Note, Nothing)
RENEW = PeerCall("renew", Renew, list[bool])
STOP = PeerCall("stop", Stop, Nothing, is_routed=False)
OFFER = PeerCall("offer", WorkOffer, Nothing, is_routed=False)
CLAIM_FOR = PeerCall("claim_for", ClaimFor, ClaimGrant, is_routed=False)
CLAIMED_BEFORE = PeerCall("claimed_before", ClaimedBefore, ClaimsBefore, is_read=True, is_routed=False)
EXTEND = PeerCall("extend", Extend, list[Extended])
WORKER_ORDER = PeerCall("worker_order", WorkerOrder, Nothing, is_routed=False)
REMOTE_WORKERS = PeerCall("remote_workers", Nothing, list[WorkerSeen], is_read=True, is_routed=False)
CLAIM = PeerCall("claim", ClaimRequest, ClaimGrant, is_routed=False)
LISTED: Codec[ListedTask] = Codec(ListedTask)
LIST = PeerCall("list", ListQuery, TaskPage, read_as=EncodedPage, is_read=True, is_routed=False)
EVENTS = PeerCall("events", EventsAfter, EarlierEvents, is_read=True, is_routed=False)
EVENTS_WITH_MAKERS = PeerCall("events_with_makers", EventsAfter, EventBatch, is_read=True, is_routed=False)
STATS = PeerCall("stats", Nothing, Stats, is_read=True, is_routed=False)
QUEUE_STATS = PeerCall("queue_stats", QueueStats, Stats, is_read=True, is_routed=False)
OPEN_OF = PeerCall("open_of", OpenOf, list[OpenOfMaker], is_read=True, is_routed=False)
SHUTDOWN = PeerCall("shutdown", Shutdown, Nothing, is_routed=False)
_ALL = (
    SUBMIT,
    SUBMIT_MANY,
    GET,
    CANCEL,
    RETRY,
    PURGE,
    CANCEL_FOR,
    RETRY_FOR,
    PURGE_FOR,
    FINISH,
    NOTE,
    RENEW,
    STOP,
    OFFER,
    CLAIM,
    CLAIM_FOR,
    CLAIMED_BEFORE,
    EXTEND,
    WORKER_ORDER,
    REMOTE_WORKERS,
    LIST,
    EVENTS,
    EVENTS_WITH_MAKERS,
    STATS,
    QUEUE_STATS,
    OPEN_OF,
    SHUTDOWN,
)
KINDS = {kind.name: kind for kind in _ALL}
NOTHING = Nothing()


def for_task(error: TaskQueueError, task_id: str | None) -> TaskQueueError:
    """The same error for one of several callers, with the task that it is about for this one."""
    copy = decode_error(declared_code(error) or Internal.code, encode_error(error))
    if task_id is not None:
        copy.task_id = task_id
    return copy


def refused(error: TaskQueueError) -> ForwardedResult:
    return ForwardedResult(declared_code(error) or Internal.code, encode_error(error))


def item_of(result: Accepted | TaskQueueError) -> Item:
    """For a batch: one result as it travels."""
    if isinstance(result, Accepted):
        return Item(result)
    failure = refused(result)
    return Item(None, failure.error, failure.body)


def result_of(item: Item, task_id: str | None) -> Accepted | TaskQueueError:
    """The inverse of ``item_of``, where the batch was sent from."""
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
