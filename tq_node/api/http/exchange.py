"""What a handler sees of a request, whichever way it came in, and how a whole answer is put together."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from tq_node import limits

if TYPE_CHECKING:
    from tq_node.api.http.site import ApiSite

JSON = b"application/json"
SERVER = b"taskqueue"

_made_id_prefix = os.urandom(6).hex().encode("ascii")
_made_id_count = itertools.count(1)
_unwanted_in_id = re.compile(rb"[^A-Za-z0-9._~:/+=@,;#-]").sub
_phrases = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_heads: dict[tuple[int, bytes], bytes] = {}


class Exchange(Protocol):
    """A request that can be answered: ``request.ApiRequest``, or a ``hot.HotRequest``.

    ``gone``: the client has hung up; ``route``: a name for metrics; ``args``: what the query says, None where there is none.
    """

    site: ApiSite
    route: str
    gone: bool
    request_id: bytes
    method: bytes
    path: bytes

    @property
    def args(self) -> Mapping[bytes, Sequence[bytes]] | None: ...

    def body(self) -> bytes:
        """The whole body. Can be taken once."""
        ...

    def getHeader(self, key: bytes) -> bytes | None:
        """The header of that name, in lower case; the last one, where there are several."""
        ...

    def leave_flight(self) -> None:
        """No longer count as in flight: for what waits on purpose, and is bounded by a count of its own."""
        ...

    def answer(self, code: int, body: bytes, *, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """Write the whole answer and finish. ``extra``: header lines of trusted content, each with its line end."""
        ...


def request_id_of(header: bytes | None) -> bytes:
    """The caller's id without what could hurt a log or a header, bounded; or one made here."""
    if header is not None:
        wanted = _unwanted_in_id(b"", header)[: limits.REQUEST_ID_CHARS_MAX]
        if wanted:
            return wanted
    return b"%b-%x" % (_made_id_prefix, next(_made_id_count))


def head_of(code: int, content_type: bytes) -> bytes:
    """Status line and the headers that are the same for all answers of this kind."""
    head = _heads.get((code, content_type))
    if head is None:
        head = _heads[code, content_type] = (
            b"HTTP/1.1 %d %b\r\nServer: %b\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nContent-Type: %b\r\n"
        ) % (code, _phrases.get(code, b"Unknown"), SERVER, content_type)
    return head


def whole_head(code: int, content_type: bytes, date: bytes, request_id: bytes, body: bytes, extra: bytes) -> bytes:
    """Everything before the body."""
    return b"%bDate: %b\r\nX-Request-Id: %b\r\nContent-Length: %d\r\n%b\r\n" % (
        head_of(code, content_type),
        date,
        request_id,
        len(body),
        extra,
    )
