"""Values of the client, frozen, named as in the HTTP API. Fields of newer nodes are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

FINAL = frozenset({"completed", "failed", "cancelled"})


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """How long a failed attempt waits for the next. ``kind``: exponential, linear or constant;
    times in seconds."""

    kind: str = "exponential"
    base: float = 1.0
    cap: float = 3_600.0
    jitter: bool = True


class NewTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task to submit; fields as the parameters of ``Queue.submit``. None: the handler's default,
    else the node's."""

    type: str
    payload: Any = None
    queue: str | None = None
    priority: int | None = None
    delay: float | None = None
    run_at: datetime | float | str | None = None
    id: str | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    backoff: Backoff | Mapping[str, Any] | float | None = None
    tags: dict[str, str] | None = None


class Failure(msgspec.Struct, frozen=True):
    """The error of an attempt or of a task."""

    type: str
    message: str
    traceback: str | None = None


class Attempt(msgspec.Struct, frozen=True):
    """One attempt that has ended; ``outcome``: completed, failed, lost, released or cancelled."""

    attempt: int
    node: str
    started_at: datetime
    ended_at: datetime
    outcome: str
    error: Failure | None = None


class Progress(msgspec.Struct, frozen=True):
    """The last progress that the handler reported; ``fraction`` from 0 to 1."""

    fraction: float
    note: str | None = None


class LogLine(msgspec.Struct, frozen=True):
    """A line that the handler logged."""

    at: datetime
    line: str


class WaitsFor(msgspec.Struct, frozen=True):
    """Why a task does not run yet. ``kind`` is a stable word, as ``no_handler`` or ``type_paused``;
    ``name``: of the queue or type; ``until``: when that is over by itself."""

    kind: str
    since: datetime | None = None
    name: str = ""
    until: datetime | None = None


class TaskInfo(msgspec.Struct, frozen=True):
    """A task as read. ``node`` is its primary, ``worker`` where it runs or ran; None: not yet."""

    id: str
    type: str
    status: str
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    version: int
    payload: Any = None
    node: str = ""
    partition: int = 0
    tags: dict[str, str] = {}
    log: list[LogLine] = []
    attempts: list[Attempt] = []
    backoff: Backoff | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    result: Any = None
    error: Failure | None = None
    worker: str | None = None
    timeout: float | None = None
    progress: Progress | None = None
    log_dropped: int = 0
    waiting_for: list[WaitsFor] = []

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


class Stats(msgspec.Struct, frozen=True):
    """Tasks by state. ``missing``: nodes that did not answer; ``partitions_missing``: uncounted."""

    total: int
    pending: int
    processing: int
    completed: int
    failed: int
    scheduled: int
    cancelled: int
    missing: tuple[str, ...] = ()
    partitions_missing: tuple[int, ...] = ()
