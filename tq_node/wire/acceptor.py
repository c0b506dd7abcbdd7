"""A listener's connections: a bounded set of unauthenticated ones; one for each peer and lane."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from tq_node.errors import TaskQueueError
from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire.amp import Log
from tq_node.wire.calls import ByteBudget
from tq_node.wire.clones import CloneCheck
from tq_node.wire.commands import Lane
from tq_node.wire.errors import Crowded, Stopped, Superseded, WireRefusal
from tq_node.wire.handshake import PeerIdentity, Sessions


class AcceptedConnection(Protocol):
    """What ``Acceptor`` needs of a connection."""

    peer: PeerIdentity | None
    ended: TaskQueueError | None
    address: str
    heard_at_s: float

    def give_up(self, reason: TaskQueueError, flush: bool = False) -> None: ...


class Acceptor:
    """See the module's docstring."""

    def __init__(self, reactor: IReactorTime, sessions: Sessions) -> None:
        self.sessions = sessions
        self.budgets = {lane: ByteBudget(bounds.HELD_BYTES_MAX) for lane in Lane}
        self.refusals: Counter[str] = Counter()
        """Connections that ended before they were authenticated, by the code of the reason."""
        self._reactor = reactor
        self._unauthenticated: dict[AcceptedConnection, None] = {}
        self._peers: dict[tuple[NodeId, Lane], AcceptedConnection] = {}
        self._clone_check = CloneCheck(reactor)
        self._logged: dict[str, tuple[float, int]] = {}

    @property
    def peers(self) -> list[PeerIdentity]:
        return [connection.peer for connection in self._peers.values() if connection.peer is not None]

    def arrived(self, connection: AcceptedConnection) -> None:
        """A connection was accepted and is not authenticated."""
        self._unauthenticated[connection] = None
        if len(self._unauthenticated) > bounds.UNAUTHENTICATED_MAX:
            # The oldest is closed: an honest peer authenticates in milliseconds, and so gets in
            # while hundreds sit idle.
            oldest = next(iter(self._unauthenticated))
            oldest.give_up(Crowded(f"more than {bounds.UNAUTHENTICATED_MAX} connections of strangers"))
            self.gone(oldest)

    async def admit(self, connection: AcceptedConnection, peer: PeerIdentity) -> None:
        """The connection has proven that it is ``peer``: keep it, and close the peer's older
        connections unread.

        :raises StaleSession: a newer run or registration of that node is known (F42), or an earlier
            run of it lives (F14).
        :raises EarlierRun: an earlier run of that node is still connected; the dialler may try
            again.
        :raises Crowded: too many peers."""
        place = peer.node_id, peer.lane
        if place not in self._peers and len(self._peers) >= bounds.ACCEPTED_MAX:
            raise Crowded(f"more than {bounds.ACCEPTED_MAX} connections of peers")
        accepted = [other for lane in Lane if (other := self._peers.get((peer.node_id, lane))) is not None]
        await self._clone_check.wait(peer, accepted, self.sessions.dialled(peer.node_id))
        if connection.ended is not None:  # closed while it waited
            raise connection.ended
        self.sessions.observe(peer)
        for lane in Lane:
            older = self._peers.get((peer.node_id, lane))
            if older is not None and older.peer is not None and (lane is peer.lane or older.peer.order < peer.order):
                del self._peers[peer.node_id, lane]
                older.give_up(Superseded(f"node {peer.name} is connected anew"))
        self._unauthenticated.pop(connection, None)
        self._peers[place] = connection

    def stop(self) -> None:
        """Refuse the connections that wait in ``admit``."""
        self._clone_check.stop()

    def gone(self, connection: AcceptedConnection) -> None:
        """A connection has ended; forget it, and log why if this side refused or closed it."""
        if connection in self._unauthenticated:
            del self._unauthenticated[connection]
            if connection.ended is not None:
                self._refused(connection, connection.ended)
        elif (
            connection.peer is not None
            and self._peers.get((connection.peer.node_id, connection.peer.lane)) is connection
        ):
            del self._peers[connection.peer.node_id, connection.peer.lane]
            if isinstance(connection.ended, WireRefusal) and not isinstance(connection.ended, Stopped):
                self._log(f"closed the connection of node {connection.peer.name} at", connection, connection.ended)

    def _refused(self, connection: AcceptedConnection, why: TaskQueueError) -> None:
        self.refusals[why.code] += 1
        if isinstance(why, WireRefusal):  # anything else is a port check: connected and closed without a word
            self._log("refused a connection from", connection, why)

    def _log(self, what: str, connection: AcceptedConnection, why: TaskQueueError) -> None:
        """Log at most a line per reason in ``REFUSALS_LOGGED_EVERY_S``: refused peers redial."""
        log = Log.info if isinstance(why, WireRefusal) and why.is_ordinary else Log.warn
        now_s = self._reactor.seconds()
        last_s, unsaid = self._logged.get(why.code, (-bounds.REFUSALS_LOGGED_EVERY_S, 0))
        if now_s - last_s < bounds.REFUSALS_LOGGED_EVERY_S:
            self._logged[why.code] = last_s, unsaid + 1
            return
        self._logged[why.code] = now_s, 0
        log(
            "{what} {source}: {why}{more}",
            what=what,
            source=connection.address,
            why=why.detail,
            more=f" (and {unsaid} more like it)" if unsaid else "",
            code=why.code,
            event="peer_refused",
        )
