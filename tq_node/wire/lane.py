"""One lane to one member: a connection that is dialled again whenever it is lost, until ``stop``.

Twisted's ``ClientService`` is not used: it has no transition for a connection that is lost while it
is being prepared (``NoTransition``, tried with 26.10), which is what a refused handshake is; it
can't end a connection that the peer does not read; and it logs a line at each attempt, of which
there are two a second here."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.interfaces import IDelayedCall

from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire.amp import Log
from tq_node.wire.commands import Lane
from tq_node.wire.connector import Connector, DialledPeer, Target
from tq_node.wire.errors import Stopped
from tq_node.wire.handler import LaneWatcher


class PeerLane:
    """A lane waits (``_timer``), dials (``_attempt``), is connected (``connection``) or stopped."""

    def __init__(
        self, connector: Connector, watcher: LaneWatcher, target: Target, lane: Lane, rng: random.Random
    ) -> None:
        self.target = target
        self.lane = lane
        self.connection: DialledPeer | None = None
        """Open and authenticated, or None."""
        self._connector = connector
        self._watcher = watcher
        self._rng = rng
        self._timer: IDelayedCall | None = None
        self._attempt: Deferred[None] | None = None
        self._is_stopped = False
        self._failures = 0
        self._opened_s = 0.0
        self._last_logged = ""
        """The last line logged, so that it is not repeated with every dial."""

    def start(self) -> None:
        self._dial()

    def stop(self) -> None:
        """Dial no more and close the connection; ``Connector.close_all`` waits for its end."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._attempt is not None:
            attempt, self._attempt = self._attempt, None
            attempt.cancel()
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.on_lost = connection.on_writable = None
            connection.give_up(Stopped(f"the lane to node {self.target.name} is given up"), flush=True)

    @property
    def _node_id(self) -> NodeId:
        return NodeId(self.target.node_id)

    def _dial(self) -> None:
        self._timer = None
        self._attempt = Deferred.fromCoroutine(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._connector.open(self.target, self.lane)
        except Exception as why:
            if not self._is_stopped:  # else it was cancelled, which has several names
                self._attempt = None
                self._failed(why)
            return
        self._attempt = None
        self.connection = connection
        self._opened_s = self._connector.reactor.seconds()
        connection.on_lost, connection.on_writable = self._lost, self._writable
        self._log_once("connected")
        assert connection.peer is not None
        with Log.failuresHandled("lane_up failed"):
            self._watcher.lane_up(connection.peer, self._connector.now_ms())

    def _failed(self, why: Exception) -> None:
        self._failures += 1
        self._log_once("port refused" if isinstance(why, PortRefused) else f"{type(why).__name__}: {why}")
        self._redial_later()
        with Log.failuresHandled("dial_failed failed"):
            self._watcher.dial_failed(self._node_id, self.lane, self._connector.now_ms(), why)

    def _lost(self, connection: DialledPeer) -> None:
        self.connection = None
        if self._connector.reactor.seconds() - self._opened_s > bounds.REDIAL_S_MAX:
            self._failures = 0
        else:
            self._failures += 1  # a peer that closes at once, each time, is not dialled in a tight loop
        why = connection.ended.detail if connection.ended is not None else ""
        self._log_once(f"lost: {why}")
        self._redial_later()
        assert connection.peer is not None
        with Log.failuresHandled("lane_lost failed"):
            self._watcher.lane_lost(connection.peer, self._connector.now_ms(), connection.broke, why)

    def _writable(self, _: DialledPeer) -> None:
        with Log.failuresHandled("lane_writable failed"):
            self._watcher.lane_writable(self._node_id, self.lane)

    def _redial_later(self) -> None:
        """Dial after a delay, doubled at each failure up to ``REDIAL_S_MAX``, with jitter."""
        most_s = min(bounds.REDIAL_S_MAX, bounds.REDIAL_FIRST_S * 2 ** min(self._failures, 10))
        self._timer = self._connector.reactor.callLater(most_s * self._rng.uniform(0.5, 1.0), self._dial)

    def _log_once(self, what: str) -> None:
        if what != self._last_logged:
            self._last_logged = what
            Log.info(
                "{lane} lane to node {name} at {address}: {what}",
                lane=self.lane.value,
                name=self.target.name,
                address=self.target.address,
                what=what,
                event="peer_lane",
            )
