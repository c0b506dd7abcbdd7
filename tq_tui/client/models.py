"""What nodes answer, as frozen values. Unknown fields are ignored: a newer node may say more."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

STATES = ("scheduled", "pending", "processing", "completed", "failed", "cancelled")
FINAL_STATES = frozenset(("completed", "failed", "cancelled"))
RETRYABLE_STATES = frozenset(("failed", "cancelled"))


class Counts(msgspec.Struct, frozen=True):
    """Tasks by state."""

    total: int = 0
    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    scheduled: int = 0
    cancelled: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + theirs for mine, theirs in zip(self.each(), other.each(), strict=True)))

    def each(self) -> tuple[int, ...]:
        return msgspec.structs.astuple(self)

    def of(self, state: str) -> int:
        """:param state: one of ``STATES``."""
        count: int = getattr(self, state)
        return count


class Stats(msgspec.Struct, frozen=True):
    """``GET /tasks/stats``."""

    node: str
    stats: Counts = Counts()
    primary: Counts = Counts()
    replica: Counts = Counts()
    missing: tuple[str, ...] = ()


class Member(msgspec.Struct, frozen=True):
    """A node as the cluster's table has it. ``status``: ``joining``, ``active``, ``suspect``,
    ``down``, ``draining``."""

    id: str
    ip: str = ""
    status: str = "active"
    voter: bool = False
    services: dict[str, str] = {}

    @property
    def http(self) -> str:
        return self.services.get("http") or self.ip


class ClusterConfig(msgspec.Struct, frozen=True):
    partition_count: int = 0
    replication_factor: int = 0


class ClusterInfo(msgspec.Struct, frozen=True):
    """``GET /cluster``, as one node sees it."""

    id: str = ""
    name: str = ""
    nodes: tuple[Member, ...] = ()
    leader: str | None = None
    term: int = 0
    config: ClusterConfig = ClusterConfig()


class Partition(msgspec.Struct, frozen=True):
    """One entry of ``GET /cluster/partitions``. Sequences and lag are known to its primary only."""

    partition: int
    primary: str | None = None
    replicas: tuple[str, ...] = ()
    in_sync: tuple[str, ...] = ()
    epoch: int = 0
    version: int = 0
    last_sequence: int | None = None
    committed_sequence: int | None = None
    lag: dict[str, int] = {}
    adding: tuple[str, ...] = ()
    removing: tuple[str, ...] = ()
    state: str = "active"
    waiting: str | None = None

    @property
    def is_moving(self) -> bool:
        return bool(self.adding or self.removing)


class Reason(msgspec.Struct, frozen=True):
    code: str
    detail: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """``GET /ready``. ``notes`` keep nobody from being served."""

    ready: bool
    reasons: tuple[Reason, ...] = ()
    notes: tuple[Reason, ...] = ()


class Metrics(msgspec.Struct, frozen=True):
    """The few numbers of ``GET /metrics`` that the console shows, from zero at a node's start."""

    busy: int = 0
    idle: int = 0
    started_at_s: float = 0.0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    oldest_age_s: dict[str, float] = {}
    paused: tuple[str, ...] = ()
    memory_bytes: int = 0
    cpu_s: float = 0.0
    store_bytes: int = 0
    disk_free_bytes: int = 0
    version: str = ""

    @property
    def slots(self) -> int:
        return self.busy + self.idle


class Progress(msgspec.Struct, frozen=True):
    fraction: float = 0.0
    note: str | None = None


class TaskError(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""
    traceback: str | None = None


class LogLine(msgspec.Struct, frozen=True):
    at: datetime
    line: str


class Attempt(msgspec.Struct, frozen=True):
    attempt: int
    node: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str = ""
    error: TaskError | None = None


class WaitsFor(msgspec.Struct, frozen=True):
    """One reason why a task does not run."""

    kind: str
    since: datetime | None = None
    name: str = ""
    until: datetime | None = None


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task as ``/tasks/status`` and ``/tasks/list`` tell it."""

    id: str
    type: str
    status: str
    payload: Any = None
    queue: str = "default"
    priority: float = 5
    attempt: int = 0
    max_attempts: int = 3
    created_at: datetime | None = None
    run_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    result: Any = msgspec.UNSET
    error: TaskError | None = None
    node: str | None = None
    worker: str | None = None
    partition: int = 0
    version: int = 0
    tags: dict[str, str] = {}
    timeout: float | None = None
    backoff: Any = None
    progress: Progress | None = None
    log: tuple[LogLine, ...] = ()
    log_dropped: int = 0
    attempts: tuple[Attempt, ...] = ()
    waiting_for: tuple[WaitsFor, ...] = ()
    role: str = "primary"

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATES

    @property
    def is_retryable(self) -> bool:
        return self.status in RETRYABLE_STATES


class TaskPage(msgspec.Struct, frozen=True):
    """One page of a list. ``next`` None: the end. An empty page with a ``next`` is legal."""

    tasks: tuple[Task, ...] = ()
    next: str | None = None
    node: str = ""
    missing: tuple[str, ...] = ()
    partitions_missing: tuple[int, ...] = ()


class Event(msgspec.Struct, frozen=True, rename={"before": "from"}, gc=False):
    """A task's transition. ``before`` None: its birth."""

    task_id: str
    type: str
    queue: str
    to: str
    at: str
    before: str | None = None
    attempt: int = 0
    node: str | None = None
    partition: int = 0


class Submission(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the form says. ``id`` is always given, so that it is safe to send to another node."""

    type: str
    id: str
    payload: Any = None
    queue: str | None = None
    priority: int | None = None
    delay: float | None = None
    max_attempts: int | None = None
    tags: dict[str, str] | None = None


class Done(msgspec.Struct, frozen=True):
    """The answer to something that was changed."""

    success: bool = True
    task_id: str = ""
    queue: str = ""
    status: str = ""
    node: str = ""
