"""The audit log as the reactor sees it: it is handed records, and never waits for the disk.

A thread writes them, in their order (``AuditFiles``). A write that fails, as on a full disk, is
tried again until it succeeds. Meanwhile up to ``limits.AUDIT_HELD_BYTES_MAX`` of records are held.
What comes beyond that is lost: it is counted, and the first line that is written later says how
many were."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.audit import AuditRecord, Page
from tq_node.errors import Busy
from tq_node.store.audit_files import AuditFiles

_log = Logger(namespace="taskqueue.audit")
_HAND_OVER_S = limits.AUDIT_HAND_OVER_MS / 1000
_SYNC_S = limits.AUDIT_SYNC_MS / 1000
_RETRY_S = limits.AUDIT_RETRY_MS / 1000
_PER_WRITE_MAX = 1_000
"""Records written at once: a rotated file is full to within their lines."""

Read = Callable[[], Page]


class AuditLog:
    """Reactor thread only, but for ``_Writer``.

    :raises AuditLocked, OSError: the file can't be opened."""

    def __init__(
        self,
        path: Path,
        node: str,
        reactor: Any,
        wall_us: Callable[[], int],
        *,
        bytes_max: int = limits.AUDIT_FILE_BYTES,
        kept: int = limits.AUDIT_FILES_KEPT,
    ) -> None:
        self.path = path
        self._lines = 0
        self._lost = 0
        self._lost_unsaid = 0
        self._reactor = reactor
        self._wall_us = wall_us
        self._pending: list[AuditRecord] = []
        self._hand_over_call: IDelayedCall | None = None
        self._taken_bytes = 0
        """Size of all records ever handed over or pending; the writer counts those it wrote."""
        self._reads = 0
        self._is_closed = False
        self._writer = _Writer(
            AuditFiles(path, node, bytes_max=bytes_max, kept=kept), wall_us, reactor.callFromThread, self._answered
        )

    def lines_written(self) -> int:
        """How many records were taken; without those that are lost."""
        return self._lines

    def lines_lost(self) -> int:
        """How many found no room."""
        return self._lost

    @property
    def failing(self) -> str:
        """Why nothing can be written at the moment; empty: it can."""
        return self._writer.failing

    # --- writing ---
    def write(self, record: AuditRecord) -> None:
        """Take a record; it is written soon. Never blocks, never raises."""
        size = record.size
        if self._is_closed or self._taken_bytes - self._writer.written_bytes + size > limits.AUDIT_HELD_BYTES_MAX:
            self._lost += 1
            self._lost_unsaid += 1
            return
        if self._lost_unsaid:
            self._say_lost()
        self._take(record, size)

    def _say_lost(self) -> None:
        lost, self._lost_unsaid = self._lost_unsaid, 0
        said = AuditRecord(self._wall_us(), what=f"{lost} lines were lost here, for they could not be written")
        self._take(said, said.size)

    def _take(self, record: AuditRecord, size: int) -> None:
        self._lines += 1
        self._taken_bytes += size
        self._pending.append(record)
        if self._hand_over_call is None:
            self._hand_over_call = self._reactor.callLater(_HAND_OVER_S, self._hand_over)

    def _hand_over(self) -> None:
        self._hand_over_call = None
        records, self._pending = self._pending, []
        self._writer.put(records)

    # --- reading ---
    def read(self, since: str, place: tuple[int, int] | None, lines_max: int) -> Deferred[Page]:
        """The lines from an instant on, or from the place that a page before gave.

        :raises Busy: too many pages are asked for at once, or the log is closed.
        :raises OSError: a file can't be read."""
        if self._reads >= limits.AUDIT_READS_MAX or self._is_closed:
            return fail(Busy("too many requests read the audit log"))
        self._reads += 1
        if self._hand_over_call is not None:
            self._hand_over_call.cancel()
            self._hand_over()
        answer: Deferred[Page] = Deferred()
        self._writer.put((since, place, lines_max, answer))
        return answer

    def _answered(self, answer: Deferred[Page], result: Page | Failure) -> None:
        self._reads -= 1
        if not answer.called:  # else whoever asked has gone
            answer.callback(result)

    # --- the end ---
    def close(self) -> Deferred[None]:
        """Write what is pending, and end; what can't be written now is lost. Fires when it is."""
        if self._lost_unsaid:
            self._say_lost()
        self._is_closed = True
        if self._hand_over_call is not None:
            self._hand_over_call.cancel()
            self._hand_over()
        ended: Deferred[None] = Deferred()
        self._writer.put(ended)
        return ended


