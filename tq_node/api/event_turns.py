"""Turns of event streams: what all of them write in one turn of the reactor is bounded.

A piece of a stream is small, but there are many streams: fifty that each made three pieces when
their sockets became writable held everybody else up for 100 ms. Here they share
``limits.EVENT_TURN_BYTES``, a piece each, and go on in the next turn, first come first served."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tq_node import limits


class TurnTaker(Protocol):
    """A stream."""

    is_waiting: bool
    """It waits for its turn; kept by ``EventTurns``."""

    @property
    def has_more(self) -> bool:
        """Whether it has something to write, and may: false while its transport pauses it."""
        ...

    def write_piece(self) -> int:
        """Write a piece of what it has, if it may; returns what that costs, in rendered bytes."""
        ...


class EventTurns:
    """The streams that have something to write, and what of this turn is left to them."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._waiting: deque[TurnTaker] = deque()
        self._left_bytes = limits.EVENT_TURN_BYTES
        """Renewed in a turn of its own once it is used up, so that no turn has more than it."""
        self._call: IDelayedCall | None = None
        self._is_serving = False

    def enter(self, stream: TurnTaker) -> None:
        """Let a stream write all it has: now as far as this turn allows, the rest in later ones."""
        if not stream.is_waiting and stream.has_more:
            stream.is_waiting = True
            self._waiting.append(stream)
            if self._call is None and not self._is_serving:
                self._serve()

    def leave(self, stream: TurnTaker) -> None:
        """The stream writes no more."""
        if stream.is_waiting:
            stream.is_waiting = False
            self._waiting.remove(stream)
        if not self._waiting and self._call is not None:
            self._call.cancel()
            self._call = None

    def _next(self) -> None:
        self._call = None
        self._left_bytes = limits.EVENT_TURN_BYTES
        self._serve()

    def _serve(self) -> None:
        waiting = self._waiting
        self._is_serving = True
        try:
            while waiting and self._left_bytes > 0:
                stream = waiting.popleft()
                stream.is_waiting = False
                self._left_bytes -= stream.write_piece()
                self.enter(stream)
        finally:
            self._is_serving = False
            if waiting:
                self._call = self._reactor.callLater(0.0, self._next)
