"""One connection: ``twisted.web``'s channel with bounds, errors in our form, and the short way for hot requests (``hot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http

from tq_node.api.answering import request_id_of
from tq_node.api.hot import Found, HotRequest
from tq_node.api.turning_away import TurnedAway
from tq_node.errors import Busy, Malformed, TaskQueueError

if TYPE_CHECKING:
    from tq_node.api.site import ApiSite

BEHIND_BYTES_MAX = 16_384
"""So much of the requests behind a hot one is read before it is answered."""


class ApiChannel(http.HTTPChannel):
    """Bounds the headers; says what is wrong, in our form, with what is not HTTP.

    The short way is open only between requests: at the start, and where nothing is left of what came before.
    """

    site: ApiSite
    maxHeaders = 100
    _abort: IDelayedCall | None = None
    _is_between = True
    _begun = b""
    _begun_bytes = 0
    _hot: HotRequest | TurnedAway | None = None
    _behind = b""

    def connectionMade(self) -> None:
        self.site.channels.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        self._let_go_of_begun()
        super().connectionLost(reason)
        self.site.channel_gone(self)

    # --- the short way ---
    def dataReceived(self, data: bytes) -> None:
        if not self._is_between:
            super().dataReceived(data)
            return
        if self._hot is not None:
            self._behind += data
            if len(self._behind) > BEHIND_BYTES_MAX:
                self._networkProducer.pauseProducing()
            return
        if self._begun:
            data = self._let_go_of_begun() + data
        site = self.site
        found = site.hot.read(data)
        if isinstance(found, Found) and site.has_room(len(found.body)):
            self.resetTimeout()
            ticket = site.submits.enter() if found.args is None else 0
            if not ticket and found.args is None:
                self._turn_away(found)
                return
            self._hot = request = HotRequest(self, found, ticket)
            self.requests.append(request)
            request.run(found.route.handler)
        elif found is True and site.has_room(body_bytes := len(data) - data.index(b"\r\n\r\n") - 4):
            self.resetTimeout()
            self._begun = data
            self._begun_bytes = body_bytes
            site.bodies_held_bytes += body_bytes
        else:
            self._is_between = False
            super().dataReceived(data)

    def _turn_away(self, found: Found) -> None:
        """There is no room for another submit. Most of what comes while there is too much ends here, so it must cost little."""

        def answer() -> None:
            assert self.transport is not None
            self.transport.write(site.busy_answer(request_id_of(found.head.headers.get(b"x-request-id"))))
            site.metrics.http(found.route.path, Busy.status, 0.0)
            if self._hot is not None or site.closing:
                self.hot_done()

        site = self.site
        self._hot = site.refusals.tell(answer)
        if self._hot is not None:
            self.requests.append(self._hot)

    def _let_go_of_begun(self) -> bytes:
        begun, self._begun = self._begun, b""
        self.site.bodies_held_bytes -= self._begun_bytes
        self._begun_bytes = 0
        return begun

    def hot_done(self) -> None:
        """The hot request is answered."""
        self._hot = None
        self.requests.clear()
        if self.site.closing:
            self.loseConnection()
            return
        self.resetTimeout()
        if self._behind:
            behind, self._behind = self._behind, b""
            if not self._waitingForTransport:
                self._networkProducer.resumeProducing()
            self.dataReceived(behind)

    def requestDone(self, request: http.Request) -> None:
        super().requestDone(request)
        if self.persistent and not self.requests:
            rest = self.clearLineBuffer()
            if rest:
                self.setLineMode(rest)
            else:
                self._is_between = True

    # --- what ends it ---
    def refuse(self, error: TaskQueueError, request_id: bytes) -> None:
        """Write a whole answer, outside of any request that could, with ``Connection: close``. Doesn't close."""
        assert self.transport is not None
        self.transport.write(self.site.closing_answer(error, request_id))

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def timeoutConnection(self) -> None:
        if self._hot is not None:
            # It is not the client that is idle.
            self.setTimeout(self.timeOut)
            return
        # The inherited one logs a line for each; that a client left an idle connection is no news.
        self._abort = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Not public in twisted.web: should it go by another name one day, its bare 400 is what clients get.
        self.refuse(Malformed("this is not a valid HTTP/1.1 request"), request_id_of(None))
        self.loseConnection()
