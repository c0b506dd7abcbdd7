"""The writer thread: makes all batches that wait durable in one commit, reports once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from tq_node.store.api import Batch
from tq_node.store.sqlite.group_commit import GroupWriter
from tq_node.store.sqlite.wal import WalKeeper

_IDLE_S = 0.01
"""After so long without work the thread deletes a slice of dead rows."""

Ticket = Any
"""Returned to the caller with the outcome; opaque to the thread."""


class Outcomes(Protocol):
    """Callbacks of the writer, called in its thread."""

    def committed(self, batches: Seq[Batch], tickets: Seq[Ticket], entries: int, rows: int, seconds: float) -> None: ...

    def answered(self, ticket: Ticket, value: object) -> None: ...

    def failed(self, why: Exception, tickets: Seq[Ticket]) -> None:
        """The first failure; nothing is written after it."""

    def refused(self, tickets: Seq[Ticket]) -> None:
        """The batches came after the failure and were not written."""

    def writer_ended(self) -> None:
        """All accepted work is done; the write connection is still open."""


class Writer:
    def __init__(self, connection: sqlite3.Connection, group: GroupWriter, wal: WalKeeper, outcomes: Outcomes) -> None:
        self._connection = connection
        self._group = group
        self._wal = wal
        self._outcomes = outcomes
        self._queue: SimpleQueue[tuple[Batch | Callable[[], object], Ticket] | None] = SimpleQueue()
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self.put = self._queue.put
        """Hand in (batch or function, ticket); functions run between commits, in their turn."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread finish all accepted work, then end."""
        self._queue.put(None)

    def _run(self) -> None:
        queue = self._queue
        is_stopped = False
        while not is_stopped:
            work = [self._next()]
            work.extend(queue.get_nowait() for _ in range(queue.qsize()))
            batches: list[Batch] = []
            tickets: list[Ticket] = []
            for item in work:
                if item is None:
                    is_stopped = True
                elif isinstance(item[0], Batch):
                    batches.append(item[0])
                    tickets.append(item[1])
                else:
                    self._commit(batches, tickets)
                    batches, tickets = [], []
                    self._call(item[0], item[1])
            self._commit(batches, tickets)
        self._outcomes.writer_ended()

    def _next(self) -> tuple[Batch | Callable[[], object], Ticket] | None:
        """Wait for work; meanwhile delete dead rows."""
        while self._group.has_dead_rows and not self._broken:
            try:
                return self._queue.get(timeout=_IDLE_S)
            except Empty:
                self._sweep()
        return self._queue.get()

    def _sweep(self) -> None:
        try:
            self._group.sweep()
            self._wal.after_commit(self._connection)
        except Exception as why:
            self._fail(why, [])

    def _commit(self, batches: list[Batch], tickets: list[Ticket]) -> None:
        if not batches:
            return
        if self._broken:
            self._outcomes.refused(tickets)
            return
        started = time.perf_counter()
        try:
            entries, rows = self._group.write(batches)
        except Exception as why:  # whatever it was: what is in memory is now ahead of the disk (R18, R20)
            self._fail(why, tickets)
            return
        self._outcomes.committed(batches, tickets, entries, rows, time.perf_counter() - started)
        try:
            self._wal.after_commit(self._connection)
        except Exception as why:
            self._fail(why, [])

    def _call(self, function: Callable[[], object], ticket: Ticket) -> None:
        if self._broken:
            self._outcomes.refused([ticket])
            return
        try:
            value = function()
        except Exception as why:
            self._fail(why, [ticket])
        else:
            self._outcomes.answered(ticket, value)

    def _fail(self, why: Exception, tickets: Seq[Ticket]) -> None:
        self._broken = True
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the process ends; what was not committed is gone either way
        self._outcomes.failed(why, tickets)
