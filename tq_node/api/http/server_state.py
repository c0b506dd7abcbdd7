"""What all connections and requests of one HTTP server share: settings, limits, counts."""

from __future__ import annotations

import time

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import datetimeToString

from tq_node import limits
from tq_node.api.access.authenticator import Authenticator
from tq_node.api.http.audit_trail import AuditTrail
from tq_node.api.http.census import Census
from tq_node.api.http.concurrency_limit import large_body_limit, list_limit, long_list_limit, submit_limit
from tq_node.api.http.connections import Connections
from tq_node.api.http.load_shedding import LoadShedder
from tq_node.api.http.token_quotas import TokenQuotas
from tq_node.api.settings import ApiSettings
from tq_node.observe.metrics import Metrics
from tq_node.slices import Slices


class ServerState:
    """Shared by both ways in (``ApiRequest``, ``FastRequest``) and on all ports of the server.

    Each request gives back what it took of the counts and limits: ``RequestLifecycle`` does.

    :param slices: shared with the rooms below: a turn of the reactor runs one slice of all."""

    def __init__(
        self,
        settings: ApiSettings,
        metrics: Metrics,
        authenticator: Authenticator,
        reactor: IReactorTime,
        slices: Slices | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.authenticator = authenticator
        self.reactor = reactor
        self.slices = Slices(reactor) if slices is None else slices
        self.slices.on_slice = metrics.note_doing
        self.connections = Connections(reactor, settings)
        self.shedder = LoadShedder(reactor)
        self.refused_callers = LoadShedder(reactor, limits.REFUSED_CALLERS_PER_S)
        """Refuses those without a token that would do, apart: they wait for one another."""
        self.quotas = TokenQuotas(reactor.seconds)
        self.submit_limit = submit_limit(reactor.seconds)
        self.large_body_limit = large_body_limit(reactor.seconds)
        self.list_limit = list_limit(reactor.seconds)
        self.long_list_limit = long_list_limit(reactor.seconds)
        self.calm_in_flight = settings.requests_in_flight_max
        """With fewer requests in flight, ..."""
        takes_all = settings.body_bytes_max >= limits.LARGE_BODY_BYTES
        self.calm_bytes = settings.bodies_held_bytes_max - limits.LARGE_BODY_BYTES if takes_all else -1
        """... and at most so many bytes of bodies, there is room for any fast request."""
        self.in_flight = 0
        """Requests whose handler was called and that are not answered, without ``waiting`` ones."""
        self.waiting = 0
        """Requests that wait for a task to end (``wait=``)."""
        self.bodies_held_bytes = 0
        """Bytes of bodies that are being received, or whose request is not answered."""
        self.audit: AuditTrail | None = None
        """None: the node keeps no audit log."""
        self.now_s = time.time
        """Wall clock."""
        self.closing = False
        """No connection is accepted any more, and each one closes after its answer."""
        of_all, now_s = self.connections.open, reactor.seconds
        self._requests_of = Census(of_all, lambda one: one.in_flight, settings.requests_in_flight_max, now_s)
        self._bodies_of = Census(of_all, lambda one: one.body_bytes, settings.bodies_held_bytes_max, now_s)
        self._date = b""
        self._date_from_s = self._date_until_s = 0.0

    def has_room(self, body_bytes: int) -> bool:
        """Whether the counts allow one more request with a body of that size."""
        settings = self.settings
        return (
            self.in_flight < settings.requests_in_flight_max
            and self.bodies_held_bytes + body_bytes <= settings.bodies_held_bytes_max
            and body_bytes <= settings.body_bytes_max
        )

    def takes_one_more(self, who: str) -> bool:
        """Whether a caller's request is called although there is no room in flight."""
        return self._requests_of.takes(who, 1, self.in_flight + 1)

    def holds_more(self, who: str, size: int) -> bool:
        """Whether ``size`` bytes of a caller's body are kept although there is no room for them;
        they are counted already."""
        return self._bodies_of.takes(who, size, self.bodies_held_bytes)

    def date(self) -> bytes:
        """The value of the ``Date`` header, made once a second."""
        now_s = time.time()
        if not self._date_from_s <= now_s < self._date_until_s:
            second = int(now_s)
            # Numbers of one kind: to compare those of two takes longer than all the rest.
            self._date_from_s, self._date_until_s = float(second), second + 1.0
            self._date = datetimeToString(second)
        return self._date
