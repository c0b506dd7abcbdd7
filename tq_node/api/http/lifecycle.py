"""The life cycle of a request, the same for both ways in: count it, call its handler, give back
what it took.

``call`` -> the handler answers -> ``_end``; or the client hangs up first -> ``_hang_up``. Both give
back the place in flight, the body's bytes and the ticket of the concurrency limit, each once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node.api.access.access import Access, Caller
from tq_node.api.http.audit_trail import HUNG_UP
from tq_node.api.http.concurrency_limit import ConcurrencyLimit
from tq_node.api.http.exchange import Exchange
from tq_node.api.http.server_state import ServerState
from tq_node.api.problems import answer_failure
from tq_node.api.routes import Handler
from tq_node.errors import TaskQueueError


class RequestLifecycle:
    """Base of ``ApiRequest`` and ``FastRequest``, which are both an ``Exchange``."""

    __slots__ = (
        "_call",
        "_cost",
        "_held_bytes",
        "_in_flight",
        "_limit",
        "_started_s",
        "_ticket",
        "access",
        "changed",
        "gone",
    )

    server: ServerState
    access: Access
    """What its route asks of the caller."""
    who: str
    route: str
    gone: bool
    changed: Sequence[str] | None
    """As in ``Exchange``."""
    finished: int
    """Whether the answer has been written."""
    _started_s: float
    _in_flight: bool
    """Counts in ``ServerState.in_flight``."""
    _held_bytes: int
    """What the body counts in ``ServerState.bodies_held_bytes``."""
    _limit: ConcurrencyLimit | None
    """Which limit admitted it; None: none had to."""
    _ticket: int | None
    """Of ``_limit``; None: it holds none, or has given it back."""
    _cost: int
    """What it counts in ``_limit``."""
    _call: Deferred[None] | None
    """What the handler returned; None before, and after the answer."""

    @property
    def in_flight(self) -> bool:
        """Whether it counts in ``ServerState.in_flight``."""
        return self._in_flight

    @property
    def held_bytes(self) -> int:
        """What it counts in ``ServerState.bodies_held_bytes``."""
        return self._held_bytes

    def call(self, handler: Handler) -> None:
        """Call the handler. What it raises is the answer; a hang-up cancels what it returned."""
        try:
            call = handler(self)
        except Exception:
            self.processingFailed(Failure())
        else:
            if isinstance(call, Deferred) and not self.finished:
                self._call = call.addErrback(self.processingFailed)

    def processingFailed(self, reason: Failure) -> None:
        """Answer with the error that the handler raised. Klein calls this, too."""
        answer_failure(cast("Exchange", self), reason)

    def refusal_now(self) -> TaskQueueError | None:
        """See ``Exchange.refusal_now``."""
        server, request = self.server, cast("Exchange", self)
        found = server.authenticator.caller_of(request.getHeader(b"authorization"), self.access)
        if isinstance(found, Caller):
            request.caller = found
            return None
        server.metrics.caller_refused(getattr(found, "reason", found.code))
        return found

    def leave_flight(self) -> None:
        """Stop counting as in flight: for what waits on purpose, under another bound."""
        if self._in_flight:
            self._in_flight = False
            self.server.in_flight -= 1

    def _end(self, code: int | None) -> None:
        """The request is over: count its answer, and give back what it took, once.

        :param code: of the answer; None: it has none, or one that is counted elsewhere."""
        server = self.server
        latency_s = None
        if code is not None:
            took_s = time.perf_counter() - self._started_s
            server.metrics.http(self.route, code, took_s)
            if server.audit is not None:
                server.audit.ended(cast("Exchange", self), code)
            if code < 300 or code == 504:  # an error is not the work: its latency would pass for speed
                latency_s = took_s
        ticket = self._ticket
        if ticket is not None:
            limit = self._limit
            assert limit is not None
            self._ticket = None
            if latency_s is None:
                limit.abandon(self.who, self._cost)
            else:
                limit.leave(self.who, ticket, latency_s, self._cost)
        if self._in_flight:
            self._in_flight = False
            server.in_flight -= 1
        server.bodies_held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._call = None

    def _hang_up(self) -> None:
        """The client is gone: give back what the request took, and cancel its handler."""
        self.gone = True
        audit = self.server.audit
        if audit is not None and self._in_flight:
            audit.ended(cast("Exchange", self), HUNG_UP)
        call = self._call
        self._end(None)
        if call is not None:
            call.cancel()
