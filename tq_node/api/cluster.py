"""``/cluster/…``: views of the cluster, and the operator's requests to change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from tq_node import errors
from tq_node.api.access.access import Access
from tq_node.api.http.request import ApiRequest
from tq_node.api.problems import PeerUnreachable
from tq_node.api.query import NodeParameters, NoParameters, RecoverParameters, read_query
from tq_node.api.responses import PauseOut, pause_out
from tq_node.api.routes import Answer, Route
from tq_node.facade import TaskQueue
from tq_node.types import ClusterView, PartitionView, PauseEntry

_log = Logger(namespace="taskqueue.http")
_encode = msgspec.json.Encoder().encode


class NodeServices(msgspec.Struct):
    """Addresses of a node, each ``HOST:PORT``."""

    http: str
    peer: str


class NodeOut(msgspec.Struct):
    """``id`` and ``name`` are both the node's name; ``ip`` is its HTTP address."""

    id: str
    ip: str
    name: str
    status: str
    voter: bool
    services: NodeServices


class ClusterConfig(msgspec.Struct):
    partition_count: int
    replication_factor: int


class ClusterOut(msgspec.Struct):
    id: str
    name: str
    nodes: list[NodeOut]
    leader: str | None
    term: int
    config: ClusterConfig
    paused_queues: list[str]
    paused: list[PauseOut]
    """Queues first, then types; what is known of each."""


class ClusterAnswer(msgspec.Struct):
    cluster: ClusterOut


class PartitionsAnswer(msgspec.Struct):
    partitions: list[PartitionView]


class NodeDone(msgspec.Struct):
    """``node`` is the node in the request, else the node that answers."""

    success: bool
    node: str


class SnapshotDone(msgspec.Struct):
    """``path`` is on the node's disk; ``kept`` are all snapshots there, newest first."""

    success: bool
    node: str
    path: str
    kept: Sequence[str]


_CHANGE_ERRORS = (errors.NotReady, errors.Draining, errors.NoController, PeerUnreachable, errors.OutcomeUnknown)
"""Of a change through the leader. Its success says that the change is decided, not done."""


