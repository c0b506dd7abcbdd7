"""Bytes written to a connection and not sent, counted and bounded (F35), as Twisted bounds none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from tq_node.wire import bounds


@implementer(IPushProducer)
class SendBuffer:
    """Counts ``unsent_bytes``: all that was written since the transport was last seen empty, an
    upper bound.

    :param drained: called when a blocked transport has sent all it had."""

    def __init__(self, reactor: IReactorTime, bytes_max: int, drained: Callable[[], None]) -> None:
        self._reactor = reactor
        self._bytes_max = bytes_max
        self._drained = drained
        self._transport: Any = None
        self._reset_call: IDelayedCall | None = None
        """Due in the next turn: resets the count unless the transport has blocked by then."""
        self.is_blocked = False
        self.unsent_bytes = 0

    def attach(self, transport: Any) -> None:
        self._transport = transport
        transport.registerProducer(self, True)

    def detach(self) -> None:
        """Stop counting. A paused producer would keep the transport from ever closing in order."""
        if self._reset_call is not None:
            self._reset_call.cancel()
            self._reset_call = None
        if self._transport is not None:
            self._transport.unregisterProducer()
            self._transport = None

    def has_room(self, size: int) -> bool:
        return self.unsent_bytes + size <= self._bytes_max

    def write(self, data: bytes) -> None:
        self._transport.write(data)
        self.unsent_bytes += len(data)
        if self.unsent_bytes > bounds.TURN_BYTES and not self.is_blocked and self._reset_call is None:
            # TLS collects what is written in one turn; the transport blocks only after it.
            self._reset_call = self._reactor.callLater(0, self._reset_unless_blocked)

    def _reset_unless_blocked(self) -> None:
        self._reset_call = None
        if not self.is_blocked:
            self.resumeProducing()

    # --- IPushProducer: the transport's side ---
    def pauseProducing(self) -> None:
        self.is_blocked = True

    def resumeProducing(self) -> None:
        self.is_blocked = False
        self.unsent_bytes = 0
        self._drained()

    def stopProducing(self) -> None:
        """``connectionLost`` follows."""
