"""What is asked of types: which defaults they have, and that nothing of them starts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.internet.defer import Deferred, fail, succeed

from tq_node import limits
from tq_node.cluster.commands import AnnounceTypes, DeleteType, Pause, PauseQueue, PutType, Resume, ResumeQueue
from tq_node.cluster.pauses import QUEUE, paused
from tq_node.cluster.records import WORKERS_LEVEL
from tq_node.errors import ClusterRefused
from tq_node.facade import TypeTable
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.admin import ClusterAdmin
from tq_node.runtime.routing.node_state import NodeState
from tq_node.types import HandledType, PauseEntry


class TypeOrders:
    """See the module. Below ``WORKERS_LEVEL`` a queue alone can be paused, without more."""

    def __init__(self, state: NodeState, clock: Clock, admin: ClusterAdmin) -> None:
        self._state = state
        self._clock = clock
        self._admin = admin

    # --- pauses ---
    def pause(self, entry: PauseEntry) -> Deferred[None]:
        """See ``facade.TaskQueue.pause``. The last places are for queues that are in use: names
        that nobody works with must not take from operators what they need in an emergency."""
        queues = self._state.map.paused_queues
        is_new = entry.target == QUEUE and entry.name not in queues
        if is_new and len(queues) >= limits.PAUSED_UNUSED_MAX and not self._uses(entry.name):
            return fail(
                ClusterRefused(
                    f"{len(queues)} queues are paused already, and {entry.name!r} has no open task at this node"
                )
            )
        is_plain = entry == PauseEntry(QUEUE, entry.name, by=entry.by)
        if is_plain and self._state.map.feature_level < WORKERS_LEVEL:
            return self._admin.order_everywhere(PauseQueue(entry.name), entry.by)
        since_us = self._clock.wall_us()
        return self._admin.order_everywhere(Pause(msgspec.structs.replace(entry, since_us=since_us)), entry.by)

    def resume(self, target: str, name: str, by: str = "") -> Deferred[None]:
        """See ``facade.TaskQueue.resume``."""
        if target == QUEUE and self._state.map.feature_level < WORKERS_LEVEL:
            return self._admin.order_everywhere(ResumeQueue(name), by)
        return self._admin.order_everywhere(Resume(target, name, self._clock.wall_us()), by)

    def pauses(self) -> Sequence[PauseEntry]:
        """See ``facade.TaskQueue.pauses``."""
        return paused(self._state.map, self._clock.wall_us()).all()

    def paused_queues(self) -> frozenset[str]:
        """See ``facade.TaskQueue.paused_queues``."""
        return frozenset(paused(self._state.map, self._clock.wall_us()).queues)

    def _uses(self, queue: str) -> bool:
        return self._state.local is not None and self._state.local.submitter.uses(queue)

    # --- defaults ---
    def type_table(self) -> TypeTable:
        """See ``facade.TaskQueue.type_table``."""
        return TypeTable(self._state.map.type_settings, self._state.map.announced_types)

    def put_type(self, entry: HandledType, by: str = "") -> Deferred[None]:
        """See ``facade.TaskQueue.put_type``."""
        return self._admin.order_everywhere(PutType(entry), by)

    def delete_type(self, task_type: str, by: str = "") -> Deferred[None]:
        """See ``facade.TaskQueue.delete_type``."""
        return self._admin.order_everywhere(DeleteType(task_type), by)

    def announce_types(self, types: tuple[HandledType, ...], by: str = "") -> Deferred[None]:
        """See ``facade.TaskQueue.announce_types``. What is known already changes nothing, so that a
        thousand workers which start cost one entry."""
        known = set(self._state.map.announced_types)
        new = tuple(entry for entry in types if entry not in known)
        return self._admin.order_everywhere(AnnounceTypes(new), by) if new else succeed(None)
