# ruff: noqa: A002 -- arguments are named as the fields of the API
"""The client for asyncio."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from tq_node.client import limits
from tq_node.client.batching import Accepted
from tq_node.client.codec import Codec
from tq_node.client.engine import Engine, chunks, handles_of, list_filters, make_settings, named
from tq_node.client.errors import Closed, TaskQueueError
from tq_node.client.models import Backoff, NewTask, Stats, TaskInfo


class AsyncTask:
    """A task that was submitted. ``status``: what it was when that was answered."""

    __slots__ = ("_queue", "id", "status")

    def __init__(self, queue: AsyncQueue, task_id: str, status: str) -> None:
        self._queue = queue
        self.id = task_id
        self.status = status

    def __repr__(self) -> str:
        return f"<AsyncTask {self.id}>"

    async def get(self, *, deadline: float | None = None) -> TaskInfo:
        """As ``AsyncQueue.get``."""
        return await self._queue.get(self.id, deadline=deadline)

    async def wait(self, timeout: float | None = None) -> TaskInfo:
        """As ``AsyncQueue.wait``."""
        return await self._queue.wait(self.id, timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """As ``AsyncQueue.result``."""
        return await self._queue.result(self.id, timeout)

    async def cancel(self, *, deadline: float | None = None) -> str:
        """As ``AsyncQueue.cancel``."""
        return await self._queue.cancel(self.id, deadline=deadline)

    async def retry(self, *, deadline: float | None = None) -> str:
        """As ``AsyncQueue.retry``."""
        return await self._queue.retry(self.id, deadline=deadline)

    async def purge(self, *, deadline: float | None = None) -> None:
        """As ``AsyncQueue.purge``."""
        await self._queue.purge(self.id, deadline=deadline)


class AsyncQueue:
    """A cluster of nodes, for coroutines of one event loop; ``async with`` closes it. Parameters
    and errors, here and of each method, are those of ``Queue``."""

    def __init__(
        self,
        addresses: str | Iterable[str] = "localhost:8080",
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls: ssl.SSLContext | bool = False,
        ca: str | os.PathLike[str] | None = None,
        deadline: float = limits.DEADLINE_S,
        batching: bool = True,
        discover: bool = True,
        codec: Codec | None = None,
    ) -> None:
        self._settings = make_settings(
            addresses, token=token, token_file=token_file, tls=tls, ca=ca, deadline=deadline, batching=batching,
            discover=discover, codec=codec,
        )  # fmt: skip
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> Engine:
        loop = asyncio.get_running_loop()
        if self._engine is None:
            if self._is_closed:
                raise Closed("the queue is closed")
            self._engine, self._loop = Engine(self._settings), loop
        elif self._loop is not loop:
            raise RuntimeError("an AsyncQueue belongs to the event loop that used it first; make one for each")
        return self._engine

    async def close(self) -> None:
        """Close the queue: open submits have five seconds to end; later calls raise ``Closed``."""
        self._is_closed = True
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    @property
    def addresses(self) -> Sequence[str]:
        """Addresses of the nodes known by now."""
        if self._engine is not None:
            return self._engine.roster.addresses
        return [str(address) for address in self._settings.addresses]

    # --- submit ---
    async def submit(
        self,
        type: str,
        payload: Any = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | None = None,
        run_at: datetime | float | str | None = None,
        id: str | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
        backoff: Backoff | Mapping[str, Any] | float | None = None,
        tags: dict[str, str] | None = None,
        deadline: float | None = None,
    ) -> AsyncTask:
        """Submit a task, as ``Queue.submit``. On return every in-sync copy has it on disk."""
        engine = self._open()
        task = NewTask(type, payload, queue, priority, delay, run_at, id, max_attempts, timeout, backoff, tags)
        task_id, body = named(task, self._settings.codec)
        accepted = await engine.submit(task_id, body, deadline)
        return AsyncTask(self, accepted.task_id, accepted.status)

    async def submit_many(self, tasks: Iterable[NewTask], *, deadline: float | None = None) -> Sequence[AsyncTask]:
        """Submit many tasks in batches, as ``Queue.submit_many``; read only as accepted."""
        engine = self._open()
        outcomes: list[Accepted | TaskQueueError] = []
        handed: deque[asyncio.Task[list[Accepted | TaskQueueError]]] = deque()
        try:
            for chunk in chunks(tasks, self._settings.codec):
                if len(handed) >= limits.CHUNKS_MAX:
                    outcomes += await handed[0]
                    handed.popleft()
                handed.append(asyncio.create_task(engine.submit_all(chunk, deadline)))
            while handed:
                outcomes += await handed[0]
                handed.popleft()
        finally:
            for left in handed:
                left.cancel()
        return handles_of(outcomes, lambda taken: AsyncTask(self, taken.task_id, taken.status))

    # --- one task ---
    async def get(self, task_id: str, *, deadline: float | None = None) -> TaskInfo:
        """The task as it is now; raises as ``Queue.get``."""
        return await self._open().get(task_id, deadline)

    async def wait(self, task_id: str, timeout: float | None = None) -> TaskInfo:
        """The task, once it has ended; raises ``NotFinished`` after ``timeout`` seconds."""
        return await self._open().wait(task_id, timeout)

    async def result(self, task_id: str, timeout: float | None = None) -> Any:
        """What the task's handler returned, once it has; raises as ``Queue.result``."""
        return await self._open().result(task_id, timeout)

    async def cancel(self, task_id: str, *, deadline: float | None = None) -> str:
        """Cancel a task, also one that runs; returns its status; raises as ``Queue.cancel``."""
        return await self._open().cancel(task_id, deadline)

    async def retry(self, task_id: str, *, deadline: float | None = None) -> str:
        """Put a failed or cancelled task back, as ``Queue.retry``; raises ``NotRetryable``."""
        return await self._open().retry(task_id, deadline)

    async def purge(self, task_id: str, *, deadline: float | None = None) -> None:
        """Forget a task that has ended, as ``Queue.purge``; raises ``NotFinal`` of others."""
        await self._open().purge(task_id, deadline)

    # --- queues ---
    async def pause(self, queue: str = "default", *, deadline: float | None = None) -> None:
        """Pause a queue on all nodes: none of its tasks starts; those that run go on."""
        await self._open().switch("pause", queue, deadline)

    async def resume(self, queue: str = "default", *, deadline: float | None = None) -> None:
        """Let the tasks of a paused queue start again."""
        await self._open().switch("resume", queue, deadline)

    async def stats(self, *, partial: bool = False, deadline: float | None = None) -> Stats:
        """Tasks in each state. ``partial``: count what is reachable, instead of ``Incomplete``."""
        return await self._open().stats(partial=partial, deadline=deadline)

    async def list(
        self,
        *,
        status: str | Iterable[str] | None = None,
        type: str | Iterable[str] | None = None,
        queue: str | Iterable[str] | None = None,
        node: str | Iterable[str] | None = None,
        q: str | None = None,
        sort: str | None = None,
        dead: bool = False,
        partial: bool = False,
        page: int = 1_000,
        deadline: float | None = None,
    ) -> AsyncIterator[TaskInfo]:
        """The tasks of the cluster, each once, page after page; filters as in ``Queue.list``."""
        filters = list_filters(status=status, type=type, queue=queue, node=node, q=q, sort=sort, page=page)
        cursor: str | None = None
        while True:
            found, cursor = await self._open().page(filters, cursor, dead=dead, partial=partial, deadline=deadline)
            for task in found:
                yield task
            if cursor is None:
                return
