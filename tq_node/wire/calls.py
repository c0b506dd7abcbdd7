"""Calls of one connection in both directions: those that wait for the peer's answer, and those of
the peer being handled.

Both are bounded and have deadlines (F35). One timer serves all deadlines of a connection in one
direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.protocols import amp

from tq_node.errors import OutcomeUnknown, TaskQueueError
from tq_node.wire import bounds, errors
from tq_node.wire.errors import BoxTooLarge, Internal, MalformedBox
from tq_node.wire.framing import Box

K = TypeVar("K")
MORE = b"_more"
"""Stands in each box of a long answer but the last."""
BODY = b"_body"
"""The fields of an error, beside AMP's code and description."""
Values = dict[str, Any]


class Deadlines(Generic[K]):
    """Many deadlines over one timer: a deadline costs a dictionary entry, not a delayed call.

    :param expired: called once for each key whose time has come, in the order in which they were
        added."""

    def __init__(self, reactor: IReactorTime, expired: Callable[[K], None]) -> None:
        self._reactor = reactor
        self._expired = expired
        self._due_s: dict[K, float] = {}
        self._timer: IDelayedCall | None = None
        self._timer_s = 0.0

    def add(self, key: K, seconds: float) -> None:
        due_s = self._due_s[key] = self._reactor.seconds() + seconds
        if self._timer is None or due_s < self._timer_s:
            self._arm(due_s)

    def discard(self, key: K) -> None:
        # The timer stays: it finds nothing and rests. To re-arm it for each answer costs more.
        self._due_s.pop(key, None)

    def close(self) -> None:
        self._due_s.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self._reactor.callLater(max(0.0, due_s - self._reactor.seconds()), self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._reactor.seconds()
        if now_s - self._timer_s > bounds.PAUSE_S:
            # The process slept: what it waits for may be in the sockets already, unread (F40). Read
            # first, then judge.
            for key, due_s in self._due_s.items():
                self._due_s[key] = max(due_s, now_s + bounds.PAUSE_S / 2)
        for key in [key for key, due_s in self._due_s.items() if due_s <= now_s]:
            if self._due_s.pop(key, None) is not None:  # an earlier one may have closed all
                self._expired(key)
        if self._due_s and self._timer is None:
            self._arm(min(self._due_s.values()))


class _Call:
    """A call that waits for its answer. ``waiter`` None: cancelled, but the answer still comes."""

    __slots__ = ("command", "grace_s", "parts", "size", "waiter")

    def __init__(self, command: type[amp.Command], waiter: Deferred[Values], grace_s: float) -> None:
        self.command = command
        self.waiter: Deferred[Values] | None = waiter
        self.grace_s = grace_s
        self.parts: Box | None = None
        self.size = 0


class OutboundCalls:
    """Calls of this side that wait for an answer, by tag.

    :param stuck: called with a sentence when the peer does not answer at all: the connection must
        end."""

    def __init__(self, reactor: IReactorTime, stuck: Callable[[str], None]) -> None:
        self._stuck = stuck
        self._waiting: dict[bytes, _Call] = {}
        self._deadlines: Deadlines[bytes] = Deadlines(reactor, self._expired)
        self._counter = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def begun(self) -> int:
        """How many calls were begun on this connection."""
        return self._counter

    def next_tag(self) -> bytes:
        self._counter += 1
        return b"%x" % self._counter

    def begin(self, tag: bytes, command: type[amp.Command], deadline_s: float, grace_s: float) -> Deferred[Values]:
        waiter: Deferred[Values] = Deferred(lambda _: self._abandon(tag))
        self._waiting[tag] = _Call(command, waiter, grace_s)
        self._deadlines.add(tag, deadline_s)
        return waiter

    def end(self, reason: TaskQueueError) -> None:
        """The connection has ended: fail all calls with ``OutcomeUnknown``."""
        self._deadlines.close()
        waiting, self._waiting = self._waiting, {}
        for call in waiting.values():
            if call.waiter is not None:
                call.waiter.errback(OutcomeUnknown(f"no answer: {reason}"))

    def answered(self, tag: bytes, box: Box, size: int, proto: object) -> None:
        """An answer, or a part of one, has arrived; raises ``WireRefusal``, which must end the
        connection, if nothing was asked under ``tag``."""
        call = self._known(tag)
        if MORE in box or call.parts is not None:
            call.size += size
            if call.size > bounds.ANSWER_BYTES_MAX + bounds.BOX_BYTES_MAX:
                raise BoxTooLarge("an answer without end")
            has_more = box.pop(MORE, None) is not None
            call.parts = {} if call.parts is None else call.parts
            call.parts.update(box)
            if has_more:
                return
            box = call.parts
        waiter = self._taken(tag)
        try:
            values = call.command.parseResponse(box, proto)
        except Exception as why:  # an argument's own refusal, or a key that is missing
            if waiter is not None:
                waiter.errback(OutcomeUnknown("the peer's answer can't be read"))
            raise MalformedBox(f"an answer to {call.command.__name__}: {why!r}") from None
        if waiter is not None:
            waiter.callback(values)

    def refused(self, tag: bytes, box: Box) -> None:
        """The answer is an error; raises ``WireRefusal``, which must end the connection, if
        nothing was asked under ``tag``."""
        self._known(tag)
        try:
            error = errors.decode_error(box.get(amp.ERROR_CODE, b"").decode("latin-1"), box.get(BODY, b""))
        except MalformedBox:  # AMP's own errors have no body
            error = Internal(box.get(amp.ERROR_DESCRIPTION, b"").decode("utf-8", "replace")[: bounds.DETAIL_CHARS_MAX])
        waiter = self._taken(tag)
        if waiter is not None:
            waiter.errback(error)

    def _known(self, tag: bytes) -> _Call:
        call = self._waiting.get(tag)
        if call is None:
            raise MalformedBox("an answer to what was not asked")
        return call

    def _taken(self, tag: bytes) -> Deferred[Values] | None:
        self._deadlines.discard(tag)
        return self._waiting.pop(tag).waiter

    def _abandon(self, tag: bytes) -> None:
        if call := self._waiting.get(tag):
            call.waiter = None

    def _expired(self, tag: bytes) -> None:
        call = self._waiting[tag]
        waiter, call.waiter = call.waiter, None
        if call.grace_s > 0:
            self._deadlines.add(tag, call.grace_s)
            call.grace_s = 0.0
        else:
            self._stuck(f"no answer to {call.command.__name__} in time")
        if waiter is not None:
            waiter.errback(OutcomeUnknown("the peer did not answer in time"))


class ByteBudget:
    """Bytes of the boxes that handlers work on, over all connections that share the budget."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0

    def has_room(self, size: int) -> bool:
        return self.held_bytes + size <= self.bytes_max


class InboundCall:
    """A peer's command that a handler works on. ``tag`` None: answered, or no answer is wanted."""

    __slots__ = ("budget", "command", "size", "tag")

    def __init__(self, command: type[amp.Command], tag: bytes | None, size: int, budget: ByteBudget) -> None:
        self.command = command
        self.tag = tag
        self.size = size
        self.budget = budget
        budget.held_bytes += size

    def release(self) -> None:
        """The handler is done: give its bytes back to the budget."""
        self.budget.held_bytes -= self.size
