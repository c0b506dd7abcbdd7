"""A request as handlers see it, and the bytes of an answer's head."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Protocol

from tq_node import limits
from tq_node.api.access.access import Caller
from tq_node.api.http.server_state import ServerState
from tq_node.errors import TaskQueueError

JSON = b"application/json"
SERVER = b"taskqueue"

_made_id_prefix = os.urandom(6).hex().encode("ascii")
_made_id_count = itertools.count(1)
_unwanted_in_id = re.compile(rb"[^A-Za-z0-9._~:/+=@,;#-]").sub
_phrases = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_heads: dict[tuple[int, bytes], bytes] = {}
_dated_heads: dict[tuple[int, bytes], tuple[bytes, bytes]] = {}
"""A date and the constant part of an answer's head, with that date."""


class Exchange(Protocol):
    """An answerable request, as handlers see it: an ``ApiRequest`` or a ``FastRequest``."""

    server: ServerState
    route: str
    """Name of its route in the metrics."""
    caller: Caller
    """Who asks."""
    who: str
    """The name of the caller's token, or its address: what it may have at once counts by this."""
    changed: Sequence[str] | None
    """Ids and names of what it changes, for the audit log; empty: its query says them. None: it
    changes nothing, though it is a POST."""
    gone: bool
    """The client has hung up: an answer would reach nobody."""
    request_id: bytes
    """Stands in the answer and in the log."""
    is_plain_json: bool
    """The body is JSON, and no header says more. False: the headers are to be looked at."""
    task_id: str | None
    """The query is this id, which is one, and nothing else. None: the query is to be looked at."""

    @property
    def client_host(self) -> str:
        """Address of the client; empty: it came by no network."""
        ...

    @property
    def method(self) -> bytes: ...

    @property
    def path(self) -> bytes: ...

    @property
    def args(self) -> Mapping[bytes, Sequence[bytes]] | None:
        """The query's parameters; None: the request has no query."""
        ...

    def body(self) -> bytes:
        """The whole body. Can be called once."""
        ...

    def getHeader(self, key: bytes) -> bytes | None:
        """The last header of that name, which is given in lower case."""
        ...

    def refusal_now(self) -> TaskQueueError | None:
        """Why the caller may not make this request, by the tokens as they are now; None: it may,
        and ``caller`` says what its token allows now."""
        ...

    def leave_flight(self) -> None:
        """Stop counting as in flight: for what waits on purpose, under another bound."""
        ...

    def answer(self, code: int, body: bytes, *, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """Write the whole answer, unless the client is gone or has one.

        :param extra: header lines of trusted content, each with its line end."""
        ...


def request_id_of(header: bytes | None) -> bytes:
    """The caller's request id, bounded and harmless to logs and headers; else a new one."""
    if header is not None:
        wanted = _unwanted_in_id(b"", header)[: limits.REQUEST_ID_CHARS_MAX]
        if wanted:
            return wanted
    return b"%b-%x" % (_made_id_prefix, next(_made_id_count))


def head_of(code: int, content_type: bytes) -> bytes:
    """Status line and constant headers of an answer; made once for each code and type."""
    head = _heads.get((code, content_type))
    if head is None:
        head = _heads[code, content_type] = (
            b"HTTP/1.1 %d %b\r\nServer: %b\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nContent-Type: %b\r\n"
        ) % (code, _phrases.get(code, b"Unknown"), SERVER, content_type)
    return head


def whole_head(code: int, content_type: bytes, date: bytes, request_id: bytes, body: bytes, extra: bytes) -> bytes:
    """The bytes of an answer before its body. ``extra``: header lines, each with its line end."""
    dated, head = _dated_heads.get((code, content_type), (b"", b""))
    if dated != date:
        head = b"%bDate: %b\r\nX-Request-Id: " % (head_of(code, content_type), date)
        _dated_heads[code, content_type] = date, head
    return b"%b%b\r\nContent-Length: %d\r\n%b\r\n" % (head, request_id, len(body), extra)
