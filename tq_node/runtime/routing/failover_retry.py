"""While a partition changes hands, its calls wait for a moment at the node that took them in,
instead of being refused.

What is definitely not done is tried again, and a submit whose outcome is not known too: it has its
id by then, so that a repeat is noticed (``replication.md``, section 9). A failover takes a quarter
of a second; who is refused after this has more to wait for than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node.errors import Draining, IdConflict, NotActive, NotPrimary, OutcomeUnknown
from tq_node.runtime.clock import Clock

T = TypeVar("T")
RETRY_MS = 750
UNKNOWN_MS = 5_000
"""A submit that hears only after so long that nobody knows is not tried again: its caller has
waited enough. It is more than ``T_session``, so that a call which waits for a silent primary is
repeated at the next one."""
AGAIN_S_MIN, AGAIN_S_MAX = 0.01, 0.04
"""Between two tries, drawn at random, so that those who wait don't all come back at once (F32a)."""
WAITING_MAX = 1_000
"""Calls that may wait at a time; further ones are refused at once."""


class FailoverRetry:
    """Tries calls again in a failover. ``draw``: in [0, 1). ``is_stopping``: if so none waits."""

    def __init__(self, clock: Clock, draw: Callable[[], float], is_stopping: Callable[[], bool]) -> None:
        self._clock = clock
        self._draw = draw
        self._is_stopping = is_stopping
        self.waiting = 0

    def read(self, attempt: Callable[..., Deferred[T]], *args: object) -> Deferred[T]:
        """Return what ``attempt(*args)`` gives, tried again while it is refused for now; a refused
        one must change nothing."""
        tried: Deferred[T] = attempt(*args).addErrback(self._refused, attempt, args, None)
        return tried

    def failed_write(
        self, why: Failure, attempt: Callable[[], Deferred[Any]], repeat: Callable[[], Deferred[Any]], begun_ms: int
    ) -> Any:
        """For the errback of a write: what ``attempt``, tried again, gives; where nobody knows what
        became of it, what ``repeat`` gives, which must do nothing twice.

        Once an attempt may have happened no later refusal says that it has not (P4): then it stays
        unknown.

        :param begun_ms: when the write began, monotonic."""
        refused = self._refused(why, attempt, (), None)
        if isinstance(refused, Deferred):
            return refused.addErrback(self._unknown, repeat, begun_ms)
        return self._unknown(refused, repeat, begun_ms)

    def _unknown(self, why: Failure, repeat: Callable[[], Deferred[Any]], begun_ms: int) -> Any:
        if not why.check(OutcomeUnknown) or self._is_stopping() or self._clock.now_ms() - begun_ms >= UNKNOWN_MS:
            return why

        def still_unknown(later: Failure) -> Failure:
            return later if later.check(IdConflict) else why

        return self.read(repeat).addErrback(still_unknown)

    def _refused(
        self, why: Failure, attempt: Callable[..., Deferred[Any]], args: tuple[object, ...], until_ms: int | None
    ) -> Any:
        if not why.check(NotPrimary, NotActive, Draining) or self._is_stopping() or self.waiting >= WAITING_MAX:
            return why
        now_ms = self._clock.now_ms()
        until_ms = now_ms + RETRY_MS if until_ms is None else until_ms
        if now_ms >= until_ms:
            return why
        self.waiting += 1
        call = self._clock.call_later(
            AGAIN_S_MIN + self._draw() * (AGAIN_S_MAX - AGAIN_S_MIN), lambda: again.callback(None)
        )
        again: Deferred[None] = Deferred(lambda _: call.cancel())

        def waited(result: Failure | None) -> Failure | None:
            self.waiting -= 1
            return result

        def try_again(_: None) -> Deferred[Any]:
            return attempt(*args).addErrback(self._refused, attempt, args, until_ms)

        return again.addBoth(waited).addCallback(try_again)
