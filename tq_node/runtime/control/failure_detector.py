"""Evidence that a node is dead (R5a): broken connection *and* port refused twice; no time-out."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.cluster.liveness import Evidence
from tq_node.runtime.clock import Clock
from tq_node.types import NodeId
from tq_node.wire.commands import Lane
from tq_node.wire.handshake import PeerIdentity
from tq_node.wire.pool import PeerPool

_log = Logger(namespace="taskqueue.evidence")

PROBES_MAX = 20
PROBE_AGAIN_S = 0.05
"""Between two probes: a dying process closes socket by socket, so the port may answer once more."""


class FailureDetector:
    """Looks for evidence whenever a consensus lane breaks.

    :param session_of: the cluster map's session of a node; 0 if it has none.
    :param on_found: called with conclusive evidence, once for each death."""

    def __init__(
        self,
        me: NodeId,
        pool: PeerPool,
        clock: Clock,
        session_of: Callable[[NodeId], int],
        on_found: Callable[[Evidence], None],
    ) -> None:
        self._me = me
        self._pool = pool
        self._clock = clock
        self._session_of = session_of
        self._on_found = on_found
        self._found: dict[NodeId, Evidence] = {}
        self._looking: set[NodeId] = set()
        self._searches: dict[Deferred[None], None] = {}
        self._stopped = False

    @property
    def found(self) -> list[Evidence]:
        """Evidence that still holds, to be repeated to a new leader."""
        return [self._found[node] for node in sorted(self._found)]

    def lane_lost(self, peer: PeerIdentity, *, broke: bool) -> None:
        if broke and peer.lane is Lane.CONSENSUS and peer.node_id not in self._looking and not self._stopped:
            self._looking.add(peer.node_id)
            search = Deferred.fromCoroutine(self._look(peer.node_id, self._session_of(peer.node_id)))
            self._searches[search] = None
            search.addErrback(self._search_failed).addBoth(lambda _: self._searches.pop(search, None))

    def lane_up(self, peer: PeerIdentity) -> bool:
        """The node lives. Returns whether there was evidence against it, which is dropped."""
        return self._found.pop(peer.node_id, None) is not None

    def forget(self, node: NodeId) -> None:
        """Drop evidence about a node that the map has as down, or that has registered anew."""
        self._found.pop(node, None)

    async def stop(self) -> None:
        """Wait until no search is in progress: a second at most."""
        self._stopped = True
        for search in list(self._searches):
            await search

    def _search_failed(self, why: Failure) -> None:
        _log.failure("looking for evidence failed", failure=why, event="evidence_failed")

    async def _look(self, node: NodeId, session: int) -> None:
        try:
            for _ in range(PROBES_MAX):
                refused = await self._pool.probe_refused(node)
                if self._stopped or self._pool.is_connected(node):
                    return
                if refused:
                    evidence = Evidence(self._me, self._session_of(self._me), node, session, True, refused)
                    self._found[node] = evidence
                    self._on_found(evidence)
                    return
                await self._pause()
        finally:
            self._looking.discard(node)

    def _pause(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._clock.call_later(PROBE_AGAIN_S, done.callback, None)
        return done
