"""The cluster's handlers, as this node knows: what to run here, what to offer whom, what waits."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from twisted.logger import Logger

from tq_node.cluster.handlers import Takers, may_simulate, takers
from tq_node.cluster.records import ClusterMap
from tq_node.facade import NodeHandlers, ReadyNote, Worker
from tq_node.runtime.clock import Clock
from tq_node.types import Announced, HandlerKind, NodeId

LOST_TYPES_MAX = 10_000
"""Types whose last handler has gone, each with when; others are shown as having had none."""
NO_HANDLERS = "no_handlers"
_NONE_HERE = "this node has no handlers (--handlers) and runs no tasks; it keeps them for nodes that have"
_log = Logger(namespace="taskqueue.running")


class HandlerMap:
    """``follow`` whenever the map, a peer's announcement or the own worker's handlers change."""

    def __init__(self, me: NodeId, clock: Clock) -> None:
        self.takers = Takers({})
        self._me = me
        self._clock = clock
        self._seen: object = None
        self._logged: HandlerKind | None = None
        self._lost_us: dict[str, int] = {}
        self._any_lost_us = 0
        self._since_us = 0
        """From when on this node knows who takes what."""

    def may_stand_in(self, table: ClusterMap, announced: Mapping[NodeId, Announced]) -> bool:
        """Whether simulated handlers that nobody asked for may run tasks here."""
        return may_simulate(table, self._me, announced)

    def follow(self, table: ClusterMap, announced: Mapping[NodeId, Announced], own: Collection[str] | None) -> bool:
        """Returns whether anybody takes anything else than before."""
        seen = (
            [(node.node_id, announced.get(node.node_id)) for node in table.nodes.values() if node.is_up],
            None if own is None else frozenset(own),
        )
        if seen == self._seen:
            return False
        self._seen = seen
        before, now = self.takers, takers(table, announced, self._me, own)
        if now == before:
            return False
        self.takers = now
        now_us = self._clock.wall_us()
        self._since_us = self._since_us or now_us
        if before.is_any_taken and not now.is_any_taken:
            self._any_lost_us = now_us
        for task_type in before.named - now.named:
            if len(self._lost_us) < LOST_TYPES_MAX:
                self._lost_us[task_type] = now_us
        for task_type in now.named & self._lost_us.keys():
            del self._lost_us[task_type]
        return True

    def types_of(self, node: NodeId) -> frozenset[str] | None:
        """What a peer's worker takes; None: any, or it has not announced them."""
        return self.takers.of.get(node)

    # --- who waits ---
    def has_taker(self, task_type: str) -> bool:
        """Whether a node that is up has, or may have, a handler for it."""
        return any(types is None or task_type in types for types in self.takers.of.values())

    def without_handler_us(self, task_type: str) -> int | None:
        """Since when nobody has a handler, as seen here; 0: never seen one; None: somebody has."""
        if self.has_taker(task_type):
            return None
        return max(self._lost_us.get(task_type, 0), self._any_lost_us)

    def waited_us(self, task_type: str, since_us: int, now_us: int) -> int:
        """How long a task due since then has waited for a handler, as seen here; 0: it has not."""
        without_us = self.without_handler_us(task_type)
        return 0 if without_us is None else now_us - max(without_us, since_us, self._since_us)

    # --- what operators see ---
    def notes(self, worker: Worker) -> tuple[ReadyNote, ...]:
        is_asked_for = worker.notes  # with ``--concurrency 0`` the worker says so itself
        is_without = worker.announced.kind is HandlerKind.NONE and not is_asked_for
        return (ReadyNote(NO_HANDLERS, _NONE_HERE),) if is_without else ()

    def log(self, worker: Worker) -> None:
        """In the log, where it is something else than before."""
        kind = worker.announced.kind
        if kind is self._logged:
            return
        self._logged = kind
        if kind is HandlerKind.NONE:
            for note in (*worker.notes, *self.notes(worker)):
                _log.warn("{note}", note=note.detail, event=note.code)
        elif kind is HandlerKind.SIMULATED:
            _log.info("simulated handlers run the tasks of this node", event="simulated_handlers")

    def shown(self, table: ClusterMap, announced: Mapping[NodeId, Announced], own: Announced) -> list[NodeHandlers]:
        """Of each node that is up and has announced its handlers, by name."""
        known = {**announced, self._me: own}
        return [
            NodeHandlers(node.name, known[node.node_id])
            for node in sorted(table.members(), key=lambda node: node.name)
            if node.is_up and node.node_id in known
        ]