class ClusterRoutes:
    """Routes below ``/cluster``. ``shutdown`` ends this node like SIGTERM, after the answer."""

    def __init__(self, queue: TaskQueue, shutdown: Callable[[], None]) -> None:
        self._queue = queue
        self._shutdown = shutdown

    # --- views ---
    def cluster(self, request: ApiRequest) -> None:
        read_query(request, NoParameters)
        own = request.caller.queues
        pauses = [one for one in self._queue.pauses() if own is None or one.target != "queue" or one.name in own]
        request.answer(200, _encode(ClusterAnswer(_cluster_out(self._queue.cluster(), pauses))))

    def partitions(self, request: ApiRequest) -> None:
        read_query(request, NoParameters)
        request.answer(200, _encode(PartitionsAnswer(list(self._queue.partition_views()))))

    # --- changes ---
    def drain(self, request: ApiRequest) -> Deferred[None]:
        node = read_query(request, NodeParameters).node
        return self._queue.drain(node, request.caller.name).addCallback(_answer_begun, request, node)

    def undrain(self, request: ApiRequest) -> Deferred[None]:
        node = read_query(request, NodeParameters).node
        return self._queue.undrain(node, request.caller.name).addCallback(_answer_begun, request, node)

    def remove(self, request: ApiRequest) -> Deferred[None]:
        node = read_query(request, NodeParameters).node
        return self._queue.remove(node, request.caller.name).addCallback(_answer_begun, request, node)

    def rebalance(self, request: ApiRequest) -> Deferred[None]:
        read_query(request, NoParameters)
        return self._queue.rebalance(request.caller.name).addCallback(_answer_begun, request, self._queue.node_name)

    def unsafe_recover(self, request: ApiRequest) -> Deferred[None]:
        sent = read_query(request, RecoverParameters)
        recovered = self._queue.unsafe_recover(sent.partition, sent.node, request.caller.name)
        return recovered.addCallback(_answer_begun, request, sent.node)

    def shutdown(self, request: ApiRequest) -> Deferred[None] | None:
        node = read_query(request, NodeParameters).node
        if node != self._queue.node_name:
            return self._queue.shutdown(node, request.caller.name).addCallback(_answer_begun, request, node)
        _answer_begun(None, request, node)
        if request.caller.name:
            _log.info("told to stop by token {by}", by=request.caller.name, event="ordered")
        # In a later turn, so that the answer is in the socket before the site begins to close.
        request.server.reactor.callLater(0.0, self._shutdown)
        return None

    def snapshot(self, request: ApiRequest) -> Deferred[None]:
        read_query(request, NoParameters)

        def answer(kept: Sequence[str]) -> None:
            request.answer(200, _encode(SnapshotDone(True, self._queue.node_name, kept[0], kept)))

        return self._queue.backup().addCallback(answer)

    # --- the route table ---
    def routes(self) -> list[Route]:
        begun = {202: Answer("begun", NodeDone)}
        node_errors = (errors.NoSuchNode, errors.LastNode, errors.ClusterRefused, *_CHANGE_ERRORS)
        return [
            Route(
                "GET",
                "/cluster",
                Access.LOOK,
                self.cluster,
                "The nodes and the leader",
                {200: Answer("the cluster", ClusterAnswer)},
            ),
            Route(
                "GET",
                "/cluster/partitions",
                Access.LOOK,
                self.partitions,
                "Where each partition is",
                {200: Answer("all partitions", PartitionsAnswer)},
            ),
            Route(
                "POST",
                "/cluster/drain",
                Access.ADMIN,
                self.drain,
                "Move everything off a node",
                begun,
                query=NodeParameters,
                errors=node_errors,
            ),
            Route(
                "POST",
                "/cluster/undrain",
                Access.ADMIN,
                self.undrain,
                "Let a node stay that is being drained",
                begun,
                query=NodeParameters,
                errors=node_errors,
            ),
            Route(
                "POST",
                "/cluster/remove",
                Access.ADMIN,
                self.remove,
                "Take a node out of the cluster",
                begun,
                query=NodeParameters,
                errors=node_errors,
            ),
            Route(
                "POST",
                "/cluster/rebalance",
                Access.ADMIN,
                self.rebalance,
                "Spread the partitions evenly",
                begun,
                errors=(errors.ClusterRefused, *_CHANGE_ERRORS),
            ),
            Route(
                "POST",
                "/cluster/shutdown",
                Access.ADMIN,
                self.shutdown,
                "End a node in order, as SIGTERM does",
                begun,
                query=NodeParameters,
                errors=(errors.NoSuchNode, errors.ClusterRefused, *_CHANGE_ERRORS),
            ),
            Route(
                "POST",
                "/cluster/snapshot",
                Access.ADMIN,
                self.snapshot,
                "Online backup of this node, in its data directory or --snapshot-dir; the newest are kept",
                {200: Answer("the backup is complete", SnapshotDone)},
                errors=(errors.Busy, errors.DiskReserve, errors.Draining, errors.NotReady),
            ),
            Route(
                "POST",
                "/cluster/unsafe-recover",
                Access.ADMIN,
                self.unsafe_recover,
                "Make a node's copy the partition, whatever it lacks; may lose tasks",
                begun,
                query=RecoverParameters,
                errors=(errors.NoSuchPartition, *node_errors),
            ),
        ]


def _answer_begun(_: None, request: ApiRequest, node: str) -> None:
    request.answer(202, _encode(NodeDone(True, node)))


def _cluster_out(view: ClusterView, pauses: Sequence[PauseEntry]) -> ClusterOut:
    # Scripts count nodes by the text `"id":"node-`: no other key `id` may hold a node's name.
    return ClusterOut(
        id=view.cluster_id,
        name=view.cluster_name,
        nodes=[
            NodeOut(
                id=node.name,
                ip=node.http.removeprefix("https://"),
                name=node.name,
                status=node.status,
                voter=node.voter,
                services=NodeServices(node.http, node.peer),
            )
            for node in view.nodes
        ],
        leader=view.leader,
        term=view.term,
        config=ClusterConfig(view.partition_count, view.replication_factor),
        paused_queues=sorted(one.name for one in pauses if one.target == "queue"),
        paused=[pause_out(one) for one in pauses],
    )
