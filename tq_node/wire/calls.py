"""The calls of one connection that wait for an answer: one fresh Deferred each, a deadline each, a bound on how many (F35)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.protocols import amp

from tq_node.errors import OutcomeUnknown, TaskQueueError
from tq_node.wire import bounds, errors
from tq_node.wire.deadlines import Deadlines
from tq_node.wire.errors import BoxTooLarge, Internal, MalformedBox
from tq_node.wire.framing import Box

MORE = b"_more"
"""Stands in each box of a long answer but the last."""
BODY = b"_body"
"""The fields of an error, beside AMP's code and description."""
Values = dict[str, Any]


class _Call:
    """``waiter`` is None once the caller has given up: the answer, when it comes, is still one that was asked for."""

    __slots__ = ("command", "grace_s", "parts", "size", "waiter")

    def __init__(self, command: type[amp.Command], waiter: Deferred[Values], grace_s: float) -> None:
        self.command = command
        self.waiter: Deferred[Values] | None = waiter
        self.grace_s = grace_s
        self.parts: Box | None = None
        self.size = 0


class Calls:
    """:param stuck: called with a sentence when the peer does not answer at all: the connection must end."""

    def __init__(self, reactor: IReactorTime, stuck: Callable[[str], None]) -> None:
        self._stuck = stuck
        self._waiting: dict[bytes, _Call] = {}
        self._deadlines: Deadlines[bytes] = Deadlines(reactor, self._expired)
        self._counter = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def next_tag(self) -> bytes:
        self._counter += 1
        return b"%x" % self._counter

    def begin(self, tag: bytes, command: type[amp.Command], deadline_s: float, grace_s: float) -> Deferred[Values]:
        waiter: Deferred[Values] = Deferred(lambda _: self._abandon(tag))
        self._waiting[tag] = _Call(command, waiter, grace_s)
        self._deadlines.add(tag, deadline_s)
        return waiter

    def end(self, reason: TaskQueueError) -> None:
        """The connection is over."""
        self._deadlines.close()
        waiting, self._waiting = self._waiting, {}
        for call in waiting.values():
            if call.waiter is not None:
                call.waiter.errback(OutcomeUnknown(f"no answer: {reason}"))

    def answered(self, tag: bytes, box: Box, size: int, proto: object) -> None:
        """:raises WireRefusal: not what was asked for; the connection must end."""
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
        """:raises WireRefusal: not what was asked for; the connection must end."""
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
