"""What a node's parts share: where it stands in its cluster, and the queue once it is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from tq_node.cluster.placement import partition_of
from tq_node.cluster.records import ClusterMap, ClusterSettings
from tq_node.errors import NotPrimary, NotReady
from tq_node.facade import NotReadyReason, ReadyNote
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.control_plane import ControlPlane
from tq_node.runtime.routing.access_tokens import AccessTokens, FileTokens
from tq_node.runtime.routing.open_tasks import OpenTasks
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import HandledType, NodeId


class ClusterQueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the composition root decides for the queue of a node."""

    node_id: NodeId
    node_name: str
    open_local: Callable[[ClusterSettings], Awaitable[LocalQueue]]
    """Opens the queue of this node, once it is known how the cluster was born."""
    declared: Callable[[], tuple[HandledType, ...]] = tuple
    """Types of this node's handlers with their defaults, whether or not it runs tasks."""
    no_handler_after_ms: int | None = None
    """How long a task may wait for a handler before it fails; None: for ever."""
    draw: Callable[[], float] = lambda: 0.5
    """Random numbers in [0, 1), for pauses."""
    secret_for_joiners: Callable[[], bytes | None] = lambda: None
    """None where operators keep the cluster's secret in a file."""
    file_tokens: FileTokens = FileTokens()
    """What the options say of access tokens, at the start."""
    notes: Callable[[], Sequence[ReadyNote]] = tuple
    """What ``/ready`` says of this node while it runs, such as that it asks for no credentials."""


class NodeState:
    """``local`` is None until the node's queue is open, and again once it is stopped.

    :param guard: why a newborn cluster is not ready (see ``BootstrapGuard``); None once it is."""

    def __init__(
        self,
        clock: Clock,
        settings: ClusterQueueSettings,
        plane: ControlPlane,
        guard: Callable[[], NotReadyReason | None],
    ) -> None:
        self.settings = settings
        self.node_id = settings.node_id
        self.node_name = settings.node_name
        self.plane = plane
        self.client = PeerClient(plane.pool, clock, self.name_of)
        self.tokens = AccessTokens(plane, clock, settings.file_tokens)
        self.open_tasks = OpenTasks(self, clock)
        self.guard = guard
        self.local: LocalQueue | None = None
        self.is_stopping = False
        """Nothing new should come here; what this node leads it serves until others do."""
        self.refuses_work = False
        """No submit is accepted and no task is claimed any more."""
        self.when_open: list[Callable[[LocalQueue], None]] = []
        """Called once, in order, when the queue is open."""

    @property
    def map(self) -> ClusterMap:
        """The cluster map, as this node knows it."""
        return self.plane.map

    def name_of(self, node: NodeId) -> str:
        """Its id where the map does not know it."""
        entry = self.map.nodes.get(node)
        return node if entry is None else entry.name

    def others(self) -> Sequence[tuple[NodeId, str]]:
        """Id and name of each other member of the cluster."""
        return [(node.node_id, node.name) for node in self.map.members() if node.node_id != self.node_id]

    def must_serve(self) -> LocalQueue:
        """This node's queue; raises ``NotReady``: not, or not yet, a member with a queue."""
        guarded = self.guard()
        if guarded is not None:
            raise NotReady(guarded.detail)
        if self.local is None:
            is_joining = not self.map.is_founded
            raise NotReady("the node has not joined its cluster yet" if is_joining else "the node is starting")
        return self.local

    def partition_of(self, task_id: str) -> int:
        """Where the task lives."""
        settings = self.map.settings
        return partition_of(task_id, seed=settings.seed, partition_count=settings.partition_count)

    def route(self, task_id: str) -> tuple[LocalQueue, NodeId]:
        """The queue of this node, and the primary of the task's partition.

        :raises NotReady: as ``must_serve``.
        :raises NotPrimary: there is none for now."""
        return self.must_serve(), self.primary_of(task_id)

    def primary_of(self, task_id: str, partition: int | None = None) -> NodeId:
        """:param partition: the task's, where it is known.
        :raises NotPrimary: it has no primary for now."""
        cluster_map = self.plane.map
        if partition is None:
            settings = cluster_map.settings
            partition = partition_of(task_id, seed=settings.seed, partition_count=settings.partition_count)
        primary = cluster_map.partitions[partition].primary
        if primary is None:
            raise NotPrimary("the task's partition has no primary for now", task_id=task_id)
        return primary
