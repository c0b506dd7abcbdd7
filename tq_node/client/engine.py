"""Every operation of the client as a coroutine; ``Queue`` and ``AsyncQueue`` both call it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlencode

import msgspec

from tq_node import encoding
from tq_node.client import limits
from tq_node.client.addresses import Address, parse_addresses
from tq_node.client.batching import Accepted, Batcher, BatchSettings, Submit
from tq_node.client.calls import Trials, call, pause_after
from tq_node.client.codec import Codec, Undecoded, decoded, place_of
from tq_node.client.credentials import Credentials, credentials_of
from tq_node.client.errors import (
    UNREADABLE,
    AlreadyFinal,
    BatchRefused,
    Incomplete,
    NotDecoded,
    NotFinished,
    NotRetryable,
    NotUnderstood,
    OutcomeUnknown,
    TaskCancelled,
    TaskFailed,
    TaskPurged,
    TaskQueueError,
    Unavailable,
)
from tq_node.client.ids import new_id
from tq_node.client.models import NewTask, Stats, TaskInfo
from tq_node.client.roster import Roster

T = TypeVar("T")


class _Page(msgspec.Struct):
    tasks: list[TaskInfo]
    next: str | None = None
    missing: tuple[str, ...] = ()
    partitions_missing: tuple[int, ...] | None = None


class _Stats(msgspec.Struct):
    stats: Stats
    missing: tuple[str, ...] = ()
    partitions_missing: tuple[int, ...] | None = None


Gathered = TypeVar("Gathered", _Page, _Stats)


class _Partition(msgspec.Struct):
    state: str = ""
    primary: str | None = None


class _Partitions(msgspec.Struct):
    partitions: list[_Partition]


class _Done(msgspec.Struct):
    status: str = ""


_task = msgspec.json.Decoder(TaskInfo).decode
_page = msgspec.json.Decoder(_Page).decode
_stats = msgspec.json.Decoder(_Stats).decode
_partitions = msgspec.json.Decoder(_Partitions).decode
_done = msgspec.json.Decoder(_Done).decode


@dataclass(frozen=True)
class Settings:
    """Validated settings of a client."""

    addresses: tuple[Address, ...]
    credentials: Credentials
    deadline_s: float
    batch: BatchSettings
    discover: bool
    codec: Codec | None = None


def make_settings(
    addresses: str | Iterable[str],
    *,
    token: str | None,
    tls: ssl.SSLContext | bool,
    deadline: float,
    batching: bool,
    discover: bool,
    token_file: str | os.PathLike[str] | None = None,
    ca: str | os.PathLike[str] | None = None,
    codec: Codec | None = None,
) -> Settings:
    """Validate the arguments of a queue; raises ``ValueError``: bad address, token or deadline."""
    parsed = tuple(parse_addresses(addresses, tls=tls is not False))
    if not deadline > 0:
        raise ValueError(f"deadline {deadline!r}: seconds, above 0")
    credentials = credentials_of(
        token=token, token_file=token_file, tls=tls, ca=ca, is_tls_used=any(address.tls for address in parsed)
    )
    batch = BatchSettings() if batching else BatchSettings(tasks_max=1, in_flight_max=limits.SINGLES_MAX)
    return Settings(parsed, credentials, float(deadline), batch, discover, codec)


def named(task: NewTask, codec: Codec | None = None) -> tuple[str, bytes]:
    """The task's id, made if it has none, and its JSON, sent unchanged at each try: other bytes
    would be other content.

    :raises TypeError: the payload has no clear form in JSON, or a field is of another type."""
    if why := _misunderstood(task):
        raise TypeError(why)
    task_id = new_id() if task.id is None else task.id
    payload = task.payload if codec is None else codec.encode(task.payload, place_of("payload", task_id))
    encoding.check(payload)
    if task.id is None or codec is not None:
        task = msgspec.structs.replace(task, id=task_id, payload=payload)
    return task_id, encoding.encode_checked(task)


def _misunderstood(task: NewTask) -> str | None:
    """What to write instead, for mistakes that many make; None: it is none of them."""
    given: Any = task.type
    if not isinstance(given, str):
        name = getattr(given, "__name__", None) or repr(given)
        declared = getattr(given, "task_type", None)
        if declared is None:
            return f"a task's type is its name, a str, not {name}: what @task('name') declares"
        return f"a task's type is its name: submit({declared!r}, …), or {name}.submit(…)"
    spans: dict[str, Any] = {"delay": task.delay, "timeout": task.timeout}
    for field, value in spans.items():
        if isinstance(value, timedelta):
            return f"{field} is a number of seconds, not a timedelta: say {field}=….total_seconds()"
    if isinstance(task.run_at, datetime) and task.run_at.tzinfo is None:
        return "run_at: a datetime without a zone is no instant: give it a tzinfo"
    return None


class Engine:
    """The client's operations. Constructed, used and closed in one running event loop."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self.roster = Roster(
            self._loop, settings.addresses, credentials=settings.credentials, discover=settings.discover
        )
        self.batcher = Batcher(self._loop, self.roster, settings.batch)

    async def close(self) -> None:
        await self.batcher.close(limits.CLOSE_S)
        self.roster.close()

    def _end_s(self, deadline: float | None) -> float:
        return self._loop.time() + (self._settings.deadline_s if deadline is None else deadline)

    # --- submits ---
    async def submit(self, task_id: str, body: bytes, deadline: float | None) -> Accepted:
        """Submit a task; raises ``TaskQueueError``: not accepted, or the outcome is unknown."""
        resolved: asyncio.Future[None] = self._loop.create_future()

        def resolve(_: Submit) -> None:
            if not resolved.done():
                resolved.set_result(None)

        submit = Submit(task_id, body, self._end_s(deadline), resolve)
        self.batcher.add(submit)
        try:
            await resolved
        except asyncio.CancelledError:
            self.batcher.drop(submit)
            raise
        if isinstance(submit.outcome, Accepted):
            return submit.outcome
        assert submit.outcome is not None
        raise submit.outcome

    async def submit_all(
        self, tasks: list[tuple[str, bytes]], deadline: float | None
    ) -> list[Accepted | TaskQueueError]:
        """Submit many tasks; one outcome for each, in order."""
        end_s = self._end_s(deadline)
        all_resolved: asyncio.Future[None] = self._loop.create_future()
        remaining = len(tasks)

        def resolve(_: Submit) -> None:
            nonlocal remaining
            remaining -= 1
            if not remaining and not all_resolved.done():
                all_resolved.set_result(None)

        submits = [Submit(task_id, body, end_s, resolve) for task_id, body in tasks]
        for submit in submits:
            self.batcher.add(submit)
        if submits:
            try:
                await all_resolved
            except asyncio.CancelledError:
                for submit in submits:
                    self.batcher.drop(submit)
                raise
        return [submit.outcome for submit in submits if submit.outcome is not None]

    # --- one task ---
    async def get(self, task_id: str, deadline: float | None = None) -> TaskInfo:
        path = f"/tasks/status?id={quote(task_id, safe='')}".encode()
        trials = Trials(changes=False, task_id=task_id)
        body = await call(self.roster, b"GET", path, end_s=self._end_s(deadline), trials=trials)
        return decoded(self._settings.codec, _read(_task, body, task_id))

    async def wait(self, task_id: str, timeout: float | None) -> TaskInfo:
        """The task, once it has ended; raises ``NotFinished`` after ``timeout`` s (None: never)."""
        end_s = None if timeout is None else self._loop.time() + timeout
        spare_s = self._settings.deadline_s if timeout is None else limits.ATTEMPT_S
        name = quote(task_id, safe="")
        while True:
            left_s = limits.WAIT_S if end_s is None else max(0.0, end_s - self._loop.time())
            wait_s = min(left_s, limits.WAIT_CROWDED_S if self.roster.is_crowded else limits.WAIT_S)
            path = f"/tasks/status?id={name}&wait={wait_s:.3f}".encode()
            trials = Trials(changes=False, task_id=task_id)
            body = await call(
                self.roster, b"GET", path, end_s=self._loop.time() + wait_s + spare_s, trials=trials,
                attempt_s=wait_s + limits.ATTEMPT_S, waits=True,
            )  # fmt: skip
            task = _read(_task, body, task_id)
            if task.is_final:
                return decoded(self._settings.codec, task)
            if end_s is not None and self._loop.time() >= end_s:
                task = decoded(self._settings.codec, task)
                raise NotFinished(f"{task_id} is {task.status} after {timeout:g} s", task=task)

    async def result(self, task_id: str, timeout: float | None) -> object:
        return result_of(await self.wait(task_id, timeout))

    async def cancel(self, task_id: str, deadline: float | None = None) -> str:
        trials = Trials(changes=True, task_id=task_id)
        end_s = self._end_s(deadline)
        path = f"/tasks/cancel?id={quote(task_id, safe='')}".encode()
        try:
            return _status_after(await call(self.roster, b"POST", path, end_s=end_s, trials=trials), task_id)
        except AlreadyFinal:
            # An earlier try, whose answer was lost, may be what ended it.
            if trials.unknown is not None and await self._status(task_id, trials) == "cancelled":
                return "cancelled"
            raise

    async def retry(self, task_id: str, deadline: float | None = None) -> str:
        trials = Trials(changes=True, task_id=task_id)
        path = f"/tasks/retry?id={quote(task_id, safe='')}".encode()
        try:
            body = await call(self.roster, b"POST", path, end_s=self._end_s(deadline), trials=trials)
            return _status_after(body, task_id)
        except NotRetryable:
            if trials.unknown is not None:  # it is on its way again, by an earlier try whose answer was lost
                return await self._status(task_id, trials)
            raise

    async def purge(self, task_id: str, deadline: float | None = None) -> None:
        trials = Trials(changes=True, task_id=task_id)
        path = f"/tasks/purge?id={quote(task_id, safe='')}".encode()
        with contextlib.suppress(TaskPurged):  # by an earlier try, or by somebody else: what was wanted is so
            await call(self.roster, b"POST", path, end_s=self._end_s(deadline), trials=trials)

    async def _status(self, task_id: str, trials: Trials) -> str:
        try:
            return (await self.get(task_id)).status
        except TaskQueueError as why:
            raise OutcomeUnknown(trials.unknown or "", task_id=task_id) from why

    # --- queues and many tasks ---
    async def switch(self, order: str, queue: str, deadline: float | None = None) -> None:
        """Pause or resume a queue, as ``order`` says; idempotent."""
        path = f"/tasks/{order}?queue={quote(queue, safe='')}".encode()
        await call(self.roster, b"POST", path, end_s=self._end_s(deadline), trials=Trials(changes=True))

    async def stats(self, *, partial: bool, deadline: float | None = None) -> Stats:
        async def ask(end_s: float) -> _Stats:
            path = b"/tasks/stats?scope=cluster"
            return _read(_stats, await call(self.roster, b"GET", path, end_s=end_s, trials=Trials(changes=False)))

        found = await self._complete(ask, partial=partial, deadline=deadline)
        unled = found.partitions_missing or ()
        return msgspec.structs.replace(found.stats, missing=found.missing, partitions_missing=unled)

    async def page(
        self, filters: list[tuple[str, str]], cursor: str | None, *, dead: bool, partial: bool, deadline: float | None
    ) -> tuple[list[TaskInfo], str | None]:
        """One page, and the cursor of the next."""
        parameters = [*filters, ("scope", "cluster"), *([("cursor", cursor)] if cursor else [])]
        path = f"/tasks/{'dead' if dead else 'list'}?{urlencode(parameters, safe=',!')}".encode()

        async def ask(end_s: float) -> _Page:
            return _read(_page, await call(self.roster, b"GET", path, end_s=end_s, trials=Trials(changes=False)))

        found = await self._complete(ask, partial=partial, deadline=deadline)
        codec = self._settings.codec
        return [decoded(codec, task) for task in found.tasks], found.next

    async def _complete(
        self, ask: Callable[[float], Awaitable[Gathered]], *, partial: bool, deadline: float | None
    ) -> Gathered:
        """Ask until every partition has been answered for. Nodes of the release before don't say
        for which they answer. There, once others lead what a silent member led, one more answer
        covers it. Raises ``Incomplete`` at the deadline."""
        end_s = self._end_s(deadline)
        tries, missing, covered, unled = 0, frozenset[str](), frozenset[str](), tuple[int, ...]()
        while True:
            try:
                found = await ask(end_s)
                missing, unled = frozenset(found.missing), found.partitions_missing or ()
                is_whole = missing <= covered if found.partitions_missing is None else not unled
                if partial or is_whole:
                    return found
                if found.partitions_missing is None:
                    covered = missing if await self._lead_nothing(missing, end_s) else frozenset()
            except Unavailable as why:
                if missing or unled:
                    raise _incomplete(missing, unled) from why
                raise
            if covered:
                continue
            tries += 1
            pause_s = pause_after(tries)
            if self._loop.time() + pause_s >= end_s:
                raise _incomplete(missing, unled)
            await asyncio.sleep(pause_s)

    async def _lead_nothing(self, nodes: frozenset[str], end_s: float) -> bool:
        """Whether every partition is served, and none of them by these nodes."""
        body = await call(self.roster, b"GET", b"/cluster/partitions", end_s=end_s, trials=Trials(changes=False))
        return all(
            partition.state == "active" and partition.primary is not None and partition.primary not in nodes
            for partition in _read(_partitions, body).partitions
        )


