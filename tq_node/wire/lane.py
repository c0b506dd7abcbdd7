"""One lane to one member: a connection that comes back whenever it is lost, for as long as the
member is one.

Twisted's ``ClientService`` is not used: it has no transition for a connection that is lost while it
is being prepared (``NoTransition``, tried with 26.10), which is what a refused handshake is; it
can't end a connection that the peer does not read; and it logs a line at each attempt, of which
there are two a second here.
"""

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
    """Three states: waiting (``_timer``), dialling (``_attempt``), connected (``connection``); or
    none of them: stopped.
    """

    def __init__(
        self, dialling: Connector, watcher: LaneWatcher, target: Target, lane: Lane, dice: random.Random
    ) -> None:
        self.target = target
        self.lane = lane
        self.connection: DialledPeer | None = None
        """Open and authenticated, or None."""
        self._dialling = dialling
        self._watcher = watcher
        self._dice = dice
        self._timer: IDelayedCall | None = None
        self._attempt: Deferred[None] | None = None
        self._is_stopped = False
        self._failures = 0
        self._opened_s = 0.0
        self._said = ""
        """What was last logged about it, so that the same is not said twice a second."""

    def start(self) -> None:
        self._dial()

    def stop(self) -> None:
        """Nothing is dialled any more. The connection is closed; ``Connector.close_all`` waits for
        its end.
        """
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
            connection = await self._dialling.open(self.target, self.lane)
        except Exception as why:
            if not self._is_stopped:  # else it was cancelled, which has several names
                self._attempt = None
                self._failed(why)
            return
        self._attempt = None
        self.connection = connection
        self._opened_s = self._dialling.reactor.seconds()
        connection.on_lost, connection.on_writable = self._lost, self._writable
        self._say("connected")
        assert connection.peer is not None
        with Log.failuresHandled("lane_up failed"):
            self._watcher.lane_up(connection.peer, self._dialling.now_ms())

    def _failed(self, why: Exception) -> None:
        self._failures += 1
        self._say("port refused" if isinstance(why, PortRefused) else f"{type(why).__name__}: {why}")
        self._wait()
        with Log.failuresHandled("dial_failed failed"):
            self._watcher.dial_failed(self._node_id, self.lane, self._dialling.now_ms(), why)

    def _lost(self, connection: DialledPeer) -> None:
        self.connection = None
        if self._dialling.reactor.seconds() - self._opened_s > bounds.REDIAL_S_MAX:
            self._failures = 0
        else:
            self._failures += 1  # whoever closes at once, each time, is not dialled in a tight loop
        why = connection.ended.detail if connection.ended is not None else ""
        self._say(f"lost: {why}")
        self._wait()
        assert connection.peer is not None
        with Log.failuresHandled("lane_lost failed"):
            self._watcher.lane_lost(connection.peer, self._dialling.now_ms(), connection.broke, why)

    def _writable(self, _: DialledPeer) -> None:
        with Log.failuresHandled("lane_writable failed"):
            self._watcher.lane_writable(self._node_id, self.lane)

    def _wait(self) -> None:
        """Longer with each failure, up to the bound, and never in step with the others."""
        most_s = min(bounds.REDIAL_S_MAX, bounds.REDIAL_FIRST_S * 2 ** min(self._failures, 10))
        self._timer = self._dialling.reactor.callLater(most_s * self._dice.uniform(0.5, 1.0), self._dial)

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            Log.info(
                "{lane} lane to node {name} at {address}: {what}",
                lane=self.lane.value,
                name=self.target.name,
                address=self.target.address,
                what=what,
                event="peer_lane",
            )
