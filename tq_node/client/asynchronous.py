# ruff: noqa: A002 -- arguments are named as the fields of the API
"""The client for asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from tq_node.client import limits
from tq_node.client.batching import Accepted
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
    """A cluster of nodes, for coroutines of one event loop. ``async with`` closes it.

    :param addresses: of one node at least: ``"localhost:8080,8081,8082"``; a list of strings will
        do. The others are learnt.
    :param token: sent as ``Authorization: Bearer`` to these, and to learnt ones by TLS with a
        checked certificate alone.
    :param tls: True for HTTPS to all, or a context of your own; ``https://`` in an address means
        the same for that one.
    :param deadline: seconds that a call may take where it does not say otherwise.
    :param batching: send what is submitted at the same time as one request.
    :param discover: ask the nodes who else is there.
    :raises ValueError: one of these does not fit. No connection is made before the first call.
    """

    def __init__(
        self,
        addresses: str | Iterable[str] = "localhost:8080",
        *,
        token: str | None = None,
        tls: ssl.SSLContext | bool = False,
        deadline: float = limits.DEADLINE_S,
        batching: bool = True,
        discover: bool = True,
    ) -> None:
        self._settings = make_settings(
            addresses, token=token, tls=tls, deadline=deadline, batching=batching, discover=discover
        )
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
        """Submits that are under way have five seconds to end. Calls after this raise ``Closed``."""
        self._is_closed = True
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    @property
    def addresses(self) -> Sequence[str]:
        """Of the nodes that are known by now."""
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
        """Submit a task. When this returns, it is on the disk of every in-sync copy.

        :param type: which handler runs it.
        :param payload: anything that has a clear form in JSON, dataclasses, aware datetimes and the
            like among it.
        :param queue: where it waits.
        :param priority: 0 to 9, 9 first.
        :param delay: seconds from now until it is due.
        :param run_at: when it is due, instead of ``delay``: a datetime with a zone, RFC 3339, or
            Unix seconds.
        :param id: a name of your own: the same id with the same content again is the same task.
            Without one, the client makes it.
        :param max_attempts: 1 to 100.
        :param timeout: seconds for one attempt.
        :param backoff: pause between attempts: seconds, or a ``Backoff``.
        :param tags: up to 20 strings.
        :param deadline: seconds that this call may take, sending again at other nodes included.
        :raises Refused: it is wrong as it is; ``InvalidTask.field`` says where.
        :raises Unavailable: nobody took it within the deadline.
        :raises OutcomeUnknown: it may have been taken; the same ``id`` may be sent again.
        :raises TooManyWaiting: this client holds too many already.
        :raises TypeError: the payload has no clear form in JSON (a set, bytes, a naive datetime);
            the line says what.
        """
        engine = self._open()
        task = NewTask(type, payload, queue, priority, delay, run_at, id, max_attempts, timeout, backoff, tags)
        task_id, body = named(task)
        accepted = await engine.submit(task_id, body, deadline)
        return AsyncTask(self, accepted.task_id, accepted.status)

    async def submit_many(self, tasks: Iterable[NewTask], *, deadline: float | None = None) -> Sequence[AsyncTask]:
        """Submit all of them, in batches, reading ``tasks`` no faster than they are taken.

        :param deadline: seconds that each heap of them may take.
        :raises BatchRefused: some were not taken; its ``results`` say for each.
        """
        engine = self._open()
        outcomes: list[Accepted | TaskQueueError] = []
        handed: deque[asyncio.Task[list[Accepted | TaskQueueError]]] = deque()
        try:
            for chunk in chunks(tasks):
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
        """The task as it is now, at any node.

        :raises NotFound: there never was one.
        :raises TaskPurged: it was forgotten.
        """
        return await self._open().get(task_id, deadline)

    async def wait(self, task_id: str, timeout: float | None = None) -> TaskInfo:
        """The task, once it has completed, failed or been cancelled.

        :param timeout: seconds; None: as long as it takes.
        :raises NotFinished: a ``TimeoutError``; its ``task`` is how the task is.
        """
        return await self._open().wait(task_id, timeout)

    async def result(self, task_id: str, timeout: float | None = None) -> Any:
        """What the task's handler returned, once it has.

        :raises TaskFailed: it failed for good; ``error.task`` has every attempt.
        :raises TaskCancelled: somebody cancelled it.
        :raises NotFinished: not yet, after ``timeout`` seconds.
        """
        return await self._open().result(task_id, timeout)

    async def cancel(self, task_id: str, *, deadline: float | None = None) -> str:
        """Stop a task, also one that runs; its status then.

        :raises AlreadyFinal: it has ended.
        """
        return await self._open().cancel(task_id, deadline)

    async def retry(self, task_id: str, *, deadline: float | None = None) -> str:
        """Send a failed or cancelled task back, attempts counted from zero; its status then.

        :raises NotRetryable: it is neither.
        """
        return await self._open().retry(task_id, deadline)

    async def purge(self, task_id: str, *, deadline: float | None = None) -> None:
        """Forget a task that has ended, now; its id stays known as after its retention.

        :raises NotFinal: it has not ended.
        """
        await self._open().purge(task_id, deadline)

    # --- queues ---
    async def pause(self, queue: str = "default", *, deadline: float | None = None) -> None:
        """Nothing of this queue begins any more, on no node. What runs, runs on."""
        await self._open().switch("pause", queue, deadline)

    async def resume(self, queue: str = "default", *, deadline: float | None = None) -> None:
        """The opposite of ``pause``."""
        await self._open().switch("resume", queue, deadline)

    async def stats(self, *, partial: bool = False, deadline: float | None = None) -> Stats:
        """How many tasks there are in each state.

        :param partial: count what can be reached, instead of ``Incomplete``.
        """
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
        """The tasks of the cluster, each once, page after page.

        :param status, type, queue, node: one or several; ``"!failed"`` means all others. ``node``
            is the primary.
        :param q: text in id or type.
        :param sort: ``id``, ``created_at``, ``run_at`` or ``priority``; with ``-`` before it, the
            last first.
        :param dead: only those that failed for good.
        :param partial: what can be reached, instead of ``Incomplete``.
        :param page: how many are asked for at once; at most 10,000.
        :param deadline: seconds for one page.
        """
        filters = list_filters(status=status, type=type, queue=queue, node=node, q=q, sort=sort, page=page)
        cursor: str | None = None
        while True:
            found, cursor = await self._open().page(filters, cursor, dead=dead, partial=partial, deadline=deadline)
            for task in found:
                yield task
            if cursor is None:
                return
