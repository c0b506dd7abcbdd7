"""The event loop of a ``Queue``, in a thread of its own, and the way into it.

A submit does not go through ``run_coroutine_threadsafe``: that makes a coroutine, a task and two
futures of each, and wakes the loop for each. Here it is left in an inbox, one wake-up takes along
all that is there, and the thread waits on a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

from tq_node.client import limits
from tq_node.client.batching import Accepted, Submit
from tq_node.client.engine import Engine, Settings
from tq_node.client.errors import Closed

T = TypeVar("T")
_LOOK_S = 5.0
"""How often a thread that waits looks whether the loop still runs."""
_GRACE_S = 5.0
"""Past a deadline that the loop should have kept, for a process that was stopped or is very
busy."""


class LoopThread:
    """Runs when it is made. Never touched again after a fork: see ``Queue``."""

    def __init__(self, settings: Settings) -> None:
        self._inbox: deque[Submit] = deque()
        self._is_awake = False
        self._is_closed = False
        self._has_ended = False
        self._deadline_s = settings.deadline_s
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        begun: Future[Engine] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(settings, begun), name="taskqueue-client", daemon=True
        )  # fmt: skip
        self._thread.start()
        self.engine = begun.result()

    def _run(self, settings: Settings, begun: Future[Engine]) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live(settings, begun))
        finally:
            # Who leaves something in the inbox after this sees it, and takes it out again.
            self._has_ended = True
            if begun.exception() is None:
                self._take_in()

    async def _live(self, settings: Settings, begun: Future[Engine]) -> None:
        try:
            engine = Engine(settings)
        except BaseException as why:
            begun.set_exception(why)
            raise
        begun.set_result(engine)
        await self._stopping.wait()
        self._take_in()
        await engine.close()
        self._take_in()  # the batcher is closed now, and tells them so

    # --- from any thread ---
    def submit(self, task_id: str, body: bytes, deadline: float | None) -> Accepted:
        """Blocks. :raises TaskQueueError: it was not accepted, or nobody knows."""
        if self._is_closed:
            raise Closed("the queue is closed", task_id=task_id)
        told = threading.Lock()
        told.acquire()
        wait_s = self._deadline_s if deadline is None else deadline
        submit = Submit(task_id, body, time.monotonic() + wait_s, lambda _: told.release())
        self._inbox.append(submit)
        if not self._is_awake:
            # Seen True by others until the loop has looked: it clears the flag first, then empties
            # the inbox.
            self._is_awake = True
            self._wake(self._take_in)
        if self._has_ended:
            self._take_in()
        try:
            told.acquire(timeout=min(wait_s + limits.CLOSE_S + _GRACE_S, threading.TIMEOUT_MAX))
        except BaseException:  # Ctrl-C
            self._wake(self._drop, submit)
            raise
        outcome = submit.outcome
        if isinstance(outcome, Accepted):
            return outcome
        raise outcome if outcome is not None else submit.troubles.verdict(under_way=True)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Blocks until it has ended in the loop."""
        return self.hear(self.begin(coroutine))

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            if self._is_closed:
                raise Closed("the queue is closed")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop has ended since
            coroutine.close()
            raise Closed("the queue is closed") from None
        except Closed:
            coroutine.close()
            raise

    def hear(self, future: Future[T]) -> T:
        """What has come of it. :raises Closed: the queue was closed meanwhile."""
        try:
            while not wait([future], _LOOK_S).done:
                if self._has_ended:  # it was begun too late for the loop to see it
                    raise Closed("the queue was closed")
            return future.result()
        except CancelledError:
            raise Closed("the queue was closed") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Blocks until the thread has ended: what is under way has ``CLOSE_S`` to end."""
        self._is_closed = True
        self._wake(self._stopping.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(limits.CLOSE_S + _GRACE_S)

    # --- in the loop ---
    def _wake(self, action: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(action, *arguments)

    def _take_in(self) -> None:
        self._is_awake = False
        add = self.engine.batcher.add
        inbox = self._inbox
        while inbox:
            add(inbox.popleft())

    def _drop(self, submit: Submit) -> None:
        self._take_in()
        self.engine.batcher.drop(submit)