def _read(decode: Callable[[bytes], T], body: bytes, task_id: str | None = None) -> T:
    """:raises NotUnderstood: it is not what a node answers, or is nested too deep to be decoded."""
    try:
        return decode(body)
    except UNREADABLE as why:
        detail = "it is nested too deep to be read here" if isinstance(why, RecursionError) else str(why)
        raise NotUnderstood(f"an answer that can't be read: {detail}", task_id=task_id) from None


def _status_after(body: bytes, task_id: str) -> str:
    """The task's status after a change; raises ``OutcomeUnknown`` for an unreadable answer."""
    try:
        return _done(body).status
    except UNREADABLE as why:
        raise OutcomeUnknown(f"an answer that can't be read: {why}", task_id=task_id) from None


def _incomplete(missing: frozenset[str], unled: tuple[int, ...]) -> Incomplete:
    names = tuple(sorted(missing))
    words = [f"no answer from {', '.join(names)}"] if names else []
    words += [f"nobody answered for {len(unled)} partitions"] if unled else []
    return Incomplete("; ".join(words), missing=names, partitions_missing=unled)


def result_of(task: TaskInfo) -> object:
    """The result of an ended task; raises ``TaskFailed`` or ``TaskCancelled`` if it has none,
    ``NotDecoded`` if it has one that the codec can't decode."""
    if task.status == "failed":
        why = f"{task.error.type}: {task.error.message}" if task.error else "failed"
        raise TaskFailed(f"{task.id}: {why}", task=task)
    if task.status == "cancelled":
        raise TaskCancelled(f"{task.id} was cancelled", task=task)
    if isinstance(task.result, Undecoded):
        raise NotDecoded(f"{task.id}: {task.result.why}", task=task)
    return task.result


