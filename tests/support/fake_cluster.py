"""A cluster that exists only as far as the console sees it: scripted, in memory, on a clock of the caller's.

Passes the same tests as the real client. Tasks are moved by hand: ``start``, ``finish``, ``fail``. Trouble: ``stop`` and
``bring_back`` of nodes, ``leader = None``, ``refuse`` for the next thing that is asked, ``million`` for a list without an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from tq_tui.addresses import same_place
from tq_tui.client.api import Call, ClientError, NodeClient, Refused, Unreachable
from tq_tui.client.models import (
    Attempt,
    ClusterConfig,
    ClusterInfo,
    Counts,
    Done,
    Event,
    Member,
    Metrics,
    Partition,
    Progress,
    Readiness,
    Reason,
    Stats,
    Submission,
    Task,
    TaskError,
    TaskPage,
)
from tq_tui.filters import TaskQuery

T = TypeVar("T")
_replace = msgspec.structs.replace
START_S = 1_800_000_000.0


class FakeCluster:
    """A ``ClusterClient``. Node ``node-1`` is at 127.0.0.1:8080, and so on."""

    def __init__(
        self, names: Sequence[str] = ("node-1", "node-2", "node-3"), *, partition_count: int = 64, factor: int = 3
    ) -> None:
        self.on_call: Callable[[Call], None] | None = None
        self.names = list(names)
        self.now_s = START_S
        self.leader: str | None = names[0] if names else None
        self.term = 3
        self.statuses = dict.fromkeys(names, "active")
        self.stopped: set[str] = set()
        self.hanging: set[str] = set()
        self.million = 0
        self.paused: set[str] = set()
        self.refusals: list[ClientError] = []
        self.asked: list[str] = []
        self.ordered: list[tuple[str, str]] = []
        self.held: dict[str, Task] = {}
        self.metrics: dict[str, Metrics] = {
            name: Metrics(idle=16, started_at_s=START_S - 3_725, version="0.1.0") for name in names
        }
        self.partitions = [self._partition(number, factor) for number in range(partition_count)]
        self._submitted: dict[str, Submission] = {}
        self._listeners: list[asyncio.Queue[Event]] = []

    def _partition(self, number: int, factor: int) -> Partition:
        beginning = number % len(self.names)
        copies = [self.names[(beginning + step) % len(self.names)] for step in range(min(factor, len(self.names)))]
        return Partition(
            partition=number, primary=copies[0], replicas=tuple(copies[1:]), in_sync=tuple(copies), epoch=2, version=8,
            last_sequence=number * 3, committed_sequence=number * 3, lag=dict.fromkeys(copies[1:], 0),
        )  # fmt: skip

    def at(self, address: str) -> NodeClient:
        places = {f"127.0.0.1:{8080 + place}": name for place, name in enumerate(self.names)}
        return FakeNode(self, address, places.get(same_place(address)))

    async def close(self) -> None:
        self._listeners.clear()

    def address(self, name: str) -> str:
        return f"127.0.0.1:{8080 + self.names.index(name)}"

    # --- the script ---
    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_s, UTC)

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    def add(self, task_type: str = "email", status: str = "pending", **fields: Any) -> Task:
        """A task that is there, in this state."""
        number = len(self.held)
        task_id = fields.pop("id", f"task-{number:04}")
        partition = self.partitions[number % len(self.partitions)] if self.partitions else Partition(0)
        known: dict[str, Any] = {
            "payload": {"to": "user@example.com", "number": number},
            "created_at": self.now - timedelta(seconds=number),
            "run_at": self.now - timedelta(seconds=number),
            "node": partition.primary,
            "partition": partition.partition,
            "version": 1,
        }
        task = Task(id=task_id, type=task_type, status=status, **(known | fields))
        self.held[task_id] = task
        return task

    def start(self, task_id: str) -> None:
        task = self.held[task_id]
        self._move(task, "processing", attempt=task.attempt + 1, started_at=self.now, worker=task.node)

    def finish(self, task_id: str, result: Any = "done") -> None:
        self._end(task_id, "completed", result=result, progress=Progress(1.0))

    def fail(self, task_id: str, message: str = "it broke") -> None:
        error = TaskError("ValueError", message, f"Traceback (most recent call last):\n  …\nValueError: {message}")
        self._end(task_id, "failed", error=error)

    def _end(self, task_id: str, outcome: str, **changes: Any) -> None:
        task = self.held[task_id]
        one = Attempt(task.attempt, task.worker, task.started_at, self.now, outcome, changes.get("error"))
        self._move(task, outcome, completed_at=self.now, attempts=(*task.attempts, one), **changes)

    def _move(self, task: Task, to: str, **changes: Any) -> Task:
        moved = _replace(task, status=to, version=task.version + 1, **changes)
        self.held[task.id] = moved
        self._tell(moved, task.status)
        return moved

    def _tell(self, task: Task, before: str | None) -> None:
        event = Event(
            task_id=task.id, type=task.type, queue=task.queue, to=task.status, at=self.now.isoformat().replace("+00:00", "Z"),
            before=before, attempt=task.attempt, node=task.node, partition=task.partition,
        )  # fmt: skip
        self.tell(event)

    def tell(self, event: Event) -> None:
        """To all that listen, whether there is such a task or not."""
        for listener in self._listeners:
            listener.put_nowait(event)

    def stop(self, name: str, *, found_out: bool = True) -> None:
        """As by kill -9. ``found_out``: the others have noticed, and elected and moved what they had to."""
        self.stopped.add(name)
        if not found_out:
            return
        self.statuses[name] = "down"
        left = [other for other in self.names if other not in self.stopped]
        if len(left) * 2 <= len(self.names):
            self.leader = None
            return
        if self.leader == name:
            self.leader, self.term = left[0], self.term + 1
        for number, entry in enumerate(self.partitions):
            in_sync = tuple(one for one in entry.in_sync if one != name)
            primary = in_sync[0] if entry.primary == name and in_sync else entry.primary
            copies = [one for one in (entry.primary, *entry.replicas) if one and one != primary]
            self.partitions[number] = _replace(
                entry,
                primary=primary,
                in_sync=in_sync,
                replicas=tuple(copies),
                epoch=entry.epoch + (primary != entry.primary),
            )
        for task in list(self.held.values()):
            self.held[task.id] = _replace(task, node=self.partitions[task.partition].primary)

    def bring_back(self, name: str) -> None:
        self.stopped.discard(name)
        self.statuses[name] = "active"
        self.leader = self.leader or name
        for number, entry in enumerate(self.partitions):
            if name in entry.replicas and name not in entry.in_sync:
                self.partitions[number] = _replace(entry, in_sync=(*entry.in_sync, name))

    def refuse(self, why: ClientError) -> None:
        """The next thing that somebody asks for is answered by this."""
        self.refusals.append(why)

    # --- what nodes do ---
    def listing(self, query: TaskQuery) -> TaskPage:
        """A page; a cursor is the number of the first row."""
        first = int(query.cursor or 0)
        if self.million:
            last = min(self.million, first + query.limit)
            page = [self._virtual(number) for number in range(first, last)]
            return TaskPage(tuple(page), str(last) if last < self.million else None)
        reverse = query.sort.startswith("-")
        field = query.sort.removeprefix("-")
        tasks = sorted(
            (task for task in self.held.values() if query.admits(task)),
            key=lambda task: (getattr(task, field), task.id),
            reverse=reverse,
        )
        page = tasks[first : first + query.limit]
        return TaskPage(tuple(page), str(first + query.limit) if len(tasks) > first + query.limit else None)

    def _virtual(self, number: int) -> Task:
        status = ("completed", "completed", "processing", "pending", "failed")[number % 5]
        when = self.now - timedelta(seconds=number)
        return Task(
            id=f"task-{number:07}", type=("email", "image", "report")[number % 3], status=status, payload={"n": number},
            created_at=when, run_at=when, started_at=when if status != "pending" else None, attempt=int(status != "pending"),
            completed_at=when + timedelta(seconds=1) if status in ("completed", "failed") else None,
            node=self.names[number % len(self.names)], partition=number % 64,
            error=TaskError("ValueError", "it broke") if status == "failed" else None,
        )  # fmt: skip

    def counted(self, tasks: Iterable[Task]) -> Counts:
        if self.million:
            fifth = self.million // 5 // len(self.names)
            return Counts(total=fifth * 5, completed=fifth * 2, processing=fifth, pending=fifth, failed=fifth)
        states = [task.status for task in tasks]
        return Counts(total=len(states), **{state: states.count(state) for state in set(states)})

    def submit(self, submission: Submission) -> Done:
        before = self._submitted.get(submission.id)
        if before is not None and before != submission:
            raise Refused(409, "id_conflict", f"{submission.id} was submitted with other content")
        if before is None:
            self._submitted[submission.id] = submission
            waits = submission.delay or 0
            task = self.add(
                submission.type, "scheduled" if waits else "pending", id=submission.id, payload=submission.payload,
                queue=submission.queue or "default", priority=5 if submission.priority is None else submission.priority,
                created_at=self.now, run_at=self.now + timedelta(seconds=waits), max_attempts=submission.max_attempts or 3,
                tags=submission.tags or {},
            )  # fmt: skip
            self._tell(task, None)
        task = self.held[submission.id]
        return Done(task_id=task.id, status=task.status, node=task.node or "")

    def cancel(self, task_id: str) -> Done:
        task = self.find(task_id)
        if task.is_final:
            raise Refused(409, "already_final", f"the task is {task.status}")
        self._move(task, "cancelled", completed_at=self.now)
        return Done(task_id=task_id, status="cancelled")

    def retry(self, task_id: str) -> Done:
        task = self.find(task_id)
        if not task.is_retryable:
            raise Refused(409, "not_retryable", f"the task is {task.status}")
        self._move(task, "pending", attempt=0, completed_at=None, started_at=None, error=None)
        return Done(task_id=task_id, status="pending")

    def find(self, task_id: str) -> Task:
        if self.million and task_id.startswith("task-"):
            return self._virtual(int(task_id.removeprefix("task-")))
        if task_id not in self.held:
            raise Refused(404, "not_found", f"no task {task_id}")
        return self.held[task_id]

    def pause(self, queue: str) -> Done:
        self.paused.add(queue)
        return Done(queue=queue, status="paused")

    def resume(self, queue: str) -> Done:
        self.paused.discard(queue)
        return Done(queue=queue, status="active")

    def known(self, node: str) -> Done:
        if node not in self.names:
            raise Refused(404, "not_found", f"no node {node}")
        return Done(node=node)

    def drain(self, node: str) -> Done:
        done = self.known(node)
        self.statuses[node] = "draining"
        return done

    def undrain(self, node: str) -> Done:
        done = self.known(node)
        self.statuses[node] = "active"
        return done

    def shutdown(self, node: str) -> Done:
        done = self.known(node)
        self.stop(node)
        return done

    async def listen(self) -> AsyncIterator[Sequence[Event]]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            while True:
                yield [await queue.get()]
        finally:
            if queue in self._listeners:
                self._listeners.remove(queue)


class FakeNode:
    """A ``NodeClient``. ``name`` None: nobody is at this address."""

    def __init__(self, cluster: FakeCluster, address: str, name: str | None) -> None:
        self._cluster, self._address, self._name = cluster, address, name

    async def _answer(self) -> str:
        """What every call begins with: is anybody there?"""
        await asyncio.sleep(0)
        if self._name is None or self._name in self._cluster.stopped:
            raise Unreachable("connection refused")
        if self._name in self._cluster.hanging:
            await asyncio.sleep(3_600)
        return self._name

    async def cluster(self) -> ClusterInfo:
        await self._answer()
        fake = self._cluster
        members = tuple(
            Member(name, fake.address(name), fake.statuses[name], True, {"http": fake.address(name), "peer": ""})
            for name in fake.names
        )
        return ClusterInfo(
            "fake",
            "taskqueue",
            members,
            fake.leader,
            fake.term,
            ClusterConfig(len(fake.partitions), min(3, len(members))),
        )

    async def partitions(self) -> Sequence[Partition]:
        await self._answer()
        return tuple(self._cluster.partitions)

    async def stats(self) -> Stats:
        name = await self._answer()
        counts = self._cluster.counted(task for task in self._cluster.held.values() if task.node == name)
        return Stats(name, counts, counts)

    async def readiness(self) -> Readiness:
        await self._answer()
        if self._cluster.leader is None:
            return Readiness(False, (Reason("no_controller", "nobody leads"),))
        return Readiness(True)

    async def metrics(self) -> Metrics:
        name = await self._answer()
        return _replace(self._cluster.metrics[name], paused=tuple(sorted(self._cluster.paused)))

    async def events(self) -> AsyncIterator[Sequence[Event]]:
        name = await self._answer()
        async for heap in self._cluster.listen():
            if name in self._cluster.stopped:
                raise Unreachable("connection broke")
            if heap[0].node == name or heap[0].node is None:
                yield heap

    async def _asked(
        self,
        method: str,
        path: str,
        answer: Callable[[], T],
        parameters: Sequence[tuple[str, str]] = (),
        body: str | None = None,
    ) -> T:
        """Trouble first, as scripted; else the answer. Told to ``on_call`` either way."""
        fake = self._cluster
        status, error = None, ""
        fake.asked.append(f"{method} {path}")
        if method == "POST":
            fake.ordered.append((path, parameters[0][1] if parameters else body or ""))
        try:
            await self._answer()
            if fake.refusals:
                raise fake.refusals.pop(0)
            answered = answer()
            status = 200
        except ClientError as why:
            status, error = getattr(why, "status", None), str(why)
            raise
        finally:
            url = f"http://{self._address}{path}" + (f"?{urlencode(parameters, safe=',!')}" if parameters else "")
            if fake.on_call is not None:
                fake.on_call(Call(method, url, body, status, error, 0.004, fake.now_s))
        return answered

    async def tasks(self, query: TaskQuery) -> TaskPage:
        return await self._asked("GET", query.path, lambda: self._cluster.listing(query), query.parameters())

    async def task(self, task_id: str) -> Task:
        return await self._asked("GET", "/tasks/status", lambda: self._cluster.find(task_id), [("id", task_id)])

    async def submit(self, submission: Submission) -> Done:
        body = msgspec.json.encode(submission).decode()
        return await self._asked("POST", "/tasks/submit", lambda: self._cluster.submit(submission), (), body)

    async def cancel(self, task_id: str) -> Done:
        return await self._asked("POST", "/tasks/cancel", lambda: self._cluster.cancel(task_id), [("id", task_id)])

    async def retry(self, task_id: str) -> Done:
        return await self._asked("POST", "/tasks/retry", lambda: self._cluster.retry(task_id), [("id", task_id)])

    async def pause(self, queue: str) -> Done:
        return await self._asked("POST", "/tasks/pause", lambda: self._cluster.pause(queue), [("queue", queue)])

    async def resume(self, queue: str) -> Done:
        return await self._asked("POST", "/tasks/resume", lambda: self._cluster.resume(queue), [("queue", queue)])

    async def drain(self, node: str) -> Done:
        return await self._asked("POST", "/cluster/drain", lambda: self._cluster.drain(node), [("node", node)])

    async def undrain(self, node: str) -> Done:
        return await self._asked("POST", "/cluster/undrain", lambda: self._cluster.undrain(node), [("node", node)])

    async def remove(self, node: str) -> Done:
        return await self._asked("POST", "/cluster/remove", lambda: self._cluster.known(node), [("node", node)])

    async def shutdown(self, node: str) -> Done:
        return await self._asked("POST", "/cluster/shutdown", lambda: self._cluster.shutdown(node), [("node", node)])

    async def rebalance(self) -> Done:
        return await self._asked("POST", "/cluster/rebalance", lambda: Done(node=self._name or ""))
