"""Runs an ``async def`` handler with ``run="reactor"`` in the node, step by step.

A handler that never waits ends within ``start``, without a Deferred. One that waits goes on when
its Deferred fires, always in the same context (``contextvars``). Nothing here can stop a handler
that blocks; ``def`` handlers can be killed."""

from __future__ import annotations

from collections.abc import Coroutine
from contextvars import Context as Variables
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node.facade import AttemptFailed, Claim, Completed, Outcome
from tq_node.work.attempt import CANCEL_GRACE_S, CANCELLED, Host, SharedAttempt
from tq_node.work.handler_output import HandlerOutput
from tq_node.work.handlers import Context, Handler, context_of
from tq_node.work.payloads import payload_of
from tq_node.work.results import describe, encode_result

_log = Logger()


class ReactorAttempt(SharedAttempt):
    """An attempt of an ``async def`` handler with ``run="reactor"``."""

    __slots__ = ("_awaited", "_context", "_coroutine", "_output", "_variables")

    def __init__(self, host: Host, claim: Claim, handler: Handler, lease_until: float) -> None:
        super().__init__(host, claim, handler, lease_until)
        self._awaited: Deferred[Any] | None = None
        self._context: Context | None = None
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._variables: Variables = copy_context()
        self._output = HandlerOutput(self.progress_buffer)

    def start(self) -> None:
        claim = self.claim
        self._context = context_of(claim, claim.task_type, claim.token, self._begin_timeout(), self.progress_buffer)
        try:
            payload = payload_of(self.handler, claim.payload)
            self._coroutine = self._variables.run(self._output.begin, self.handler.function, payload, self._context)
        except BaseException as error:  # a payload that is no JSON, or a decorator around the handler
            self._end(AttemptFailed(*describe(error, own_frames=2)))
            return
        self._drive(None)

    def stop(self) -> None:
        self._expire(CANCELLED)

    def abort(self, outcome: Outcome) -> None:
        self._expire(outcome)
        if not self.ended:
            self._abandon()

    def _expire(self, outcome: Outcome) -> None:
        """Cancel what the handler awaits; it has ``limits.CANCEL_GRACE_MS`` to end."""
        if self.ended or self._forced is not None:
            return
        self._forced = outcome
        if self._context is None:
            self._end(outcome)  # it waits for a slot
            return
        self._set_timer(self._host.clock.callLater(CANCEL_GRACE_S, self._grace_expired))
        if self._context is not None:
            self._context._cancelled = True
        if self._awaited is not None:
            self._awaited.cancel()

    def _grace_expired(self) -> None:
        self._timer = None
        _log.warn(
            "handler {handler} of task {task_id} did not end when it was cancelled; it is closed and its slot freed",
            event="handler_abandoned",
            handler=self.handler.where,
            task_id=self.claim.task_id,
            attempt=self.claim.attempt,
        )
        self._abandon()

    def _abandon(self) -> None:
        coroutine, self._coroutine = self._coroutine, None
        self._end(CANCELLED)
        if coroutine is not None:
            try:
                self._variables.run(coroutine.close)
            except BaseException:  # it waits again, or fails, while it is being closed
                where = self.handler.where
                _log.failure(
                    "handler {handler} failed while it was closed", handler=where, event="handler_close_failed"
                )

    def _end(self, outcome: Outcome) -> None:
        if not self.ended:
            self._output.finish()
        super()._end(outcome)

    def _drive(self, value: Any) -> None:
        """Resume the handler with ``value`` (a Failure: raised in it) until it awaits or ends."""
        while (coroutine := self._coroutine) is not None:
            try:
                if isinstance(value, Failure):
                    awaited = self._variables.run(value.throwExceptionIntoGenerator, coroutine)
                else:
                    awaited = self._variables.run(coroutine.send, value)
            except StopIteration as stop:
                self._returned(stop.value)
                return
            except BaseException as error:  # whatever a handler raises costs its attempt only
                self._coroutine = None
                self._end(AttemptFailed(*describe(_hinted(error))))
                return
            if not isinstance(awaited, Deferred):
                name = type(awaited).__qualname__
                value = Failure(
                    TypeError(f"a handler with run='reactor' awaits Deferreds, not {name}: say run='asyncio' for that")
                )
                continue
            if awaited.called and not awaited.paused and not isinstance(awaited.result, Deferred):
                # It has fired: take its value here, so that a loop over such does not recurse.
                value = _take(awaited)
                continue
            self._awaited = awaited
            awaited.addBoth(self._fired)
            return

    def _fired(self, value: Any) -> None:
        self._awaited = None
        if not self.ended:
            self._drive(value)

    def _returned(self, result: Any) -> None:
        self._coroutine = None
        outcome: Outcome
        try:
            outcome = Completed(encode_result(result))
        except Exception as error:  # BadResult, or what an object of the handler raises
            outcome = AttemptFailed(*describe(error))
        self._end(outcome)


def _hinted(error: BaseException) -> BaseException:
    """The error, but in words of ours where the handler asked for an asyncio loop."""
    if isinstance(error, RuntimeError) and str(error) == "no running event loop":
        text = "a handler with run='reactor' has no asyncio event loop: say run='asyncio' for that"
        return RuntimeError(text).with_traceback(error.__traceback__)
    return error


def _take(deferred: Deferred[Any]) -> Any:
    """Take the value of a Deferred that has fired; a failure counts as handled."""
    taken: list[Any] = []
    deferred.addBoth(taken.append)
    return taken[0]
