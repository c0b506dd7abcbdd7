"""Value objects and names that every room shares.

Everything here is frozen and free of behaviour that needs a clock, a disk or a random source.
Structs that are held by the hundred thousand say ``gc=False``: they never form cycles, and a
million tracked objects would cost a pause of 170 ms at each full collection."""

from __future__ import annotations

import enum
from typing import Annotated, NamedTuple, NewType

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tq_node import limits

NodeId = NewType("NodeId", str)
"""128 random bits in hex, made when a data directory is formatted and kept only there."""
NodeName = NewType("NodeName", str)
"""What ``--node-id`` gives: a label for people."""
TaskId = NewType("TaskId", str)
PartitionId = NewType("PartitionId", int)
Epoch = NewType("Epoch", int)
Sequence = NewType("Sequence", int)


class Token(NamedTuple):
    """A claim's place in its partition's log; fencing compares these, never attempts (F30a)."""

    epoch: int
    sequence: int


class State(enum.IntEnum):
    """A task's state. The numbers are part of the on-disk format."""

    SCHEDULED = 0
    PENDING = 1
    PROCESSING = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def label(self) -> str:
        return STATE_LABELS[self]

    @property
    def is_final(self) -> bool:
        return self >= State.COMPLETED


STATE_LABELS: tuple[str, ...] = ("scheduled", "pending", "processing", "completed", "failed", "cancelled")
STATE_OF_LABEL: dict[str, State] = {label: State(number) for number, label in enumerate(STATE_LABELS)}


