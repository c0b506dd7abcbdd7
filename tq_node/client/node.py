"""One node as a client sees it: its connections, and whether it is worth asking now."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque

from tq_node.client import limits
from tq_node.client.addresses import Address
from tq_node.client.connection import Connection, Lost, in_words
from tq_node.client.credentials import Credentials
from tq_node.client.reading import Answer


class Lane:
    """At most ``connections_max`` connections to one node; further requests queue for one."""

    def __init__(self, node: Node, connections_max: int) -> None:
        self._node = node
        self._max = connections_max
        self._free: list[Connection] = []
        """A stack: the connection used last is taken first, so that surplus ones become too old."""
        self._busy: set[Connection] = set()
        self._opening = 0
        self._queue: deque[asyncio.Future[Connection | None]] = deque()
        """Waiters for a free connection; None as a result is the right to open one."""

    @property
    def is_crowded(self) -> bool:
        return bool(self._queue)

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """The answer; raises ``Lost`` after ``timeout_s``, waits for a connection included."""
        loop = self._node.loop
        connection = self._fresh()
        if connection is None:
            end_s = loop.time() + timeout_s
            connection = await self._connection(end_s)
            timeout_s = max(end_s - loop.time(), 0.001)
        self._busy.add(connection)
        try:
            return await connection.ask(request, timeout_s)
        finally:
            self._busy.discard(connection)
            if connection.is_free and not self._node.is_closed:
                connection.idle_since_s = loop.time()
                self._pass_on(connection)
            else:
                connection.close()
                self._pass_on(None)

    def close(self, *, at_once: bool) -> None:
        """Close all connections. ``at_once``: requests in progress too, else they may end."""
        for connection in self._free:
            connection.close()
        self._free.clear()
        if at_once:
            for connection in tuple(self._busy):
                connection.close()
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(Lost("the client was closed", sent=False, blames=False))

    # --- taking and returning connections ---
    def _fresh(self) -> Connection | None:
        """A free connection that is not too old; None: there is none."""
        oldest_s = self._node.loop.time() - limits.IDLE_S
        while self._free:
            connection = self._free.pop()
            if connection.is_free and connection.idle_since_s >= oldest_s:
                return connection
            connection.close()
        return None

    async def _connection(self, end_s: float) -> Connection:
        loop = self._node.loop
        if len(self._busy) + self._opening < self._max:
            self._opening += 1
        else:
            turn: asyncio.Future[Connection | None] = loop.create_future()
            timer = loop.call_at(end_s, _give_up, turn)
            self._queue.append(turn)
            try:
                passed_on = await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self._opening -= turn.result() is None
                    self._pass_on(turn.result())
                raise
            finally:
                timer.cancel()
            if passed_on is not None:
                return passed_on
        try:
            return await self._node.connect(end_s - loop.time())
        except BaseException:
            self._pass_on(None)
            raise
        finally:
            self._opening -= 1

    def _pass_on(self, connection: Connection | None) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                self._opening += connection is None
                turn.set_result(connection)
                return
        if connection is not None:
            self._free.append(connection)


def _give_up(turn: asyncio.Future[Connection | None]) -> None:
    if not turn.done():
        turn.set_exception(Lost("no free connection in time", sent=False, blames=False))


class Node:
    """A node: its connections, and whether it is up; ``is_up`` is assumed until it was tried."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        credentials: Credentials,
        *,
        is_up: bool = True,
    ) -> None:
        self.loop = loop
        self.address = address
        self.is_up = is_up
        self.is_closed = False
        """It left the cluster, or the client was closed."""
        self.not_before_s = 0.0
        """Loop time until which it has asked for a pause."""
        self._tls = credentials.tls
        self._token = credentials.token
        self._down_s = limits.DOWN_S
        self._probe: asyncio.Task[None] | None = None
        self._short = Lane(self, limits.CONNECTIONS_MAX)
        self._long = Lane(self, limits.WAITING_CONNECTIONS_MAX)
        self._bare_head = f"Host: {address}\r\n".encode("latin-1")
        """For probes, which need no token."""
        if not is_up:
            self._schedule_probe(0.0)

    def __repr__(self) -> str:
        return f"<node at {self.address}>"

    @property
    def is_crowded(self) -> bool:
        return self._long.is_crowded

    async def ask(
        self, method: bytes, path: bytes, body: bytes | None, timeout_s: float, *, waits: bool = False
    ) -> Answer:
        """The answer to a request; the outcome sets ``is_up``; raises ``Lost`` without one."""
        head = self._bare_head if self._token is None else self._bare_head + self._token.header()
        if body is None:
            length = b"Content-Length: 0\r\n" if method == b"POST" else b""
            request = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, path, head, length)
        else:
            request = b"%b %b HTTP/1.1\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
                method, path, head, len(body), body,
            )  # fmt: skip
        lane = self._long if waits else self._short
        try:
            answer = await lane.ask(request, timeout_s)
        except Lost as why:
            if why.blames and not self.is_closed:
                self._went_down()
            raise
        self._came_up()
        return answer

    async def connect(self, timeout_s: float) -> Connection:
        """Open a connection; raises ``Lost`` with ``sent`` False."""
        host, port, tls = self.address
        try:
            async with asyncio.timeout(min(max(timeout_s, 0.001), limits.CONNECT_S)):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self.loop), host, port, ssl=self._tls if tls else None
                )
        except (OSError, ssl.SSLError) as why:
            in_a_hurry = isinstance(why, TimeoutError) and timeout_s < limits.CONNECT_S
            raise Lost(in_words(why), sent=False, blames=not in_a_hurry) from why
        if self.is_closed:
            connection.close()
            raise Lost("the client was closed", sent=False, blames=False)
        return connection

    def pause(self, seconds: float) -> None:
        """Don't ask the node for ``seconds``, with jitter: it sent ``Retry-After``."""
        rolled = min(seconds, limits.RETRY_AFTER_S_MAX) * random.uniform(1.0, 1.0 + limits.JITTER)  # noqa: S311
        self.not_before_s = self.loop.time() + rolled

    def close(self, *, at_once: bool) -> None:
        """Close all connections. ``at_once``: requests in progress too, else they may end."""
        self.is_closed = True
        self._short.close(at_once=at_once)
        self._long.close(at_once=at_once)
        if self._probe is not None:
            self._probe.cancel()

    # --- up and down ---
    def _came_up(self) -> None:
        self.is_up = True
        self._down_s = limits.DOWN_S

    def _went_down(self) -> None:
        self.is_up = False
        self._schedule_probe(self._down_s)

    def _schedule_probe(self, pause_s: float) -> None:
        """Probe in the background, so that no call has to find out that the node is back."""
        if self._probe is None:
            self._probe = self.loop.create_task(self._probe_until_up(pause_s))

    async def _probe_until_up(self, pause_s: float) -> None:
        try:
            while not self.is_up and not self.is_closed:
                await asyncio.sleep(pause_s * random.uniform(1.0 - limits.JITTER, 1.0))  # noqa: S311
                self._down_s = pause_s = min(2 * self._down_s, limits.DOWN_S_MAX)
                if await self._is_alive():
                    self._came_up()
        finally:
            self._probe = None

    async def _is_alive(self) -> bool:
        """Whether the node answers ``/livez``: a stopped process still accepts connections."""
        try:
            connection = await self.connect(limits.CONNECT_S)
        except Lost:
            return False
        try:
            await connection.ask(b"GET /livez HTTP/1.1\r\n%b\r\n" % self._bare_head, limits.CONNECT_S)
        except Lost:
            return False
        else:
            return True
        finally:
            connection.close()