def chunks(tasks: Iterable[NewTask], codec: Codec | None = None) -> Iterator[list[tuple[str, bytes]]]:
    """Ids and JSON of tasks, a list a batch; raises ``TypeError``: no JSON, or no ``NewTask``."""
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for task in tasks:
        if not isinstance(task, NewTask):
            raise TypeError(f"submit_many takes NewTask, not {type(task).__name__}")
        task_id, body = named(task, codec)
        if chunk and (len(chunk) >= limits.BATCH_TASKS_MAX or size + len(body) > limits.BATCH_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append((task_id, body))
        size += len(body)
    if chunk:
        yield chunk


def handles_of(outcomes: list[Accepted | TaskQueueError], made: Callable[[Accepted], T]) -> list[T]:
    """The handles of all accepted tasks; raises ``BatchRefused`` if an outcome is an error."""
    results = [made(outcome) if isinstance(outcome, Accepted) else outcome for outcome in outcomes]
    refused = [outcome for outcome in outcomes if not isinstance(outcome, Accepted)]
    if refused:
        raise BatchRefused(
            f"{len(refused)} of {len(outcomes)} were not taken; the first: {refused[0]}", results=results
        )
    return cast("list[T]", results)


def list_filters(*, page: int, **given: str | Iterable[str] | None) -> list[tuple[str, str]]:
    """Query parameters of the filters that are given."""
    filters = [("limit", str(page))]
    for name, words in given.items():
        if words is not None:
            filters.append((name, words if isinstance(words, str) else ",".join(words)))
    return filters
