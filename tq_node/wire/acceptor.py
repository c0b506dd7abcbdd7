"""Who is connected to a listener: strangers, of whom there may be only so many, and peers, one connection to a lane each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from tq_node.errors import TaskQueueError
from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire.amp import Log
from tq_node.wire.clones import CloneCheck
from tq_node.wire.commands import Lane
from tq_node.wire.errors import Crowded, Stopped, Superseded, WireRefusal
from tq_node.wire.handshake import PeerIdentity, Sessions
from tq_node.wire.inflight import Budget


class Guest(Protocol):
    """An accepted connection, as far as the doorman sees it."""

    peer: PeerIdentity | None
    ended: TaskQueueError | None
    address: str
    heard_at_s: float

    def give_up(self, reason: TaskQueueError, flush: bool = False) -> None: ...


class Acceptor:
    """:param entropy: random bytes, so many."""

    def __init__(self, reactor: IReactorTime, sessions: Sessions, entropy: Callable[[int], bytes]) -> None:
        self.sessions = sessions
        self.entropy = entropy
        self.budgets = {lane: Budget(bounds.HELD_BYTES_MAX) for lane in Lane}
        self.refusals: Counter[str] = Counter()
        """Connections that ended before they were authenticated, by the code of the reason."""
        self._reactor = reactor
        self._strangers: dict[Guest, None] = {}
        self._peers: dict[tuple[NodeId, Lane], Guest] = {}
        self._earlier_runs = CloneCheck(reactor)
        self._logged: dict[str, tuple[float, int]] = {}

    @property
    def guests(self) -> list[Guest]:
        return [*self._strangers, *self._peers.values()]

    @property
    def peers(self) -> list[PeerIdentity]:
        return [guest.peer for guest in self._peers.values() if guest.peer is not None]

    def arrived(self, guest: Guest) -> None:
        self._strangers[guest] = None
        if len(self._strangers) > bounds.STRANGERS_MAX:
            # The oldest goes: an honest peer is done in milliseconds, and so gets in while hundreds just sit there.
            oldest = next(iter(self._strangers))
            oldest.give_up(Crowded(f"more than {bounds.STRANGERS_MAX} connections of strangers"))
            self.gone(oldest)

    async def admit(self, guest: Guest, peer: PeerIdentity) -> None:
        """The stranger has become a peer. Connections that it has left behind are closed, and what they said last is not heard.

        :raises StaleSession: a newer run or registration of that node is known (F42), or an earlier run of it lives (F14).
        :raises EarlierRun: for now: an earlier run is still connected.
        :raises Crowded: too many peers.
        """
        place = peer.node_id, peer.lane
        if place not in self._peers and len(self._peers) >= bounds.ACCEPTED_MAX:
            raise Crowded(f"more than {bounds.ACCEPTED_MAX} connections of peers")
        accepted = [other for lane in Lane if (other := self._peers.get((peer.node_id, lane))) is not None]
        await self._earlier_runs.wait(peer, accepted, self.sessions.dialled(peer.node_id))
        if guest.ended is not None:  # it did not wait
            raise guest.ended
        self.sessions.observe(peer)
        for lane in Lane:
            older = self._peers.get((peer.node_id, lane))
            if older is not None and older.peer is not None and (lane is peer.lane or older.peer.order < peer.order):
                del self._peers[peer.node_id, lane]
                older.give_up(Superseded(f"node {peer.name} is connected anew"))
        self._strangers.pop(guest, None)
        self._peers[place] = guest

    def stop(self) -> None:
        """Nobody waits to be let in any more."""
        self._earlier_runs.stop()

    def gone(self, guest: Guest) -> None:
        if guest in self._strangers:
            del self._strangers[guest]
            if guest.ended is not None:
                self._refused(guest, guest.ended)
        elif guest.peer is not None and self._peers.get((guest.peer.node_id, guest.peer.lane)) is guest:
            del self._peers[guest.peer.node_id, guest.peer.lane]
            if isinstance(guest.ended, WireRefusal) and not isinstance(guest.ended, Stopped):
                self._log(f"closed the connection of node {guest.peer.name} at", guest, guest.ended)

    def _refused(self, guest: Guest, why: TaskQueueError) -> None:
        self.refusals[why.code] += 1
        if isinstance(why, WireRefusal):  # else somebody came and went without a word: a port check
            self._log("refused a connection from", guest, why)

    def _log(self, what: str, guest: Guest, why: TaskQueueError) -> None:
        """At most one line for each reason in a while: whoever is refused once is so a hundred times."""
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
            source=guest.address,
            why=why.detail,
            more=f" (and {unsaid} more like it)" if unsaid else "",
            code=why.code,
            event="peer_refused",
        )
