"""Tasks too long without a node with their handler: ``--no-handler-after`` (default: never)."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from tq_node.partition.lifecycle import Unhandled
from tq_node.runtime.clock import Clock
from tq_node.runtime.tasks.handler_map import HandlerMap
from tq_node.runtime.tasks.task_table import Found, Slot, TaskTable
from tq_node.types import State, TaskError

_log = Logger(namespace="taskqueue.running")
ROUND_MAX = 1_000
"""Tasks looked at in one round; the rest follow in the next."""


class HandlerTimeout:
    """Looks through what nobody takes in line order: the oldest first, but for priorities."""

    def __init__(self, table: TaskTable, clock: Clock) -> None:
        self._table = table
        self._clock = clock
        self._is_looking = False

    def round(self, handling: HandlerMap, after_us: int) -> None:
        ready = self._table.ready
        untaken = frozenset(kind for kind in ready.kinds() if not handling.has_taker(kind))
        if self._is_looking or not untaken:
            return
        found: list[str] = []
        while len(found) < ROUND_MAX and (one := ready.pop_for(untaken)) is not None:
            found.append(one[0])

        def loaded(rows: dict[str, Found]) -> None:
            self._is_looking = False
            self._judge(rows, handling.waited_us, after_us)

        self._is_looking = True
        self._table.load(found).addCallbacks(loaded, self._not_loaded)

    def _judge(self, rows: dict[str, Found], waited_us: Callable[[str, int, int], int], after_us: int) -> None:
        now_us = self._clock.wall_us()
        for slot in rows.values():
            row = slot.row if isinstance(slot, Slot) else None
            if row is None or row.state is not State.PENDING or not isinstance(slot, Slot):
                continue
            overdue = waited_us(row.spec.type, row.run_at_us, now_us) >= after_us
            if overdue and slot.partition not in self._table.refusals:
                error = TaskError(
                    "no_handler", f"no node has had a handler for {row.spec.type!r} for {after_us / 1e6:g} s"
                )
                self._table.change(slot, Unhandled(now_us, error), now_us)
            else:
                self._table.enqueue(row)

    def _not_loaded(self, why: object) -> None:
        # The store is broken and the process about to end (R18).
        self._is_looking = False
        _log.error("could not load rows: {why}", why=str(why), event="load_failed")
