"""The fast path: requests of the most called routes, answered without a ``twisted.web`` Request.

What a Request costs is most of what a submit costs. ``FastPath.read`` takes a request only if it is
whole, alone and plain in every way: a fast route, HTTP/1.1, known headers once each, a host that is
this node, a caller that may, a body of the length it says. Anything else, right or wrong, goes to
``twisted.web`` as it came, where it is judged. So the two ways in can't differ in what they refuse,
and the handlers are the same."""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.api.access.access import Caller
from tq_node.api.access.authenticator import Authenticator
from tq_node.api.http.exchange import JSON, request_id_of, whole_head
from tq_node.api.http.lifecycle import RequestLifecycle
from tq_node.api.http.request_head import HEAD_BYTES_MAX, KnownHosts
from tq_node.api.http.server_state import ServerState
from tq_node.api.routes import Handler, Route

HELD_BYTES_MAX = 65_536
"""A request up to this size, head and body, is put together here when it arrives in pieces."""
_HEADS_CACHED_MAX = 256
_CACHED_HEAD_BYTES_MAX = 1_024
_PLAIN_HEADERS = frozenset(
    {
        b"host",
        b"user-agent",
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"content-type",
        b"content-length",
        b"idempotency-key",
        b"x-request-id",
    }
)
"""Headers of a plain request; of these only the length changes how the request is read."""
_is_value = re.compile(rb"[^\x00\r\n]*").fullmatch
_is_number = re.compile(rb"[0-9]{1,6}").fullmatch
_is_query = re.compile(rb"id=([A-Za-z0-9._:-]{1,%d})" % limits.TASK_ID_CHARS_MAX).fullmatch


class PlainHead(msgspec.Struct, frozen=True):
    """The header lines of a request, parsed. Cached, for clients repeat their header lines."""

    headers: dict[bytes, bytes]
    """Names are in lower case."""
    length: int | None
    """Of the body; None: there is no ``Content-Length``."""
    is_plain_json: bool
    """As in ``Exchange``."""
    authorization: bytes | None


class PlainRequest(msgspec.Struct, frozen=True):
    """A whole request of a fast route."""

    route: Route
    head: PlainHead
    body: bytes
    task_id: str | None
    """All that a GET asks for; None: the request is a POST."""
    caller: Caller


class NoRequest(enum.Enum):
    """Why ``FastPath.read`` finds no request in what has arrived."""

    INCOMPLETE = enum.auto()
    """A plain request has begun: read again with what follows."""
    NOT_PLAIN = enum.auto()
    """``twisted.web`` reads it."""


class FastPath:
    """Reads requests of the fast routes from a connection's bytes; caches heads seen lately."""

    def __init__(
        self, routes: Sequence[Route], body_bytes_max: int, hosts: KnownHosts, authenticator: Authenticator
    ) -> None:
        self._hosts = hosts
        self._authenticator = authenticator
        self._body_bytes_max = body_bytes_max
        self._posts: dict[bytes, Route] = {}
        self._gets: dict[bytes, Route] = {}
        for route in routes:
            path = route.path.encode("ascii")
            if route.method == "POST":
                self._posts[b"POST %b HTTP/1.1" % path] = route
            else:
                self._gets[b"GET %b" % path] = route
        self._handlers = {(route.method.encode("ascii"), route.path.encode("ascii")): route.handler for route in routes}
        self._heads: dict[bytes, PlainHead] = {}

    def handler_of(self, method: bytes, path: bytes) -> Handler | None:
        """The handler of a fast route, for a request that is not plain enough for ``read``."""
        return self._handlers.get((method, path))

    def read(self, data: bytes) -> PlainRequest | NoRequest:
        """The request that ``data`` is, from its first to its last byte."""
        line_end = data.find(b"\r\n")
        line = data[:line_end]  # without a line end, the end of the head isn't found below
        task_id = None
        route = self._posts.get(line)
        if route is None:
            target, _, rest = line.partition(b"?")
            route = self._gets.get(target)
            query = None if route is None or rest[-9:] != b" HTTP/1.1" else _is_query(rest[:-9])
            if route is None or query is None:
                return NoRequest.NOT_PLAIN
            task_id = query[1].decode("ascii")
        head_end = data.find(b"\r\n\r\n", line_end)
        if head_end < 0 or head_end > HEAD_BYTES_MAX:
            return NoRequest.NOT_PLAIN
        lines = data[line_end + 2 : head_end]
        head = self._heads.get(lines) or self._parse(lines)
        if head is None:
            return NoRequest.NOT_PLAIN
        authenticator = self._authenticator
        now_s = authenticator.now_s
        caller = authenticator.callers.get(head.authorization)
        if (
            caller is None
            or route.access not in caller.may
            or not authenticator.from_s <= now_s() < authenticator.until_s
        ):
            found = authenticator.caller_of(head.authorization, route.access)
            if not isinstance(found, Caller):
                return NoRequest.NOT_PLAIN
            caller = found
        length = head.length
        if length is None or task_id is not None:
            is_read = length is None and task_id is not None and len(data) == head_end + 4
            return PlainRequest(route, head, b"", task_id, caller) if is_read else NoRequest.NOT_PLAIN
        body = data[head_end + 4 :]
        missing = length - len(body)
        # A large body is admitted by its bytes; no socket gives so many at a time anyway.
        if missing == 0 and length <= limits.LARGE_BODY_BYTES:
            return PlainRequest(route, head, body, None, caller)
        # What is too long is refused by its length alone, so at once.
        fits = length <= self._body_bytes_max and head_end + length < HELD_BYTES_MAX
        return NoRequest.INCOMPLETE if missing > 0 and fits else NoRequest.NOT_PLAIN

    def _parse(self, lines: bytes) -> PlainHead | None:
        """The head of these header lines; None: it is not plain."""
        headers: dict[bytes, bytes] = {}
        for line in lines.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.lower()
            if not colon or name not in _PLAIN_HEADERS or name in headers or not _is_value(value):
                return None
            headers[name] = value.strip(b" \t")
        length = headers.get(b"content-length")
        host = headers.get(b"host")
        if host is None or self._hosts.refusal(host) is not None:
            return None
        if length is not None and not _is_number(length):
            return None
        is_plain_json = headers.get(b"content-type", JSON) == JSON and b"idempotency-key" not in headers
        authorization = headers.get(b"authorization")
        head = PlainHead(headers, None if length is None else int(length), is_plain_json, authorization)
        if (
            len(lines) <= _CACHED_HEAD_BYTES_MAX
            and b"x-request-id" not in headers
            and b"idempotency-key" not in headers
        ):
            if len(self._heads) >= _HEADS_CACHED_MAX:
                self._heads.clear()
            self._heads[lines] = head
        return head


