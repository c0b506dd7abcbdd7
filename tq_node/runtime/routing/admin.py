"""What operators ask of a cluster, and what it shows of itself: the facade without tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from twisted.internet.defer import Deferred, fail, succeed

from tq_node import limits
from tq_node.cluster import admin_requests
from tq_node.cluster.commands import (
    AnnounceTypes,
    DeleteType,
    Order,
    PutInvitation,
    PutToken,
    PutType,
    Rebalance,
    RevokeToken,
    feature_level_of,
    ordered_by,
)
from tq_node.cluster.liveness import Liveness
from tq_node.cluster.records import ClusterMap
from tq_node.cluster.refusals import Refusal
from tq_node.cluster.views import STATUSES, Group, count_moves, count_short, show_cluster, show_partitions
from tq_node.errors import (
    ClusterRefused,
    LastNode,
    NoSuchNode,
    NoSuchPartition,
    NoSuchToken,
    NoSuchType,
    NotReady,
    TaskQueueError,
    Upgrading,
)
from tq_node.facade import NotReadyReason, ReadyNote
from tq_node.limits import CLUSTER_NAME
from tq_node.raft.lost_log import Claim
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.control_plane import ControlPlane
from tq_node.runtime.control.registration import TableRefused
from tq_node.runtime.routing.node_state import NodeState
from tq_node.tokens import TokenEntry
from tq_node.types import ClusterNode, ClusterView, NodeId, PartitionView

EVERYWHERE_MS = 1_000
"""How long an order waits until all nodes know of it, as their heartbeats say."""
EVERYWHERE_LOOK_S = 0.02
_SENTENCES = {
    Refusal.LAST_NODE: "the cluster has no other node that could take over",
    Refusal.LAST_COPY: "the node has the only copy of some partitions: see unsafe-recover",
    Refusal.NOT_NEEDED: "nothing needs to be done: the partition has a primary and all its copies are there",
    Refusal.NOT_UP: "that node is down",
    Refusal.TOO_MANY: "too many queues or types are paused already",
}
_OF_TOKENS: dict[Refusal, tuple[type[TaskQueueError], str]] = {
    Refusal.BAD_SETTINGS: (ClusterRefused, "no token can be like that"),
    Refusal.TOO_MANY: (
        ClusterRefused,
        f"the table keeps {limits.TOKENS_MAX} tokens, with {limits.TOKENS_QUEUES_MAX} names of queues in all: revoke some",
    ),
    Refusal.NOT_NEEDED: (NoSuchToken, ""),
}
"""What a refusal says of orders about tokens."""
_OF_TYPES: dict[Refusal, tuple[type[TaskQueueError], str]] = {
    Refusal.BAD_SETTINGS: (ClusterRefused, "no type can have such defaults"),
    Refusal.TOO_MANY: (ClusterRefused, f"defaults of {limits.TYPE_SETTINGS_MAX} types are kept already: delete some"),
    Refusal.NOT_NEEDED: (NoSuchType, "no defaults of it were put or announced"),
}


class ClusterAdmin:
    """See the module's docstring. ``on_shutdown``: an operator wants this node to end, in order."""

    def __init__(self, state: NodeState, clock: Clock, on_shutdown: Callable[[], None]) -> None:
        self._state = state
        self._clock = clock
        self._on_shutdown = on_shutdown

    @property
    def _plane(self) -> ControlPlane:
        return self._state.plane

    @property
    def _map(self) -> ClusterMap:
        return self._state.plane.map

    # --- what there is to see ---
    def cluster(self) -> ClusterView:
        core = self._plane.core
        if not self._map.is_founded:
            own = self._plane.membership.registration
            me = ClusterNode(self._state.node_id, self._state.node_name, own.http, own.peer, "joining", voter=False)
            return ClusterView("", CLUSTER_NAME, [me], None, 0, 0, 0)
        group = Group(
            self._state.node_id, core.leader, core.term, core.configuration.voters, core.configuration.learners
        )
        return show_cluster(self._map, self._plane.membership.liveness, group, self._clock.now_ms())

    def partition_views(self) -> Sequence[PartitionView]:
        progress = {} if self._state.local is None else self._state.local.progress()
        return show_partitions(self._map, progress, self._waiting())

    def _waiting(self) -> Mapping[int, str]:
        """Only a leader knows; what one that was deposed last thought is not shown."""
        return self._plane.membership.waiting if self._plane.core.is_leader else {}

    def moves(self) -> Mapping[str, int]:
        """Of the partitions that this node leads, by stage; for metrics."""
        return count_moves(self._map, self._state.node_id)

    def copy_bytes_left(self) -> int:
        """What the copies that do not count yet still lack of partitions led here; for metrics."""
        progress = {} if self._state.local is None else self._state.local.progress()
        return sum(left for known in progress.values() for _, left in known.copying.values())

    def copied_bytes(self) -> int:
        """Sent by this run of the node to copies that did not count; for metrics."""
        return 0 if self._state.local is None else self._state.local.copied_bytes()

    def nodes_by_status(self) -> Mapping[str, int]:
        """Members of the cluster as this node sees them; for metrics."""
        counts = dict.fromkeys(STATUSES, 0)
        for node in self.cluster().nodes:
            counts[node.status] += 1
        return counts

    def is_leader(self) -> bool:
        """Of the cluster; for metrics."""
        return self._plane.core.is_leader

    def partitions_short(self) -> tuple[int, int]:
        """(under-replicated, offline), by this node's map; for metrics."""
        return count_short(self._map)

    def task_counts(self) -> Iterable[tuple[str, Sequence[int]]]:
        """Tasks of partitions led here, by queue and state, partition by partition; for metrics."""
        return () if self._state.local is None else self._state.local.task_counts()

    def uncommitted_bytes(self) -> int:
        """Proposed and not yet durable; for metrics."""
        return 0 if self._state.local is None else self._state.local.uncommitted_bytes()

    def moves_waiting(self) -> Mapping[str, int]:
        """Of all partitions, by reason, at the leader; for metrics."""
        return Counter(self._waiting().values())

    def not_ready(self) -> Sequence[NotReadyReason]:
        reasons = []
        guarded = self._state.guard()
        core = self._plane.core
        if guarded is not None:
            reasons.append(guarded)
        if self._state.is_stopping:
            reasons.append(NotReadyReason("draining", "the node is stopping"))
        if not self._map.is_founded:
            reasons.append(NotReadyReason("joining", "the node has not joined its cluster yet"))
        elif not self._plane.membership.is_registered:
            reasons.append(NotReadyReason("joining", "the cluster does not know this run of the node yet"))
        if self._map.is_founded and core.leader is None:
            reasons.append(NotReadyReason("no_controller", "the cluster has no leader for now"))
        if core.claim is not None and core.claim.binds:
            reasons.append(_disagreement(core.claim, core.log.last_index, self._map))
        if self._state.local is not None:
            reasons += self._state.local.not_ready()
        elif self._map.is_founded:
            reasons.append(NotReadyReason("not_ready", "the node is reading its store"))
        return reasons

    def notes(self) -> Sequence[ReadyNote]:
        """What an operator should see, though the node can serve."""
        core, notes = self._plane.core, []
        if core.claim is not None and not core.claim.binds:
            reason = _disagreement(core.claim, core.log.last_index, self._map)
            notes.append(ReadyNote(reason.code, reason.detail))
        if self._plane.tokens_seen and not self._state.tokens.confirmation.is_confirmed():
            notes.append(
                ReadyNote("tokens_stale", "no majority confirms the access tokens: those of the table get 503")
            )
        return notes

    # --- orders ---
    def drain(self, node: str, by: str = "") -> Deferred[None]:
        return self._order(node, by, lambda node_id: admin_requests.drain(self._map, node_id))

    def undrain(self, node: str, by: str = "") -> Deferred[None]:
        return self._order(node, by, lambda node_id: admin_requests.undrain(self._map, node_id))

    def remove(self, node: str, by: str = "") -> Deferred[None]:
        return self._order(node, by, lambda node_id: admin_requests.remove(self._map, self._liveness, node_id))

    def unsafe_recover(self, partition: int, node: str, by: str = "") -> Deferred[None]:
        if not 0 <= partition < len(self._map.partitions):
            return fail(NoSuchPartition(f"there is no partition {partition}"))
        return self._order(node, by, lambda node_id: admin_requests.unsafe_recover(self._map, partition, node_id))

    def rebalance(self, by: str = "") -> Deferred[None]:
        return self._propose(Rebalance(), by)

    # --- access tokens ---
    def put_token(self, entry: TokenEntry) -> Deferred[None]:
        """See ``facade.TaskQueue.put_token``."""
        return Deferred.fromCoroutine(self._token_everywhere(PutToken(entry), entry.created_by))

    def revoke_token(self, name: str, by: str = "") -> Deferred[None]:
        """See ``facade.TaskQueue.revoke_token``."""
        return Deferred.fromCoroutine(self._token_everywhere(RevokeToken(name), by))

    async def _token_everywhere(self, order: Order, by: str) -> None:
        await self._everywhere(order, by)
        # The first token counts here at once: its caller will come back with it.
        await self._until(self._state.tokens.confirmation.is_confirmed)

    def order_everywhere(self, order: Order, by: str) -> Deferred[None]:
        """Have the map changed; fires once all nodes up know, or after a second."""
        return Deferred.fromCoroutine(self._everywhere(order, by))

    def shutdown(self, node: str, by: str = "") -> Deferred[None]:
        known = self._map.node_named(node)
        if node == self._state.node_name:
            self._on_shutdown()
            return succeed(None)
        if known is None:
            return fail(NoSuchNode(f"there is no node {node}"))
        asked = self._state.client.call(known.node_id, calls.SHUTDOWN, calls.Shutdown(by))
        return asked.addCallback(lambda _: None)

    @property
    def _liveness(self) -> Liveness:
        return self._plane.membership.liveness

    def _order(self, node: str, by: str, order_for: Callable[[NodeId], Order | Refusal]) -> Deferred[None]:
        known = self._map.node_named(node)
        if known is None:
            return fail(NoSuchNode(f"there is no node {node}"))
        order = order_for(known.node_id)
        if isinstance(order, Refusal):
            return fail(as_error(order))
        return self._propose(order, by)

    def _propose(self, order: Order, by: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._proposed(order, by)).addCallback(lambda _: None)

    async def _everywhere(self, order: Order, by: str) -> None:
        """Committed, and known to all nodes up: then nothing of a paused queue starts anywhere."""
        log_index = await self._proposed(order, by)
        await self._until(
            lambda: all(
                self._plane.consensus.applied_index >= log_index
                if node.node_id == self._state.node_id
                else self._liveness.has_reached(node.node_id, log_index)
                for node in self._map.members()
                if node.is_up
            )
        )

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Look again and again, for ``EVERYWHERE_MS`` at the most."""
        deadline_ms = self._clock.now_ms() + EVERYWHERE_MS
        while self._clock.now_ms() < deadline_ms and not reached():
            await self._plane.membership.pause(EVERYWHERE_LOOK_S)

    async def _proposed(self, order: Order, by: str) -> int:
        if not self._plane.membership.is_registered:
            raise NotReady("the node is not, or not yet, a member of a cluster")
        if feature_level_of(order) > self._map.feature_level:  # a leader of an earlier release could not read it
            raise as_error(Refusal.FEATURE_LEVEL)
        try:
            outcome = await self._plane.membership.propose(ordered_by(order, by, self._map.feature_level))
        except TableRefused as why:
            raise as_error(why.refusal, order) from None
        if outcome.refused:
            raise as_error(outcome.refused[0].code, order)
        return outcome.log_index


def _disagreement(claim: Claim, last_index: int, table: ClusterMap) -> NotReadyReason:
    known = table.nodes.get(claim.source)
    name = claim.source if known is None else known.name
    return NotReadyReason(
        "leader_disagrees",
        f"node {name} said, as leader of term {claim.term}, that this node had acknowledged entry {claim.log_index} of the "
        f"cluster's log, which ends here at {last_index}: it votes with care until an entry agrees",
    )


def as_error(refusal: Refusal, order: Order | None = None) -> TaskQueueError:
    """The table's word as the error of whoever asked."""
    if isinstance(order, PutInvitation) and refusal is Refusal.TOO_MANY:
        return ClusterRefused(f"{limits.INVITATIONS_MAX} invitations are open already: each ends after an hour")
    if isinstance(order, PutToken | RevokeToken) and refusal in _OF_TOKENS:
        kind, detail = _OF_TOKENS[refusal]
        return kind(detail)
    if isinstance(order, PutType | DeleteType | AnnounceTypes) and refusal in _OF_TYPES:
        kind, detail = _OF_TYPES[refusal]
        return kind(detail)
    sentence = _SENTENCES.get(refusal, str(refusal).replace("_", " "))
    if refusal is Refusal.NO_SUCH_NODE:
        return NoSuchNode()
    if refusal is Refusal.NO_SUCH_PARTITION:
        return NoSuchPartition()
    if refusal is Refusal.LAST_NODE:
        return LastNode(sentence)
    if refusal is Refusal.FEATURE_LEVEL:
        return Upgrading("a node of the cluster has a release that does not know this yet")
    return ClusterRefused(sentence)
