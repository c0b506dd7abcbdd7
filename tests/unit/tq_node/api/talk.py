"""Real HTTP bytes through the real site, in memory: a ``Clock`` for a reactor and a ``StringTransport`` for each connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.support.memory_queue import MemoryQueue
from tests.support.memory_tokens import MemoryTokens
from tq_node.api import ApiSettings, make_site
from tq_node.api.audit import AuditLog
from tq_node.api.http.load_shedding import TICK_S
from tq_node.observe.metrics import Metrics
from tq_node.slices import Slices

NOW_S = 1_700_000_000.0


class Reply(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        """Checks that this is a whole problem, and gives its code."""
        problem = self.json
        assert self.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code", "request_id"} <= problem.keys()
        assert problem["status"] == self.status
        assert problem["type"] == f"/problems/{problem['code']}"
        assert problem["request_id"] == self.headers["x-request-id"]
        assert "Traceback" not in problem["detail"]
        code: str = problem["code"]
        return code


class Transport(StringTransport):
    """Tells its protocol when the connection ends, as a socket does."""

    protocol: Any
    aborted = False
    lost = False
    is_half_closed = False

    def loseConnection(self) -> None:
        super().loseConnection()
        self.hang_up()

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()
        self.hang_up()

    def loseWriteConnection(self) -> None:
        self.is_half_closed = True

    def hang_up(self) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(ConnectionLost()))


class Connection:
    """One client."""

    def __init__(self, world: World) -> None:
        channel = world.site.buildProtocol(world.peer)
        assert channel is not None, "the site takes no more connections"
        self.channel = channel
        self.transport = Transport(peerAddress=world.peer)
        self.transport.protocol = channel
        channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def has_ended(self) -> bool:
        """Whether it has been said that nothing follows."""
        return self.transport.lost or self.transport.is_half_closed

    def is_gone(self) -> bool:
        return self.transport.lost

    def was_reset(self) -> bool:
        return self.transport.aborted

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", *(["Host: localhost"] if "Host" not in headers else [])]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None and "Content_Length" not in headers:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    @property
    def received(self) -> bytes:
        value: bytes = self.transport.value()
        return value

    def replies(self) -> list[Reply]:
        """Every complete answer so far."""
        return replies_in(self.received)


def replies_in(rest: bytes) -> list[Reply]:
    """The complete answers that these bytes are."""
    replies = []
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        body, rest = rest[:length], rest[length:]
        replies.append(Reply(status, headers, body))
    return replies


class World:
    """``peer`` is where the next connections come from."""

    def __init__(self, *, nodes: Sequence[str] | None = None, audit: AuditLog | None = None, **settings: Any) -> None:
        """:param nodes: the cluster's names, ``node-1`` among them: it is the one that is asked."""
        self.clock = Clock()
        self.clock.advance(NOW_S)
        self.queue = MemoryQueue(self.clock, nodes=nodes)
        self.peer: IAddress = IPv4Address("TCP", "127.0.0.1", 50_000)
        self.tokens = MemoryTokens(self.queue)
        self.metrics = Metrics(node="node-1", version="1.2.3")
        self.shutdowns: list[float] = []
        self.site = make_site(
            self.queue,
            ApiSettings(version="1.2.3", **settings),
            self.metrics,
            shutdown=lambda: self.shutdowns.append(self.clock.seconds()),
            reactor=self.clock,
            now_s=self.clock.seconds,
            slices=Slices(self.clock, now_s=self.clock.seconds),  # never cut: in virtual time nothing takes any
            audit=audit,
            wall_us=lambda: round(self.clock.seconds() * 1_000_000),
        )
        self.tokens.on_change = self.site.server.authenticator.forget

    def connect(self) -> Connection:
        return Connection(self)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; what is not bytes is sent as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = msgspec.json.encode(body)
        connection = self.connect()
        connection.request(method, path, body, **headers)
        self.clock.advance(0)
        if not connection.received:
            self.clock.advance(TICK_S)  # a refusal may wait for its turn
        if method == "HEAD":
            head = connection.received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            connection.transport.hang_up()
            return Reply(
                int(head[0].split(" ")[1]),
                {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:])},
                b"",
            )
        (reply,) = connection.replies()
        connection.transport.hang_up()
        return reply

    def get(self, path: str, **headers: str) -> Reply:
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Reply:
        return self.call("POST", path, body, **headers)

    def submit(self, **fields: Any) -> str:
        """Submit a task that is accepted; its id."""
        reply = self.post("/tasks/submit", {"type": "email", **fields})
        assert reply.status in (200, 201), reply
        task_id: str = reply.json["task_id"]
        return task_id

    def close(self) -> None:
        """End what is open, and show that nothing is left ticking."""
        for channel in list(self.site.server.connections.open):
            channel.transport.hang_up()  # type: ignore[attr-defined]  # an ApiChannel has one
        self.clock.pump([TICK_S] * 3)
        assert self.clock.getDelayedCalls() == []
        assert self.site.server.in_flight == 0
        assert self.site.server.waiting == 0
        assert self.site.server.bodies_held_bytes == 0
        assert self.queue.watchers == 0
