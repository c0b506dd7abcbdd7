"""What runs in a worker process for ``asyncio`` handlers: ``python -P -m tq_node.work.loop_child
PARENT_PID``. Many tasks at a time on one event loop, until the node closes its pipe.

Frames come in order through one pipe: tasks, renewals, cancels. The loop itself reads them, so a
handler that blocks the loop also holds up its renewals. The earliest lease of all running attempts
is the process's interval timer with SIGALRM at its default action: a loop that is blocked for that
long is killed by the kernel. An attempt whose own lease alone is not renewed is cancelled shortly
before that, and the others go on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import Context as Variables
from contextvars import copy_context
from typing import NoReturn

from tq_node.types import Token
from tq_node.work import protocol
from tq_node.work.child_setup import Loaded, die_with_parent, leave, load, set_up_process
from tq_node.work.handler_output import HandlerOutput, wrap_streams
from tq_node.work.handlers import WILDCARD, Context, Handler, context_of
from tq_node.work.payloads import payload_of
from tq_node.work.process_environment import loosen_memory
from tq_node.work.progress_buffer import ProgressBuffer
from tq_node.work.protocol import CONTROL_FD, LOCK_FD, REPORT_FD, RUN_FD
from tq_node.work.results import BadResult, describe, encode_result

_READ_BYTES = 65_536
_FLUSH_S = 0.05
"""Least time between two notes of one attempt to the node."""
_LOOK_S = 0.5
"""How often leases are looked at while attempts run."""
_CANCEL_AHEAD_S = 1.0
"""An attempt is cancelled so long before its lease is over, for the kernel would kill all."""
_BAD_YIELD = "Task got bad yield: <Deferred"


class _HandlerLeft(Exception):
    """The handler raised SystemExit or its like, which the loop itself would obey."""


class _Running:
    """An attempt on the loop, from its frame to its report."""

    __slots__ = ("began", "context", "flush", "has_lapsed", "output", "progress_buffer", "serial", "task", "until")

    def __init__(self, run: protocol.Run, noted: Callable[[_Running], None]) -> None:
        self.serial = run.serial
        self.until = run.lease_until
        self.progress_buffer = ProgressBuffer(lambda: noted(self))
        self.output = HandlerOutput(self.progress_buffer)
        deadline = None if run.timeout_s is None else time.time() + run.timeout_s
        token = Token(run.epoch, run.sequence)
        self.context: Context = context_of(run, run.task_type, token, deadline, self.progress_buffer)
        self.flush: asyncio.TimerHandle | None = None
        """While notes wait to be sent, or were sent just now."""
        self.began = time.monotonic()
        self.has_lapsed = False
        """It was cancelled because its lease was not renewed."""
        self.task: asyncio.Task[bytes] | None = None


class LoopChild:
    """A worker process with an event loop. All but ``main`` runs in the loop's thread."""

    def __init__(self, loaded: Loaded, loop: asyncio.AbstractEventLoop) -> None:
        self._handlers, self._middleware = loaded
        self._loop = loop
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._variables: Variables = copy_context()
        self._running: dict[int, _Running] = {}
        self._armed_until: float | None = None
        self._look_call: asyncio.TimerHandle | None = None
        self._reports: list[protocol.FromWorker] = []
        self._reader: protocol.FrameReader[protocol.ToLoop] = protocol.FrameReader(
            protocol.ToLoop, protocol.RUN_BYTES_MAX
        )
        self._is_leaving = False
        """The node sends nothing more: the process ends once no attempt runs."""
        self._ended: asyncio.Future[None] = loop.create_future()

    async def serve(self) -> None:
        """Run what comes until the node has closed its pipe and no attempt runs."""
        os.set_blocking(RUN_FD, False)
        self._loop.add_reader(RUN_FD, self._read)
        try:
            await self._ended
        finally:
            self._loop.remove_reader(RUN_FD)

    # --- frames ---
    def _read(self) -> None:
        try:
            data = os.read(RUN_FD, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(RUN_FD)
            self._leave()
            return
        for frame in self._reader.feed(data):
            if isinstance(frame, protocol.Run):
                self._begin(frame)
            elif isinstance(frame, protocol.Start):
                raise protocol.BadFrame("a second start")
            elif (running := self._running.get(frame.serial)) is None:
                continue  # it has just ended
            elif isinstance(frame, protocol.Lease):
                running.until = frame.until
                self.report(protocol.Renewed(frame.serial, frame.until))
            else:
                self._cancel(running)

    def _begin(self, run: protocol.Run) -> None:
        running = self._running[run.serial] = _Running(run, self._noted)
        if self._armed_until is None or run.lease_until < self._armed_until:
            self._arm(run.lease_until)
        if self._look_call is None:
            self._look_call = self._loop.call_later(_LOOK_S, self._look)
        # Context variables that one attempt sets are not there in another.
        attempt = self._attempt(run, running)
        running.task = self._loop.create_task(attempt, context=self._variables.copy())
        running.task.add_done_callback(lambda task: self._end(running, task))

    async def _attempt(self, run: protocol.Run, running: _Running) -> bytes:
        try:
            handler = self._handlers.get(run.task_type) or self._handlers.get(WILDCARD)
            if handler is None:
                raise BadResult("no_handler", f"the worker process has no handler for {run.task_type!r}", final=False)
            encoded: bytes = await running.output.begin(self._call, handler, run.payload, running.context)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _HandlerLeft from error
        else:
            return encoded

    async def _call(self, handler: Handler, payload: bytes, context: Context) -> bytes:
        self._middleware.before(context)
        try:
            result = await handler.function(payload_of(handler, payload), context)
            encoded = encode_result(result)
        except BaseException as error:
            self._middleware.error(context, error)
            raise
        self._middleware.after(context, result)
        return encoded

    def _end(self, running: _Running, task: asyncio.Task[bytes]) -> None:
        """Report an attempt that has ended, with all that it said before."""
        del self._running[running.serial]
        if running.flush is not None:
            running.flush.cancel()
        running.output.finish()
        running.progress_buffer.detach()
        self._send_notes(running)
        ran_us = int((time.monotonic() - running.began) * 1e6)
        error: BaseException | None = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        if running.has_lapsed:
            self.report(protocol.Lapsed(running.serial))
        elif error is None:
            self.report(protocol.Done(running.serial, task.result(), ran_us))
        else:
            self._report_failed(running.serial, error, ran_us)
        if not self._running:
            self._arm(None)
            if self._is_leaving:
                self._leave()

    def _report_failed(self, serial: int, error: BaseException, ran_us: int) -> None:
        leaves = isinstance(error, (_HandlerLeft, MemoryError, SystemError))
        if isinstance(error, (MemoryError, SystemError)):
            loosen_memory()
        if isinstance(error, RuntimeError) and str(error).startswith(_BAD_YIELD):
            error = TypeError("a handler with run='asyncio' can't await a Deferred: say run='reactor' for that")
        shown = error.__cause__ if isinstance(error, _HandlerLeft) and error.__cause__ is not None else error
        found, retry_in_ms, final = describe(shown, own_frames=2)
        self.report(protocol.Failed(serial, found, retry_in_ms, final, leaving=leaves, ran_us=ran_us))
        self._is_leaving = self._is_leaving or leaves

    def _cancel(self, running: _Running) -> None:
        running.context._cancelled = True
        if running.task is not None:
            running.task.cancel()

    def _leave(self) -> None:
        self._is_leaving = True
        if not self._running and not self._ended.done():
            self._flush_reports()
            self._ended.set_result(None)

    # --- leases ---
    def _look(self) -> None:
        """Cancel what is about to lose its lease, and set the timer to the next lease's end."""
        self._look_call = None
        if not self._running:
            return
        due = time.monotonic() + _CANCEL_AHEAD_S
        for running in self._running.values():
            if running.until <= due and not running.context.cancelled:
                running.has_lapsed = True
                self._cancel(running)
        self._arm(min(running.until for running in self._running.values()))
        self._look_call = self._loop.call_later(_LOOK_S, self._look)

    def _arm(self, until: float | None) -> None:
        self._armed_until = until
        if until is None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return
        left_s = until - time.monotonic()
        if left_s <= 0:
            # Its default action, at once: what comes late is not even started.
            os.kill(os.getpid(), signal.SIGALRM)
        signal.setitimer(signal.ITIMER_REAL, max(left_s, 0.000001))

    # --- what goes to the node ---
    def _noted(self, running: _Running) -> None:
        """The handler set progress or a line; it may do so in a thread of its own."""
        if threading.get_ident() == self._thread:
            self._flush_soon(running)
        else:
            self._loop.call_soon_threadsafe(self._flush_soon, running)

    def _flush_soon(self, running: _Running) -> None:
        if running.flush is None and running.serial in self._running:
            # The first note leaves at once: the process may crash. Others wait for company.
            self._send_notes(running)
            running.flush = self._loop.call_later(_FLUSH_S, self._flush_again, running)

    def _flush_again(self, running: _Running) -> None:
        running.flush = None
        if self._send_notes(running):
            running.flush = self._loop.call_later(_FLUSH_S, self._flush_again, running)

    def _send_notes(self, running: _Running) -> bool:
        noted = running.progress_buffer.take()
        if noted is None:
            return False
        self.report(protocol.Said(running.serial, noted.progress, noted.lines, noted.dropped))
        return True

    def report(self, frame: protocol.FromWorker) -> None:
        """Send a frame with all others of this round of the loop."""
        if not self._reports:
            self._loop.call_soon(self._flush_reports)
        self._reports.append(frame)

    def _flush_reports(self) -> None:
        frames, self._reports = self._reports, []
        if os.getpid() != self._pid:
            # A copy that a handler forked and that came back from it: the original reports.
            os._exit(0)
        if frames:
            write(b"".join(map(protocol.encode, frames)))


def write(data: bytes) -> None:
    """Write to the node, which reads all the time."""
    view = memoryview(data)
    while view:
        view = view[os.write(REPORT_FD, view) :]


def _read_start() -> protocol.Start | None:
    reader: protocol.FrameReader[protocol.ToLoop] = protocol.FrameReader(protocol.ToLoop)
    while data := os.read(RUN_FD, _READ_BYTES):
        if found := reader.feed(data):
            return found[0] if isinstance(found[0], protocol.Start) else None
    return None


async def _serve(loaded: Loaded) -> None:
    child = LoopChild(loaded, asyncio.get_running_loop())
    child.report(protocol.Hello(os.getpid()))
    await child.serve()


def _main() -> int:
    start = _read_start()
    if start is None:
        return 1
    wrap_streams()
    loaded = load(start)
    if isinstance(loaded, protocol.Broken):
        write(protocol.encode(loaded))
        return 1
    # Not closed: that would cancel what handlers left running, and wait for their threads.
    asyncio.Runner().run(_serve(loaded))
    return 0


def main() -> NoReturn:
    die_with_parent(int(sys.argv[1]))
    set_up_process((RUN_FD, REPORT_FD, CONTROL_FD, LOCK_FD))
    leave(_main())


if __name__ == "__main__":
    main()
