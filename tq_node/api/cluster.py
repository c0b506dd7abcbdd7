"""``/cluster/…``: what the cluster looks like, and the orders that operators give it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred

from tq_node import errors
from tq_node.api.failures import NoSuchPartition
from tq_node.api.query import NodeParameters, NoParameters, RecoverParameters, read_query
from tq_node.api.request import ApiRequest
from tq_node.api.routes import Answer, Route
from tq_node.errors import LastNode, NoSuchNode
from tq_node.facade import ClusterView, PartitionView, TaskQueue

_encode = msgspec.json.Encoder().encode


class NodeServices(msgspec.Struct):
    """``HOST:PORT`` each."""

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


class ClusterAnswer(msgspec.Struct):
    cluster: ClusterOut


class PartitionsAnswer(msgspec.Struct):
    partitions: list[PartitionView]


class NodeDone(msgspec.Struct):
    success: bool
    node: str


class SnapshotDone(msgspec.Struct):
    """``path`` is on the node's own disk."""

    success: bool
    node: str
    path: str


class ClusterRoutes:
    """``shutdown`` is called, once the answer is on its way, to end this node in order as SIGTERM does."""

    def __init__(self, queue: TaskQueue, shutdown: Callable[[], None]) -> None:
        self._queue = queue
        self._shutdown = shutdown

    def cluster(self, request: ApiRequest) -> None:
        read_query(request, NoParameters)
        request.answer(200, _encode(ClusterAnswer(_cluster_out(self._queue.cluster()))))

    def partitions(self, request: ApiRequest) -> None:
        read_query(request, NoParameters)
        request.answer(200, _encode(PartitionsAnswer(list(self._queue.partition_views()))))

    def drain(self, request: ApiRequest) -> None:
        self._known_node(read_query(request, NodeParameters).node)
        raise LastNode("a drain needs another node to move the tasks to")

    def remove(self, request: ApiRequest) -> None:
        self._known_node(read_query(request, NodeParameters).node)
        raise LastNode("the only node of a cluster can't be removed from it")

    def rebalance(self, request: ApiRequest) -> None:
        # One node has all partitions, and they could not lie better.
        read_query(request, NoParameters)
        self._done(request, self._queue.node_name)

    def shutdown(self, request: ApiRequest) -> None:
        node = read_query(request, NodeParameters).node
        self._known_node(node)
        self._done(request, node)
        # In a later turn: the answer shall be in the socket before the site begins to close.
        request.site.reactor.callLater(0.0, self._shutdown)

    def snapshot(self, request: ApiRequest) -> Deferred[None]:
        read_query(request, NoParameters)

        def answer(path: str) -> None:
            request.answer(200, _encode(SnapshotDone(True, self._queue.node_name, path)))

        return self._queue.backup().addCallback(answer)

    def unsafe_recover(self, request: ApiRequest) -> None:
        sent = read_query(request, RecoverParameters)
        self._known_node(sent.node)
        if sent.partition >= self._queue.cluster().partition_count:
            raise NoSuchPartition(f"there is no partition {sent.partition}")
        raise LastNode("there is no other copy that the partition could be recovered from")

    def _known_node(self, name: str) -> None:
        if all(node.name != name for node in self._queue.cluster().nodes):
            raise NoSuchNode(f"there is no node {name}")

    def _done(self, request: ApiRequest, node: str) -> None:
        request.answer(202, _encode(NodeDone(True, node)))

    def routes(self) -> list[Route]:
        begun = {202: Answer("begun", NodeDone)}
        return [
            Route(
                "GET", "/cluster", self.cluster, "The nodes and the leader", {200: Answer("the cluster", ClusterAnswer)}
            ),
            Route(
                "GET",
                "/cluster/partitions",
                self.partitions,
                "Where each partition is",
                {200: Answer("all partitions", PartitionsAnswer)},
            ),
            Route(
                "POST",
                "/cluster/drain",
                self.drain,
                "Move everything off a node",
                begun,
                query=NodeParameters,
                errors=(NoSuchNode, LastNode, errors.NoController),
            ),
            Route(
                "POST",
                "/cluster/remove",
                self.remove,
                "Take a node out of the cluster",
                begun,
                query=NodeParameters,
                errors=(NoSuchNode, LastNode, errors.NoController),
            ),
            Route(
                "POST",
                "/cluster/rebalance",
                self.rebalance,
                "Spread the partitions evenly",
                begun,
                errors=(errors.NoController,),
            ),
            Route(
                "POST",
                "/cluster/shutdown",
                self.shutdown,
                "End a node in order, as SIGTERM does",
                begun,
                query=NodeParameters,
                errors=(NoSuchNode,),
            ),
            Route(
                "POST",
                "/cluster/snapshot",
                self.snapshot,
                "Online backup of this node, in its data directory",
                {200: Answer("the backup is complete", SnapshotDone)},
                errors=(errors.DiskReserve, errors.Draining, errors.NotReady),
            ),
            Route(
                "POST",
                "/cluster/unsafe-recover",
                self.unsafe_recover,
                "Make a stale copy the primary of a partition; may lose tasks",
                begun,
                query=RecoverParameters,
                errors=(NoSuchNode, NoSuchPartition, LastNode, errors.NoController),
            ),
        ]


def _cluster_out(view: ClusterView) -> ClusterOut:
    return ClusterOut(
        id=view.cluster_id,
        name=view.cluster_name,
        nodes=[
            NodeOut(
                id=node.name,
                ip=node.http,
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
    )
