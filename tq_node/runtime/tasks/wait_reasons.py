"""Why tasks wait, as this node knows: of partitions led here, and less of others' copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import msgspec

from tq_node.cluster.pauses import QUEUE, TYPE, Paused
from tq_node.errors import NotEnoughReplicas
from tq_node.facade import ListQuery
from tq_node.partition.waiting import Surroundings, waiting_for
from tq_node.runtime.clock import Clock
from tq_node.runtime.tasks.handler_map import HandlerMap
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import WAIT_KINDS, PauseEntry, State, TaskRow, WaitsFor


class WaitReasons:
    """Answers ``TaskReads``, and counts for metrics.

    :param paused: what is paused now.
    :param has_slot: whether a worker here could begin a task of this queue and type."""

    def __init__(
        self,
        local: LocalQueue,
        handlers: HandlerMap,
        clock: Clock,
        paused: Callable[[], Paused],
        has_slot: Callable[[str, str], bool],
    ) -> None:
        self._local = local
        self._handlers = handlers
        self._paused = paused
        self._has_slot = has_slot
        self._around = Surroundings(
            clock.wall_us, self._pause_of, handlers.without_handler_us, self._held_back, self._has_free_slot
        )

    def of(self, row: TaskRow) -> tuple[WaitsFor, ...]:
        """Why it does not run."""
        return waiting_for(row, self._around)

    def narrowed(self, query: ListQuery) -> ListQuery | None:
        """The query without what can't wait for what it asks for, so that few rows are read; None:
        nothing waits for that. Rows that don't wait for it may be left."""
        assert query.waiting is not None
        kind, name = query.waiting
        state = int(State.SCHEDULED if kind == "time" else State.PENDING)
        if query.states is not None and (state in query.states) is query.states_not:
            return None
        query = msgspec.structs.replace(query, states=frozenset({state}), states_not=False)
        now = self._paused()
        if kind == "queue_paused" and query.queues is None:
            queues = _named(now.queues, name)
            return msgspec.structs.replace(query, queues=queues) if queues else None
        if kind == "type_paused" and query.types is None:
            types = _named(now.types, name)
            return msgspec.structs.replace(query, types=types) if types else None
        if kind == "no_handler" and query.types is None:
            if self._handlers.takers.is_any_taken:
                return None
            types = frozenset({name}) if name else self._handlers.takers.named
            return msgspec.structs.replace(query, types=types, types_not=not name) if types else query
        return query

    def counts(self) -> Mapping[str, int]:
        """About how many tasks of partitions led here wait for what, by kind; for metrics. Of tasks
        that changed lately the old place may still count."""
        found = Counter(dict.fromkeys(WAIT_KINDS, 0))
        table, now = self._local.table, self._paused()
        found["time"] = len(table.due)
        held = {partition: kind for partition in table.leading if (kind := self._held_back(partition))}
        for (queue, task_type), size, held_sizes in table.ready.sizes(held):
            is_paused = False
            for kind, is_so in (("queue_paused", queue in now.queues), ("type_paused", task_type in now.types)):
                found[kind] += size if is_so else 0
                is_paused = is_paused or is_so
            is_without = self._handlers.without_handler_us(task_type) is not None
            found["no_handler"] += size if is_without else 0
            for partition, part in held_sizes.items():
                found[held[partition]] += part
            if not (is_paused or is_without or self._has_slot(queue, task_type)):
                found["slots"] += size - sum(held_sizes.values())
        return found

    # --- surroundings ---
    def _pause_of(self, target: str, name: str) -> PauseEntry | None:
        now = self._paused()
        return {QUEUE: now.queues, TYPE: now.types}[target].get(name)

    def _held_back(self, partition: int) -> str:
        local = self._local
        if partition not in local.table.leading:
            return ""
        if local.is_stopping:
            return "draining"
        refusal = local.table.refusals.get(partition)
        if refusal is None:
            return ""
        return "copies" if isinstance(refusal, NotEnoughReplicas) else "draining"

    def _has_free_slot(self, row: TaskRow) -> bool:
        is_elsewhere = row.partition not in self._local.table.leading  # its primary knows
        return is_elsewhere or self._has_slot(row.spec.queue, row.spec.type)


def _named(paused: Collection[str], name: str) -> frozenset[str]:
    return frozenset(paused) if not name else frozenset({name}).intersection(paused)
