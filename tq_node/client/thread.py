"""The event loop of a ``Queue``, in its own thread, and how other threads call into it.

A submit goes into an inbox that one wake-up of the loop empties, and the calling thread waits on a
lock: ``run_coroutine_threadsafe`` would cost a task, two futures and a wake-up for each."""

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
_CHECK_S = 5.0
"""How often a waiting thread checks that the loop still runs."""
_GRACE_S = 5.0
"""How long past its deadline a call waits for the loop of a stopped or very busy process."""


class LoopThread:
    """Starts when constructed. Not to be used after a fork: see ``Queue``."""

    def __init__(self, settings: Settings) -> None:
        self._inbox: deque[Submit] = deque()
        self._is_awake = False
        self._stopped = False
        self._loop_ended = False
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
            self._loop_ended = True  # a thread that adds to the inbox after this empties it itself
            if begun.exception() is None:
                self._drain_inbox()

    async def _live(self, settings: Settings, begun: Future[Engine]) -> None:
        try:
            engine = Engine(settings)
        except BaseException as why:
            begun.set_exception(why)
            raise
        begun.set_result(engine)
        await self._stopping.wait()
        self._drain_inbox()
        await engine.close()
        self._drain_inbox()  # the closed batcher refuses them

    # --- from any thread ---
    def submit(self, task_id: str, body: bytes, deadline: float | None) -> Accepted:
        """Submit a task, block until accepted; else ``TaskQueueError``: refused, or unknown."""
        if self._stopped:
            raise Closed("the queue is closed", task_id=task_id)
        resolved = threading.Lock()
        resolved.acquire()
        wait_s = self._deadline_s if deadline is None else deadline
        submit = Submit(task_id, body, time.monotonic() + wait_s, lambda _: resolved.release())
        self._inbox.append(submit)
        if not self._is_awake:
            self._is_awake = True  # until the loop has looked: it clears the flag, then empties the inbox
            self._wake(self._drain_inbox)
        if self._loop_ended:
            self._drain_inbox()
        try:
            resolved.acquire(timeout=min(wait_s + limits.CLOSE_S + _GRACE_S, threading.TIMEOUT_MAX))
        except BaseException:  # Ctrl-C
            self._wake(self._drop, submit)
            raise
        outcome = submit.outcome
        if isinstance(outcome, Accepted):
            return outcome
        raise outcome if outcome is not None else submit.made_trials.verdict(in_flight=True)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and block until it ends."""
        return self.result(self.begin(coroutine))

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            if self._stopped:
                raise Closed("the queue is closed")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop has ended since
            coroutine.close()
            raise Closed("the queue is closed") from None
        except Closed:
            coroutine.close()
            raise

    def result(self, future: Future[T]) -> T:
        """The future's result; blocks until then; raises ``Closed`` if the queue closes first."""
        try:
            while not wait([future], _CHECK_S).done:
                if self._loop_ended:  # it was begun too late for the loop to see it
                    raise Closed("the queue was closed")
            return future.result()
        except CancelledError:
            raise Closed("the queue was closed") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the queue and block until the thread has ended; open submits have ``CLOSE_S``."""
        self._stopped = True
        self._wake(self._stopping.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(limits.CLOSE_S + _GRACE_S)

    # --- in the loop ---
    def _wake(self, action: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(action, *arguments)

    def _drain_inbox(self) -> None:
        self._is_awake = False
        add = self.engine.batcher.add
        inbox = self._inbox
        while inbox:
            add(inbox.popleft())

    def _drop(self, submit: Submit) -> None:
        self._drain_inbox()
        self.engine.batcher.drop(submit)
