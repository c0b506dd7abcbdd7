"""What `api` and `work` may see of the queue: one Protocol, and the values that go in and out.

The implementation is ``tq_node.runtime.routing.cluster_queue.ClusterQueue``; the composition root
hands it over. Every Deferred fires in the reactor thread, belongs to its caller alone, and may be
cancelled without harm to anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred

from tq_node import limits
from tq_node.errors import TaskQueueError
from tq_node.types import (
    Announced,
    Backoff,
    ClusterView,
    LogLine,
    PartitionView,
    Progress,
    State,
    TaskError,
    TaskRow,
    Token,
    Transition,
    WaitsFor,
)

# Bounds of what nodes tell one another in these values, held by the decoder. At the door of the API
# the same are told in words.
_Id = Annotated[str, Meta(max_length=limits.TASK_ID_CHARS_MAX)]
_Type = Annotated[str, Meta(max_length=limits.TASK_TYPE_CHARS_MAX)]
_Queue = Annotated[str, Meta(max_length=limits.QUEUE_CHARS_MAX)]
_Tag = Annotated[str, Meta(max_length=limits.TAG_CHARS_MAX)]
_Tags = Annotated[dict[_Tag, _Tag], Meta(max_length=limits.TAGS_MAX)]
_Priority = Annotated[int, Meta(ge=0, le=limits.PRIORITY_MAX)]
_Attempts = Annotated[int, Meta(ge=1, le=limits.MAX_ATTEMPTS_MAX)]
_TimeoutMs = Annotated[int, Meta(ge=0, le=limits.TIMEOUT_S_MAX * 1_000)]
_DelayUs = Annotated[int, Meta(ge=0, le=limits.DELAY_S_MAX * 1_000_000)]
_TimeUs = Annotated[int, Meta(ge=-(2**60), le=2**60)]
"""Any year that RFC 3339 can write."""
_RetryMs = Annotated[int, Meta(ge=0, le=limits.BACKOFF_S_MAX * 1_000)]
_Hash = Annotated[bytes, Meta(max_length=64)]
_Number = Annotated[int, Meta(ge=0, le=2**62)]
_Partition = Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]


class Submission(msgspec.Struct, gc=False, array_like=True):
    """One submit, validated, as sent: what was not said is None, and is filled in where the task's
    type has a default.

    ``payload`` is compact JSON. ``id`` None: the node makes one. ``delay_us`` and ``run_at_us``
    exclude one another. ``content_hash`` covers the fields as sent, without the id. ``made``: the
    node that took it in has just made the id.
    """

    type: _Type
    payload: bytes
    id: _Id | None = None
    queue: _Queue | None = None
    priority: _Priority | None = None
    delay_us: _DelayUs | None = None
    run_at_us: _TimeUs | None = None
    max_attempts: _Attempts | None = None
    timeout_ms: _TimeoutMs | None = None
    backoff: Backoff | None = None
    tags: _Tags | None = None
    content_hash: _Hash = b""
    made: bool = False


class Accepted(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``created`` is False where the same id with the same content was there already; ``node`` is
    the primary's name."""

    task_id: str
    state: State
    node: str
    created: bool


class TypeDefaults(msgspec.Struct, frozen=True):
    """What ``@task`` says for its type; None where it says nothing."""

    queue: str | None = None
    max_attempts: int | None = None
    timeout_ms: int | None = None
    backoff: Backoff | None = None


LIST_SORTS = frozenset({"id", "created_at", "run_at", "priority"})


class ListQuery(msgspec.Struct, frozen=True, array_like=True):
    """``/tasks/list`` after validation. Each ``_not`` flag turns its set into the complement."""

    states: frozenset[_Number] | None = None
    states_not: bool = False
    types: frozenset[str] | None = None
    types_not: bool = False
    queues: frozenset[str] | None = None
    queues_not: bool = False
    nodes: frozenset[str] | None = None
    nodes_not: bool = False
    text: str | None = None
    role: str | None = None
    sort: str = "id"
    descending: bool = False
    cursor: tuple[_TimeUs, str] | None = None
    limit: Annotated[int, Meta(ge=0, le=2 * limits.LIST_LIMIT_MAX)] = 1000
    cluster: bool = False


class ListedTask(msgspec.Struct, frozen=True, gc=False, array_like=True):
    row: TaskRow
    role: str
    """primary or replica"""
    node: str
    """name of the primary"""


