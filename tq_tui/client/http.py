"""Nodes over HTTP/1.1, by aiohttp. Each node has its own connections; every call has a deadline.

aiohttp is imported at the first call, in a thread: the first screen doesn't wait for it."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import msgspec

from tq_tui.client.api import Call, NodeClient, Refused, Unreachable
from tq_tui.client.credentials import Credentials
from tq_tui.client.exposition import read_metrics
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
from tq_tui.client.shallow import shallow
from tq_tui.filters import TaskQuery

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
CONNECT_S = 1.0
WATCH_S = 2.0
"""Deadline for polls: a node that is slower is shown as down."""
ASK_S = 20.0
ORDER_S = 30.0
SILENCE_S = 40.0
"""An event stream without a byte for this long is broken; nodes send something every 15 s."""
CONNECTIONS_MAX = 16


class _Clustered(msgspec.Struct, frozen=True):
    cluster: ClusterInfo


class _Partitioned(msgspec.Struct, frozen=True):
    partitions: tuple[Partition, ...] = ()


class _Problem(msgspec.Struct, frozen=True):
    code: str = "unknown"
    title: str = ""
    detail: str = ""


class HttpCluster:
    """A ``ClusterClient``."""

    def __init__(self, credentials: Credentials | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.on_call: Callable[[Call], None] | None = None
        self.credentials = Credentials() if credentials is None else credentials
        self.clock = clock
        self._nodes: dict[str, HttpNode] = {}

    def at(self, address: str) -> NodeClient:
        if address not in self._nodes:
            self._nodes[address] = HttpNode(self, address)
        return self._nodes[address]

    async def close(self) -> None:
        nodes, self._nodes = self._nodes, {}
        await asyncio.gather(*(node.close() for node in nodes.values()))


class HttpNode:
    """A ``NodeClient``."""

    def __init__(self, owner: HttpCluster, address: str) -> None:
        self._owner = owner
        self._address = address
        self._base = address.rstrip("/") if "://" in address else f"http://{address}"
        self._session: aiohttp.ClientSession | None = None
        self._last_event_id = ""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- what is watched ---
    async def cluster(self) -> ClusterInfo:
        return (await self._watch("/cluster", _Clustered)).cluster

    async def partitions(self) -> Sequence[Partition]:
        return (await self._watch("/cluster/partitions", _Partitioned)).partitions

    async def stats(self) -> Stats:
        return await self._watch("/tasks/stats", Stats)

    async def readiness(self) -> Readiness:
        return await self._watch("/ready", Readiness, also=(503,))

    async def metrics(self) -> Metrics:
        _, body = await self._send("GET", f"{self._base}/metrics", None, WATCH_S)
        return read_metrics(body.decode("utf-8", "replace"))

    async def _watch(self, path: str, kind: type[T], also: Sequence[int] = ()) -> T:
        status, body = await self._send("GET", self._base + path, None, WATCH_S)
        return _decoded(status, body, kind, also)

    async def events(self) -> AsyncIterator[Sequence[Event]]:
        aiohttp, session = await self._ready()
        headers = self._shown()
        if self._last_event_id:
            headers["Last-Event-ID"] = self._last_event_id
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        try:
            async with session.get(f"{self._base}/tasks/events", headers=headers, timeout=patience) as response:
                if response.status != 200:
                    _decoded(response.status, await response.read(), Done, ())
                rest = b""
                while chunk := await response.content.readany():
                    *whole, rest = (rest + chunk).split(b"\n\n")
                    if heap := [event for text in whole if (event := self._event(text)) is not None]:
                        # A reset comes alone: what was before it is of no use.
                        yield () if any(event is _RESET for event in heap) else heap
        except (aiohttp.ClientError, OSError, TimeoutError) as why:
            raise Unreachable(_in_words(why)) from why

    def _event(self, text: bytes) -> Event | None:
        kind, event_id, data = b"", b"", b""
        for line in text.split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"event":
                kind = value
            elif name == b"id":
                event_id = value
            elif name == b"data":
                data = value
        if event_id:
            self._last_event_id = event_id.decode("ascii", "replace")
        if kind == b"reset":
            return _RESET
        if kind != b"task":
            return None
        try:
            return _event_decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    # --- what somebody asked for ---
    async def tasks(self, query: TaskQuery) -> TaskPage:
        return await self._ask("GET", query.path, query.parameters(), TaskPage)

    async def task(self, task_id: str) -> Task:
        return await self._ask("GET", "/tasks/status", [("id", task_id)], Task)

    async def submit(self, submission: Submission) -> Done:
        body = msgspec.json.encode(submission).decode()
        return await self._ask("POST", "/tasks/submit", [], Done, body=body, deadline_s=ORDER_S)

    async def cancel(self, task_id: str) -> Done:
        return await self._order("/tasks/cancel", ("id", task_id))

    async def retry(self, task_id: str) -> Done:
        return await self._order("/tasks/retry", ("id", task_id))

    async def pause(self, queue: str) -> Done:
        return await self._order("/tasks/pause", ("queue", queue))

    async def resume(self, queue: str) -> Done:
        return await self._order("/tasks/resume", ("queue", queue))

    async def drain(self, node: str) -> Done:
        return await self._order("/cluster/drain", ("node", node))

    async def undrain(self, node: str) -> Done:
        return await self._order("/cluster/undrain", ("node", node))

    async def remove(self, node: str) -> Done:
        return await self._order("/cluster/remove", ("node", node))

    async def shutdown(self, node: str) -> Done:
        return await self._order("/cluster/shutdown", ("node", node))

    async def rebalance(self) -> Done:
        return await self._order("/cluster/rebalance")

    async def _order(self, path: str, *parameters: tuple[str, str]) -> Done:
        return await self._ask("POST", path, parameters, Done, deadline_s=ORDER_S)

    async def _ask(
        self,
        method: str,
        path: str,
        parameters: Sequence[tuple[str, str]],
        kind: type[T],
        *,
        body: str | None = None,
        deadline_s: float = ASK_S,
    ) -> T:
        """As ``_send``, and told to ``on_call``."""
        url = self._base + path + (f"?{urlencode(parameters, safe=',!')}" if parameters else "")
        began_s, at_s = time.monotonic(), self._owner.clock()
        status, error = None, ""
        try:
            status, answer = await self._send(method, url, body, deadline_s)
            return _decoded(status, answer, kind, ())
        except (Unreachable, Refused) as why:
            error = str(why)
            raise
        finally:
            if self._owner.on_call is not None:
                took_s = time.monotonic() - began_s
                self._owner.on_call(
                    Call(method, url, body, status, error, took_s, at_s, authorized=bool(self._shown()))
                )

    async def _send(self, method: str, url: str, body: str | None, deadline_s: float) -> tuple[int, bytes]:
        aiohttp, session = await self._ready()
        patience = aiohttp.ClientTimeout(total=deadline_s, sock_connect=CONNECT_S)
        headers = self._shown()
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with session.request(method, url, data=body, headers=headers, timeout=patience) as response:
                return response.status, await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as why:
            raise Unreachable(_in_words(why)) from why
        except (aiohttp.ClientError, OSError, TimeoutError) as why:
            raise Unreachable(_in_words(why), sent=True) from why

    def _shown(self) -> dict[str, str]:
        token = self._owner.credentials.token_for(self._address)
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _ready(self) -> tuple[Any, aiohttp.ClientSession]:
        if "aiohttp" not in sys.modules:
            await asyncio.to_thread(importlib.import_module, "aiohttp")
        aiohttp = importlib.import_module("aiohttp")  # waits for another thread that is still at it
        if self._session is None:
            tls = self._owner.credentials.tls
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=True if tls is None else tls),
                # The address is what the operator said: no proxy of the environment, no cookies.
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return aiohttp, self._session


_RESET = Event(task_id="", type="", queue="", to="", at="")
_event_decoder = msgspec.json.Decoder(Event)
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def _decoded(status: int, body: bytes, kind: type[T], also: Sequence[int]) -> T:
    if status >= 300 and status not in also:
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            problem = _Problem(detail=f"HTTP {status}")
        raise Refused(status, problem.code, problem.detail or problem.title)
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind)
    decode = _decoders[kind].decode
    try:
        try:
            decoded: T = decode(body)
        except RecursionError:
            decoded = decode(shallow(body))
        return decoded
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise Refused(status, "not_understood", f"this is not what a node says: {why}") from why


def _in_words(why: BaseException) -> str:
    """For people: no addresses they know already, no class names."""
    if isinstance(why, TimeoutError):
        return "no answer in time"
    inner = getattr(why, "os_error", why)
    if isinstance(inner, ConnectionRefusedError):
        return "connection refused"
    if isinstance(inner, ConnectionResetError) or "disconnected" in str(why).lower():
        return "connection broke"
    return getattr(inner, "strerror", None) or str(why) or type(why).__name__
