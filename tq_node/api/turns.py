"""Giving way: long work on the reactor is cut, and others come between the pieces."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater


def next_turn(reactor: IReactorTime) -> Deferred[None]:
    """Fires in the reactor's next turn."""
    return deferLater(reactor, 0.0)
