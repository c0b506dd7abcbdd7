"""One connection to a node: a request, its answer, and the next. No pipelining: nodes answer one
after the other anyway.
"""

from __future__ import annotations

import asyncio
from typing import cast

from tq_node.client import limits
from tq_node.client.reading import Answer, AnswerReader, NotHttp


class Lost(Exception):
    """No answer. The message is for a person.

    ``sent``: the request may have arrived. ``stale``: the connection was an old one that broke
    before a byte came back. ``blames``: it says something about the node, unlike a stale connection
    or a caller in a hurry.
    """

    def __init__(self, detail: str, *, sent: bool, stale: bool = False, blames: bool = True) -> None:
        super().__init__(detail)
        self.sent = sent
        self.stale = stale
        self.blames = blames and not stale


class Connection(asyncio.Protocol):
    """Made by ``loop.create_connection``. ``ask`` may be called when ``is_free``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.idle_since_s = 0.0
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._reader = AnswerReader()
        self._asked: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._uses = 0
        self._broken = False

    @property
    def is_free(self) -> bool:
        return self._asked is None and not self._broken

    def ask(self, request: bytes, timeout_s: float) -> asyncio.Future[Answer]:
        """Send a request. The future ends with the answer, or fails with ``Lost``. Cancelling it
        closes the connection.
        """
        assert self._transport is not None
        assert self.is_free
        self._uses += 1
        asked = self._asked = self._loop.create_future()
        asked.add_done_callback(self._left)
        self._timer = self._loop.call_later(timeout_s, self._too_late, timeout_s)
        self._transport.write(request)
        return asked

    def close(self) -> None:
        """Whatever is under way is lost."""
        self._lose("the client was closed", blames=False)

    # --- asyncio.Protocol ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._asked is None:
            self._lose("a node spoke without being asked")
            return
        try:
            answer = self._reader.feed(data)
        except NotHttp as why:
            self._lose(str(why))
            return
        if answer is not None:
            self._answered(answer)

    def eof_received(self) -> None:
        answer = self._reader.end()
        if answer is not None and self._asked is not None:
            self._answered(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the connection broke" if exc is None else in_words(exc))

    # --- ---
    def _answered(self, answer: Answer) -> None:
        asked = self._over()
        if not answer.keeps:
            self._hang_up()
        if asked is not None and not asked.done():
            asked.set_result(answer)

    def _too_late(self, timeout_s: float) -> None:
        self._lose(f"no answer within {timeout_s:.3g} s", stale=False, blames=timeout_s >= limits.CONNECT_S)

    def _lose(self, detail: str, *, stale: bool = True, blames: bool = True) -> None:
        stale = stale and self._uses > 1 and not self._reader.has_begun
        asked = self._over()
        self._hang_up()
        if asked is not None and not asked.done():
            asked.set_exception(Lost(detail, sent=True, stale=stale, blames=blames))

    def _left(self, asked: asyncio.Future[Answer]) -> None:
        if self._asked is asked:  # cancelled: the answer to nobody's question must not meet the next one
            self._over()
            self._hang_up()

    def _over(self) -> asyncio.Future[Answer] | None:
        asked, self._asked = self._asked, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return asked

    def _hang_up(self) -> None:
        self._broken = True
        if self._transport is not None:
            self._transport.abort()


def in_words(why: BaseException) -> str:
    """For people: no class names where there are words."""
    if isinstance(why, ConnectionRefusedError):
        return "connection refused"
    if isinstance(why, ConnectionError):
        return "the connection broke"
    if isinstance(why, TimeoutError):
        return "no connection in time"
    return getattr(why, "strerror", None) or str(why) or type(why).__name__