class TaskPage(msgspec.Struct, frozen=True, array_like=True):
    """:ivar missing: nodes that did not answer for the cluster; ``partitions_missing``: what nobody
        has answered for.
    :ivar led: each partition that the node that answers leads, with its epoch; None from a release
        that doesn't say.
    """

    tasks: list[ListedTask]
    next: tuple[int, str] | None
    missing: list[str] = []
    partitions_missing: list[int] = []
    led: list[tuple[int, int]] | None = None


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """Rows by state (index = number of the state). ``primary`` + ``replica`` = ``all``. The rest as in ``TaskPage``."""

    primary: list[int]
    replica: list[int]
    missing: list[str] = []
    partitions_missing: list[int] = []
    led: list[tuple[int, int]] | None = None


class Read(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A task as read. ``age_s`` is how old it may be: None for a strong read, which is proven fresh."""

    row: TaskRow
    node: str
    age_s: float | None = None


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """``first_id`` is the id of ``transitions[0]``; the rest count up. ``reset``: what was asked for is too old."""

    first_id: int
    transitions: list[Transition]
    reset: bool = False
    node: str | None = None
    """Whose events these are, where several nodes' are told together."""


class Subscription(Protocol):
    def close(self) -> None: ...


class Claim(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The right to run one attempt, committed. ``payload`` is JSON. ``queue`` is empty, and
    ``max_attempts`` and ``created_us`` are 0, where the node that made it is of a release that does
    not say. ``failures``: attempts before this one that have failed."""

    task_id: str
    task_type: str
    payload: bytes
    partition: _Partition
    attempt: _Number
    token: Token
    timeout_ms: int | None
    queue: str = ""
    max_attempts: int = 0
    failures: int = 0
    created_us: int = 0
    tags: dict[str, str] | None = None


class Notes(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a running attempt has said since the last time. ``dropped`` counts lines that were over a bound."""

    progress: Progress | None = None
    lines: tuple[LogLine, ...] = ()
    dropped: int = 0


class Completed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=0):
    """``result`` is compact JSON, at most ``limits.RESULT_BYTES_MAX``."""

    result: bytes


class AttemptFailed(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """``retry_in_ms``: the handler asked for this delay (``Retry``). ``final``: no further attempt
    (``Reject``, no handler)."""

    error: TaskError
    retry_in_ms: _RetryMs | None = None
    final: bool = False


class Released(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """The attempt was given back and spends nothing: the node is stopping."""


class Lost(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """The attempt's lease has gone, and its handler with it. Counted apart from failures; the third ends the task."""


Outcome = Completed | AttemptFailed | Released | Lost


class Worker(Protocol):
    """What the queue tells whoever runs tasks: hints and orders without answers, which may not
    raise. And what it asks."""

    @property
    def slots_free(self) -> int:
        """How many more attempts could start now."""

    @property
    def types(self) -> Collection[str] | None:
        """The types that it has handlers for; None: any."""

    @property
    def notes(self) -> Sequence[ReadyNote]:
        """Why it runs no tasks, or not all."""

    @property
    def announced(self) -> Announced:
        """What the other nodes are told of its handlers."""

    def stand_in(self, may: bool) -> None:
        """Whether handlers that nobody asked for, the simulated ones, may run tasks."""

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        """See ``TaskQueue.reload_handlers``."""

    def wake(self) -> None:
        """There may be something to claim."""

    def stop_attempt(self, task_id: str, token: Token) -> None:
        """The attempt no longer holds its task (cancelled): stop its handler."""


class Invitation(msgspec.Struct, frozen=True):
    """What a node needs to know to join: ``peer`` is where to register, ``secret`` in hexadecimal."""

    cluster_id: str
    secret: str
    peer: str


class NotReadyReason(msgspec.Struct, frozen=True):
    code: str
    detail: str


class ReadyNote(msgspec.Struct, frozen=True):
    """Something that an operator should know of a node that may serve all the same, such as `no_workers`."""

    code: str
    detail: str


class NodeHandlers(msgspec.Struct, frozen=True):
    """What a node that is up runs tasks with."""

    node: str
    announced: Announced


class HandlersReloaded(msgspec.Struct, frozen=True):
    """The types that have handlers now, and how they differ from those of before."""

    types: list[str]
    added: list[str]
    removed: list[str]


class TaskQueue(Protocol):
    """Every method that returns a Deferred may fail with a TaskQueueError; what it means stands there."""

    @property
    def node_name(self) -> str: ...

    # --- for api/ ---
    def submit(self, submission: Submission) -> Deferred[Accepted]:
        """Fires once the task is durable on every in-sync copy.

        :raises IdConflict, IdTooOld, Busy, DiskReserve, NotReady, Draining, OutcomeUnknown:
            (through the Deferred)
        """

    def submit_many(
        self, submissions: Sequence[Submission], *, has_more: bool = False
    ) -> Deferred[list[Accepted | TaskQueueError]]:
        """One result for each, in order; fires once all that were accepted are durable.

        :param has_more: the caller goes on in one of the next turns, and wants all of it to become
            durable together.
        """

    def get(self, task_id: str, *, wait_s: float = 0.0, local: bool = False) -> Deferred[Read]:
        """The committed state; with ``wait_s`` as soon as the task is final, else as it is then.

        :raises NoSuchTask, TaskPurged, NotConfirmed: (through the Deferred)
        """

    def list(self, query: ListQuery) -> Deferred[TaskPage]: ...

    def stats(self, *, cluster: bool = False) -> Deferred[Stats]: ...

    def cancel(self, task_id: str) -> Deferred[TaskRow]: ...

    def retry(self, task_id: str) -> Deferred[TaskRow]: ...

    def purge(self, task_id: str) -> Deferred[TaskRow]:
        """Forget a task that has ended, as its retention would; the task as it was. :raises
        NotFinal: it has not ended."""
        ...

    def pause(self, queue: str) -> Deferred[None]: ...

    def resume(self, queue: str) -> Deferred[None]: ...

    def paused_queues(self) -> frozenset[str]: ...

    def watch(
        self, observer: Callable[[EventBatch], None], *, after_id: int | None = None, cluster: bool = False
    ) -> Subscription:
        """Call ``observer`` with every batch of committed transitions of this node's primaries,
        from now or from behind ``after_id`` (the first call then comes at once, with ``reset``
        where that is too old).

        :param cluster: of all nodes' primaries; numbered apart, so ``after_id`` is of such a stream
            of this node.
        """

    def cluster(self) -> ClusterView: ...

    def partition_views(self) -> Sequence[PartitionView]: ...

    def invite(self) -> Invitation:
        """Hand the cluster's made-up secret to a node that joins. Whoever calls proves that the
        asker is on loopback.

        :raises Denied: operators keep this cluster's secret in a file. :raises NotReady: not, or
            not yet, in a cluster.
        """

    def drain(self, node: str) -> Deferred[None]:
        """Move everything off a node; fires once that is decided, not once it is done.

        :raises NoSuchNode, LastNode, ClusterRefused, NoController, OutcomeUnknown: (through the
            Deferred, as for the next four)
        """

    def undrain(self, node: str) -> Deferred[None]:
        """Let a node stay that was to be drained, also one that was to be removed once it is empty."""

    def remove(self, node: str) -> Deferred[None]:
        """Take a node out: a living one is drained first, a dead one's store is given up."""

    def rebalance(self) -> Deferred[None]: ...

    def unsafe_recover(self, partition: int, node: str) -> Deferred[None]:
        """Make a node's copy the partition, whatever it lacks; recorded for ever. Also :raises
        NoSuchPartition:"""

    def shutdown(self, node: str) -> Deferred[None]:
        """End a node in order, as SIGTERM does; fires once it has been told. Also :raises
        PeerUnreachable:"""

    def not_ready(self) -> Sequence[NotReadyReason]:
        """Why the node can't serve; empty when it can."""

    def notes(self) -> Sequence[ReadyNote]:
        """What else an operator should know; it keeps nobody from being served."""

    def backup(self) -> Deferred[Sequence[str]]:
        """An online snapshot of this node's store, one at a time; fires with the paths of those
        that are kept, this one first."""

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        """For each queue that has ever been seen by this process (0.0 where nothing waits)."""

    def handlers(self) -> Sequence[NodeHandlers]:
        """Of all nodes that are up. :raises Upgrading: nodes of an earlier release are among them, which don't say."""

    def waiting_for(self, row: TaskRow) -> Sequence[WaitsFor]:
        """Why a task that has not ended does not run, as this node knows."""

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        """Import the handlers of this node anew. :raises HandlersUnusable: that failed; those of before go on."""

    # --- for work/ ---
    def attach(self, worker: Worker) -> None: ...

    def handlers_changed(self) -> None:
        """The worker runs other types than before."""

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        """Claim up to ``limit`` due tasks, the highest rank first. Fires when the claims are
        committed; may be empty.

        Of this node's partitions; where they have none, of those of a node that has more than it
        can start. Never fails for want of work; while the node is not ready or is stopping it fires
        empty.
        """

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        """End the attempt. Fires once committed. :raises StaleAttempt: the token no longer holds the task."""

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        """Keep progress and log lines with the task. :raises StaleAttempt: as for ``finish``."""

    def lease_ms(self, claim: Claim) -> int:
        """How long, from now, the attempt may go on running before it must be confirmed again; 0:
        nobody has confirmed it."""
