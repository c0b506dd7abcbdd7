"""What runs in a worker process: ``python -P -m tq_node.work.child PARENT_PID``. One task at a
time, until told to end.

The main thread takes one task after the other and runs it; a control thread reads renewals and
cancels from a pipe, so that both work while a handler runs. A lease is the process's interval timer
with SIGALRM at its default action: when nobody renews it, the kernel kills the process, also in C
code and also when it wakes up late from a SIGSTOP."""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import os
import select
import signal
import sys
import termios
import threading
import time
import traceback
from collections.abc import Mapping
from contextvars import copy_context
from typing import NoReturn

from tq_node import limits
from tq_node.types import TaskError, Token
from tq_node.work import protocol
from tq_node.work.child_setup import die_with_parent, leave, load, set_up_process, too_little
from tq_node.work.descendants import children, has_children, kill_below
from tq_node.work.handlers import WILDCARD, Context, Handler, context_of
from tq_node.work.middleware import Middleware
from tq_node.work.payloads import payload_of
from tq_node.work.process_environment import Surroundings, loosen_memory
from tq_node.work.progress_buffer import ProgressBuffer
from tq_node.work.protocol import CONTROL_FD, LOCK_FD, REPORT_FD, RUN_FD, TASK_FD
from tq_node.work.results import BadResult, describe, encode_result, make_error

_OWN_FDS = (RUN_FD, REPORT_FD, CONTROL_FD, LOCK_FD, TASK_FD)
_READ_BYTES = 65_536
_NO_BYTES = bytes(4)
NOT_ASYNC = "is no `async def`, and returned what must be awaited: what a decorator makes must be an `async def` too"
_FLUSH_INTERVAL_S = 0.05
"""Least time between two notes to the node, also bounded there: chatty handlers fill the pipe."""


