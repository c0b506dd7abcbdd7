"""One connection to a node, one request at a time: nodes answer pipelined ones in turn anyway."""

from __future__ import annotations

import asyncio
from typing import cast

from tq_node.client import limits
from tq_node.client.reading import Answer, AnswerReader, NotHttp


class Lost(Exception):
    """A request got no answer. The message is for a person.

    :ivar sent: the request may have arrived.
    :ivar stale: a used connection broke before a byte of the answer came.
    :ivar blames: it is a sign of a failed node, unlike a stale connection or a short timeout."""

    def __init__(self, detail: str, *, sent: bool, stale: bool = False, blames: bool = True) -> None:
        super().__init__(detail)
        self.sent = sent
        self.stale = stale
        self.blames = blames and not stale


class Connection(asyncio.Protocol):
    """A connection, made by ``loop.create_connection``; ``ask`` may be called while ``is_free``."""

    _transport: asyncio.Transport
    """There once ``create_connection`` returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.idle_since_s = 0.0
        self._loop = loop
        self._reader = AnswerReader()
        self._pending: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._uses = 0
        self._closed = False

    @property
    def is_free(self) -> bool:
        return self._pending is None and not self._closed

    def ask(self, request: bytes, timeout_s: float) -> asyncio.Future[Answer]:
        """Send a request: future of the answer, or ``Lost``; cancelled, it ends the connection."""
        assert self.is_free
        self._uses += 1
        asked = self._pending = self._loop.create_future()
        asked.add_done_callback(self._on_cancel)
        self._timer = self._loop.call_later(timeout_s, self._on_timeout, timeout_s)
        self._transport.write(request)
        return asked

    def close(self) -> None:
        """Close it; a request in progress fails with ``Lost``."""
        self._lose("the client was closed", blames=False)

    # --- asyncio.Protocol ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._pending is None:
            self._lose("a node spoke without being asked")
            return
        try:
            answer = self._reader.feed(data)
        except NotHttp as why:
            self._lose(str(why))
            return
        if answer is not None:
            self._deliver(answer)

    def eof_received(self) -> None:
        answer = self._reader.end()
        if answer is not None and self._pending is not None:
            self._deliver(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the connection broke" if exc is None else in_words(exc))

    # --- the end of a request ---
    def _deliver(self, answer: Answer) -> None:
        asked = self._take_pending()
        if not answer.keeps:
            self._abort()
        if asked is not None and not asked.done():
            asked.set_result(answer)

    def _on_timeout(self, timeout_s: float) -> None:
        self._lose(f"no answer within {timeout_s:.3g} s", stale=False, blames=timeout_s >= limits.CONNECT_S)

    def _lose(self, detail: str, *, stale: bool = True, blames: bool = True) -> None:
        stale = stale and self._uses > 1 and not self._reader.has_begun
        asked = self._take_pending()
        self._abort()
        if asked is not None and not asked.done():
            asked.set_exception(Lost(detail, sent=True, stale=stale, blames=blames))

    def _on_cancel(self, asked: asyncio.Future[Answer]) -> None:
        if self._pending is asked:  # the late answer must not be taken for that of the next request
            self._take_pending()
            self._abort()

    def _take_pending(self) -> asyncio.Future[Answer] | None:
        asked, self._pending = self._pending, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return asked

    def _abort(self) -> None:
        self._closed = True
        self._transport.abort()


def in_words(why: BaseException) -> str:
    """The exception as a phrase for a person, without its class name if possible."""
    if isinstance(why, ConnectionRefusedError):
        return "connection refused"
    if isinstance(why, ConnectionError):
        return "the connection broke"
    if isinstance(why, TimeoutError):
        return "no connection in time"
    return getattr(why, "strerror", None) or str(why) or type(why).__name__