class Backoff(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How long a failed attempt waits for the next. Times in milliseconds."""

    kind: str = "exponential"
    base_ms: Annotated[int, Meta(ge=0, le=limits.BACKOFF_S_MAX * 1_000)] = 1_000
    cap_ms: Annotated[int, Meta(ge=0, le=limits.BACKOFF_S_MAX * 1_000)] = 3_600_000
    jitter: bool = True


class TaskSpec(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the submitter gave, with the defaults filled in. It never changes after the submit.
    ``payload`` is compact JSON. ``content_hash`` is over the fields as sent. ``made_by``: name of
    the token that submitted it; empty: tokens were not checked, or by the cluster itself."""

    id: TaskId
    type: str
    payload: bytes
    queue: str
    priority: int
    max_attempts: int
    timeout_ms: int | None
    backoff: Backoff
    tags: dict[str, str] | None
    created_us: int
    content_hash: bytes
    made_by: str = ""


class TaskError(msgspec.Struct, frozen=True, gc=False, array_like=True):
    type: str
    message: str
    traceback: str | None = None


class AttemptRecord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One attempt that has ended. ``outcome``: completed, failed, lost, released, cancelled."""

    attempt: int
    node: str
    started_us: int
    ended_us: int
    outcome: str
    error: TaskError | None = None


class Progress(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``fraction`` is between 0 and 1; ``note`` is free text, bounded."""

    fraction: float
    note: str | None = None


class LogLine(msgspec.Struct, frozen=True, gc=False, array_like=True):
    at_us: int
    line: str


class WorkerLease(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a remote worker was granted with a claim, kept with it for failovers."""

    lease_ms: int
    claim_id: str = ""
    """The worker's name of that request; empty: it gave none."""


class TaskRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A task's present row: the fixed part and what changes.

    ``rev`` rises by one with each change. ``failures`` and ``losses`` are counted within the run
    (``retry`` starts a new run and zeroes both); ``attempt`` is the number of the latest attempt of
    the run. ``run_at_us`` is the earliest time the task may start, wall clock."""

    spec: TaskSpec
    partition: int
    rev: int
    state: State
    run_at_us: int
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    token: Token | None = None
    worker: str | None = None
    started_us: int | None = None
    ended_us: int | None = None
    result: bytes | None = None
    error: TaskError | None = None
    progress: Progress | None = None
    log: tuple[LogLine, ...] = ()
    log_dropped: int = 0
    attempts: tuple[AttemptRecord, ...] = ()
    lease: WorkerLease | None = None
    """Of the latest claim; None: a node's own worker has made it. From feature level 4 on."""

    @property
    def id(self) -> TaskId:
        return self.spec.id


class HandlerKind(enum.IntEnum):
    """What a node runs tasks with. ``UNKNOWN``: it is of a release that does not say."""

    UNKNOWN = 0
    NONE = 1
    SIMULATED = 2
    OWN = 3


class HandledType(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A task type and the defaults of its tasks, as a handler's ``@task`` or an operator has them;
    None: no default."""

    type: str
    queue: str | None = None
    max_attempts: int | None = None
    timeout_ms: int | None = None
    backoff: Backoff | None = None


class Announced(msgspec.Struct, frozen=True, array_like=True):
    """The handlers that a node has now; ``"*"``: for any type. At most ``HANDLED_TYPES_MAX``."""

    kind: HandlerKind
    handled: tuple[HandledType, ...] = ()


class PauseEntry(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """A type that is paused, or what is known of a paused queue. Times by the wall clock."""

    target: str
    """``queue`` or ``type``."""
    name: str
    reason: str = ""
    since_us: int = 0
    until_us: int | None = None
    """When it goes on by itself; None: once somebody resumes it."""
    by: str = ""
    """Name of the token that asked for it; empty: nobody had to prove anything."""

    @property
    def place(self) -> tuple[str, str]:
        return self.target, self.name


WAIT_KINDS = ("time", "queue_paused", "type_paused", "no_handler", "draining", "copies", "slots")
"""What a task may wait for, in the order in which it is told."""


class WaitsFor(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Why a task doesn't run. ``kind``: one of ``WAIT_KINDS``; ``name``: of the queue
    or the type. ``until_us``: when that is over by itself. Times by the primary's wall clock."""

    kind: str
    since_us: int
    name: str = ""
    until_us: int | None = None


class Transition(NamedTuple):
    """A committed change of state, as ``/tasks/events`` tells it; ``from_state`` None: at birth.
    ``made_by``: as in ``TaskSpec``."""

    task_id: TaskId
    task_type: str
    queue: str
    from_state: State | None
    to_state: State
    attempt: int
    partition: int
    at_us: int
    made_by: str = ""


Change = tuple[Transition, TaskRow]
"""One committed transition, and the row as it is after it."""


class ClusterNode(msgspec.Struct, frozen=True):
    """A member of the cluster, as operators see it. Addresses are ``HOST:PORT``."""

    id: str
    name: str
    http: str
    peer: str
    status: str
    """``joining``, ``active``, ``suspect``, ``down`` or ``draining``."""
    voter: bool


class ClusterView(msgspec.Struct, frozen=True):
    """The cluster as operators see it; ``nodes`` are its members in order of name."""

    cluster_id: str
    cluster_name: str
    nodes: list[ClusterNode]
    leader: str | None
    """Name of the Raft leader, if this node knows one."""
    term: int
    partition_count: int
    replication_factor: int


class PartitionMove(msgspec.Struct, frozen=True):
    """A move in progress; ``stage`` is ``copying``, ``handing_over``, ``shrinking`` or
    ``finishing``. ``bytes_left`` and ``percent`` are null but at the primary; ``percent`` is 100
    once all newcomers are in sync."""

    stage: str
    bytes_left: int | None
    percent: int | None


class PartitionView(msgspec.Struct, frozen=True):
    """One partition; nodes by name, null if unknown. ``replicas`` exclude the primary, ``in_sync``
    begins with it. ``lag``: how many sequences each replica is behind, if known. ``waiting`` stands
    only while the partition should move and can't: why. ``move`` stands only while it moves."""

    partition: int
    primary: str | None
    replicas: list[str]
    in_sync: list[str]
    epoch: int
    version: int
    last_sequence: int | None
    committed_sequence: int | None
    lag: dict[str, int]
    adding: list[str]
    removing: list[str]
    state: str
    """``active``, ``starting`` or ``offline``."""
    waiting: str | UnsetType = UNSET
    """Known at the leader."""
    move: PartitionMove | UnsetType = UNSET
