"""A node that says what a test tells it to, for what real nodes do only now and then. In the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
WHOLE_S = 60.0
HANG_UP = "hang up"


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Of a submit or a batch."""
        found = self.json.get("tasks", [self.json])
        assert isinstance(found, list)
        return found


class Reply(NamedTuple):
    status: int
    body: Any
    headers: str = ""
    """Lines, each with its end."""


Script = Callable[[Request], Awaitable[Reply | str]]


def problem(status: int, code: str, headers: str = "", **fields: object) -> Reply:
    return Reply(status, {"code": code, "status": status, "title": code, "detail": f"{code} it is", **fields}, headers)


async def accept(request: Request) -> Reply | str:
    """As a node with nothing to complain of."""
    if request.path == "/tasks/submit":
        return Reply(201, {"success": True, "task_id": request.json["id"], "status": "pending", "node": "n"})
    if request.path == "/tasks/batch":
        results = [{"task_id": task["id"], "status": "pending"} for task in request.tasks]
        return Reply(200, {"success": True, "accepted": len(results), "rejected": 0, "results": results})
    return Reply(200, {"status": "ok"})


class Scripted:
    """``requests`` has all but probes, in order."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def submitted(self) -> list[str]:
        """The ids of everything that was sent here, again and again where it came again."""
        return [task["id"] for request in self.requests if request.method == "POST" for task in request.tasks]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._serving.add(me)
        try:
            await self._answer_all(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            writer.transport.abort()
            self._serving.discard(me)

    async def close(self) -> None:
        for serving in self._serving:
            serving.cancel()
        while self._serving:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)  # sockets are closed in the turn after

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Request(method, path, headers, body)
            if path != "/livez":
                self.requests.append(request)
            reply = await self.script(request)
            if not isinstance(reply, Reply):
                break
            said = json.dumps(reply.body).encode()
            writer.write(
                f"HTTP/1.1 {reply.status} X\r\n{reply.headers}Content-Length: {len(said)}\r\n\r\n".encode() + said
            )
            await writer.drain()


@contextlib.asynccontextmanager
async def scripted(
    script: Script = accept, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Scripted]:
    node = Scripted(script)
    server = await asyncio.start_server(node.serve, "127.0.0.1", port, ssl=tls)
    node.port = server.sockets[0].getsockname()[1]
    try:
        yield node
    finally:
        server.close()
        await node.close()


async def until(condition: Callable[[], object], deadline_s: float = 30.0) -> None:
    end_s = asyncio.get_running_loop().time() + deadline_s
    while not condition():
        assert asyncio.get_running_loop().time() < end_s, f"not within {deadline_s:g} s"
        await asyncio.sleep(0.005)


def run(story: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(WHOLE_S):
            return await story

    return asyncio.run(bounded())
