"""A thread that runs queries on one read-only connection."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from queue import SimpleQueue
from typing import Any

from tq_node.store.sqlite.queries import lookup

Ticket = Any
Query = Callable[[sqlite3.Connection], object]


class Reader:
    """Runs queries in the order given, except that all lookups that wait are merged into one query.
    ``answer`` gets [(ticket, value), ...]; ``fail`` gets an exception and the tickets it is the
    answer for. Both are called in this thread."""

    def __init__(
        self,
        name: str,
        connection: sqlite3.Connection,
        answer: Callable[[list[tuple[Ticket, object]]], None],
        fail: Callable[[Exception, list[Ticket]], None],
    ) -> None:
        self._connection = connection
        self._answer = answer
        self._fail = fail
        self._queue: SimpleQueue[tuple[Query | Seq[str], Ticket] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self.put = self._queue.put
        """Hand in (query, ticket), or (ids, ticket) for a lookup."""

    def stop(self) -> None:
        """Answer all queries given so far, then close. Blocks: not for the reactor thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        queue = self._queue
        is_stopped = False
        while not is_stopped:
            work = [queue.get()]
            work.extend(queue.get_nowait() for _ in range(queue.qsize()))
            lookups: list[tuple[Seq[str], Ticket]] = []
            queries: list[tuple[Query, Ticket]] = []
            for item in work:
                if item is None:
                    is_stopped = True
                elif callable(item[0]):
                    queries.append((item[0], item[1]))
                else:
                    lookups.append((item[0], item[1]))
            if lookups:
                self._lookup_all(lookups)
            for query, ticket in queries:
                try:
                    value = query(self._connection)
                except (
                    Exception
                ) as why:  # a damaged database raises many things; none of them leaves a store to be trusted
                    self._fail(why, [ticket])
                else:
                    self._answer([(ticket, value)])
        self._connection.close()

    def _lookup_all(self, lookups: list[tuple[Seq[str], Ticket]]) -> None:
        try:
            if len(lookups) == 1:
                ids, ticket = lookups[0]
                self._answer([(ticket, lookup(self._connection, ids))])
                return
            found = lookup(self._connection, list({task_id for ids, _ in lookups for task_id in ids}))
            self._answer([(ticket, {i: found[i] for i in ids if i in found}) for ids, ticket in lookups])
        except Exception as why:
            self._fail(why, [ticket for _, ticket in lookups])
