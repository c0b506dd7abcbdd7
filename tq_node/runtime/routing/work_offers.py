"""Offers of work: a node with more ready tasks than free slots informs its peers (section 8); see
``work_stealing``.

Nothing is said, and no timer runs, where nothing waits: an idle cluster stays idle. What nobody
here has a handler for is offered at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId
from tq_node.wire.errors import WireRefusal


class WorkOffers:
    """:param peers: those that may be asked for help, in an order that stays.

    :param types_of: what a peer's worker takes; None: any, or it did not say."""

    def __init__(
        self,
        local: LocalQueue,
        client: PeerClient,
        clock: Clock,
        peers: Callable[[], Sequence[NodeId]],
        types_of: Callable[[NodeId], Collection[str] | None] = lambda _: None,
    ) -> None:
        self._local = local
        self._client = client
        self._clock = clock
        self._peers = peers
        self._types_of = types_of
        self._turn = 0
        self._unanswered: dict[NodeId, bool] = {}
        """Peers that have not answered an offer yet, and whether there has been news since."""
        self._unaware: set[NodeId] = set()
        """Peers of an earlier version, which do not know the call."""
        self._timer: IDelayedCall | None = None
        self._soon: IDelayedCall | None = None
        self._looked_ms = -limits.HELP_OFFER_APART_MS
        """When it was last looked for what nobody here takes, monotonic."""
        self._stopped = False

    def noticed(self) -> None:
        """Schedule an offer: a task may be ready; what finds a slot meanwhile is not offered."""
        if self._timer is None and not self._stopped:
            self._timer = self._clock.call_later(limits.HELP_OFFER_MS / 1000, self._look)
        if self._soon is None and self._local.table.ready.has_foreign:
            self._look_soon()

    def _look_soon(self) -> None:
        if self._soon is None and not self._stopped:
            after_ms = max(0, self._looked_ms + limits.HELP_OFFER_APART_MS - self._clock.now_ms())
            self._soon = self._clock.call_later(after_ms / 1000, self._look_at_once)

    def _look_at_once(self) -> None:
        self._soon = None
        self._looked_ms = self._clock.now_ms()
        self._local.table.ready.has_foreign = False
        self._offer_to_able()

    def _look_again(self) -> None:
        if not self._stopped:
            self._timer = self._clock.call_later(limits.HELP_OFFER_AGAIN_MS / 1000, self._look)

    def connected(self, node: NodeId) -> None:
        """It may run another version than before."""
        self._unaware.discard(node)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def _look(self) -> None:
        self._timer = None
        if self._offer_to_able():
            self._look_again()

    def _offer_to_able(self) -> bool:
        """Offer what waits to those that take it; returns whether there are any."""
        if self._local.claims.backlog() <= 0:
            return False
        backlogs = {node: self._local.claims.backlog(self._types_of(node)) for node in self._peers()}
        able = [node for node, backlog in backlogs.items() if backlog > 0]
        for node in self._next(able):
            self._offer(node, backlogs[node])
        return bool(able)  # where it is for none of them, it is noticed that one comes

    def _next(self, peers: Sequence[NodeId]) -> Sequence[NodeId]:
        """All of them, or as many as are told at a time, each in its turn."""
        if len(peers) <= limits.HELP_PEERS_MAX:
            return peers
        first = self._turn % len(peers)
        self._turn = first + limits.HELP_PEERS_MAX
        return [peers[(first + step) % len(peers)] for step in range(limits.HELP_PEERS_MAX)]

    def _offer(self, node: NodeId, backlog: int) -> None:
        if node in self._unanswered or node in self._unaware:
            if node in self._unanswered:
                self._unanswered[node] = True
            return
        self._unanswered[node] = False
        offered = self._client.call(node, calls.OFFER, calls.WorkOffer(self._local.node_id, backlog))

        def answered(result: object) -> None:
            """Offered again while it is so, whatever came of it, but not to who can't read it."""
            if self._unanswered.pop(node):
                self._look_soon()
            if isinstance(result, Failure) and result.check(WireRefusal):
                self._unaware.add(node)

        offered.addBoth(answered)
