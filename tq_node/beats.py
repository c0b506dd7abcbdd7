"""Beats of a reactor: timers that need no exact moment wait for one, so that those that are due together wake the process once.

A node with nothing to do spends its time on waking up: each time some tenths of a millisecond, however little there is to do.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from twisted.internet.interfaces import IReactorTime

_SAME = 1e-3
"""In beats: how early a timer may be and still be on time."""
_origins: WeakKeyDictionary[IReactorTime, float] = WeakKeyDictionary()
"""When each reactor was first asked. Not the same for all nodes of a machine, so that they don't all act at once."""


def until_beat(reactor: IReactorTime, seconds: float) -> float:
    """How long until the next beat of those that are ``seconds`` apart; never the beat of now."""
    now_s = reactor.seconds()
    origin_s = _origins.get(reactor)
    if origin_s is None:
        origin_s = _origins[reactor] = now_s
    passed_s = now_s - origin_s
    # The beat of now is not met again, though the sum of floats may lie a little before it.
    beat = int(passed_s / seconds + _SAME) + 1
    return max(0.0, beat * seconds - passed_s)
