"""What the console may ask of a cluster. All clients pass the same tests/tui/test_contract.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tq_tui.client.models import (
    ClusterInfo,
    Done,
    Event,
    Metrics,
    Partition,
    Readiness,
    Stats,
    Submission,
    Task,
    TaskPage,
)
from tq_tui.filters import TaskQuery


class ClientError(Exception):
    """Anything that can come instead of an answer."""


class Unreachable(ClientError):
    """Nobody answered in time. ``sent``: the request may have arrived; its outcome is unknown."""

    def __init__(self, detail: str, *, sent: bool = False) -> None:
        super().__init__(detail)
        self.sent = sent


class Refused(ClientError):
    """The node answered, and it was a problem document."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail or code)
        self.status, self.code, self.detail = status, code, detail

    @property
    def outcome_unknown(self) -> bool:
        return self.code == "outcome_unknown"

    @property
    def try_elsewhere(self) -> bool:
        """Nothing was done here; another node may well do it."""
        return self.status in (429, 503)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call behind what was asked for, for the log that people copy from."""

    method: str
    url: str
    body: str | None
    status: int | None
    """None: no answer."""
    error: str
    duration_s: float
    at_s: float
    authorized: bool = False
    """A token went with it. It is not kept here: the line names the variable."""

    @property
    def curl(self) -> str:
        """The call as a curl line for a shell."""
        method = "" if self.method == "GET" else f"-X {self.method} " if self.body is None else ""
        body = "" if self.body is None else f"-H 'Content-Type: application/json' -d {quoted(self.body)} "
        token = '-H "Authorization: Bearer $TQ_TOKEN" ' if self.authorized else ""
        return f"curl {method}{token}{body}{quoted(self.url)}"


def quoted(text: str) -> str:
    """In single quotes for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


class NodeClient(Protocol):
    """One node. Each call ends by its deadline; raises ``ClientError``: no answer, or a refusal."""

    async def cluster(self) -> ClusterInfo: ...
    async def partitions(self) -> Sequence[Partition]: ...
    async def stats(self) -> Stats: ...
    async def readiness(self) -> Readiness: ...
    async def metrics(self) -> Metrics: ...
    def events(self) -> AsyncIterator[Sequence[Event]]:
        """Batches of transitions of this node's primaries, without end; empty: some were missed."""
        ...

    async def tasks(self, query: TaskQuery) -> TaskPage: ...
    async def task(self, task_id: str) -> Task: ...
    async def submit(self, submission: Submission) -> Done: ...
    async def cancel(self, task_id: str) -> Done: ...
    async def retry(self, task_id: str) -> Done: ...
    async def pause(self, queue: str) -> Done: ...
    async def resume(self, queue: str) -> Done: ...
    async def drain(self, node: str) -> Done: ...

    async def undrain(self, node: str) -> Done: ...
    async def remove(self, node: str) -> Done: ...
    async def shutdown(self, node: str) -> Done: ...
    async def rebalance(self) -> Done: ...


class ClusterClient(Protocol):
    """Connections to any number of nodes, kept apart: one that hangs holds up no other."""

    on_call: Callable[[Call], None] | None
    """Called with each HTTP call that the user caused; polls of the watches are left out."""

    def at(self, address: str) -> NodeClient:
        """:param address: ``HOST:PORT``."""
        ...

    async def close(self) -> None: ...
