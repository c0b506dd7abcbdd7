"""The hot routes, answered without a ``twisted.web`` Request: what a Request costs is most of what a submit costs.

``FastPath.read`` takes a request only if it is whole, alone and plain in every way: a hot route, HTTP/1.1, known headers once
each, a host that is this node, a body of the length it says. Anything else, right or wrong, goes to ``twisted.web`` as it came;
there ``heads`` judges. So the two ways in can't differ in what they refuse, and the handlers are the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.api.http.concurrency_limit import NOT_DONE
from tq_node.api.http.exchange import JSON, request_id_of, whole_head
from tq_node.api.http.request_head import HEAD_BYTES_MAX, KnownHosts

if TYPE_CHECKING:
    from tq_node.api.http.channel import ApiChannel
    from tq_node.api.http.site import ApiSite
    from tq_node.api.routes import Handler, Route

HELD_BYTES_MAX = 65_536
"""A request up to this size, head and body, is put together here when it comes in pieces."""
_HEADS_KEPT_MAX = 256
_HEAD_BYTES_MAX = 1_024
_KNOWN = frozenset(
    {
        b"host",
        b"user-agent",
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"content-type",
        b"content-length",
        b"idempotency-key",
        b"x-request-id",
    }
)
"""Headers that a hot request may have; none of them changes how the request is read but the length."""
_is_value = re.compile(rb"[^\x00\r\n]*").fullmatch
_is_number = re.compile(rb"[0-9]{1,6}").fullmatch
_is_query = re.compile(rb"id=([A-Za-z0-9._:-]{1,%d})" % limits.TASK_ID_CHARS_MAX).fullmatch


class PlainHead(msgspec.Struct, frozen=True):
    """The header lines of a request. Clients send the same ones again and again."""

    headers: dict[bytes, bytes]
    length: int


class Found(msgspec.Struct, frozen=True):
    """A request that is whole."""

    route: Route
    head: PlainHead
    body: bytes
    args: dict[bytes, list[bytes]] | None


class FastPath:
    """Knows the hot routes, and the heads that it has seen lately."""

    def __init__(self, routes: Sequence[Route], body_bytes_max: int, hosts: KnownHosts) -> None:
        self._hosts = hosts
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

    @property
    def is_open(self) -> bool:
        return bool(self._handlers)

    def handler_of(self, method: bytes, path: bytes) -> Handler | None:
        """Of a hot route, for a request that is not plain enough for ``read``."""
        return self._handlers.get((method, path))

    def read(self, data: bytes) -> Found | bool:
        """:returns: a request; True: more of it may come; False: it is for ``twisted.web``."""
        line_end = data.find(b"\r\n")
        head_end = data.find(b"\r\n\r\n", line_end)
        if line_end < 0 or head_end < 0 or head_end > HEAD_BYTES_MAX:
            return False
        line = data[:line_end]
        args = None
        route = self._posts.get(line)
        if route is None:
            target, _, rest = line.partition(b"?")
            route = self._gets.get(target)
            query = None if route is None or rest[-9:] != b" HTTP/1.1" else _is_query(rest[:-9])
            if route is None or query is None:
                return False
            args = {b"id": [query[1]]}
        lines = data[line_end + 2 : head_end]
        head = self._heads.get(lines) or self._parsed(lines)
        if head is None or (head.length < 0) is not (args is not None):
            return False
        if args is not None:
            return Found(route, head, b"", args) if len(data) == head_end + 4 else False
        body = data[head_end + 4 :]
        missing = head.length - len(body)
        if missing == 0:
            # No socket gives so much at a time, and what is long is let in by its bytes.
            return head.length <= limits.LARGE_BODY_BYTES and Found(route, head, body, None)
        # One that is too long is refused by its length alone, so at once.
        return missing > 0 and head.length <= self._body_bytes_max and head_end + head.length < HELD_BYTES_MAX

    def _parsed(self, lines: bytes) -> PlainHead | None:
        headers: dict[bytes, bytes] = {}
        for line in lines.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.lower()
            if not colon or name not in _KNOWN or name in headers or not _is_value(value):
                return None
            headers[name] = value.strip(b" \t")
        length = headers.get(b"content-length")
        host = headers.get(b"host")
        if host is None or self._hosts.refusal(host) is not None:
            return None
        if length is not None and not _is_number(length):
            return None
        head = PlainHead(headers, -1 if length is None else int(length))
        if len(lines) <= _HEAD_BYTES_MAX and b"x-request-id" not in headers and b"idempotency-key" not in headers:
            if len(self._heads) >= _HEADS_KEPT_MAX:
                self._heads.clear()
            self._heads[lines] = head
        return head


class FastRequest:
    """One request on its way through a handler: an ``answering.Answering``.

    :param ticket: of the gate of submits; 0 where the request is none.
    """

    __slots__ = (
        "_body",
        "_call",
        "_channel",
        "_head",
        "_in_flight",
        "_is_answered",
        "_started_s",
        "_ticket",
        "args",
        "gone",
        "method",
        "path",
        "request_id",
        "route",
        "site",
    )

    def __init__(self, channel: ApiChannel, found: Found, ticket: int) -> None:
        self.site: ApiSite = channel.site
        self.args: Mapping[bytes, Sequence[bytes]] | None = found.args
        self.gone = False
        self.method = b"POST" if found.args is None else b"GET"
        self.route = found.route.path
        self.path = self.route.encode("ascii")
        self.request_id = request_id_of(found.head.headers.get(b"x-request-id"))
        self._channel = channel
        self._head = found.head
        self._body = found.body
        self._in_flight = True
        self._is_answered = False
        self._call: Deferred[None] | None = None
        self._ticket = ticket
        self._started_s = time.perf_counter()
        self.site.in_flight += 1
        self.site.bodies_held_bytes += len(found.body)

    def run(self, handler: Handler) -> None:
        """What the handler raises is answered; it is cancelled when the client hangs up."""
        self.site.metrics.doing = self.route
        try:
            call = handler(self)
        except Exception:
            self.site.answer_failure(self, Failure())
        else:
            if isinstance(call, Deferred) and not self._is_answered:
                self._call = call.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self.site.answer_failure(self, failure)

    def body(self) -> bytes:
        return self._body

    def getHeader(self, key: bytes) -> bytes | None:
        return self._head.headers.get(key)

    def answer(self, code: int, body: bytes, *, content_type: bytes = JSON, extra: bytes = b"") -> None:
        if self.gone or self._is_answered:
            return
        self._is_answered = True
        site = self.site
        if site.closing:
            extra += b"Connection: close\r\n"
        head = whole_head(code, content_type, site.date(), self.request_id, body, extra)
        channel = self._channel
        channel.write(head + body)
        took_s = time.perf_counter() - self._started_s
        site.metrics.http(self.route, code, took_s)
        if self._ticket:
            site.submits.leave(self._ticket, took_s if code < 300 or code == 504 else NOT_DONE)
            self._ticket = 0
        self._let_go()
        channel.hot_done()

    def connectionLost(self, reason: Failure) -> None:
        """The channel says so of each of its requests."""
        self.gone = True
        call = self._call
        if self._ticket:
            self.site.submits.leave(self._ticket, NOT_DONE)
            self._ticket = 0
        self._let_go()
        if call is not None:
            call.cancel()

    def leave_flight(self) -> None:
        if self._in_flight:
            self._in_flight = False
            self.site.in_flight -= 1

    def _let_go(self) -> None:
        self.leave_flight()
        self.site.bodies_held_bytes -= len(self._body)
        self._body = b""
        self._call = None
