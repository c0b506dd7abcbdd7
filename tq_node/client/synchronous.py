# ruff: noqa: A002 -- arguments are named as the fields of the API
"""The client for threads."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from tq_node.client import limits
from tq_node.client.batching import Accepted
from tq_node.client.codec import Codec
from tq_node.client.engine import chunks, handles_of, list_filters, make_settings, named
from tq_node.client.errors import Closed, TaskQueueError
from tq_node.client.models import Backoff, NewTask, Stats, TaskInfo
from tq_node.client.thread import LoopThread


class Task:
    """A submitted task; ``status`` as of the answer to the submit."""

    __slots__ = ("_queue", "id", "status")

    def __init__(self, queue: Queue, task_id: str, status: str) -> None:
        self._queue = queue
        self.id = task_id
        self.status = status

    def __repr__(self) -> str:
        return f"<Task {self.id}>"

    def get(self, *, deadline: float | None = None) -> TaskInfo:
        """As ``Queue.get``."""
        return self._queue.get(self.id, deadline=deadline)

    def wait(self, timeout: float | None = None) -> TaskInfo:
        """As ``Queue.wait``."""
        return self._queue.wait(self.id, timeout)

    def result(self, timeout: float | None = None) -> Any:
        """As ``Queue.result``."""
        return self._queue.result(self.id, timeout)

    def cancel(self, *, deadline: float | None = None) -> str:
        """As ``Queue.cancel``."""
        return self._queue.cancel(self.id, deadline=deadline)

    def retry(self, *, deadline: float | None = None) -> str:
        """As ``Queue.retry``."""
        return self._queue.retry(self.id, deadline=deadline)

    def purge(self, *, deadline: float | None = None) -> None:
        """As ``Queue.purge``."""
        self._queue.purge(self.id, deadline=deadline)


class Queue:
    """A cluster of nodes, for any number of threads; ``with``, or the process's end, closes it.

    What several threads submit at the same time is sent together. A forked child begins with
    connections of its own. No connection is made before the first call.

    :param addresses: of one node at least: ``"localhost:8080,8081,8082"``, or a list of strings.
        The other nodes are discovered.
    :param token: sent as ``Authorization: Bearer`` to these addresses, and to discovered ones only
        by TLS, where the authority that was given vouches for them.
    :param token_file: holds the token, and is read again when it changes. Neither: ``TQ_TOKEN``.
    :param tls: True for HTTPS to all, or a context; ``https://`` before an address: to that one.
    :param ca: file of the authority that nodes' certificates are of. Without: ``TQ_CA``, else the
        system's.
    :param deadline: seconds that a call may take, unless the call says otherwise.
    :param batching: send what is submitted at the same time as one request.
    :param discover: ask the nodes for the members of the cluster.
    :param codec: encodes each payload before it is sent, and decodes payloads and results of tasks
        that are read; what it can't decode is an ``Undecoded``. None: they are sent as they are.
    :raises ValueError: an argument does not fit."""

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
        self._is_closed = False
        self._begin_afresh()
        _queues.add(self)

    def _begin_afresh(self) -> None:
        self._starting = threading.Lock()
        self._thread: LoopThread | None = None
        self._end: weakref.finalize[[], Queue] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> LoopThread:
        if self._thread is not None:
            return self._thread
        with self._starting:
            if self._is_closed:
                raise Closed("the queue is closed")
            if self._thread is None:
                thread = LoopThread(self._settings)
                self._end = weakref.finalize(self, thread.close)  # also at the interpreter's end
                self._thread = thread
            return self._thread

    def close(self) -> None:
        """Close the queue: open submits have five seconds to end; later calls raise ``Closed``."""
        with self._starting:
            self._is_closed = True
            self._thread, end = None, self._end
        if end is not None:
            end()

    @property
    def addresses(self) -> Sequence[str]:
        """Addresses of the nodes known by now."""
        if self._thread is not None:
            return self._thread.engine.roster.addresses
        return [str(address) for address in self._settings.addresses]

    # --- submit ---
    def submit(
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
    ) -> Task:
        """Submit a task. When this returns, it is on the disk of every in-sync copy.

        :param type: which handler runs it.
        :param payload: whatever has a clear form in JSON, also dataclasses and aware datetimes.
        :param priority: 0 to 9, 9 first.
        :param delay: seconds from now until it is due.
        :param run_at: when it is due, instead of ``delay``: a datetime with a zone, RFC 3339, or
            Unix seconds.
        :param id: a name of your own: the same id with the same content is the same task. None:
            the client makes one.
        :param max_attempts: 1 to 100.
        :param timeout: seconds for one attempt.
        :param backoff: pause between attempts: seconds, or a ``Backoff``.
        :param tags: up to 20 strings.
        :param deadline: seconds that this call may take, all its tries together.
        :raises Refused: it is wrong as it is; ``InvalidTask.field`` says where.
        :raises Unavailable: no node accepted it within the deadline.
        :raises OutcomeUnknown: it may have been accepted; the same ``id`` may be sent again.
        :raises TooManyWaiting: this client holds too many already.
        :raises TypeError: the payload has no clear JSON form (a set, bytes, a naive datetime)."""
        task = NewTask(type, payload, queue, priority, delay, run_at, id, max_attempts, timeout, backoff, tags)
        return self.submit_new(task, deadline)

    def submit_new(self, task: NewTask, deadline: float | None = None) -> Task:
        """As ``submit``, of a task whose fields are put together already."""
        task_id, body = named(task, self._settings.codec)
        accepted = self._open().submit(task_id, body, deadline)
        return Task(self, accepted.task_id, accepted.status)

    async def submit_new_async(self, task: NewTask, deadline: float | None = None) -> Task:
        """As ``submit_new``, from an asyncio loop, which goes on meanwhile."""
        task_id, body = named(task, self._settings.codec)
        thread = self._open()
        accepted = await asyncio.wrap_future(thread.begin(thread.engine.submit(task_id, body, deadline)))
        return Task(self, accepted.task_id, accepted.status)

    def submit_many(self, tasks: Iterable[NewTask], *, deadline: float | None = None) -> Sequence[Task]:
        """Submit many tasks in batches; ``tasks`` is read no faster than they are accepted.

        :param deadline: seconds for each batch.
        :raises BatchRefused: some were not accepted; its ``results`` say for each."""
        thread = self._open()
        outcomes: list[Accepted | TaskQueueError] = []
        answered: list[Accepted | TaskQueueError]
        handed: deque[Future[list[Accepted | TaskQueueError]]] = deque()
        try:
            for chunk in chunks(tasks, self._settings.codec):
                if len(handed) >= limits.CHUNKS_MAX:
                    answered = thread.result(handed[0])
                    outcomes += answered
                    handed.popleft()
                handed.append(thread.begin(thread.engine.submit_all(chunk, deadline)))
            while handed:
                answered = thread.result(handed[0])
                outcomes += answered
                handed.popleft()
        finally:
            for left in handed:
                left.cancel()
        return handles_of(outcomes, lambda taken: Task(self, taken.task_id, taken.status))

    # --- one task ---
    def get(self, task_id: str, *, deadline: float | None = None) -> TaskInfo:
        """The task as it is now.

        :raises NotFound: there never was one.
        :raises TaskPurged: it was forgotten."""
        thread = self._open()
        return thread.run(thread.engine.get(task_id, deadline))

    def wait(self, task_id: str, timeout: float | None = None) -> TaskInfo:
        """The task, once it has completed, failed or been cancelled.

        :param timeout: seconds; None: as long as it takes.
        :raises NotFinished: a ``TimeoutError``; its ``task`` is how the task is."""
        thread = self._open()
        return thread.run(thread.engine.wait(task_id, timeout))

    def result(self, task_id: str, timeout: float | None = None) -> Any:
        """What the task's handler returned, once it has.

        :raises TaskFailed: it failed for good; ``error.task`` has every attempt.
        :raises TaskCancelled: somebody cancelled it.
        :raises NotDecoded: the codec can't decode it.
        :raises NotFinished: not yet, after ``timeout`` seconds."""
        thread = self._open()
        return thread.run(thread.engine.result(task_id, timeout))

    def cancel(self, task_id: str, *, deadline: float | None = None) -> str:
        """Cancel a task, also one that runs; returns its status then.

        :raises AlreadyFinal: it has ended."""
        thread = self._open()
        return thread.run(thread.engine.cancel(task_id, deadline))

    def retry(self, task_id: str, *, deadline: float | None = None) -> str:
        """Put a failed or cancelled task back, attempts counted from zero; returns its status then.

        :raises NotRetryable: it is neither."""
        thread = self._open()
        return thread.run(thread.engine.retry(task_id, deadline))

    def purge(self, task_id: str, *, deadline: float | None = None) -> None:
        """Forget a task that has ended; its id stays known, as after its retention.

        :raises NotFinal: it has not ended."""
        thread = self._open()
        thread.run(thread.engine.purge(task_id, deadline))

    # --- queues ---
    def pause(self, queue: str = "default", *, deadline: float | None = None) -> None:
        """Pause a queue on all nodes: none of its tasks starts; those that run go on."""
        thread = self._open()
        thread.run(thread.engine.switch("pause", queue, deadline))

    def resume(self, queue: str = "default", *, deadline: float | None = None) -> None:
        """Let the tasks of a paused queue start again."""
        thread = self._open()
        thread.run(thread.engine.switch("resume", queue, deadline))

    def stats(self, *, partial: bool = False, deadline: float | None = None) -> Stats:
        """Tasks in each state. ``partial``: count what is reachable, instead of ``Incomplete``."""
        thread = self._open()
        return thread.run(thread.engine.stats(partial=partial, deadline=deadline))

    def list(
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
    ) -> Iterator[TaskInfo]:
        """The tasks of the cluster, each once, page after page.

        :param status, type, queue, node: one or several; ``"!failed"``: all others. ``node`` is the
            primary.
        :param q: text in id or type.
        :param sort: ``id``, ``created_at``, ``run_at``, ``priority``; ``-`` before it: descending.
        :param dead: only tasks that failed for good.
        :param partial: list what can be reached, instead of ``Incomplete``.
        :param page: tasks in one answer; at most 10,000.
        :param deadline: seconds for one page."""
        filters = list_filters(status=status, type=type, queue=queue, node=node, q=q, sort=sort, page=page)
        cursor: str | None = None
        while True:
            thread = self._open()
            found, cursor = thread.run(
                thread.engine.page(filters, cursor, dead=dead, partial=partial, deadline=deadline)
            )
            yield from found
            if cursor is None:
                return


_queues: weakref.WeakSet[Queue] = weakref.WeakSet()
_inherited: list[LoopThread] = []


def _after_fork() -> None:
    """Reset all queues in a forked child. The parent's sockets and its epoll are kept open and
    unused: closing them would cut the parent's loop off."""
    for queue in _queues:
        if queue._thread is not None:
            _inherited.append(queue._thread)
        if queue._end is not None:
            queue._end.detach()
        queue._begin_afresh()


os.register_at_fork(after_in_child=_after_fork)
