"""Leases of attempts that run here, led elsewhere: renewed at their primary (section 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import TaskQueueError
from tq_node.facade import Claim
from tq_node.partition.leases import renewed_until_ms
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId, Token

_log = Logger(namespace="taskqueue.running")


class LeaseRenewer:
    """Renews leases at other nodes' primaries. ``primary_of``: by the map; None: none for now."""

    def __init__(
        self, local: LocalQueue, client: PeerClient, clock: Clock, primary_of: Callable[[int], NodeId | None]
    ) -> None:
        self._local = local
        self._client = client
        self._clock = clock
        self._primary_of = primary_of
        self._until_ms: dict[tuple[str, Token], int] = {}
        """By attempt, what its primary elsewhere has granted, in this node's monotonic time."""

    def lease_ms(self, claim: Claim) -> int:
        """See ``facade.TaskQueue.lease_ms``."""
        if self._local.leads(claim.partition):
            return self._local.claims.lease_ms(claim.partition)
        return max(0, self._until_ms.get((claim.task_id, claim.token), 0) - self._clock.now_ms())

    def granted(self, claims: Iterable[Claim], asked_ms: int) -> None:
        """Note the leases that a primary granted when asked at ``asked_ms`` (monotonic)."""
        until_ms = renewed_until_ms(asked_ms, limits.LEASE_MS, limits.LEASE_MARGIN_MS)
        for claim in claims:
            self._until_ms[claim.task_id, claim.token] = until_ms

    def round(self) -> None:
        """Ask primaries to renew every attempt of theirs here. Called every ``LEASE_RENEW_MS``."""
        away: dict[int, list[Claim]] = {}
        granted: dict[tuple[str, Token], int] = {}
        for claim in self._local.claims.held_claims():
            if not self._local.leads(claim.partition):
                away.setdefault(claim.partition, []).append(claim)
                key = claim.task_id, claim.token
                granted[key] = self._until_ms.get(key, 0)
        self._until_ms = granted
        by_primary: dict[NodeId, list[int]] = {}
        for partition in away:
            primary = self._primary_of(partition)
            if primary is not None:
                by_primary.setdefault(primary, []).append(partition)
        for primary, partitions in by_primary.items():
            if primary != self._local.node_id:  # else it is about to be active here
                for partition in partitions:
                    self._ask(primary, partition, away[partition])

    def _ask(self, primary: NodeId, partition: int, claims: list[Claim]) -> None:
        sent_ms = self._clock.now_ms()
        asked = calls.Renew(partition, [(claim.task_id, claim.token) for claim in claims])
        answer: Deferred[list[bool]] = self._client.call(primary, calls.RENEW, asked)

        def granted(holds: list[bool]) -> None:
            # Each attempt has its own lease: others of its partition gain a refused one nothing.
            self.granted([claim for claim, holds_it in zip(claims, holds, strict=False) if holds_it], sent_ms)
            for claim, holds_it in zip(claims, holds, strict=False):
                if not holds_it:
                    self._local.claims.stop_attempt(claim.task_id, claim.token)

        answer.addCallbacks(granted, _not_renewed).addErrback(_bug)


def _not_renewed(why: Failure) -> None:
    """Asked again in the next round; without an answer in time the attempt ends by its lease."""
    why.trap(TaskQueueError)


def _bug(why: Failure) -> None:
    _log.failure("leases could not be renewed", failure=why, event="renew_failed")
