"""The HTTP server: accepts connections within bounds, and closes them in order."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.web.server import Site

from tq_node.api.http.channel import ApiChannel
from tq_node.api.http.request import ApiRequest
from tq_node.api.http.routing import Routing
from tq_node.api.http.server_state import ServerState


class ApiSite(Site):
    """Makes a channel for each connection; may listen on several ports at once."""

    # Plain HTTP/1.1, without the proxy that could switch to HTTP/2.
    protocol = ApiChannel  # type: ignore[assignment]  # declared as that proxy
    displayTracebacks = False
    noisy = False

    def __init__(self, server: ServerState, routing: Routing) -> None:
        super().__init__(
            routing.klein,
            requestFactory=ApiRequest,
            parsePOSTFormSubmission=False,
            timeout=server.settings.idle_s,
            reactor=server.reactor,
        )
        self.server = server
        self.routing = routing
        self._on_close: list[Callable[[], None]] = []

    def log(self, request: object) -> None:
        """No access log: it costs more than the request. Rates and latencies are in the metrics."""

    def buildProtocol(  # type: ignore[override]  # as for protocol
        self, addr: IAddress | None
    ) -> ApiChannel | None:
        if self.server.closing or not self.server.connections.admit(addr):
            return None
        channel: ApiChannel = super().buildProtocol(addr)
        channel.server = self.server
        channel.routing = self.routing
        return channel

    # --- the end ---
    def on_close(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when ``close`` begins: for streams that have no end of their own."""
        self._on_close.append(callback)

    def close(self, within_s: float) -> Deferred[None]:
        """Close every connection; fires when none is left. Stop listening first. Idle connections
        close at once, others after their answer, and all others after ``within_s``."""
        server = self.server
        if server.closing:
            return succeed(None)
        server.closing = True
        connections = server.connections
        server.shedder.close()
        server.refused_callers.close()
        connections.stop()
        for callback in self._on_close:
            callback()
        for connection in list(connections.open):
            connection.close_in_order()
        if not connections.open:
            return succeed(None)
        deadline = server.reactor.callLater(within_s, self._abort_all)

        def cancel_deadline(result: None) -> None:
            if deadline.active():
                deadline.cancel()

        return connections.when_empty().addCallback(cancel_deadline)

    def _abort_all(self) -> None:
        for connection in list(self.server.connections.open):
            connection.forceAbortClient()