class Child:
    """A worker process: task loop (main thread), control loop; ``_lock`` guards what they share."""

    def __init__(self) -> None:
        self._long: protocol.FrameReader[protocol.ToWorker] = protocol.FrameReader(
            protocol.ToWorker, protocol.RUN_BYTES_MAX
        )
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._serial: int | None = None
        self._cancelled_serial: int | None = None
        self._printed_serial = 0
        """Serial of the last task whose output was still unread when it ended."""
        self._context: Context | None = None
        self._progress_buffer: ProgressBuffer | None = None
        self._flush_at: float | None = None
        """When the control thread sends the collected notes; None: nothing is due."""
        self._flushed_at = 0.0
        self._wake_read, self._wake_write = os.pipe()
        self._handlers: Mapping[str, Handler] = {}
        self._middleware = Middleware()
        self._memory_bytes: int | None = None
        self._spare: set[int] = set()
        """Child processes started by handler modules: they serve all tasks and outlive each."""
        self._surroundings = Surroundings()
        self._variables = copy_context()
        self._pid = os.getpid()

    def main(self) -> int:
        """Load the handlers, report ``Hello``, run tasks until told to end; the exit code."""
        start = self._read_long()
        if not isinstance(start, protocol.Start):
            return 1
        loaded = load(start)
        if isinstance(loaded, protocol.Broken):
            self._report(loaded)
            return 1
        self._handlers, self._middleware = loaded
        self._memory_bytes = start.bounds.memory_bytes
        self._spare = children() if has_children() else set()
        self._surroundings = Surroundings()
        self._variables = copy_context()
        try:
            threading.Thread(target=self._control, name="taskqueue-control", daemon=True).start()
        except RuntimeError as why:  # no memory for its stack
            self._report(too_little(why))
            return 1
        self._report(protocol.Hello(os.getpid()))
        while data := os.read(TASK_FD, _READ_BYTES):
            # Taken, so it is ours alone to run or to turn back.
            frame: protocol.ToWorker | protocol.Follows | None = protocol.decode_message(data)
            if isinstance(frame, protocol.Follows):
                frame = self._read_long()
            if not isinstance(frame, protocol.Run):
                return 1
            if frame.heard < self._printed_serial:
                self._report(protocol.NotBegun(frame.serial))
            elif not self._run(frame):
                return 1
        return 0

    def _read_long(self) -> protocol.ToWorker | None:
        """Read the next frame from the pipe for long tasks. None: the node has closed it."""
        while data := os.read(RUN_FD, _READ_BYTES):
            if found := self._long.feed(data):
                return found[0]
        return None

    def _run(self, run: protocol.Run) -> bool:
        """Run one task, report it. False: the process must exit, for what can't be restored."""
        progress_buffer = ProgressBuffer(self._notes_changed)
        deadline = None if run.timeout_s is None else time.time() + run.timeout_s
        context = context_of(run, run.task_type, Token(run.epoch, run.sequence), deadline, progress_buffer)
        # A handler of an earlier task may have put its own action there.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        with self._lock:
            self._serial, self._context, self._progress_buffer = run.serial, context, progress_buffer
            self._flush_at = None
            context._cancelled = run.serial == self._cancelled_serial
            began = _arm(run.lease_until)
        result = b""
        failed: tuple[TaskError, int | None, bool] | None = None
        go_on = True
        try:
            handler = self._handler_of(run.task_type)
            # Context variables that an earlier task has set are not there.
            result = self._variables.copy().run(self._call, handler, run.payload, context)
        except BaseException as error:  # whatever a handler raises costs its attempt only
            go_on = isinstance(error, Exception)
            # The interpreter raises SystemError where it finds no memory for a frame.
            if isinstance(error, (MemoryError, SystemError)):
                go_on = False
                loosen_memory()
                failed = _out_of_memory(error, self._memory_bytes)
            else:
                failed = describe(error, own_frames=2)
        finally:
            # Up to here code of the handler may run, its objects' methods among it.
            progress_buffer.detach()
            with self._lock:
                self._serial = self._context = self._progress_buffer = self._flush_at = None
                signal.setitimer(signal.ITIMER_REAL, 0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # Before the report: the attempt has ended with all that it started, and the next one finds
        # what this one found.
        go_on = self._clean_up() and go_on
        self._report_notes(run.serial, progress_buffer)
        if printed := _has_unread_output():
            self._printed_serial = run.serial
        ran_us = int((time.monotonic() - began) * 1e6)
        if failed is None:
            self._report(protocol.Done(run.serial, result, ran_us, printed, leaving=not go_on))
        else:
            self._report(protocol.Failed(run.serial, *failed, leaving=not go_on, ran_us=ran_us, printed=printed))
        return go_on

    def _call(self, handler: Handler, payload: bytes, context: Context) -> bytes:
        self._middleware.before(context)
        try:
            result = handler.function(payload_of(handler, payload), context)
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise BadResult("handler_not_async", f"the handler of {handler.where} {NOT_ASYNC}", final=True)
            encoded = encode_result(result)
        except BaseException as error:
            self._middleware.error(context, error)
            raise
        self._middleware.after(context, result)
        return encoded

    def _clean_up(self) -> bool:
        """Restore the process after a task. False: something remains, it must be replaced."""
        is_clean = self._surroundings.restore()
        if has_children():
            is_clean = kill_below(self._spare | _helpers(), within_s=limits.CHILD_LEFTOVERS_S) and is_clean
        return is_clean

    def _handler_of(self, task_type: str) -> Handler:
        handler = self._handlers.get(task_type) or self._handlers.get(WILDCARD)
        if handler is None:
            raise BadResult("no_handler", f"the worker process has no handler for {task_type!r}", final=False)
        return handler

    def _report(self, frame: protocol.FromWorker) -> None:
        with self._write_lock:
            self._write(frame)

    def _report_notes(self, serial: int, progress_buffer: ProgressBuffer) -> None:
        # Taken and written in one go: what the control thread took must not come after the report.
        with self._write_lock:
            if (noted := progress_buffer.take()) is not None:
                self._write(protocol.Said(serial, noted.progress, noted.lines, noted.dropped))

    def _write(self, frame: protocol.FromWorker) -> None:
        if os.getpid() != self._pid:
            # A copy that the handler forked and that came back from it: the original reports.
            os._exit(0)
        data = memoryview(protocol.encode(frame))
        while data:
            data = data[os.write(REPORT_FD, data) :]

    def _notes_changed(self) -> None:
        """In the handler's thread: sends the first note at once, as it may crash; others wait."""
        if self._flush_at is not None:
            return
        now = time.monotonic()
        if now >= self._flushed_at + _FLUSH_INTERVAL_S:
            self._flushed_at = now
            self._flush_notes()
        else:
            self._flush_at = self._flushed_at + _FLUSH_INTERVAL_S
            os.write(self._wake_write, b"w")

    def _control(self) -> NoReturn:
        """Loop of the control thread: apply renewals and cancels, send notes that are due."""
        reader: protocol.FrameReader[protocol.ToWorkerControl] = protocol.FrameReader(protocol.ToWorkerControl)
        poller = select.poll()
        poller.register(CONTROL_FD, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        try:
            while True:
                flush_at = self._flush_at
                timeout_ms = None if flush_at is None else max(0.0, flush_at - time.monotonic()) * 1000 + 1
                ready = {fd for fd, _ in poller.poll(timeout_ms)}
                if self._wake_read in ready:
                    os.read(self._wake_read, 512)
                if CONTROL_FD in ready:
                    data = os.read(CONTROL_FD, _READ_BYTES)
                    if not data:
                        break
                    for frame in reader.feed(data):
                        if self._apply_control(frame) and isinstance(frame, protocol.Lease):
                            self._report(protocol.Renewed(frame.serial, frame.until))
                if flush_at is not None and time.monotonic() >= flush_at:
                    self._flushed_at = time.monotonic()
                    self._flush_notes()
        except Exception:
            traceback.print_exc()
        finally:
            # Without the node, or without this thread, nobody could stop the handler.
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    def _apply_control(self, frame: protocol.ToWorkerControl) -> bool:
        """Apply a renewal or a cancel. False: its task has ended."""
        with self._lock:
            if isinstance(frame, protocol.Cancel):
                # It may have overtaken its task, which comes over the other pipe.
                self._cancelled_serial = frame.serial
            if frame.serial != self._serial or self._context is None:
                return False
            if isinstance(frame, protocol.Lease):
                _arm(frame.until)
            else:
                self._context._cancelled = True
            return True

    def _flush_notes(self) -> None:
        with self._lock:
            serial, progress_buffer, self._flush_at = self._serial, self._progress_buffer, None
        if serial is not None and progress_buffer is not None:
            self._report_notes(serial, progress_buffer)


def _out_of_memory(error: Exception, memory_bytes: int | None) -> tuple[TaskError, int | None, bool]:
    described, retry_in_ms, final = describe(error, own_frames=2)
    if memory_bytes is None:
        return described, retry_in_ms, final
    message = f"the handler asked for more memory than --worker-memory allows, {memory_bytes} bytes"
    return make_error("out_of_memory", message, described.traceback), retry_in_ms, final


def _helpers() -> set[int]:
    """Ids of helper processes of ``multiprocessing``, which it expects to outlive a task."""
    found = set()
    if (tracker := sys.modules.get("multiprocessing.resource_tracker")) is not None:
        found.add(getattr(tracker._resource_tracker, "_pid", None))
    if (server := sys.modules.get("multiprocessing.forkserver")) is not None:
        found.add(getattr(server._forkserver, "_forkserver_pid", None))
    return {pid for pid in found if pid is not None}


def _arm(until: float) -> float:
    """Set the lease timer to ``lease_until``; return the present CLOCK_MONOTONIC time."""
    now = time.monotonic()
    if now >= until:
        # Its default action, at once: what comes late is not even started.
        os.kill(os.getpid(), signal.SIGALRM)
    # Zero would disarm it, so one that is past becomes the shortest there is.
    signal.setitimer(signal.ITIMER_REAL, max(until - now, 0.000001))
    return now


def _has_unread_output() -> bool:
    """Whether unread output lies in the pipe of stdout, maybe a descriptor of the handler's."""
    try:
        return any(fcntl.ioctl(1, termios.FIONREAD, _NO_BYTES))
    except OSError:
        return False


def main() -> NoReturn:
    die_with_parent(int(sys.argv[1]))
    set_up_process(_OWN_FDS)
    leave(Child().main())


if __name__ == "__main__":
    main()