_Work = list[AuditRecord] | tuple[str, tuple[int, int] | None, int, Deferred[Page]] | Deferred[None]


class _Writer:
    """The thread. ``failing`` and ``written_bytes`` are read by the reactor and set here."""

    def __init__(
        self,
        files: AuditFiles,
        wall_us: Callable[[], int],
        call_in_reactor: Callable[..., object],
        answered: Callable[[Deferred[Page], Page | Failure], None],
    ) -> None:
        self.failing = ""
        self.written_bytes = 0
        self._files = files
        self._wall_us = wall_us
        self._call = call_in_reactor
        self._answered = answered
        self._backlog: list[AuditRecord] = []
        self._retry_s = 0.0
        """Nothing is written before, for the last try has failed."""
        self._sync_due_s: float | None = None
        """When what was written has to be durable; None: it is."""
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self.put = self._queue.put
        self._thread = threading.Thread(target=self._run, name="audit-log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=self._timeout_s())
            except Empty:
                work = None
            if isinstance(work, Deferred):
                self._end(work)
                return
            if isinstance(work, list):
                self._backlog += work
            if time.monotonic() >= self._retry_s:
                self._write()
                self._sync_if_due()
            if isinstance(work, tuple):
                self._read(*work)

    def _timeout_s(self) -> float | None:
        """How long nothing is due; None: for ever."""
        due_s = self._retry_s if self._backlog or self.failing else self._sync_due_s
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def _write(self) -> None:
        """Write the backlog, as far as it can be written."""
        while self._backlog or self._files.said:
            own = [AuditRecord(self._wall_us(), what=text) for text in self._files.said]
            try:
                if own:
                    self._files.append(own[:1])
                    del self._files.said[0]
                    continue
                count = self._files.append(self._backlog[:_PER_WRITE_MAX])
            except OSError as why:
                self._fail(why)
                return
            self.written_bytes += sum(record.size for record in self._backlog[:count])
            del self._backlog[:count]
            if self._sync_due_s is None:
                self._sync_due_s = time.monotonic() + _SYNC_S
            self._recover()

    def _sync_if_due(self) -> None:
        if self._sync_due_s is None or time.monotonic() < self._sync_due_s:
            return
        try:
            self._files.sync()
        except OSError as why:
            self._fail(why)
        else:
            self._sync_due_s = None
            if not self._backlog:
                self._recover()

    def _fail(self, why: OSError) -> None:
        self._retry_s = time.monotonic() + _RETRY_S
        if not self.failing:
            self._call(_say_failing, str(why))
        self.failing = str(why)

    def _recover(self) -> None:
        if self.failing:
            self.failing = ""
            self._call(_say_well)

    def _read(self, since: str, place: tuple[int, int] | None, lines_max: int, answer: Deferred[Page]) -> None:
        result: Page | Failure
        try:
            result = self._files.page(since, place, lines_max, limits.AUDIT_PAGE_BYTES_MAX)
        except OSError:
            result = Failure()
            result.cleanFailure()
        self._call(self._answered, answer, result)

    def _end(self, ended: Deferred[None]) -> None:
        self._write()
        if self._backlog:
            self._call(_say_dropped, len(self._backlog), self.failing)
        try:
            self._files.sync()
        except OSError as why:
            self._fail(why)
        self._files.close()
        self._call(ended.callback, None)


def _say_failing(why: str) -> None:
    _log.error("the audit log can't be written, and is tried again: {why}", why=why, event="audit_log_failing")


def _say_well() -> None:
    _log.info("the audit log is written again", event="audit_log_well")


def _say_dropped(count: int, why: str) -> None:
    _log.error(
        "{count} lines of the audit log are lost, for it can't be written: {why}",
        count=count, why=why, event="audit_lines_lost",
    )  # fmt: skip