class FastChannel(Protocol):
    """A connection as a ``FastRequest`` sees it."""

    server: ServerState
    host: str
    """Address of the client."""
    who: str

    def write(self, data: bytes) -> None:
        """Send bytes of an answer."""
        ...

    def fast_request_done(self) -> None:
        """The request is answered: the next one may be read."""
        ...


class FastRequest(RequestLifecycle):
    """One plain request from its head to its answer: an ``Exchange``.

    :param ticket: of the limit of submits; None: it is no submit."""

    __slots__ = (
        "_body", "_channel", "_headers", "caller", "finished", "is_plain_json", "request_id", "route", "server", "task_id",
        "who",
    )  # fmt: skip

    def __init__(self, channel: FastChannel, plain: PlainRequest, ticket: int | None) -> None:
        self.server = server = channel.server
        head = plain.head
        self._headers = headers = head.headers
        self.is_plain_json = head.is_plain_json
        self.task_id = plain.task_id
        self.access = plain.route.access
        self.caller = plain.caller
        self.who = channel.who
        self.gone = False
        self.route = plain.route.path
        self.request_id = request_id_of(headers.get(b"x-request-id"))
        self._channel = channel
        self._body = plain.body
        self._held_bytes = len(plain.body)
        self._in_flight = True
        self.finished = False
        self.changed = ()
        self._call = None
        self._limit = server.submit_limit
        self._ticket = ticket
        self._cost = 1
        self._started_s = time.perf_counter()
        server.in_flight += 1
        server.bodies_held_bytes += self._held_bytes
        server.metrics.doing = self.route

    @property
    def client_host(self) -> str:
        return self._channel.host

    @property
    def method(self) -> bytes:
        return b"POST" if self.task_id is None else b"GET"

    @property
    def args(self) -> Mapping[bytes, Sequence[bytes]] | None:
        return None if self.task_id is None else {b"id": [self.task_id.encode("ascii")]}

    @property
    def path(self) -> bytes:
        """The path of the route, which is that of the request."""
        return self.route.encode("ascii")

    def body(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def getHeader(self, key: bytes) -> bytes | None:
        return self._headers.get(key)

    def answer(self, code: int, body: bytes, *, content_type: bytes = JSON, extra: bytes = b"") -> None:
        if self.gone or self.finished:
            return
        self.finished = True
        server = self.server
        if server.closing:
            extra += b"Connection: close\r\n"
        head = whole_head(code, content_type, server.date(), self.request_id, body, extra)
        channel = self._channel
        channel.write(head + body)
        self._end(code)
        channel.fast_request_done()

    def connectionLost(self, reason: Failure) -> None:
        """The channel calls this when the client hangs up."""
        self._hang_up()
